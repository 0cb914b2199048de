"""Opening a spool: what is whole is taken over, what is damaged is set aside under `quarantine/`, loudly.

Runs in the storage thread before anything else does. A start reads directories, not bodies, so its time does not grow
with the bytes that are queued. It changes nothing in the store but for rows that agentd can't have written: what has to go
goes with the first commit, so that a start also works on a full disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

from agentd.crashpoints import Point, reached
from agentd.errors import ConfigError, SpoolDamaged, StateError
from agentd.outcomes import State
from agentd.spool import gaterows, letters, mending, segments
from agentd.spool.checked import unpack
from agentd.spool.committer import RETRY_S
from agentd.spool.directory import Segment
from agentd.spool.folder import Folder, sync_names
from agentd.spool.gaterows import Stored
from agentd.spool.journal import Journal
from agentd.spool.ledger import Ledger, Limits
from agentd.spool.letters import Brief
from agentd.spool.opening import open_store
from agentd.spool.queue import Queue
from agentd.spool.rebuild import Rebuilt
from agentd.spool.spool import Spool
from agentd.spool.storage import Storage
from agentd.spool.store import DiskFull, Put, Rows, Store, key_of, row_of
from agentd.spool.tables import FORMAT, Meta, Table, decode_meta, ended_key
from agentd.units import rfc3339
from agentd.vitals import Pace

log = logging.getLogger("agentd.spool")

Sync: TypeAlias = Literal["full", "normal"]
Opener: TypeAlias = Callable[[Path, Sync], Rows]


async def open_spool(
    directory: Path,
    *,
    sync: Sync,
    limits: Limits,
    identities: Mapping[str, str],
    journal: Journal,
    now_us: Callable[[], int],
    opener: Opener | None = None,
    thread: Executor | None = None,
    retry_s: float = RETRY_S,
    pace: Pace | None = None,
) -> Spool:
    """Open, check and recover; the result still has to be started. Raises StateError, AlreadyRunning, ConfigError.

    `identities` says what each destination's queue, references and seals belong to: its platform, base_url and agents.
    `thread` runs what touches the store, one job at a time; `pace` is stepped by whatever takes long there.
    """
    folder = Folder(directory)
    folder.open()
    reached(Point.RECOVERY_LOCKED)
    thread = thread or ThreadPoolExecutor(1, thread_name_prefix="agentd-storage")
    ledger = Ledger(folder, limits, journal, now_us)
    try:
        loop = asyncio.get_running_loop()
        make = opener or partial(Store, pace=pace)
        stamp = rfc3339(now_us() / 1e6).replace(":", "")
        opens = partial(open_store, folder, lambda at: make(at, sync), synced=sync == "full", stamp=stamp, pace=pace)
        job = partial(_open, ledger, identities, opens)
        store, recovery = await loop.run_in_executor(thread, job)
    except BaseException:
        thread.shutdown(wait=True)
        folder.close()
        raise
    spool = Spool(ledger, Storage(store, thread, pace), retry_s=retry_s)
    for put in recovery.repaired:
        _ = spool.put(put, ())  # with the first commit; nobody waits
    spool.drop_keys(recovery.gone)
    if folder.is_unmended:
        spool.barrier().add_done_callback(lambda _: folder.mended())
    return spool


def _open(
    ledger: Ledger, identities: Mapping[str, str], opens: Callable[[], tuple[Rows, Rebuilt | None]]
) -> tuple[Rows, Survey]:
    store, rebuilt = opens()
    try:
        sync_names(ledger.folder.path)
        reached(Point.RECOVERY_OPENED)
        recovery = Survey(ledger, store, rebuilt=rebuilt)
        recovery.run(identities)
        reached(Point.RECOVERY_SURVEYED)
    except BaseException:
        store.close()
        raise
    return store, recovery


class Survey:
    """One pass over the tables. `gone` gathers the keys of rows that nothing needs any more, `repaired` rows with a new tag."""

    def __init__(self, ledger: Ledger, store: Rows, *, sets_aside: bool = True, rebuilt: Rebuilt | None = None) -> None:
        """Without `sets_aside` nothing is changed on disk: what is damaged is counted and logged, and left where it is.

        `rebuilt` is what was lost when the store was made anew from a damaged one.
        """
        self.ledger = ledger
        self.store = store
        self._sets_aside = sets_aside
        self._rebuilt = rebuilt or Rebuilt()
        self._missing = False  # records
        self._dead: Counter[tuple[str, str, str]] = Counter()  # letters by destination, kind and cause
        lost = self._rebuilt
        ledger.quarantined_rows += (
            len(lost.lost) + lost.foreign + lost.frames
        )  # a frame is a page of rows, nobody knows which
        self.gone: list[int] = []
        self.repaired: list[Put] = []
        self.changed: set[str] = set()  # destinations that are others now than those that their rows were written for

    def run(self, identities: Mapping[str, str]) -> None:
        meta = self._read_meta()
        self._foreign_rows()
        self._meta(meta or Meta(), identities)
        for name in self.ledger.meta.identities:
            self._queue(name)
        self._segments()
        self._seals()
        self._letters()
        self._journal()
        self._intake()
        self._losses()
        self._gates()
        self._refs()
        if meta is None:
            self._rebuild()
        elif self.ledger.quarantined_rows:
            mending.book_lost_letters(self.ledger, self._dead)
        self._balance()
        if self.ledger.quarantined_rows or self._missing or self._rebuilt.may_lack(Table.SEGMENT):
            mending.bury_lost_introducers(self.ledger, self.store)

    # -- the one row that says how to read the others ----------------------------------------------------------------

    def _read_meta(self) -> Meta | None:
        """None where there is none that can be read. A spool of a newer agentd is whole: it is refused and not touched."""
        key = key_of(Table.META, 0)
        try:
            value = self.store.read(key)
            if value is None:
                return None
            return decode_meta(value)
        except SpoolDamaged as error:
            log.error("meta row: %s: rebuilt from the others", error, extra={"action": "quarantine"})
            self._keep_copy("meta", key)
            return None

    def _meta(self, meta: Meta, identities: Mapping[str, str]) -> None:
        ledger = self.ledger
        ledger.meta = meta
        meta.format = FORMAT  # what this daemon writes from now on
        ledger.books.restore(meta.books)
        ledger.journal.next_number = meta.journal_number
        ledger.journal.head = meta.journal_head
        self.changed = {
            name for name, identity in identities.items() if meta.identities.get(name, identity) != identity
        }
        for name in self.changed:
            if queued := ledger.books.queued(name):
                raise ConfigError(
                    f"[destinations.{name}] platform, base_url or agents changed while {queued} records wait for it (they "
                    f"were taken for {meta.identities[name]}): put the old values back and let it drain, give the new one "
                    f"another name, or take them out for good with 'agentd queue drop {name} --reason TEXT'"
                )
        meta.identities = {**meta.identities, **identities}

    def _rebuild(self) -> None:
        """Without the meta row: no number may be given twice, and what is on disk is all that is known to have been admitted."""
        ledger = self.ledger
        following = ledger.meta.next_number
        for seal in ledger.seals.all():
            following[seal.destination] = max(following.get(seal.destination, 1), seal.last + 1)
        for ref in ledger.refs:
            following[ref.destination] = max(following.get(ref.destination, 1), ref.number + 1)
        for (name, kind, cause), count in self._dead.items():
            if kind:
                ledger.books.admit(name, kind, count)
                ledger.books.end(name, kind, State.DEAD, cause, count)
        mending.end_of_journal(ledger, self.store)

    # -- rows that are no rows of ours -------------------------------------------------------------------------------

    def _foreign_rows(self) -> None:
        rowids = self.store.foreign()
        if not rowids:
            return
        if not self._sets_aside:
            self.ledger.quarantined_rows += len(rowids)
            log.error("%d rows that agentd did not write", len(rowids), extra={"action": "quarantine"})
            return
        self.ledger.quarantined_rows += len(rowids)
        try:
            for rowid in rowids:
                self.ledger.folder.keep("foreign-rows", str(rowid), self.store.copy_rowid(rowid))
            self.store.delete_rowids(rowids)
        except (OSError, StateError, DiskFull, sqlite3.Error) as error:
            log.error(
                "%d foreign rows can't be set aside: %s", len(rowids), error, extra={"action": "quarantine"}
            )  # nothing reads them where they are
            return
        log.error(
            "%d rows that agentd did not write were set aside in %s", len(rowids),
            self.ledger.folder.path / "quarantine" / "foreign-rows", extra={"action": "quarantine"},
        )  # fmt: skip

    def _set_aside(self, folder: str, key: int, error: Exception) -> None:
        """A row of which nothing can be read; how many records it held shows when the books are balanced."""
        self.ledger.quarantined_rows += 1
        where = "set aside" if self._sets_aside else "left where it is"
        log.error("%s: %s", error, where, extra={"action": "quarantine"})
        if self._keep_copy(folder, key):
            self.gone.append(key)

    def _keep_copy(self, folder: str, key: int) -> bool:
        if not self._sets_aside:
            return False
        value = b""
        with contextlib.suppress(SpoolDamaged):
            value = self.store.read(key) or b""
        try:
            self.ledger.folder.keep(folder, f"{key:x}", value)
        except (OSError, StateError) as error:
            log.error("can't keep a copy of row %#x: %s", key, error, extra={"action": "quarantine"})
            return False
        return True

    # -- the queues --------------------------------------------------------------------------------------------------

    def _queue(self, name: str) -> Queue:
        queue = self.ledger.queues.get(name)
        if queue is None:
            limits = self.ledger.limits
            share = max(1, len(limits.quotas))
            queue = Queue(name, limits.window_bytes // share, limits.directory_bytes // share)
            self.ledger.queues[name] = queue
        return queue

    def _segments(self) -> None:
        found: dict[str, list[Segment]] = {}
        bitmaps = dict(self.store.rows(Table.ENDED))
        meta = self.ledger.meta
        for key, tag, _size in self.store.tags(Table.SEGMENT):
            meta.next_segment = max(meta.next_segment, row_of(key) + 1)
            try:
                name, segment = self._segment(key, tag)
            except (SpoolDamaged, ValueError) as error:
                self._set_aside("segments", key, error)
                continue
            self._ended(segment, bitmaps.pop(ended_key(key), None))
            following = meta.next_number.get(name, 1)
            meta.next_number[name] = max(following, segment.last + 1)
            found.setdefault(name, []).append(segment)
        for name, rows in found.items():
            self._queue(name).recover(rows)
        self.gone += bitmaps

    def _segment(self, key: int, tag: bytes | None) -> tuple[str, Segment]:
        """From its directory, or from its records where the directory is damaged."""
        try:
            directory = segments.decode_directory(key, tag)
        except SpoolDamaged as error:
            value = self.store.read(key) or b""
            encoded = segments.encode(*segments.decode(key, value))
            log.error("%s: made anew from the records", error, extra={"action": "repaired"})
            self.repaired.append(Put(key, value, encoded.tag))
            directory = encoded.directory
        return directory.destination, Segment(key, directory)

    def _ended(self, segment: Segment, bitmap: bytes | None) -> None:
        if bitmap is None:
            return
        try:
            segment.restore_bitmap(bitmap)
        except SpoolDamaged as error:
            # rather twice than never: what it says of the records is lost, the records are not
            log.error(
                "segment %#x: which of its records have ended is damaged (%s): all are sent again", segment.key, error,
                extra={"action": "quarantine"},
            )  # fmt: skip
            self._keep_copy("endings", ended_key(segment.key))
            self.gone.append(ended_key(segment.key))

    def _balance(self) -> None:
        """Records that the books hold and the disk does not, or the other way round: damage that nothing else can count."""
        for name, queue in self.ledger.queues.items():
            live: Counter[str] = Counter()
            for segment in queue.segments.values():
                live.update(segment.kinds)
            booked = self.ledger.books.queued_kinds(name)
            for kind in sorted({*live, *booked}):
                missing = booked.get(kind, 0) - live[kind]
                if missing > 0:
                    self._missing = True
                    mending.book_missing(self.ledger, name, kind, missing, self._rebuilt.numbers.get(name, ()))
                elif missing < 0:
                    log.error(
                        "%s: %d records (%s) more on disk than in the books: booked as admitted", name, -missing, kind,
                        extra={"action": "recovered"},
                    )  # fmt: skip
                    self.ledger.books.admit(name, kind, -missing)

    # -- the other tables --------------------------------------------------------------------------------------------

    def _seals(self) -> None:
        seals = self.ledger.seals
        rows = [(row_of(key), value) for key, value in self.store.rows(Table.SEAL)]
        for row, _ in rows:
            self.ledger.see_row(Table.SEAL, row)
        damaged = seals.restore(rows)
        for row in damaged:
            error = SpoolDamaged(f"seals {row}: damaged, their batches may be regrouped")
            self._set_aside("seals", key_of(Table.SEAL, row), error)
        for seal in [seal for seal in seals.all() if seal.destination in self.changed]:
            seals.retire(seal)  # nothing waits there: its records ended, the row lived on for its neighbours
        self._forget(Table.SEAL, seals.empty_rows([row for row, _ in rows if row not in damaged]))

    def _letters(self) -> None:
        for key, tag, size in self.store.tags(Table.DEAD):
            self.ledger.see_row(Table.DEAD, row_of(key))
            try:
                brief = self._brief(key, tag, size)
            except SpoolDamaged as error:
                self._set_aside("dead-letters", key, SpoolDamaged(f"dead letter {row_of(key)}: {error}"))
            else:
                self.ledger.add_letter(brief, size)
                if brief.destination:
                    mending.see_number(self.ledger, brief.destination, brief.number)
                self._dead[brief.destination, brief.kind, str(brief.cause)] += 1

    def _brief(self, key: int, tag: bytes | None, size: int) -> Brief:
        try:
            return letters.decode_brief(tag)
        except SpoolDamaged as error:
            value = self.store.read(key) or b""
            letter = letters.decode(value)
            log.error("dead letter %#x: its tag: %s: made anew from the row", key, error, extra={"action": "repaired"})
            self.repaired.append(Put(key, value, letters.encode(letter)[1]))
            return letters.brief_of(letter, size)

    def _journal(self) -> None:
        rows, sizes, stamps = array("Q"), array("Q"), array("Q")
        for key, tag, size in self.store.tags(Table.JOURNAL):
            rows.append(row_of(key))
            sizes.append(size)
            stamps.append(int.from_bytes((tag or b"")[:8], "little"))
        for row, size, newest_us in zip(rows, sizes, mending.in_order(stamps, self.ledger.now_us()), strict=True):
            self.ledger.journal.restore(row, size, newest_us)

    def _intake(self) -> None:
        ledger = self.ledger
        for table in (Table.STREAM, Table.OWNER):
            for key, _, _ in self.store.tags(table):
                ledger.see_row(table, row_of(key))
        damaged = self._damaged(Table.SEEN, "seen-ids", "some repeats may be stored twice")
        self._damaged(Table.STREAM, "streams", "its client's repeats may be stored twice")
        self._damaged(Table.OWNER, "owners", "its run is not watched any more")
        for key, tag, size in self.store.tags(Table.SEEN):
            ledger.see_row(Table.SEEN, row_of(key))
            if key not in damaged:
                ledger.seen.add(row_of(key), tag or b"", 2**63, largest=size)

    def _losses(self) -> None:
        losses = self.ledger.losses
        for key, value in self.store.rows(Table.LOST):
            self.ledger.see_row(Table.LOST, row_of(key))
            try:
                losses.restore(row_of(key), value)
            except SpoolDamaged as error:
                self._set_aside("lost", key, SpoolDamaged(f"{error}: some runs are told twice of it, or never"))
        for name in losses.destinations():  # of one that nobody knows any more the meta row was lost
            if name in self.changed or name not in self.ledger.queues:
                losses.forget_all(name)

    def _damaged(self, table: Table, folder: str, cost: str) -> set[int]:
        """Set those rows of a table aside that fail their checksum."""
        found = set()
        for key, value in self.store.rows(table):
            try:
                unpack(value)
            except SpoolDamaged as error:
                found.add(key)
                self._set_aside(folder, key, SpoolDamaged(f"{table.name.lower()} {row_of(key)}: {error}: {cost}"))
        return found

    def _gates(self) -> None:
        for key, tag, size in self.store.tags(Table.GATE):
            row = row_of(key)
            self.ledger.see_row(Table.GATE, row)
            try:
                self.ledger.gates.append(self._gate(key, row, tag, size))
            except SpoolDamaged as error:
                self._set_aside("gates", key, error)

    def _gate(self, key: int, row: int, tag: bytes | None, size: int) -> Stored:
        """From its tag, or from the whole where the tag is damaged; the whole of one that was under way has to be readable."""
        try:
            brief = gaterows.decode_brief(row, tag)
        except SpoolDamaged as error:
            gate = gaterows.decode(row, self.store.read(key))
            log.error("%s: made anew from the row", error, extra={"action": "repaired"})
            self.repaired.append(gaterows.encode(gate))
            return Stored(row, gaterows.brief_of(gate), size)
        if brief.step is not gaterows.Step.FINAL:
            try:
                gaterows.decode(row, self.store.read(key))
            except SpoolDamaged as error:
                self.ledger.quarantined_rows += 1
                log.error("%s: its key is kept, what became of it is unknown", error, extra={"action": "quarantine"})
                self._keep_copy("gates", key)
                return Stored(row, brief, size, damaged=True)
        return Stored(row, brief, size)

    def _refs(self) -> None:
        refs = self.ledger.refs
        damaged = refs.restore((row_of(key), value) for key, value in self.store.rows(Table.REF))
        for row in damaged:
            self._set_aside("references", key_of(Table.REF, row), SpoolDamaged(f"reference {row}: damaged"))
        if damaged or self._rebuilt.may_lack(Table.REF):
            mending.restore_references(self.ledger, self.store)
        for name in self.changed:
            refs.forget(name)

    def _forget(self, table: Table, rows: Iterable[int]) -> None:
        self.gone += [key_of(table, row) for row in rows]
