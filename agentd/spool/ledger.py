"""What the spool knows in memory of what is on disk: the parts that every commit writes down together.

Recovery fills it, the spool's methods change it, the committer writes it. It belongs to the event loop.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from msgspec import Struct

from agentd.outcomes import Cause, State
from agentd.queued import Entry
from agentd.spool.books import Books
from agentd.spool.directory import Segment
from agentd.spool.folder import Folder
from agentd.spool.gaterows import Stored
from agentd.spool.journal import Journal
from agentd.spool.letters import Brief
from agentd.spool.lost import Losses
from agentd.spool.queue import Queue
from agentd.spool.refs import Refs
from agentd.spool.seals import Seals
from agentd.spool.seen import SeenRows
from agentd.spool.tables import Meta, Table

if TYPE_CHECKING:
    from agentd.spool.writer import Append

log = logging.getLogger("agentd.spool")


class Limits(Struct, frozen=True):
    """What the spool may take."""

    quotas: dict[str, int]
    max_bytes: int
    dead_bytes: int
    window_bytes: int
    directory_bytes: int
    seen_ids: int


class Ledger:
    """See the module."""

    def __init__(self, folder: Folder, limits: Limits, journal: Journal, now_us: Callable[[], int]) -> None:
        self.folder = folder
        self.limits = limits
        self.journal = journal
        self.now_us = now_us
        self.books = Books()
        self.refs = Refs()
        self.seals = Seals()
        self.losses = Losses()
        self.tells: frozenset[str] = frozenset()  # destinations that take events: there runs are told what they lost
        self.queues: dict[str, Queue] = {}
        self.meta = Meta()
        self.senders: set[int] = set()  # users who send records, or may: two of them, if there are
        self.dead_bytes = 0
        self.dead_count = 0
        self.invalid_bytes: Counter[int] = Counter()  # by user; of the dead letters, those that were refused at intake
        self.invalid: set[bytes] = set()  # and what they are known by (`letters.repeat_of`)
        self.dead_lanes: Counter[tuple[str, str]] = Counter()  # their references are kept as long as they are
        self.quarantined_rows = 0
        self.disk_full = False
        self.disk_low = False  # it may be full before long
        self.free_inside = 0  # bytes that the store can take without more of the disk; known while that is full
        self.seen = SeenRows()
        self.gates: list[Stored] = []  # as they were found at the start
        self._show: Callable[[dict[str, list[Entry]]], None] | None = None  # whoever watches records come
        self._next_rows: dict[Table, int] = dict.fromkeys(Table, 1)

    def overhear(self, show: Callable[[dict[str, list[Entry]]], None] | None) -> None:
        """Show the records of each message from now on, once they are on disk; None: nobody watches."""
        self._show = show

    def tell(self, appends: Iterable[Append]) -> None:
        """These are on disk. Whoever watches is no reason for a commit to fail."""
        if self._show is None:
            return
        try:
            for append in appends:
                if append.admits:
                    self._show(append.copies)
        except Exception:  # a defect of ours: nobody is shown anything any more, and commits go on
            self._show = None
            log.exception("showing records failed", extra={"action": "defect"})

    def next_row(self, table: Table) -> int:
        """The row number that `take_row` will give next."""
        return self._next_rows[table]

    def take_row(self, table: Table) -> int:
        """A row number of a table that no row of it has."""
        row = self._next_rows[table]
        self._next_rows[table] = row + 1
        return row

    def see_row(self, table: Table, row: int) -> None:
        """A row exists: later ones get higher numbers."""
        self._next_rows[table] = max(self._next_rows[table], row + 1)

    def add_letter(self, brief: Brief, size: int) -> None:
        """A dead letter is or will be on disk."""
        self.dead_count += 1
        self.dead_bytes += size
        self.dead_lanes[brief.destination, brief.lane] += 1
        if not brief.destination:
            self.invalid_bytes[brief.uid] += size
            self.invalid.add(brief.repeat)

    def remove_letter(self, brief: Brief, size: int) -> None:
        """It is replayed or purged."""
        self.dead_count -= 1
        self.dead_bytes -= size
        self.dead_lanes[brief.destination, brief.lane] -= 1
        if not self.dead_lanes[brief.destination, brief.lane]:
            del self.dead_lanes[brief.destination, brief.lane]
        if not brief.destination:
            self.invalid_bytes[brief.uid] -= size
            if not self.invalid_bytes[brief.uid]:
                del self.invalid_bytes[brief.uid]
            self.invalid.discard(brief.repeat)

    def lose(
        self, destination: str, segment: Segment, state: State, cause: Cause, *, by: int = -1, reason: str = ""
    ) -> None:
        """Book a segment's live records out of the queue, all at once, and have the journal say so."""
        now = self.now_us()
        for kind, count in segment.kinds.items():
            if count:
                self.books.end(destination, kind, state, cause, count)
                self.journal.note_lost(
                    destination, kind, count, state=state, numbers=f"{segment.first}-{segment.last}",
                    admitted_us=segment.admitted_us, at_us=now, cause=str(cause), by=by, reason=reason,
                )  # fmt: skip
