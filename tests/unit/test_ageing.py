"""Growing old: whatever the wall clock does, what is stamped by it ages as time goes by."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.ageing import Clocks
from agentd.outcomes import Learned
from agentd.queued import Entry, Ref, Seal, Source
from agentd.records import LossClass
from agentd.spool.journal import Journal
from agentd.spool.ledger import Limits
from agentd.spool.recovery import open_spool
from agentd.spool.tables import Table
from agentd.testing import FakeClock, MemoryStore

YEAR_S = 366 * 86_400
DAY_US = 86_400 * 10**6
TO_1970_S = -1_767_225_600  # from where FakeClock's wall clock begins
TO_2099_S = 2_303_596_800
JUMPS = (YEAR_S, -YEAR_S, TO_1970_S, TO_2099_S)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def clocks(clock):
    return Clocks(clock.now_us, clock)


def test_time_that_goes_by_is_time(clock, clocks):
    """With a clock that goes right, ages are what it says, and so is the time."""
    stamp = clocks.now_us()
    assert stamp == clock.now_us()
    for _ in range(10):
        clock.advance(8640.5)
        assert clocks.age_us(stamp) == clock.now_us() - stamp
        assert clocks.said_us(5) == [(clock.now_us() - 5, clock.now_us())]


@pytest.mark.parametrize("jump_s", JUMPS)
def test_a_jump_makes_nothing_older_or_younger(clock, clocks, jump_s):
    """What was stamped before it and what is stamped after it both age by the time that goes by, also when it is taken back."""
    before = clocks.now_us()
    clock.advance(100)
    clock.set_wall(jump_s)
    after = clocks.now_us()
    assert after == clock.now_us()
    clock.advance(50)
    assert (clocks.age_us(before), clocks.age_us(after)) == (150 * 10**6, 50 * 10**6)
    clock.set_wall(-jump_s)
    back = clocks.now_us()
    clock.advance(1)
    assert [clocks.age_us(stamp) // 10**6 for stamp in (before, after, back)] == [151, 51, 1]


def test_what_the_clock_said_is_known_over_its_steps(clock, clocks):
    """The last ten minutes in its own words, the latest first, also those before the start."""
    start_us, minute_us = clock.now_us(), 60 * 10**6
    clock.advance(120)
    clock.set_wall(YEAR_S)
    clocks.now_us()
    clock.advance(180)
    year_us = YEAR_S * 10**6
    later = (start_us + year_us + 2 * minute_us, start_us + year_us + 5 * minute_us)
    assert clocks.said_us(10 * minute_us) == [later, (start_us - 5 * minute_us, start_us + 2 * minute_us)]
    assert clocks.said_us(minute_us) == [(later[1] - minute_us, later[1])]


@pytest.mark.parametrize("jump_s", JUMPS)
def test_what_lies_before_the_start_is_as_old_as_the_clock_says(clock, clocks, jump_s):
    """A day old at the start: a clock that is put back or ahead does not make it older than that, nor younger than the start."""
    stamp = clock.now_us() - DAY_US
    clock.advance(100)
    assert clocks.age_us(stamp) == DAY_US + 100 * 10**6
    clock.set_wall(jump_s)
    assert clocks.age_us(stamp) == DAY_US + 100 * 10**6
    clock.advance(100)
    assert clocks.age_us(stamp) == DAY_US + 200 * 10**6


def test_a_clock_that_was_wrong_at_the_start_and_is_put_right_is_believed(clock, clocks):
    """A year ahead at the start, put right afterwards: what is from the day before is a day old and not a year."""
    clock.advance(10)
    yesterday = clock.now_us() - YEAR_S * 10**6 - DAY_US
    assert clocks.age_us(yesterday) == YEAR_S * 10**6 + DAY_US
    clock.set_wall(-YEAR_S)
    assert clocks.age_us(yesterday) == DAY_US


def test_a_stamp_of_the_future_ages_from_the_start_on(clock, clocks):
    """A clock that was put back over a restart: nothing waits for the time that the stamp names."""
    stamp = clock.now_us() + YEAR_S * 10**6
    assert clocks.age_us(stamp) == 0
    clock.advance(3600)
    assert clocks.age_us(stamp) == 3600 * 10**6
    clock.set_wall(TO_1970_S)
    clock.advance(1)
    assert clocks.age_us(stamp) == 3601 * 10**6


def test_the_least_difference_is_no_jump(clock, clocks):
    """A clock that is slewed, or read a moment apart from the other, makes no epoch; a moment ahead is no negative age."""
    stamp = clocks.now_us()
    clock.set_wall(0.05)
    assert clocks.age_us(clock.now_us() + 1000) == 0
    assert len(clocks._epochs) == 1
    for _ in range(1000):
        clock.set_wall(0.0005)
        clock.advance(1)
        clocks.now_us()
    assert len(clocks._epochs) <= 6
    assert clocks.age_us(stamp) == 1000 * 10**6


def test_a_read_that_is_torn_apart_is_made_again():
    """A process that rests between the two reads sees no jump of the wall clock."""
    clock = FakeClock()
    rests = [0.0] * 2 + [300.0]

    def wall_us():
        wall = clock.now_us()
        clock.advance(rests.pop() if rests and len(rests) != 2 else 0.0)
        return wall

    rests.append(0.0)
    clocks = Clocks(wall_us, clock)
    clocks.now_us()
    assert len(clocks._epochs) == 1


def test_a_clock_that_never_rests_costs_no_memory_and_nothing_its_age(clock, clocks):
    """Ten thousand jumps: a bounded number is remembered, and what is from before them is not taken for older than it is."""
    first = clocks.now_us()
    for number in range(10_000):
        clock.set_wall(YEAR_S if number % 2 else -YEAR_S)
        clock.advance(1)
        clocks.now_us()
    assert len(clocks._epochs) <= 64
    assert 0 <= clocks.age_us(first) <= 10_000 * 10**6


@given(
    st.lists(st.tuples(st.sampled_from([0, 3600, -3600, *JUMPS]), st.integers(0, 100_000)), max_size=12),
    st.integers(0, 11),
)
def test_nothing_ages_faster_than_time_goes_by(moves, when):
    """Whatever the wall clock does: a stamp's age is the time since, or less by no more than the steps back in between."""
    clock = FakeClock()
    clocks = Clocks(clock.now_us, clock)
    stamps = []
    for jump_s, seconds in moves:
        clock.set_wall(jump_s)
        stamps.append((clock(), clocks.now_us()))
        clock.advance(seconds)
        clocks.now_us()
    back_s = -sum(min(0, jump_s) for jump_s, _ in moves)
    for at, stamp in stamps[when:]:
        passed_us = round((clock() - at) * 1e6)
        assert max(0, passed_us - back_s * 10**6) <= clocks.age_us(stamp) <= passed_us + 1


