"""diskcache, tamed: the only module that imports it.

Rows are bytes under integer keys of our own, `table << 48 | n`; a row may carry a small `tag` that can be read without its
value. What is done against diskcache's defaults, and why:

- `BytesDisk` stores and fetches plain bytes only: the stock Disk unpickles rows (CVE-2025-69872) and follows file names
  out of its folder. A row of another form raises SpoolDamaged and runs nothing.
- `eviction_policy="none"`, `cull_limit=0`, a size limit out of reach: the defaults silently delete the oldest rows.
- `sqlite_synchronous=2`: the default loses commits on power loss. `sqlite_mmap_size=0`: with mmap a full disk is SIGBUS.
- all values inline: diskcache never fsyncs its value files. A file of its own for each body, written and fsynced once by a
  Disk subclass, was measured against it (tests/bench/segment_place.py): n + 2 syncs a commit instead of 1, orphans after a
  crash, and ahead only where a sync takes less than about 0.3 ms; inline writes each byte about twice.
- settings rows are checked against an allow-list before opening: diskcache sets each as an attribute of itself. So is the schema:
  a trigger is a program that runs with every commit.

All calls come from one thread, since diskcache's transactions belong to a thread.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import diskcache
from diskcache.core import MODE_RAW

from agentd.crashpoints import Point, reached
from agentd.errors import SpoolDamaged, StateError
from agentd.spool.failing import disk_fails
from agentd.spool.pagefile import look_at_log
from agentd.spool.schema import check_schema
from agentd.spool.wal import Read
from agentd.vitals import Pace

log = logging.getLogger("agentd.spool")

TABLE_BITS = 48
_MAX_ROW = (1 << TABLE_BITS) - 1
_SETTINGS = {
    "eviction_policy": "none",
    "cull_limit": 0,
    "size_limit": 2**40,
    "statistics": 0,
    "tag_index": 0,
    "disk_min_file_size": 2**40,
    "sqlite_auto_vacuum": 2,  # incremental: the file shrinks when we say so, deletes don't pay for it
    "sqlite_journal_mode": "wal",  # said although it is the default: what the database remembers would win otherwise
    "sqlite_mmap_size": 0,
    "sqlite_secure_delete": 0,  # zeroing what is deleted writes it twice more: draining is 3.5 times as fast without
    "sqlite_journal_size_limit": 2**24,
    "sqlite_cache_size": 2**10,  # pages of 4 KiB: 4 MiB; the default of 32 MiB would be half of a sidecar's memory
}
_SETTING_KEYS = frozenset(_SETTINGS) | {
    "sqlite_synchronous", "disk_pickle_protocol", "count", "size", "hits", "misses",
}  # fmt: skip
# What says nothing about the database itself: somebody else has it open, no file handle, a failing or read-only disk.
_PASSING = {
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_INTERRUPT,
}  # fmt: skip
# A row that this module can have written, of the table between two keys.
_OURS = (
    "key BETWEEN ? AND ? AND typeof(key) = 'integer' AND raw = 1 AND mode = 1 AND filename IS NULL AND expire_time IS NULL "
    "AND typeof(value) = 'blob' AND typeof(tag) IN ('blob', 'null')"
)
_LOCK_TIMEOUT_S = 5.0
_NO_TEXT = "decode to UTF-8"  # what Python's module says, as an OperationalError, of a text that is none
_CLAIM = 1  # the key of a row that is there for a moment; no table has it
_MESSAGE = 200  # characters of what SQLite finds wrong: the first faults of a list
_PACE_INSTRUCTIONS = 100_000  # of SQLite's virtual machine: some ms, and nothing that a commit of 4 MiB would feel
_VACUUM_PAGES = 1000  # 4 MiB and about 3 ms a step


class Put(NamedTuple):
    """A row to write: new or replacing."""

    key: int
    value: bytes
    tag: bytes | None = None


class Rows(Protocol):
    """What the spool asks of a store. All calls come from the storage thread."""

    def commit(self, puts: Iterable[Put], deletes: Iterable[int]) -> None:
        """All or nothing, on disk when it returns. Raises DiskFull, sqlite3.Error."""
        ...

    def read(self, key: int) -> bytes | None:
        """A row's value, None if there is none. Raises SpoolDamaged, sqlite3.OperationalError."""
        ...

    def tags(self, table: int, after: int = -1) -> Iterator[tuple[int, bytes | None, int]]:
        """(key, tag, value's length) of a table's rows behind a row's number, in order; reads no value."""
        ...

    def rows(self, table: int) -> Iterator[tuple[int, bytes]]:
        """(key, value) of a table's rows in order, those of a wrong form left out."""
        ...

    def foreign(self) -> list[int]:
        """The rowids of rows that agentd can't have written."""
        ...

    def delete_rowids(self, rowids: Iterable[int]) -> None: ...
    def copy_rowid(self, rowid: int) -> bytes: ...
    def claim(self, size: int) -> None:
        """Take what of the disk it takes to delete on a full one: `size` bytes of room, unless half of that is free already.

        Raises DiskFull, sqlite3.Error.
        """
        ...

    def free_bytes(self) -> int:
        """Room within the store, which new rows take before they take more of the disk."""
        ...

    def vacuum_step(self) -> bool:
        """Give some free room back to the file system; True while there is more. Raises DiskFull, sqlite3.Error."""
        ...

    def close(self) -> None: ...


