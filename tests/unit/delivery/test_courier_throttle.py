"""A courier that is kept back: fewer at once when the platform has too much to do, a rate, and what goes first then."""

from __future__ import annotations

import asyncio
import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentd.delivery.lanes import URGENT_IN_A_ROW, Lanes
from agentd.exchange import Call, Lost, Request
from agentd.outcomes import Delivered, Unknown
from agentd.platforms.base import by_status, lost
from agentd.testing import answer

LATE = Lost("no answer in time", sent=True, late=True)


class Both:
    """A platform that takes decisions and telemetry, one at a time, so that each request is one record."""

    name = "both"
    default_base_url = "https://both.example"
    encoder_version = 1
    introduces: frozenset[str] = frozenset()
    calls = {"event": Call("event", "/event"), "decision": Call("decision", "/decision")}  # noqa: RUF012 - a test's

    def headers(self, sending):
        return {}

    def references(self, item):
        return ()

    def encode(self, call, items, context):
        return Request(call.path, items[0].body)

    def classify(self, call, items, said, attempt):
        if isinstance(said, Lost):
            return lost(call, said) or Unknown(said.reason)
        verdict = by_status(said, attempt, str(said.status))
        return Delivered() if isinstance(verdict, Delivered) else verdict


class Held:
    """A transport that answers when it is told to; `most` is the highest number that was under way."""

    def __init__(self):
        self.waiting = []
        self.most = 0

    async def send(self, _request, _headers):
        future = asyncio.get_running_loop().create_future()
        self.waiting.append(future)
        self.most = max(self.most, len(self.waiting))
        return await future

    def say(self, *answers):
        for said in answers:
            self.waiting.pop(0).set_result(said)


@pytest.fixture
async def held(rig_class):
    rig = rig_class(transport=Held(), platform=Both(), max_in_flight=8)
    rig.start()
    yield rig
    await rig.stop()


def decisions(rig, count, run="d"):
    for number in range(count):
        rig.put("decision", context="c", run_id=f"{run}{number}")


@pytest.mark.parametrize("said", [answer(503), LATE, answer(429, {}, retry_after="1")], ids=["503", "timeout", "429"])
async def test_a_platform_with_too_much_to_do_gets_less_at_once(held, said):
    """Eight at once until one is turned away, then four; it rises again one by one, and everything arrives."""
    decisions(held, 60)
    await held.idle()
    assert len(held.transport.waiting) == 8
    held.transport.say(said)
    await held.idle()
    held.transport.say(*[answer()] * 7)
    await held.idle()
    assert held.courier.throttle.width == 4
    widths = []
    while held.outbox.live:
        await held.advance(2.0)
        await held.until(lambda: held.transport.waiting or not held.outbox.live)
        widths.append(len(held.transport.waiting))
        held.transport.say(*[answer()] * len(held.transport.waiting))
        await held.idle()
    assert widths[0] <= 4
    assert max(widths) > 4
    assert held.outbox.dead == []


async def test_all_that_are_turned_away_together_halve_once(held):
    """Eight 503s of one round are one sign."""
    decisions(held, 30)
    await held.idle()
    held.transport.say(*[answer(503)] * 4)
    await held.idle()
    assert held.courier.throttle.width == 4


async def test_a_rate_limit_spaces_requests(make_rig):
    """Ten a second: one goes at once, the others every tenth of a second, and the courier knows when to wake up."""
    rig = make_rig(then=answer(), platform=Both(), rate=10.0)
    decisions(rig, 5)
    await rig.idle()
    sent = [len(rig.transport.requests)]
    for _ in range(4):
        await rig.advance(0.05)
        sent.append(len(rig.transport.requests))
        await rig.advance(0.051)
        sent.append(len(rig.transport.requests))
    assert sent == [1, 1, 2, 2, 3, 3, 4, 4, 5]


async def test_the_courier_wakes_up_by_itself(rig_class):
    """Without news and without a test's hand: the real clock and the loop's own timer."""
    clock = time.monotonic
    rig = rig_class(platform=Both(), rate=50.0)
    rig.courier = type(rig.courier)(rig.settings, Both(), rig.outbox, rig.transport, clock=clock)
    decisions(rig, 5)
    begun = clock()
    rig.start()
    async with asyncio.timeout(10):
        while len(rig.transport.requests) < 5:
            await asyncio.sleep(0.005)
    assert clock() - begun >= 0.06
    await rig.stop()


async def test_questions_are_charged_and_not_held(make_rig):
    """A gate's question takes a token of its destination's: the next record waits for another."""
    rig = make_rig(then=answer(), platform=Both(), rate=1.0)
    decisions(rig, 2)
    await rig.idle()
    rig.courier.throttle.charge()
    await rig.advance(1.1)
    assert len(rig.transport.requests) == 1
    await rig.advance(1.0)
    assert len(rig.transport.requests) == 2


