"""What runs lost to a full queue and have not been told of, so that a gap is never mistaken for silence. Pure.

A *gap* is what one run lost at one destination since it was last told. The commit that deletes shed segments counts their live
records by run (`tally`) and writes what it found as a row of its own. The rows are a log: one that does not replace comes on top of
those before it, one that replaces says all that its runs lack now, none where they have been told, in the very commit that admits the
notice. So nothing is told twice or not at all, whatever a crash leaves. A log that has grown to twice what it says is written anew.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import compress
from typing import NamedTuple, TypeAlias

import msgspec
from msgspec import Struct

from agentd.errors import SpoolDamaged
from agentd.queued import Entry, Source
from agentd.records import LossClass
from agentd.spool.checked import UNREADABLE, pack, unpack
from agentd.spool.columns import Columns

MOST_RUNS = 100_000  # with a gap each; 330 bytes of memory for one (measured with tracemalloc), 33 MB for all
_RUN_LANE = "run:"
_LOG_LANES, _LOG_ROWS = 1024, 64  # a log below that is not worth writing anew

Key: TypeAlias = tuple[str, str]  # destination, lane


class Gap(Struct, array_like=True, gc=False):
    """What a run lost. `agent` and `uid` are of the first record, the times its records' admissions."""

    agent: str
    uid: int
    first_us: int
    last_us: int
    debug_events: int = 0
    info_events: int = 0
    debug_spans: int = 0
    info_spans: int = 0

    @property
    def records(self) -> int:
        return self.debug_events + self.info_events + self.debug_spans + self.info_spans

    @property
    def kinds(self) -> dict[str, int]:
        """By kind, those with none left out."""
        return _some(event=self.debug_events + self.info_events, span=self.debug_spans + self.info_spans)

    @property
    def levels(self) -> dict[str, int]:
        """By level, those with none left out."""
        return _some(debug=self.debug_events + self.debug_spans, info=self.info_events + self.info_spans)

    def with_(self, later: Gap | None) -> Gap:
        """Both as one."""
        if later is None:
            return self
        return Gap(
            self.agent, self.uid, min(self.first_us, later.first_us), max(self.last_us, later.last_us),
            self.debug_events + later.debug_events, self.info_events + later.info_events,
            self.debug_spans + later.debug_spans, self.info_spans + later.info_spans,
        )  # fmt: skip


def _some(**counts: int) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count}


Found: TypeAlias = dict[str, dict[str, Gap]]  # destination → lane → gap


class _Row(Struct, array_like=True):
    replaces: bool
    gaps: dict[str, dict[str, Gap | None]]


class Written(NamedTuple):
    """What a commit does to the log: the value of a row that replaces, none if empty, and rows that go."""

    value: bytes
    gone: list[int]


# -- counting --------------------------------------------------------------------------------------------------------


def tally(columns: Columns, ended: Sequence[int] | None) -> dict[str, Gap]:
    """The gaps that a shed segment leaves, by lane; `ended` is the bitmap of its records that had ended before."""
    live = range(len(columns.numbers))
    chosen = None if ended is None else [not ended[index >> 3] & 1 << (index & 7) for index in live]
    return _tally(
        columns.loss,
        [columns.lanes[place] for place in _of(columns.lane_of, chosen)],
        [columns.kinds[place] for place in _of(columns.kind_of, chosen)],
        [columns.sources[place] for place in _of(columns.source_of, chosen)],
        _of(columns.admitted, chosen),
    )


def tally_entries(entries: Sequence[Entry]) -> dict[str, Gap]:
    """The same of records at hand, which share a loss class."""
    if not entries:
        return {}
    return _tally(
        entries[0].loss,
        [entry.lane for entry in entries],
        [entry.kind for entry in entries],
        [entry.source for entry in entries],
        [entry.admitted_us for entry in entries],
    )


def _of(column: array[int], chosen: Sequence[bool] | None) -> Sequence[int]:
    return column if chosen is None else list(compress(column, chosen))


