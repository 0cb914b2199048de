"""What the spool may rely on in a store: the same for the real one and for the one in memory that ships for tests."""

import pytest

from agentd.errors import SpoolDamaged
from agentd.spool.store import DiskFull, Put, Store, key_of, row_of
from agentd.testing import MemoryStore


@pytest.fixture(params=["disk", "memory"])
def store(request, tmp_path):
    made = Store(tmp_path / "spool", "full") if request.param == "disk" else MemoryStore()
    yield made
    made.close()


def test_keys_are_a_table_and_a_row():
    """Each table has its own range of keys, in the order of its rows."""
    assert key_of(3, 17) == 3 << 48 | 17
    assert row_of(key_of(3, 17)) == 17
    assert key_of(3, 2**48 - 1) < key_of(4, 0)


def test_a_commit_writes_replaces_and_deletes(store):
    """All puts and deletes of a commit are there after it; a missing row reads as None, deleting it is no error."""
    store.commit([Put(1, b"one"), Put(2, b"two", b"tag")], [])
    store.commit([Put(1, b"uno")], [2, 99])
    assert store.read(1) == b"uno"
    assert store.read(2) is None
    assert store.read(99) is None


def test_a_key_that_is_put_and_deleted_is_gone(store):
    """Deletes come after puts within a commit."""
    store.commit([Put(1, b"one")], [1])
    assert store.read(1) is None


def test_tables_are_apart_and_in_order(store):
    """A table gives its own rows by number, with tags and lengths; empty values and missing tags are kept as they are."""
    store.commit([Put(key_of(1, 5), b"five", b"t5"), Put(key_of(1, 2), b""), Put(key_of(2, 1), b"other")], [])
    store.commit([Put(key_of(1, 2**48 - 1), b"last", b"")], [])
    assert list(store.tags(1)) == [(key_of(1, 2), None, 0), (key_of(1, 5), b"t5", 4), (key_of(1, 2**48 - 1), b"", 4)]
    assert list(store.rows(1)) == [(key_of(1, 2), b""), (key_of(1, 5), b"five"), (key_of(1, 2**48 - 1), b"last")]
    assert list(store.rows(2)) == [(key_of(2, 1), b"other")]
    assert list(store.tags(3)) == []


@pytest.mark.parametrize(
    "wrong", [Put(1, bytearray(b"x")), Put(1, "text"), Put(1, None), Put("key", b"x"), Put(1.5, b"x")]
)
def test_only_bytes_under_integers_are_taken(store, wrong):
    """Anything that a store might pickle is refused, and the commit leaves nothing behind."""
    with pytest.raises(SpoolDamaged):
        store.commit([Put(7, b"neighbour"), wrong], [])
    assert store.read(7) is None
    store.commit([Put(7, b"later")], [])
    assert store.read(7) == b"later"


def test_nothing_is_foreign_in_a_store_of_ours(store):
    """What was written here is never set aside."""
    store.commit([Put(key_of(1, 1), b"x", b"tag"), Put(key_of(9, 0), b"y")], [])
    assert store.foreign() == []
    store.delete_rowids([])
    assert store.read(key_of(1, 1)) == b"x"


def test_free_room_is_given_back_in_steps(store):
    """Housekeeping ends: a step says whether there is more."""
    store.commit([Put(n, bytes(20_000)) for n in range(100)], [])
    store.commit([], range(100))
    while store.vacuum_step():
        pass
    assert store.file_bytes() >= 0


def fill(store):
    if isinstance(store, MemoryStore):
        store.full = 1
    else:
        (pages,) = store._cache._con.execute("PRAGMA page_count").fetchone()
        store._cache._con.execute(f"PRAGMA max_page_count = {pages}")


def empty(store):
    if isinstance(store, Store):
        store._cache._con.execute("PRAGMA max_page_count = 1000000")


def test_a_full_disk_keeps_nothing_of_a_commit(store):
    """Promise 1: a commit that finds no room raises DiskFull, leaves the rows as they were, and works when there is room."""
    store.commit([Put(1, b"one")], [])
    fill(store)
    with pytest.raises(DiskFull, match="full"):
        store.commit([Put(1, b"changed"), *[Put(n, bytes(100_000)) for n in range(10, 30)]], [])
    assert store.read(1) == b"one"
    assert store.read(10) is None
    empty(store)
    store.commit([Put(10, b"ten")], [])
    assert store.read(10) == b"ten"


def test_a_memory_store_fails_and_crashes_on_demand():
    """The faults of the fake: a damaged row, a planted one, a log of commits, and the state that a crash leaves."""
    store = MemoryStore()
    store.commit([Put(1, b"one", b"tag"), Put(2, b"two")], [])
    store.damage(1)
    rowid = store.plant(b"hostile")
    with pytest.raises(SpoolDamaged, match="row 0x1"):
        store.read(1)
    found = store.crash()
    store.commit([Put(3, b"three")], [2])
    assert [(commit.puts, commit.deletes) for commit in store.commits] == [((1, 2), ()), ((3,), (2,))]
    assert (found.read(2), found.read(3), found.commits) == (b"two", None, [])
    with pytest.raises(SpoolDamaged):
        found.read(1)
    found.change(2, b"altered")
    assert (found.read(2), store.read(2)) == (b"altered", None)
    assert found.foreign() == [rowid]
    assert b"hostile" in found.copy_rowid(rowid)
    found.delete_rowids([rowid])
    assert found.foreign() == []
    assert repr(found) == "<MemoryStore 2 rows, 0 commits>"
