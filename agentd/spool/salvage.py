"""Reading the rows of a database that SQLite refuses, as its `.recover` does: page by page, without SQLite.

A row is *live* if the table's b-tree leads to it: only cells in a page's pointer array count, never free space, where deleted rows
lie. Where interior pages are damaged, leaves that the tree does not reach any more are taken too (*stray*), unless a pointer
map or the freelist says that they are free, or the unique index, where it is whole, does not know their rows. A stray row may
have been deleted: what was delivered may be sent again, rather twice than never. Of several versions of a row the live one
wins, then the one that was stored last.

Nothing here writes, and no value is interpreted: no pickle, no file name, no SQL. Memory: 25 bytes for a row beside the largest one.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, Self

from msgspec import Struct

from agentd.spool import pages as fmt
from agentd.spool.pagefile import Marks, PageFile
from agentd.vitals import Pace

# A commit's records take 4 MiB at most, a lone record 16: what claims to be larger than this is garbage.
MAX_ROW_BYTES = 64 * 2**20
_COLUMNS = 12  # diskcache's: rowid, key, raw, store_time, expire_time, access_time, access_count, tag, size, mode, filename, value
_KEY, _RAW, _STORED, _EXPIRE, _TAG, _MODE, _FILENAME, _VALUE = 1, 2, 3, 4, 7, 9, 10, 11
_ROOTS_UP_TO = 64  # with auto_vacuum a database's roots are its first pages; ours are 3 to 7


class Row(NamedTuple):
    """A version of a row. `value` is None where a part of it is missing."""

    key: int
    tag: bytes | None
    value: bytes | None
    stray: bool


class Found(Struct):
    """What was found before any value was read."""

    live: int = 0
    stray: int = 0
    bytes: int = 0  # of all of these
    foreign: int = 0  # rows that agentd can't have written
    broken: int = 0  # pages and cells that are none
    exact: bool = True  # every page of the tree is there: what was not found was not in it
    missing: array[int] | None = None  # keys that the index knows and no page has; None: the index can't tell


class Salvage:
    """Whatever can be read of the spool in a folder. Call `survey` once, then `rows`; a context manager."""

    def __init__(
        self, folder: Path, is_ours: Callable[[int], bool], *, synced: bool = True, pace: Pace | None = None
    ) -> None:
        """`is_ours` says of a key whether agentd has a table for it; `synced`, whether each commit was synced to disk."""
        self.pages = PageFile(folder, synced=synced, pace=pace)
        self._is_ours = is_ours
        self.found = Found()
        self._keys: array[int] = array("q")
        self._stored: array[float] = array("d")
        self._page: array[int] = array("I")
        self._at: array[int] = array("H")  # a page has 65,536 bytes at most
        self._stray = bytearray()
        self._seen = Marks(self.pages.count)
        self._maps: dict[int, bytes] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.pages.close()

    # -- where the rows are ------------------------------------------------------------------------------------------

    def survey(self) -> Found:
        """Find every row, and say what is missing."""
        self.found.exact = not self.pages.log.is_damaged  # pages may be older than those that lead to them
        root, dropped = self._root(b"Cache", fmt.TABLE_INTERIOR, fmt.TABLE_LEAF)
        if root:
            self._walk(root)
        else:
            self.found.exact = False
        index_root, _ = self._root(b"Cache_key_raw", fmt.INDEX_INTERIOR, fmt.INDEX_LEAF)
        index = _IndexKeys(self.pages, index_root, self._is_ours)
        trusted = index if index.whole and not self.pages.log.is_damaged else None
        if not self.found.exact:
            self._strays(trusted, take_free=dropped)
        if trusted is not None:
            self.found.missing = trusted.without(self._keys)
        return self.found

    def _root(self, name: bytes, interior: int, leaf: int) -> tuple[int, bool]:
        """(root page, 0 where none is found; whether the schema says that there is no such thing)."""
        schema = self._schema()
        if schema is not None:
            return (schema[name], False) if name in schema else (0, True)
        for number in range(2, min(self.pages.count, _ROOTS_UP_TO) + 1):
            if self._map_kind(number) == fmt.MAP_ROOT and self.pages.kind(number) in (interior, leaf):
                first = self._first_record(number)
                if first is not None and _is_row(first, leaf):
                    return number, False
        return 0, False

    def _schema(self) -> dict[bytes, int] | None:
        """Name → root page, from page 1; None where it can't be read. Ours fits on the one page."""
        page = self.pages[1]
        if fmt.page_size(page) is None or fmt.kind(page, fmt.FILE_HEADER) != fmt.TABLE_LEAF:
            return None
        found = {}
        for at in fmt.pointers(page, fmt.FILE_HEADER):
            cell = fmt.leaf_cell(page, at)
            named = None if cell is None else fmt.columns(cell.local, 5)
            if cell is None or named is None:
                return None
            name, root = (fmt.value_of(cell.local, named[place]) for place in (1, 3))
            if isinstance(name, str) and isinstance(root, int) and root:
                found[name.encode()] = root
        return found

    def _first_record(self, number: int) -> bytes | None:
        """The first record below a page."""
        for _ in range(_ROOTS_UP_TO):
            page, kind = self.pages[number], self.pages.kind(number)
            places = fmt.pointers(page, 0) if kind else ()
            if not places:
                return None
            if kind == fmt.TABLE_LEAF:
                cell = fmt.leaf_cell(page, places[0])
                return cell.local if cell else None
            if kind in (fmt.INDEX_LEAF, fmt.INDEX_INTERIOR):
                cell = fmt.index_cell(page, places[0] + (0 if kind == fmt.INDEX_LEAF else 4))
                return cell.local if cell else None
            number = int.from_bytes(page[places[0] : places[0] + 4], "big")
        return None

    def _walk(self, root: int) -> None:
        """Take the cells of all leaves below a root. `low` and `high` bound the rowids of a page: one that is out is another page's."""
        stack = [(root, -(1 << 63), (1 << 63) - 1)]
        while stack:
            number, low, high = stack.pop()
            page = self.pages[number]
            kind = fmt.kind(page, self.pages.start(number))
            if kind not in (fmt.TABLE_INTERIOR, fmt.TABLE_LEAF) or number in self._seen:
                self._damaged()
                continue
            if kind == fmt.TABLE_LEAF:
                if self._take_leaf(number, page, low, high):
                    self._seen.add(number)
                continue
            self._seen.add(number)
            for child, at, last in fmt.children(page, self.pages.start(number)):
                last = last if at else high  # noqa: PLW2901 - the last child has no key of its own
                if not low <= last <= high:
                    self._damaged()
                    continue
                stack.append((child, low, last))
                low = last + 1

    def _damaged(self) -> None:
        self.found.exact = False
        self.found.broken += 1

    def _take_leaf(self, number: int, page: bytes, low: int, high: int) -> bool:
        """False for a page whose rows are not those that belong here: an old one, in the place of one that is lost."""
        cells = [(at, fmt.leaf_cell(page, at)) for at in dict.fromkeys(fmt.pointers(page, self.pages.start(number)))]
        if any(cell is not None and not low <= cell.rowid <= high for _, cell in cells):
            self._damaged()
            return False
        for at, cell in cells:
            if cell is None or not self._take(number, at, cell, stray=False):
                self._damaged()
        return True

    def _take(self, number: int, at: int, cell: fmt.Cell, *, stray: bool, index: _IndexKeys | None = None) -> bool:
        """Note a row; False for what is none at all."""
        columns = fmt.columns(cell.local, _COLUMNS)
        if (
            columns is None
            or columns[0].kind != fmt.NULL
            or columns[_STORED].offset + columns[_STORED].size > len(cell.local)
        ):
            return False
        key, stored = fmt.value_of(cell.local, columns[_KEY]), fmt.value_of(cell.local, columns[_STORED])
        if not isinstance(key, int) or not self._is_ours(key) or not _is_plain(columns):
            self.found.foreign += 1
            return True
        if index is not None and not index.has(key, cell.rowid):
            return True  # deleted
        self._keys.append(key)
        self._stored.append(float(stored) if isinstance(stored, int | float) else 0.0)
        self._page.append(number)
        self._at.append(at)
        self._stray.append(stray)
        self.found.bytes += cell.size
        if stray:
            self.found.stray += 1
        else:
            self.found.live += 1
        return True

    def _strays(self, index: _IndexKeys | None, *, take_free: bool) -> None:
        """Leaves that the tree does not lead to. `take_free`: the table itself was dropped, all of its pages are free."""
        free = None if take_free else self._free()
        for number in range(2, self.pages.count + 1):
            if number in self._seen or (
                free is not None and (number in free or self._map_kind(number) == fmt.MAP_FREE)
            ):
                continue
            page = self.pages[number]
            if page[:1] == b"\x0d" and fmt.kind(page, 0):
                for at in dict.fromkeys(fmt.pointers(page, 0)):
                    cell = fmt.leaf_cell(page, at)
                    if cell is not None:
                        self._take(number, at, cell, stray=True, index=index)

    def _free(self) -> Marks:
        """The pages on the freelist, as far as it can be followed."""
        free = Marks(self.pages.count)
        header = self.pages[1]
        if fmt.page_size(header) is None:
            return free
        trunk = int.from_bytes(header[32:36], "big")
        while 1 < trunk <= self.pages.count and trunk not in free:
            free.add(trunk)
            page = self.pages[trunk]
            count = min(int.from_bytes(page[4:8], "big"), len(page) // 4 - 2)
            for at in range(8, 8 + 4 * count, 4):
                leaf = int.from_bytes(page[at : at + 4], "big")
                if 1 < leaf <= self.pages.count:
                    free.add(leaf)
            trunk = int.from_bytes(page[:4], "big")
        return free

    def _map_kind(self, number: int) -> int:
        """What the pointer map says that a page is for; 0 where it says nothing."""
        place = fmt.map_page(number, self.pages.size)
        kinds = self._maps.get(place)
        if kinds is None:
            kinds = self._maps[place] = fmt.map_kinds(self.pages[place])
        index = number - place - 1
        return kinds[index] if 0 <= index < len(kinds) else 0

    # -- the rows themselves -----------------------------------------------------------------------------------------

    def rows(self) -> Iterator[tuple[int, Iterator[Row]]]:
        """(key, its versions, the best one first) in the order of the keys; a version is read when it is asked for."""
        order = sorted(range(len(self._keys)), key=self._keys.__getitem__)
        for key, places in groupby(order, key=self._keys.__getitem__):
            versions = sorted(places, key=lambda place: (self._stray[place], -self._stored[place]))
            yield key, (self._read(place) for place in versions)

    def _read(self, place: int) -> Row:
        key, stray = self._keys[place], bool(self._stray[place])
        cell = fmt.leaf_cell(self.pages[self._page[place]], self._at[place])
        columns = None if cell is None else fmt.columns(cell.local, _COLUMNS)
        if cell is None or columns is None:
            return Row(key, None, None, stray)
        payload = self._payload(cell)
        tag, value = columns[_TAG], columns[_VALUE]
        return Row(key, _part(payload, tag) if tag.kind else None, _part(payload, value), stray)

    def _payload(self, cell: fmt.Cell) -> bytes:
        """A record whole, or as much of it as its chain of overflow pages leads to."""
        if not cell.overflow or cell.size > MAX_ROW_BYTES:
            return cell.local
        parts, left, following = [cell.local], cell.size - len(cell.local), cell.overflow
        while left > 0 and following:
            page = self.pages[following]
            if not page:
                break
            parts.append(page[4 : 4 + left])
            left -= len(parts[-1])
            following = int.from_bytes(page[:4], "big")
        return b"".join(parts)


def _part(payload: bytes, column: fmt.Column) -> bytes | None:
    data = payload[column.offset : column.offset + column.size]
    return data if len(data) == column.size else None


def _is_plain(columns: list[fmt.Column]) -> bool:
    """Whether agentd can have written it: bytes under an integer, no pickle, no file, no expiry."""
    kinds = [column.kind for column in columns]
    return (
        kinds[_RAW] == kinds[_MODE] == fmt.ONE
        and kinds[_EXPIRE] == kinds[_FILENAME] == fmt.NULL
        and (kinds[_TAG] == fmt.NULL or fmt.is_blob(kinds[_TAG]))
        and fmt.is_blob(kinds[_VALUE])
    )


def _is_row(record: bytes, leaf: int) -> bool:
    """Whether a record is one of the Cache table, or of its index over key and raw."""
    if leaf == fmt.TABLE_LEAF:
        columns = fmt.columns(record, _COLUMNS)
        return columns is not None and columns[0].kind == fmt.NULL
    return _index_entry(record) is not None


def _index_entry(record: bytes) -> tuple[int, int] | None:
    """(key, rowid) of an entry of the index over key and raw."""
    columns = fmt.columns(record, 3)
    if columns is None:
        return None
    key, raw, rowid = (fmt.value_of(record, column) for column in columns)
    return (key, rowid) if isinstance(key, int) and raw == 1 and isinstance(rowid, int) else None


class _IndexKeys:
    """What the unique index over key and raw says that the table holds: its keys of ours in order, with their rowids."""

    def __init__(self, pages: PageFile, root: int, is_ours: Callable[[int], bool]) -> None:
        self._pages = pages
        self._is_ours = is_ours
        self._keys: array[int] = array("q")
        self._rowids: array[int] = array("q")
        self.whole = bool(root) and self._read(root)

    def has(self, key: int, rowid: int) -> bool:
        place = bisect_left(self._keys, key)
        return place < len(self._keys) and self._keys[place] == key and self._rowids[place] == rowid

    def without(self, found: array[int]) -> array[int]:
        """Its keys that are not among those found."""
        there = bytearray(len(self._keys))
        for key in found:
            place = bisect_left(self._keys, key)
            if place < len(self._keys) and self._keys[place] == key:
                there[place] = 1
        return array("q", (key for key, is_there in zip(self._keys, there, strict=True) if not is_there))

    def _read(self, root: int) -> bool:
        """False as soon as something is not as it should be: a part of an index proves nothing."""
        seen = Marks(self._pages.count)
        stack: list[int | bytes] = [root]
        while stack:
            item = stack.pop()
            if isinstance(item, bytes):
                if not self._add(item):
                    return False
                continue
            kind = self._pages.kind(item)
            if kind not in (fmt.INDEX_INTERIOR, fmt.INDEX_LEAF) or item in seen:
                return False
            seen.add(item)
            parts = list(self._parts(self._pages[item], kind))
            if None in parts:
                return False
            stack += [part for part in reversed(parts) if part is not None]
        return True

    @staticmethod
    def _parts(page: bytes, kind: int) -> Iterator[int | bytes | None]:
        """Child pages and records of an index page, in order; None for a cell that is none."""
        interior = kind == fmt.INDEX_INTERIOR
        for at in fmt.pointers(page, 0):
            if interior:
                yield int.from_bytes(page[at : at + 4], "big")
            cell = fmt.index_cell(page, at + 4 if interior else at)
            yield None if cell is None else cell.local
        if interior:
            yield int.from_bytes(page[8:12], "big")

    def _add(self, record: bytes) -> bool:
        entry = _index_entry(record)
        if entry is None:
            return fmt.columns(record, 3) is not None  # a foreign row's
        key, rowid = entry
        if not self._is_ours(key):
            return True
        if self._keys and key <= self._keys[-1]:
            return False
        self._keys.append(key)
        self._rowids.append(rowid)
        return True
