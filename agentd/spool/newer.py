"""A spool of a newer agentd, refused before anything could write to it.

Opening a database writes: diskcache its settings, SQLite what a crash left in the log, and at the end the log's whole content. So
the one row that says how to read the others is read beforehand, in a way that changes neither database nor log. The index beside
the log (`-shm`) is SQLite's scratch paper, but after a crash it is also evidence of how long the log was: it is put back as it was.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from urllib.parse import quote

from agentd.errors import SpoolDamaged
from agentd.spool.store import key_of
from agentd.spool.tables import Table, decode_meta

_TABLE = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'Cache'"


def refuse_newer(folder: Path) -> None:
    """`folder` is diskcache's. Raises NewerFormat; whatever else is wrong with it is left to who opens it."""
    path = folder / "cache.db"
    with contextlib.suppress(OSError):
        if not path.exists() or path.stat().st_size == 0:
            return
        value = _meta_row(path)
        if value is not None:
            with contextlib.suppress(SpoolDamaged):
                decode_meta(value)


def _meta_row(path: Path) -> bytes | None:
    """The row as it was committed last, None where it can't be read. Raises OSError."""
    log, index = path.with_name("cache.db-wal"), path.with_name("cache.db-shm")
    if not log.exists() or log.stat().st_size == 0:
        return _select(path, "immutable=1")
    before = index.read_bytes() if index.exists() else None
    try:
        return _select(path, "mode=ro")
    finally:
        if before is not None:
            index.write_bytes(before)
        else:
            index.unlink(missing_ok=True)


def _select(path: Path, how: str) -> bytes | None:
    try:
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?{how}", uri=True)) as database:
            database.execute("PRAGMA mmap_size = 0")
            if database.execute(_TABLE).fetchone() is None:
                return None  # a view is a program: none of its rows is asked for
            sql = "SELECT value FROM Cache WHERE key = ? AND raw = 1 AND typeof(value) = 'blob'"
            row = database.execute(sql, (key_of(Table.META, 0),)).fetchone()
    except sqlite3.Error:
        return None
    return None if row is None else bytes(row[0])
