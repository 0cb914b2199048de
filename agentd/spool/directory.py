"""What the queue knows of a row of the store without reading it, and which of its records have ended."""

from __future__ import annotations

from array import array
from bisect import bisect_left

import msgspec

from agentd.queued import Entry
from agentd.spool.segments import Directory


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
    )

    def __init__(self, key: int, directory: Directory) -> None:
        self.key = key
        self.first, self.last = directory.first, directory.last
        self.count = self.live = directory.count
        self.size = directory.size
        self.loss = directory.loss
        self.admitted_us = directory.admitted_us
        self.kinds = dict(directory.kinds)
        self.hashes: array[int] | None = directory.lane_hashes()
        self.ended: bytearray | None = None
        self.gone = False

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

    def end(self, entry: Entry) -> bool:
        """Mark a record as ended; False if it was already."""
        if self.ended is None:
            self.ended = bytearray((self.count + 7) // 8)
        bit = 1 << (entry.index & 7)
        if self.ended[entry.index >> 3] & bit:
            return False
        self.ended[entry.index >> 3] |= bit
        self.live -= 1
        self.kinds[entry.kind] -= 1
        return True

    def bitmap(self) -> bytes:
        """The row that keeps which of its records have ended."""
        return msgspec.msgpack.encode([self.kinds, bytes(self.ended or b"")])

    def restore_bitmap(self, value: bytes) -> None:
        kinds, ended = msgspec.msgpack.decode(value, type=tuple[dict[str, int], bytes])
        if len(ended) != (self.count + 7) // 8:
            raise ValueError(f"bitmap of {len(ended)} bytes for {self.count} records")
        self.kinds, self.ended = kinds, bytearray(ended)
        self.live = self.count - int.from_bytes(ended, "little").bit_count()
