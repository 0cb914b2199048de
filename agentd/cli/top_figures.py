"""What `agentd top` shows, from the looks of the last seconds: rates and latencies between two of them. Pure: documents and times in."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from agentd.cli.status_document import DestinationStatus, Status
from agentd.errors import StateError

WINDOW_S = 5.0  # what is shown is of so long: calm enough to be read, and soon true again


class LaneSeen(Struct, frozen=True):
    destination: str
    lane: str
    agent: str = ""
    records: int = 0
    bytes: int = 0
    oldest_age_s: float = 0.0
    waits_for: str = ""
    reason: str | None = None
    next_try_in_s: float | None = None
    failures: int = 0


class Histogram(Struct, frozen=True):
    """Counts by upper bounds; the last count has none."""

    bounds: list[float] = []
    counts: list[int] = []


class Latency(Struct, frozen=True):
    ack: Histogram = Histogram()
    commit: Histogram = Histogram()
    delivery: dict[str, Histogram] = {}


class Seen(Struct, frozen=True):
    """The answer of `GET /v1/top`."""

    status: Status
    lanes: list[LaneSeen] = []
    lanes_known: int = 0
    lanes_looked_at: int = 0
    latency: Latency = Latency()

    def first(self, lanes: int) -> Seen:
        """With so many lanes at most."""
        return replace(self, lanes=self.lanes[:lanes])


def read_look(document: Any) -> Seen:
    """The answer as types. Raises StateError if it is none."""
    try:
        return msgspec.convert(document, Seen)
    except msgspec.ValidationError as error:
        raise StateError(f"this is no look of agentd: {error}") from None


class Quantiles(NamedTuple):
    """Seconds; None where nothing was counted."""

    p50: float | None
    p99: float | None


class Flow(NamedTuple):
    """What went through a destination, each a second; None where that is not known."""

    admitted: float | None
    delivered: float | None
    requests: float | None
    delivery: Quantiles


class Figures(NamedTuple):
    """One look, and what the others before it tell of the time between."""

    seen: Seen
    accepted_s: float | None
    refused_s: float | None
    flows: dict[str, Flow]
    ack: Quantiles
    commit: Quantiles


class Looks:
    """The last looks, at most `WINDOW_S` apart. `at` is monotonic."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, Seen]] = deque()

    def add(self, at: float, seen: Seen) -> Figures:
        """One more. Another daemon's look begins anew."""
        if self._looks and not _follows(self._looks[-1][1], seen):
            self._looks.clear()
        self._looks.append((at, seen))
        while len(self._looks) > 2 and at - self._looks[1][0] >= WINDOW_S:  # noqa: PLR2004 - two make a rate
            self._looks.popleft()
        return figures(*self._looks[0], at, seen)


def _follows(before: Seen, now: Seen) -> bool:
    return before.status.pid == now.status.pid and (before.status.uptime_s or 0.0) <= (now.status.uptime_s or 0.0)


def figures(then: float, before: Seen, at: float, now: Seen) -> Figures:
    """Between two looks; of a single one what the daemon itself says, and the time since its start."""
    span = at - then
    old, new = before.status, now.status
    alone = span <= 0
    return Figures(
        now,
        None if alone else (new.intake.accepted - old.intake.accepted) / span,
        None if alone else (sum(new.intake.refused.values()) - sum(old.intake.refused.values())) / span,
        {name: _flow(name, before, now, span) for name in new.destinations},
        quantiles(None if alone else before.latency.ack, now.latency.ack),
        quantiles(None if alone else before.latency.commit, now.latency.commit),
    )


def _flow(name: str, before: Seen, now: Seen, span: float) -> Flow:
    new, old = now.status.destinations[name], before.status.destinations.get(name)
    counted = now.latency.delivery.get(name, Histogram())
    if span <= 0 or old is None:
        return Flow(new.admitted_per_s, new.delivered_per_s, None, quantiles(None, counted))
    return Flow(
        _rate(old, new, "admitted", span),
        _rate(old, new, "delivered", span),
        _rate(old, new, "requests", span),
        quantiles(before.latency.delivery.get(name), counted),
    )


def _rate(old: DestinationStatus, new: DestinationStatus, what: str, span: float) -> float:
    return max(0.0, float(getattr(new, what) - getattr(old, what))) / span


def quantiles(before: Histogram | None, now: Histogram) -> Quantiles:
    """Of what was counted since; where that is nothing, there are none."""
    old = before.counts if before is not None else []
    counts = [new - was for new, was in zip_longest(now.counts, old, fillvalue=0)]
    return Quantiles(quantile(now.bounds, counts, 0.5), quantile(now.bounds, counts, 0.99))


def quantile(bounds: Sequence[float], counts: Sequence[int], share: float) -> float | None:
    """Where it lies within its bucket, as if values lay evenly there; above all bounds it is the last of them."""
    total = sum(counts)
    if total <= 0 or not bounds:
        return None
    rank, below = share * total, 0
    for place, count in enumerate(counts[: len(bounds)]):
        if count and below + count >= rank:
            lower = bounds[place - 1] if place else 0.0
            return lower + (bounds[place] - lower) * (rank - below) / count
        below += count
    return bounds[-1]
