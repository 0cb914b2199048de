"""Health: both the event loop and the storage thread have to get on, and what hangs is named."""

from __future__ import annotations

import asyncio

import pytest

from agentd.control.health import Health, Probed
from agentd.errors import StateError
from agentd.vitals import Pace, Vital


class Spool:
    def __init__(self):
        self.now = Vital(0, busy=False)
        self.trouble = None

    def vital(self):
        return self.now

    def stuck(self):
        return self.trouble


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def health(clock):
    async with Health(clock=clock) as health:
        yield health


async def pass_time(health, clock, seconds, *, look=True):
    clock.now += seconds
    if look:
        health.look()


async def test_a_storage_thread_that_ends_nothing_is_named(health, clock):
    """Busy for longer than 30 s without one job ended: 503, with how long; at 30 s not yet; one job more and all is well."""
    spool = Spool()
    health.opened(spool)
    spool.now = Vital(7, busy=True)
    health.look()
    await pass_time(health, clock, 30)
    assert health.unhealthy() is None
    await pass_time(health, clock, 1)
    assert health.unhealthy() == "the storage thread has ended nothing for 31 s"
    spool.now = Vital(8, busy=True)
    health.look()
    assert health.unhealthy() is None


async def test_a_storage_thread_without_work_is_well(health, clock):
    """A quiet night is no illness."""
    health.opened(Spool())
    for _ in range(10):
        await pass_time(health, clock, 3600)
        assert health.unhealthy() is None


async def test_an_event_loop_that_hangs_is_named(health, clock):
    """No mark for longer than 30 s: whoever asks from another thread hears so; the storage thread is not blamed for it."""
    spool = Spool()
    spool.now = Vital(1, busy=True)
    health.opened(spool)
    await pass_time(health, clock, 30, look=False)
    assert health.unhealthy() is None
    await pass_time(health, clock, 12, look=False)
    assert health.unhealthy() == "the event loop has not gone round for 42 s"


async def test_commits_that_fail_are_told(health):
    """A disk that gives errors: alive, and nothing reaches it."""
    spool = Spool()
    health.opened(spool)
    spool.trouble = "5 commits failed in a row"
    assert health.unhealthy() == health.stuck() == "5 commits failed in a row"


async def test_a_long_start_that_gets_on_is_healthy(clock):
    """The repair of a large spool steps its pace; one that stops stepping hangs."""
    pace = Pace()
    async with Health(pace, clock=clock) as health:
        for _ in range(5):
            pace.step()
            await pass_time(health, clock, 25)
            assert health.unhealthy() is None
        await pass_time(health, clock, 31)
        assert health.unhealthy() == "the start has ended nothing for 31 s"
        assert repr(health) == "<Health the start has ended nothing for 31 s>"


async def test_marks_are_left_by_themselves():
    """Within the block somebody looks about once a second."""
    spool = Spool()
    looks = asyncio.Event()
    async with Health() as health:
        health.opened(spool)
        spool.vital = lambda: looks.set() or Vital(0, busy=False)
        health._vital = spool.vital
        async with asyncio.timeout(10):
            await looks.wait()


async def test_while_it_starts_there_is_health_and_no_more(health):
    """Before records are taken: not ready, no metrics; from then on the daemon itself is asked."""
    probed = Probed(health)
    assert (probed.unhealthy(), probed.unready()) == (None, "starting")
    with pytest.raises(StateError, match="starting"):
        probed.metrics()

    class Control:
        def unready(self):
            return "draining"

        def metrics(self):
            return b"x 1\n", "text/plain"

    probed.control = Control()
    assert (probed.unready(), probed.metrics()[0]) == ("draining", b"x 1\n")
