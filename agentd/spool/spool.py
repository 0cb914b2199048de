"""The spool: the disk is the truth, memory holds a window of it.

Intake appends, delivery seals, settles, splits and buries; each call returns a future that is done when the commit that
holds it is on disk. Deciding is here and in the ledger's parts, and never awaits; writing is the committer's, reading the
loader's, rewriting the compactor's. Every method belongs to the event loop; the store belongs to the one storage thread.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import Concatenate, ParamSpec, TypeVar

from msgspec.structs import replace

from agentd.crashpoints import Point, reached
from agentd.identity import text_of
from agentd.outcomes import RECORD, Cause, Learned, State
from agentd.queued import Death, Entry, Ref, Seal
from agentd.records import EVIDENCE, INTRODUCES, RUN_ENDS, LossClass
from agentd.spool import letters
from agentd.spool.booking import MOVED
from agentd.spool.checked import pack
from agentd.spool.committer import RETRY_S, Committer
from agentd.spool.compact import Compactor
from agentd.spool.directory import Segment
from agentd.spool.ledger import Ledger, Limits
from agentd.spool.letters import Letter
from agentd.spool.loader import Loader
from agentd.spool.needed import Needed
from agentd.spool.room import Room
from agentd.spool.seen import SeenRows
from agentd.spool.storage import Storage
from agentd.spool.store import DiskFull, Put, Rows, key_of
from agentd.spool.tables import Meta, Table
from agentd.spool.writer import Noted, Returned
from agentd.vitals import Vital

log = logging.getLogger("agentd.spool")

P = ParamSpec("P")
T = TypeVar("T")


class Spool:
    """An open spool; `recovery.open_spool` makes it."""

    def __init__(self, ledger: Ledger, storage: Storage, *, retry_s: float = RETRY_S) -> None:
        """`retry_s` is how long to wait after a commit or a read that failed."""
        self.ledger = ledger
        self.folder = ledger.folder
        self.books = ledger.books
        self.refs = ledger.refs
        self.seals = ledger.seals
        self.journal = ledger.journal
        self.queues = ledger.queues
        self._storage = storage
        self._committer = Committer(ledger, self._storage, pushed=self._pushed, room=self.tell_room, retry_s=retry_s)
        self.timings = self._committer.timings
        self._loader = Loader(ledger, self._storage, self._committer, retry_s)
        self._compactor = Compactor(ledger, self._storage, self._committer, self._loader.fill)
        self._rooms = Room(ledger, self._committer, self._loader.tell, self.tell_room)
        self._room: set[asyncio.Future[None]] = set()
        self._named: set[asyncio.Future[None]] = set()
        self.hide: Callable[[str], str] = str  # takes secrets out of what a platform has said
        self._moved: dict[str, dict[int, int]] = {}  # number → the first one, of records that took a later place

    # -- what others may see -----------------------------------------------------------------------------------------

    @property
    def meta(self) -> Meta:
        return self.ledger.meta

    @property
    def limits(self) -> Limits:
        return self.ledger.limits

    @property
    def dead_bytes(self) -> int:
        return self.ledger.dead_bytes

    @property
    def dead_count(self) -> int:
        return self.ledger.dead_count

    @property
    def quarantined_rows(self) -> int:
        return self.ledger.quarantined_rows

    @property
    def disk_full(self) -> bool:
        return self.ledger.disk_full

    @property
    def last_commit_s(self) -> float:
        return self.timings.last_commit_s

    def stuck(self) -> str | None:
        """Why commits don't go through, None if they do."""
        return self._committer.stuck()

    def vital(self) -> Vital:
        """Whether the storage thread gets on with what it was asked for, and with what waits for a commit."""
        return self._storage.vital(more=self._committer.has_work())

    def committing(self, name: str) -> int:
        """Records that the commit under way holds: in the books already, in the queue when it is done."""
        return self._committer.committing(name)

    def file_bytes(self) -> int:
        """What the queues hold on disk, all destinations together."""
        return sum(queue.stored_bytes for queue in self.queues.values())

    # -- life --------------------------------------------------------------------------------------------------------

    def start(self) -> asyncio.Task[None]:
        """Begin to commit. Call on the event loop, once; if the task dies, nothing is stored any more."""
        self.check_disk()
        return self._committer.start()

    async def close(self) -> None:
        """Commit what is left, then close the store and give the folder back."""
        await self._loader.close()
        await self._committer.close()
        reached(Point.SHUTDOWN_COMMITTED)
        await self._storage.close()
        self.folder.close()

    def listen(self, destination: str, listener: Callable[[set[str]], None]) -> None:
        """`listener` hears which lanes have new records in the window."""
        self._loader.listen(destination, listener)

    def tick(self, age_us: Callable[[int], int], keep_us: int) -> None:
        """Housekeeping, about once a second: counts to disk, references that nobody needs any more, free space, rewriting.

        A reference is needed while its lane has records, and beside that as long as something waits that was admitted when it
        was kept: a run that names it as its parent stands in another lane.
        """
        if self.refs.write_counts():
            self._committer.wake()
        keep_us += max((queue.oldest_us(age_us) or 0 for queue in self.queues.values()), default=0)
        needed = Needed(self.ledger.dead_lanes, self.queues)
        if self.refs.prune(lambda touched_us: age_us(touched_us) > keep_us, needed):
            self._committer.wake()
        self.drop_rows(Table.JOURNAL, self.journal.expired(age_us))
        self.check_disk()
        self._compactor.tick()

    def check_disk(self) -> None:
        """Look at the free space; call it now and then. Takes records again as soon as there is room."""
        self._rooms.check_disk()

    async def vacuum(self) -> bool:
        """Give a little free room back to the file system; True while there is more."""
        try:
            return await self._storage.run(_vacuum, self._rooms.kept_bytes)
        except (DiskFull, sqlite3.Error) as error:  # moving pages takes room in the log
            log.warning("no room is given back to the file system: %s", error, extra={"action": "vacuum_failed"})
            return False
        finally:
            if self.disk_full:
                self._committer.measure()

    def barrier(self) -> asyncio.Future[None]:
        """Done when everything that was handed over before is on disk."""
        return self._committer.waiter()

    # -- room --------------------------------------------------------------------------------------------------------

    def room_for(self, destination: str, size: int, loss: LossClass, uid: int | None = None) -> bool:
        """Whether `size` more bytes, the `uid`'s, fit; sheds older debug, then info events where that helps (promise 6)."""
        return self._rooms.room_for(destination, size, loss, uid)

    def fits(self, destination: str, size: int) -> bool:
        """Whether `size` more bytes fit as it is: nothing is shed for them."""
        return self._rooms.fits(destination, size)

    async def wait_for_room(self) -> None:
        """Return when something has left a queue since: whoever was refused may try again."""
        await _told(self._room)

    def tell_room(self) -> None:
        """There may be more room than before."""
        _tell(self._room)

    async def wait_for_names(self) -> None:
        """Return when a reference has become known or dead since."""
        await _told(self._named)

    def tell_named(self) -> None:
        """A reference has become known or dead."""
        _tell(self._named)

    # -- intake's side -----------------------------------------------------------------------------------------------

    def number(self, destination: str) -> int:
        """The next number of a destination's queue; never given twice, also after a restart."""
        following = self.meta.next_number.get(destination, 1)
        self.meta.next_number[destination] = following + 1
        return following

    def append(
        self,
        copies: dict[str, list[Entry]],
        *,
        puts: Sequence[Put] = (),
        introduced: Sequence[Ref] = (),
        notes: Sequence[Noted] = (),
        awaited: bool = False,
    ) -> asyncio.Future[None]:
        """Records on their way to disk; done after fsync, SpoolFull if the disk had no room (nothing was kept then).

        Without records only what is `awaited` is refused so; other rows wait for room.
        """
        return self._committer.append(copies, puts, introduced, notes, awaited=awaited)

    def put(self, put: Put, notes: Sequence[Noted]) -> asyncio.Future[None]:
        """A row that is not given up while the daemon runs, with its entries in the journal."""
        for noted in notes:
            self.note(noted)
        self._committer.put(put)
        return self._committer.waiter()

    def note(self, noted: Noted) -> None:
        """An entry for the journal, with the next commit."""
        self.journal.note(noted.entry, noted.state, noted.destination, self.ledger.now_us(), **noted.facts)
        self._committer.wake()

    def take_row(self, table: Table) -> int:
        """A row number of a table that no row of it has."""
        return self.ledger.take_row(table)

    def drop_rows(self, table: Table, rows: Iterable[int]) -> None:
        """Delete rows of one of intake's tables with the next commit."""
        self.drop_keys(key_of(table, row) for row in rows)

    def drop_keys(self, keys: Iterable[int]) -> None:
        """Delete rows of whatever table with the next commit."""
        for key in keys:
            self._committer.delete(key)
            self._committer.wake()

    def seen(self, value: bytes, count: int) -> Put:
        """A row of one user's ids for the dedupe window; lets the oldest rows go that the window has passed."""
        row = self.take_row(Table.SEEN)
        tag = SeenRows.tag(value, count)
        self.drop_rows(Table.SEEN, self.ledger.seen.add(row, tag, self.limits.seen_ids))
        return Put(key_of(Table.SEEN, row), pack(value), tag)

    # -- what runs lost ----------------------------------------------------------------------------------------------

    def may_lose(self, name: str, lane: str) -> bool:
        """Whether what a run lost is being counted; the lane's listener hears when that is done."""
        return self._committer.may_lose(name, lane)

    def ending(self, name: str) -> set[str]:
        """The lanes whose run's end is on its way to the disk."""
        return self._committer.ending(name)

    def has_disk_for(self, size: int) -> bool:
        """Whether the disk has room for so much, whatever the quotas say."""
        return self._rooms.has_disk_for(size)

    def wake(self) -> None:
        """Something of the ledger has changed: commit it."""
        self._committer.wake()

    # -- delivery's side ---------------------------------------------------------------------------------------------

    def seal(self, seal: Seal) -> asyncio.Future[None]:
        """Put a batch's bounds, key and digest on disk, before its first try."""
        self._committer.seal([seal])
        return self._committer.waiter()

    def settle(
        self, seal: Seal, entries: Sequence[Entry], learned: Iterable[Learned] = (), tries: int = 1
    ) -> asyncio.Future[None]:
        """The platform has the batch, after `tries` requests."""
        name, now = seal.destination, self.ledger.now_us()
        platform_ids: dict[int, str] = {}  # introducer's number → the platform's name for what it introduced
        called: dict[str, str] = {}  # record's id → the platform's
        for fact in learned:
            if fact.kind == RECORD:
                called[fact.local_id] = fact.platform_id
                continue
            ref = self.refs.learn(name, fact.kind, fact.local_id, fact.platform_id, now)
            if ref is not None:
                platform_ids[ref.number] = fact.platform_id
                self.tell_named()
        ended = self._end(name, entries)
        self.refs.count(name, seal.lane, len(ended), now)
        for entry in ended:
            self.books.end(name, entry.kind, State.DELIVERED, "")
            self._end_of_run(name, entry)
            if entry.kind in EVIDENCE:
                platform_id = platform_ids.get(entry.number) or (called and called.get(text_of(entry.record_id))) or ""
                self.journal.note(entry, State.DELIVERED, name, now, key=seal.key, platform_id=platform_id, tries=tries)
        self._committer.retire(seal)
        return self._committer.waiter()

    def bury(self, seal: Seal | None, destination: str, entries: Sequence[Entry], death: Death) -> asyncio.Future[None]:
        """Refused for good: dead letters, and the journal says so."""
        now, death = self.ledger.now_us(), letters.without_secrets(death, self.hide)
        for entry in self._end(destination, entries):
            letter = letters.letter_of(destination, entry, death, now)
            self.keep_letter(letter, *letters.encode(letter))
            self.books.end(destination, entry.kind, State.DEAD, death.cause)
            self.journal.note(
                entry, State.DEAD, destination, now, cause=str(death.cause), key=death.key, tries=death.tries
            )
            self._end_of_run(destination, entry)
            if entry.kind in INTRODUCES:
                self.refs.bury(destination, entry.number)
                self.tell_named()
        if seal is not None:
            self._committer.retire(seal)
        return self._committer.waiter()

    def keep_letter(self, letter: Letter, value: bytes, tag: bytes) -> None:
        """A dead letter's row, with the next commit; the caller has seen that there is room."""
        self._committer.put(Put(key_of(Table.DEAD, self.take_row(Table.DEAD)), value, tag))
        self._committer.wake()
        self.ledger.add_letter(letters.brief_of(letter, len(value)), len(value))

    def give_back(
        self,
        name: str,
        entries: Sequence[Entry],
        *,
        returned: Sequence[Returned],
        introduced: Sequence[Ref] = (),
        by: int = -1,
    ) -> asyncio.Future[None]:
        """Dead letters as records of their queue again, under the numbers that they have now. SpoolFull: they stay dead."""
        return self._committer.give_back(name, entries, returned=returned, introduced=introduced, by=by)

    def move_back(self, name: str, entries: Sequence[Entry]) -> asyncio.Future[None]:
        """Queued records that no seal covers take the end of the queue, in this order, in one commit. They keep their ids."""
        moved = self._moved.setdefault(name, {})
        firsts = {entry.number: moved.get(entry.number, entry.number) for entry in entries}
        ended = self._end(name, entries)
        again = [replace(entry, number=self.number(name), segment=0, index=0) for entry in ended]
        for old, new in zip(ended, again, strict=True):
            moved[new.number] = firsts[old.number]
            if new.kind in EVIDENCE:
                self.journal.note(new, State.QUEUED, name, self.ledger.now_us(), cause=MOVED, was_number=old.number)
        return self._committer.give_back(name, again)

    def discard_stale(self, destination: str, entries: Sequence[Entry]) -> asyncio.Future[None]:
        """Replaced by a newer record of its kind: a heartbeat of which only the newest counts."""
        now = self.ledger.now_us()
        for entry in self._end(destination, entries):
            self.books.end(destination, entry.kind, State.SHED, Cause.STALE)
            self.journal.note(entry, State.SHED, destination, now, cause=str(Cause.STALE))
        return self._committer.waiter()

    def split(self, seal: Seal, parts: Sequence[Seal]) -> asyncio.Future[None]:
        """The whole was refused: its parts are sealed in the transaction that retires it."""
        self._committer.retire(seal)
        self._committer.seal(parts)
        return self._committer.waiter()

    def dead_room(self, size: int) -> bool:
        """Whether the dead letters' own room takes `size` more bytes."""
        return self.dead_bytes + size <= self.limits.dead_bytes

    def take_out(self, name: str, segments: Sequence[Segment], entries: Sequence[Entry]) -> list[Entry]:
        """Records leave their queue unsent, those of whole segments and single ones; the caller books them, with this very commit.

        Returns those of `entries` that were in it.
        """
        queue = self.queues[name]
        queue.take_out(segments)
        for segment in segments:
            self._committer.delete_segment(segment.key)
        ended = self._end(name, entries)
        self._committer.wake()
        self._loader.tell(name, queue.released())
        return ended

    def retire(self, seal: Seal) -> None:
        """Its records have ended without it."""
        self._committer.retire(seal)

    def _end_of_run(self, destination: str, entry: Entry) -> None:
        if entry.kind in RUN_ENDS:
            self.refs.close(destination, "run", entry.lane.partition(":")[2])

    def _end(self, destination: str, entries: Sequence[Entry]) -> list[Entry]:
        """Take records out of the queue. Returns those that were in it: nothing is booked twice."""
        ended = self.queues[destination].end(entries)
        self._committer.end(ended)
        if moved := self._moved.get(destination):
            for entry in ended.entries:
                moved.pop(entry.number, None)
        return ended.entries

    def lowest(self, destination: str) -> int | None:
        """A number that no live record is below, None for an empty queue. One that was moved counts as where it stood first."""
        queue = self.queues[destination]
        if queue.live + self.committing(destination) == 0:
            self._moved.pop(destination, None)
        lowest, moved = queue.lowest(), self._moved.get(destination, {})
        if lowest is None:
            return min(moved.values(), default=None)
        for number in [number for number in moved if number < lowest]:
            del moved[number]  # it went with its segment
        return min([lowest, *moved.values()])

    # -- reading -----------------------------------------------------------------------------------------------------

    def _pushed(self, name: str, lanes: set[str]) -> None:
        self._loader.tell(name, lanes)
        if self.queues[name].wants_loading():  # the window was full: what may leave it makes room for what came
            self._loader.fill(name)

    def fill(self, name: str) -> None:
        """See to it that the window of a destination is read from disk as far as there is room."""
        self._loader.fill(name)

    async def count_lane(self, name: str, lane: str) -> int:
        """How many records of a lane are queued; reads the segments that may hold them."""
        return await self._loader.count_lane(name, lane)

    async def run_in_thread(self, job: Callable[Concatenate[Rows, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `job(store, *args)` in the storage thread."""
        return await self._storage.run(job, *args, **kwargs)


async def _told(waiting: set[asyncio.Future[None]]) -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiting.add(future)
    try:
        await future
    finally:
        waiting.discard(future)


def _tell(waiting: set[asyncio.Future[None]]) -> None:
    for future in waiting:
        if not future.done():
            future.set_result(None)


def _vacuum(store: Rows, kept_bytes: int) -> bool:
    return (not kept_bytes or store.free_bytes() > kept_bytes) and store.vacuum_step()