async def test_a_wait_for_a_reference_costs_no_token(make_rig):
    """What could not be sent gives its place to what can."""
    rig = make_rig(then=answer(200, {"data": {"run_id": "p"}}), rate=0.1)
    rig.put("event", run_id="unknown", type="t", level="error")
    rig.put("run.complete", run_id="unknown")
    await rig.idle()
    assert rig.transport.requests == []
    rig.put("run.start", run_id="known")
    await rig.idle()
    assert rig.paths == ["run/start"]


# -- what goes first ---------------------------------------------------------------------------------------------------


async def test_decisions_are_not_starved_by_telemetry(make_rig):
    """A hundred lanes of events wait at a rate limit; a decision that comes then is the next but three at most, whatever waits."""
    rig = make_rig(then=answer(), platform=Both(), rate=1.0)
    for number in range(100):
        rig.put("event", run_id=f"e{number}", type="t")
    await rig.idle()
    decisions(rig, 10)
    await rig.idle()
    for _ in range(14):
        await rig.advance(1.001)
    kinds = [sent.path for sent in rig.transport.requests]
    assert kinds.index("/decision") <= 1
    assert kinds[:15].count("/decision") == 10


async def test_telemetry_is_not_starved_by_decisions(make_rig):
    """A flood of decisions: of four requests one is still for the events, in the order in which they came."""
    rig = make_rig(then=answer(), platform=Both(), rate=1.0)
    decisions(rig, 200)
    for number in range(20):
        rig.put("event", run_id=f"e{number}", type=f"t{number}")
    await rig.idle()
    for _ in range(79):
        await rig.advance(1.001)
    kinds = [sent.path for sent in rig.transport.requests]
    assert len(kinds) == 80
    assert kinds.count("/event") == 20
    assert all(kinds[at : at + 4].count("/event") == 1 for at in range(0, 80, 4))
    assert [sent.json()["type"] for sent in rig.transport.requests if sent.path == "/event"] == [
        f"t{n}" for n in range(20)
    ]


async def test_a_decision_behind_events_takes_its_lane_along(make_rig):
    """Order within a run holds: what is before the decision goes first, and at the decision's pace."""
    rig = make_rig(then=answer(), platform=Both(), rate=1.0)
    for number in range(50):
        rig.put("event", run_id=f"e{number}", type="t")
    await rig.idle()
    rig.put("event", run_id="mixed", type="before")
    rig.put("decision", context="c", run_id="mixed")
    await rig.idle()
    for _ in range(5):
        await rig.advance(1.001)
    of_run = [sent.path for sent in rig.transport.requests if sent.json()["run_id"] == "mixed"]
    assert of_run == ["/event", "/decision"]


async def test_a_lane_that_is_in_line_moves_up_when_a_decision_comes(make_rig):
    """News of a lane that waits among a hundred others count at once."""
    rig = make_rig(then=answer(), platform=Both(), rate=1.0)
    for number in range(100):
        rig.put("event", run_id=f"e{number}", type="t")
    await rig.idle()
    rig.put("decision", context="c", run_id="e99")
    await rig.idle()
    for _ in range(3):
        await rig.advance(1.001)
    assert [sent.path for sent in rig.transport.requests if sent.json()["run_id"] == "e99"] == ["/event", "/decision"]


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.lists(st.integers(0, 59), max_size=30))
@settings(deadline=None)
def test_no_lane_waits_for_ever(urgent, again):
    """Whatever is urgent: every lane has its turn, of four requests one is for the others, each class in its order."""
    flags = {f"lane{number}": flag for number, flag in enumerate(urgent)}
    lanes = Lanes(lambda key: flags[key])
    for key in itertools.chain(flags, (f"lane{number % len(flags)}" for number in again)):
        lanes.touch(key)
    order = []
    while (lane := lanes.next_ready()) is not None:
        lanes.begin(lane)
        lanes.finish(lane)
        order.append(lane.key)
    assert sorted(order) == sorted(flags)
    for flag in (True, False):
        assert [key for key in order if flags[key] is flag] == [key for key in flags if flags[key] is flag]
    for at in range(len(order) - URGENT_IN_A_ROW):
        window = order[at : at + URGENT_IN_A_ROW + 1]
        if any(not flags[key] for key in order[at:]):
            assert any(not flags[key] for key in window)
    first_urgent = [index for index, key in enumerate(order) if flags[key]]
    for rank, index in enumerate(first_urgent):
        assert index <= rank + rank // URGENT_IN_A_ROW + 1


def test_a_look_that_sends_nothing_uses_up_no_turn():
    """The others' turn is over once something of theirs went, not once somebody looked."""
    lanes = Lanes(lambda key: key.startswith("u"))
    for key in ("u1", "u2", "u3", "u4", "o1", "o2"):
        lanes.touch(key)
    for _ in range(3):
        lanes.begin(lanes.next_ready())
    assert lanes.next_ready().key == "o1"  # gathering, say: nothing goes
    assert lanes.next_ready().key == "o2"
    assert lanes.has_ready
    assert lanes.next_ready().key == "u4"
