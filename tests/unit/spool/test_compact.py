"""Rewriting: what is chosen, and that nothing is lost, moved out of order or repeated by it."""

import asyncio
import sqlite3

import pytest
from spool_kit import entry, seal_of, segment

from agentd.records import LossClass
from agentd.spool import compact
from agentd.spool.compact import MANY_TINY, choose
from agentd.spool.directory import Segment
from agentd.spool.segments import Directory
from agentd.spool.store import DiskFull
from agentd.spool.tables import Table

KEEP, INFO = LossClass.KEEP, LossClass.INFO
MIB = 2**20


def row(key, size, live, count=100, loss=KEEP):
    made = Segment(key, Directory(1, "cloud", loss, key * 100, key * 100 + 99, count, size, 0, {"event": count}, b""))
    made.live = live
    return made


def keys(found):
    return [segment.key for segment in found]


def test_full_segments_are_left_alone():
    """What is mostly live is not written again, however much of it there is."""
    assert choose([[row(n, 500_000, 80) for n in range(1, 50)], []]) == []
    assert choose([[], []]) == []


def test_the_emptiest_neighbours_are_chosen():
    """Above 1.5 × the live bytes, the run that gives most room back is rewritten."""
    mostly_ended = [row(n, 500_000, 5) for n in range(10, 20)]
    scanned = [row(1, 500_000, 50), row(2, 500_000, 100), *mostly_ended, row(30, 500_000, 100)]
    assert keys(choose([scanned, []])) == list(range(10, 20))


def test_a_short_queue_is_not_worth_it():
    """Below a megabyte of waste a queue is left to empty itself."""
    assert choose([[row(1, 500_000, 1)], []]) == []


def test_a_run_is_bounded():
    """One run reads at most 16 MiB, so that it delays commits by no more than a large one does."""
    chosen = choose([[row(n, 512 * 1024, 1) for n in range(1, 200)], []])
    assert len(chosen) == 32
    chosen = choose([[row(n, 512 * 1024, 60) for n in range(1, 200)], []])
    assert sum(s.live_bytes for s in chosen) <= 4 * MIB


def test_many_tiny_segments_are_merged():
    """Memory per queued record stays bounded: 64 tiny neighbours become few, fewer are left alone."""
    assert choose([[row(n, 1000, 100) for n in range(1, MANY_TINY)], []]) == []
    assert len(choose([[row(n, 1000, 100) for n in range(1, MANY_TINY + 1)], []])) == MANY_TINY
    parted = [row(n, 500_000 if n == 40 else 1000, 100) for n in range(1, 80)]
    assert choose([parted, []]) == []


def test_runs_keep_to_their_class_and_part():
    """Loss classes are not mixed, nor what was scanned with what was not, nor what can't be read."""
    mixed = [row(n, 1000, 100, loss=KEEP if n % 2 else INFO) for n in range(1, 2 * MANY_TINY - 1)]
    assert choose([mixed, []]) == []
    half = MANY_TINY // 2
    assert choose([[row(n, 1000, 100) for n in range(half)], [row(n, 1000, 100) for n in range(half, MANY_TINY)]]) == []
    assert choose([[row(n, 1000, 100) for n in range(MANY_TINY)], []], avoid={5}) == []


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(compact, "MANY_TINY", 3)


async def rewritten(harness):
    """A tick and what comes of it."""
    harness.spool.tick(lambda at: 1 - at, 1)
    while harness.spool._committer._errand is not None:
        await asyncio.sleep(0)
    await harness.spool.barrier()


async def test_tiny_rows_become_one(harness, small):
    """Promises 1 and 2: after rewriting, the same records are there, in order, in one row, also after a crash."""
    spool = await harness.open()
    for n in range(5):
        await harness.put(2, lane=f"run:{n % 2}")
    spool.queues["cloud"].block("run:0")
    await rewritten(harness)
    assert len(list(harness.store.rows(Table.SEGMENT))) == len(spool.queues["cloud"].segments) == 1
    spool.queues["cloud"].unblock("run:0")
    assert [e.number for e in spool.queues["cloud"].peek("run:0")] == [1, 2, 5, 6, 9, 10]
    again = await harness.crash()
    queue = await harness.filled()
    assert [e.number for e in queue.peek("run:1")] == [3, 4, 7, 8]
    assert again.books.queued("cloud") == queue.live == 10
    assert again.quarantined_rows == 0


async def test_a_crash_before_the_commit_leaves_the_old_rows(harness, small):
    """Promise 1: a daemon that dies before the rewriting is on disk starts with what was there."""
    spool = await harness.open()
    for _ in range(4):
        await harness.put(1)
    rows = list(harness.store.rows(Table.SEGMENT))
    harness.store.full = 1
    await rewritten(harness)
    assert harness.store.full == 0
    assert list(harness.store.rows(Table.SEGMENT)) == rows
    assert len(spool.queues["cloud"].segments) == 4
    again = await harness.crash()
    assert again.queues["cloud"].live == 4


