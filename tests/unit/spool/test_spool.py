"""The spool over a store in memory: what a commit holds, what a full disk costs, and what is never given up."""

import asyncio
import sqlite3

import pytest
from spool_kit import entry, seal_of

from agentd.errors import SpoolFull
from agentd.outcomes import Cause, Learned, State
from agentd.queued import DEAD, KNOWN, Death, Ref
from agentd.records import LossClass
from agentd.spool import journal as journals
from agentd.spool import letters
from agentd.spool.audit import audit
from agentd.spool.committer import COMMIT_BYTES
from agentd.spool.dead import page
from agentd.spool.folder import FLOOR_BYTES, Folder
from agentd.spool.journal import Journal
from agentd.spool.letters import Wanted
from agentd.spool.store import DiskFull, Put, key_of, row_of
from agentd.spool.tables import Table

KEEP, INFO, DEBUG = LossClass.KEEP, LossClass.INFO, LossClass.DEBUG


def notes(harness):
    return [note for _, value in harness.store.rows(Table.JOURNAL) for note in journals.decode(value)]


def tables(harness):
    return {Table(key >> 48) for key in harness.store._rows}


def ref(local_id="r1", kind="run", number=1):
    return Ref("cloud", kind, local_id, "billing", 1000, number, touched_us=1)


# -- what a commit holds ---------------------------------------------------------------------------------------------


async def test_an_acknowledged_record_is_on_disk(harness):
    """Promise 1: the future is done when the row is committed, with books, number and references in the same commit."""
    spool = await harness.open()
    record = harness.records(1, kind="run.start", lane="run:r1")
    made = spool.refs.introduce(ref())
    await spool.append({"cloud": record}, puts=[Put(key_of(Table.STREAM, 1), b"stream")], introduced=[made])
    (commit,) = harness.store.commits
    assert {Table(key >> 48) for key in commit.puts} == {
        Table.SEGMENT,
        Table.STREAM,
        Table.REF,
        Table.JOURNAL,
        Table.META,
    }
    assert list(spool.queues["cloud"].peek("run:r1")) == record
    assert harness.balanced()


async def test_one_commit_for_everybody_who_waits(harness):
    """Group commit: what comes while a commit runs is written together by the next one."""
    spool = await harness.open()
    futures = [spool.append({"cloud": harness.records(1)}) for _ in range(50)]
    await asyncio.gather(*futures)
    assert len(harness.store.commits) == 1
    assert len(spool.queues["cloud"].segments) == 1
    assert spool.last_commit_s >= 0


