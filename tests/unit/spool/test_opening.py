"""A damaged store is replaced by what is whole of it: all or nothing, whatever happens on the way."""

import logging
import os
from collections import Counter
from pathlib import Path

import pytest
from damage_kit import LIMITS, PAGE, RealHarness, database, left_behind, overwrite, root_of, sql, told_beforehand, wal

from agentd.errors import NewerFormat, StateError
from agentd.spool import folder as folders
from agentd.spool import opening
from agentd.spool.checked import pack
from agentd.spool.folder import BALLAST_BYTES, Folder
from agentd.spool.journal import Journal
from agentd.spool.recovery import open_spool
from agentd.spool.salvage import Salvage
from agentd.spool.store import DiskFull, Put, Store, inspect, key_of
from agentd.spool.tables import FORMAT, Meta, Table, encode_meta
from agentd.vitals import Pace


class Killed(BaseException):
    """The daemon dies here."""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """What a stop leaves behind."""
    return told_beforehand(tmp_path_factory.mktemp("story"), killed=False)


@pytest.fixture
def harness(stopped, tmp_path, caplog):
    """A folder whose store lost its table's root: all of its rows are whole."""
    caplog.set_level(logging.INFO, "agentd")
    story = stopped.copy(tmp_path / "state")
    overwrite(database(story.folder / "spool"), (root_of(story.folder / "spool", "Cache") - 1) * PAGE, bytes(PAGE))
    made = RealHarness(tmp_path)
    made.bodies_before = story.bodies
    return made


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "stopped"])
async def test_an_index_that_outlives_its_log_is_no_damage(tmp_path, monkeypatch, killed, caplog):
    """SQLite removes a log once all of it is in the database. Power may fail when the disk has forgotten its name and not yet the
    index's, in any state since that was synced: nothing is lost then, nothing is made anew, and nobody is alarmed."""
    story = await left_behind(tmp_path, killed=True)
    spool = story.folder / "spool"
    index = spool / "cache.db-shm"
    on_disk: list[bytes] = []  # what of it is there for certain

    def sync(descriptor: int, real=os.fsync) -> None:
        real(descriptor)
        if index.exists() and os.path.samestat(os.fstat(descriptor), index.stat()):
            on_disk.append(index.read_bytes())

    monkeypatch.setattr(os, "fsync", sync)
    if killed:
        on_disk.append(index.read_bytes())
        inspect(spool)  # whose connection is the only one there is
    else:
        store = Store(spool, "full")
        store.commit([Put(key_of(Table.STREAM, 9), pack(b"x"))], ())
        on_disk.append(index.read_bytes())
        store.close()
    assert not wal(spool).exists()
    assert not index.exists()
    index.write_bytes(on_disk[-1])
    index.chmod(0o600)
    caplog.clear()
    harness = RealHarness(tmp_path)
    harness.folder = story.folder
    await harness.open()
    assert await harness.bodies() == story.bodies
    await harness.stop()
    assert [line.getMessage() for line in caplog.records if line.name == "agentd.spool"] == []


async def opened(harness):
    """What a start finds, once."""
    await harness.open()
    found = await harness.bodies()
    assert harness.balanced()
    await harness.stop()
    return found


STEPS = [
    "begin_salvage 2", "commit 1", "commit 2", "close 1", "quarantine 1", "sync_names 1", "rename 1", "sync_names 2", "rename 2",
    "sync_names 3", "rename 3", "sync_names 4",
]  # fmt: skip


class Knife:
    """Kills at one step, before it is done or after it."""

    def __init__(self, patch, step, *, after):
        self.step, self.after = step, after
        self.counts = Counter()
        for owner, name in (
            (Folder, "begin_salvage"),
            (Folder, "quarantine"),
            (Store, "commit"),
            (Store, "close"),
            (Path, "rename"),
            (folders, "sync_names"),
        ):
            patch.setattr(owner, name, self.around(name, getattr(owner, name)))

    def around(self, name, real):
        def step(*arguments, **options):
            self.counts[name] += 1
            here = self.step == f"{name} {self.counts[name]}"
            if here and not self.after:
                raise Killed
            result = real(*arguments, **options)
            if here:
                raise Killed
            return result

        return step


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS)
async def test_a_kill_at_any_step_loses_and_doubles_nothing(harness, step, after, monkeypatch):
    """Promise 1: a start that dies while it salvages is done again by the next one, from the damaged store, which lies untouched."""
    monkeypatch.setattr("agentd.spool.rebuild._COMMIT_BYTES", 100_000)
    with monkeypatch.context() as patch:
        Knife(patch, step, after=after)
        with pytest.raises(Killed):
            await harness.open()
    assert await opened(harness) == harness.bodies_before
    assert len(list(harness.folder.glob("quarantine/*/spool/cache.db"))) == 1
    assert not (harness.folder / "salvage").exists()
    assert not (harness.folder / "salvaged").exists()
    assert await opened(harness) == harness.bodies_before


async def test_the_damaged_store_is_kept_as_it_was(harness):
    """The quarantine has it byte for byte, with the modes of everything else."""
    before = database(harness.folder / "spool").read_bytes()
    await opened(harness)
    (kept,) = harness.folder.glob("quarantine/*/spool")
    assert database(kept).read_bytes() == before
    modes = {path: path.stat().st_mode & 0o777 for path in harness.folder.rglob("*")}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}