def _tally(
    loss: LossClass, lanes: Sequence[str], kinds: Sequence[str], sources: Sequence[Source], admitted: Sequence[int]
) -> dict[str, Gap]:
    """In passes of C code over whole columns: a shed megabyte holds thousands of records."""
    counts = Counter(zip(lanes, kinds, strict=True))
    last = dict(zip(lanes, admitted, strict=True))
    first = dict(zip(reversed(lanes), reversed(admitted), strict=True))
    whose = dict(zip(reversed(lanes), reversed(sources), strict=True))
    found: dict[str, Gap] = {}
    for (lane, kind), count in counts.items():
        if not lane.startswith(_RUN_LANE) or kind not in ("event", "span"):
            continue
        gap = found.get(lane)
        if gap is None:
            source = whose[lane]
            gap = found[lane] = Gap(
                source.agent, source.uid, min(first[lane], last[lane]), max(first[lane], last[lane])
            )
        name = f"{'debug' if loss is LossClass.DEBUG else 'info'}_{kind}s"
        setattr(gap, name, getattr(gap, name) + count)
    return found


def join(found: Found, destination: str, gaps: Mapping[str, Gap]) -> None:
    """Add to what was found before."""
    at = found.setdefault(destination, {})
    for lane, gap in gaps.items():
        known = at.get(lane)
        at[lane] = gap if known is None else known.with_(gap)


# -- rows ------------------------------------------------------------------------------------------------------------


def encode_found(found: Found) -> bytes:
    """A row that comes on top of those before it."""
    return _encode(_Row(False, {name: dict(gaps) for name, gaps in found.items()}))


def _encode(row: _Row) -> bytes:
    return pack(msgspec.msgpack.encode(row))


def _decode(value: bytes) -> _Row:
    try:
        return msgspec.msgpack.decode(unpack(value), type=_Row)
    except UNREADABLE as error:
        raise SpoolDamaged(f"lost records: {error}") from error


# -- the table -------------------------------------------------------------------------------------------------------


