"""The store on real small disks that are full to the last byte: what it can still do there, and that it says when it can't."""

import os
import sqlite3
from types import SimpleNamespace

import pytest
from disk_kit import MIB, fill, free_bytes, mount, release

from agentd.spool.store import DiskFull, Put, Store, key_of
from agentd.spool.tables import Table

ROW = 200_000


@pytest.fixture(params=["tmpfs", "ext4"])
def disk(request, tmp_path):
    return mount(SimpleNamespace(folder=tmp_path, on_exit=request.addfinalizer), request.param, 64)


@pytest.fixture
def store(disk):
    made = Store(disk / "spool", "full")
    yield made
    made.close()


def put(row):
    return Put(key_of(Table.SEGMENT, row), os.urandom(ROW), b"tag")


def begin_log_anew(store):
    """All of it is in the database, which has the size that it needs."""
    store._cache._con.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()


def log_bytes(disk):
    return (disk / "spool" / "cache.db-wal").stat().st_size


def test_what_is_deleted_makes_room_for_what_is_put(store, disk):
    """In one commit, and in the log's old place: so a dead letter takes the room of its record, however often."""
    for row in range(40):
        store.commit([put(row)], [])
    begin_log_anew(store)
    fill(disk)
    for row in range(100):
        store.commit([put(40 + row)], [key_of(Table.SEGMENT, row)])
    assert free_bytes(disk) < 64 * 1024
    assert [key for key, _, _ in store.tags(Table.SEGMENT)] == [key_of(Table.SEGMENT, row) for row in range(100, 140)]


def test_a_log_that_has_reached_the_disks_end_is_begun_anew(disk):
    """SQLite would do so behind its next commit, and that finds no room."""
    store = Store(disk / "spool", "full")
    for row in range(20):
        store.commit([put(row)], [])
    store.close()
    store = Store(disk / "spool", "full")
    for row in range(8):  # fewer than 1000 pages, so that nothing has moved them yet
        store.commit([put(20 + row)], [key_of(Table.SEGMENT, row)])
    fill(disk)
    before = log_bytes(disk)
    assert before < 2 * MIB
    for row in range(8, 18):
        store.commit([put(20 + row)], [key_of(Table.SEGMENT, row)])
    assert log_bytes(disk) < before + 8192  # a part of a frame may stand at its end
    assert [key for key, _, _ in store.tags(Table.SEGMENT)] == [key_of(Table.SEGMENT, row) for row in range(18, 38)]
    store.close()


def test_only_room_that_the_file_has_is_free(store, disk):
    """Pages that stand in the log alone have no place on a full disk: they are not counted, and neither are those that they owe."""
    for row in range(10):
        store.commit([put(row)], [])
    store.commit([], [key_of(Table.SEGMENT, row) for row in range(5)])
    assert store.free_bytes() == 0
    begin_log_anew(store)
    assert 5 * ROW <= store.free_bytes() <= 6 * ROW
    fill(disk)
    free = store.free_bytes()
    for row in range(100):
        if store.free_bytes() < ROW + 8192:
            break
        store.commit([put(100 + row)], [])
    assert row >= 4
    assert store.free_bytes() < free


def test_room_is_claimed_once(store, disk):
    """It is in the file and the log can be begun anew; while half of it is free there is nothing to do."""
    store.commit([put(0)], [])
    store.claim(2 * MIB)
    assert 2 * MIB <= store.free_bytes() <= 3 * MIB
    size = (disk / "spool" / "cache.db").stat().st_size
    assert log_bytes(disk) >= 2 * MIB
    store.claim(4 * MIB)
    assert (disk / "spool" / "cache.db").stat().st_size == size
    fill(disk)
    for row in range(1, 8):
        store.commit([put(row)], [])
    with pytest.raises(DiskFull):
        store.claim(4 * MIB)
    release(disk)
    store.claim(4 * MIB)
    assert store.free_bytes() >= 4 * MIB


@pytest.mark.parametrize("size", [3 * MIB, 9 * MIB], ids=["at its end", "in the middle"])
def test_a_commit_without_room_says_so_and_leaves_nothing(store, disk, size):
    """Also where SQLite has rolled back by itself in the middle of it, and diskcache's own ROLLBACK fails."""
    store.commit([put(0)], [])
    begin_log_anew(store)
    fill(disk)
    for _ in range(2):
        with pytest.raises(DiskFull):
            store.commit([Put(key_of(Table.SEGMENT, 1), bytes(size)), put(2)], [key_of(Table.SEGMENT, 0)])
    assert [key for key, _, _ in store.tags(Table.SEGMENT)] == [key_of(Table.SEGMENT, 0)]
    release(disk)
    store.commit([put(2)], [])


def test_giving_room_back_needs_some(store, disk):
    """Moving pages takes room in the log: without any it says so, and all is as it was."""
    for row in range(30):
        store.commit([put(row)], [])
    store.commit([], [key_of(Table.SEGMENT, row) for row in range(20)])
    begin_log_anew(store)
    fill(disk)
    try:
        while store.vacuum_step():
            pass
    except DiskFull:
        release(disk)
        while store.vacuum_step():
            pass
    assert len(list(store.rows(Table.SEGMENT))) == 10
    with sqlite3.connect(disk / "spool" / "cache.db") as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    database.close()