async def test_without_room_nothing_is_changed(harness, monkeypatch):
    """The one damage that keeps a daemon from starting: the error says how much room it takes, and all stays where it is."""
    before = database(harness.folder / "spool").read_bytes()
    room = [10**5]
    monkeypatch.setattr(Folder, "free_bytes", lambda _: room[0])
    with pytest.raises(
        StateError, match=r"damaged .* needs \d+ bytes of room beside it, 100000 are free in .*nothing was changed"
    ):
        await harness.open()
    assert database(harness.folder / "spool").read_bytes() == before
    assert not (harness.folder / "quarantine").exists()
    assert not (harness.folder / "salvage").exists()
    room[0] = 10**9
    assert await opened(harness) == harness.bodies_before


async def test_the_reserve_is_given_for_it(harness, monkeypatch):
    """Promise 1: with the ballast's room alone the start succeeds."""
    first = Folder(harness.folder)
    first.open()
    first.close()
    monkeypatch.setattr(
        Folder, "free_bytes", lambda self: 10**5 + (0 if (self.path / "ballast").exists() else BALLAST_BYTES)
    )
    assert await opened(harness) == harness.bodies_before
    assert not (harness.folder / "ballast").exists()


async def test_a_disk_that_fills_up_on_the_way_gets_its_room_back(harness, monkeypatch):
    """Half a new store is taken away again; the damaged one is untouched."""
    before = database(harness.folder / "spool").read_bytes()

    def full(*_):
        raise DiskFull("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "commit", full)
        with pytest.raises(StateError, match="make room and start again"):
            await harness.open()
    assert database(harness.folder / "spool").read_bytes() == before
    assert not (harness.folder / "salvage").exists()
    assert await opened(harness) == harness.bodies_before


async def test_a_failing_disk_says_so(harness, monkeypatch):
    """An error of the file system is no damage: the start fails with its words, and can be tried again."""

    def failing(*_):
        raise OSError(5, "Input/output error")

    for owner, name in ((Folder, "begin_salvage"), (Folder, "quarantine"), (Path, "rename")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, failing)
            with pytest.raises(StateError, match="Input/output error"):
                await harness.open()
    assert await opened(harness) == harness.bodies_before


async def test_a_defect_of_ours_does_not_keep_the_daemon_from_starting(harness, monkeypatch, caplog):
    """What was found until then is taken, the damaged store lies in the quarantine, and the log has the traceback."""

    def defect(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(Salvage, "_strays", defect)
    await opened(harness)
    assert [record.action for record in caplog.records if record.exc_info] == ["defect"]
    assert list(harness.folder.glob("quarantine/*/spool/cache.db"))


async def test_a_newer_agentds_damaged_spool_is_left_to_it(harness):
    """An older agentd changes nothing of it, also where only the salvage finds out whose it is."""
    folder = harness.folder / "spool"
    for path in folder.iterdir():
        path.unlink()
    store = Store(folder, "full")
    store.commit([Put(key_of(Table.META, 0), encode_meta(Meta(format=FORMAT + 1)))], [])
    store.close()
    overwrite(database(folder), 0, bytes(100))
    before = database(folder).read_bytes()
    with pytest.raises(NewerFormat):
        await harness.open()
    assert database(folder).read_bytes() == before
    assert not (harness.folder / "quarantine").exists()


async def test_what_damage_leaves_behind_is_put_right_also_after_a_kill(stopped, tmp_path, caplog):
    """A start that dies between the new store and its first commit leaves a mark: the next one still makes lost references anew."""
    caplog.set_level(logging.INFO, "agentd")
    story = stopped.copy(tmp_path / "state")
    folder = story.folder / "spool"
    sql(folder, ("UPDATE Cache SET value = x'c100' WHERE key = ?", key_of(Table.REF, 1)))
    overwrite(database(folder), 0, bytes(100))
    harness = RealHarness(tmp_path)
    await harness.open(start=False)
    assert (folder / "unmended").exists()
    await harness.kill()
    spool = await harness.open()
    assert spool.refs.get("cloud", "run", "a").platform_id == "platform-a"
    await spool.barrier()
    assert not (folder / "unmended").exists()
    assert (await harness.restart()).refs.get("cloud", "run", "a").platform_id == "platform-a"
    await harness.stop()


async def test_a_repair_is_seen_to_get_on(harness, monkeypatch):
    """Whoever waits for a start sees steps of it: pages that are searched, rows that are written anew and read again."""
    monkeypatch.setattr("agentd.spool.store._PACE_INSTRUCTIONS", 100)
    pace, steps = Pace(), {}

    def counting(name):
        real = getattr(opening, name)

        def told(*arguments):
            before = pace.steps
            real(*arguments)
            steps[name] = pace.steps - before

        monkeypatch.setattr(opening, name, told)

    for part in ("_survey", "rebuild"):
        counting(part)
    spool = await open_spool(
        harness.folder,
        sync="full",
        limits=LIMITS,
        identities={"cloud": "agentos at one"},
        journal=Journal(10**15, 10**9),
        now_us=lambda: next(harness.clock),
        pace=pace,
    )
    after = pace.steps
    spool.start()
    await spool.close()
    assert steps["_survey"] > 0
    assert steps["rebuild"] > 0
    assert after > sum(steps.values())
