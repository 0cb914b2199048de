"""Opening a spool: what is whole is taken over, what is damaged is set aside under `quarantine/`, loudly.

Runs in the storage thread before anything else does. A start reads directories, not bodies, so its time does not grow
with the bytes that are queued.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import msgspec

from agentd.errors import ConfigError, SpoolDamaged, StateError
from agentd.outcomes import Cause, State
from agentd.spool import letters, segments
from agentd.spool.folder import Folder
from agentd.spool.journal import Journal
from agentd.spool.queue import Queue, Segment
from agentd.spool.spool import Limits, Spool
from agentd.spool.store import DiskFull, Store, key_of, row_of
from agentd.spool.tables import FORMAT, Meta, Table, decode_meta
from agentd.units import rfc3339

log = logging.getLogger("agentd.spool")


class Identities(msgspec.Struct, frozen=True):
    """What each destination's queue, references and seals belong to: name → platform, base_url and agents as text."""

    of: Mapping[str, str]


async def open_spool(
    directory: Path,
    *,
    sync: Literal["full", "normal"],
    limits: Limits,
    identities: Mapping[str, str],
    journal: Journal,
    now_us: Callable[[], int],
) -> Spool:
    """Open, check and recover; the result still has to be started. Raises StateError, AlreadyRunning, ConfigError."""
    folder = Folder(directory)
    folder.open()
    thread = ThreadPoolExecutor(1, thread_name_prefix="agentd-storage")
    loop = asyncio.get_running_loop()
    try:
        store = await loop.run_in_executor(thread, _open_store, folder, sync, now_us())
        spool = Spool(folder=folder, store=store, thread=thread, limits=limits, journal=journal, now_us=now_us)
        await loop.run_in_executor(thread, _Recovery(spool, store).run, identities)
    except BaseException:
        thread.shutdown(wait=True)
        folder.close()
        raise
    return spool


def _open_store(folder: Folder, sync: Literal["full", "normal"], now_us: int) -> Store:
    for attempt in range(3):
        try:
            store = Store(folder.spool, sync)
            _check_format(store)
        except SpoolDamaged as error:
            place = folder.set_spool_aside(rfc3339(now_us / 1e6).replace(":", ""))
            log.error(
                "spool damaged: %s; set aside in %s, beginning a new one", error, place, extra={"action": "quarantine"}
            )
        except (DiskFull, sqlite3.OperationalError) as error:
            if attempt or not folder.release_ballast():
                raise StateError(f"{folder.spool}: {error}") from error
            log.error("disk full at start (%s): reserve given back", error, extra={"action": "disk_full"})
        else:
            return store
    raise StateError(f"{folder.spool}: can't be opened")


def _check_format(store: Store) -> None:
    """A spool of a newer agentd is refused, never set aside: it is whole."""
    value = store.read(key_of(Table.META, 0))
    if value is None:
        return
    head = msgspec.msgpack.decode(value)
    if isinstance(head, list) and head and isinstance(head[0], int) and head[0] > FORMAT:
        store.close()
        raise StateError(
            f"the spool has format {head[0]}, this agentd knows {FORMAT}: start the newer agentd that wrote it"
        )


