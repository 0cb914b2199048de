"""`agentd status`: one screen on how the daemon fares, and an exit code that says whether somebody should look."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import click
from msgspec.structs import asdict

from agentd.cli.health import exit_code, troubles
from agentd.cli.options import config_option, json_option, socket_option
from agentd.cli.status_document import Status, read_status
from agentd.cli.status_screen import screen
from agentd.cli.stopped import Stopped, ask_or_look
from agentd.cli.terminal import echo_lines, is_live, print_json

if TYPE_CHECKING:
    from agentd.spool.look import Look

_NARROWEST = 80


@click.command()
@config_option
@socket_option
@json_option
def status(socket: str | None, *, as_json: bool) -> None:
    """Show what the daemon took in, sent, and still holds; of one that does not run, what it has left.

    Exit code 0: in good health; 3: somebody should look, and the screen says why; 1: no daemon runs.
    """
    document = ask_or_look(socket, lambda there: dict(there.get("/v1/status")), _at_rest)
    read = read_status(document)
    found = troubles(read)
    if as_json:
        print_json(document | {"healthy": not found, "degraded": [asdict(one) for one in found]})
    else:
        echo_lines(screen(read, max(_NARROWEST, shutil.get_terminal_size().columns) if is_live() else None))
    click.get_current_context().exit(exit_code(read, found))


def _at_rest(look: Look, folder: Stopped) -> dict[str, Any]:
    from agentd.control.at_rest import status_at_rest

    return status_at_rest(look, folder.loaded, folder.pid, folder.now_us)


__all__ = ["Status", "read_status", "screen", "status"]
