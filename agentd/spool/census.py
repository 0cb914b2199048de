"""Counting what is queued, lane by lane, and finding the oldest records: from the disk, a segment at a time.

A queue may hold millions of records over many thousand lanes. Directories say what of a segment is worth reading, its columns
are read without the records' bodies, and what is kept is a few numbers a lane, of a bounded number of lanes: memory grows with
neither. Only what the disk holds counts, of one moment (`readonly`); what a running daemon has settled since its last commit is
still there. Nothing here writes or knows a clock: `Wanted.age_us` says how old a stamp is.
"""

from __future__ import annotations

import heapq
import logging
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple

from msgspec import Struct, field

from agentd.errors import AgentdError, SpoolDamaged
from agentd.queued import Entry, Source
from agentd.records import LossClass
from agentd.spool import columns as column_files
from agentd.spool import segments
from agentd.spool.columns import Columns
from agentd.spool.directory import decode_bitmap
from agentd.spool.segments import Directory, lane_hash
from agentd.spool.store import Rows
from agentd.spool.tables import Table, ended_key

log = logging.getLogger("agentd.spool")

LANES_KEPT = 20_000  # about 1 kB each; twice as many at most, before those that stand last are let go


class Sort(StrEnum):
    """What the first lanes of a list are: those with the oldest record, the most records, the most bytes."""

    OLDEST = "oldest"
    RECORDS = "records"
    BYTES = "bytes"


class Interrupted(AgentdError):  # noqa: N818 - somebody asked for it
    """The daemon stops: nothing is counted any more."""


class Wanted(Struct, frozen=True):
    """Which queued records are meant; what is None, or 0, leaves nothing out.

    `age_us` says how long ago a stamp was, `mine` whether who asks may see the records of a source at a destination.
    """

    age_us: Callable[[int], int]
    destination: str | None = None
    run: str | None = None
    agent: str | None = None
    kind: str | None = None
    older_us: int = 0
    mine: Callable[[str, Source], bool] | None = None

    @property
    def lane(self) -> str | None:
        return None if self.run is None else f"run:{self.run}"

    def may_be_in(self, directory: Directory, hashed: int | None) -> bool:
        """False only if none of the segment's records is meant; `hashed` is the hash of the lane that is meant."""
        return (
            (self.destination is None or directory.destination == self.destination)
            and (self.kind is None or self.kind in directory.kinds)
            and (not self.older_us or self.age_us(directory.admitted_us) >= self.older_us)
            and (hashed is None or hashed in directory.lane_hashes())
        )


class Place(NamedTuple):
    """One record of a lane, for people."""

    admitted_us: int
    number: int
    kind: str
    record_id: bytes


class LaneCount(Struct):
    """What of a lane is queued. `bytes` are those of the records alone; the head is the first to be sent."""

    destination: str
    lane: str
    oldest: Place
    head: Place
    newest_number: int = 0
    newest_us: int = 0
    records: int = 0
    bytes: int = 0
    counts: dict[tuple[str, LossClass], int] = field(
        default_factory=dict
    )  # by kind and what a full queue may do to them

    @property
    def kinds(self) -> dict[str, int]:
        return _sums((kind, count) for (kind, _), count in self.counts.items())

    @property
    def losses(self) -> dict[str, int]:
        return _sums((loss.value, count) for (_, loss), count in self.counts.items())