async def test_a_clock_that_jumps_costs_no_run_its_id_and_no_journal_row(tmp_path, clock, clocks):
    """Housekeeping while the clock is wrong keeps the names of runs and the journal; after that time in earnest they go."""
    store = MemoryStore()
    spool = await open_spool(
        tmp_path / "state", sync="full", limits=Limits({"cloud": 10**6}, 10**6, 10**6, 10**6, 10**6, 10),
        identities={"cloud": "agentos"}, journal=Journal(200 * DAY_US, 10**9), now_us=clocks.now_us,
        opener=lambda *_: store,
    )  # fmt: skip
    spool.start()

    async def run(name):
        now_us, source = clocks.now_us(), Source("", 1000, 1, "t")
        ref = spool.refs.introduce(Ref("cloud", "run", name, "", 1000, spool.number("cloud"), touched_us=now_us))
        entry = Entry(ref.number, bytes(16), f"run:{name}", "run.start", LossClass.KEEP, source, now_us, b"{}")
        await spool.append({"cloud": [entry]}, introduced=[ref])
        seal = Seal(0, "cloud", f"run:{name}", entry.number, entry.number, 1, (), "k", 1, bytes(32), "run/start")
        await spool.seal(seal)
        await spool.settle(seal, [entry], [Learned("run", name, f"p-{name}")])

    async def tick():
        spool.tick(clocks.ages(), 7 * DAY_US)
        await spool.barrier()
        return sorted(ref.local_id for ref in spool.refs), len(list(store.rows(Table.JOURNAL)))

    await run("r")
    before = await tick()
    assert before[0] == ["r"]
    assert before[1] > 0
    for jump_s in (*JUMPS, -sum(JUMPS)):
        clock.set_wall(jump_s)
        assert await tick() == before
    clock.set_wall(TO_2099_S)
    await run("later")
    clock.set_wall(-TO_2099_S)
    assert (await tick())[0] == ["later", "r"]
    clock.advance(8 * 86_400)
    assert (await tick())[0] == []
    clock.advance(YEAR_S)
    assert await tick() == ([], 0)
    await spool.close()
