"""Looking into a spool: all of it is seen, of one moment, and nothing on disk changes by it."""

import os
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
from contextlib import closing
from pathlib import Path

import pytest
from look_kit import Disk, files_of, killed

from agentd.errors import NewerFormat, SpoolDamaged, StateError
from agentd.outcomes import State
from agentd.spool import look as looks
from agentd.spool.look import look, open_rows, running_pid
from agentd.spool.newer import refuse_newer
from agentd.spool.readonly import ReadOnlyStore
from agentd.spool.store import Put, Store, key_of
from agentd.spool.tables import FORMAT, Meta, Table, encode_meta

NOW_US = 1_767_300_000_000_000


@pytest.fixture
async def disk(tmp_path):
    """A spool with something in each table, that was closed in order."""
    made = Disk(tmp_path)
    await made.open()
    await made.fill()
    await made.stop()
    yield made
    await made.stop()


def seen(folder):
    """What a look finds: queued per destination, letters, gates, what the books say was delivered."""
    with look(folder, NOW_US) as (ledger, _):
        return (
            {name: queue.live for name, queue in ledger.queues.items()},
            ledger.dead_count,
            [stored.brief.gate_id for stored in ledger.gates],
            ledger.books.total("cloud", State.DELIVERED),
            len(ledger.refs),
            len(ledger.seals),
        )


async def test_a_look_finds_what_a_start_finds(disk):
    """Books, queues, letters, gates, references and seals are those that the next daemon goes on with."""
    found = seen(disk.folder)
    spool = await disk.open()
    assert found == (
        {name: queue.live for name, queue in spool.queues.items()},
        spool.dead_count,
        [stored.brief.gate_id for stored in spool.ledger.gates],
        spool.books.total("cloud", State.DELIVERED),
        len(spool.refs),
        len(spool.seals),
    )
    assert found[:2] == ({"cloud": 6, "local": 2}, 2)


async def test_a_look_changes_nothing_on_disk(disk):
    """Promise 8, read-only: every file of a stopped spool is as it was, and there is none more."""
    before = files_of(disk.folder)
    seen(disk.folder)
    assert files_of(disk.folder) == before


def test_a_killed_spool_is_read_with_its_log_and_stays_as_it_is(tmp_path):
    """After kill -9 what the log holds is seen; log, index and database are as they were, for recovery to judge them."""
    disk = killed(tmp_path)
    before = files_of(disk.folder)
    assert "spool/cache.db-wal" in before
    assert seen(disk.folder)[:2] == ({"cloud": 6, "local": 2}, 2)
    assert files_of(disk.folder) == before


def test_a_log_without_its_index_is_read(tmp_path):
    """The index is SQLite's scratch paper: a copy of a folder may lack it."""
    disk = killed(tmp_path)
    (disk.folder / "spool" / "cache.db-shm").unlink()
    assert seen(disk.folder)[:2] == ({"cloud": 6, "local": 2}, 2)


async def test_a_look_beside_a_daemon_is_of_one_moment(disk):
    """What is committed while somebody looks is not seen by him, and the daemon is not held up."""
    spool = await disk.open()
    with look(disk.folder, NOW_US) as (ledger, store):
        before = len(list(store.rows(Table.SEGMENT)))
        await disk.put(5)
        assert len(list(store.rows(Table.SEGMENT))) == before
        assert ledger.queues["cloud"].live == 6
    with look(disk.folder, NOW_US) as (ledger, _):
        assert ledger.queues["cloud"].live == 11
    assert spool.queues["cloud"].live == 11


async def starts_and_writes(disk, error=None):
    """A daemon, while somebody reads; what the reader then meets."""
    await disk.open()
    await disk.put(1)
    if error is not None:
        raise error


async def test_a_daemon_that_starts_meanwhile_is_noticed(disk):
    """Where none runs nothing keeps one from starting: what was read then is of no one moment, and is not given out."""
    with pytest.raises(StateError, match="a daemon was started while it was read"), look(disk.folder, NOW_US):
        await starts_and_writes(disk)


