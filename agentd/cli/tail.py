"""`agentd tail`: records as they come, after their secrets were taken out. For admins all of them, for others their own."""

from __future__ import annotations

import json
import shutil
from typing import Any

import click

from agentd.cli.options import config_option, daemon, socket_option
from agentd.cli.tail_screen import line
from agentd.cli.terminal import complain, echo_lines, is_live
from agentd.errors import StateError

_LEVELS = ("debug", "info", "warn", "error")
_SILENCE_S = 30.0  # a daemon that lives says something each second
_NARROWEST = 80


@click.command()
@click.option(
    "--kind", "kinds", multiple=True, metavar="KIND", help="run.start, event, decision, …; may be given again."
)
@click.option("--agent", metavar="NAME", help="The agent's local name.")
@click.option("--run", metavar="RUN_ID")
@click.option("--destination", metavar="NAME")
@click.option("--level", type=click.Choice(_LEVELS), help="Events and spans of this level or above, and nothing else.")
@click.option(
    "-n", "last", type=click.IntRange(0, 1000), default=0, help="First so many of the newest that are queued."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document a line.")
@config_option
@socket_option
def tail(socket: str | None, *, as_json: bool, kinds: tuple[str, ...], last: int, **asked: str | None) -> None:
    """Show records as they come, until Ctrl-C: yours, or everybody's if you are an admin.

    Whoever reads slowly misses some, and is told how many; nobody else waits for it.
    """
    query: dict[str, Any] = asked | {"kind": kinds or None, "last": last or None}
    for raw in daemon(socket, _SILENCE_S).lines("/v1/tail", **query):
        if as_json:  # a record's text is its sender's: on a terminal nothing of it is left that could be an order
            click.echo(json.dumps(json.loads(raw)) if is_live() else raw)
        else:
            echo_lines([line(json.loads(raw), _width())])
    complain("the daemon has ended")
    raise click.exceptions.Exit(StateError.exit_code)


def _width() -> int | None:
    """The terminal's, each time: it may be made larger meanwhile."""
    return max(_NARROWEST, shutil.get_terminal_size().columns) if is_live() else None
