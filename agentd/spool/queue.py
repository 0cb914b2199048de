"""One destination's queue in memory: a directory of all its segments, and a window of decoded records.

The disk holds the queue; memory holds what is about to be sent. Segments are scanned oldest first into the window until
it is full. A lane that can't send (`block`) gives its place away when the window is full and more waits on disk: it is
*parked*, its records leave memory, and scanning goes on past them, so that a blocked lane of any size hides no other.
When it may send again (`unblock`), the segments that hold its records are found by their lane hashes and read again.

Order within a lane: a record may be taken only when no unread segment can hold a lower number of its lane, which is what
the two horizons (the queue's, for what was never scanned, and a parked lane's own) say. Segments of different loss classes
overlap in their numbers, so that a full window may hold nothing but records that an unread segment keeps back: only then
is more read than there is room for. No I/O: `next_load` says what to read, `loaded` takes it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from agentd.errors import SpoolDamaged
from agentd.queued import Entry
from agentd.records import INTRODUCES, LossClass
from agentd.spool.directory import Index, Segment
from agentd.spool.lane import ENTRY_OVERHEAD, Lane
from agentd.spool.segments import lane_hash

_LANE_CHUNK = 2 * 2**20  # how much of one parked lane is brought back at once: two requests of the largest size


class Ended(NamedTuple):
    """Which records have ended now, and what that changes on disk: rows to delete, bitmaps to write."""

    entries: list[Entry]
    deletes: list[int]
    bitmaps: dict[int, bytes]


class Moved(NamedTuple):
    """Where a rewriting has put a record."""

    row: int
    place: int


class Queue:
    """A destination's records that have not ended, oldest first, and the window over them."""

    def __init__(self, name: str, window_bytes: int, directory_bytes: int) -> None:
        self.name = name
        self.window_limit = window_bytes
        self.window_bytes = 0
        self.lanes: dict[str, Lane] = {}
        self.index = Index(directory_bytes)
        self.segments = self.index.segments
        self.rewriting = False  # rows are being replaced: what would be read may be gone when its turn comes
        self._wanted: dict[str, Lane] = {}
        self._parked: dict[int, int] = {}  # lane hash → number of parked lanes with it
        self._waiting: set[str] = set()  # lanes with records in the window that an unread segment keeps back
        self._freed: set[str] = set()  # lanes that see more since, and nobody was told
        self._loading: tuple[int, str | None] | None = None
        self._moved: dict[int, Moved] = {}  # number → new place; a sealed batch may hold the record under the old one

    def __repr__(self) -> str:
        return f"<Queue {self.name} {self.live} in {len(self.segments)} segments, window {self.window_bytes} B>"

    @property
    def live(self) -> int:
        """How many records have not ended."""
        return self.index.live

    @property
    def stored_bytes(self) -> int:
        """What its segments take on disk, ended records included."""
        return self.index.stored_bytes

    @property
    def directory_bytes(self) -> int:
        """What the lane hashes of its segments take in memory."""
        return self.index.bytes

    @property
    def parked(self) -> int:
        """How many lanes are on disk only, since they can't send."""
        return sum(self._parked.values())

    def lowest(self) -> int | None:
        """A number that no live record is below, None for an empty queue."""
        return min((segment.first for segment in self.index.heads()), default=None)

    def oldest_us(self, age_us: Callable[[int], int]) -> int | None:
        """The age of the oldest live record, to the precision of its segment; `age_us` judges stamps (agentd.ageing)."""
        return max((age_us(segment.admitted_us) for segment in self.index.heads()), default=None)

    # -- what comes in -----------------------------------------------------------------------------------------------

    def recover(self, segments: Iterable[Segment]) -> None:
        """Take over what the disk holds, at a start."""
        self.index.add(segments)

    def push(self, segments: Sequence[Segment], entries: Sequence[Entry]) -> set[str]:
        """Take a committed group of segments and their records in number order. Returns the lanes that can see them.

        What finds the window full stays on disk and is read in its turn.
        """
        warm = self.index.cold is None
        ordered = self.index.add(segments)
        if not warm:
            return set()
        cost = sum([len(entry.body) for entry in entries]) + ENTRY_OVERHEAD * len(entries)
        if self.window_bytes + cost <= self.window_limit:
            self.index.pass_all()
            return self._admit(entries)
        return self._push_part(ordered, entries)

    def _push_part(self, segments: Sequence[Segment], entries: Iterable[Entry]) -> set[str]:
        by_segment: dict[int, list[Entry]] = {}
        for entry in entries:
            by_segment.setdefault(entry.segment, []).append(entry)
        touched: set[str] = set()
        for segment in segments:
            if self.window_bytes >= self.window_limit:
                break
            self.index.pass_cold()
            touched |= self._admit(by_segment.get(segment.key, ()))
        return self._news(touched)

    def _admit(self, entries: Iterable[Entry]) -> set[str]:
        touched: set[str] = set()
        lanes = self.lanes
        for entry in entries:
            lane = lanes.get(entry.lane)
            if lane is None:
                lane = lanes[entry.lane] = Lane(entry.lane)
            if not lane.parked:
                self.window_bytes += lane.append(entry)
                touched.add(entry.lane)
            else:
                lane.horizon = min(lane.horizon, entry.number)
                if entry.kind in INTRODUCES:  # perhaps what it waits for
                    touched.add(entry.lane)
        for key in touched:
            lanes[key].order()
        return touched

    # -- what goes out -----------------------------------------------------------------------------------------------

    def peek(self, key: str) -> Iterator[Entry]:
        """The lane's records that may be taken now, in order. Take a slice; don't change the queue while iterating."""
        lane = self.lanes.get(key)
        if lane is None:
            return
        limit = min(lane.horizon, self.index.horizon)
        for entry in lane.entries:
            if entry.number >= limit:
                return
            yield entry

    def members(self, key: str, first: int, last: int, exceptions: Sequence[int] = ()) -> list[Entry] | None:
        """A sealed batch's records that have not ended; None while they are not all in the window."""
        lane = self.lanes.get(key)
        if lane is None:
            return [] if self.index.horizon > last else None
        if min(lane.horizon, self.index.horizon) <= last:
            lane.needs = max(lane.needs, last)
            return None
        lane.needs = 0
        left = set(exceptions)
        return [
            e
            for e in itertools.takewhile(lambda e: e.number <= last, lane.entries)
            if e.number >= first and e.number not in left
        ]

    def has_more(self, key: str) -> bool:
        """Whether the disk is known to hold records of a lane that are not in the window."""
        lane = self.lanes.get(key)
        hashed = lane_hash(key)
        return (lane is not None and lane.parked) or any(
            segment.hashes is not None and segment.may_hold(hashed) for segment in self.index.unscanned()
        )

    def find(self, key: str, number: int) -> Entry | None:
        """One record of a lane by its number, if it is in the window."""
        lane = self.lanes.get(key)
        return None if lane is None else next((entry for entry in lane.entries if entry.number == number), None)

    def bring(self, key: str, number: int) -> None:
        """Read the lane up to this record, however much that is: it has to go before what is in front of it."""
        lane = self.lanes.get(key)
        if lane is not None:
            lane.needs = max(lane.needs, number)

    def end(self, entries: Iterable[Entry]) -> Ended:
        """The records have ended, however: out of window and directory. Returns which had not ended before."""
        changed: dict[int, Segment] = {}
        by_lane: dict[str, set[int]] = {}
        now_ended: list[Entry] = []
        for entry in entries:
            by_lane.setdefault(entry.lane, set()).add(entry.number)
            segment = self._holder(entry)
            if segment is not None and segment.end(entry.index, entry.kind):
                self.index.live -= 1
                changed[segment.key] = segment
                now_ended.append(entry)
        for lane, numbers in by_lane.items():
            self._leave(lane, numbers)
        deletes = [key for key, segment in changed.items() if segment.live == 0]
        for key in deletes:
            self.index.drop(changed.pop(key))
        return Ended(now_ended, deletes, {key: segment.bitmap() for key, segment in changed.items()})

    def _holder(self, entry: Entry) -> Segment | None:
        """The segment that holds a record, also when it was rewritten while somebody had the record."""
        moved = self._moved.pop(entry.number, None)
        if moved is not None:
            entry.segment, entry.index = moved
        return self.segments.get(entry.segment)

    def _leave(self, key: str, numbers: set[int]) -> None:
        lane = self.lanes.get(key)
        if lane is not None:
            self.window_bytes -= lane.leave(numbers)
            self._retire(lane)

    def _retire(self, lane: Lane) -> None:
        if not lane.entries and not lane.parked and not lane.blocked:
            self.lanes.pop(lane.key, None)

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
        if not lane.parked:
            self._parked[lane.hash] = self._parked.get(lane.hash, 0) + 1
        self.window_bytes -= lane.park()

    def _unpark(self, lane: Lane) -> None:
        lane.unpark()
        self._wanted.pop(lane.key, None)
        left = self._parked[lane.hash] - 1
        if left:
            self._parked[lane.hash] = left
        else:
            del self._parked[lane.hash]
        self._freed.add(lane.key)
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

    def _has_room(self) -> bool:
        """Whether more may be read; also if nothing in a full window can be sent without it."""
        if self.window_bytes < self.window_limit or self._make_room():
            return True
        horizon = self.index.horizon
        return not any(not lane.blocked and lane.can_send(horizon) for lane in self.lanes.values())

    # -- reading from disk -------------------------------------------------------------------------------------------

    def next_load(self) -> int | None:
        """The key of the row to read next, None if nothing is to be read now. One load at a time."""
        if self._loading is not None or self.rewriting:
            return None
        found = self._next_wanted() or self._next_cold()
        if found is None:
            return None
        segment, restoring = found
        self._loading = (segment.key, restoring)
        return segment.key

    def wants_loading(self) -> bool:
        """Whether `next_load` might have something to say: cheap enough to ask at every turn."""
        return self._loading is None and (bool(self._wanted) or self.index.cold is not None)

    def _next_wanted(self) -> tuple[Segment, str] | None:
        horizon = self.index.horizon
        for lane in list(self._wanted.values()):
            if lane.size >= _LANE_CHUNK and lane.can_send(horizon):
                continue
            segment = self._candidate(lane)
            if segment is None:
                self._unpark(lane)
            elif self._has_room():
                return segment, lane.key
            else:
                return None
        return None

    def _next_cold(self) -> tuple[Segment, None] | None:
        while (segment := self.index.cold) is not None:
            if segment.hashes is not None and self._parked and all(h in self._parked for h in segment.hashes):
                self.index.pass_cold()  # only lanes that are parked: no need to read it
                continue
            return (segment, None) if self._has_room() else None
        return None

    def _candidate(self, lane: Lane) -> Segment | None:
        """The first scanned segment that may hold records of a parked lane and was not read back yet."""
        for segment in self.index.scanned():
            if segment.last < lane.resume or segment.key in lane.restored:
                continue
            if segment.may_hold(lane.hash):
                return segment
        return None

    def check(self, key: int, entries: Sequence[Entry]) -> None:
        """Raises SpoolDamaged if what was read is not what the directory says."""
        segment = self.segments.get(key)
        if segment is not None and (segment.count != len(entries) or segment.first != entries[0].number):
            raise SpoolDamaged(f"segment {key:#x}: its directory is of another one")

    def loaded(self, key: int, entries: Sequence[Entry]) -> set[str]:
        """Take the records of the row that `next_load` named. Returns the lanes that can see more now."""
        assert self._loading is not None  # noqa: S101 - the one loader's protocol
        _, restoring = self._loading
        self._loading = None
        segment = self.segments.get(key)
        if segment is None:
            return self.released()
        live = [entry for entry in entries if not segment.has_ended(entry.index)]
        if restoring is not None:
            return self._restore(restoring, segment, live) | self.released()
        if self.index.cold is segment:
            self.index.pass_cold()
        return self._news(self._admit(live))

    def load_failed(self) -> None:
        """The row that `next_load` named could not be read just now."""
        self._loading = None

    def _news(self, touched: set[str]) -> set[str]:
        """Lanes that have new records or see further; remembers which of them have to wait for the next segment."""
        news = touched | self.released()
        self._waiting |= {key for key in touched if self._waits(key)}
        return news

    def released(self) -> set[str]:
        """Lanes that see further since this was asked: what kept them back was read, ended or was shed."""
        freed, self._freed = self._freed, set()
        freed |= self._waiting
        self._waiting = {key for key in self._waiting if self._waits(key)}
        return freed

    def _waits(self, key: str) -> bool:
        lane = self.lanes.get(key)
        return lane is not None and bool(lane.entries) and lane.entries[-1].number >= self.index.horizon

    def _restore(self, key: str, segment: Segment, live: Iterable[Entry]) -> set[str]:
        lane = self.lanes.get(key)
        if lane is None or not lane.parked:
            return set()
        lane.restored.add(segment.key)
        here = {entry.number for entry in lane.entries}  # a rewritten segment may bring some of them again
        for entry in live:
            if entry.lane == key and entry.number >= lane.resume and entry.number not in here:
                self.window_bytes += lane.append(entry)
        lane.order()
        following = self._candidate(lane)
        if following is None:
            self._unpark(lane)
        else:
            lane.horizon = max(following.first, lane.resume)
        if self._waits(key):
            self._waiting.add(key)
        return {key}

    def unreadable(self, key: int) -> Segment | None:
        """The row that `next_load` named is damaged: take it out of the queue. Returns it for the books."""
        self._loading = None
        segment = self.segments.get(key)
        if segment is not None:
            self.index.drop(segment)
            self._sweep({key})
        return segment

    # -- rewriting ---------------------------------------------------------------------------------------------------

    def replace(
        self, old: Sequence[Segment], new: Sequence[Segment], moves: Mapping[Moved, Moved], lanes: Iterable[str]
    ) -> None:
        """`new` segments hold what the `old` ones held; `moves` says where a record of these `lanes` is now."""
        self.index.replace(old, new)
        keys = {segment.key for segment in old}
        for key in lanes:
            lane = self.lanes.get(key)
            if lane is not None:
                for entry in lane.entries:
                    moved = moves.get(Moved(entry.segment, entry.index))
                    if moved is not None:
                        entry.segment, entry.index = moved
                lane.restored -= keys
        for number, place in self._moved.items():
            self._moved[number] = moves.get(place, place)

    def being_read(self) -> set[int]:
        """The row that somebody reads just now."""
        return set() if self._loading is None else {self._loading[0]}

    def remember(self, number: int, place: Moved) -> None:
        """A record of a sealed batch was moved; whoever holds it knows its old place only."""
        self._moved[number] = place

    # -- a full queue ------------------------------------------------------------------------------------------------

    def shed(self, loss: LossClass, wanted: int, protected: Callable[[Segment], bool]) -> list[Segment]:
        """Take the oldest whole segments of a loss class out until `wanted` bytes are free, or as many as there are."""
        taken = self.index.oldest(loss, wanted, protected)
        self.take_out(taken)
        return taken

    def take_out(self, segments: Sequence[Segment]) -> None:
        """Whole segments leave the queue, and their records the window."""
        for segment in segments:
            self.index.drop(segment)
        keys = {segment.key for segment in segments}
        if keys:
            self._sweep(keys)
            self._moved = {number: place for number, place in self._moved.items() if place.row not in keys}

    def _sweep(self, keys: set[int]) -> None:
        for lane in list(self.lanes.values()):
            gone = {entry.number for entry in lane.entries if entry.segment in keys}
            if gone:
                self.window_bytes -= lane.leave(gone)
                self._retire(lane)
