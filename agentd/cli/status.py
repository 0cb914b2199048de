"""`agentd status`: one screen on how the daemon fares; also the types of that answer, for verbs that compute with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import msgspec
from msgspec import Struct

from agentd.cli.options import config_option, json_option, socket_option
from agentd.cli.stopped import Stopped, ask_or_look
from agentd.cli.terminal import paint, print_json, table
from agentd.errors import StateError
from agentd.units import format_duration, format_size

if TYPE_CHECKING:
    from agentd.spool.look import Look

_COLOURS = {
    "ok": "green",
    "running": "green",
    "waiting": "yellow",
    "draining": "yellow",
    "paused": "red",
    "down": "red",
}
_ENDS = ("delivered", "queued", "dead", "purged", "shed", "quarantined")


class SpoolStatus(Struct, frozen=True):
    directory: str = ""
    sync: str = ""
    bytes: int = 0
    max_bytes: int = 0
    disk_free_bytes: int = 0
    full: bool = False


class IntakeStatus(Struct, frozen=True):
    connections: int = 0
    accepted: int = 0
    refused: dict[str, int] = {}
    lost_before_intake: dict[str, int] = {}


class GatesStatus(Struct, frozen=True):
    """How the gates of a destination were answered since the start, and how many are under way or followed."""

    open: int = 0
    allow: int = 0
    deny: int = 0
    review: int = 0
    pending: int = 0
    unavailable: int = 0
    circuit: str = "closed"
    reason: str | None = None

    def __str__(self) -> str:
        """What there is to say, or nothing."""
        words = ("open", "allow", "deny", "review", "pending", "unavailable")
        counts = [f"{getattr(self, word)} {word}" for word in words if getattr(self, word)]
        away = [] if self.circuit == "closed" else [f"circuit {self.circuit}: {self.reason}"]
        return ", ".join(counts + away)


class DestinationStatus(Struct, frozen=True):
    state: str
    reason: str | None = None
    retry_in_s: float | None = None
    admitted: int = 0
    queued: int = 0
    delivered: int = 0
    dead: int = 0
    shed: int = 0
    purged: int = 0
    quarantined: int = 0
    queued_bytes: int = 0
    max_bytes: int = 0
    oldest_age_s: float | None = None
    in_flight: int = 0
    requests: int = 0
    retries: int = 0
    causes: dict[str, dict[str, int]] = {}
    gates: GatesStatus | None = None
    balanced: bool = True

    @property
    def accounted(self) -> int:
        """What is known to have become of the admitted records (promise 8)."""
        return sum(getattr(self, end) for end in _ENDS)


class MemoryStatus(Struct, frozen=True):
    rss_bytes: int = 0
    budget_bytes: int = 0
    window_bytes: int = 0


class Status(Struct, frozen=True):
    """The answer of `GET /v1/status`, as far as this command line reads it; a newer daemon may say more."""

    agentd: str
    pid: int | None
    state: str
    socket: str = ""
    config: str | None = None
    uptime_s: float | None = None
    spool: SpoolStatus = SpoolStatus()
    intake: IntakeStatus = IntakeStatus()
    destinations: dict[str, DestinationStatus] = {}
    memory: MemoryStatus = MemoryStatus()
    balanced: bool = True


def read_status(document: Any) -> Status:
    """The answer as types. Raises StateError if it is none."""
    try:
        return msgspec.convert(document, Status)
    except msgspec.ValidationError as error:
        raise StateError(f"this is no status of agentd: {error}") from None


@click.command()
@config_option
@socket_option
@json_option
def status(socket: str | None, *, as_json: bool) -> None:
    """Show what the daemon took in, sent, and still holds; of one that does not run, what it has left."""
    document = ask_or_look(socket, lambda there: dict(there.get("/v1/status")), _at_rest)
    if as_json:
        print_json(document)
        return
    for line in screen(read_status(document)):
        click.echo(line)


def _at_rest(look: Look, folder: Stopped) -> dict[str, Any]:
    from agentd.control.at_rest import status_at_rest

    return status_at_rest(look, folder.loaded, folder.pid, folder.now_us)


def screen(status: Status) -> list[str]:
    """The lines for people."""
    return [*_head(status), "", *_destinations(status), "", _balance(status)]


def _head(status: Status) -> list[str]:
    spool = status.spool
    stored = f"{format_size(spool.bytes)} of {format_size(spool.max_bytes)}, sync {spool.sync}"
    free = f"{format_size(spool.disk_free_bytes)} free on disk" + (paint("  FULL", "red") if spool.full else "")
    pid = "" if status.pid is None else f"  pid {status.pid}"
    up = "" if status.uptime_s is None else f"  up {format_duration(status.uptime_s)}"
    return [
        f"agentd {status.agentd}  {_state(status.state)}{pid}{up}",
        f"  socket  {status.socket}",
        f"  config  {status.config or 'none; from the environment'}",
        f"  spool   {spool.directory}  {stored}, {free}",
        *_process(status),
    ]


def _process(status: Status) -> list[str]:
    """What only a daemon that runs has, and what its clients said of themselves."""
    intake, memory = status.intake, status.memory
    lost = _causes(intake.lost_before_intake)
    if status.uptime_s is None:
        return [f"  intake  lost before intake: {lost}"] if lost else []
    causes = _causes(intake.refused)
    refused = f"{sum(intake.refused.values())} refused" + (f" ({causes})" if causes else "")
    window = f"window {format_size(memory.window_bytes)} of {format_size(memory.budget_bytes)}"
    return [
        f"  intake  {intake.connections} connections, {intake.accepted} accepted, {refused}"
        + (f", lost before intake: {lost}" if lost else ""),
        f"  memory  {format_size(memory.rss_bytes)}, {window}",
    ]


def _destinations(status: Status) -> list[str]:
    if not status.destinations:
        return ["no destinations"]
    rare = [name for name in ("purged", "quarantined") if any(getattr(d, name) for d in status.destinations.values())]
    columns = ["admitted", "queued", "delivered", "dead", "shed", *rare]
    rows = [
        (name, there.state, *(getattr(there, column) for column in columns), _age(there.oldest_age_s))
        for name, there in status.destinations.items()
    ]
    head, *body = table(("destination", "state", *columns, "oldest"), rows, left=2)
    lines = [head]
    for row, there in zip(body, status.destinations.values(), strict=True):
        lines.append(row.replace(f" {there.state} ", f" {_state(there.state)} ", 1))
        lines += _reason(there)
    return lines


def _reason(there: DestinationStatus) -> list[str]:
    lines = [f"    {there.reason}"] if there.reason else []
    if there.retry_in_s is not None:
        lines.append(f"    next try in {format_duration(there.retry_in_s)}")
    lines += [f"    {end}: {_causes(causes)}" for end, causes in there.causes.items() if _causes(causes)]
    return [*lines, f"    gates: {there.gates}"] if there.gates is not None and str(there.gates) else lines


def _causes(counts: dict[str, int]) -> str:
    return ", ".join(f"{cause} {count}" for cause, count in counts.items() if count)


def _balance(status: Status) -> str:
    """What the daemon says of its books, added up again. What is on its way to the disk is admitted and not yet queued."""
    books = {name: there.admitted - there.accounted for name, there in status.destinations.items()}
    wrong = [name for name, there in status.destinations.items() if not there.balanced or books[name] < 0]
    if status.balanced and not wrong:
        writing = f" + {sum(books.values())} being written" if any(books.values()) else ""
        words = "admitted = delivered + queued + dead + purged + shed + quarantined"
        return paint("books balance", "green") + f": {words}{writing}"
    return paint("books do NOT balance", "red") + (f": {', '.join(wrong)}" if wrong else "")


def _state(state: str) -> str:
    return paint(state, _COLOURS.get(state, "white"))


def _age(seconds: float | None) -> str:
    return "–" if seconds is None else format_duration(seconds)
