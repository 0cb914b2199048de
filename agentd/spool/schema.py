"""What a spool's database is made of, looked at before a row of it is asked for: whatever else is in it may be a program."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

from agentd.errors import SpoolDamaged

# What diskcache makes: plain columns, no view, no expression, and triggers that count rows in Settings. A trigger is a program, and an
# index over an expression calls functions. Empty: SQLite's own index of a UNIQUE column.
_SCHEMA = re.compile(
    r"|CREATE TABLE (Cache|Settings) \([\w ,]+\)|CREATE (UNIQUE )?INDEX \w+ ON Cache ?\([\w, ]+\)"
    r"|CREATE TRIGGER \w+ AFTER (INSERT|UPDATE|DELETE) ON Cache FOR EACH ROW BEGIN"
    r' UPDATE Settings SET value = value [-+\w. ]+ WHERE key = "(count|size)"; END'
)


def check_schema(connection: sqlite3.Connection, path: Path) -> None:
    """Look at what a database is made of before a row of it is asked for. Raises SpoolDamaged, sqlite3.DatabaseError."""
    connection.execute("PRAGMA mmap_size = 0")
    connection.execute("PRAGMA trusted_schema = OFF")
    schema = connection.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
    if foreign := [f"{kind} {name}" for kind, name, sql in schema if not _SCHEMA.fullmatch(sql or "")]:
        raise SpoolDamaged(f"{path}: its schema holds {foreign[0]}, which agentd has not made")
    if not {("table", "Cache"), ("table", "Settings")} <= {(kind, name) for kind, name, _ in schema}:
        raise SpoolDamaged(f"{path}: its tables are missing")
