"""What a user sees of the demonstration while it plays: a live screen on a terminal, else a line a second.

Both draw a `Scene` that the play keeps up to date; neither asks anybody anything. The live screen loads rich, the lines do not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import click

from agentd.cli.terminal import is_live

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live
    from rich.table import Table

WIDTH = 100  # columns; with at most 40 lines the size of a window that nobody has to enlarge
_ROWS = 12  # runs on the live screen
_NOTES = 6
_BAR = 50


class Scene:
    """The state of the play. `clock` is monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self.accepted = self.queued = self.delivered = self.dead = 0
        self.most_queued = 0
        self.platform = "starting"
        self.runs: list[dict[str, Any]] = []
        self.questions: dict[str, str] = {}
        self.notes: list[tuple[float, str]] = []

    @property
    def elapsed_s(self) -> float:
        """Seconds since the curtain rose."""
        return self._clock() - self._began

    def note(self, text: str) -> None:
        """Something happened that is worth a line."""
        self.notes.append((self.elapsed_s, text))

    def count(self, accepted: int, queued: int, delivered: int, dead: int) -> None:
        """The daemon's figures of this moment."""
        self.accepted, self.queued, self.delivered, self.dead = accepted, queued, delivered, dead
        self.most_queued = max(self.most_queued, queued)


class Screen(Protocol):
    """A way to show the scene."""

    def draw(self, scene: Scene) -> None:
        """Show it as it is now; called several times a second."""

    def close(self) -> None:
        """Make room for what is printed at the end."""


def screen(*, to_stderr: bool) -> Screen:
    """The live screen where there is a terminal for it. With `to_stderr` standard output stays free for `--json`."""
    return LiveScreen() if is_live() and not to_stderr else Lines(to_stderr=to_stderr)


class Lines:
    """Notes as they come, and the figures once a second."""

    def __init__(self, *, to_stderr: bool) -> None:
        self._to_stderr = to_stderr
        self._noted = 0
        self._next_s = 1.0

    def draw(self, scene: Scene) -> None:
        """Print what is new."""
        for at, text in scene.notes[self._noted :]:
            self._print(at, text)
        self._noted = len(scene.notes)
        if scene.elapsed_s >= self._next_s:
            self._next_s = int(scene.elapsed_s) + 1.0
            self._print(
                scene.elapsed_s,
                f"accepted {scene.accepted:4}   queued {scene.queued:4}   delivered {scene.delivered:4}"
                f"   dead {scene.dead}   platform {scene.platform}",
            )

    def close(self) -> None:
        """Nothing was held back."""

    def _print(self, at: float, text: str) -> None:
        click.echo(f"{at:5.1f}s  {text}", err=self._to_stderr)


class LiveScreen:
    """One screen that is redrawn, and gone when it is closed."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        console = Console(width=min(WIDTH, Console().width), highlight=False)
        self._live: Live = Live(console=console, auto_refresh=False, transient=True)
        self._live.start()

    def draw(self, scene: Scene) -> None:
        """Redraw."""
        self._live.update(_drawn(scene), refresh=True)

    def close(self) -> None:
        """Take it away."""
        self._live.stop()


def _drawn(scene: Scene) -> RenderableType:
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    notes = Text(
        "\n".join(f"{at:5.1f}s  {text}" for at, text in scene.notes[-_NOTES:]), no_wrap=True, overflow="ellipsis"
    )
    return Panel(
        Group(_figures(scene), Text(), _runs(scene), Text(), notes),
        title=f"agentd demo   {scene.elapsed_s:4.1f}s",
        border_style="cyan",
    )


def _figures(scene: Scene) -> Table:
    """A bar each for what was accepted, what waits and what has arrived: at the end the first and the last are equal."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    whole = max(scene.accepted, 1)
    for name, count, colour in (
        ("accepted", scene.accepted, "cyan"),
        ("queued", scene.queued, "yellow"),
        ("delivered", scene.delivered, "green"),
        ("dead", scene.dead, "red"),
    ):
        table.add_row(name, Text(f"{count:4}", style="bold"), Text("█" * round(_BAR * count / whole), style=colour))
    up = scene.platform == "up"
    table.add_row("platform", Text(""), Text(scene.platform, style="bold green" if up else "bold red"))
    return table


def _runs(scene: Scene) -> Table:
    """The runs as the platform sees them now."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("runs, as the platform sees them", width=50, no_wrap=True, overflow="ellipsis")
    table.add_column("status", width=10)
    table.add_column("events", justify="right")
    table.add_column("tasks", justify="right")
    colours = {"completed": "green", "failed": "red", "running": "yellow"}
    for run in scene.runs[:_ROWS]:
        status = str(run["status"])
        question = scene.questions.get(run["id"], "")
        table.add_row(question, Text(status, style=colours.get(status, "")), str(run["events"]), str(run["tasks"]))
    return table