async def test_damage_that_a_start_has_made_is_not_called_damage(disk):
    """Pages that change under the reader look damaged: the daemon that did it is named instead."""
    with pytest.raises(StateError, match="a daemon was started") as caught, open_rows(disk.folder):
        await starts_and_writes(disk, SpoolDamaged("a page that was written over"))
    assert not isinstance(caught.value, SpoolDamaged)


async def test_a_store_that_is_read_can_not_be_written(disk):
    """Whatever would write raises StateError."""
    with closing(ReadOnlyStore(disk.folder / "spool")) as store:
        with pytest.raises(StateError, match="only read"):
            store.commit([Put(1, b"")], [])
        with pytest.raises(StateError, match="only read"):
            store.delete_rowids([1])
        assert store.vacuum_step() is False


async def test_it_reads_as_the_daemons_own_store_does(disk):
    """One store, two ways to read it: the same rows, tags and foreign rows."""
    disk.sql("INSERT INTO Cache (key, raw, mode, value) VALUES ('text', 1, 1, x'00')")
    disk.sql("INSERT INTO Cache (key, raw, mode, value) VALUES (?, 0, 4, x'00')", key_of(Table.SEGMENT, 900))
    disk.sql("INSERT INTO Cache (key, raw, mode, value, tag) VALUES (?, 1, 1, x'00', 'no')", key_of(Table.DEAD, 901))
    with closing(Store(disk.folder / "spool", "full")) as own, closing(ReadOnlyStore(disk.folder / "spool")) as store:
        assert sorted(store.foreign()) == sorted(own.foreign())
        assert len(store.foreign()) == 3
        assert b"text" in store.copy_rowid(store.foreign()[0])
        for table in Table:
            assert list(store.rows(table)) == list(own.rows(table))
            assert list(store.tags(table)) == list(own.tags(table))
        for key, value in own.rows(Table.SEGMENT):
            assert store.read(key) == value
        assert store.read(key_of(Table.SEGMENT, 12345)) is None
        assert store.check() == []


def test_no_spool_and_no_folder_are_said_so(tmp_path):
    """Nothing is made where there is nothing."""
    with pytest.raises(StateError, match="No such file"), look(tmp_path / "nowhere", NOW_US):
        pass
    (tmp_path / "state").mkdir()
    with pytest.raises(StateError, match="there is no spool"), look(tmp_path / "state", NOW_US):
        pass
    assert list((tmp_path / "state").iterdir()) == []


@pytest.mark.parametrize("content", [b"no database at all" * 100, b""])
def test_what_is_no_database_is_said_so(tmp_path, content):
    """A file of somebody else's in the database's place."""
    (tmp_path / "spool").mkdir(mode=0o700)
    (tmp_path / "spool" / "cache.db").write_bytes(content)
    with pytest.raises(SpoolDamaged), look(tmp_path, NOW_US):
        pass


def test_a_view_in_the_tables_place_is_not_read(tmp_path):
    """A view is a program of whoever made it."""
    (tmp_path / "spool").mkdir(mode=0o700)
    with closing(sqlite3.connect(tmp_path / "spool" / "cache.db")) as connection:
        connection.execute("CREATE VIEW Cache AS SELECT 1 AS key")
    with pytest.raises(SpoolDamaged, match="its schema holds view Cache"), look(tmp_path, NOW_US):
        pass


_COLUMNS = "rowid INTEGER PRIMARY KEY, key BLOB, raw INTEGER, expire_time REAL, tag BLOB, mode INTEGER, filename TEXT"


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ("CREATE TABLE users (name TEXT)", "its schema holds table users"),
        (f"CREATE TABLE Cache ({_COLUMNS}, value BLOB AS (zeroblob(900000000)))", "its schema holds table Cache"),
        (
            "CREATE VIRTUAL TABLE Cache USING fts5(key, raw, expire_time, tag, mode, filename, value)",
            "its schema holds",
        ),
        (f"CREATE TABLE Cache ({_COLUMNS}, value BLOB)", "its tables are missing"),
        ("CREATE TABLE Cache (key BLOB, raw INTEGER)", "its tables are missing"),
    ],
    ids=["another program's", "a computed column", "a virtual table", "no settings", "other columns"],
)
def test_a_foreign_database_gets_a_sentence(tmp_path, made, said):
    """Its schema is looked at before a row of it is asked for: nothing of it runs, and no error is a riddle."""
    (tmp_path / "spool").mkdir(mode=0o700)
    with closing(sqlite3.connect(tmp_path / "spool" / "cache.db")) as connection, connection:
        connection.execute(made)
        if "key" in made:
            connection.execute("INSERT INTO Cache (key, raw) VALUES (?, 1)", (key_of(Table.META, 0),))
    refuse_newer(tmp_path / "spool")
    with pytest.raises(StateError, match=said), open_rows(tmp_path):
        pass


