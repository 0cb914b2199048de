"""SQLite's file format, read without SQLite. Pure: bytes in, values out; whatever the bytes are, nothing here raises.

Source: https://www.sqlite.org/fileformat2.html (sections 1.6 b-tree pages, 2.1 record format, 1.8 pointer maps). A database of ours
has no reserved bytes at the end of its pages, so that the usable size is the page size whatever a damaged header says.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

TABLE_INTERIOR, TABLE_LEAF = 0x05, 0x0D
INDEX_INTERIOR, INDEX_LEAF = 0x02, 0x0A
MAGIC = b"SQLite format 3\0"
FILE_HEADER = 100  # bytes before the b-tree header of page 1
NULL, ONE = 0, 9  # serial types of a record's columns; from 12 on blobs are even, texts odd
_SIZES = (0, 1, 2, 3, 4, 6, 8, 8, 0, 0, -1, -1)  # in bytes, by serial type; 10 and 11 are none
MAP_ROOT, MAP_FREE = 1, 2  # what a pointer map says of a page; overflow pages are 3 and 4, b-tree pages 5
_PENDING_BYTE = 0x40000000  # the page that holds it is for locks, never for data

Value: TypeAlias = int | float | bytes | str | None


class Cell(NamedTuple):
    """A cell of a leaf: a record's first bytes, and where the rest of it begins (0 for none)."""

    rowid: int  # 0 in an index
    size: int
    local: bytes
    overflow: int


class Column(NamedTuple):
    """Where a record keeps a column: its serial type, and its place in the payload."""

    kind: int
    offset: int
    size: int


def varint(data: bytes, at: int) -> tuple[int, int]:
    """(value, place behind it); a varint that is cut off ends with the bytes."""
    value = 0
    for place in range(at, min(at + 8, len(data))):
        byte = data[place]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:  # noqa: PLR2004 - the continuation bit
            return value, place + 1
    if at + 8 < len(data):
        return value << 8 | data[at + 8], at + 9
    return value, len(data)


def page_size(header: bytes) -> int | None:
    """The page size that the file's header names, None where there is no header."""
    if header[:16] != MAGIC or len(header) < FILE_HEADER:
        return None
    size = int.from_bytes(header[16:18], "big")
    return known_size(0x10000 if size == 1 else size)


def known_size(size: int) -> int | None:
    """The size if a page can have it."""
    return size if size in {1 << power for power in range(9, 17)} else None


def kind(page: bytes, start: int) -> int:
    """The page's type if its b-tree header makes sense, else 0. `start` is 100 on page 1, else 0."""
    if len(page) < start + 12 or page[start] not in (TABLE_INTERIOR, TABLE_LEAF, INDEX_INTERIOR, INDEX_LEAF):
        return 0
    count = int.from_bytes(page[start + 3 : start + 5], "big")
    content = int.from_bytes(page[start + 5 : start + 7], "big") or 0x10000
    head = _head(page[start])
    return page[start] if start + head + 2 * count <= content <= len(page) else 0


def is_sensible(page: bytes) -> bool:
    """Whether a page has cells, and all of them begin where cells may."""
    if not kind(page, 0):
        return False
    content = int.from_bytes(page[5:7], "big") or 0x10000
    places = pointers(page, 0)
    return bool(places) and content <= min(places) and max(places) < len(page)


def _head(found: int) -> int:
    return 12 if found in (TABLE_INTERIOR, INDEX_INTERIOR) else 8


def pointers(page: bytes, start: int) -> tuple[int, ...]:
    """Where the page's cells begin. What lies outside of them is free: it may hold rows that were deleted."""
    count = int.from_bytes(page[start + 3 : start + 5], "big")
    at = start + _head(page[start])
    return struct.unpack(f">{count}H", page[at : at + 2 * count])