async def test_a_commit_is_bounded(harness):
    """A burst becomes several commits of at most COMMIT_BYTES of records, in order; a larger message goes alone."""
    spool = await harness.open(quotas={"cloud": 2**30})
    body = bytes(COMMIT_BYTES // 4)
    futures = [spool.append({"cloud": harness.records(1, body=body)}) for _ in range(7)]
    futures.append(spool.append({"cloud": harness.records(5, body=body)}))
    await asyncio.gather(*futures)
    sizes = [sum(Table(key >> 48) is Table.SEGMENT for key in commit.puts) for commit in harness.store.commits]
    assert sizes == [3, 3, 1, 5]
    assert spool.queues["cloud"].live == 12


async def test_the_listener_hears_of_new_records(harness):
    """Delivery is told which lanes can be looked at, without asking."""
    spool = await harness.open()
    told = []
    spool.listen("cloud", told.append)
    await harness.put(1, lane="run:a")
    await harness.put(1, "local", lane="run:b")
    assert told == [{"run:a"}]


async def test_what_finds_the_window_full_is_read_without_asking(harness):
    """Promise 2: records that were committed behind a blocked lane are read at once, not at the next retry."""
    spool = await harness.open(window_bytes=1000)
    told = set()
    spool.listen("cloud", told.update)
    await harness.put(3, lane="run:stuck", body=bytes(300))
    spool.queues["cloud"].block("run:stuck")
    told.clear()
    await harness.put(1, lane="run:healthy")
    await spool._loader._tasks["cloud"]
    assert "run:healthy" in told
    assert len(list(spool.queues["cloud"].peek("run:healthy"))) == 1


# -- delivery --------------------------------------------------------------------------------------------------------


async def test_a_batch_is_sealed_then_settled(harness):
    """Promises 4 and 9: the seal is on disk before the first try and gone with the settlement; the journal has both ends."""
    spool = await harness.open()
    entries = await harness.put(3, kind="task")
    seal = seal_of(entries)
    await spool.seal(seal)
    assert Table.SEAL in tables(harness)
    await spool.settle(seal, entries)
    assert tables(harness) == {Table.JOURNAL, Table.META}
    assert [(note.state, note.key) for note in notes(harness)] == [(State.QUEUED, "")] * 3 + [
        (State.DELIVERED, "k1")
    ] * 3
    assert spool.books.total("cloud", State.DELIVERED) == 3
    assert harness.balanced()


async def test_a_part_of_a_segment_that_ended_is_a_bitmap(harness):
    """What has ended of a segment is on disk beside it until the rest has."""
    spool = await harness.open()
    entries = await harness.put(3)
    await spool.settle(seal_of(entries[:1]), entries[:1])
    assert Table.ENDED in tables(harness)
    await spool.settle(seal_of(entries[1:]), entries[1:])
    assert tables(harness) == {Table.META}


async def test_nothing_is_booked_twice(harness):
    """Promise 8: a batch that is settled again, or buried after it was settled, changes nothing."""
    spool = await harness.open()
    entries = await harness.put(2)
    seal = seal_of(entries)
    await spool.seal(seal)
    await asyncio.gather(spool.settle(seal, entries), spool.settle(seal, entries))
    await spool.bury(seal, "cloud", entries, Death(Cause.REJECTED, "no"))
    assert (spool.books.total("cloud", State.DELIVERED), spool.books.total("cloud", State.DEAD), spool.dead_count) == (
        2,
        0,
        0,
    )
    assert harness.balanced()


async def test_the_platforms_name_is_learned(harness):
    """Promise 9: the journal gives the platform's id of what a record introduced, in whichever lane it was sent."""
    spool = await harness.open()
    made = spool.refs.introduce(ref("d1", "decision", 1))
    entries = harness.records(1, kind="decision", lane="run:r1")
    await spool.append({"cloud": entries}, introduced=[made])
    seal = seal_of(entries)
    await spool.settle(seal, entries, [Learned("decision", "d1", "P-1"), Learned("run", "unknown", "P-2")])
    assert (made.state, made.platform_id) == (KNOWN, "P-1")
    assert notes(harness)[-1].platform_id == "P-1"


async def test_a_dead_letter_is_kept_with_its_answer(harness):
    """Promise 5: what is refused for good is a dead letter with the platform's words, and what it introduced is dead."""
    spool = await harness.open()
    run, decision = spool.refs.introduce(ref()), spool.refs.introduce(ref("d1", "decision", 1))
    entries = harness.records(1, kind="decision", lane="run:r1")
    run.number = 99
    spool.refs._by_number = {("cloud", 99): run, ("cloud", 1): decision}
    await spool.append({"cloud": entries}, introduced=[run, decision])
    await spool.bury(None, "cloud", entries, Death(Cause.REJECTED, "no such thing", 1, 422, "{}", "K"))
    ((_, letter),) = await spool.run_in_thread(page, Wanted(cause="rejected"), 10)
    assert (letter.status, letter.answer, letter.body, letter.key) == (422, "{}", entries[0].body, "K")
    assert await spool.run_in_thread(page, Wanted(destination="local"), 10) == []
    assert (run.state, decision.state) == ("introduced", DEAD)
    assert (spool.dead_count, spool.dead_bytes > 0) == (1, True)
    assert spool.dead_room(10**6 - spool.dead_bytes)
    assert not spool.dead_room(10**6 - spool.dead_bytes + 1)
    assert notes(harness)[-1].cause == "rejected"


async def test_the_newest_dead_letters_come_first(harness):
    """A limit keeps the newest; a letter that can't be read costs no other."""
    spool = await harness.open()
    entries = await harness.put(4)
    await spool.bury(None, "cloud", entries, Death(Cause.REJECTED, "no"))
    assert [row for row, _ in await spool.run_in_thread(page, Wanted(), 2)] == [4, 3]
    harness.store.change(key_of(Table.DEAD, 3), b"\xc1")
    assert [row for row, _ in await spool.run_in_thread(page, Wanted(), 9)] == [4, 2, 1]


async def test_parts_are_sealed_as_the_whole_is_retired(harness):
    """Promise 4: one commit holds the new seals and takes the old one; order of lanes is kept."""
    spool = await harness.open()
    entries = await harness.put(4)
    whole = seal_of(entries)
    await spool.seal(whole)
    before = len(harness.store.commits)
    await spool.split(whole, [seal_of(entries[:2]), seal_of(entries[2:])])
    (commit,) = harness.store.commits[before:]
    assert key_of(Table.SEAL, 2) in commit.puts
    assert key_of(Table.SEAL, 1) in commit.deletes
    assert [(s.first, s.last) for s in spool.seals.of_lane("cloud", "run:a")] == [(1, 2), (3, 4)]


async def test_a_seal_that_ends_before_its_commit_leaves_no_row(harness):
    """A batch that is settled at once leaves nothing that a restart would take for a sealed batch."""
    spool = await harness.open()
    entries = await harness.put(2)
    first, second = seal_of(entries[:1]), seal_of(entries[1:])
    spool.seal(first)
    spool.seal(second)
    await spool.settle(first, entries[:1])
    await harness.crash()
    assert [s.first for s in harness.spool.seals.all()] == [2]


async def test_a_replaced_heartbeat_is_shed_as_stale(harness):
    """Promise 8: a heartbeat that a newer one replaced has an end and a cause."""
    spool = await harness.open()
    entries = await harness.put(2, kind="heartbeat", loss=INFO)
    await spool.discard_stale("cloud", entries[:1])
    assert spool.books.causes("cloud") == {"shed": {"stale": 1}}
    assert notes(harness)[-1].cause == "stale"
    assert harness.balanced()


async def test_the_end_of_a_run_is_kept(harness):
    """A run whose terminal record was delivered is known as ended."""
    spool = await harness.open()
    made = spool.refs.introduce(ref("a"))
    entries = harness.records(1, kind="run.complete")
    await spool.append({"cloud": entries}, introduced=[made])
    await spool.settle(seal_of(entries), entries)
    assert made.ended


async def test_a_lane_can_be_counted(harness):
    """`GET /v1/runs` counts what is queued of a lane, ended records left out."""
    spool = await harness.open()
    entries = await harness.put(3)
    await harness.put(2, lane="run:b")
    await spool.settle(seal_of(entries[:1]), entries[:1])
    assert await spool.count_lane("cloud", "run:a") == 2
    assert await spool.count_lane("cloud", "run:c") == 0


# -- a full disk -----------------------------------------------------------------------------------------------------


async def test_a_full_disk_refuses_records_and_keeps_the_rest(harness):
    """Promises 1 and 8: records get SpoolFull and leave no trace; a settlement is tried again until it is on disk."""
    spool = await harness.open()
    entries = await harness.put(2)
    harness.store.full = 3
    made = spool.refs.introduce(ref())
    refused = spool.append({"cloud": harness.records(2, kind="task")}, introduced=[made])
    settled = spool.settle(seal_of(entries), entries)
    with pytest.raises(SpoolFull):
        await refused
    await settled
    assert (spool.books.total("cloud", "admitted"), spool.books.total("cloud", State.DELIVERED)) == (2, 2)
    assert len(spool.refs) == 0
    assert Table.REF not in tables(harness)
    assert not (harness.folder / "ballast").exists()
    assert not spool.room_for("cloud", 1, KEEP)
    assert harness.balanced()
    await spool.barrier()
    assert notes(harness) == []  # what never came in left nothing in the journal, and used up no number
    assert spool.journal.next_number == 1
    again = await harness.crash()
    assert (again.books.total("cloud", "admitted"), again.queues["cloud"].live) == (2, 0)
    assert again.number("cloud") == 5


async def test_a_failed_commit_writes_the_books_of_its_own_moment(harness):
    """Promise 8: what ends while a commit is tried again is not booked before the commit that holds it."""
    spool = await harness.open()
    entries = await harness.put(2)
    harness.store.full = 1
    first = spool.settle(seal_of(entries[:1]), entries[:1])
    refuse, commit, states = spool._committer._refuse, harness.store.commit, []

    def settle_another(pending, *why):
        spool.settle(seal_of(entries[1:]), entries[1:])
        refuse(pending, *why)

    def keep_state(puts, deletes):
        commit(puts, deletes)
        states.append(harness.store.crash())

    spool._committer._refuse, harness.store.commit = settle_another, keep_state
    await first
    await harness.kill()
    harness.store = states[0]
    again = await harness.open()
    assert again.books.queued("cloud") == again.queues["cloud"].live == 1
    assert again.books.total("cloud", "admitted") == 2


async def test_records_behind_a_full_disk_are_answered(harness):
    """A full disk: records that wait for the next commit are refused as well, and not left without an answer."""
    spool = await harness.open(quotas={"cloud": 2**30})
    harness.store.full = 10**6
    big = [spool.append({"cloud": harness.records(1, body=bytes(COMMIT_BYTES))}) for _ in range(3)]
    waiting = spool.barrier()
    results = await asyncio.gather(*big, return_exceptions=True)
    assert [type(result) for result in results] == [SpoolFull] * 3
    assert not waiting.done()
    assert spool._committer.append_bytes("cloud") == 0
    for _ in range(50):
        await asyncio.sleep(0)
    assert "commits failed" in spool.stuck()
    harness.store.full = 0
    await waiting
    assert spool.stuck() is None


async def test_room_on_the_disk_is_noticed(harness):
    """When there is room again the ballast is taken back, records are taken, and whoever waits is told."""
    spool = await harness.open()
    harness.store.full = 1
    with pytest.raises(SpoolFull):
        await spool.append({"cloud": harness.records(1)})
    waiting = asyncio.create_task(spool.wait_for_room())
    await asyncio.sleep(0)
    spool.check_disk()
    await waiting
    assert (spool.disk_full, (harness.folder / "ballast").exists()) == (False, True)
    assert spool.room_for("cloud", 1, KEEP)


async def test_a_nearly_full_disk_is_refused_before_it_is_full(harness, monkeypatch):
    """Below the floor nothing is admitted, so that what is queued can still be settled."""
    spool = await harness.open()
    monkeypatch.setattr(Folder, "free_bytes", lambda _: FLOOR_BYTES - 1)
    spool.tick(lambda at: 1 - at, 1)
    assert not spool.room_for("cloud", 1, KEEP)


async def test_a_defect_in_a_commit_hangs_nobody(harness):
    """A commit that fails for a reason that nobody thought of is answered and tried again; commits go on."""
    spool = await harness.open()
    original, failures = harness.store.commit, [ValueError("a defect"), sqlite3.OperationalError("disk I/O error")]

    def commit(puts, deletes):
        if failures:
            raise failures.pop(0)
        original(puts, deletes)

    harness.store.commit = commit
    with pytest.raises(SpoolFull):
        await spool.append({"cloud": harness.records(1)})
    await spool.barrier()
    await harness.put(1)
    assert harness.balanced()


async def test_closing_commits_what_is_left(harness):
    """Promise 7: what was handed over before the end is on disk, and the folder is free again."""
    spool = await harness.open()
    future = spool.append({"cloud": harness.records(1)})
    await spool.close()
    assert future.done()
    assert harness.store.closed
    again = await harness.open()
    assert again.queues["cloud"].live == 1


async def test_closing_on_a_full_disk_ends(harness):
    """Promise 7: a last commit that never goes through is given up after a few tries, and what it settled is repeated."""
    spool = await harness.open()
    entries = await harness.put(1)
    harness.store.full = 10**6
    spool.settle(seal_of(entries), entries)
    await spool.close()
    harness.store.full = 0
    assert (await harness.open()).queues["cloud"].live == 1


async def test_nothing_is_written_behind_a_commit_that_was_given_up(harness):
    """Promises 8 and 9: books and journal of a later commit would go on from what is not on disk."""
    spool = await harness.open()
    entries = await harness.put(2, kind="task")
    commit, tries = harness.store.commit, []

    def fails(puts, deletes):
        tries.append(1)
        if len(tries) == 2:
            spool.settle(seal_of(entries[1:]), entries[1:])
        if len(tries) <= 6:
            raise DiskFull("database or disk is full")
        commit(puts, deletes)

    harness.store.commit = fails
    spool.settle(seal_of(entries[:1]), entries[:1])
    await spool.close()
    assert audit(harness.store).findings == []
    harness.store.commit = commit
    assert (await harness.open()).queues["cloud"].live == 2


# -- room and shedding -----------------------------------------------------------------------------------------------


async def filled(harness, **classes):
    """A queue with so many segments of 1,000 bytes of each class, and a quota that they just fill."""
    spool = await harness.open()
    for name, number in classes.items():
        for _ in range(number):
            await harness.put(1, lane=f"run:{name}", loss=LossClass(name), body=bytes(1000))
    spool.limits.quotas["cloud"] = spool.queues["cloud"].stored_bytes
    return spool


async def test_debug_goes_first_then_info_and_the_rest_never(harness):
    """Promise 6: a full queue sheds debug, then info, each counted by cause and in the journal; warn and above stay."""
    spool = await filled(harness, keep=2, info=2, debug=2)
    assert spool.room_for("cloud", 1000, KEEP)
    assert spool.books.causes("cloud") == {"shed": {"queue_full": 2}}
    assert {s.loss for s in spool.queues["cloud"].segments.values()} == {KEEP, INFO}
    spool.limits.quotas["cloud"] = spool.queues["cloud"].stored_bytes
    assert spool.room_for("cloud", 1000, INFO)
    assert {s.loss for s in spool.queues["cloud"].segments.values()} == {KEEP}
    spool.limits.quotas["cloud"] = spool.queues["cloud"].stored_bytes
    assert not spool.room_for("cloud", 1, KEEP)
    assert harness.balanced()
    await spool.barrier()
    assert sum(note.count for note in notes(harness) if note.cause == "queue_full") == 4
    assert [key for key, _, _ in harness.store.tags(Table.SEGMENT)] == sorted(spool.queues["cloud"].segments)


async def test_what_arrives_pushes_out_nothing_that_is_worth_more(harness):
    """Promise 6: a debug event finds no room in a queue of info events."""
    spool = await filled(harness, info=3)
    assert not spool.room_for("cloud", 10, DEBUG)
    assert spool.books.causes("cloud") == {}
    assert spool.room_for("cloud", 10, INFO)


async def test_nothing_is_shed_in_vain(harness):
    """Promise 6: where shedding would not make room enough, nothing is lost."""
    spool = await filled(harness, keep=5, debug=1)
    assert not spool.room_for("cloud", 3000, KEEP)
    assert spool.queues["cloud"].live == 6


async def test_sealed_records_are_not_shed(harness):
    """Promises 4 and 6: a batch that may have been tried stays whole."""
    spool = await filled(harness, debug=3)
    sealed = list(spool.queues["cloud"].peek("run:debug"))[:1]
    await spool.seal(seal_of(sealed))
    assert spool.room_for("cloud", 500, KEEP)
    assert [e.number for e in spool.queues["cloud"].peek("run:debug")] == [1]


async def test_records_on_their_way_count(harness):
    """A burst can't overrun the quota before its first commit."""
    spool = await harness.open(quotas={"cloud": 5000})
    futures = []
    while spool.room_for("cloud", 1064, KEEP):
        futures.append(spool.append({"cloud": harness.records(1, body=bytes(1000))}))
    assert len(futures) == 4
    await asyncio.gather(*futures)
    assert spool.file_bytes() <= 5000


async def test_whoever_waits_for_room_hears_of_it(harness):
    """Backpressure ends when something leaves the disk."""
    spool = await harness.open()
    entries = await harness.put(1)
    waiting = asyncio.create_task(spool.wait_for_room())
    await asyncio.sleep(0)
    await spool.settle(seal_of(entries), entries)
    await waiting
    assert not spool._room


# -- intake's rows and housekeeping ----------------------------------------------------------------------------------


async def test_the_dedupe_window_lets_old_rows_go(harness):
    """The last `seen_ids` ids are kept, older rows leave with the next commit."""
    spool = await harness.open()
    for _ in range(5):
        await spool.append({}, puts=[spool.seen(b"ids", 4)])
    await spool.barrier()
    rows = list(harness.store.tags(Table.SEEN))
    assert [row_of(key) for key, _, _ in rows] == [3, 4, 5]
    again = await harness.crash()
    assert (again.ledger.seen.count, again.take_row(Table.SEEN)) == (12, 6)


async def test_rows_can_be_dropped(harness):
    """Streams that nobody comes back for leave with the next commit."""
    spool = await harness.open()
    await spool.append({}, puts=[Put(key_of(Table.STREAM, 1), b"x"), Put(key_of(Table.STREAM, 2), b"y")])
    spool.drop_rows(Table.STREAM, [1])
    await spool.barrier()
    assert await spool.run_in_thread(lambda store: list(store.rows(Table.STREAM))) == [(key_of(Table.STREAM, 2), b"y")]
    assert not await spool.vacuum()


async def test_housekeeping_forgets_references_that_nothing_needs(harness):
    """References go after `runs.keep`, but not while a record that is older is queued, or a dead letter needs them."""
    spool = await harness.open()
    entries = harness.records(1, admitted_us=5)
    made = [spool.refs.introduce(ref(name, number=50 + n)) for n, name in enumerate(("a", "dead", "old"))]
    for each in made:
        each.touched_us = 7
    await spool.append({"cloud": entries}, introduced=made)
    letter = await harness.put(1, lane="run:dead")
    await spool.bury(None, "cloud", letter, Death(Cause.REJECTED, "no"))
    spool.tick(lambda at: 1000 - at, 100)
    assert len(spool.refs) == 3
    await spool.settle(seal_of(entries), entries)
    spool.refs.get("cloud", "run", "a").touched_us = 7
    spool.tick(lambda at: 1000 - at, 100)
    assert [r.local_id for r in spool.refs] == ["dead"]
    await spool.barrier()
    assert len(list(harness.store.rows(Table.REF))) == 1


async def test_counts_reach_the_disk_with_a_tick(harness):
    """What of a run was delivered is on disk within a second."""
    spool = await harness.open()
    made = spool.refs.introduce(ref("a"))
    entries = harness.records(2)
    await spool.append({"cloud": entries}, introduced=[made])
    await spool.settle(seal_of(entries), entries)
    spool.tick(lambda at: 1 - at, 1)
    await spool.barrier()
    assert (await harness.crash()).refs.get("cloud", "run", "a").delivered == 2


async def test_the_journal_is_bounded_without_new_entries(harness):
    """Promise 9: retention takes old rows also when nothing is noted any more."""
    spool = await harness.open(journal=Journal(50, 10**9))
    await harness.put(1, kind="task")
    assert notes(harness)
    spool.tick(lambda at: 10**12 - at, 1)
    await spool.barrier()
    assert notes(harness) == []


async def test_journal_numbers_have_no_gap_over_crashes(harness):
    """Promise 9: numbers on disk are 1, 2, 3 …, whenever the daemon dies."""
    for _ in range(5):
        spool = await (harness.open() if harness.spool is None else harness.crash())
        await harness.put(2, kind="task")
        spool.append({"cloud": harness.records(3, kind="task")})
        await asyncio.sleep(0)
    await harness.crash()
    numbers = [note.number for note in notes(harness)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= 10


# -- reading ---------------------------------------------------------------------------------------------------------


async def test_a_row_that_cannot_be_read_is_set_aside(harness):
    """Promise 8: a damaged segment is booked as quarantined, kept as a copy, and the others are delivered."""
    await harness.open()
    await harness.put(2)
    await harness.put(1)
    key = min(harness.spool.queues["cloud"].segments)
    harness.store.change(key, b"AGS damaged")
    spool = await harness.crash()
    queue = await harness.filled()
    assert [e.number for e in queue.peek("run:a")] == [3]
    assert spool.books.causes("cloud") == {"quarantined": {"damaged": 2}}
    assert harness.balanced()
    assert spool.quarantined_rows == 1
    await spool.barrier()
    assert next(iter(harness.store.rows(Table.SEGMENT)))[0] != key
    assert (harness.folder / "quarantine" / "segments" / f"{key:x}").read_bytes() == b"AGS damaged"


async def test_a_disk_that_fails_for_a_moment_costs_nothing(harness):
    """Promise 1: a read that fails for the disk's sake is tried again; the row is not called damaged."""
    await harness.open()
    await harness.put(2)
    spool = await harness.crash()
    original, failures = harness.store.read, [sqlite3.OperationalError("disk I/O error")] * 3

    def read(key):
        if failures:
            raise failures.pop()
        return original(key)

    harness.store.read = read
    queue = await harness.filled()
    assert len(list(queue.peek("run:a"))) == 2
    assert spool.quarantined_rows == 0


async def test_a_letter_tells_what_it_was():
    """A dead letter is listed from its tag, without reading it."""
    letter = letters.letter_of("cloud", entry(1), Death(Cause.REJECTED, "no"), 5)
    value, tag = letters.encode(letter)
    assert letters.decode(value) == letter
    brief = letters.Brief("cloud", "run:a", "rejected", len(value), entry(1).record_id, 1, "event", 1000, 5)
    assert letters.decode_brief(tag) == brief
