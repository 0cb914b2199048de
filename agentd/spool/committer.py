"""Committing: what happens on the event loop is gathered while one commit runs, and the next one writes all of it.

Group commit: one transaction and one fsync for everybody who waited meanwhile, so that records, seals, references,
letters, journal and books agree after any crash. A commit that finds no room refuses its records, gives the ballast back
and tries again with what is left: endings, seals and journal are never given up while the daemon runs.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from agentd.crashpoints import Point, reached
from agentd.errors import SpoolFull
from agentd.queued import Entry, Ref, Seal
from agentd.records import RUN_ENDS
from agentd.spool.booking import book, unbook, undo
from agentd.spool.books import Books
from agentd.spool.directory import Segment
from agentd.spool.folder import Folder
from agentd.spool.gathering import gather_journal, gather_losses, gather_refs, retake_journal, told_by, untell
from agentd.spool.ledger import Ledger
from agentd.spool.lost import Gap, join
from agentd.spool.queue import Ended
from agentd.spool.seals import encode as encode_seals
from agentd.spool.segments import lane_hash
from agentd.spool.storage import Storage
from agentd.spool.store import DiskFull, Put, Rows, key_of
from agentd.spool.tables import Table, ended_key
from agentd.spool.timings import Timings
from agentd.spool.writer import Append, Noted, Pending, Returned, Written, claim, write

log = logging.getLogger("agentd.spool")

COMMIT_BYTES = 4 * 2**20  # of records in one commit; without a bound a burst makes 11 MB commits and 265 MB of memory
RECORD_OVERHEAD = 64  # bytes of a record's columns in its segment, for quota before it is encoded
RETRY_S = 1.0  # after a commit that failed for want of room
# of a full disk, within the store: for endings, seals, letters and journal alone. 24 MiB of records in 300 lanes drained with that
# much on a disk without a free byte, splits and dead letters included (tests/e2e/test_e2e_disk.py).
RESERVED_BYTES = 4 * 2**20
_FAILURES_BEFORE_STUCK = 5


class Committer:
    """`pushed(name, lanes)` hears what a commit brought into a window, `room()` that something has left the disk."""

    def __init__(
        self,
        ledger: Ledger,
        storage: Storage,
        *,
        pushed: Callable[[str, set[str]], None],
        room: Callable[[], None],
        retry_s: float = RETRY_S,
    ) -> None:
        self.timings = Timings()
        self.broken = False  # whether the last commit failed for another reason than want of room
        self._ledger = ledger
        self._storage = storage
        self._pushed = pushed
        self._room = room
        self._retry_s = retry_s
        self._appends: list[Append] = []
        self._append_bytes: Counter[tuple[str, int]] = Counter()  # by destination and user
        self._committing_records: Counter[str] = Counter()
        self._pending = Pending()
        self._under_way = Pending()
        self._asked: dict[str, set[str]] = {}
        self._new_seals: list[Seal] = []
        self._errand: Callable[[], Awaitable[None]] | None = None
        self._dirty = asyncio.Event()
        self._closing = False
        self._given_up = False
        self._failures = 0
        self._task: asyncio.Task[None] | None = None

    # -- life --------------------------------------------------------------------------------------------------------

    def start(self) -> asyncio.Task[None]:
        self._task = asyncio.create_task(self._run(), name="spool commits")
        return self._task

    async def close(self) -> None:
        """Commit what is left."""
        self._closing = True
        self._dirty.set()
        if self._task is not None:
            await self._task

    def stuck(self) -> str | None:
        """Why commits don't go through, None if they do."""
        if self._failures >= _FAILURES_BEFORE_STUCK:
            return f"{self._failures} commits failed in a row"
        return None

    def recovered(self) -> None:
        """There is room again."""
        self._failures = 0

    # -- what is handed over -----------------------------------------------------------------------------------------

    def append(
        self,
        copies: dict[str, list[Entry]],
        puts: Sequence[Put],
        introduced: Sequence[Ref],
        notes: Sequence[Noted] = (),
        *,
        awaited: bool = False,
    ) -> asyncio.Future[None]:
        """Records for the next commit that has room for them; `awaited` rows are refused like records if none has."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        sizes = Counter(
            {
                (name, entries[0].source.uid): sum([len(entry.body) + RECORD_OVERHEAD for entry in entries])
                for name, entries in copies.items()
                if entries
            }
        )
        self._append_bytes += sizes
        size = sizes.total() + (sum([len(put.value) for put in puts]) if awaited else 0)
        self._appends.append(Append(copies, future, size, list(puts), list(introduced), list(notes), awaited, sizes))
        self._dirty.set()
        return future

    def give_back(
        self,
        name: str,
        entries: Sequence[Entry],
        *,
        returned: Sequence[Returned] = (),
        introduced: Sequence[Ref] = (),
        by: int = -1,
    ) -> asyncio.Future[None]:
        """Records that are in the books already get a place at the end of their queue, with the next commit.

        Without letters that they are `returned` from they were taken out of the queue (`end`) just now: both go with one commit,
        which is tried until it goes through. A replay is refused where there is no room, and its letters stay.
        """
        future = self.append({name: list(entries)}, (), introduced)
        append = self._appends[-1]
        append.returned, append.moved, append.by = list(returned), not returned, by
        return future

    def append_bytes(self, name: str, uid: int | None = None) -> int:
        """Bytes of a destination's records that are not on disk yet; of one user if `uid` is given."""
        return sum(size for (at, who), size in self._append_bytes.items() if at == name and uid in (None, who))

    def committing(self, name: str) -> int:
        """Records that the commit under way holds, or that wait for a later place: in the books already, in the queue when it is done."""
        moved = sum(len(append.copies.get(name, ())) for append in self._appends if append.moved)
        return self._committing_records[name] + moved

    def ending(self, name: str) -> set[str]:
        """The lanes whose run's end is on its way to the disk."""
        appends = [*self._under_way.appends, *self._appends]
        entries = [entry for append in appends for entry in append.copies.get(name, ())]
        return {entry.lane for entry in entries if entry.kind in RUN_ENDS}

    def put(self, put: Put) -> None:
        self._pending.put(put)

    def delete(self, key: int) -> None:
        self._pending.delete(key)

    def delete_segment(self, key: int) -> None:
        """A segment and what is known of its endings."""
        self._pending.delete(key)
        self._pending.delete(ended_key(key))

    def shed(self, name: str, segment: Segment, frees: int) -> None:
        """A segment that a queue has given up; the commit that deletes it finds out which runs lose what. `frees`: bytes, about."""
        self.delete_segment(segment.key)
        self._pending.frees += frees
        if name in self._ledger.tells:
            self._pending.shed[segment.key] = name, segment

    def take_shed(self, key: int) -> Segment | None:
        """One that was shed and has to be counted by somebody else, since its row is gone already."""
        return self._pending.shed.pop(key, ("", None))[1]

    def lose(self, name: str, gaps: Mapping[str, Gap]) -> None:
        """What runs lose by it, as somebody else has counted."""
        join(self._pending.lost, name, gaps)

    def may_lose(self, name: str, lane: str) -> bool:
        """Whether a commit may still find that the run has lost something; `pushed` hears of the lane when that is known."""
        hashed = lane_hash(lane)
        for pending in (self._pending, self._under_way):
            sheds = [segment for at, segment in pending.shed.values() if at == name]
            # where a segment can't say whose records it holds nobody waits: a flood that goes on would hold up every end
            known = [segment for segment in sheds if segment.hashes is not None]
            if lane in pending.lost.get(name, ()) or any(segment.may_hold(hashed) for segment in known):
                self._asked.setdefault(name, set()).add(lane)
                return True
        return False

    def free_inside(self, cost: int) -> int:
        """What the store can still take on a full disk, beside the reserve: free room within it, and that of what is shed.

        `cost`: what a byte that is on its way takes.
        """
        under_way = cost * sum(self._append_bytes.values())
        coming = self._pending.frees + self._under_way.frees
        return self._ledger.free_inside + coming - under_way - RESERVED_BYTES

    def measure(self) -> None:
        """Find out how much free room is within the store."""
        self._pending.measures = True
        self._dirty.set()

    def end(self, ended: Ended) -> None:
        """What the endings change on disk."""
        for key in ended.deletes:
            self.delete_segment(key)
        for key, bitmap in ended.bitmaps.items():
            self._pending.put(Put(ended_key(key), bitmap))

    def seal(self, seals: Sequence[Seal]) -> None:
        """New seals, which the next commit writes as one row."""
        for seal in seals:
            seal.seq = self._ledger.seals.take_seq()
        self._new_seals += seals
        self._ledger.seals.add(seals, self._ledger.next_row(Table.SEAL))

    def retire(self, seal: Seal) -> None:
        """The batch has ended or was cut up; a row without a live seal goes."""
        self._new_seals = [new for new in self._new_seals if new is not seal]
        row = self._ledger.seals.retire(seal)
        if row is not None:
            self._pending.delete(key_of(Table.SEAL, row))

    def waiter(self) -> asyncio.Future[None]:
        """Done when everything that was handed over before is on disk."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending.waiters.append(future)
        self._dirty.set()
        return future

    def wake(self) -> None:
        """Something of the ledger has changed: commit it."""
        self._dirty.set()

    def between(self, errand: Callable[[], Awaitable[None]]) -> bool:
        """Run `errand` between two commits; False if another one waits for that already."""
        if self._errand is not None or self._closing:
            return False
        self._errand = errand
        self._dirty.set()
        return True

    # -- the loop ----------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            if self.has_work():
                await self._commit()
            if self._given_up:  # a later commit would go on from books and journal that are not on disk
                return
            if self._errand is not None and not self._closing:
                await self._run_errand(self._errand)
                self._errand = None
            if self.has_work():
                self._dirty.set()
            elif self._closing:
                return

    async def _run_errand(self, errand: Callable[[], Awaitable[None]]) -> None:
        try:
            await errand()
        except Exception:  # a defect of ours, and commits go on
            log.exception("an errand between commits failed", extra={"action": "defect"})

    def has_work(self) -> bool:
        pending, refs = self._pending, self._ledger.refs
        return bool(
            self._appends or pending.puts or pending.deletes or pending.waiters or self._new_seals or refs.changed
            or refs.removed or self._ledger.journal.pending or self._ledger.losses.has_changed or pending.measures
        )  # fmt: skip

    async def _commit(self) -> None:
        pending = self._under_way = self._gather()
        reached(Point.COMMIT_GATHERED)
        while True:
            begun = time.monotonic()
            try:
                written = await self._storage.run(write, pending, self._ledger.meta)
            except DiskFull as error:
                self._refuse(pending, str(error), "full")
            except sqlite3.Error as error:
                log.error("commit failed: %s", error, extra={"action": "commit_failed"})
                self._refuse(pending, str(error), "fails")
            except Exception as error:  # a defect of ours; commits that silently ended would hang every client
                log.exception("commit failed", extra={"action": "defect"})
                self._refuse(pending, repr(error), "fails")
            else:
                self.timings.committed(begun, pending.appends, self._committing_records.total())
                self._failures, self.broken = 0, False
                self._committed(pending, written)
                self._ledger.tell(pending.appends)
                reached(Point.COMMIT_TOLD)
                return
            await self._storage.run(_claim_reserve, self._ledger.folder)
            is_empty = not (pending.puts or pending.deletes or pending.waiters or pending.appends)
            if is_empty:
                self._under_way = Pending()
                if self._closing:  # there is nothing more to find out
                    return
                self.measure()
            elif self._closing and self._failures > _FAILURES_BEFORE_STUCK:
                log.error(
                    "giving up the last commit: what it settled will be repeated", extra={"action": "commit_abandoned"}
                )
                self._given_up = True
                return
            await asyncio.sleep(self._retry_s if self._failures > 1 else 0)
            if is_empty:
                return

    # -- one commit --------------------------------------------------------------------------------------------------

    def _gather(self) -> Pending:
        """What the next commit holds: all of the small things, and records up to COMMIT_BYTES."""
        pending, self._pending = self._pending, Pending()
        size = taken = 0
        moved = max((place for place, append in enumerate(self._appends, 1) if append.moved), default=0)
        for append in self._appends:
            if taken and size + append.size > COMMIT_BYTES and taken >= moved:
                break
            size += append.size
            taken += 1
        pending.appends, self._appends = self._appends[:taken], self._appends[taken:]
        self._book_admissions(pending.appends)
        if self._new_seals:
            row = self._ledger.take_row(Table.SEAL)
            pending.put(Put(key_of(Table.SEAL, row), encode_seals(self._new_seals)))
            self._new_seals = []
        gather_refs(self._ledger, pending)
        gather_journal(self._ledger, pending)
        gather_losses(self._ledger, pending)
        pending.measures |= self._ledger.disk_full
        pending.claims = RESERVED_BYTES if self._ledger.disk_low and not self._ledger.disk_full else 0
        self._ledger.meta.books = self._ledger.books.snapshot()
        return pending

    def _book_admissions(self, appends: Sequence[Append]) -> None:
        """Records enter books, journal and references with the very commit that holds them."""
        ledger = self._ledger
        now = ledger.now_us()
        for append in appends:
            self._count(append)
            book(ledger, append, now)

    def _count(self, append: Append) -> None:
        for name, entries in append.copies.items():
            self._committing_records[name] += len(entries)

    def _learn_losses(self, pending: Pending, written: Written) -> None:
        losses = self._ledger.losses
        losses.told(pending.told)
        if untold := losses.learn(written.lost, pending.lost_rows[1]):
            log.warning(
                "%d records were shed of runs beyond the first %d with a gap: those are not told", untold, len(losses),
                extra={"action": "untold"},
            )  # fmt: skip
        asked, self._asked = self._asked, {}
        for name, lanes in asked.items():
            self._pushed(name, lanes)

    def _committed(self, pending: Pending, written: Written) -> None:
        self._under_way = Pending()
        if written.free_bytes is not None:
            self._ledger.free_inside = written.free_bytes
        for append in pending.appends:
            self._append_bytes -= append.sizes
            for ref in append.introduced:
                self._ledger.refs.stored(ref)
            if not append.future.done():
                append.future.set_result(None)
        for waiter in pending.waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._committing_records = Counter()
        for name, made in written.segments.items():
            self._pushed(name, self._ledger.queues[name].push(made, written.entries[name]))
        self._learn_losses(pending, written)
        if pending.deletes or pending.measures:
            self._room()

    # -- no room -----------------------------------------------------------------------------------------------------

    def _refuse(self, pending: Pending, reason: str, state: str) -> None:
        """No room: records are refused, everything else is tried again once the ballast is given back."""
        ledger = self._ledger
        self._failures += 1
        if not ledger.disk_full:
            log.error("disk %s (%s): what it can't take is refused", state, reason, extra={"action": "disk_full"})
        self.broken = state != "full"
        ledger.disk_full = pending.measures = True
        ledger.free_inside = 0  # until a commit has measured it
        reached(Point.FULL_REFUSED)
        # The books of the next try are those of this commit without its records. What ended since is not in it.
        books = Books()
        books.restore(ledger.meta.books)
        kept = [append for append in pending.appends if append.moved]  # its old place is given up already
        for append in pending.appends:
            if not append.moved:
                unbook(append, books)
                undo(ledger, append, pending)
                self._answer(append)
        retake_journal(ledger, pending, [append for append in pending.appends if not append.moved])
        ledger.meta.books = books.snapshot()
        pending.appends = kept
        untell(ledger, pending)
        self._committing_records = Counter()
        for append in kept:
            self._count(append)
        self._refuse_waiting()

    def _refuse_waiting(self) -> None:
        """Records that wait for a commit behind a full disk would wait for as long as it is full."""
        waiting, self._appends = self._appends, []
        for append in waiting:
            if (append.copies and not append.moved) or append.awaited:
                self._ledger.losses.untell(told_by(self._ledger, [append]))
                self._withdraw(append.introduced)
                self._answer(append)
            else:
                self._appends.append(append)  # rows of intake's own; nobody waits for them

    def _withdraw(self, introduced: Iterable[Ref]) -> None:
        for ref in introduced:
            self._ledger.refs.withdraw(ref)

    def _answer(self, append: Append) -> None:
        self._append_bytes -= append.sizes
        if not append.future.done():
            append.future.set_exception(SpoolFull())


def _claim_reserve(store: Rows, folder: Folder) -> None:
    """Give the ballast back to a full disk and take what is needed of it into the store at once, before somebody else fills it."""
    if folder.release_ballast():
        claim(store, RESERVED_BYTES)
