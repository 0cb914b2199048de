"""The part of a lane that is in the window of its queue. The queue keeps the sums: what comes and goes says its bytes."""

from __future__ import annotations

from collections import deque

from agentd.queued import Entry
from agentd.records import URGENT
from agentd.spool.directory import INFINITY
from agentd.spool.segments import lane_hash

# bytes of an Entry beside its body: Struct, bytes objects, deque slot (measured with tracemalloc)
ENTRY_OVERHEAD = 250


class Lane:
    """Its records in memory, and what is known to be on disk only."""

    __slots__ = (
        "blocked",
        "entries",
        "hash",
        "horizon",
        "key",
        "needs",
        "ordered",
        "parked",
        "restored",
        "resume",
        "size",
        "urgent",
    )

    def __init__(self, key: str) -> None:
        self.key = key
        self.hash = lane_hash(key)
        self.entries: deque[Entry] = deque()
        self.size = 0
        self.blocked = False
        self.parked = False
        self.ordered = True
        self.resume = 0  # parked: lowest number that may be on disk only
        self.horizon = INFINITY  # numbers from here on are not complete in the window
        self.needs = 0  # up to this number it has to be in the window: a sealed batch goes out whole or not at all
        self.restored: set[int] = set()
        self.urgent = 0  # the highest number of an urgent record that was in the window

    def __repr__(self) -> str:
        state = "parked" if self.parked else "blocked" if self.blocked else "open"
        return f"<Lane {self.key} {len(self.entries)} in window, {state}>"

    def append(self, entry: Entry) -> int:
        """Take a record; `order` follows when all of a segment are in. Returns the bytes that it takes."""
        if self.entries and entry.number < self.entries[-1].number:
            self.ordered = False  # segments of different loss classes overlap
        self.entries.append(entry)
        if entry.kind in URGENT:
            self.urgent = max(self.urgent, entry.number)
        cost = len(entry.body) + ENTRY_OVERHEAD
        self.size += cost
        return cost

    def order(self) -> None:
        """Put the records into number order."""
        if not self.ordered:
            self.entries = deque(sorted(self.entries, key=_number))
            self.ordered = True

    @property
    def is_urgent(self) -> bool:
        """Whether an urgent record is in the window, also behind others."""
        return bool(self.entries) and self.entries[0].number <= self.urgent

    def can_send(self, horizon: int) -> bool:
        """Whether something of it may be taken, if segments from `horizon` on are unread."""
        if not self.entries:
            return False
        limit = min(self.horizon, horizon)
        return self.entries[0].number < limit and self.needs < limit

    def leave(self, numbers: set[int]) -> int:
        """These records are out of the window. Returns the bytes that they gave back."""
        before = self.size
        entries = self.entries
        left = set(numbers)
        if self.needs in left:
            self.needs = 0
        while left and entries and entries[0].number in left:  # the usual case: they are the first ones
            left.discard(entries[0].number)
            self._forget(entries.popleft())
        if left and entries:
            kept: deque[Entry] = deque()
            for entry in entries:
                if entry.number in left:
                    self._forget(entry)
                else:
                    kept.append(entry)
            self.entries = kept
        return before - self.size

    def _forget(self, entry: Entry) -> None:
        self.size -= len(entry.body) + ENTRY_OVERHEAD

    def park(self) -> int:
        """All of it leaves the window. Returns the bytes that it gave back."""
        lowest = self.entries[0].number if self.entries else INFINITY
        self.resume = min(lowest, self.horizon, self.resume if self.parked else INFINITY)
        self.horizon = self.resume
        self.parked = True
        self.restored.clear()
        self.entries.clear()
        given, self.size = self.size, 0
        return given

    def unpark(self) -> None:
        """All of it that was scanned is in the window again."""
        self.parked = False
        self.horizon = INFINITY
        self.restored.clear()


def _number(entry: Entry) -> int:
    return entry.number
