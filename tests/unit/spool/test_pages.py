"""SQLite's file format as SQLite itself writes it."""

import sqlite3
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.spool import pages


@pytest.mark.parametrize(
    ("data", "value", "behind"),
    [
        (b"\x00", 0, 1),
        (b"\x7f", 127, 1),
        (b"\x81\x00", 128, 2),
        (b"\xff\x7f", 16383, 2),
        (b"\xff" * 9, 2**64 - 1, 9),
        (b"\x80" * 8 + b"\x05", 5, 9),
        (b"\x81", 1, 1),
        (b"", 0, 0),
    ],
)
def test_a_varint(data, value, behind):
    """Seven bits a byte, eight in the ninth; one that is cut off ends where the bytes do."""
    assert pages.varint(data, 0) == (value, behind)


@given(st.binary(max_size=40), st.integers(0, 45))
def test_no_varint_reads_beyond_the_bytes(data, at):
    """Whatever stands there, the place behind it is within the bytes."""
    _, behind = pages.varint(data, min(at, len(data)))
    assert behind <= len(data)


@given(st.binary(max_size=600), st.integers(0, 65535))
def test_no_bytes_make_it_raise(data, at):
    """Pages, cells and records of any content give something or nothing, never an error."""
    pages.page_size(data)
    pages.is_sensible(data)
    if pages.kind(data, 0):
        list(pages.children(data, 0))
    for cell in (pages.leaf_cell(data, at), pages.index_cell(data, at)):
        assert cell is None or len(cell.local) <= max(cell.size, 0)
    for count in (1, 3, 12):
        for column in pages.columns(data, count) or ():
            pages.value_of(data, column)
    pages.map_kinds(data)


VALUES = [
    None, 0, 1, -1, 127, -128, 2**15, 2**23, -(2**31), 2**40, 2**62, -(2**63), 0.5, -1e300, "", "text", "ü" * 40, b"", b"\x00" * 90,
]  # fmt: skip


@pytest.fixture
def database(tmp_path):
    path = tmp_path / "a.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE T (id INTEGER PRIMARY KEY, a, b)")
        connection.executemany("INSERT INTO T VALUES (?, ?, ?)", [(n - 5, v, n) for n, v in enumerate(VALUES)])
        connection.execute("CREATE INDEX I ON T (a, b)")
        connection.execute("INSERT INTO T VALUES (1000, zeroblob(20000), 1)")
    return path.read_bytes()


def page_of(database, number, size=4096):
    return database[(number - 1) * size : number * size]


def test_records_are_read_as_sqlite_wrote_them(database):
    """Every type of value, negative rowids included; the alias of the rowid is stored as NULL."""
    assert pages.page_size(database[:100]) == 4096
    root = next(n for n in range(2, 9) if pages.kind(page_of(database, n), 0) == pages.TABLE_LEAF)
    page = page_of(database, root)
    found = {}
    for at in pages.pointers(page, 0):
        cell = pages.leaf_cell(page, at)
        columns = pages.columns(cell.local, 3)
        assert columns[0].kind == pages.NULL
        found[cell.rowid] = pages.value_of(cell.local, columns[1])
        assert (cell.overflow > 0) == (cell.rowid == 1000)
        assert pages.columns(cell.local, 2) is None
    del found[1000]
    assert found == {n - 5: v for n, v in enumerate(VALUES)}


def test_an_index_is_read_as_sqlite_wrote_it(database):
    """Its entries hold the columns and the rowid, in the order of SQLite's comparison."""
    root = next(n for n in range(2, 9) if pages.kind(page_of(database, n), 0) == pages.INDEX_LEAF)
    page = page_of(database, root)
    rowids = []
    for at in pages.pointers(page, 0):
        cell = pages.index_cell(page, at)
        columns = pages.columns(cell.local, 3)
        rowids.append(pages.value_of(cell.local, columns[2]))
    assert sorted(rowids, key=str) == sorted(
        [*range(-5, len(VALUES) - 5), None], key=str
    )  # one lies behind the page's end
    assert rowids[0] == -5  # NULL comes first


@pytest.mark.parametrize("size", [512, 4096, 65536])
def test_pointer_maps_are_where_sqlite_puts_them(size):
    """The first is page 2, each speaks of those behind it, and the page of the locks is passed over."""
    every = size // 5 + 1
    assert pages.map_page(3, size) == 2
    assert pages.map_page(2 + every, size) == 2 + every
    assert pages.map_page(1 + every, size) == 2
    lock = pages.lock_page(size)
    assert (lock - 1) * size == 2**30
    assert all(pages.map_page(n, size) != lock for n in range(lock - 2, lock + 3))


def test_a_pointer_map_says_what_pages_are_for(tmp_path):
    """As auto_vacuum writes it: roots, free pages, overflow; a page with anything else in it is none."""
    path = tmp_path / "a.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA auto_vacuum = 2")
        connection.execute("CREATE TABLE T (a)")
        connection.execute("INSERT INTO T VALUES (zeroblob(9000))")
        connection.execute("INSERT INTO T VALUES (zeroblob(9000))")
        connection.execute("DELETE FROM T WHERE rowid = 2")
    content = path.read_bytes()
    kinds = pages.map_kinds(page_of(content, 2))
    assert list(kinds[:6]) == [pages.MAP_ROOT, 3, 4, pages.MAP_FREE, pages.MAP_FREE, 0]
    assert pages.map_kinds(page_of(content, 3)) == b""
    assert pages.map_kinds(bytes(4096)) == b""


@pytest.mark.parametrize(
    ("field", "size"), [(b"\x10\x00", 4096), (b"\x00\x01", 65536), (b"\x10\x01", None), (b"\x00\x00", None)]
)
def test_the_page_size_of_a_header(field, size):
    """Powers of two from 512 on; 1 stands for 65,536."""
    assert pages.page_size(pages.MAGIC + field + bytes(82)) == size
    assert pages.page_size(b"SQLite format 4\0" + field + bytes(82)) is None
