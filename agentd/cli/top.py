"""`agentd top`: the daemon at work, a live screen on a terminal, a snapshot for each interval elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING

import click

from agentd.cli.ask import Daemon, NoDaemon
from agentd.cli.options import config_option, daemon, seconds, socket_option
from agentd.cli.terminal import echo_lines, is_live
from agentd.cli.top_figures import Figures, Looks, read_look
from agentd.cli.top_screen import SORTS, View, screen
from agentd.errors import AgentdError, UsageError

if TYPE_CHECKING:
    from agentd.cli.live import Terminal

_PATIENCE_S = 2.0
_LEAST_S, _MOST_S = 0.1, 3600.0
_LANES = 50  # of which the screen shows what it has room for
_LINES_OF_TEXT = 10  # lanes of a snapshot
_NARROWEST = 80


@click.command()
@click.option(
    "--interval", metavar="TIME", default="1s", show_default=True, callback=seconds, help="Between two looks."
)
@click.option("--once", is_flag=True, help="One snapshot as plain lines, also on a terminal.")
@click.option("--sort", type=click.Choice(SORTS), default=SORTS[0], show_default=True, help="Which lanes come first.")
@click.option("--destination", metavar="NAME", help="Lanes of this one only.")
@config_option
@socket_option
def top(socket: str | None, *, interval: float, once: bool, sort: str, destination: str | None) -> None:
    """Watch the daemon work: rates, queues, lanes, destinations, latency. Press ? for the keys.

    Where there is no terminal, a snapshot as plain lines for each interval.
    """
    if not _LEAST_S <= interval <= _MOST_S:
        raise UsageError("--interval: expected 100ms to 1h")
    watch = _Watch(daemon(socket, _PATIENCE_S), View(sort=sort, destination=destination, interval_s=interval))
    watch.look()
    if once or not (is_live() and sys.stdin.isatty()):
        watch.print(once=once)
        return
    from agentd.cli.live import Terminal

    with Terminal() as terminal:
        watch.show(terminal)


class _Watch:
    """Looks, and what is shown of them."""

    def __init__(self, there: Daemon, view: View) -> None:
        self._there = there
        self._view = view
        self._looks = Looks()
        self._found: Figures | None = None
        self._news = ""  # why the last look was none

    def look(self) -> None:
        """Ask the daemon. The first time its absence is an error, later it is news: it may come back."""
        try:
            document = self._there.get(
                "/v1/top", sort=self._view.sort, destination=self._view.destination, limit=_LANES
            )
            self._found = self._looks.add(time.monotonic(), read_look(document))
            self._news = ""
        except AgentdError as error:
            if self._found is None:
                raise
            gone = f"no daemon at {self._there.socket}" if isinstance(error, NoDaemon) else str(error)
            self._news = f"{gone}; these are the last figures"

    def print(self, *, once: bool) -> None:
        """Plain lines, a snapshot an interval."""
        while True:
            lines = self._lines(max(_NARROWEST, shutil.get_terminal_size((120, 24)).columns))
            echo_lines(lines)
            if once:
                return
            click.echo()
            time.sleep(self._view.interval_s)
            self.look()

    def _lines(self, width: int, height: int | None = None) -> list[str]:
        assert self._found is not None  # noqa: S101 - the first look raises if there is nothing to show
        found = self._found
        if height is None:
            found = found._replace(seen=found.seen.first(_LINES_OF_TEXT))
        return screen(found, self._view, width, height, self._news)

    def show(self, terminal: Terminal) -> None:
        """Until a key ends it."""
        due = time.monotonic() + self._view.interval_s
        while True:
            width, height = terminal.size
            terminal.draw(self._lines(width, height))
            key = terminal.wait(_MOST_S if self._view.paused else due - time.monotonic())
            if key is not None and len(key) == 1:
                view = self._view.press(key, self._names)
                if view is None:
                    return
                asks_anew = (view.sort, view.destination) != (self._view.sort, self._view.destination)
                self._view = view
                if asks_anew:
                    due = 0.0
            if not self._view.paused and time.monotonic() >= due:
                self.look()
                due = time.monotonic() + self._view.interval_s

    @property
    def _names(self) -> list[str]:
        return [] if self._found is None else list(self._found.seen.status.destinations)
