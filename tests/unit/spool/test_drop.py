"""Dropping a queue: all of it, for good, with who and why; nothing of another destination, nothing that came later."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from spool_kit import DAY_US, entry, limits, seal_of

from agentd.errors import AlreadyRunning, StateError
from agentd.outcomes import Cause, Learned, State
from agentd.queued import DEAD, KNOWN, Death, Ref
from agentd.records import LossClass
from agentd.spool import compact, journal
from agentd.spool.drop import Deletion, drop, drop_at_rest
from agentd.spool.journal import Journal
from agentd.spool.recovery import open_spool
from agentd.spool.store import Store, key_of
from agentd.spool.tables import Table

WHO = Deletion(1007, "moving to another tenant")


def _notes(harness):
    rows = harness.store.rows(Table.JOURNAL)
    return [note for _, value in rows for note in journal.decode(value)]


def _gone(harness):
    return [note for note in _notes(harness) if note.state is State.PURGED]


def _run(harness, made, destination="cloud"):
    """The reference that a run.start introduces."""
    return harness.spool.refs.introduce(Ref(destination, "run", "a", "billing", 1000, made.number, lane="run:a"))


async def _started(harness, destination="cloud"):
    [start] = harness.records(1, destination, kind="run.start")
    ref = _run(harness, start, destination)
    await harness.spool.append({destination: [start]}, introduced=[ref])
    return start


async def test_all_that_waits_is_purged(harness):
    """Everything of the destination leaves queue and disk as purged, cause dropped, and the books balance; others keep theirs."""
    spool = await harness.open()
    await harness.put(3, kind="decision")
    await harness.put(5, loss=LossClass.INFO)
    await harness.put(2, "local")
    dropped = await drop(spool, "cloud", WHO)
    assert (dropped.records, dropped.kinds, dropped.tried) == (8, {"decision": 3, "event": 5}, 0)
    assert (spool.queues["cloud"].live, spool.queues["local"].live) == (0, 2)
    assert spool.books.total("cloud", "purged") == 8
    assert spool.books.causes("cloud") == {"purged": {"dropped": 8}}
    assert harness.balanced()
    left = [key for key, _, _ in harness.store.tags(Table.SEGMENT)]
    assert left == list(spool.queues["local"].segments)
    await harness.crash()
    assert harness.balanced()
    assert (harness.spool.queues["cloud"].live, harness.spool.queues["local"].live) == (0, 2)


async def test_the_journal_says_who_and_why(harness):
    """Evidence leaves an entry a record, with its digest; other records one for each segment and kind, with how many."""
    spool = await harness.open()
    decisions = await harness.put(2, kind="decision")
    await harness.put(4, loss=LossClass.INFO)
    await harness.spool.append({"cloud": [*harness.records(1, kind="task"), *harness.records(3)]})
    await drop(spool, "cloud", WHO)
    gone = _gone(harness)
    assert {(note.by, note.reason, note.cause) for note in gone} == {(1007, "moving to another tenant", "dropped")}
    assert Counter({note.kind: 0 for note in gone}) == {"decision": 0, "task": 0, "event": 0}
    single = {note.record_id for note in gone if note.kind == "decision"}
    assert single == {each.record_id for each in decisions}
    assert all(note.sha256 for note in gone if note.kind != "event")
    assert sorted(note.count for note in gone if note.kind == "event") == [3, 4]
    numbers = [note.number for note in _notes(harness)]
    assert numbers == list(range(1, len(numbers) + 1))


async def test_what_a_dropped_record_introduces_is_dead(harness):
    """A run whose start was dropped won't be known: what names it later does not wait for ever, also after a restart."""
    spool = await harness.open()
    await _started(harness)
    await _started(harness, "local")
    waiting = asyncio.ensure_future(spool.wait_for_names())
    await asyncio.sleep(0)
    await drop(spool, "cloud", WHO)
    await asyncio.wait_for(waiting, 5)
    assert spool.refs.get("cloud", "run", "a").state == DEAD
    assert spool.refs.get("local", "run", "a").state != DEAD
    await harness.crash()
    assert harness.spool.refs.get("cloud", "run", "a").state == DEAD


