"""A store that is only read: beside the daemon that writes it (SQLite's WAL lets readers be), or when none runs.

One read transaction from opening to closing, so that all that is read is of one moment. Plain SELECTs: nothing of a row is
interpreted, and rows that agentd can't have written are left out. Nothing on disk changes by it, not even the index beside the
log (`-shm`), which after a crash is evidence of how long the log was: it is opened for reading only
(https://www.sqlite.org/wal.html#readonly), and where it is missing alone SQLite makes it anew.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from agentd.errors import SpoolDamaged, StateError
from agentd.spool.newer import refuse_newer_rows
from agentd.spool.schema import check_schema
from agentd.spool.store import Put, key_of

# A row that agentd can have written: bytes under an integer, no pickle, no file, no expiry.
_OURS = (
    "raw = 1 AND mode = 1 AND filename IS NULL AND expire_time IS NULL AND typeof(key) = 'integer' "
    "AND typeof(value) = 'blob' AND typeof(tag) IN ('blob', 'null')"
)
_FROM = f"FROM Cache WHERE {_OURS} AND key "
_ONE = f"SELECT value {_FROM} = ?"
_TABLE = f"SELECT key, value {_FROM} BETWEEN ? AND ? ORDER BY key"
_TAGS = f"SELECT key, tag, length(value) {_FROM} BETWEEN ? AND ? ORDER BY key"
_FOREIGN = f"SELECT rowid FROM Cache WHERE ({_OURS}) IS NOT 1"  # noqa: S608 - a constant
_LAST = (1 << 48) - 1
_BUSY_S = 5.0


class ReadOnlyStore:
    """See `agentd.spool.store.Rows`; whatever would write raises StateError."""

    def __init__(self, folder: Path) -> None:
        """`folder` is diskcache's.

        Raises StateError where there is no database, NewerFormat, and SpoolDamaged for one that is none, or not agentd's.
        """
        self._path = folder / "cache.db"
        self.alone = False  # it was found closed, and whoever opens it is not noticed
        if not self._path.exists():
            raise StateError(f"{self._path}: there is no spool")
        try:
            self._connection = self._connect()
        except sqlite3.OperationalError as error:
            raise StateError(f"{self._path}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise SpoolDamaged(f"{self._path}: {error}") from error

    def _connect(self) -> sqlite3.Connection:
        if not self._path.with_name("cache.db-wal").exists():
            # nobody writes, and SQLite is told so, or it would leave an empty log of its own
            self.alone = True
            return self._begin("&immutable=1")
        try:
            return self._begin("&readonly_shm=1")
        except sqlite3.OperationalError:
            if self._path.with_name("cache.db-shm").exists():
                raise
            return self._begin("")

    def _begin(self, how: str) -> sqlite3.Connection:
        uri = f"file:{quote(str(self._path))}?mode=ro{how}"
        connection = sqlite3.connect(uri, uri=True, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA mmap_size = 0")
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("BEGIN")
            refuse_newer_rows(connection)
            check_schema(connection, self._path)
        except BaseException:
            connection.close()
            raise
        return connection

    def check(self) -> list[str]:
        """What SQLite itself finds wrong with the database, at most ten things; reads all of it."""
        try:
            found = [str(row[0]) for row in self._connection.execute("PRAGMA quick_check(10)")]
        except sqlite3.DatabaseError as error:
            return [str(error)]
        return [] if found == ["ok"] else found

    def read(self, key: int) -> bytes | None:
        """A row's value, None if there is none. Raises SpoolDamaged."""
        try:
            row = self._connection.execute(_ONE, (key,)).fetchone()
        except sqlite3.DatabaseError as error:
            raise SpoolDamaged(f"row {key:#x}: {error}") from error
        return None if row is None else bytes(row[0])

    def tags(self, table: int, after: int = -1) -> Iterator[tuple[int, bytes | None, int]]:
        """(key, tag, value's length) of a table's rows behind a row's number, in order; reads no value."""
        yield from self._select(_TAGS, table, after)

    def rows(self, table: int) -> Iterator[tuple[int, bytes]]:
        """(key, value) of a table's rows in order."""
        yield from self._select(_TABLE, table)

    def _select(self, sql: str, table: int, after: int = -1) -> Iterator[Any]:
        try:
            yield from self._connection.execute(sql, (key_of(table, after + 1), key_of(table, _LAST)))
        except sqlite3.DatabaseError as error:
            raise SpoolDamaged(f"table {table}: {error}") from error

    def foreign(self) -> list[int]:
        """The rowids of rows that agentd can't have written."""
        try:
            return [rowid for (rowid,) in self._connection.execute(_FOREIGN)]
        except sqlite3.DatabaseError as error:
            raise SpoolDamaged(f"{self._path}: {error}") from error

    def commit(self, puts: Iterable[Put], deletes: Iterable[int]) -> None:  # noqa: ARG002 - the protocol's
        raise StateError("this spool is only read")

    def delete_rowids(self, rowids: Iterable[int]) -> None:  # noqa: ARG002 - the protocol's
        raise StateError("this spool is only read")

    def copy_rowid(self, rowid: int) -> bytes:
        """A printable form of a foreign row."""
        return repr(self._connection.execute("SELECT * FROM Cache WHERE rowid = ?", (rowid,)).fetchone()).encode()

    def claim(self, size: int) -> None:  # noqa: ARG002 - the protocol's
        raise StateError("this spool is only read")

    def free_bytes(self) -> int:
        return 0

    def vacuum_step(self) -> bool:
        return False

    def close(self) -> None:
        self._connection.close()


def become_owner(folder: Path) -> None:
    """As root, go on as the folder's owner: SQLite may create files beside the database, which have to be his.

    Raises StateError for a folder that is somebody else's and for one that does not exist.
    """
    try:
        owner = folder.stat()
    except OSError as error:
        raise StateError(f"state folder {folder}: {error.strerror}") from error
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.setegid(owner.st_gid)
        os.seteuid(owner.st_uid)
    elif owner.st_uid != os.geteuid():
        raise StateError(f"state folder {folder} belongs to uid {owner.st_uid}, not to us (uid {os.geteuid()})")