def children(page: bytes, start: int) -> Iterator[tuple[int, int, int]]:
    """(child page, cell's place, largest rowid in it) of an interior table page; the last one has no cell: place 0, rowid 0."""
    for at in pointers(page, start):
        child = int.from_bytes(page[at : at + 4], "big")
        yield child, at, signed(varint(page, at + 4)[0])
    yield int.from_bytes(page[start + 8 : start + 12], "big"), 0, 0


def signed(value: int) -> int:
    """A varint as the signed number that it stands for."""
    return value - (1 << 64) if value >> 63 else value


def leaf_cell(page: bytes, at: int) -> Cell | None:
    """A table leaf's cell, None for what can't be one."""
    size, at = varint(page, at)
    rowid, at = varint(page, at)
    return _cell(page, at, size, signed(rowid), len(page) - 35)


def index_cell(page: bytes, at: int) -> Cell | None:
    """An index page's cell, `at` behind its child pointer; None for what can't be one."""
    size, at = varint(page, at)
    return _cell(page, at, size, 0, (len(page) - 12) * 64 // 255 - 23)


def _cell(page: bytes, at: int, size: int, rowid: int, most: int) -> Cell | None:
    """`most` is how much of a payload may lie on the page; of a larger one a smaller part does (section 1.6)."""
    usable = len(page)
    if usable < 512:  # noqa: PLR2004 - the smallest page that there is
        return None
    if size <= most:
        return Cell(rowid, size, page[at : at + size], 0) if at + size <= usable else None
    least = (usable - 12) * 32 // 255 - 23
    part = least + (size - least) % (usable - 4)
    part = part if part <= most else least
    if at + part + 4 > usable:
        return None
    return Cell(rowid, size, page[at : at + part], int.from_bytes(page[at + part : at + part + 4], "big"))


def columns(payload: bytes, count: int) -> list[Column] | None:
    """The columns of a record that has exactly `count` of them, else None. Needs the record's head only."""
    end, at = varint(payload, 0)
    if not count < end <= min(len(payload), 9 * (count + 1)):
        return None
    found: list[Column] = []
    offset = end
    while at < end:
        serial = payload[at]
        if serial < 0x80:  # noqa: PLR2004 - a varint of one byte, the usual case
            at += 1
        else:
            serial, at = varint(payload, at)
        size = _SIZES[serial] if serial < 12 else (serial - 12) >> 1  # noqa: PLR2004 - see NULL
        if size < 0:
            return None
        found.append(Column(serial, offset, size))
        offset += size
    return found if at == end and len(found) == count else None


def is_blob(serial: int) -> bool:
    """Whether a column of this serial type is a blob."""
    return serial >= 12 and serial % 2 == 0  # noqa: PLR2004 - see NULL


def value_of(payload: bytes, column: Column) -> Value:
    """A column's value, None also where the payload ends before it does."""
    serial, data = column.kind, payload[column.offset : column.offset + column.size]
    if serial in (8, 9):
        return serial - 8
    if serial == NULL or len(data) < column.size:
        return None
    if serial >= 12:  # noqa: PLR2004 - see NULL
        return data.decode(errors="replace") if serial % 2 else data
    if serial == 7:  # noqa: PLR2004 - a double
        return float(struct.unpack(">d", data)[0])
    return int.from_bytes(data, "big", signed=True)


def lock_page(size: int) -> int:
    """The page that is never used."""
    return _PENDING_BYTE // size + 1


def map_page(number: int, size: int) -> int:
    """The pointer-map page that says what page `number` is for (a database with auto_vacuum)."""
    every = size // 5 + 1
    found = (number - 2) // every * every + 2
    return found + 1 if found == lock_page(size) else found


def map_kinds(page: bytes) -> bytes:
    """What a pointer-map page's pages are for, empty for a page that is no pointer map."""
    kinds = page[: len(page) // 5 * 5 : 5]
    return kinds if kinds and kinds[0] and max(kinds) <= 5 else b""  # noqa: PLR2004 - the largest there is