async def test_a_newer_spool_gives_no_rows_either(disk):
    """Rows that mean something else by now are not looked through, whatever for."""
    disk.change(key_of(Table.META, 0), encode_meta(Meta(format=FORMAT + 1)))
    with pytest.raises(NewerFormat, match="start the newer agentd"), open_rows(disk.folder):
        pass


async def test_a_newer_spool_is_refused(disk):
    """A folder of a newer agentd is left to that one."""
    disk.change(key_of(Table.META, 0), encode_meta(Meta(format=FORMAT + 1)))
    with pytest.raises(NewerFormat), look(disk.folder, NOW_US):
        pass


async def test_a_damaged_row_is_counted_and_left_where_it_is(disk, caplog):
    """A look tells of damage and sets nothing aside: that is for the daemon."""
    (key,) = disk.keys(Table.GATE)
    disk.change(key, b"damaged", "tag")
    disk.change(key, b"damaged")
    before = files_of(disk.folder)
    with look(disk.folder, NOW_US) as (ledger, _):
        assert ledger.quarantined_rows == 1
    assert files_of(disk.folder) == before
    assert "left where it is" in caplog.text


async def test_who_runs_is_read_from_the_kernel(disk):
    """The lock itself says whether a daemon runs, not the file that it is on; looking takes no lock."""
    assert running_pid(disk.folder) is None
    await disk.open()
    assert running_pid(disk.folder) == os.getpid()
    await disk.stop()
    assert running_pid(disk.folder) is None
    assert running_pid(disk.folder / "nowhere") is None


def test_without_proc_nobody_is_known_to_run(monkeypatch, tmp_path):
    """A system that tells nothing of its locks."""
    (tmp_path / "lock").touch()
    monkeypatch.setattr(looks.Path, "read_text", lambda _: (_ for _ in ()).throw(OSError("no")))
    assert running_pid(tmp_path) is None


_AS_ROOT = textwrap.dedent(
    """
    import os, sys
    from pathlib import Path
    from agentd.spool.look import look
    with look(Path(sys.argv[1]), 1) as (ledger, store):
        print({name: queue.live for name, queue in ledger.queues.items()}, os.geteuid())
    """
)


def below_tmp(path):
    """The folder and those above it that are the tests' own."""
    shared = Path(tempfile.gettempdir())
    return [folder for folder in (path, *path.parents) if folder.is_relative_to(shared) and folder != shared]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_root_leaves_nothing_of_its_own_in_a_service_users_folder(tmp_path):
    """A look as root goes on as the folder's owner: the next daemon finds no file that it may not open."""
    disk = killed(tmp_path)
    (disk.folder / "spool" / "cache.db-shm").unlink()  # what SQLite makes anew is the owner's
    for path in (disk.folder, *disk.folder.rglob("*")):
        os.chown(path, 4711, 4711)
    for path in below_tmp(tmp_path):
        path.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", _AS_ROOT, str(disk.folder)], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("{'cloud': 6, 'local': 2} 4711\n", "")
    assert {facts[1] for facts in files_of(disk.folder).values()} == {4711}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_somebody_elses_folder_is_refused(tmp_path):
    """Who is neither root nor the owner gets a sentence, and nothing is opened."""
    disk = killed(tmp_path)
    for path in below_tmp(tmp_path):
        path.chmod(0o755)
    script = _AS_ROOT.replace("with look", "os.setuid(4711)\nwith look")
    done = subprocess.run([sys.executable, "-c", script, str(disk.folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "belongs to uid 0, not to us (uid 4711)" in done.stderr
