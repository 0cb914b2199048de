"""A spool of a newer agentd, refused before anything could write to it.

Opening a database writes: diskcache its settings, SQLite what a crash left in the log, and at the end the log's whole content. So
the one row that says how to read the others is read beforehand, in a way that changes neither database nor log. The index beside
the log (`-shm`) is SQLite's scratch paper, but after a crash it is also evidence of how long the log was: it is put back as it was.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from pathlib import Path
from urllib.parse import quote

from agentd.errors import SpoolDamaged
from agentd.spool.store import key_of
from agentd.spool.tables import Table, decode_meta

_TABLE = "SELECT sql FROM sqlite_master WHERE type = 'table' AND name = 'Cache'"
_PLAIN = re.compile(r"CREATE TABLE Cache \([^()]*\)")  # no virtual table, and no column that is computed
_META = "SELECT value FROM Cache WHERE key = ? AND raw = 1 AND typeof(value) = 'blob'"


def refuse_newer(folder: Path) -> None:
    """`folder` is diskcache's. Raises NewerFormat; whatever else is wrong with it is left to who opens it."""
    path = folder / "cache.db"
    with contextlib.suppress(OSError):
        if not path.exists() or path.stat().st_size == 0:
            return
        log, index = path.with_name("cache.db-wal"), path.with_name("cache.db-shm")
        if not log.exists() or log.stat().st_size == 0:
            _look(path, "immutable=1")
            return
        before = index.read_bytes() if index.exists() else None
        try:
            _look(path, "mode=ro")
        finally:
            if before is not None:
                index.write_bytes(before)
            else:
                index.unlink(missing_ok=True)


def _look(path: Path, how: str) -> None:
    with (
        contextlib.suppress(sqlite3.Error),
        contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?{how}", uri=True)) as connection,
    ):
        connection.execute("PRAGMA mmap_size = 0")
        connection.execute("PRAGMA trusted_schema = OFF")
        refuse_newer_rows(connection)


def refuse_newer_rows(connection: sqlite3.Connection) -> None:
    """The same of an open database, by its meta row as it was committed last. Raises NewerFormat, sqlite3.Error."""
    made = connection.execute(_TABLE).fetchone()
    if made is None or not _PLAIN.fullmatch(made[0] or ""):
        return  # anything else is a program: none of its rows is asked for
    with contextlib.suppress(SpoolDamaged, sqlite3.Error):  # damage is found by who reads on
        row = connection.execute(_META, (key_of(Table.META, 0),)).fetchone()
        if row is not None:
            decode_meta(bytes(row[0]))
