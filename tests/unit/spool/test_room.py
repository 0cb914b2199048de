"""Room on a full disk: what is free within the store, what is shed for more, and in which order."""

import sqlite3

import pytest
from spool_kit import seal_of

from agentd.errors import SpoolFull
from agentd.outcomes import State
from agentd.queued import Source
from agentd.records import LossClass
from agentd.spool import room
from agentd.spool.committer import RESERVED_BYTES
from agentd.spool.folder import FLOOR_BYTES, Folder
from agentd.spool.store import DiskFull
from agentd.spool.tables import Table

KEEP, INFO, DEBUG = LossClass.KEEP, LossClass.INFO, LossClass.DEBUG
BIG = bytes(50_000)


@pytest.fixture
async def full(harness, monkeypatch):
    """A spool with room for 100 kB within it beside the reserve, on a disk with none."""
    monkeypatch.setattr(Folder, "free_bytes", lambda _self: 0)
    monkeypatch.setattr(room, "SHED_STEP", 1)
    harness.store.free = RESERVED_BYTES + 200_000
    spool = await harness.open(quotas={"cloud": 10**7, "local": 10**7})
    assert spool.disk_full
    await spool.barrier()
    return spool


def shed(spool, name="cloud"):
    return spool.books.total(name, State.SHED)


async def test_room_within_the_store_is_room(full):
    """What was deleted makes room for anything, up to the reserve; a byte costs two, with all that goes with a record."""
    for loss in LossClass:
        assert full.room_for("cloud", 100_000, loss)
        assert not full.room_for("cloud", 100_001, loss)
    assert full.fits("cloud", 100_000)
    assert not full.fits("cloud", 100_001)
    assert full.has_disk_for(100_000)
    assert not full.has_disk_for(100_001)


async def test_what_is_on_its_way_takes_room(full, harness):
    """Until the commit that brings it has measured what is left."""
    stored = full.append({"cloud": harness.records(1, body=bytes(40_000 - 64))})
    assert full.room_for("cloud", 60_000, KEEP)
    assert not full.room_for("cloud", 60_001, KEEP)
    harness.store.free = RESERVED_BYTES + 30_000
    await stored
    assert full.room_for("cloud", 15_000, KEEP)
    assert not full.room_for("cloud", 15_001, KEEP)


async def test_nothing_is_taken_before_it_was_measured(harness, monkeypatch):
    """A disk that has just become full: nobody knows what is free within the store."""
    spool = await harness.open()
    await spool.barrier()
    harness.store.free = 10 * RESERVED_BYTES
    monkeypatch.setattr(Folder, "free_bytes", lambda _self: FLOOR_BYTES - 1)
    spool.check_disk()
    assert not spool.room_for("cloud", 1, KEEP)
    await spool.barrier()
    assert spool.room_for("cloud", 1, KEEP)


async def test_older_debug_goes_before_info_and_both_before_anything_is_refused(full, harness):
    """A full disk sheds like a full queue, from whichever queue has something: its own first."""
    for name in ("cloud", "local"):
        for loss in (DEBUG, INFO, KEEP):
            await harness.put(1, name, loss=loss, body=BIG)
    harness.store.free = RESERVED_BYTES
    await full.barrier()
    full._committer.measure()
    await full.barrier()
    found = []
    while full.room_for("cloud", 15_000, KEEP):
        await harness.put(1, body=bytes(14_900))
        found.append((shed(full), shed(full, "local"), full.queues["cloud"].index.class_bytes[INFO] > 0))
    assert found == [(1, 0, True), (1, 1, True), (2, 1, False), (2, 2, False)]
    assert full.queues["cloud"].index.class_bytes[KEEP] > 100_000
    assert harness.balanced()


@pytest.mark.parametrize(("loss", "sheds"), [(DEBUG, [1, 0]), (INFO, [1, 1])])
async def test_what_arrives_pushes_out_nothing_that_is_worth_more(full, harness, loss, sheds):
    """A debug event takes the place of older debug alone."""
    await harness.put(1, loss=DEBUG, body=BIG)
    await harness.put(1, loss=INFO, body=BIG)
    harness.store.free = RESERVED_BYTES
    full._committer.measure()
    await full.barrier()
    found = []
    for _ in range(2):
        before = shed(full)
        if full.room_for("cloud", 15_000, loss):
            await full.barrier()
        found.append(shed(full) - before)
    assert found == sheds


async def test_nothing_is_shed_in_vain(full, harness):
    """Where all of it would not be enough, where it is sealed, and where it is so small that it frees no page."""
    for name in ("cloud", "local"):
        for _ in range(20):
            await harness.put(1, name, loss=DEBUG, body=bytes(5000))
    await harness.put(1, loss=DEBUG, body=BIG)
    (sealed,) = await harness.put(1, loss=INFO, body=BIG)
    await full.seal(seal_of([sealed]))
    harness.store.free = RESERVED_BYTES
    full._committer.measure()
    await full.barrier()
    assert not full.room_for("cloud", 40_000, KEEP)
    assert shed(full) == 0
    assert full.room_for("cloud", 15_000, KEEP)
    assert (shed(full), shed(full, "local")) == (1, 0)


async def test_what_is_shed_goes_with_the_commit_that_needs_its_room(full, harness):
    """Deleted first, so that there is room for what comes; nothing of it is acknowledged before."""
    await harness.put(1, loss=DEBUG, body=BIG)
    harness.store.free = RESERVED_BYTES
    full._committer.measure()
    await full.barrier()
    commits = len(harness.store.commits)
    assert full.room_for("cloud", 15_000, KEEP)
    await harness.put(1, body=bytes(14_900))
    (commit,) = harness.store.commits[commits:]
    assert {Table(key >> 48) for key in commit.deletes} == {Table.SEGMENT, Table.ENDED}