def key_of(table: int, row: int) -> int:
    """The store's key for a row of a table."""
    return table << TABLE_BITS | row


def row_of(key: int) -> int:
    """The row's number within its table."""
    return key & _MAX_ROW


class BytesDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache ships no types
    """Bytes in, bytes out; no pickle and no file can be reached."""

    def put(self, key: Any) -> tuple[Any, bool]:
        if type(key) is not int:
            raise SpoolDamaged(f"a key of type {type(key).__name__}")
        return key, True

    def get(self, key: Any, raw: bool) -> Any:  # noqa: FBT001 - diskcache's own signature
        if not raw or type(key) is not int:
            raise SpoolDamaged("a key that is no integer")
        return key

    def store(self, value: Any, read: bool, key: Any = None) -> tuple[int, int, None, bytes]:  # noqa: ARG002, FBT001
        if type(value) is not bytes or read:
            raise SpoolDamaged(f"a value of type {type(value).__name__}")
        return 0, MODE_RAW, None, sqlite3.Binary(value)  # type: ignore[return-value]

    def fetch(self, mode: int, filename: str | None, value: Any, read: bool) -> bytes:  # noqa: FBT001
        if mode != MODE_RAW or filename is not None or read or not isinstance(value, bytes):
            raise SpoolDamaged("a row that is not plain bytes")
        return value

    def remove(self, file_path: str) -> None:
        """Values are inline: there is nothing to remove, whatever a row says."""


class DiskFull(Exception):  # noqa: N818 - a state that is found
    """The file system has no room; nothing of the commit was kept."""


