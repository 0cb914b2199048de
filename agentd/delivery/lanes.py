"""Which lanes may send, in which order, and when to look at a lane again. Pure: `now` in, lane names out.

A lane has at most one request under way. Ready lanes wait in the order in which they became ready, so that no lane
starves another; lanes that wait for a time stand in a heap. Where requests are scarce (a rate limit, few at a time) lanes that hold
something urgent go first, but of four requests one is for the others as long as some of them are ready.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from enum import StrEnum

from msgspec import Struct, field

from agentd.delivery.throttle import Leave
from agentd.queued import Try

TRIES_KEPT = 16
URGENT_IN_A_ROW = 3  # then one of the others
POISON_TRIES = 20
POISON_S = 3600.0


class Hold(StrEnum):
    """Why a lane waits for a time; all but GATHERING and READING block it, so that its records may leave memory."""

    GATHERING = "gathering"  # its batch is not full and not due
    BACKOFF = "backoff"
    FORBIDDEN = "forbidden"
    REFERENCE = "reference"
    READING = "reading"  # what has to go before it is on disk only


class Lane(Struct):
    """What delivery remembers of a lane while it is busy, waiting or failing. Times are monotonic seconds."""

    key: str
    in_flight: bool = False
    ready: bool = False
    urgent: bool = False  # when it was taken off
    leave: Leave = field(default_factory=Leave)  # of the request under way
    hold: Hold | None = None
    at: float = 0.0
    reason: str = ""
    failures: int = 0
    own_failures: int = 0  # those since which others mostly got through: they are this one's, not the destination's
    first_failure: float = 0.0  # of these
    requests_then: int = 0  # of all lanes, at the last failure
    retries_then: int = 0
    history: list[Try] = []  # what came to nothing since the last delivery, at most TRIES_KEPT, the oldest first

    def failed(self, now: float, requests: int, retries: int) -> None:
        """Its batch failed; `requests` there were of all lanes by now, this one among them, and `retries` of these failed."""
        others, in_vain = requests - self.requests_then - 1, retries - self.retries_then - 1
        if not self.own_failures or 2 * in_vain < others:
            self.first_failure = self.first_failure if self.own_failures else now
            self.own_failures += 1
        self.failures += 1
        self.requests_then, self.retries_then = requests, retries

    def is_poisoned(self, now: float) -> bool:
        """Whether its batch keeps failing while others pass (promise 5)."""
        return self.own_failures >= POISON_TRIES and now - self.first_failure >= POISON_S

    def note_try(self, tried: Try) -> None:
        """Remember a try that came to nothing; the first ones go first, since the last ones say how it stands."""
        self.history.append(tried)
        del self.history[:-TRIES_KEPT]


class Lanes:
    """The lanes of one destination."""

    def __init__(self, is_urgent: Callable[[str], bool] = lambda _lane: False) -> None:
        """`is_urgent` is asked of each lane once for each time it becomes ready or has something new."""
        self._is_urgent = is_urgent
        self._lanes: dict[str, Lane] = {}
        self._fresh: dict[str, None] = {}  # ready, still to be sorted into the next two
        self._urgent: dict[str, None] = {}  # in order of becoming ready
        self._ready: dict[str, None] = {}
        self._in_a_row = 0  # requests of urgent lanes
        self._timers: list[tuple[float, str]] = []
        self._references: set[str] = set()  # lanes that were held for a reference, some of them not any more
        self.in_flight = 0

    def __repr__(self) -> str:
        return f"<Lanes {len(self._lanes)} known, {len(self._ready | self._urgent | self._fresh)} ready, {self.in_flight} in flight>"

    def __len__(self) -> int:
        return len(self._lanes)

    def __iter__(self) -> Iterator[Lane]:
        return iter(self._lanes.values())

    def find(self, key: str) -> Lane | None:
        """What is remembered of a lane, if anything is."""
        return self._lanes.get(key)

    def is_busy(self, key: str) -> bool:
        """Whether a request of it is under way."""
        lane = self._lanes.get(key)
        return lane is not None and lane.in_flight

    def get(self, key: str) -> Lane:
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(key)
        return lane

    def touch(self, key: str) -> bool:
        """The lane has something new: look at it, unless it waits for what news don't change. True if it was blocked."""
        lane = self.get(key)
        if lane.ready and key in self._ready:
            self._fresh[key] = None  # the news may be urgent; if not, it keeps its place
        if lane.in_flight or lane.ready or lane.hold in (Hold.BACKOFF, Hold.FORBIDDEN):
            return False
        blocked = lane.hold is Hold.REFERENCE
        lane.hold = None
        self._make_ready(lane)
        return blocked

    def _make_ready(self, lane: Lane) -> None:
        lane.ready = True
        self._fresh[lane.key] = None

    def expire(self, now: float) -> list[str]:
        """Lanes whose time has come are ready again. Returns those that were blocked."""
        unblocked = []
        while self._timers and self._timers[0][0] <= now:
            at, key = heapq.heappop(self._timers)
            lane = self._lanes.get(key)
            if lane is None or lane.hold is None or lane.at != at:
                continue
            if lane.hold is not Hold.GATHERING:
                unblocked.append(key)
            lane.hold = None
            if not lane.in_flight:  # else its request is just ending, and it is looked at then
                self._make_ready(lane)
        return unblocked

    def next_ready(self) -> Lane | None:
        """The urgent lane that has been ready longest, or of the others, if it is their turn or there is none; it is taken off."""
        self._sort()
        due = self._urgent if self._urgent and not (self._ready and self._in_a_row >= URGENT_IN_A_ROW) else self._ready
        if not due:
            return None
        key = next(iter(due))
        del due[key]
        lane = self._lanes[key]
        lane.ready, lane.urgent = False, due is self._urgent
        return lane

    def _sort(self) -> None:
        for key in self._fresh:
            if not self._is_urgent(key):
                self._ready.setdefault(key)
            elif key not in self._urgent:
                self._ready.pop(key, None)
                self._urgent[key] = None
        self._fresh.clear()

    def begin(self, lane: Lane) -> None:
        """A request of this lane is under way."""
        lane.in_flight = True
        self.in_flight += 1
        self._in_a_row = self._in_a_row + 1 if lane.urgent else 0

    def finish(self, lane: Lane) -> None:
        """It is not under way any more."""
        lane.in_flight = False
        self.in_flight -= 1

    def succeeded(self, lane: Lane) -> None:
        """Failures are forgotten."""
        lane.failures = lane.own_failures = 0
        lane.reason = ""

    def forgive(self) -> None:
        """The destination is back: what failed with everything else is tried again at once; what failed alone has done so."""
        for lane in self._lanes.values():
            lane.failures = 0

    def hold(self, lane: Lane, hold: Hold, at: float, reason: str = "") -> None:
        """Look at the lane again at `at`."""
        lane.hold, lane.at, lane.reason = hold, at, reason
        if hold is Hold.REFERENCE:
            self._references.add(lane.key)
        heapq.heappush(self._timers, (at, lane.key))

    def release(self, keys: list[str] | None = None) -> list[str]:
        """End all waits for a time (a probe went through, a flush is wanted). Returns lanes that were blocked."""
        unblocked = []
        for lane in list(self._lanes.values()) if keys is None else [self.get(key) for key in keys]:
            if lane.hold is not None and not lane.in_flight:
                if lane.hold is not Hold.GATHERING:
                    unblocked.append(lane.key)
                lane.hold = None
                self._make_ready(lane)
        return unblocked

    def waiting_for_references(self) -> list[str]:
        """Lanes that are held until an id is known."""
        self._references = {key for key in self._references if self._holds(key, Hold.REFERENCE)}
        return list(self._references)

    def _holds(self, key: str, hold: Hold) -> bool:
        lane = self._lanes.get(key)
        return lane is not None and lane.hold is hold

    def forget(self, lane: Lane) -> None:
        """Nothing is queued in it: drop what is remembered, so that memory does not grow with the lanes ever seen."""
        if not (lane.in_flight or lane.ready or lane.hold):
            self._lanes.pop(lane.key, None)

    def next_time(self) -> float | None:
        """When the next lane's time comes."""
        while self._timers:
            at, key = self._timers[0]
            lane = self._lanes.get(key)
            if lane is not None and lane.hold is not None and lane.at == at:
                return at
            heapq.heappop(self._timers)
        return None

    @property
    def has_ready(self) -> bool:
        return bool(self._ready or self._urgent or self._fresh)

    def waiting(self) -> list[Lane]:
        """Lanes that are held for a reason that somebody may want to see."""
        return [lane for lane in self._lanes.values() if lane.hold not in (None, Hold.GATHERING)]
