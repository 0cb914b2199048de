"""What the queue knows of the rows of the store without reading them, and which of their records have ended."""

from __future__ import annotations

import itertools
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

from agentd.errors import SpoolDamaged
from agentd.records import LossClass
from agentd.spool.checked import UNREADABLE, pack, unpack
from agentd.spool.segments import Directory, lane_hash

INFINITY = 2**64


class Segment:
    """A row of the store, as the queue knows it."""

    __slots__ = (
        "admitted_us",
        "count",
        "ended",
        "first",
        "gone",
        "hashes",
        "key",
        "kinds",
        "last",
        "live",
        "loss",
        "size",
        "uid",
    )

    def __init__(self, key: int, directory: Directory) -> None:
        self.key = key
        self.first, self.last = directory.first, directory.last
        self.count = self.live = directory.count
        self.size = directory.size
        self.loss = directory.loss
        self.uid = directory.uid
        self.admitted_us = directory.admitted_us
        self.kinds = dict(directory.kinds)
        self.hashes: array[int] | None = directory.lane_hashes()
        self.ended: bytearray | None = None
        self.gone = False

    @property
    def live_bytes(self) -> int:
        """What its live records take, going by their number."""
        return self.size * self.live // self.count

    def __repr__(self) -> str:
        return f"<Segment {self.key:#x} {self.first}-{self.last} {self.loss} {self.live}/{self.count}>"

    def may_hold(self, hashed: int) -> bool:
        """False only if no record of that lane is in it."""
        hashes = self.hashes
        if hashes is None:
            return True
        place = bisect_left(hashes, hashed)
        return place < len(hashes) and hashes[place] == hashed

    def has_ended(self, index: int) -> bool:
        return self.ended is not None and bool(self.ended[index >> 3] & 1 << (index & 7))

    def end(self, index: int, kind: str) -> bool:
        """Mark a record as ended; False if it was already."""
        if self.ended is None:
            self.ended = bytearray((self.count + 7) // 8)
        bit = 1 << (index & 7)
        if self.ended[index >> 3] & bit:
            return False
        self.ended[index >> 3] |= bit
        self.live -= 1
        self.kinds[kind] -= 1
        return True

    def end_all(self) -> bytes:
        """Nothing of it is live any more, whatever it holds. Returns its bitmap."""
        self.ended = bytearray(b"\xff" * ((self.count + 7) // 8))
        if self.count % 8:
            self.ended[-1] = (1 << self.count % 8) - 1
        self.live = 0
        self.kinds = dict.fromkeys(self.kinds, 0)
        return self.bitmap()

    def bitmap(self) -> bytes:
        """The row that keeps which of its records have ended."""
        return pack(msgspec.msgpack.encode([self.kinds, bytes(self.ended or b"")]))

    def restore_bitmap(self, value: bytes) -> None:
        """Take over what a row says of the endings. Raises SpoolDamaged."""
        self.kinds, self.ended = decode_bitmap(value, self.count)
        self.live = self.count - int.from_bytes(self.ended, "little").bit_count()


def decode_bitmap(value: bytes, count: int) -> tuple[dict[str, int], bytearray]:
    """How many of each kind are live, and a bit for each record that has ended. Raises SpoolDamaged."""
    try:
        kinds, ended = msgspec.msgpack.decode(unpack(value), type=tuple[dict[str, int], bytes])
    except UNREADABLE as error:
        raise SpoolDamaged(f"bitmap: {error}") from error
    if len(ended) != (count + 7) // 8:
        raise SpoolDamaged(f"bitmap of {len(ended)} bytes for {count} records")
    return kinds, bytearray(ended)


class Index:
    """All segments of a queue. Those before `scan` were read into the window; each part stands in number order."""

    def __init__(self, limit: int) -> None:
        """`limit` is how many bytes of lane hashes it keeps."""
        self.limit = limit
        self.bytes = 0
        self.live = 0
        self.stored_bytes = 0
        self.class_bytes = dict.fromkeys(LossClass, 0)
        self.uid_bytes: dict[int | None, int] = {}  # by whose they are
        self.segments: dict[int, Segment] = {}
        self._order: list[Segment] = []
        self._scan = 0

    def add(self, segments: Iterable[Segment]) -> list[Segment]:
        """Take new segments, cold, behind all others. Returns them in number order."""
        ordered = sorted(segments, key=_place)
        for segment in ordered:
            self._add(segment)
        self._order += ordered
        return ordered

    def _add(self, segment: Segment) -> None:
        self.segments[segment.key] = segment
        self.live += segment.live
        self.stored_bytes += segment.size
        self.class_bytes[segment.loss] += segment.size
        self.uid_bytes[segment.uid] = self.uid_bytes.get(segment.uid, 0) + segment.size
        cost = 0 if segment.hashes is None else len(segment.hashes) * 8
        if self.bytes + cost > self.limit:
            segment.hashes = None  # costs reads where the lane would have told, never correctness
        else:
            self.bytes += cost

    def drop(self, segment: Segment) -> None:
        """It holds nothing live any more, or nothing that can be read."""
        segment.gone = True
        del self.segments[segment.key]
        self.live -= segment.live
        self.stored_bytes -= segment.size
        self.class_bytes[segment.loss] -= segment.size
        self.uid_bytes[segment.uid] -= segment.size
        if not self.uid_bytes[segment.uid]:
            del self.uid_bytes[segment.uid]
        self.bytes -= 0 if segment.hashes is None else len(segment.hashes) * 8
        if len(self._order) > 64 and len(self._order) > 2 * len(self.segments):  # noqa: PLR2004 - amortised
            self._tidy()

    def _tidy(self) -> None:
        scanned = [s for s in self._order[: self._scan] if not s.gone]
        cold = [s for s in self._order[self._scan :] if not s.gone]
        self._order, self._scan = scanned + cold, len(scanned)

    # -- scanning ----------------------------------------------------------------------------------------------------

    @property
    def cold(self) -> Segment | None:
        """The first one that was not scanned."""
        order = self._order
        while self._scan < len(order) and order[self._scan].gone:
            self._scan += 1
        return order[self._scan] if self._scan < len(order) else None

    @property
    def horizon(self) -> int:
        """The lowest number that was never scanned."""
        cold = self.cold
        return INFINITY if cold is None else cold.first

    def scanned(self) -> Iterator[Segment]:
        """Those that were scanned, oldest first."""
        return (segment for segment in itertools.islice(self._order, self._scan) if not segment.gone)

    def unscanned(self) -> Iterator[Segment]:
        """The others, oldest first."""
        return (segment for segment in itertools.islice(self._order, self._scan, None) if not segment.gone)

    def pass_cold(self) -> None:
        """The first cold one is scanned now."""
        if self.cold is not None:
            self._scan += 1

    def pass_all(self) -> None:
        """All are scanned."""
        self._scan = len(self._order)

    # -- questions ---------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Segment]:
        """All of them, the scanned ones first."""
        return (segment for segment in self._order if not segment.gone)

    def hashes(self) -> set[int] | None:
        """Of every lane that has records here; None where not all of that is in memory."""
        found: set[int] = set()
        for segment in self:
            if segment.hashes is None:
                return None
            found.update(segment.hashes)
        return found

    def holding(self, lane: str) -> list[Segment]:
        """Those that may hold records of a lane."""
        hashed = lane_hash(lane)
        return [segment for segment in self if segment.may_hold(hashed)]

    def heads(self) -> Iterator[Segment]:
        """The oldest of the scanned and the oldest of the cold segments."""
        for part in (range(self._scan), range(self._scan, len(self._order))):
            head = next((self._order[place] for place in part if not self._order[place].gone), None)
            if head is not None:
                yield head

    def oldest(self, loss: LossClass, wanted: int, protected: Callable[[Segment], bool]) -> list[Segment]:
        """The oldest ones of a loss class that hold `wanted` bytes together, or as many as there are."""
        taken: list[Segment] = []
        freed = 0
        if self.class_bytes[loss] == 0:
            return taken
        for segment in self:
            if freed >= wanted:
                break
            if segment.loss is loss and not protected(segment):
                taken.append(segment)
                freed += segment.size
        return taken

    # -- rewriting ---------------------------------------------------------------------------------------------------

    def parts(self) -> tuple[list[Segment], list[Segment]]:
        """The scanned and the cold segments, oldest first: rewriting never mixes the two."""
        self._tidy()
        return self._order[: self._scan], self._order[self._scan :]

    def replace(self, old: Sequence[Segment], new: Sequence[Segment]) -> None:
        """`new` segments take the place of `old` ones, which are all scanned or all cold."""
        keys = {segment.key for segment in old}
        warm = any(segment.key in keys for segment in itertools.islice(self._order, self._scan))
        for segment in old:
            if not segment.gone:
                self.drop(segment)
        for segment in new:
            self._add(segment)
        scanned, cold = self.parts()
        if warm:
            scanned = sorted([*scanned, *new], key=_place)
        else:
            cold = sorted([*cold, *new], key=_place)
        self._order, self._scan = scanned + cold, len(scanned)


def _place(segment: Segment) -> tuple[int, int]:
    return segment.first, segment.key
