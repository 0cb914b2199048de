"""The spool: the disk is the truth, memory holds a window of it.

Intake appends, delivery seals, settles, splits and buries; each call returns a future that is done when the commit that
holds it is on disk. Calls are gathered while a commit runs and written together by the next one (group commit): all of
them in one transaction, so that records, seals, references, letters, journal and books agree after any crash. Every method
belongs to the event loop; the store belongs to the one storage thread.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from msgspec import Struct

from agentd.errors import SpoolDamaged, SpoolFull
from agentd.outcomes import Cause, Learned, State
from agentd.queued import Death, Entry, Ref, Seal
from agentd.records import EVIDENCE, INTRODUCES, RUN_ENDS, LossClass
from agentd.spool import letters, segments
from agentd.spool.books import Books
from agentd.spool.folder import FLOOR_BYTES, Folder
from agentd.spool.journal import Journal
from agentd.spool.letters import Letter
from agentd.spool.queue import Queue, Segment
from agentd.spool.refs import Refs
from agentd.spool.refs import encode as encode_ref
from agentd.spool.seals import Seals
from agentd.spool.seals import encode as encode_seals
from agentd.spool.store import DiskFull, Put, Store, key_of
from agentd.spool.tables import Meta, Table
from agentd.spool.writer import Append, Pending, Written, write

log = logging.getLogger("agentd.spool")

COMMIT_BYTES = 4 * 2**20  # of records in one commit; without a bound a burst makes 11 MB commits and 265 MB of memory
RECORD_OVERHEAD = 64  # bytes of a record's columns in its segment, for quota before it is encoded
_SHED_STEP = 2**20  # room made at once, so that a full queue does not shed for each record anew
_RETRY_S = 1.0  # after a commit that failed for want of room
_FAILURES_BEFORE_STUCK = 5


class Limits(Struct, frozen=True):
    """What the spool may take."""

    quotas: dict[str, int]
    max_bytes: int
    dead_bytes: int
    window_bytes: int
    directory_bytes: int
    seen_ids: int


class Spool:
    """An open spool; `recovery.open_spool` makes it."""

    def __init__(
        self,
        *,
        folder: Folder,
        store: Store,
        thread: ThreadPoolExecutor,
        limits: Limits,
        journal: Journal,
        now_us: Callable[[], int],
    ) -> None:
        self.folder = folder
        self.limits = limits
        self.books = Books()
        self.refs = Refs()
        self.seals = Seals()
        self.journal = journal
        self.queues: dict[str, Queue] = {}
        self.meta = Meta()
        self.dead_bytes = 0
        self.dead_count = 0
        self.quarantined_rows = 0
        self.disk_full = False
        self.last_commit_s = 0.0
        self.seen_rows: deque[tuple[int, int]] = deque()  # (row, number of ids), oldest first
        self.seen_count = 0
        self._store = store
        self._thread = thread
        self._now_us = now_us
        self._appends: list[Append] = []
        self._committing_records: dict[str, int] = {}
        self._append_bytes: dict[str, int] = {}
        self._pending = Pending()
        self._new_seals: list[Seal] = []
        self._next_rows: dict[Table, int] = dict.fromkeys(Table, 1)
        self._dirty = asyncio.Event()
        self._committing = False
        self._closing = False
        self._failures = 0
        self._task: asyncio.Task[None] | None = None
        self._loaders: dict[str, asyncio.Task[None]] = {}
        self._listeners: dict[str, Callable[[set[str]], None]] = {}
        self._room: set[asyncio.Future[None]] = set()

    # -- life --------------------------------------------------------------------------------------------------------

    def start(self) -> asyncio.Task[None]:
        """Begin to commit. Call on the event loop, once; if the task dies, nothing is stored any more."""
        self._task = asyncio.create_task(self._commit_loop(), name="spool commits")
        return self._task

    async def close(self) -> None:
        """Commit what is left, then close the store and give the folder back."""
        for task in self._loaders.values():
            task.cancel()
        self._closing = True
        self._dirty.set()
        if self._task is not None:
            await self._task
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._store.close)
        self._thread.shutdown(wait=False)
        self.folder.close()

    def listen(self, destination: str, listener: Callable[[set[str]], None]) -> None:
        """`listener` hears which lanes have new records in the window."""
        self._listeners[destination] = listener

    def stuck(self) -> str | None:
        """Why commits don't go through, None if they do."""
        if self._failures >= _FAILURES_BEFORE_STUCK:
            return f"{self._failures} commits failed in a row"
        return None

    # -- room --------------------------------------------------------------------------------------------------------

    def room_for(self, destination: str, size: int, loss: LossClass) -> bool:
        """Whether `size` more bytes fit; sheds older debug, then info events for it where that helps (promise 6)."""
        if self.disk_full:
            return False
        queue = self.queues[destination]
        excess = self._excess(queue, size)
        if excess <= 0:
            return True
        for shedding in (LossClass.DEBUG, LossClass.INFO):
            if shedding is LossClass.INFO and loss is LossClass.DEBUG:
                break  # what arrives may not push out what is worth more
            self._shed(queue, shedding, excess + _SHED_STEP)
            excess = self._excess(queue, size)
            if excess <= 0:
                return True
        return False

    def _excess(self, queue: Queue, size: int) -> int:
        taken = queue.stored_bytes + self._append_bytes.get(queue.name, 0) + size
        return taken - self.limits.quotas.get(queue.name, 0)

    def _shed(self, queue: Queue, loss: LossClass, wanted: int) -> None:
        def sealed(segment: Segment) -> bool:
            return any(
                segment.may_hold(segments.lane_hash(s.lane))
                for s in self.seals.covers(queue.name, segment.first, segment.last)
            )

        now = self._now_us()
        taken = queue.shed(loss, wanted, sealed)
        for segment in taken:
            self._remove_segment(segment)
            for kind, count in segment.kinds.items():
                if count:
                    self.books.end(queue.name, kind, State.SHED, Cause.QUEUE_FULL, count)
                    numbers = f"{segment.first}-{segment.last}"
                    self.journal.note_shed(
                        queue.name,
                        kind,
                        count,
                        numbers=numbers,
                        admitted_us=segment.admitted_us,
                        at_us=now,
                        cause=Cause.QUEUE_FULL,
                    )
        if taken:
            records = sum(segment.live for segment in taken)
            log.warning(
                "%s: queue full, shed %d %s records",
                queue.name,
                records,
                loss,
                extra={"action": "shed", "destination": queue.name},
            )
            self._dirty.set()

    def _remove_segment(self, segment: Segment) -> None:
        self._pending.delete(segment.key)
        self._pending.delete(_ended_key(segment.key))

    async def wait_for_room(self) -> None:
        """Return when something has left a queue since: whoever was refused may try again."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._room.add(future)
        try:
            await future
        finally:
            self._room.discard(future)

    def _tell_room(self) -> None:
        for future in self._room:
            if not future.done():
                future.set_result(None)

    # -- intake's side -----------------------------------------------------------------------------------------------

    def number(self, destination: str) -> int:
        """The next number of a destination's queue; never given twice, also after a restart."""
        following = self.meta.next_number.get(destination, 1)
        self.meta.next_number[destination] = following + 1
        return following

    def append(
        self, copies: dict[str, list[Entry]], *, puts: Sequence[Put] = (), introduced: Sequence[Ref] = ()
    ) -> asyncio.Future[None]:
        """Records on their way to disk; done after fsync, SpoolFull if the disk had no room (nothing was kept then)."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        size = 0
        for name, entries in copies.items():
            taken = sum([len(entry.body) + RECORD_OVERHEAD for entry in entries])
            self._append_bytes[name] = self._append_bytes.get(name, 0) + taken
            size += taken
        self._appends.append(Append(copies, future, size, list(puts), list(introduced)))
        self._dirty.set()
        return future

    def put_row(self, table: Table, row: int, value: bytes, tag: bytes | None = None) -> Put:
        """A row of one of intake's tables, to go with an append."""
        return Put(key_of(table, row), value, tag)

    def take_row(self, table: Table) -> int:
        """A row number of a table that was never used in it."""
        row = self._next_rows[table]
        self._next_rows[table] = row + 1
        return row

    def see_row(self, table: Table, row: int) -> None:
        """A row exists: later ones get higher numbers."""
        self._next_rows[table] = max(self._next_rows[table], row + 1)

    def drop_rows(self, table: Table, rows: Iterable[int]) -> None:
        """Delete rows of one of intake's tables with the next commit."""
        for row in rows:
            self._pending.delete(key_of(table, row))
        self._dirty.set()

    def seen(self, value: bytes, count: int) -> Put:
        """A row of ids for the dedupe window; lets the oldest rows go that the window has passed."""
        row = self.take_row(Table.SEEN)
        self.seen_rows.append((row, count))
        self.seen_count += count
        while len(self.seen_rows) > 1 and self.seen_count - self.seen_rows[0][1] >= self.limits.seen_ids:
            old, passed = self.seen_rows.popleft()
            self.seen_count -= passed
            self._pending.delete(key_of(Table.SEEN, old))
        return Put(key_of(Table.SEEN, row), value, count.to_bytes(4, "little"))

    # -- delivery's side ---------------------------------------------------------------------------------------------

    def seal(self, seal: Seal) -> asyncio.Future[None]:
        """Put a batch's bounds, key and digest on disk, before its first try."""
        seal.seq = self.seals.take_seq()
        self._new_seals.append(seal)
        self.seals.add([seal], self._next_rows[Table.SEAL])
        return self._waiter()

    def settle(self, seal: Seal, entries: Sequence[Entry], learned: Iterable[Learned] = ()) -> asyncio.Future[None]:
        """The platform has the batch."""
        now = self._now_us()
        names: dict[str, str] = {}
        for fact in learned:
            self.refs.learn(seal.destination, fact.kind, fact.local_id, fact.platform_id, now)
            names[f"{fact.kind}:{fact.local_id}"] = fact.platform_id
        self.refs.count(seal.destination, seal.lane, len(entries))
        for entry in entries:
            self.books.end(seal.destination, entry.kind, State.DELIVERED, "")
            self._end_of_run(seal.destination, entry)
            if entry.kind in EVIDENCE:
                platform_id = names.get(entry.lane, "")
                self.journal.note(entry, State.DELIVERED, seal.destination, now, key=seal.key, platform_id=platform_id)
        return self._end(seal, entries)

    def bury(self, seal: Seal | None, destination: str, entries: Sequence[Entry], death: Death) -> asyncio.Future[None]:
        """Refused for good: dead letters, and the journal says so."""
        now = self._now_us()
        for entry in entries:
            letter = letters.letter_of(destination, entry, death, now)
            value, tag = letters.encode(letter)
            self._pending.put(Put(key_of(Table.DEAD, self.take_row(Table.DEAD)), value, tag))
            self.dead_bytes += len(value)
            self.dead_count += 1
            self.books.end(destination, entry.kind, State.DEAD, death.cause)
            self.journal.note(entry, State.DEAD, destination, now, cause=str(death.cause), key=death.key)
            self._end_of_run(destination, entry)
            if entry.kind in INTRODUCES:
                kind, _, local_id = entry.lane.partition(":")
                self.refs.bury(destination, kind, local_id)
        return self._end(seal, entries, destination)

    def discard_stale(self, destination: str, entries: Sequence[Entry]) -> asyncio.Future[None]:
        """Replaced by a newer record of its kind: a heartbeat of which only the newest counts."""
        for entry in entries:
            self.books.end(destination, entry.kind, State.SHED, Cause.STALE)
        return self._end(None, entries, destination)

    def split(self, seal: Seal, parts: Sequence[Seal]) -> asyncio.Future[None]:
        """The whole was refused: its parts are sealed in the transaction that retires it."""
        for part in parts:
            part.seq = self.seals.take_seq()
            self._new_seals.append(part)
        self._retire(seal)
        self.seals.add(parts, self._next_rows[Table.SEAL])
        return self._waiter()

    def dead_room(self, size: int) -> bool:
        """Whether the dead letters' own room takes `size` more bytes."""
        return self.dead_bytes + size <= self.limits.dead_bytes

    def _end_of_run(self, destination: str, entry: Entry) -> None:
        if entry.kind in RUN_ENDS:
            self.refs.close(destination, "run", entry.lane.partition(":")[2])

    def _end(self, seal: Seal | None, entries: Sequence[Entry], destination: str = "") -> asyncio.Future[None]:
        queue = self.queues[seal.destination if seal is not None else destination]
        ended = queue.end(entries)
        for key in ended.deletes:
            self._pending.delete(key)
            self._pending.delete(_ended_key(key))
        for key, bitmap in ended.bitmaps.items():
            self._pending.put(Put(_ended_key(key), bitmap))
        if seal is not None:
            self._retire(seal)
        return self._waiter()

    def _retire(self, seal: Seal) -> None:
        row = self.seals.retire(seal)
        if row is not None:
            self._pending.delete(key_of(Table.SEAL, row))

    def committing(self, name: str) -> int:
        """Records that the commit under way holds: in the books already, in the queue when it is done."""
        return self._committing_records.get(name, 0)

    def barrier(self) -> asyncio.Future[None]:
        """Done when everything that was handed over before is on disk."""
        return self._waiter()

    def tick(self, now_us: int, keep_us: int) -> None:
        """Housekeeping, about once a second: counts to disk, references that nobody needs any more, free space."""
        if self.refs.write_counts():
            self._dirty.set()
        oldest = min((at for queue in self.queues.values() if (at := queue.oldest_us()) is not None), default=now_us)
        if self.refs.prune(min(now_us - keep_us, oldest)):
            self._dirty.set()
        self.check_disk()

    async def vacuum(self) -> bool:
        """Give a little free room back to the file system; True while there is more."""
        return bool(await self.run_in_thread(Store.vacuum_step))

    def _waiter(self) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending.waiters.append(future)
        self._dirty.set()
        return future

    # -- committing --------------------------------------------------------------------------------------------------

    async def _commit_loop(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            if self._has_work():
                await self._commit()
            if self._has_work():
                self._dirty.set()
            elif self._closing:
                return

    def _has_work(self) -> bool:
        pending = self._pending
        return bool(
            self._appends or pending.puts or pending.deletes or pending.waiters or self._new_seals or self.refs.changed
            or self.refs.removed or self.journal.pending
        )  # fmt: skip

    async def _commit(self) -> None:
        pending = self._gather()
        while True:
            loop = asyncio.get_running_loop()
            begun = loop.time()
            try:
                written = await loop.run_in_executor(self._thread, write, self._store, pending, self.meta)
            except DiskFull as error:
                self._refuse(pending, str(error))
            except sqlite3.Error as error:
                log.error("commit failed: %s", error, extra={"action": "commit_failed"})
                self._refuse(pending, str(error))
            else:
                self.last_commit_s = loop.time() - begun
                self._failures = 0
                self._committed(pending, written)
                return
            if not (pending.puts or pending.deletes or pending.waiters):
                return
            if self._closing and self._failures > _FAILURES_BEFORE_STUCK:
                log.error(
                    "giving up the last commit: what it settled will be repeated", extra={"action": "commit_abandoned"}
                )
                return
            await asyncio.sleep(_RETRY_S if self._failures > 1 else 0)

    def _gather(self) -> Pending:
        """What the next commit holds: all of the small things, and records up to COMMIT_BYTES."""
        pending, self._pending = self._pending, Pending()
        size = taken = 0
        for append in self._appends:
            if taken and size + append.size > COMMIT_BYTES:
                break
            size += append.size
            taken += 1
        pending.appends, self._appends = self._appends[:taken], self._appends[taken:]
        self._book_admissions(pending.appends)
        if self._new_seals:
            row = self.take_row(Table.SEAL)
            pending.put(Put(key_of(Table.SEAL, row), encode_seals(self._new_seals)))
            self._new_seals = []
        for row in self.refs.removed:
            pending.delete(key_of(Table.REF, row))
        for row, ref in self.refs.changed.items():
            pending.put(Put(key_of(Table.REF, row), encode_ref(ref)))
        self.refs.removed, self.refs.changed = [], {}
        self._gather_journal(pending)
        self.meta.books = self.books.snapshot()
        return pending

    def _book_admissions(self, appends: Sequence[Append]) -> None:
        """Records enter books, journal and references with the very commit that holds them."""
        now = self._now_us()
        for append in appends:
            for name, entries in append.copies.items():
                self._committing_records[name] = self._committing_records.get(name, 0) + len(entries)
                for entry in entries:
                    self.books.admit(name, entry.kind)
                    if entry.kind in EVIDENCE:
                        self.journal.note(entry, State.QUEUED, name, now)
            for ref in append.introduced:
                self.refs.changed[ref.row] = ref

    def _gather_journal(self, pending: Pending) -> None:
        now = self._now_us()
        noted = self.journal.take()
        if noted is not None:
            row, value = noted
            pending.put(Put(key_of(Table.JOURNAL, row), value, now.to_bytes(8, "little")))
            for old in self.journal.expired(now):
                pending.delete(key_of(Table.JOURNAL, old))
        self.meta.journal_number = self.journal.next_number

    def _committed(self, pending: Pending, written: Written) -> None:
        for append in pending.appends:
            self._release(append)
            if not append.future.done():
                append.future.set_result(None)
        for waiter in pending.waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._committing_records = {}
        for name, made in written.segments.items():
            touched = self.queues[name].push(made, written.entries[name])
            self._tell(name, touched)
        if pending.deletes:
            self._tell_room()

    def _refuse(self, pending: Pending, reason: str) -> None:
        """No room: records are refused, everything else is tried again once the ballast is given back."""
        self._failures += 1
        self.disk_full = True
        if self.folder.release_ballast():
            log.error(
                "disk full (%s): reserve given back, new records are refused", reason, extra={"action": "disk_full"}
            )
        for append in pending.appends:
            self._release(append)
            self._undo(append)
            if not append.future.done():
                append.future.set_exception(SpoolFull())
        pending.appends = []
        self._committing_records = {}
        self.meta.books = self.books.snapshot()

    def _undo(self, append: Append) -> None:
        now = self._now_us()
        for name, entries in append.copies.items():
            for entry in entries:
                self.books.admit(name, entry.kind, -1)
                if entry.kind in EVIDENCE:  # the admission may stand in the journal already: say that it was taken back
                    self.journal.note(entry, State.PURGED, name, now, cause=str(Cause.SPOOL_FULL))
        for ref in append.introduced:
            self.refs.withdraw(ref)

    def _release(self, append: Append) -> None:
        for name, entries in append.copies.items():
            self._append_bytes[name] -= sum([len(entry.body) + RECORD_OVERHEAD for entry in entries])

    def check_disk(self) -> None:
        """Look at the free space; call it now and then. Takes records again as soon as there is room."""
        free = self.folder.free_bytes()
        if self.disk_full:
            if free > FLOOR_BYTES and self.folder.refill_ballast():
                self.disk_full = False
                self._failures = 0
                log.warning("disk has room again: records are taken", extra={"action": "disk_recovered"})
                self._tell_room()
        elif free < FLOOR_BYTES:
            self.disk_full = True
            log.error("disk nearly full (%d bytes free): new records are refused", free, extra={"action": "disk_full"})

    # -- reading -----------------------------------------------------------------------------------------------------

    def _tell(self, name: str, lanes: set[str]) -> None:
        listener = self._listeners.get(name)
        if listener is not None and lanes:
            listener(lanes)

    def fill(self, name: str) -> None:
        """See to it that the window of a destination is read from disk as far as there is room."""
        task = self._loaders.get(name)
        if task is None or task.done():
            self._loaders[name] = asyncio.create_task(self._load(name), name=f"spool window {name}")

    async def _load(self, name: str) -> None:
        queue = self.queues[name]
        loop = asyncio.get_running_loop()
        while (key := queue.next_load()) is not None:
            try:
                entries = await loop.run_in_executor(self._thread, _read_segment, self._store, key)
            except SpoolDamaged as error:
                self._set_aside(name, key, error)
                continue
            self._tell(name, queue.loaded(key, entries))

    def _set_aside(self, name: str, key: int, error: SpoolDamaged) -> None:
        segment = self.queues[name].unreadable(key)
        if segment is None:
            return
        self.quarantined_rows += 1
        log.error(
            "%s: %s: %d records (numbers %d-%d) set aside",
            name, error, segment.live, segment.first, segment.last, extra={"action": "quarantine", "destination": name},
        )  # fmt: skip
        self._thread.submit(_keep_copy, self._store, self.folder, key)
        now = self._now_us()
        for kind, count in segment.kinds.items():
            if count:
                self.books.end(name, kind, State.QUARANTINED, Cause.DAMAGED, count)
                self.journal.note_shed(
                    name,
                    kind,
                    count,
                    numbers=f"{segment.first}-{segment.last}",
                    admitted_us=segment.admitted_us,
                    at_us=now,
                    cause="damaged",
                )
        self._remove_segment(segment)
        self._dirty.set()

    async def dead_letters(self, wanted: Callable[[letters.Brief], bool], limit: int) -> list[Letter]:
        """The newest dead letters that match, the newest first."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, _read_letters, self._store, wanted, limit)

    async def count_lane(self, name: str, lane: str) -> int:
        """How many records of a lane are queued; reads the segments that may hold them."""
        queue = self.queues[name]
        count = 0
        for segment in queue.holding(lane):
            try:
                entries = await self.run_in_thread(_read_segment, segment.key)
            except SpoolDamaged:
                continue  # the window's loader books it when it comes to it
            count += sum(1 for entry in entries if entry.lane == lane and not segment.has_ended(entry.index))
        return count

    async def run_in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call `function(store, *arguments)` in the storage thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, self._store, *arguments)

    def file_bytes(self) -> int:
        """What the queues hold on disk, all destinations together."""
        return sum(queue.stored_bytes for queue in self.queues.values())


def _ended_key(segment_key: int) -> int:
    return segment_key - key_of(Table.SEGMENT, 0) + key_of(Table.ENDED, 0)


def _read_segment(store: Store, key: int) -> list[Entry]:
    value = store.read(key)
    if value is None:
        raise SpoolDamaged(f"segment {key:#x}: its row is gone")
    return segments.decode(key, value)[1]


def _keep_copy(store: Store, folder: Folder, key: int) -> None:
    try:
        value = store.read(key) or b""
        (folder.quarantine("segments") / f"{key:x}").write_bytes(value)
    except (SpoolDamaged, OSError) as error:
        log.error("can't keep a copy of segment %#x: %s", key, error, extra={"action": "quarantine"})


def _read_letters(store: Store, wanted: Callable[[letters.Brief], bool], limit: int) -> list[Letter]:
    keys = [key for key, tag, _ in store.tags(Table.DEAD) if wanted(letters.decode_brief(tag))]
    found = []
    for key in reversed(keys[-limit:] if limit else keys):
        value = store.read(key)
        if value is not None:
            found.append(letters.decode(value))
    return found
