"""`agentd init`: look at what this machine has, write a configuration with a comment for each choice, and check it.

Keys are looked for in the platforms' own variables and are named, never read into the file. Frameworks are looked for in the
environments that an agent is likely to run in: the active one, `./.venv`, `./venv`, and agentd's own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import click

from agentd.cli import init_file
from agentd.cli.options import read_config
from agentd.cli.terminal import echo_lines
from agentd.errors import ConfigError, StateError
from agentd.variables import destinations_of

_MODE = 0o644  # it holds no secret, and a service's user has to read it


@click.command()
@click.option(
    "--output",
    metavar="PATH",
    default="agentd.toml",
    type=click.Path(path_type=Path),
    help="Write here (default ./agentd.toml).",
)
@click.option("--force", is_flag=True, help="Also over a file that is there.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@click.pass_context
def init(ctx: click.Context, *, output: Path, force: bool, yes: bool) -> None:
    """Write a configuration for what is found on this machine, check it, and say what to do next."""
    if os.path.lexists(output) and not force:
        raise StateError(f"{output}: is there already; --force writes over it, --output PATH somewhere else")
    found = init_file.Found(destinations_of(os.environ), init_file.frameworks(places(Path.cwd(), os.environ)))
    echo_lines(init_file.report(found))
    if not yes and sys.stdin.isatty() and sys.stdout.isatty() and not click.confirm(f"Write {output}?", default=True):
        ctx.exit(1)
    _write(output, init_file.text(found), force=force)
    echo_lines([f"wrote {output}", ""])
    ctx.exit(_check(output, found))


def places(folder: Path, env: Mapping[str, str]) -> list[str]:
    """Where packages of agents may be installed."""
    environments = [env.get("VIRTUAL_ENV", ""), str(folder / ".venv"), str(folder / "venv")]
    found = [str(place) for top in filter(None, environments) for place in Path(top).glob("lib/python3*/site-packages")]
    return list(dict.fromkeys([*found, *sys.path]))


def _write(output: Path, text: str, *, force: bool) -> None:
    """All of it or nothing, and never through a link."""
    new = output.with_name(f".{output.name}.new")
    try:
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, _MODE)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        if force:
            new.replace(output)
        else:
            os.link(new, output)  # unlike a rename it replaces nothing that has come meanwhile
            new.unlink()
    except OSError as error:
        new.unlink(missing_ok=True)
        raise StateError(f"{output}: {error.strerror}") from error


def _check(output: Path, found: init_file.Found) -> int:
    """What `agentd check` says of the file, and the next command. Returns check's exit status."""
    from agentd.cli.check import examine, say

    findings = list(examine(read_config(output), os.environ, os.getuid()))
    say(findings)
    failed = any(finding.level == "error" for finding in findings)
    echo_lines(["", *_next(output, found, failed=failed)])
    return ConfigError.exit_code if failed else 0


def _next(output: Path, found: init_file.Found, *, failed: bool) -> Iterable[str]:
    given = "" if output == Path("agentd.toml") else f" --config {output}"
    if failed:
        yield "next: put right what is marked as an error, then"
        yield f"  agentd{given} check"
        return
    yield "next:"
    yield f"  agentd{given} sidecar -- python my_agent.py     # beside one agent"
    yield f"  agentd{given} run                               # or as a daemon, for all agents of this machine"
    if found.destinations:
        yield f"  agentd{given} check --online                    # asks the platforms whether they take the keys"
