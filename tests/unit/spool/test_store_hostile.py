"""diskcache, tamed: whatever somebody has put into the database, nothing is executed, followed or believed."""

import os
import pickle
import sqlite3
from contextlib import closing

import pytest

from agentd.errors import SpoolDamaged, StateError
from agentd.spool import store as stores
from agentd.spool.store import BytesDisk, DiskFull, Put, Store, inspect, key_of


class Trap:
    """Whoever unpickles this leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "spool"
    store = Store(path, "full")
    store.commit([Put(key_of(1, 1), b"good", b"tag")], [])
    store.close()
    return path


def plant(folder, **columns):
    """A row as somebody with plain sqlite3 would write it."""
    facts = {
        "key": key_of(1, 7),
        "raw": 1,
        "mode": 1,
        "filename": None,
        "value": b"bad",
        "size": 0,
        "store_time": 0.0,
    } | columns
    names = ", ".join(facts)
    with closing(sqlite3.connect(folder / "cache.db")) as connection, connection:
        marks = ", ".join("?" * len(facts))
        connection.execute(f"INSERT INTO Cache ({names}) VALUES ({marks})", list(facts.values()))


def opened(folder):
    return closing(Store(folder, "full"))


@pytest.mark.parametrize("place", ["value", "file", "key"])
def test_a_planted_pickle_is_not_executed(folder, tmp_path, place):
    """A pickle as value, as value file or as key is found as foreign and runs nothing (CVE-2025-69872)."""
    trap = pickle.dumps(Trap(tmp_path / "executed"))
    if place == "value":
        plant(folder, mode=4, value=trap)
    elif place == "file":
        (folder / "trap.val").write_bytes(trap)
        plant(folder, mode=4, value=None, filename="trap.val")
    else:
        plant(folder, key=trap, raw=0)
    with opened(folder) as store:
        (rowid,) = store.foreign()
        if place != "key":
            with pytest.raises(SpoolDamaged):
                store.read(key_of(1, 7))
        assert store.copy_rowid(rowid)
        store.delete_rowids([rowid])
        assert store.foreign() == []
        assert list(store.rows(1)) == [(key_of(1, 1), b"good")]
    assert not (tmp_path / "executed").exists()


def test_a_file_name_leads_nowhere(folder, tmp_path):
    """A row that names a file outside is neither read nor deleted with that file."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    plant(folder, mode=2, value=None, filename="../secret")
    with opened(folder) as store:
        with pytest.raises(SpoolDamaged):
            store.read(key_of(1, 7))
        assert b"../secret" in store.copy_rowid(store.foreign()[0])
        store.commit([], [key_of(1, 7)])
        assert store.foreign() == []
    assert secret.read_text() == "secret"


@pytest.mark.parametrize(
    "columns",
    [
        {"value": "text"},
        {"value": 5},
        {"mode": None},
        {"raw": None},
        {"key": "text"},
        {"tag": "text"},
        {"expire_time": 1.0},
    ],
    ids=lambda columns: next(iter(columns)),
)
def test_every_other_form_is_foreign(folder, columns):
    """Only blobs under integers, without file, expiry or odd tags, can be ours."""
    plant(folder, **columns)
    with opened(folder) as store:
        assert len(store.foreign()) == 1


@pytest.mark.parametrize("key", ["_directory", "push", "disk_zzz", "sqlite_temp_store_directory", "eviction"])
def test_foreign_settings_are_refused(folder, key):
    """diskcache sets each settings row as an attribute of itself: an unknown one makes the database untrusted."""
    with closing(sqlite3.connect(folder / "cache.db")) as connection, connection:
        connection.execute("INSERT INTO Settings VALUES (?, ?)", (key, "/elsewhere"))
    with pytest.raises(SpoolDamaged, match="settings"):
        Store(folder, "full")


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER Sweep AFTER INSERT ON Cache BEGIN DELETE FROM Cache; END",
        'CREATE TRIGGER T AFTER INSERT ON Cache FOR EACH ROW BEGIN UPDATE Settings SET value = abs(1) WHERE key = "count"; END',
        "CREATE VIEW V AS SELECT * FROM Cache",
        "CREATE TABLE T (a)",
        "CREATE INDEX Slow ON Cache (hex(value))",
        "CREATE INDEX Some ON Cache (size) WHERE size > 0",
        "ALTER TABLE Cache ADD COLUMN more AS (hex(value))",
        "ALTER TABLE Cache ADD COLUMN more TEXT CHECK (length(more) > 1)",
        "CREATE VIRTUAL TABLE F USING fts5(a)",
    ],
)
def test_a_schema_that_is_not_diskcaches_is_refused(folder, statement):
    """Triggers, views and expressions are programs: before any of them can run the database is called untrusted."""
    with closing(sqlite3.connect(folder / "cache.db")) as connection, connection:
        connection.execute(statement)
    with pytest.raises(SpoolDamaged, match=r"schema holds (trigger|view|table|index) \w+, which agentd has not made"):
        Store(folder, "full")