async def test_a_commit_that_finds_the_disk_full_reserves_room_and_measures_it(harness):
    """Its records are refused; the next ones find what is free beside the reserve, which the ballast has become."""
    spool = await harness.open()
    harness.store.full = 1
    with pytest.raises(SpoolFull):
        await spool.append({"cloud": harness.records(1)})
    assert not (harness.folder / "ballast").exists()
    await spool.barrier()
    assert harness.store.free == RESERVED_BYTES
    assert not spool.room_for("cloud", 1, KEEP)
    harness.store.free += 20_000
    spool._committer.measure()
    await spool.barrier()
    assert spool.room_for("cloud", 10_000, KEEP)


async def test_while_the_disk_fills_room_is_reserved_within_the_store(harness, monkeypatch):
    """Before it is full: then it would be too late, since a neighbour takes what is given back."""
    spool = await harness.open()
    await spool.barrier()
    assert harness.store.free == 0
    monkeypatch.setattr(Folder, "free_bytes", lambda _self: room.LOW_BYTES - 1)
    spool.check_disk()
    await spool.barrier()
    assert harness.store.free == RESERVED_BYTES


async def test_free_room_goes_back_to_the_file_system_while_that_has_plenty(harness, monkeypatch):
    """On a disk that is full or nearly so, some stays within the store; a disk too full for giving back is no failure."""
    asked = []
    spool = await harness.open()
    monkeypatch.setattr(harness.store, "vacuum_step", lambda: asked.append(1) or False)
    assert not await spool.vacuum()
    assert asked == [1]
    monkeypatch.setattr(Folder, "free_bytes", lambda _self: room.LOW_BYTES - 1)
    spool.check_disk()
    harness.store.free = room.KEPT_BYTES
    assert not await spool.vacuum()
    assert asked == [1]
    harness.store.free += 1
    assert not await spool.vacuum()
    assert asked == [1, 1]
    for error in (DiskFull("full"), sqlite3.OperationalError("disk I/O error")):

        def fail(error=error):
            raise error

        monkeypatch.setattr(harness.store, "vacuum_step", fail)
        assert not await spool.vacuum()


ME, OTHER, THIRD = 1000, 1001, 1002


@pytest.fixture
async def shared(harness, monkeypatch):
    """A queue of 1.6 MB; 400 kB of it are kept for users who hold less than 100 kB."""
    monkeypatch.setattr(room, "SHED_STEP", 1)
    return await harness.open(quotas={"cloud": 1_600_000, "local": 10**7})


async def fill(spool, harness, uid, loss, count=1):
    """Put records of 50 kB of a user's as long as there is room, at most so many; how many there were."""
    done = 0
    while done < count and spool.room_for("cloud", 50_064, loss, uid):
        entries = harness.records(1, body=BIG, loss=loss)
        entries[0].source = Source("", uid, 1, "test")
        await spool.append({"cloud": entries})
        done += 1
    return done


async def test_a_user_alone_may_fill_a_queue(shared, harness):
    """Nothing is kept back from him as long as nobody else sends anything."""
    assert await fill(shared, harness, ME, KEEP, 100) == 31


async def test_a_user_beside_others_leaves_a_quarter_for_those_who_hold_little(shared, harness):
    """As soon as there are others, whether they have begun or are only expected: each is sure of a sixteenth."""
    shared.ledger.senders.update([ME, OTHER])
    assert await fill(shared, harness, ME, KEEP, 100) == 23
    assert await fill(shared, harness, OTHER, KEEP, 100) == 1  # with the second it would be more than a sixteenth
    assert await fill(shared, harness, THIRD, KEEP, 100) == 1
    assert not shared.room_for("cloud", 50_064, KEEP, ME)
    assert shared.room_for("cloud", 50_064, KEEP)  # nobody's: agentd's own


async def test_what_is_shed_is_who_holds_mosts(shared, harness):
    """A flood of events sheds its own; another user's older ones stay."""
    assert await fill(shared, harness, OTHER, INFO, 5) == 5
    assert await fill(shared, harness, ME, INFO, 100) == 100
    held = shared.queues["cloud"].index.uid_bytes
    assert held[OTHER] > 5 * 50_000
    assert shed(shared) > 60
    assert held[ME] + held[OTHER] <= 1_200_000


async def test_who_holds_less_sheds_of_who_holds_more(shared, harness):
    """Until both hold the same: then each sheds his own."""
    shared.ledger.senders.update([ME, OTHER])
    await fill(shared, harness, ME, INFO, 40)
    assert await fill(shared, harness, OTHER, INFO, 40) == 40
    held = shared.queues["cloud"].index.uid_bytes
    assert abs(held[ME] - held[OTHER]) <= 110_000


async def test_never_shed_records_of_one_user_shed_nothing_of_who_holds_less(shared, harness):
    """Above his share he is refused, by name, before another's debug events go for it."""
    assert await fill(shared, harness, OTHER, DEBUG, 5) == 5
    await fill(shared, harness, ME, KEEP, 100)
    assert shared.queues["cloud"].index.uid_bytes[OTHER] > 5 * 50_000
    assert shed(shared) == 0


async def test_segments_know_whose_they_are_after_a_restart(shared, harness):
    """One commit of two users makes a segment for each, and the directory says so."""
    entries = harness.records(4)
    for entry, uid in zip(entries, (ME, OTHER, ME, OTHER), strict=True):
        entry.source = Source("", uid, 1, "test")
    await shared.append({"cloud": entries})
    assert set(shared.queues["cloud"].index.uid_bytes) == {ME, OTHER}
    again = await harness.crash()
    assert set(again.queues["cloud"].index.uid_bytes) == {ME, OTHER}
