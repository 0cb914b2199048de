"""The screen of `agentd top`: figures, and what the reader has chosen, in; lines out. Pure but for colours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import Struct
from msgspec.structs import replace

from agentd.cli.health import Trouble, troubles
from agentd.cli.layout import bar, cut, rate
from agentd.cli.queue_screen import WAITS
from agentd.cli.status_document import DestinationStatus, Status
from agentd.cli.status_screen import empty_in, state
from agentd.cli.terminal import harmless, paint, table
from agentd.cli.top_figures import Figures, Flow, Quantiles
from agentd.units import format_duration, format_size

SORTS = ("oldest", "largest", "slowest")
KEYS = "q quit   space pause   s sort   d destination   ? help"
HELP = (
    "q, Ctrl-C   quit",
    "space       pause: nothing is asked until it is pressed again",
    "s           sort the lanes: oldest record, largest, slowest (most failures, longest wait)",
    "d           lanes of the next destination, at last of all",
    "?           this, and back",
    "",
    "in/s, out/s   records admitted for it and delivered, over the last seconds",
    "flight        requests under way, and how many there may be by now",
    "p50, p99      from a record's admission to the platform's answer that it has it",
    "lanes         those in memory; agentd queue list reads all of them from the disk",
)
_WIDE = 92  # columns from which on there is room for a bar of so many cells, and for the median
_BAR = 6
_P50 = 7  # its place in a row
_BESIDE_NAMES = 49  # columns beside a lane's name and what it waits for, which share the rest
_TROUBLES = 4  # lines of them


class View(Struct, frozen=True):
    """What the reader has chosen."""

    sort: str = SORTS[0]
    destination: str | None = None
    paused: bool = False
    help: bool = False
    interval_s: float = 1.0

    def press(self, key: str, names: Sequence[str]) -> View | None:
        """After this key; None: that is the end. `names` are the destinations."""
        if key in ("q", "Q", "\x03", "\x04"):
            return None
        if key == " ":
            return replace(self, paused=not self.paused)
        if key == "s":
            return replace(self, sort=SORTS[(SORTS.index(self.sort) + 1) % len(SORTS)])
        if key == "d":
            turns: list[str | None] = [None, *names]
            at = turns.index(self.destination) if self.destination in turns else 0
            return replace(self, destination=turns[(at + 1) % len(turns)])
        if key in ("?", "h"):
            return replace(self, help=not self.help)
        return self


def screen(found: Figures, view: View, width: int, height: int | None = None, news: str = "") -> list[str]:
    """The lines, none wider than `width` and no more than `height`; `news` is what went wrong since."""
    head = [*_head(found, view, width), *([paint(cut(f"! {harmless(news)}", width), "red")] if news else [])]
    if view.help:
        body = ["", *(cut(line, width) for line in HELP)]
    else:
        room = None if height is None else max(3, (height - len(head) - 4) // 2)
        body = ["", *_destinations(found, width, room), ""]
        body += _lanes(found, view, width, None if height is None else height - len(head) - len(body) - 1)
    if height is None:
        return [*head, *body]
    foot = KEYS + ("   PAUSED" if view.paused else "")
    lines = [*head, *body][: height - 1]
    return [*lines, *[""] * (height - 1 - len(lines)), paint(cut(foot, width), "cyan")]


def _head(found: Figures, view: View, width: int) -> Iterator[str]:
    status = found.seen.status
    up = "" if status.uptime_s is None else f"  up {format_duration(status.uptime_s)}"
    every = "paused" if view.paused else f"every {format_duration(view.interval_s)}"
    first = f"agentd {status.agentd}  {status.state}  pid {status.pid}{up}  {every}"
    yield cut(first, width).replace(f" {status.state} ", f" {state(status.state)} ", 1)
    yield cut(_through(found), width)
    yield cut(_places(found), width)
    wrong = [_short_form(one, status) for one in troubles(status)]
    for line in wrong[:_TROUBLES]:
        yield paint(cut(f"! {harmless(line)}", width), "red")
    if len(wrong) > _TROUBLES:
        yield paint(cut(f"! {len(wrong) - _TROUBLES} more: agentd status says them", width), "red")


def _short_form(one: Trouble, status: Status) -> str:
    """What matters first, since the line may be cut: of a destination that is away when it is tried next."""
    there = status.destinations.get(one.destination or "")
    if there is None or one.what != there.state or there.retry_in_s is None:
        return str(one)
    return f"{one.destination}: {there.state}, next try in {format_duration(there.retry_in_s)}: {there.reason}"


def _through(found: Figures) -> str:
    """How much goes in and out of the whole."""
    status = found.seen.status
    there = status.destinations.values()
    delivered = [flow.delivered for flow in found.flows.values() if flow.delivered is not None]
    parts = [
        f"in {rate(found.accepted_s)}/s",
        f"out {rate(sum(delivered) if delivered else None)}/s",
        f"queued {sum(one.queued for one in there):,}",
        f"dead {status.dead_letters.records:,}",
        f"{status.intake.connections:,} connections",
    ]
    parts += [f"refused {rate(found.refused_s)}/s"] if found.refused_s else []
    parts += [f"{status.intake.held:,} wait for room"] if status.intake.held else []
    return "  ".join(parts)


def _places(found: Figures) -> str:
    """How long it takes to be on disk, and what it takes of disk and memory."""
    status = found.seen.status
    spool = status.spool
    taken = f"{format_size(spool.bytes)} of {format_size(spool.max_bytes)}"
    return f"ack {_times(found.ack)}  commit {_times(found.commit)}  spool {taken}  memory {format_size(status.memory.rss_bytes)}"


def _times(measured: Quantiles) -> str:
    return f"{_short(measured.p50)}/{_short(measured.p99)}"


def _short(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds * 1e3:.1f}ms" if seconds < 0.01 else format_duration(round(seconds, 3))  # noqa: PLR2004


# -- destinations ------------------------------------------------------------------------------------------------------


def _destinations(found: Figures, width: int, room: int | None) -> list[str]:
    status = found.seen.status
    if not status.destinations:
        return ["no destinations"]
    cells = _BAR if width >= _WIDE else 0
    quota = "quota".ljust(cells + 5) if cells else "quota"
    head = ("destination", "state", "queued", quota, "in/s", "out/s", "flight", "p50", "p99", "oldest", "empty")
    rows = [head, *(_row(name, there, found.flows[name], cells) for name, there in status.destinations.items())]
    shown = rows if cells else [(*row[:_P50], *row[_P50 + 1 :]) for row in rows]
    first, *body = table(shown[0], shown[1:], left=2)
    lines = [cut(first, width)]
    for row, there in zip(body, status.destinations.values(), strict=True):
        lines.append(cut(row, width).replace(f" {there.state} ", f" {state(there.state)} ", 1))
        lines += [cut(f"    {harmless(line)}", width) for line in _notes(there)]
    if room is not None and len(lines) > room:
        lines = [*lines[: room - 1], "    …"]
    return lines


def _row(name: str, there: DestinationStatus, flow: Flow, cells: int) -> tuple[str, ...]:
    share = there.share
    return (
        name,
        there.state,
        f"{there.queued:,}",
        "–" if share is None else bar(share, cells) + f"{min(share, 9.99):>5.0%}",
        rate(flow.admitted),
        rate(flow.delivered),
        f"{there.in_flight}/{there.concurrency}" if there.concurrency else str(there.in_flight),
        _short(flow.delivery.p50),
        _short(flow.delivery.p99),
        "–" if there.oldest_age_s is None else format_duration(there.oldest_age_s),
        empty_in(there),
    )


def _notes(there: DestinationStatus) -> Iterator[str]:
    """What the table has no column for; what is wrong stands above it already."""
    if there.state == "ok" and there.reason:
        yield there.reason
    if there.forecast and not (there.quota and there.quota.reached):
        yield there.forecast


# -- lanes -------------------------------------------------------------------------------------------------------------


def _lanes(found: Figures, view: View, width: int, room: int | None) -> list[str]:
    seen = found.seen
    whose = f" of {view.destination}" if view.destination else ""
    of = (
        f", {seen.lanes_looked_at:,} of {seen.lanes_known:,} looked at"
        if seen.lanes_looked_at < seen.lanes_known
        else ""
    )
    title = paint(cut(f"lanes{whose}, {view.sort} first ({seen.lanes_known:,} in memory{of})", width), "cyan")
    if not seen.lanes:
        return [title]
    names = max(16, (width - _BESIDE_NAMES) // 2)
    rows = [
        (
            cut(harmless(lane.lane), names),
            lane.destination,
            f"{lane.records:,}",
            format_size(lane.bytes),
            format_duration(lane.oldest_age_s),
            f"{lane.failures:,}",
        )
        for lane in seen.lanes
    ]
    head, *body = table(("lane", "destination", "records", "bytes", "oldest", "fails"), rows, left=2)
    waits = [_waits(lane.waits_for, lane.reason, lane.next_try_in_s) for lane in seen.lanes]
    lines = [f"{head}  waits for", *(f"{row}  {wait}" for row, wait in zip(body, waits, strict=True))]
    return [title, *(cut(line, width) for line in lines[: None if room is None else max(0, room - 1)])]


def _waits(word: str, reason: str | None, next_s: float | None) -> str:
    again = "" if next_s is None or word == "turn" else f", {format_duration(next_s)}"
    why = f": {harmless(reason)}" if reason and word not in ("destination", "removed") else ""
    return WAITS.get(word, word) + again + why