def test_a_schema_of_ours_is_accepted(folder):
    """What diskcache makes, with whatever settings, is what is allowed."""
    with opened(folder) as store:
        assert store.foreign() == []
    inspect(folder)


def test_an_index_that_does_not_fit_its_table_is_damage(folder):
    """A row that the index has under another key would be whole and never found."""
    with closing(sqlite3.connect(folder / "cache.db")) as connection, connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(
            "UPDATE sqlite_master SET sql = 'CREATE UNIQUE INDEX Cache_key_raw ON Cache(size, raw)' WHERE name = 'Cache_key_raw'"
        )
    with pytest.raises(SpoolDamaged, match="index"):
        Store(folder, "full")


def test_a_foreign_row_that_stays_hurts_nobody(folder):
    """Where the disk has no room to delete it, rows of a wrong form are passed over by whoever reads a table."""
    for number, columns in enumerate(
        [{"value": None, "mode": 2, "filename": "x"}, {"value": "text"}, {"tag": "text"}, {"key": key_of(1, 7) + 0.5}]
    ):
        plant(folder, **({"key": key_of(1, 7 + number)} | columns))
    with opened(folder) as store:
        assert [key for key, _, _ in store.tags(1)] == [key_of(1, 1)]
        assert [key for key, _ in store.rows(1)] == [key_of(1, 1)]


def test_nobody_else_may_read_it(tmp_path):
    """Folder, database, log and index are ours alone, also where diskcache and SQLite would make them readable."""
    folder = tmp_path / "spool"
    with closing(Store(folder, "full")) as store:
        store.commit([Put(key_of(1, 1), b"x")], [])
        modes = {path.name: path.stat().st_mode & 0o777 for path in [folder, *folder.iterdir()]}
        assert modes == {"spool": 0o700, "cache.db": 0o600, "cache.db-wal": 0o600, "cache.db-shm": 0o600}
        for path in folder.glob("cache.db-*"):
            assert path.exists()
    with closing(Store(folder, "full")) as store:
        store.commit([Put(key_of(1, 2), b"x")], [])
        assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_a_log_without_its_database_is_damage(folder):
    """SQLite would delete it, and with it what was acknowledged."""
    with opened(folder) as store:
        store.commit([Put(key_of(1, 2), b"x")], [])
        log = (folder / "cache.db-wal").read_bytes()
    (folder / "cache.db").unlink()
    (folder / "cache.db-wal").write_bytes(log)
    with pytest.raises(SpoolDamaged, match="missing, and its log is there"):
        inspect(folder)
    assert (folder / "cache.db-wal").read_bytes() == log


