"""A daemon's status for people: one screen of lines from its document. Pure but for colours, which `paint` decides on."""

from __future__ import annotations

from collections.abc import Iterator

from agentd.cli.health import Trouble, again, troubles
from agentd.cli.layout import bar, rate, wrapped
from agentd.cli.status_document import ENDS, DestinationStatus, Status
from agentd.cli.terminal import paint, table
from agentd.units import format_duration, format_size

COLOURS = {
    "ok": "green",
    "running": "green",
    "waiting": "yellow",
    "draining": "yellow",
    "stopped": "yellow",
    "paused": "red",
    "removed": "red",
    "down": "red",
}
_LEFT = 2  # columns of the table that stand to the left: name and state
_BAR = 10  # cells at most
_USUAL = ("delivered", "queued", "dead")  # ends that are named also where there is none


def screen(status: Status, width: int | None = None) -> list[str]:
    """The lines. With `width` (80 and more) sentences are wrapped to it, and the bars take what it leaves."""
    found = troubles(status)
    lines = [
        *_head(status, found),
        *(f"  ! {one}" for one in found if one.destination is None),
        *(f"  {label:<8}{text}" for label, text in _facts(status)),
        "",
        *_destinations(status, found, width),
        "",
        _balance(status),
    ]
    return lines if width is None else [part for line in lines for part in wrapped(line, width)]


def _head(status: Status, found: list[Trouble]) -> list[str]:
    pid = "" if status.pid is None else f"  pid {status.pid}"
    up = "" if status.uptime_s is None else f"  up {format_duration(status.uptime_s)}"
    judged = "  " + (paint("degraded", "red") if found else paint("healthy", "green")) if up else ""
    return [f"agentd {status.agentd}  {state(status.state)}{pid}{up}{judged}"]


def _facts(status: Status) -> Iterator[tuple[str, str]]:
    """What there is to say of the whole daemon; of one that does not run, what the disk knows."""
    spool, letters = status.spool, status.dead_letters
    yield "socket", status.socket + (f" and {status.listen.http}" if status.listen.http else "")
    yield "config", status.config or "none; from the environment"
    yield from _reloads(status)
    yield "spool", spool.directory
    free = f"{format_size(spool.disk_free_bytes)} free on disk" + (paint("  FULL", "red") if spool.full else "")
    yield "", f"{_of(spool.bytes, spool.max_bytes)}, sync {spool.sync}, {free}"
    if status.uptime_s is not None:
        yield from _process(status)
    lost = causes_of(status.intake.lost_before_intake)
    if lost:
        yield "lost", f"before intake, by what clients say: {lost}"
    if letters.records:
        refused = f", {letters.invalid:,} of them refused as invalid" if letters.invalid else ""
        yield "letters", f"{letters.records:,} dead, {_of(letters.bytes, letters.max_bytes)}{refused}"
    if status.journal.entries:
        yield "journal", f"{status.journal.entries:,} entries, {_of(status.journal.bytes, status.journal.max_bytes)}"


def _process(status: Status) -> Iterator[tuple[str, str]]:
    intake, memory, redaction = status.intake, status.memory, status.redaction
    held = f", {intake.held:,} wait for room" if intake.held else ""
    refused = f"{sum(intake.refused.values()):,} refused"
    causes = causes_of(intake.refused)
    yield (
        "intake",
        f"{intake.connections:,} connections, {intake.accepted:,} accepted, {refused}{f' ({causes})' if causes else ''}{held}",
    )
    if redaction.hits:
        yield "redact", f"{causes_of(redaction.hits)} (mode {redaction.mode})"
    yield "memory", f"{format_size(memory.rss_bytes)}, window {_of(memory.window_bytes, memory.budget_bytes)}"


def _reloads(status: Status) -> Iterator[tuple[str, str]]:
    reloads = status.reloads
    if reloads.last_at:
        failed = f", {reloads.failed:,} refused" if reloads.failed else ""
        yield "reloads", f"{reloads.done:,} taken{failed}, the last at {reloads.last_at[:19]}Z"