def _sums(counts: Iterable[tuple[str, int]]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for word, count in counts:
        sums[word] = sums.get(word, 0) + count
    return sums


class Census(Struct):
    """The first lanes by what was asked for, and what was counted altogether.

    `exact` is False where more lanes were met than are kept: their records are in the sums, and a lane that was let go and came
    again counts anew. `damaged` segments could not be read.
    """

    lanes: list[LaneCount] = field(default_factory=list)
    lanes_met: int = 0
    records: int = 0
    bytes: int = 0
    segments_read: int = 0
    damaged: int = 0
    exact: bool = True


def _never() -> bool:
    return False


def census(
    store: Rows,
    wanted: Wanted,
    sort: Sort = Sort.OLDEST,
    limit: int = 100,
    *,
    stop: Callable[[], bool] = _never,
    kept: int = LANES_KEPT,
) -> Census:
    """Count. `stop` is asked before each segment. Raises Interrupted."""
    found = Census()
    lanes: dict[str, dict[str, LaneCount]] = {}  # by destination and name
    rank, most = _RANKS[sort], max(kept, limit)
    for key, _ in _candidates(store, wanted):
        if stop():
            raise Interrupted
        try:
            part = _read(store, key, wanted)
        except SpoolDamaged as error:
            log.warning("%s: left out", error, extra={"action": "damaged"})
            found.damaged += 1
            continue
        found.segments_read += 1
        _count(part, lanes.setdefault(part.columns.destination, {}), found)
        if sum(map(len, lanes.values())) > 2 * most:
            found.exact = False
            lanes = _by_name(heapq.nsmallest(most, _all(lanes), key=rank))
    found.lanes = heapq.nsmallest(limit, _all(lanes), key=rank)
    return found


def _all(lanes: dict[str, dict[str, LaneCount]]) -> Iterator[LaneCount]:
    return (lane for of_destination in lanes.values() for lane in of_destination.values())


def _by_name(lanes: Iterable[LaneCount]) -> dict[str, dict[str, LaneCount]]:
    found: dict[str, dict[str, LaneCount]] = {}
    for lane in lanes:
        found.setdefault(lane.destination, {})[lane.lane] = lane
    return found


_RANKS: dict[Sort, Callable[[LaneCount], tuple[int, int]]] = {
    Sort.OLDEST: lambda lane: (lane.oldest.admitted_us, lane.oldest.number),
    Sort.RECORDS: lambda lane: (-lane.records, lane.oldest.admitted_us),
    Sort.BYTES: lambda lane: (-lane.bytes, lane.oldest.admitted_us),
}


def _candidates(store: Rows, wanted: Wanted) -> Iterator[tuple[int, int]]:
    """(key, oldest admission) of the segments that may hold what is meant, those with the oldest record first.

    One whose directory is damaged comes first of all: what it holds is known when it is read.
    """
    hashed = None if wanted.lane is None else lane_hash(wanted.lane)
    found = []
    for key, tag, _ in store.tags(Table.SEGMENT):
        try:
            directory = segments.decode_directory(key, tag)
        except SpoolDamaged:
            found.append((0, key))
            continue
        if wanted.may_be_in(directory, hashed):
            found.append((directory.admitted_us, key))
    found.sort()
    return ((key, admitted_us) for admitted_us, key in found)


def _read(store: Rows, key: int, wanted: Wanted) -> _Part:
    """The columns of a segment, and the places of its live records that are meant. Raises SpoolDamaged."""
    value = store.read(key)
    if value is None:
        raise SpoolDamaged(f"segment {key:#x}: its row is gone")
    columns = column_files.read(key, value)
    chosen: Sequence[int] = range(len(columns.numbers))
    ended = ended_of(store, key, len(chosen))
    if ended is not None:
        chosen = [index for index in chosen if not ended[index >> 3] & 1 << (index & 7)]
    return _Part(columns, _meant(columns, chosen, wanted))


def ended_of(store: Rows, key: int, count: int) -> bytearray | None:
    """Which of its records have ended. What is damaged says nothing of them: all are sent again, and so they are queued."""
    row = store.read(ended_key(key))
    try:
        return None if row is None else decode_bitmap(row, count)[1]
    except SpoolDamaged:
        return None


def _meant(columns: Columns, chosen: Sequence[int], wanted: Wanted) -> Sequence[int]:
    if wanted.destination not in (None, columns.destination):
        return ()
    for column, names, name in (
        (columns.lane_of, columns.lanes, wanted.lane),
        (columns.kind_of, columns.kinds, wanted.kind),
    ):
        if name is not None:
            place = names.index(name) if name in names else -1
            chosen = [index for index in chosen if column[index] == place]
    if wanted.agent is not None or wanted.mine is not None:
        shown = {place for place, source in enumerate(columns.sources) if _shows(columns.destination, source, wanted)}
        if len(shown) < len(columns.sources):
            chosen = [index for index in chosen if columns.source_of[index] in shown]
    if wanted.older_us:
        chosen = [index for index in chosen if wanted.age_us(columns.admitted[index]) >= wanted.older_us]
    return chosen


def _shows(destination: str, source: Source, wanted: Wanted) -> bool:
    return (wanted.agent is None or source.agent == wanted.agent) and (
        wanted.mine is None or wanted.mine(destination, source)
    )


class _Part(NamedTuple):
    """The chosen records of a segment."""

    columns: Columns
    chosen: Sequence[int]

    def column(self, values: array[int]) -> Sequence[int]:
        return values if isinstance(self.chosen, range) else [values[index] for index in self.chosen]

    def place(self, at: int) -> Place:
        index, columns = self.chosen[at], self.columns
        kind = columns.kinds[columns.kind_of[index]]
        return Place(columns.admitted[index], columns.numbers[index], kind, columns.id_of(index))


def _count(part: _Part, lanes: dict[str, LaneCount], found: Census) -> None:
    """Add a segment's chosen records to their lanes. Numbers rise within a segment, and so do times, or nearly.

    A million records are counted at a time: what can be is left to the interpreter's own loops, and the loop over the lanes,
    of which a segment may hold a thousand, touches as little as it can.
    """
    columns = part.columns
    lane_of, admitted = part.column(columns.lane_of), part.column(columns.admitted)
    numbers, lengths = part.column(columns.numbers), part.column(columns.lengths)
    last = dict(zip(lane_of, range(len(lane_of)), strict=True))
    first = dict(zip(reversed(lane_of), reversed(range(len(lane_of))), strict=True))
    earliest = first if list(admitted) == sorted(admitted) else _earliest(lane_of, admitted)
    sizes = [0] * len(columns.lanes)
    for lane, length in zip(lane_of, lengths, strict=True):
        sizes[lane] += length
    for lane, records in Counter(lane_of).items():
        name = columns.lanes[lane]
        known = lanes.get(name)
        if known is None:
            found.lanes_met += 1
            known = lanes[name] = LaneCount(
                columns.destination, name, part.place(earliest[lane]), part.place(first[lane])
            )
        elif (admitted[earliest[lane]], numbers[earliest[lane]]) < known.oldest[:2]:
            known.oldest = part.place(earliest[lane])
        if numbers[first[lane]] < known.head.number:
            known.head = part.place(first[lane])
        at = last[lane]
        if numbers[at] > known.newest_number:
            known.newest_number, known.newest_us = numbers[at], admitted[at]
        known.records += records
        known.bytes += sizes[lane]
    _count_kinds(part, lane_of, lanes)
    found.records += len(lane_of)
    found.bytes += sum(sizes)


def _count_kinds(part: _Part, lane_of: Sequence[int], lanes: dict[str, LaneCount]) -> None:
    columns = part.columns
    words = [(kind, columns.loss) for kind in columns.kinds]
    for (lane, kind), records in Counter(zip(lane_of, part.column(columns.kind_of), strict=True)).items():
        counts = lanes[columns.lanes[lane]].counts
        word = words[kind]
        counts[word] = counts.get(word, 0) + records


def _earliest(lane_of: Sequence[int], admitted: Sequence[int]) -> dict[int, int]:
    """Lane → where its record stands that was admitted first."""
    found: dict[int, int] = {}
    for at, lane in enumerate(lane_of):
        if lane not in found or admitted[at] < admitted[found[lane]]:
            found[lane] = at
    return found


# -- the oldest records ------------------------------------------------------------------------------------------------


class Peeked(Struct):
    """The oldest records, the oldest first; `cut` if some are left out because the answer would grow too large."""

    entries: list[tuple[str, Entry]] = field(default_factory=list)  # (destination, record)
    damaged: int = 0
    cut: bool = False


class _Head(NamedTuple):
    """A record by its place, such that the newest is the least: the top of a heap."""

    minus_admitted: int
    minus_number: int
    key: int
    at: int
    size: int


def oldest(store: Rows, wanted: Wanted, limit: int, max_bytes: int, *, stop: Callable[[], bool] = _never) -> Peeked:
    """The `limit` oldest records, of at most `max_bytes` together (one is always given). Raises Interrupted."""
    found = Peeked()
    first: list[_Head] = []
    for key, admitted_us in _candidates(store, wanted):
        if len(first) == limit and admitted_us > -first[0].minus_admitted:
            break
        if stop():
            raise Interrupted
        try:
            columns, chosen = _read(store, key, wanted)
        except SpoolDamaged as error:
            log.warning("%s: left out", error, extra={"action": "damaged"})
            found.damaged += 1
            continue
        for index in chosen:
            head = _Head(-columns.admitted[index], -columns.numbers[index], key, index, columns.lengths[index])
            if len(first) < limit:
                heapq.heappush(first, head)
            elif head > first[0]:
                heapq.heapreplace(first, head)
    heads = sorted(first, reverse=True)
    fitting = list(_fitting(heads, max_bytes))
    found.cut = len(fitting) < len(heads)
    found.entries = _entries(store, fitting)
    return found


def _fitting(heads: Sequence[_Head], max_bytes: int) -> Iterator[_Head]:
    size = 0
    for place, head in enumerate(heads):
        size += head.size
        if place and size > max_bytes:
            return
        yield head


def _entries(store: Rows, heads: Sequence[_Head]) -> list[tuple[str, Entry]]:
    """The records themselves; each segment is decoded once."""
    places: dict[int, list[int]] = {}
    for place, head in enumerate(heads):
        places.setdefault(head.key, []).append(place)
    found: dict[int, tuple[str, Entry]] = {}
    for key, of_key in places.items():
        destination, entries = segments.decode(key, store.read(key) or b"")
        for place in of_key:
            found[place] = destination, entries[heads[place].at]
    return [found[place] for place in range(len(heads))]
