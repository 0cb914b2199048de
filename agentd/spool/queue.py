"""One destination's queue in memory: a directory of all its segments, and a window of decoded records.

The disk holds the queue; memory holds what is about to be sent. Segments are scanned oldest first into the window until
it is full. A lane that can't send (`block`) gives its place away when the window is full and more waits on disk: it is
*parked*, its records leave memory, and scanning goes on past them, so that a blocked lane of any size hides no other.
When it may send again (`unblock`), the segments that hold its records are found by their lane hashes and read again.

Order within a lane: a record may be taken only when no unread segment can hold a lower number of its lane, which is what
the two horizons (the queue's, for what was never scanned, and a parked lane's own) say. No I/O: `next_load` says what to
read, `loaded` takes it.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from agentd.queued import Entry
from agentd.records import LossClass
from agentd.spool.directory import Segment
from agentd.spool.segments import lane_hash

INFINITY = 2**64
_ENTRY_OVERHEAD = (
    250  # bytes of an Entry beside its body: Struct, bytes objects, deque slot (measured with tracemalloc)
)
_LANE_CHUNK = 2 * 2**20  # how much of one parked lane is brought back at once: two requests of the largest size


class Lane:
    """The part of a lane that is in the window."""

    __slots__ = ("blocked", "entries", "hash", "horizon", "key", "parked", "restored", "resume", "size")

    def __init__(self, key: str) -> None:
        self.key = key
        self.hash = lane_hash(key)
        self.entries: deque[Entry] = deque()
        self.size = 0
        self.blocked = False
        self.parked = False
        self.resume = 0  # parked: lowest number that may be on disk only
        self.horizon = INFINITY  # numbers from here on are not complete in the window
        self.restored: set[int] = set()

    def __repr__(self) -> str:
        state = "parked" if self.parked else "blocked" if self.blocked else "open"
        return f"<Lane {self.key} {len(self.entries)} in window, {state}>"


class Ended(NamedTuple):
    """Which records have ended now, and what that changes on disk: rows to delete, bitmaps to write."""

    entries: list[Entry]
    deletes: list[int]
    bitmaps: dict[int, bytes]


class Queue:
    """A destination's records that have not ended, oldest first, and the window over them."""

    def __init__(self, name: str, window_bytes: int, directory_bytes: int) -> None:
        self.name = name
        self.window_limit = window_bytes
        self.directory_limit = directory_bytes
        self.window_bytes = 0
        self.directory_bytes = 0
        self.live = 0
        self.stored_bytes = 0
        self.lanes: dict[str, Lane] = {}
        self.segments: dict[int, Segment] = {}
        self._order: list[Segment] = []
        self._scan = 0  # everything before it was scanned
        self._wanted: dict[str, Lane] = {}
        self._parked: dict[int, int] = {}  # lane hash → number of parked lanes with it
        self._waiting: set[str] = set()  # lanes with records in the window that an unread segment keeps back
        self._loading: tuple[int, str | None] | None = None

    def __repr__(self) -> str:
        return f"<Queue {self.name} {self.live} in {len(self.segments)} segments, window {self.window_bytes} B>"

    # -- what comes in -----------------------------------------------------------------------------------------------

    def recover(self, segments: Iterable[Segment]) -> None:
        """Take over what the disk holds, at a start."""
        for segment in sorted(segments, key=lambda s: (s.first, s.key)):
            self._add(segment)

    def push(self, segments: Sequence[Segment], entries: Iterable[Entry]) -> set[str]:
        """Take a committed group of segments and their records in number order. Returns the lanes that can see them."""
        whole = self._cold() is None and self.window_bytes < self.window_limit
        for segment in segments:
            self._add(segment)
        if not whole:
            return set()
        self._scan = len(self._order)
        return self._admit(entries)

    def _add(self, segment: Segment) -> None:
        self.segments[segment.key] = segment
        self._order.append(segment)
        self.live += segment.live
        self.stored_bytes += segment.size
        cost = 0 if segment.hashes is None else len(segment.hashes) * 8
        if self.directory_bytes + cost > self.directory_limit:
            segment.hashes = None  # costs reads where the lane would have told, never correctness
        else:
            self.directory_bytes += cost

    def _admit(self, entries: Iterable[Entry]) -> set[str]:
        touched: set[str] = set()
        lanes = self.lanes
        for entry in entries:
            lane = lanes.get(entry.lane)
            if lane is None:
                lane = lanes[entry.lane] = Lane(entry.lane)
            if not lane.parked:
                self._append(lane, entry)
                touched.add(entry.lane)
            elif lane.horizon == INFINITY:
                lane.horizon = entry.number
        return touched

    def _append(self, lane: Lane, entry: Entry) -> None:
        cost = len(entry.body) + _ENTRY_OVERHEAD
        lane.size += cost
        self.window_bytes += cost
        entries = lane.entries
        if entries and entry.number < entries[-1].number:  # segments of different loss classes overlap
            merged = sorted((*entries, entry), key=lambda e: e.number)
            lane.entries = deque(merged)
        else:
            entries.append(entry)

    # -- what goes out -----------------------------------------------------------------------------------------------

    @property
    def horizon(self) -> int:
        """The lowest number that was never scanned."""
        cold = self._cold()
        return INFINITY if cold is None else cold.first

    def _cold(self) -> Segment | None:
        order = self._order
        while self._scan < len(order) and order[self._scan].gone:
            self._scan += 1
        return order[self._scan] if self._scan < len(order) else None

    def peek(self, key: str) -> Iterator[Entry]:
        """The lane's records that may be taken now, in order. Take a slice; don't change the queue while iterating."""
        lane = self.lanes.get(key)
        if lane is None:
            return
        self._purge(lane)
        limit = min(lane.horizon, self.horizon)
        for entry in lane.entries:
            if entry.number >= limit:
                return
            segment = self.segments.get(entry.segment)
            if segment is not None and not segment.gone:
                yield entry

    def members(self, key: str, first: int, last: int, exceptions: Sequence[int] = ()) -> list[Entry] | None:
        """A sealed batch's records that have not ended; None while they are not all in the window."""
        lane = self.lanes.get(key)
        if lane is None or min(lane.horizon, self.horizon) <= last:
            return [] if lane is None and self.horizon > last else None
        left = set(exceptions)
        return [
            e
            for e in itertools.takewhile(lambda e: e.number <= last, lane.entries)
            if e.number >= first and e.number not in left
        ]

    def find(self, key: str, number: int) -> Entry | None:
        """One record of a lane by its number, if it is in the window."""
        lane = self.lanes.get(key)
        return None if lane is None else next((entry for entry in lane.entries if entry.number == number), None)

    def _purge(self, lane: Lane) -> None:
        while lane.entries:
            segment = self.segments.get(lane.entries[0].segment)
            if segment is not None and not segment.gone:
                return
            self._forget(lane, lane.entries.popleft())

    def _forget(self, lane: Lane, entry: Entry) -> None:
        cost = len(entry.body) + _ENTRY_OVERHEAD
        lane.size -= cost
        self.window_bytes -= cost

    def end(self, entries: Iterable[Entry]) -> Ended:
        """The records have ended, however: out of window and directory. Returns what that changes on disk."""
        changed: dict[int, Segment] = {}
        by_lane: dict[str, set[int]] = {}
        for entry in entries:
            segment = self.segments.get(entry.segment)
            if segment is not None and segment.end(entry):
                self.live -= 1
                changed[segment.key] = segment
            by_lane.setdefault(entry.lane, set()).add(entry.number)
        for lane, numbers in by_lane.items():
            self._leave(lane, numbers)
        deletes = [key for key, segment in changed.items() if segment.live == 0]
        for key in deletes:
            self._drop(changed.pop(key))
        return Ended(deletes, {key: segment.bitmap() for key, segment in changed.items()})

    def _leave(self, key: str, numbers: set[int]) -> None:
        lane = self.lanes.get(key)
        if lane is None:
            return
        entries = lane.entries
        while numbers and entries and entries[0].number in numbers:
            numbers.discard(entries[0].number)
            self._forget(lane, entries.popleft())
        if numbers:
            for entry in [e for e in entries if e.number in numbers]:
                entries.remove(entry)
                self._forget(lane, entry)
        self._retire(lane)

    def _retire(self, lane: Lane) -> None:
        if not lane.entries and not lane.parked and not lane.blocked:
            self.lanes.pop(lane.key, None)

    def _drop(self, segment: Segment) -> None:
        segment.gone = True
        del self.segments[segment.key]
        self.live -= segment.live
        self.stored_bytes -= segment.size
        self.directory_bytes -= 0 if segment.hashes is None else len(segment.hashes) * 8
        if len(self._order) > 64 and len(self._order) > 2 * len(self.segments):  # noqa: PLR2004 - amortised
            self._cold()
            scanned = sum(1 for s in self._order[: self._scan] if not s.gone)
            self._order = [s for s in self._order if not s.gone]
            self._scan = scanned

    # -- lanes that can't send ---------------------------------------------------------------------------------------

    def block(self, key: str) -> None:
        """The lane can't send now; its records may leave the window when others need the room."""
        lane = self.lanes.get(key)
        if lane is not None:
            lane.blocked = True
            self._wanted.pop(key, None)

    def unblock(self, key: str) -> None:
        """The lane may send again; what was parked is read back."""
        lane = self.lanes.get(key)
        if lane is None:
            return
        lane.blocked = False
        if lane.parked:
            self._wanted[key] = lane
        else:
            self._retire(lane)

    def _park(self, lane: Lane) -> None:
        lowest = lane.entries[0].number if lane.entries else INFINITY
        lane.resume = min(lowest, lane.horizon, lane.resume if lane.parked else INFINITY)
        lane.horizon = lane.resume
        lane.restored.clear()
        self.window_bytes -= lane.size
        lane.size = 0
        lane.entries.clear()
        if not lane.parked:
            lane.parked = True
            self._parked[lane.hash] = self._parked.get(lane.hash, 0) + 1

    def _unpark(self, lane: Lane) -> None:
        lane.parked = False
        lane.horizon = INFINITY
        lane.restored.clear()
        self._wanted.pop(lane.key, None)
        left = self._parked[lane.hash] - 1
        if left:
            self._parked[lane.hash] = left
        else:
            del self._parked[lane.hash]
        self._retire(lane)

    def _make_room(self) -> bool:
        """Park blocked lanes, the largest first, until half of the window is free; False if that gave nothing."""
        blocked = sorted(
            (lane for lane in self.lanes.values() if lane.blocked and lane.entries), key=lambda lane: -lane.size
        )
        for lane in blocked:
            if self.window_bytes <= self.window_limit // 2:
                break
            self._park(lane)
        return bool(blocked) and self.window_bytes < self.window_limit

    # -- reading from disk -------------------------------------------------------------------------------------------

    def next_load(self) -> int | None:
        """The key of the row to read next, None if nothing is to be read now. One load at a time."""
        if self._loading is not None:
            return None
        for lane in list(self._wanted.values()):
            if lane.size >= _LANE_CHUNK:
                continue
            segment = self._candidate(lane)
            if segment is not None:
                self._loading = (segment.key, lane.key)
                return segment.key
            self._unpark(lane)
        segment = self._next_cold()
        if segment is not None:
            self._loading = (segment.key, None)
            return segment.key
        return None

    def wants_loading(self) -> bool:
        """Whether `next_load` might have something to say: cheap enough to ask at every turn."""
        return self._loading is None and (bool(self._wanted) or self._cold() is not None)

    def _next_cold(self) -> Segment | None:
        while (segment := self._cold()) is not None:
            if segment.hashes is not None and self._parked and all(h in self._parked for h in segment.hashes):
                self._scan += 1  # only lanes that are parked: no need to read it
                continue
            if self.window_bytes < self.window_limit or self._make_room():
                return segment
            return None
        return None

    def _candidate(self, lane: Lane) -> Segment | None:
        """The first scanned segment that may hold records of a parked lane and was not read back yet."""
        for segment in itertools.islice(self._order, self._scan):
            if segment.gone or segment.last < lane.resume or segment.key in lane.restored:
                continue
            if segment.may_hold(lane.hash):
                return segment
        return None

    def loaded(self, key: int, entries: Sequence[Entry]) -> set[str]:
        """Take the records of the row that `next_load` named. Returns the lanes that can see more now."""
        assert self._loading is not None  # noqa: S101 - the one loader's protocol
        _, restoring = self._loading
        self._loading = None
        segment = self.segments.get(key)
        if segment is None:
            return set()
        live = [entry for entry in entries if not segment.has_ended(entry.index)]
        if restoring is not None:
            return self._restore(restoring, segment, live)
        if self._cold() is segment:
            self._scan += 1
        touched = self._admit(live) | self._waiting
        horizon = self.horizon  # where segments of different loss classes overlap, some have to wait for the next one
        self._waiting = {entry.lane for entry in live if entry.number >= horizon} | {
            k for k in self._waiting if self._waits(k)
        }
        return touched

    def _waits(self, key: str) -> bool:
        lane = self.lanes.get(key)
        return lane is not None and bool(lane.entries) and lane.entries[-1].number >= self.horizon

    def _restore(self, key: str, segment: Segment, live: Iterable[Entry]) -> set[str]:
        lane = self.lanes.get(key)
        if lane is None or not lane.parked:
            return set()
        lane.restored.add(segment.key)
        for entry in live:
            if entry.lane == key and entry.number >= lane.resume:
                self._append(lane, entry)
        following = self._candidate(lane)
        if following is None:
            self._unpark(lane)
        else:
            lane.horizon = max(following.first, lane.resume)
        return {key}

    def unreadable(self, key: int) -> Segment | None:
        """The row that `next_load` named is damaged: take it out of the queue. Returns it for the books."""
        self._loading = None
        segment = self.segments.get(key)
        if segment is not None:
            self._drop(segment)
        return segment

    # -- a full queue ------------------------------------------------------------------------------------------------

    def shed(self, loss: LossClass, wanted: int, protected: Callable[[Segment], bool]) -> list[Segment]:
        """Take the oldest whole segments of a loss class out until `wanted` bytes are free, or as many as there are."""
        taken: list[Segment] = []
        freed = 0
        for segment in self._order:
            if freed >= wanted:
                break
            if segment.gone or segment.loss is not loss or protected(segment):
                continue
            taken.append(segment)
            freed += segment.size
        for segment in taken:
            self._drop(segment)
        if taken:
            self._sweep({segment.key for segment in taken})
        return taken

    def _sweep(self, keys: set[int]) -> None:
        for lane in list(self.lanes.values()):
            gone = [entry for entry in lane.entries if entry.segment in keys]
            if gone:
                lane.entries = deque(entry for entry in lane.entries if entry.segment not in keys)
                for entry in gone:
                    self._forget(lane, entry)
                self._retire(lane)

    def lowest(self) -> int | None:
        """A number that no live record is below, None for an empty queue."""
        return next((segment.first for segment in self._order if not segment.gone), None)

    def holding(self, lane: str) -> list[Segment]:
        """The segments that may hold records of a lane."""
        hashed = lane_hash(lane)
        return [segment for segment in self._order if not segment.gone and segment.may_hold(hashed)]

    def oldest_us(self) -> int | None:
        """When the oldest live record was admitted, to the precision of its segment."""
        return next((segment.admitted_us for segment in self._order if not segment.gone), None)