class Store:
    """An open store. Not thread-safe: every call from the one storage thread."""

    def __init__(self, folder: Path, sync: Literal["full", "normal"], *, pace: Pace | None = None) -> None:
        """Open or create. `pace` is stepped while SQLite works on something long.

        Raises SpoolDamaged for a database that can't be trusted as a whole, StateError for one that can't be opened now,
        DiskFull.
        """
        inspect(folder, synced=sync == "full", pace=pace)
        synchronous = 2 if sync == "full" else 1
        try:
            with _mapped():
                folder.mkdir(mode=0o700, exist_ok=True)  # diskcache would let everybody look in
                self._cache = diskcache.Cache(
                    str(folder), timeout=_LOCK_TIMEOUT_S, disk=BytesDisk, sqlite_synchronous=synchronous, **_SETTINGS
                )
                _keep_pace(self._cache._con, pace)  # noqa: SLF001 - diskcache has no public way to it
                for path in folder.glob("cache.db*"):
                    path.chmod(0o600)  # and SQLite read; logs that it makes later get the database's mode
        except sqlite3.DatabaseError as error:
            raise _verdict(folder, error) from error

    def commit(self, puts: Iterable[Put], deletes: Iterable[int]) -> None:
        """All or nothing, on disk when it returns. What is put and deleted is gone. Raises DiskFull, sqlite3.Error."""
        gone = set(deletes)
        written = [put for put in puts if put.key not in gone]
        try:
            self._commit(written, gone)
        except DiskFull:
            if not self._restart_log():
                raise
            self._commit(written, gone)

    def _commit(self, puts: Iterable[Put], deletes: Iterable[int]) -> None:
        """Deletes come first: on a full disk there is no other room for what is put."""
        try:
            with _mapped(), self._cache.transact():
                for key in deletes:
                    self._cache.delete(key)
                reached(Point.COMMIT_DELETED)
                for put in puts:
                    self._cache.set(put.key, put.value, tag=put.tag)
                reached(Point.COMMIT_PUT)
        except BaseException:
            connection = self._cache._con  # noqa: SLF001 - diskcache sends no ROLLBACK when COMMIT itself fails
            if connection.in_transaction:
                connection.rollback()
            raise

    def _restart_log(self) -> bool:
        """Have the next commit begin the write-ahead log anew, in the room that its file has already.

        A full disk has no room at the log's end, and SQLite begins anew only behind a commit. False where the log holds pages that the
        database would have to grow for.
        """
        try:
            busy, frames, moved = self._cache._con.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()  # noqa: SLF001
        except sqlite3.OperationalError:
            return False
        return not busy and frames == moved

    def claim(self, size: int) -> None:
        """Have `size` bytes of free room in the database's file, and a log of that size that can be begun anew.

        Both are what it takes to settle and delete on a full disk, and nobody else can fill them, as he could a file that is given
        back. Raises DiskFull, sqlite3.Error.
        """
        if self.free_bytes() >= size // 2:
            return
        self.commit([Put(_CLAIM, bytes(size))], ())
        self.commit((), [_CLAIM])
        self._restart_log()

    def free_bytes(self) -> int:
        """Room within the database, of rows that were deleted, as far as its file has the place for it already."""
        connection = self._cache._con  # noqa: SLF001 - diskcache has no public query
        free, pages, page_size = (
            connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("freelist_count", "page_count", "page_size")
        )
        owed = pages * page_size - (Path(self._cache.directory) / "cache.db").stat().st_size  # what is in the log alone
        return int(max(0, free * page_size - max(0, owed)))

    def read(self, key: int) -> bytes | None:
        """A row's value, None if there is none. Raises SpoolDamaged, sqlite3.OperationalError for a disk that fails."""
        try:
            value = self._cache.get(key)
        except sqlite3.OperationalError as error:
            if _NO_TEXT in str(error):
                raise SpoolDamaged(f"row {key:#x}: {error}") from error
            raise
        except sqlite3.DatabaseError as error:
            if disk_fails(Path(self._cache.directory) / "cache.db"):
                raise sqlite3.OperationalError(f"the disk can't be read: {error}") from error
            raise SpoolDamaged(f"row {key:#x}: {error}") from error
        return value if value is None else bytes(value)

    def tags(self, table: int, after: int = -1) -> Iterator[tuple[int, bytes | None, int]]:
        """(key, tag, value's length) of a table's rows in order; reads no value. Rows of a wrong form are left out."""
        yield from self._select(f"SELECT key, tag, length(value) FROM Cache WHERE {_OURS} ORDER BY key", table, after)  # noqa: S608

    def rows(self, table: int) -> Iterator[tuple[int, bytes]]:
        """(key, value) of a table's rows in order. Rows of a wrong form are left out: `foreign` finds them."""
        yield from self._select(f"SELECT key, value FROM Cache WHERE {_OURS} ORDER BY key", table)  # noqa: S608

    def foreign(self) -> list[int]:
        """The rowids of rows that this module can't have written."""
        sql = (
            "SELECT rowid FROM Cache WHERE raw IS NOT 1 OR mode IS NOT 1 OR filename IS NOT NULL OR expire_time IS NOT NULL "
            "OR typeof(key) != 'integer' OR typeof(value) != 'blob' OR typeof(tag) NOT IN ('blob', 'null')"
        )
        return [rowid for (rowid,) in self._cache._con.execute(sql)]  # noqa: SLF001 - diskcache has no public query

    def delete_rowids(self, rowids: Iterable[int]) -> None:
        """Take rows out by SQLite's own number, whatever their form. Callers keep a copy first."""
        with _mapped():
            self._cache._con.executemany("DELETE FROM Cache WHERE rowid = ?", [(rowid,) for rowid in rowids])  # noqa: SLF001

    def copy_rowid(self, rowid: int) -> bytes:
        """A printable form of a foreign row, for the quarantine folder; nothing in it is interpreted."""
        connection = self._cache._con  # noqa: SLF001 - diskcache has no public query
        connection.text_factory = bytes  # its texts may be none
        try:
            return repr(connection.execute("SELECT * FROM Cache WHERE rowid = ?", (rowid,)).fetchone()).encode()
        finally:
            connection.text_factory = str

    def file_bytes(self) -> int:
        """What the database takes on disk, the write-ahead log included."""
        folder = Path(self._cache.directory)
        return sum(path.stat().st_size for path in folder.glob("cache.db*"))

    def vacuum_step(self) -> bool:
        """Give up to 4 MiB of free pages back to the file system; True if there were any. Raises DiskFull, sqlite3.Error."""
        connection = self._cache._con  # noqa: SLF001 - `executescript`: execute() would free one page a call (measured)
        (free,) = connection.execute("PRAGMA freelist_count").fetchone()
        if free:
            with _mapped():
                connection.executescript(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})")
        return bool(free > _VACUUM_PAGES)

    def close(self) -> None:
        """Close in the storage thread: connections belong to threads, and only the last one tidies the log away."""
        _finish_log(self._cache._con, Path(self._cache.directory))  # noqa: SLF001 - diskcache has no public way to it
        self._cache.close()

    def _select(self, sql: str, table: int, after: int = -1) -> Iterator[Any]:
        try:
            yield from self._cache._con.execute(sql, (key_of(table, after + 1), key_of(table, _MAX_ROW)))  # noqa: SLF001
        except sqlite3.DatabaseError as error:
            raise SpoolDamaged(f"table {table}: {error}") from error