async def test_a_damaged_segment_goes_with_the_others(harness):
    """Its records can't be named one by one: they are booked by kind, and what they introduce is dead as well."""
    spool = await harness.open()
    await _started(harness)
    [key] = spool.queues["cloud"].segments
    harness.store.damage(key)
    dropped = await drop(spool, "cloud", WHO)
    assert (dropped.records, dropped.kinds) == (1, {"run.start": 1})
    assert spool.refs.get("cloud", "run", "a").state == DEAD
    [note] = _gone(harness)
    assert (note.count, note.kind, note.reason) == (1, "run.start", WHO.reason)
    assert harness.balanced()


async def test_what_is_admitted_meanwhile_stays(harness, monkeypatch):
    """What was accepted before the call is dropped, on disk or on its way; what comes after it is kept, also in a merged segment."""
    spool = await harness.open()
    await harness.put(2, kind="decision")
    on_its_way = spool.append({"cloud": harness.records(1, kind="decision")})
    dropping = asyncio.ensure_future(drop(spool, "cloud", WHO))
    await asyncio.sleep(0)
    [later] = harness.records(1, kind="decision")
    spool.append({"cloud": [later]})
    dropped = await dropping
    await on_its_way
    assert dropped.records == 3
    assert spool.queues["cloud"].live == 1
    assert harness.balanced()
    [kept] = list((await harness.filled()).peek("run:a"))
    assert kept.number == later.number
    monkeypatch.setattr(compact, "MANY_TINY", 2)
    await harness.put(2, kind="decision")
    spool._compactor.tick()
    await spool.barrier()
    while len(spool.queues["cloud"].segments) > 1:
        await asyncio.sleep(0)
    through = later.number + 1
    spool.meta.next_number["cloud"], real = through + 1, spool.meta.next_number["cloud"]
    try:
        dropped = await drop(spool, "cloud", WHO)
    finally:
        spool.meta.next_number["cloud"] = real
    assert (dropped.records, spool.queues["cloud"].live) == (2, 1)
    assert harness.balanced()


async def test_sealed_batches_end_with_their_records(harness):
    """Seals are retired in the commit that takes their records, and those that may have been sent are counted."""
    spool = await harness.open()
    await harness.put(4, loss=LossClass.INFO, lane="run:b")
    made = await harness.put(3, kind="decision")
    tried, untried = seal_of(made[:2]), seal_of(made[2:])
    await spool.seal(tried)
    await spool.seal(untried)
    tried.tried = True
    dropped = await drop(spool, "cloud", WHO)
    assert (dropped.records, dropped.tried) == (7, 2)
    assert list(harness.store.tags(Table.SEAL)) == []
    assert spool.seals.lanes("cloud") == []
    last = harness.store.commits[-1]
    assert not any(key >> 48 == Table.SEGMENT for key in last.deletes)  # nothing was left for the end
    taken = next(each for each in harness.store.commits if key_of(Table.SEAL, 1) in each.deletes)
    assert any(key >> 48 == Table.SEGMENT for key in taken.deletes)


async def test_an_answer_that_comes_afterwards_harms_nothing(harness):
    """A request that was under way: delivered, refused, split, each finds nothing, and what the platform has named is known."""
    spool = await harness.open()
    start = await _started(harness)
    made = await harness.put(4)
    seals = [seal_of([start]), seal_of(made[:2], key="k2"), seal_of(made[2:], key="k3")]
    for seal in seals:
        await spool.seal(seal)
    await drop(spool, "cloud", WHO)
    before = list(spool.books.lines())
    await spool.settle(seals[0], [start], [Learned("run", "a", "p-a")])
    await spool.bury(seals[1], "cloud", made[:2], Death(Cause.REJECTED, "400"))
    await spool.split(seals[2], [seal_of(made[2:3], key="k4"), seal_of(made[3:], key="k5")])
    assert list(spool.books.lines()) == before
    assert (spool.dead_count, spool.queues["cloud"].live) == (0, 0)
    assert spool.refs.get("cloud", "run", "a").state == KNOWN
    for seal in list(spool.seals.all()):  # as the courier does, which finds none of their records
        assert spool.queues["cloud"].members(seal.lane, seal.first, seal.last) == []
        await spool.settle(seal, [], (), 0)
    assert list(harness.store.tags(Table.SEAL)) == []
    assert harness.balanced()


