"""What a lane waits for, in one word and a reason; and a courier that is told to start nothing."""

from __future__ import annotations

import asyncio

import pytest

from agentd.delivery.backoff import Backoff
from agentd.delivery.circuit import Circuit, Health
from agentd.delivery.lanes import Hold, Lanes
from agentd.delivery.waits import Waits, Why, tally, waits
from agentd.testing import MemoryOutbox, ScriptedTransport, answer

OK = Circuit(Backoff(0.25, 60.0))
PAUSED = Circuit(Backoff(0.25, 60.0), Health.PAUSED, "401", 130.0)
NOW = 100.0


def _lane(hold=None, *, in_flight=False, ready=False, failures=0):
    lanes = Lanes()
    lane = lanes.get("run:r")
    lane.failures, lane.in_flight, lane.ready = failures, in_flight, ready
    if hold is not None:
        lanes.hold(lane, hold, 107.0, "why")
    return lane


@pytest.mark.parametrize(
    ("lane", "circuit", "expected"),
    [
        (_lane(ready=True), OK, Waits(Why.TURN)),
        (_lane(in_flight=True, failures=2), PAUSED, Waits(Why.ANSWER, "", None, 2)),
        (_lane(Hold.GATHERING), OK, Waits(Why.BATCH, "why", 7.0)),
        (_lane(Hold.BACKOFF, failures=3), OK, Waits(Why.BACKOFF, "why", 7.0, 3)),
        (_lane(Hold.FORBIDDEN), OK, Waits(Why.FORBIDDEN, "why", 7.0)),
        (_lane(Hold.REFERENCE), OK, Waits(Why.REFERENCE, "why", 7.0)),
        (_lane(Hold.REFERENCE), PAUSED, Waits(Why.REFERENCE, "why", 7.0)),
        (_lane(Hold.BACKOFF, failures=3), PAUSED, Waits(Why.DESTINATION, "paused: 401", 30.0, 3)),
        (_lane(ready=True), PAUSED, Waits(Why.DESTINATION, "paused: 401", 30.0)),
        (None, PAUSED, Waits(Why.DESTINATION, "paused: 401", 30.0)),
        (None, OK, Waits(Why.MEMORY)),
        (_lane(), OK, Waits(Why.MEMORY)),
    ],
)
def test_one_word_says_what_has_to_come_first(lane, circuit, expected):
    """Its own request, an id or a permission that it alone lacks, the destination, its next try, its turn, or room in memory."""
    assert waits(lane, circuit, NOW) == expected


def test_a_time_that_is_past_is_now():
    """Nothing is due in less than no time."""
    assert waits(_lane(Hold.BACKOFF), OK, 200.0).next_s == 0.0


def test_how_many_wait_for_what():
    """Each known lane is counted once."""
    lanes = Lanes()
    for name in ("a", "b", "c", "d"):
        lanes.touch(name)
    for _ in range(2):
        lanes.begin(lanes.next_ready())
    lanes.hold(lanes.next_ready(), Hold.REFERENCE, 1.0)
    assert tally(lanes) == {"answer": 2, "reference": 1, "turn": 1}
    assert lanes.find("nobody") is None
    assert len(lanes) == 4


async def test_a_suspended_courier_starts_nothing_and_ends_what_it_began(make_rig):
    """A request that is under way is settled; nothing else goes out until it may, and then everything does."""
    rig = make_rig(then=answer(200))
    rig.transport.hold()
    rig.events(50, "a")
    await rig.until(lambda: rig.transport.held == 1)
    rig.courier.suspend()
    rig.events(50, "b")
    await rig.idle()
    rig.transport.release()
    await rig.idle()
    await rig.advance(60.0)
    assert len(rig.transport.requests) == 1
    assert rig.outbox.live == 50
    rig.courier.resume()
    await rig.until(lambda: rig.outbox.live == 0)
    assert len(rig.transport.requests) == 2


async def test_a_suspended_courier_sleeps(make_rig):
    """Away with lanes that are ready: it waits to be woken and does not run in circles."""
    rig = make_rig(answer(503), then=answer(200))
    rig.events(50, "a")
    await rig.until(lambda: rig.courier.lanes.find("run:a").hold is Hold.BACKOFF)
    rig.courier.suspend()
    rig.clock.advance(3600.0)
    rig.courier.touch({"run:a"})
    await rig.idle()
    steps = []
    step = rig.courier._step
    rig.courier._step = lambda: steps.append(1) or step()
    for _ in range(100):
        await asyncio.sleep(0)
    assert steps == []
    rig.courier.resume()
    await rig.until(lambda: rig.outbox.live == 0)


async def test_a_start_far_behind_in_its_own_lane_is_read_and_sent_first(rig_class, started):
    """Events before their run.start, more than memory holds: the start is brought into memory; nobody waits for ever."""

    class Small(MemoryOutbox):
        """Shows a lane's start only after it was asked to bring it."""

        def __init__(self):
            super().__init__()
            self.brought = []
            self.filled = 0

        def find(self, lane, number):
            return super().find(lane, number) if self.filled and self.brought else None

        def bring(self, lane, number):
            self.brought.append((lane, number))

        def fill(self):
            if self.brought:
                self.filled += 1

    outbox = Small()
    rig = rig_class(outbox=outbox, transport=ScriptedTransport(started, then=answer(200)), max_events=3)
    for number in range(3):
        rig.put("event", run_id="r", type=f"t{number}", quiet=True)
    start = rig.put("run.start", run_id="r", quiet=True)
    rig.courier.touch({"run:r"})
    rig.start()
    await rig.idle()
    assert outbox.brought == [("run:r", start.number)]
    assert (rig.paths, outbox.blocked) == ([], set())
    assert rig.courier.lanes.find("run:r").hold is Hold.READING
    await rig.advance(1.0)
    await rig.until(lambda: rig.outbox.live == 0)
    assert rig.paths == ["run/start", "events"]
    await rig.stop()