def _keep_pace(connection: sqlite3.Connection, pace: Pace | None) -> None:
    if pace is not None:
        connection.set_progress_handler(pace.step, _PACE_INSTRUCTIONS)


def inspect(folder: Path, *, synced: bool = True, pace: Pace | None = None) -> None:
    """Look at an existing database before diskcache may. Raises SpoolDamaged.

    First at its write-ahead log (`synced`: each commit was), of which SQLite forgets what it can't read, and forgets all of it if the
    database is empty; then with plain sqlite3, at the schema before anything of it is used.
    """
    path = folder / "cache.db"
    _inspect_log(path, look_at_log(folder, synced=synced), synced=synced)
    if not path.exists():
        if any(path.with_name(path.name + end).exists() for end in ("-wal", "-shm")):
            raise SpoolDamaged(f"{path}: missing, and its log is there")
        return
    if path.stat().st_size == 0:
        raise SpoolDamaged(f"{path}: empty file")
    try:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            _keep_pace(connection, pace)
            _check(connection, path)
            _finish_log(connection, folder)
    except sqlite3.OperationalError as error:
        if "full" in str(error):
            raise DiskFull(str(error)) from error
        raise _verdict(path, error) from error
    except sqlite3.DatabaseError as error:
        raise _verdict(path, error) from error


