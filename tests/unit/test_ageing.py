"""Growing old: a wall clock that is wrong for a moment costs nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.ageing import AgeingClock
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


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def ageing(clock):
    return AgeingClock(clock.now_us(), clock())


def test_time_that_goes_by_is_time(clock, ageing):
    """With a clock that goes right, ages are judged by it."""
    for _ in range(10):
        clock.advance(8640.5)
        assert ageing.now_us(clock.now_us(), clock()) == clock.now_us()


def test_a_jump_ahead_makes_nothing_older(clock, ageing):
    """A clock that is a year ahead for a moment is not believed; once it is right again it counts as before."""
    clock.advance(100)
    right = clock.now_us()
    clock.set_wall(YEAR_S)
    assert ageing.now_us(clock.now_us(), clock()) == right
    clock.set_wall(-YEAR_S)
    clock.advance(1)
    assert ageing.now_us(clock.now_us(), clock()) == clock.now_us() == right + 10**6


def test_a_clock_that_is_put_back_makes_everything_younger(clock, ageing):
    """What is deleted too late does no harm; what is deleted too early is gone."""
    clock.advance(100)
    clock.set_wall(-YEAR_S)
    assert ageing.now_us(clock.now_us(), clock()) == clock.now_us()


@given(st.integers(0, 2**62), st.integers(0, 2**62), st.integers(0, 10**9))
def test_nothing_ages_faster_than_time_goes_by(begun_us, wall_us, passed_s):
    """Whatever the wall clock says: never later than it, and never further than the time since the start."""
    now_us = AgeingClock(begun_us, 5.0).now_us(wall_us, 5.0 + passed_s)
    assert now_us <= wall_us
    assert now_us <= begun_us + passed_s * 10**6


async def test_a_year_ahead_for_a_moment_costs_no_run_its_id_and_no_journal_row(tmp_path, clock, ageing):
    """Housekeeping while the clock is a year ahead keeps the names of runs and the journal; after that time in earnest they go."""
    store = MemoryStore()
    spool = await open_spool(
        tmp_path / "state", sync="full", limits=Limits({"cloud": 10**6}, 10**6, 10**6, 10**6, 10**6, 10),
        identities={"cloud": "agentos"}, journal=Journal(200 * DAY_US, 10**9), now_us=clock.now_us,
        opener=lambda *_: store,
    )  # fmt: skip
    spool.start()
    now_us, source = clock.now_us(), Source("", 1000, 1, "t")
    ref = spool.refs.introduce(Ref("cloud", "run", "r", "", 1000, spool.number("cloud"), touched_us=now_us))
    entry = Entry(ref.number, bytes(16), "run:r", "run.start", LossClass.KEEP, source, now_us, b"{}")
    await spool.append({"cloud": [entry]}, introduced=[ref])
    seal = Seal(0, "cloud", "run:r", entry.number, entry.number, 1, (), "k", 1, bytes(32), "run/start")
    await spool.seal(seal)
    await spool.settle(seal, [entry], [Learned("run", "r", "p-r")])

    async def tick():
        spool.tick(ageing.now_us(clock.now_us(), clock()), 7 * DAY_US)
        await spool.barrier()
        found = spool.refs.get("cloud", "run", "r")
        return found and found.platform_id, len(list(store.rows(Table.JOURNAL)))

    before = await tick()
    assert before[0] == "p-r"
    assert before[1] > 0
    clock.set_wall(YEAR_S)
    assert await tick() == before
    clock.set_wall(-YEAR_S)
    assert await tick() == before
    clock.advance(YEAR_S)
    assert await tick() == (None, 0)
    await spool.close()
