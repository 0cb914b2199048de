"""What damage leaves behind is put right: nothing waits for what will never come, and no number is given twice."""

import logging

import pytest
from damage_kit import RealHarness
from spool_kit import entry, seal_of

from agentd.outcomes import Cause, Learned, State
from agentd.queued import DEAD, GATE_LANE, INTRODUCED, KNOWN, Death, Ref
from agentd.spool import journal as journals
from agentd.spool import mending
from agentd.spool.books import Line
from agentd.spool.ledger import Ledger
from agentd.spool.store import key_of
from agentd.spool.tables import Table


@pytest.fixture
async def real(tmp_path, caplog):
    caplog.set_level(logging.ERROR, "agentd")
    made = RealHarness(tmp_path)
    await made.open()
    yield made
    if made.spool is not None:
        await made.spool.close()


async def begin(real, run="a", **facts):
    """A run's start on disk, and the reference that it introduces."""
    start = entry(real.spool.number("cloud"), f"run:{run}", kind="run.start", **facts)
    ref = real.spool.refs.introduce(Ref("cloud", "run", run, "billing", 1000, start.number, touched_us=5))
    await real.spool.append({"cloud": [start]}, introduced=[ref])
    return start


async def deliver(real, start, platform_id="platform"):
    run = start.lane.partition(":")[2]
    await real.spool.settle(seal_of([start]), [start], [Learned("run", run, platform_id)] if platform_id else [])


def ref_of(real, run="a"):
    return real.spool.refs.get("cloud", "run", run)


async def lose_refs(real):
    """Every reference's row is damaged."""
    await real.stop()
    for key in real.keys(Table.REF):
        real.flip(key)
    await real.open()


# -- references that are lost ------------------------------------------------------------------------------------------


async def test_a_lost_reference_is_made_anew_from_the_journal(real):
    """Promise 4: what the platform calls a run is not lost with one row; the run's events are sent under its name."""
    start = await begin(real)
    await deliver(real, start)
    await real.put(1)
    await lose_refs(real)
    ref = ref_of(real)
    assert (ref.state, ref.platform_id, ref.agent, ref.uid, ref.ended) == (KNOWN, "platform", "billing", 1000, False)
    await real.spool.barrier()
    await real.restart()
    assert ref_of(real).platform_id == "platform"
    assert real.set_aside("references")
    assert real.spool.quarantined_rows == 0


async def test_a_lost_reference_whose_introducer_waits_is_introduced_again(real):
    """The run's start is queued: what names the run waits for it, and learns its name."""
    start = await begin(real)
    await lose_refs(real)
    assert (ref_of(real).state, ref_of(real).number) == (INTRODUCED, start.number)
    await deliver(real, start)
    assert ref_of(real).platform_id == "platform"


async def test_a_lost_reference_of_a_refused_run_is_dead_again(real):
    """Its start is a dead letter: what names the run is not taken for the platform's own."""
    start = await begin(real)
    await real.spool.bury(None, "cloud", [start], Death(Cause.REJECTED, "no"))
    await lose_refs(real)
    assert ref_of(real).state == DEAD


async def test_a_lost_reference_of_an_ended_run_remembers_that(real):
    """Records after the end are judged as such."""
    start = await begin(real)
    end = entry(real.spool.number("cloud"), "run:a", kind="run.complete")
    await real.spool.append({"cloud": [end]})
    await deliver(real, start)
    await real.spool.settle(seal_of([end]), [end])
    await lose_refs(real)
    assert ref_of(real).ended


async def test_nothing_is_made_up_that_the_journal_does_not_know(real):
    """A run whose start was answered without a name, and one of which the journal is damaged, stay unknown: nobody waits for them."""
    await deliver(real, await begin(real, "a"), platform_id=None)
    await begin(real, "b")
    await real.stop()
    for key in [*real.keys(Table.REF), *real.keys(Table.JOURNAL)]:
        real.flip(key)
    await real.open()
    assert (ref_of(real, "a"), ref_of(real, "b")) == (None, None)


async def test_long_ended_runs_do_not_come_back(real):
    """The journal outlives the references: runs older than a week with nothing queued are left where they are."""
    old = await begin(real, "old")
    await deliver(real, old)
    waiting = await begin(real, "waiting")
    later = next(real.clock) + 30 * 86_400 * 10**6
    real.clock = iter(range(later, later + 10**6))
    await deliver(real, await begin(real, "new"))
    await lose_refs(real)
    assert ref_of(real, "old") is None
    assert ref_of(real, "new").state == KNOWN
    assert (ref_of(real, "waiting").state, ref_of(real, "waiting").number) == (INTRODUCED, waiting.number)


# -- introducers that are lost -----------------------------------------------------------------------------------------


async def test_who_waits_for_a_lost_introducer_waits_no_more(real):
    """Promise 8: a run whose start is lost on disk can't be told: its events become dead letters instead of waiting for ever."""
    await begin(real, "a")
    await begin(real, "b")
    await real.put(2)
    await real.stop()
    key = real.keys(Table.SEGMENT)[0]
    real.change(key, b"garbage")
    real.change(key, b"garbage", "tag")
    await real.open()
    assert (ref_of(real, "a").state, ref_of(real, "b").state) == (DEAD, INTRODUCED)
    await real.restart()
    assert ref_of(real, "a").state == DEAD