def _inspect_log(path: Path, found: Read, *, synced: bool) -> None:
    if found.is_damaged:
        raise SpoolDamaged(
            f"{path}-wal: of {found.frames} committed frames {found.lost} are damaged or cut off"
            + (f", and SQLite would read {found.seen}" if found.seen + found.lost < found.frames else "")
        )
    if found.unread and not synced:
        log.warning(
            '%s-wal: the newest %d frames are not on disk whole: with sync = "normal" a power failure takes what was acknowledged '
            "in them", path, found.unread, extra={"action": "log_torn"},
        )  # fmt: skip
    elif found.unread:
        log.warning(
            "%s-wal: %d frames behind the last commit can't be read: torn when the power failed, and nobody had an answer for "
            "them, or else damaged since, and what was acknowledged in them is lost", path, found.unread,
            extra={"action": "log_torn"},
        )  # fmt: skip


def _verdict(path: Path, error: sqlite3.DatabaseError) -> StateError:
    """Damage is set aside by the caller; a database that is merely busy or out of reach must not be."""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in _PASSING:
        return StateError(f"{path}: {error}")
    return SpoolDamaged(f"{path}: {error}")


def _finish_log(connection: sqlite3.Connection, folder: Path) -> None:
    """Before the last connection removes log and index: have the index say on disk that all of the log is in the database.

    The two names may leave the disk one without the other, and an index that still speaks of commits in a log that is not there
    looks like one that somebody has deleted. SQLite itself never syncs the index.
    """
    try:
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        descriptor = os.open(folder / "cache.db-shm", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (sqlite3.Error, OSError) as error:  # a disk without room, or one that can only be read: the log stays
        log.debug(
            "%s: the log is not copied into the database: %s", folder, error, extra={"action": "checkpoint_failed"}
        )
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        log.debug("%s: the log's index can't be synced: %s", folder, error, extra={"action": "checkpoint_failed"})
    finally:
        os.close(descriptor)


def _check(connection: sqlite3.Connection, path: Path) -> None:
    check_schema(connection, path)
    found = [row[0] for row in connection.execute("PRAGMA integrity_check(10)")]
    if found != ["ok"]:
        raise SpoolDamaged(f"{path}: {' '.join(found[0].split())[:_MESSAGE]}")
    settings = dict(connection.execute("SELECT key, value FROM Settings"))
    foreign = sorted(str(key) for key in settings if key not in _SETTING_KEYS and not str(key).startswith("sqlite_"))
    if foreign or any(str(key).startswith("sqlite_") and key not in _ALLOWED_PRAGMAS for key in settings):
        raise SpoolDamaged(f"{path}: its settings hold {foreign or 'a foreign pragma'}")


_ALLOWED_PRAGMAS = {key for key in _SETTING_KEYS if key.startswith("sqlite_")}


@contextlib.contextmanager
def _mapped() -> Iterator[None]:
    """SQLite's and diskcache's many ways to say that the disk is full, as DiskFull."""
    try:
        yield
    except diskcache.Timeout as error:  # BEGIN failed for any reason at all; the reason is its context
        cause = error.__context__
        if cause is not None and "full" in str(cause):
            raise DiskFull(str(cause)) from error
        failure = sqlite3.OperationalError(f"can't begin a transaction: {cause or 'locked'}")
        failure.sqlite_errorcode = getattr(cause, "sqlite_errorcode", sqlite3.SQLITE_BUSY)
        raise failure from error
    except sqlite3.OperationalError as error:
        cause = error.__context__  # where SQLite has rolled back by itself, diskcache's own ROLLBACK fails
        for said in (str(error), str(cause or "")):
            if "full" in said:
                raise DiskFull(said) from error
        raise
    except OSError as error:
        raise DiskFull(str(error)) from error
