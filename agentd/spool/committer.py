"""Committing: what happens on the event loop is gathered while one commit runs, and the next one writes all of it.

Group commit: one transaction and one fsync for everybody who waited meanwhile, so that records, seals, references,
letters, journal and books agree after any crash. A commit that finds no room refuses its records, gives the ballast back
and tries again with what is left: endings, seals and journal are never given up while the daemon runs.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Sequence

from agentd.crashpoints import Point, reached
from agentd.errors import SpoolFull
from agentd.outcomes import Cause, State
from agentd.queued import Entry, Ref, Seal
from agentd.records import EVIDENCE
from agentd.spool.books import Books
from agentd.spool.ledger import Ledger
from agentd.spool.queue import Ended
from agentd.spool.refs import encode as encode_ref
from agentd.spool.seals import encode as encode_seals
from agentd.spool.storage import Storage
from agentd.spool.store import DiskFull, Put, key_of
from agentd.spool.tables import Table, ended_key
from agentd.spool.writer import Append, Noted, Pending, Returned, Written, write

log = logging.getLogger("agentd.spool")

COMMIT_BYTES = 4 * 2**20  # of records in one commit; without a bound a burst makes 11 MB commits and 265 MB of memory
RECORD_OVERHEAD = 64  # bytes of a record's columns in its segment, for quota before it is encoded
RETRY_S = 1.0  # after a commit that failed for want of room
_FAILURES_BEFORE_STUCK = 5
REPLAYED = "replayed"  # in the journal: why a dead record waits again


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
        self.last_commit_s = 0.0
        self._ledger = ledger
        self._storage = storage
        self._pushed = pushed
        self._room = room
        self._retry_s = retry_s
        self._appends: list[Append] = []
        self._append_bytes: dict[str, int] = {}
        self._committing_records: dict[str, int] = {}
        self._pending = Pending()
        self._new_seals: list[Seal] = []
        self._errand: Callable[[], Awaitable[None]] | None = None
        self._dirty = asyncio.Event()
        self._closing = False
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
        size = 0
        for name, entries in copies.items():
            taken = sum([len(entry.body) + RECORD_OVERHEAD for entry in entries])
            self._append_bytes[name] = self._append_bytes.get(name, 0) + taken
            size += taken
        size += sum([len(put.value) for put in puts]) if awaited else 0
        self._appends.append(Append(copies, future, size, list(puts), list(introduced), list(notes), awaited))
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

    def append_bytes(self, name: str) -> int:
        """Bytes of a destination's records that are not on disk yet."""
        return self._append_bytes.get(name, 0)

    def committing(self, name: str) -> int:
        """Records that the commit under way holds: in the books already, in the queue when it is done."""
        return self._committing_records.get(name, 0)

    def put(self, put: Put) -> None:
        self._pending.put(put)

    def delete(self, key: int) -> None:
        self._pending.delete(key)

    def delete_segment(self, key: int) -> None:
        """A segment and what is known of its endings."""
        self._pending.delete(key)
        self._pending.delete(ended_key(key))

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
            if self._has_work():
                await self._commit()
            if self._errand is not None and not self._closing:
                await self._run_errand(self._errand)
                self._errand = None
            if self._has_work():
                self._dirty.set()
            elif self._closing:
                return

    async def _run_errand(self, errand: Callable[[], Awaitable[None]]) -> None:
        try:
            await errand()
        except Exception:  # a defect of ours, and commits go on
            log.exception("an errand between commits failed", extra={"action": "defect"})

    def _has_work(self) -> bool:
        pending, refs = self._pending, self._ledger.refs
        return bool(
            self._appends or pending.puts or pending.deletes or pending.waiters or self._new_seals or refs.changed
            or refs.removed or self._ledger.journal.pending
        )  # fmt: skip

    async def _commit(self) -> None:
        pending = self._gather()
        reached(Point.COMMIT_GATHERED)
        while True:
            loop = asyncio.get_running_loop()
            begun = loop.time()
            try:
                written = await self._storage.run(write, pending, self._ledger.meta)
            except DiskFull as error:
                self._refuse(pending, str(error))
            except sqlite3.Error as error:
                log.error("commit failed: %s", error, extra={"action": "commit_failed"})
                self._refuse(pending, str(error))
            except Exception as error:  # a defect of ours; commits that silently ended would hang every client
                log.exception("commit failed", extra={"action": "defect"})
                self._refuse(pending, repr(error))
            else:
                self.last_commit_s = loop.time() - begun
                self._failures = 0
                self._committed(pending, written)
                reached(Point.COMMIT_TOLD)
                return
            if not (pending.puts or pending.deletes or pending.waiters or pending.appends):
                return
            if self._closing and self._failures > _FAILURES_BEFORE_STUCK:
                log.error(
                    "giving up the last commit: what it settled will be repeated", extra={"action": "commit_abandoned"}
                )
                return
            await asyncio.sleep(self._retry_s if self._failures > 1 else 0)

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
        self._gather_refs(pending)
        self._gather_journal(pending)
        self._ledger.meta.books = self._ledger.books.snapshot()
        return pending

    def _book_admissions(self, appends: Sequence[Append]) -> None:
        """Records enter books, journal and references with the very commit that holds them."""
        ledger = self._ledger
        now = ledger.now_us()
        for append in appends:
            for name, entries in append.copies.items():
                self._committing_records[name] = self._committing_records.get(name, 0) + len(entries)
                if append.admits:
                    self._book_new(name, entries, now)
            if append.returned:
                self._book_returned(append, now)
            for ref in append.introduced:
                ledger.refs.changed[ref.row] = ref
            for noted in append.notes:
                ledger.journal.note(noted.entry, noted.state, noted.destination, now, **noted.facts)

    def _book_new(self, name: str, entries: Sequence[Entry], now: int) -> None:
        for entry in entries:
            self._ledger.books.admit(name, entry.kind)
            if entry.kind in EVIDENCE:
                self._ledger.journal.note(entry, State.QUEUED, name, now)

    def _book_returned(self, append: Append, now: int) -> None:
        """Out of the dead; the journal says of each that it waits again, and by whom."""
        for name, entries in append.copies.items():
            for entry in entries:
                self._ledger.journal.note(entry, State.QUEUED, name, now, cause=REPLAYED, by=append.by)
        for back in append.returned:
            brief = back.brief
            self._ledger.books.end(brief.destination, brief.kind, State.DEAD, brief.cause, -1)
            self._ledger.remove_letter(brief, back.size)

    def _unbook(self, append: Append, books: Books) -> None:
        """In books of a commit that went wrong, as if its records had never been in them."""
        for name, entries in append.copies.items():
            for entry in entries if append.admits else ():
                books.admit(name, entry.kind, -1)
        for back in append.returned:
            books.end(back.brief.destination, back.brief.kind, State.DEAD, back.brief.cause)

    def _gather_refs(self, pending: Pending) -> None:
        refs = self._ledger.refs
        for row in refs.removed:
            pending.delete(key_of(Table.REF, row))
        for row, ref in refs.changed.items():
            pending.put(Put(key_of(Table.REF, row), encode_ref(ref)))
        refs.removed, refs.changed = [], {}

    def _gather_journal(self, pending: Pending) -> None:
        ledger = self._ledger
        now = ledger.now_us()
        noted = ledger.journal.take()
        if noted is not None:
            row, value = noted
            pending.put(Put(key_of(Table.JOURNAL, row), value, now.to_bytes(8, "little")))
            for old in ledger.journal.expired(lambda _at_us: 0):  # for its size alone
                pending.delete(key_of(Table.JOURNAL, old))
        ledger.meta.journal_number = ledger.journal.next_number
        ledger.meta.journal_head = ledger.journal.head

    def _committed(self, pending: Pending, written: Written) -> None:
        for append in pending.appends:
            self._release(append)
            for ref in append.introduced:
                self._ledger.refs.stored(ref)
            if not append.future.done():
                append.future.set_result(None)
        for waiter in pending.waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._committing_records = {}
        for name, made in written.segments.items():
            self._pushed(name, self._ledger.queues[name].push(made, written.entries[name]))
        if pending.deletes:
            self._room()

    # -- no room -----------------------------------------------------------------------------------------------------

    def _refuse(self, pending: Pending, reason: str) -> None:
        """No room: records are refused, everything else is tried again once the ballast is given back."""
        ledger = self._ledger
        self._failures += 1
        ledger.disk_full = True
        reached(Point.FULL_REFUSED)
        if ledger.folder.release_ballast():
            log.error(
                "disk full (%s): reserve given back, new records are refused", reason, extra={"action": "disk_full"}
            )
        # The books of the next try are those of this commit without its records. What ended since is not in it.
        books = Books()
        books.restore(ledger.meta.books)
        kept = [append for append in pending.appends if append.moved]  # its old place is given up already
        for append in pending.appends:
            if not append.moved:
                self._unbook(append, books)
                self._undo(append, pending)
        ledger.meta.books = books.snapshot()
        pending.appends = kept
        self._committing_records = {name: len(entries) for append in kept for name, entries in append.copies.items()}
        self._refuse_waiting()

    def _refuse_waiting(self) -> None:
        """Records that wait for a commit behind a full disk would wait for as long as it is full."""
        waiting, self._appends = self._appends, []
        for append in waiting:
            if (append.copies and not append.moved) or append.awaited:
                self._withdraw(append.introduced)
                self._answer(append)
            else:
                self._appends.append(append)  # rows of intake's own; nobody waits for them

    def _undo(self, append: Append, pending: Pending) -> None:
        ledger = self._ledger
        now = ledger.now_us()
        self._unbook(append, ledger.books)
        for back in append.returned:
            ledger.add_letter(back.brief, back.size)
        back_to = State.DEAD if append.returned else State.PURGED
        for name, entries in append.copies.items():
            for entry in entries:  # the journal may have it already: say that it was taken back
                if append.returned or entry.kind in EVIDENCE:
                    ledger.journal.note(entry, back_to, name, now, cause=str(Cause.SPOOL_FULL))
        for noted in append.notes:
            ledger.journal.note(noted.entry, State.PURGED, noted.destination, now, cause=str(Cause.SPOOL_FULL))
        for ref in append.introduced:  # a reference without its introducer would be waited for without end
            before = ledger.refs.withdraw(ref)
            if before is None:
                pending.delete(key_of(Table.REF, ref.row))
            else:
                pending.put(Put(key_of(Table.REF, ref.row), encode_ref(before)))
        self._answer(append)

    def _withdraw(self, introduced: Iterable[Ref]) -> None:
        for ref in introduced:
            self._ledger.refs.withdraw(ref)

    def _answer(self, append: Append) -> None:
        self._release(append)
        if not append.future.done():
            append.future.set_exception(SpoolFull())

    def _release(self, append: Append) -> None:
        for name, entries in append.copies.items():
            self._append_bytes[name] -= sum([len(entry.body) + RECORD_OVERHEAD for entry in entries])
