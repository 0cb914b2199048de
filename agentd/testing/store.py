"""The rows of a spool in memory, and a disk that fails on demand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from agentd.errors import SpoolDamaged
from agentd.spool.store import DiskFull, Put, key_of, row_of


class Commit(NamedTuple):
    """One commit of a `MemoryStore`: the keys that it wrote and deleted."""

    puts: tuple[int, ...]
    deletes: tuple[int, ...]


class MemoryStore:
    """The rows of a spool without a disk, and a disk that fails on demand. Has the surface of `agentd.spool.store.Store`.

    `full` is how many of the next commits find no room, `free` the room within the store; `damage` makes a row unreadable; `plant` puts in a row that agentd
    can't have written; `commits` is the log of what was committed; `crash` gives the state that a new start would find.
    """

    def __init__(self, rows: Mapping[int, tuple[bytes, bytes | None]] | None = None) -> None:
        self.full = 0
        self.free = 0
        self.commits: list[Commit] = []
        self.closed = False
        self._rows = dict(rows or {})
        self._damaged: set[int] = set()
        self._foreign: dict[int, bytes] = {}

    def __repr__(self) -> str:
        return f"<MemoryStore {len(self._rows)} rows, {len(self.commits)} commits>"

    # -- faults ------------------------------------------------------------------------------------------------------

    def damage(self, key: int) -> None:
        """The row can't be read any more."""
        self._damaged.add(key)

    def change(self, key: int, value: bytes, tag: bytes | None = None) -> None:
        """The row has other bytes than were written; `tag` None leaves its tag."""
        self._rows[key] = (value, self._rows[key][1] if tag is None else tag)

    def plant(self, value: bytes) -> int:
        """A foreign row. Returns its rowid."""
        rowid = -1 - len(self._foreign)
        self._foreign[rowid] = value
        return rowid

    def crash(self) -> MemoryStore:
        """What the disk holds: everything committed and nothing else, in a store of its own."""
        found = MemoryStore(self._rows)
        found._damaged = set(self._damaged)
        found._foreign = dict(self._foreign)
        return found

    # -- agentd.spool.store.Rows -------------------------------------------------------------------------------------

    def commit(self, puts: Iterable[Put], deletes: Iterable[int]) -> None:
        """All or nothing. Raises DiskFull as often as `full` says."""
        written, gone = list(puts), list(deletes)
        if self.full:
            self.full -= 1
            raise DiskFull("database or disk is full")
        for put in written:
            if type(put.key) is not int or type(put.value) is not bytes:
                raise SpoolDamaged(
                    f"a row of type {type(put.value).__name__} under a key of type {type(put.key).__name__}"
                )
        for put in written:
            self._rows[put.key] = (put.value, put.tag)
        for key in gone:
            self._rows.pop(key, None)
        self.commits.append(Commit(tuple(put.key for put in written), tuple(gone)))

    def read(self, key: int) -> bytes | None:
        """A row's value, None if there is none. Raises SpoolDamaged for a damaged one."""
        if key in self._damaged and key in self._rows:
            raise SpoolDamaged(f"row {key:#x}: database disk image is malformed")
        row = self._rows.get(key)
        return None if row is None else row[0]

    def tags(self, table: int, after: int = -1) -> Iterator[tuple[int, bytes | None, int]]:
        """(key, tag, value's length) of a table's rows behind a row's number, in order."""
        for key in self._keys(table):
            if row_of(key) > after:
                value, tag = self._rows[key]
                yield key, tag, len(value)

    def rows(self, table: int) -> Iterator[tuple[int, bytes]]:
        """(key, value) of a table's rows in order."""
        for key in self._keys(table):
            yield key, self._rows[key][0]

    def _keys(self, table: int) -> list[int]:
        return sorted(key for key in list(self._rows) if key == key_of(table, row_of(key)))

    def foreign(self) -> list[int]:
        """The planted rows."""
        return list(self._foreign)

    def delete_rowids(self, rowids: Iterable[int]) -> None:
        """Take planted rows out."""
        for rowid in rowids:
            del self._foreign[rowid]

    def copy_rowid(self, rowid: int) -> bytes:
        """A printable form of a planted row."""
        return repr(self._foreign[rowid]).encode()

    def file_bytes(self) -> int:
        """What the values take."""
        return sum(len(value) for value, _ in self._rows.values())

    def claim(self, size: int) -> None:
        """Room that nobody else can take; it shows in `free`. Raises DiskFull while commits find no room."""
        if self.full:
            raise DiskFull("database or disk is full")
        self.free = max(self.free, size)

    def free_bytes(self) -> int:
        """What a test says."""
        return self.free

    def vacuum_step(self) -> bool:
        """There is never anything to give back."""
        return False

    def close(self) -> None:
        self.closed = True