@pytest.mark.parametrize(("sync", "damaged"), [("full", True), ("normal", False)])
def test_a_hole_in_the_log_is_damage_where_commits_are_synced(folder, sync, damaged, caplog, tmp_path):
    """SQLite would forget what is behind it without a word; after a power cut under `normal` that is as it should be, and is said."""
    with opened(folder) as store:
        for number in range(2, 9):
            store.commit([Put(key_of(1, number), bytes(3000))], [])
        left = {path.name: path.read_bytes() for path in folder.iterdir()}
    copy = tmp_path / "copy"
    copy.mkdir()
    log = bytearray(left["cache.db-wal"])
    log[len(log) // 2] ^= 1
    (copy / "cache.db").write_bytes(left["cache.db"])
    (copy / "cache.db-wal").write_bytes(log)
    if damaged:
        with pytest.raises(
            SpoolDamaged, match=r"of \d+ committed frames 1 are damaged or cut off, and SQLite would read \d+"
        ):
            Store(copy, sync)
    else:
        Store(copy, sync).close()
        assert 'frames are not on disk whole: with sync = "normal" a power failure takes' in caplog.text


def test_settings_are_as_demanded(folder):
    """Full sync, nothing evicted, nothing in files, no mmap, whatever another opener left in the database."""
    with closing(sqlite3.connect(folder / "cache.db")) as connection, connection:
        for key, value in {
            "eviction_policy": "least-recently-used",
            "cull_limit": 10,
            "sqlite_journal_mode": "delete",
            "size_limit": 1,
        }.items():
            connection.execute("UPDATE Settings SET value = ? WHERE key = ?", (value, key))
    with opened(folder) as store:
        cache = store._cache
        assert (cache.eviction_policy, cache.cull_limit, cache.size_limit, cache.disk_min_file_size) == (
            "none",
            0,
            2**40,
            2**40,
        )
        pragmas = {
            name: cache._con.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("synchronous", "journal_mode", "mmap_size", "auto_vacuum")
        }
        assert pragmas == {"synchronous": 2, "journal_mode": "wal", "mmap_size": 0, "auto_vacuum": 2}
        assert isinstance(cache.disk, BytesDisk)
        store.commit([Put(key_of(1, n), bytes(100_000)) for n in range(2, 6)], [])
        assert [path.name for path in folder.iterdir() if not path.name.startswith("cache.db")] == []


def test_normal_sync_is_what_it_says(tmp_path):
    """`sync = "normal"` gives up commits on power loss, and only that."""
    with closing(Store(tmp_path / "spool", "normal")) as store:
        assert store._cache._con.execute("PRAGMA synchronous").fetchone() == (1,)


@pytest.mark.parametrize("damage", ["empty", "garbage", "no table", "no settings", "page"])
def test_a_damaged_database_is_not_opened(folder, damage):
    """diskcache would open an empty file or a missing table as an empty queue: damage is named instead."""
    path = folder / "cache.db"
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "garbage":
        path.write_bytes(b"garbage " * 1000)
    elif damage == "page":
        with opened(folder) as store:
            store.commit([Put(key_of(1, n), bytes(3000)) for n in range(100)], [])
        data = bytearray(path.read_bytes())
        data[8192:40960] = b"\xff" * 32768
        path.write_bytes(data)
    else:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(f"DROP TABLE {'Cache' if damage == 'no table' else 'Settings'}")
    with pytest.raises(SpoolDamaged, match=r"cache\.db"):
        Store(folder, "full")


def test_a_database_that_is_out_of_reach_is_not_called_damaged(folder, monkeypatch):
    """A database that somebody holds or that can't be opened now is whole: the daemon does not start, and sets nothing aside."""

    def locked(*_):
        error = sqlite3.OperationalError("database is locked")
        error.sqlite_errorcode = sqlite3.SQLITE_BUSY
        raise error

    monkeypatch.setattr(stores.sqlite3, "connect", locked)
    with pytest.raises(StateError, match="locked") as caught:
        inspect(folder)
    assert not isinstance(caught.value, SpoolDamaged)


def test_a_full_disk_at_the_start_is_called_that(folder, monkeypatch):
    """A full disk is no damage: the ballast can help."""

    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(stores.sqlite3, "connect", full)
    with pytest.raises(DiskFull):
        inspect(folder)


def test_a_new_folder_is_no_damage(tmp_path):
    """There is nothing to look at before the first start."""
    inspect(tmp_path)


def test_a_commit_that_fails_at_its_end_leaves_no_transaction(folder):
    """When COMMIT itself fails, the next commit works: no transaction is left open for it to trip over."""
    with opened(folder) as store:
        connection = store._cache._con
        connection.executescript(
            "CREATE TABLE Parent (id INTEGER PRIMARY KEY);"
            "CREATE TABLE Child (id INTEGER REFERENCES Parent (id) DEFERRABLE INITIALLY DEFERRED);"
            "CREATE TRIGGER Trip AFTER INSERT ON Cache BEGIN INSERT INTO Child VALUES (1); END;"
            "PRAGMA foreign_keys = ON;"
        )
        with pytest.raises(sqlite3.IntegrityError):
            store.commit([Put(key_of(1, 2), b"x")], [])
        assert not connection.in_transaction
        connection.execute("DROP TRIGGER Trip")
        store.commit([Put(key_of(1, 3), b"x")], [])
        assert [key for key, _ in store.rows(1)] == [key_of(1, 1), key_of(1, 3)]


def test_a_failing_disk_says_nothing_about_a_row(folder, monkeypatch):
    """An I/O error while reading is passed on as such; only a malformed database damages a row."""
    with opened(folder) as store:

        def failing(error):
            def get(*_):
                raise error

            monkeypatch.setattr(store._cache, "get", get)

        failing(sqlite3.OperationalError("disk I/O error"))
        with pytest.raises(sqlite3.OperationalError):
            store.read(1)
        failing(sqlite3.DatabaseError("database disk image is malformed"))
        with pytest.raises(SpoolDamaged, match="malformed"):
            store.read(1)


def test_a_transaction_that_cannot_begin_says_why(folder):
    """diskcache says `Timeout` with no words; what is raised names the cause, and is an error of SQLite's."""
    with opened(folder) as store, closing(sqlite3.connect(folder / "cache.db", isolation_level=None)) as other:
        store._cache._con.execute("PRAGMA busy_timeout = 0")
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            store.commit([Put(1, b"x")], [])
        other.execute("ROLLBACK")
        store.commit([Put(1, b"x")], [])


def test_room_is_given_back_to_the_file_system(folder):
    """What is deleted makes the file smaller, a few megabytes a step."""
    with opened(folder) as store:
        store.commit([Put(key_of(1, n), bytes(100_000)) for n in range(2, 100)], [])
        store.commit([], [key_of(1, n) for n in range(2, 100)])
        (before,) = store._cache._con.execute("PRAGMA page_count").fetchone()
        assert store.vacuum_step()
        while store.vacuum_step():
            pass
        (after,) = store._cache._con.execute("PRAGMA page_count").fetchone()
        assert after < before / 10