async def test_a_window_full_of_it_is_empty(harness):
    """Lanes in memory, parked and waiting to be read: nothing of them is left, and what comes after is seen."""
    spool = await harness.open(window_bytes=4000)
    for number in range(20):
        await harness.put(2, lane=f"run:{number}", body=b"x" * 200, loss=LossClass.INFO)
    queue = await harness.filled()
    for number in range(10):
        queue.block(f"run:{number}")
    await harness.filled()
    assert queue.parked
    await drop(spool, "cloud", WHO)
    for number in range(10):
        queue.unblock(f"run:{number}")
    await harness.filled()
    assert (queue.live, queue.window_bytes, queue.parked, queue.lanes) == (0, 0, 0, {})
    [made] = await harness.put(1)
    assert [each.number for each in queue.peek("run:a")] == [made.number]


async def test_a_daemon_that_dies_in_between_finds_the_front_of_the_queue(harness, monkeypatch):
    """Half of it gone: the newest records are, the sealed ones go last, the books balance, and a second call takes the rest."""
    monkeypatch.setattr("agentd.spool.drop._STEP_BYTES", 1)
    spool = await harness.open()
    made = [
        *(await harness.put(1, kind="decision")),
        *(await harness.put(1, kind="decision")),
        *(await harness.put(1, kind="decision")),
    ]
    seal = seal_of(made[:1])
    await spool.seal(seal)
    commits = len(harness.store.commits)
    dropping = asyncio.ensure_future(drop(spool, "cloud", WHO))
    while len(harness.store.commits) < commits + 2:
        await asyncio.sleep(0)
    dropping.cancel()
    await asyncio.gather(dropping, return_exceptions=True)
    await harness.crash()
    queue = await harness.filled()
    left = [each.number for each in queue.peek("run:a")]
    assert left == [each.number for each in made][: len(left)]
    assert 0 < len(left) < 3
    assert len(harness.spool.seals.of_lane("cloud", "run:a")) == 1
    assert harness.balanced()
    assert (await drop(harness.spool, "cloud", WHO)).records == len(left)
    assert harness.balanced()


async def test_what_was_rewritten_meanwhile_is_met_under_its_new_key(harness, monkeypatch):
    """A compaction that runs between reading and taking: nothing is dropped twice and nothing is left."""
    monkeypatch.setattr(compact, "MANY_TINY", 2)
    spool = await harness.open()
    for _ in range(6):
        await harness.put(1, kind="decision")
    spool._compactor.tick()
    dropped = await drop(spool, "cloud", WHO)
    assert dropped.records == 6
    assert spool.queues["cloud"].live == 0
    assert harness.balanced()
    assert len({note.record_id for note in _gone(harness)}) == 6


async def test_an_empty_queue_is_no_error(harness):
    """Nothing waits: nothing is dropped, and the journal does not speak of it."""
    spool = await harness.open()
    assert (await drop(spool, "cloud", WHO)).records == 0
    assert _gone(harness) == []


# -- of a daemon that does not run ----------------------------------------------------------------------------------------


async def test_a_queue_of_a_stopped_daemon(tmp_path):
    """Under the folder's lock, whatever the configuration says by now: the next start finds it empty and balanced."""

    async def opened(identity):
        return await open_spool(
            tmp_path, sync="full", limits=limits(), identities={"cloud": identity}, journal=Journal(DAY_US, 10**9),
            now_us=lambda: 1_000_000, opener=Store, thread=None,
        )  # fmt: skip

    spool = await opened("agentos at old")
    committing = spool.start()
    await spool.append({"cloud": [entry(spool.number("cloud"), kind="decision") for _ in range(3)]})
    with pytest.raises(AlreadyRunning):
        await drop_at_rest(tmp_path, "cloud", WHO, sync="full", journal=Journal(DAY_US, 10**9))
    await spool.close()
    assert committing.done()
    with pytest.raises(StateError, match=r"there is no queue 'clod' in .*; there are cloud"):
        await drop_at_rest(tmp_path, "clod", WHO, sync="full", journal=Journal(DAY_US, 10**9))
    dropped = await drop_at_rest(tmp_path, "cloud", WHO, sync="full", journal=Journal(DAY_US, 10**9))
    assert dropped.records == 3
    spool = await opened("agentos at new")  # with the records it would be refused
    assert (spool.queues["cloud"].live, spool.books.total("cloud", "purged")) == (0, 3)
    committing = spool.start()
    await spool.close()