class Losses:
    """Every gap that was not told, and the log of them on disk. `untold` counts records of runs beyond `most`."""

    def __init__(self, most: int = MOST_RUNS) -> None:
        self.untold = 0
        self._most = most
        self._gaps: dict[str, dict[str, Gap]] = {}
        self._telling: dict[bytes, tuple[Key, Gap]] = {}  # by the id of the notice, which is not on disk yet
        self._changed: set[Key] = set()  # the log says something else of them
        self._written: set[Key] | None = set()  # what the row of the commit under way replaces; None: all of it
        self._rows: list[int] = []
        self._logged = 0  # runs in them, one in several rows counted several times

    def __len__(self) -> int:
        return sum(len(gaps) for gaps in self._gaps.values())

    def __repr__(self) -> str:
        return f"<Losses of {len(self)} runs, {len(self._telling)} notices on their way, {len(self._rows)} rows>"

    @property
    def has_changed(self) -> bool:
        """Whether a commit has something to write."""
        return bool(self._changed)

    def find(self, destination: str, lane: str) -> Gap | None:
        """What the run has lost and nobody is telling it yet."""
        gaps = self._gaps.get(destination)
        return None if gaps is None else gaps.get(lane)

    def destinations(self) -> list[str]:
        """Those where runs have a gap."""
        return list(self._gaps)

    def lanes(self, destination: str) -> Collection[str]:
        """The runs with a gap."""
        return self._gaps.get(destination, {}).keys()

    # -- telling -----------------------------------------------------------------------------------------------------

    def tell(self, destination: str, lane: str, notice: bytes) -> None:
        """The notice of this id is on its way to the disk, with all that the run has lost by now.

        What it loses meanwhile is another gap, which another notice may tell before this one is there.
        """
        self._telling[notice] = (destination, lane), self._take(destination, lane)

    def is_told_by(self, destination: str, entry: Entry) -> bool:
        """Whether the record is a notice that is on its way."""
        telling = self._telling.get(entry.record_id)
        return telling is not None and telling[0] == (destination, entry.lane)

    @property
    def is_telling(self) -> bool:
        return bool(self._telling)

    def told(self, notices: Iterable[bytes]) -> None:
        """The notices are on disk."""
        for notice in notices:
            del self._telling[notice]

    def untell(self, notices: Iterable[bytes]) -> None:
        """The disk had no room for the notices: the runs are to be told after all."""
        for notice in notices:
            (destination, lane), gap = self._telling.pop(notice)
            at = self._gaps.setdefault(destination, {})
            at[lane] = gap.with_(at.get(lane))

    def forget(self, destination: str, lane: str) -> None:
        """Nobody can be told any more."""
        self._take(destination, lane)
        self._changed.add((destination, lane))

    def _take(self, destination: str, lane: str) -> Gap:
        at = self._gaps[destination]
        gap = at.pop(lane)
        if not at:
            del self._gaps[destination]
        return gap

    # -- losing ------------------------------------------------------------------------------------------------------

    def learn(self, found: Found, row: int) -> int:
        """What was lost, as the row says that was written just now. Returns of how many records nobody will be told."""
        if not found:
            return 0
        before = self.untold
        self._rows.append(row)
        for destination, gaps in found.items():
            self._logged += len(gaps)
            for lane, gap in gaps.items():
                self._add(destination, lane, gap)
        return self.untold - before

    def _add(self, destination: str, lane: str, gap: Gap) -> None:
        at = self._gaps.get(destination, {})
        known = at.get(lane)
        if known is None and len(self) >= self._most:
            self.untold += gap.records
            return
        self._gaps.setdefault(destination, at)[lane] = gap if known is None else known.with_(gap)

    # -- the log -----------------------------------------------------------------------------------------------------

    def write(self, told: Collection[bytes], row: int) -> Written | None:
        """What the next commit does to the log if it brings these notices; `row` is a new one's number. None: nothing."""
        self._changed.update(self._telling[notice][0] for notice in told)
        is_empty = not self._gaps and self._telling.keys() <= set(told)
        gone: list[int] = []
        if is_empty or self._logged > 2 * len(self) + _LOG_LANES or len(self._rows) > _LOG_ROWS:
            gone, self._rows, self._logged = self._rows, [], 0
            self._written = None
        elif self._changed:
            self._written = self._changed
        else:
            return None
        self._changed = set()
        if is_empty:
            return Written(b"", gone) if gone else None
        return Written(self._value(row, told), gone)

    def rewrite(self, row: int) -> bytes:
        """The value of that commit's row after all, since its notices found no room."""
        if row in self._rows:
            self._rows.remove(row)
        return self._value(row, ())

    def _value(self, row: int, told: Collection[bytes]) -> bytes:
        waiting = self._waiting(told)
        gaps: dict[str, dict[str, Gap | None]] = {}
        if self._written is None:
            gaps = {name: dict(at) for name, at in self._gaps.items()}
        for key in waiting if self._written is None else self._written:
            gap, waits = self.find(*key), waiting.get(key)
            gaps.setdefault(key[0], {})[key[1]] = gap if waits is None else waits.with_(gap)
        self._rows.append(row)
        self._logged += sum(map(len, gaps.values()))
        return _encode(_Row(True, gaps))

    def _waiting(self, told: Collection[bytes]) -> dict[Key, Gap]:
        """What the notices say that are on their way, but for these."""
        gaps: dict[Key, Gap] = {}
        stored = set(told)
        for notice, (key, gap) in self._telling.items():
            if notice not in stored:
                before = gaps.get(key)
                gaps[key] = gap if before is None else before.with_(gap)
        return gaps

    def restore(self, row: int, value: bytes) -> None:
        """Read a row of a start, in their order. Raises SpoolDamaged."""
        read = _decode(value)
        self._rows.append(row)
        for destination, gaps in read.gaps.items():
            self._logged += len(gaps)
            for lane, gap in gaps.items():
                if read.replaces and self.find(destination, lane) is not None:
                    self._take(destination, lane)
                if gap is not None:
                    self._add(destination, lane, gap)

    def forget_all(self, destination: str) -> None:
        """The destination is another one now."""
        for lane in list(self.lanes(destination)):
            self.forget(destination, lane)