async def test_the_same_when_it_is_found_while_running(real):
    """A segment whose body is damaged is found when it is read; the reference dies with it."""
    await begin(real, "a")
    await begin(real, "b")
    await real.stop()
    real.flip(real.keys(Table.SEGMENT)[0])
    await real.open()
    assert ref_of(real, "a").state == INTRODUCED
    await real.filled()
    assert (ref_of(real, "a").state, ref_of(real, "b").state) == (DEAD, INTRODUCED)
    assert real.balanced()


async def test_an_introducer_in_another_segment_is_not_lost(real):
    """Segments of one destination may overlap in their numbers: the record is looked for before its reference is given up."""
    start = entry(5, "run:a", kind="run.start")
    around = [entry(n, "run:a") for n in (4, 6)]
    real.spool.meta.next_number["cloud"] = 7
    ref = real.spool.refs.introduce(Ref("cloud", "run", "a", "billing", 1000, 5, touched_us=5))
    await real.spool.append({"cloud": around})
    await real.spool.append({"cloud": [start]}, introduced=[ref])
    await real.stop()
    real.flip(real.keys(Table.SEGMENT)[0])
    await real.open()
    await real.filled()
    assert ref_of(real).state == INTRODUCED


async def test_gates_look_after_their_own(real):
    """A reference that a gate introduced has no record in a queue."""
    ref = Ref("cloud", "action", "x", "billing", 1000, 0, touched_us=5, lane=GATE_LANE + "1")
    await real.spool.append({}, introduced=[real.spool.refs.introduce(ref)])
    await begin(real)
    await real.stop()
    key = real.keys(Table.SEGMENT)[0]
    real.change(key, b"garbage")
    real.change(key, b"garbage", "tag")
    await real.open()
    assert real.spool.refs.get("cloud", "action", "x").state == INTRODUCED
    assert ref_of(real).state == DEAD


# -- the meta row ------------------------------------------------------------------------------------------------------


async def test_without_the_meta_row_the_books_hold_what_is_on_disk(real, caplog):
    """Promise 8: what is queued and what is dead is booked as admitted; what had left is not known any more."""
    entries = await real.put(4, kind="task")
    await real.spool.bury(None, "cloud", entries[:1], Death(Cause.REJECTED, "no"))
    await real.spool.settle(seal_of(entries[1:2]), entries[1:2])
    await real.stop()
    real.flip(key_of(Table.META, 0), at=20)
    spool = await real.open()
    assert list(spool.books.lines()) == [
        Line("cloud", "task", "admitted", "", 3),
        Line("cloud", "task", "dead", "rejected", 1),
    ]
    assert real.balanced()
    assert spool.dead_count == 1
    assert "cloud: 2 records (task) more on disk than in the books" in caplog.text


async def test_without_the_meta_row_the_journal_goes_on_behind_its_end(real):
    """Promise 9: no number is given twice, also where the newest rows can't be read, and the chain goes on from what can."""
    for _ in range(3):
        await real.put(2, kind="task")
    await real.stop()
    rows = real.keys(Table.JOURNAL)
    real.flip(rows[-1])
    real.flip(key_of(Table.META, 0), at=20)
    spool = await real.open()
    assert spool.journal.next_number > 6
    before = spool.journal.next_number
    await real.put(1, kind="task")
    value = await spool.run_in_thread(lambda store: store.read(key_of(Table.JOURNAL, 4)))
    made = journals.decode_row(value)
    assert made.notes[0].number == before
    second = await spool.run_in_thread(lambda store: store.read(rows[-2]))
    assert made.previous == journals.decode_row(second).digest


async def test_a_damaged_time_of_a_journal_row_does_not_let_it_go_early(real):
    """Promise 9: a tag that says 1970, or a far future, is taken for its neighbours' time."""
    for _ in range(3):
        await real.put(1, kind="task")
    await real.stop()
    rows = real.keys(Table.JOURNAL)
    stamps = [
        int.from_bytes(tag, "little")
        for (tag,) in real.sql("SELECT tag FROM Cache WHERE key IN (?, ?, ?) ORDER BY key", *rows)
    ]
    real.change(rows[1], bytes(8), "tag")
    real.change(rows[2], b"\xff" * 8, "tag")
    spool = await real.open()
    assert [row.newest_us for row in spool.journal._rows] == [stamps[0]] * 3


# -- the numbers -------------------------------------------------------------------------------------------------------


async def test_missing_records_are_named_by_their_numbers_as_far_as_they_are_known(real, caplog):
    """Promise 8: the log and the journal say among which numbers of the queue the missing ones are."""
    for _ in range(3):
        await real.put(2, kind="task")
    await real.stop()
    key = real.keys(Table.SEGMENT)[1]
    real.change(key, b"garbage")
    real.change(key, b"garbage", "tag")
    spool = await real.open()
    assert (
        "cloud: 2 records (task) are missing on disk: booked as quarantined; they are among the numbers 3-4"
        in caplog.text
    )
    await spool.barrier()
    rows = await spool.run_in_thread(lambda store: list(store.rows(Table.JOURNAL)))
    last = journals.decode(rows[-1][1])[-1]
    assert (last.state, last.count, last.lane, last.cause) == (State.QUARANTINED, 2, "3-4", "damaged")


def test_many_gaps_are_told_in_short(tmp_path):
    """A line of the log stays a line."""
    ledger = Ledger(None, None, None, None)
    assert mending.where(ledger, "cloud", [(n, n) for n in range(1, 40, 2)]).startswith("…, 21-21, 23-23")
    assert mending.where(ledger, "cloud", [(5, 9), (1, 2)]) == "1-2, 5-9"