class _Recovery:
    """One pass over the tables, in the storage thread."""

    def __init__(self, spool: Spool, store: Store) -> None:
        self.spool = spool
        self.store = store

    def run(self, identities: Mapping[str, str]) -> None:
        self._foreign_rows()
        self._meta(identities)
        for name in [*identities, *self.spool.meta.identities]:
            self._queue(name)
        self._segments()
        self._seals()
        self._letters()
        self._rest()
        self._balance()

    def _foreign_rows(self) -> None:
        rowids = self.store.foreign()
        if not rowids:
            return
        place = self.spool.folder.quarantine("foreign-rows")
        for rowid in rowids:
            (place / str(rowid)).write_bytes(self.store.copy_rowid(rowid))
        self.store.delete_rowids(rowids)
        self.spool.quarantined_rows += len(rowids)
        log.error(
            "%d rows that agentd did not write were set aside in %s", len(rowids), place, extra={"action": "quarantine"}
        )

    def _meta(self, identities: Mapping[str, str]) -> None:
        value = self.store.read(key_of(Table.META, 0))
        meta = Meta() if value is None else decode_meta(value)
        self.spool.meta = meta
        self.spool.books.restore(meta.books)
        self.spool.journal.next_number = meta.journal_number
        for name, identity in identities.items():
            known = meta.identities.get(name)
            if known is not None and known != identity and (queued := self.spool.books.queued(name)):
                self.store.close()
                raise ConfigError(
                    f"[destinations.{name}] platform, base_url or agents changed while {queued} records wait for it "
                    f"(they were taken for {known}): put the old values back and let it drain, or give the new one another name"
                )
        meta.identities = {**meta.identities, **identities}

    def _queue(self, name: str) -> Queue:
        queue = self.spool.queues.get(name)
        if queue is None:
            share = max(1, len(self.spool.limits.quotas))
            limits = self.spool.limits
            queue = self.spool.queues[name] = Queue(name, limits.window_bytes // share, limits.directory_bytes // share)
        return queue

    def _segments(self) -> None:
        found: dict[str, list[Segment]] = {}
        bitmaps = dict(self.store.rows(Table.ENDED))
        highest = 0
        for key, tag, _size in self.store.tags(Table.SEGMENT):
            highest = max(highest, row_of(key))
            try:
                name, segment = self._segment(key, tag)
                bitmap = bitmaps.pop(key_of(Table.ENDED, row_of(key)), None)
                if bitmap is not None:
                    segment.restore_bitmap(bitmap)
            except (SpoolDamaged, ValueError, msgspec.MsgspecError) as error:
                self._set_aside(key, error)
                continue
            found.setdefault(name, []).append(segment)
            following = self.spool.meta.next_number
            following[name] = max(following.get(name, 1), segment.last + 1)
        self.spool.meta.next_segment = max(self.spool.meta.next_segment, highest + 1)
        for name, rows in found.items():
            self._queue(name).recover(rows)
        if bitmaps:
            self.store.commit([], bitmaps)

    def _segment(self, key: int, tag: bytes | None) -> tuple[str, Segment]:
        """From its directory, or from its records where the directory is damaged."""
        try:
            directory = segments.decode_directory(key, tag)
        except SpoolDamaged:
            name, entries = segments.decode(key, self.store.read(key) or b"")
            directory = segments.encode(name, entries).directory
        return directory.destination, Segment(key, directory)

    def _set_aside(self, key: int, error: Exception) -> None:
        """A row of which nothing can be read; how many records it held shows when the books are balanced."""
        value = b""
        try:
            value = self.store.read(key) or b""
        except SpoolDamaged:
            log.error("row %#x can't even be copied", key, extra={"action": "quarantine"})
        (self.spool.folder.quarantine("segments") / f"{key:x}").write_bytes(value)
        self.store.commit([], [key, key_of(Table.ENDED, row_of(key))])
        self.spool.quarantined_rows += 1
        log.error("%s: set aside", error, extra={"action": "quarantine"})

    def _seals(self) -> None:
        rows = [(row_of(key), value) for key, value in self.store.rows(Table.SEAL)]
        damaged = self.spool.seals.restore(rows)
        gone = [*damaged, *self.spool.seals.empty_rows()]
        if gone:
            self.store.commit([], [key_of(Table.SEAL, row) for row in gone])
        if damaged:
            log.error(
                "%d rows of seals damaged: their batches may be regrouped", len(damaged), extra={"action": "quarantine"}
            )

    def _letters(self) -> None:
        for key, tag, size in self.store.tags(Table.DEAD):
            self._see(Table.DEAD, key)
            self.spool.dead_count += 1
            self.spool.dead_bytes += size
            try:
                letters.decode_brief(tag)
            except msgspec.MsgspecError:
                self.store.commit([], [key])
                self.spool.quarantined_rows += 1
                log.error("dead letter %#x: its tag is damaged", key, extra={"action": "quarantine"})

    def _rest(self) -> None:
        spool = self.spool
        for row, _ in self.store.rows(Table.SEAL):
            self._see(Table.SEAL, row)
        for key, tag, size in self.store.tags(Table.JOURNAL):
            spool.journal.restore(row_of(key), size, int.from_bytes(tag or b"", "little"))
        for key, tag, _ in self.store.tags(Table.SEEN):
            self._see(Table.SEEN, key)
            count = int.from_bytes(tag or b"", "little")
            spool.seen_rows.append((row_of(key), count))
            spool.seen_count += count
        for key, _, _ in self.store.tags(Table.STREAM):
            self._see(Table.STREAM, key)
        damaged = spool.refs.restore((row_of(key), value) for key, value in self.store.rows(Table.REF))
        if damaged:
            log.error("%d references damaged", len(damaged), extra={"action": "quarantine"})

    def _see(self, table: Table, key: int) -> None:
        self.spool.see_row(table, row_of(key))

    def _balance(self) -> None:
        """Records that the books hold and the disk does not: damage that nothing else could count."""
        for name, queue in self.spool.queues.items():
            missing = self.spool.books.queued(name) - queue.live
            if missing > 0:
                log.error(
                    "%s: %d records are missing on disk: booked as quarantined",
                    name,
                    missing,
                    extra={"action": "quarantine"},
                )
                self.spool.books.end(name, "unknown", State.QUARANTINED, Cause.DAMAGED, missing)
            elif missing < 0:
                log.warning(
                    "%s: %d records more on disk than in the books: booked as admitted",
                    name,
                    -missing,
                    extra={"action": "recovered"},
                )
                self.spool.books.admit(name, "unknown", -missing)