async def test_what_ends_while_rows_are_rewritten_has_ended(harness, small):
    """Promises 4 and 8: an ending that was decided during the rewriting is in the new rows, once, and nothing else is."""
    spool = await harness.open()
    entries = [(await harness.put(1))[0] for _ in range(4)]
    read, futures = harness.store.read, []

    def settle_meanwhile(key):
        if not futures:
            futures.append(spool.settle(seal_of(entries[1:3]), entries[1:3]))
        return read(key)

    harness.store.read = settle_meanwhile
    await rewritten(harness)
    await futures[0]
    assert harness.balanced()
    assert spool.queues["cloud"].live == 2
    assert len(list(harness.store.rows(Table.ENDED))) == 1
    again = await harness.crash()
    queue = await harness.filled()
    assert [e.number for e in queue.peek("run:a")] == [1, 4]
    assert again.books.queued("cloud") == queue.live


async def test_all_may_end_while_rows_are_rewritten(harness, small):
    """A new row whose last record ended meanwhile is deleted again."""
    spool = await harness.open()
    entries = [(await harness.put(1))[0] for _ in range(4)]
    read, futures = harness.store.read, []

    def settle_meanwhile(key):
        if not futures:
            futures.append(spool.settle(seal_of(entries), entries))
        return read(key)

    harness.store.read = settle_meanwhile
    await rewritten(harness)
    await futures[0]
    assert list(harness.store.rows(Table.SEGMENT)) == []
    assert list(harness.store.rows(Table.ENDED)) == []
    assert harness.balanced()


async def test_endings_on_disk_are_left_out(harness, small):
    """Records that ended before are not written again."""
    spool = await harness.open()
    for _ in range(4):
        entries = await harness.put(2)
        await spool.settle(seal_of(entries[:1]), entries[:1])
    await rewritten(harness)
    assert len(list(harness.store.rows(Table.ENDED))) == 0
    (made,) = spool.queues["cloud"].segments.values()
    assert (made.count, made.live) == (4, 4)
    assert [e.number for e in spool.queues["cloud"].peek("run:a")] == [2, 4, 6, 8]


async def test_a_sealed_batch_is_the_same_after_its_rows_were_rewritten(harness, small):
    """Promise 4: seals name numbers, which rewriting keeps; who holds the records may settle them."""
    spool = await harness.open()
    entries = [(await harness.put(1))[0] for _ in range(4)]
    held = [entry(e.number) for e in entries[:2]]
    for mine, theirs in zip(held, entries, strict=False):
        mine.segment, mine.index = theirs.segment, theirs.index
    seal = seal_of(entries[:2])
    await spool.seal(seal)
    await rewritten(harness)
    queue = spool.queues["cloud"]
    assert [e.number for e in queue.members("run:a", seal.first, seal.last)] == [1, 2]
    await spool.settle(seal, held)
    assert queue.live == 2
    assert harness.balanced()
    assert not queue._moved


async def test_cold_rows_are_rewritten_where_they_lie(harness, small):
    """What was never read stays unread, behind what was."""
    await harness.open(start=False)
    harness.spool.start()
    for _ in range(6):
        await harness.put(1)
    await harness.crash(window_bytes=600)
    queue = await harness.filled()
    assert [len(part) for part in queue.index.parts()] == [2, 4]
    await rewritten(harness)
    assert [len(part) for part in queue.index.parts()] == [2, 1]
    seen = []
    while batch := list(queue.peek("run:a")):
        seen += [e.number for e in batch]
        await harness.spool.settle(seal_of(batch), batch)
        await harness.filled()
    assert seen == [1, 2, 3, 4, 5, 6]


async def test_a_row_that_cannot_be_read_is_left_to_the_loader(harness, small):
    """A damaged row stops no other from being rewritten, and is not tried for ever."""
    spool = await harness.open()
    for _ in range(8):
        await harness.put(1)
    key = sorted(spool.queues["cloud"].segments)[1]
    harness.store.damage(key)
    await rewritten(harness)
    await rewritten(harness)
    assert key in spool.queues["cloud"].segments
    assert len(spool.queues["cloud"].segments) == 2
    assert [e.number for e in spool.queues["cloud"].peek("run:a")] == list(range(1, 9))
    assert harness.balanced()


@pytest.mark.parametrize(
    "error", [DiskFull("full"), sqlite3.OperationalError("disk I/O error"), ValueError("a defect")]
)
async def test_a_rewriting_that_fails_changes_nothing(harness, small, error):
    """Whatever goes wrong, commits and reading go on with the rows as they were."""
    spool = await harness.open()
    for _ in range(4):
        await harness.put(1)
    commit, failures = harness.store.commit, [error]

    def fail(puts, deletes):
        if failures:
            raise failures.pop()
        commit(puts, deletes)

    harness.store.commit = fail
    await rewritten(harness)
    assert len(spool.queues["cloud"].segments) == 4
    assert not spool.queues["cloud"].rewriting
    await harness.put(1)
    assert harness.balanced()


async def test_an_idle_queue_is_not_looked_at_again(harness):
    """A look costs a walk over all segments: without a change since, there is none."""
    spool = await harness.open()
    await harness.put(1)
    await rewritten(harness)
    spool._compactor._choose = None
    await rewritten(harness)
    assert spool._compactor._looked["cloud"] == (1, 1)


def test_a_segment_knows_what_of_it_is_live():
    """The share of live bytes goes by the number of records."""
    made = segment(1, [entry(n, body=bytes(100)) for n in range(1, 5)])
    made.end(0, "event")
    assert made.live_bytes == made.size * 3 // 4
