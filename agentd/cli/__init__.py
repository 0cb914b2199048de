"""The command line: one module per group of verbs, imported when its verb is called.

`main` is the console script. What every verb may rely on happens here: an `AgentdError` becomes one line on standard error
and its own exit code, Ctrl-C becomes 130, and `agentd emit` in a shell loop pays for click and itself, not for the daemon.
"""

from __future__ import annotations

import importlib
from typing import Any

import click

from agentd import __version__
from agentd.cli.options import config_option
from agentd.cli.terminal import complain
from agentd.errors import AgentdError

INTERRUPTED = 130  # 128 + SIGINT, as shells have it

# verb → the module of this folder that holds a command of that name ("-" becomes "_"), in the order in which --help shows them
VERBS = {
    "run": "run",
    "sidecar": "sidecar",
    "dev": "dev",
    "init": "init",
    "check": "check",
    "config": "config",
    "status": "status",
    "top": "top",
    "tail": "tail",
    "emit": "emit",
    "explain": "explain",
    "flush": "flush",
    "reload": "reload",
    "where": "where",
    "queue": "queue",
    "dead-letters": "dead_letters",
    "gates": "gates",
    "audit": "audit",
    "doctor": "doctor",
    "diagnose": "diagnose",
    "install-service": "install_service",
    "completion": "completion",
    "sandbox": "sandbox",
    "demo": "demo",
}


class LazyGroup(click.Group):
    """A group that knows its verbs by name and imports a verb's module when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """The verbs, those of daily use first."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """The verb's command, or None for click to say that there is none."""
        if cmd_name not in VERBS:
            return None
        command = getattr(importlib.import_module(f"{__name__}.{VERBS[cmd_name]}"), cmd_name.replace("-", "_"))
        assert isinstance(command, click.Command)  # noqa: S101 - the table above says so, and mypy wants to know
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb; the only place where errors become exit codes."""
        try:
            return super().invoke(ctx)
        except AgentdError as error:
            complain(" ".join(str(error).split()))
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@config_option
@click.version_option(__version__, prog_name="agentd")
def main() -> None:
    """Keep what AI agents owe to a governance platform safe, in order, and account for it."""


__all__ = ["INTERRUPTED", "VERBS", "LazyGroup", "main"]