def _of(part: int, whole: int) -> str:
    return f"{format_size(part)} of {format_size(whole)}" if whole else format_size(part)


# -- destinations ------------------------------------------------------------------------------------------------------


def _destinations(status: Status, found: list[Trouble], width: int | None) -> list[str]:
    if not status.destinations:
        return ["no destinations"]
    rows = _table(status, _BAR)
    if width is not None and len(rows[0]) > width:
        rows = _table(status, max(0, _BAR - (len(rows[0]) - width)))
    lines = [rows[0]]
    for row, (name, there) in zip(rows[1:], status.destinations.items(), strict=True):
        lines.append(row.replace(f" {there.state} ", f" {state(there.state)} ", 1))
        troubled = [one for one in found if one.destination == name]
        lines += [f"  ! {one.reason}" for one in troubled]
        lines += [f"    {line}" for line in _details(there, {one.what for one in troubled})]
    return lines


def _table(status: Status, cells: int) -> list[str]:
    head = ("destination", "state", "queued", "of quota".ljust(cells + 5), "oldest", "in/s", "out/s", "empty in")
    rows = [
        (
            name,
            there.state,
            f"{there.queued:,}",
            _quota(there, cells),
            _age(there.oldest_age_s),
            rate(there.admitted_per_s),
            rate(there.delivered_per_s),
            empty_in(there),
        )
        for name, there in status.destinations.items()
    ]
    return table(head, rows, left=_LEFT)


def _quota(there: DestinationStatus, cells: int) -> str:
    if there.share is None:
        return "–"
    return (bar(there.share, cells) + f"{min(there.share, 9.99):>5.0%}").rjust(cells + 5)


def empty_in(there: DestinationStatus) -> str:
    """In what time the queue is empty if all goes on as it does."""
    if there.drain == "empty" or not there.queued:
        return "–"
    if there.eta_s is not None:
        return format_duration(there.eta_s)
    return "never" if there.drain == "not draining" else "?"


def _details(there: DestinationStatus, troubled: set[str]) -> Iterator[str]:
    """What `troubled` has not said already."""
    if there.reason and there.state not in troubled:
        yield there.reason + again(there)
    ends = [
        f"{getattr(there, end):,} {end}" + (f" ({causes})" if (causes := causes_of(there.causes.get(end, {}))) else "")
        for end in ("delivered", "dead", "shed", "purged", "quarantined")
        if getattr(there, end)
    ]
    if there.admitted:
        retries = f"; {there.requests:,} requests, {there.retries:,} tried again" if there.requests else ""
        yield f"{there.admitted:,} admitted" + (f": {', '.join(ends)}" if ends else "") + retries
    if there.forecast and "quota" not in troubled:
        yield there.forecast
    if there.gates is not None and str(there.gates):
        yield f"gates: {there.gates}"


def causes_of(counts: dict[str, int]) -> str:
    return ", ".join(f"{cause} {count:,}" for cause, count in counts.items() if count)


def _balance(status: Status) -> str:
    """What the daemon says of its books, added up again. What is on its way to the disk is admitted and not yet queued."""
    wrong = status.unbalanced
    if wrong is not None:
        return paint("books do NOT balance", "red") + (f": {', '.join(wrong)}" if wrong else "")
    there = status.destinations.values()
    sums = {end: sum(getattr(one, end) for one in there) for end in ENDS}
    sums["being written"] = sum(one.admitted - one.accounted for one in there)
    parts = [f"{count:,} {end}" for end, count in sums.items() if count or end in _USUAL]
    admitted = sum(one.admitted for one in there)
    return paint("books balance", "green") + f": {admitted:,} admitted = {' + '.join(parts)}"


def state(word: str) -> str:
    """A state in its colour."""
    return paint(word, COLOURS.get(word, "white"))


def _age(seconds: float | None) -> str:
    return "–" if seconds is None else format_duration(seconds)
