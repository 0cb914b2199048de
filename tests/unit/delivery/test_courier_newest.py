"""Where only the newest counts: heartbeats and the like, of which an older one is worthless once there is a newer."""

from __future__ import annotations

import msgspec
import pytest

from agentd import platforms
from agentd.delivery.courier import Settings
from agentd.exchange import Call, Lost, Request
from agentd.outcomes import Delivered, Unknown
from agentd.platforms.base import by_status, lost
from agentd.testing import answer


class Pulse:
    """A platform that takes heartbeats, of which it wants the newest only, and decisions, of which it wants all."""

    name = "pulse"
    default_base_url = "https://pulse.example"
    encoder_version = 1
    introduces: frozenset[str] = frozenset()
    calls = {  # noqa: RUF012 - a test's
        "heartbeat": Call("beat", "/beat", newest_only=True),
        "decision": Call("decision", "/decision"),
    }

    def __init__(self):
        self.said = []

    def headers(self, sending):
        self.said.append(sending)
        return {}

    def references(self, item):
        return ()

    def encode(self, call, items, context):
        self.options = context.options
        return Request(call.path, items[0].body)

    def classify(self, call, items, said, attempt):
        if isinstance(said, Lost):
            return lost(call, said) or Unknown(said.reason)
        verdict = by_status(said, attempt, str(said.status))
        return Delivered() if isinstance(verdict, Delivered) else verdict


@pytest.fixture
def pulse(make_rig):
    return lambda *script, **settings: make_rig(*script, platform=Pulse(), **settings)


def statuses(rig):
    return [sent.json()["status"] for sent in rig.transport.requests]


def stale(rig):
    return [msgspec.json.decode(entry.body)["status"] for entry in rig.outbox.stale]


async def test_all_but_the_newest_is_discarded_before_a_call(pulse):
    """Of the heartbeats that are queued when the call goes out the newest is sent; the others end as stale, unsent."""
    rig = pulse()
    for name in ("one", "two", "three"):
        rig.put("heartbeat", status=name)
    await rig.idle()
    assert statuses(rig) == ["three"]
    assert stale(rig) == ["one", "two"]
    assert rig.outbox.live == 0


async def test_one_alone_is_sent_and_nothing_discarded(pulse):
    """A heartbeat without a newer one is no stale one."""
    rig = pulse()
    for name in ("one", "two"):
        rig.put("heartbeat", status=name)
        await rig.idle()
    assert statuses(rig) == ["one", "two"]
    assert stale(rig) == []


async def test_while_one_is_under_way_the_next_gather(pulse):
    """What comes while a call is under way is not touched by it; of those the newest follows."""
    rig = pulse()
    rig.transport.hold()
    rig.put("heartbeat", status="one")
    await rig.idle()
    for name in ("two", "three"):
        rig.put("heartbeat", status=name)
    await rig.idle()
    assert stale(rig) == []
    rig.transport.release()
    await rig.idle()
    assert statuses(rig) == ["one", "three"]
    assert stale(rig) == ["two"]
    assert [msgspec.json.decode(entry.body)["status"] for entry in rig.outbox.delivered] == ["one", "three"]


async def test_a_sealed_one_that_waits_for_its_next_try_is_stale_too(pulse):
    """What failed and would be tried again gives way to a newer one: after an outage nobody wants the old state."""
    rig = pulse(answer(503))
    rig.put("heartbeat", status="old")
    await rig.idle()
    rig.put("heartbeat", status="new")
    await rig.advance(1.0)
    assert statuses(rig) == ["old", "new"]
    assert stale(rig) == ["old"]
    assert (rig.outbox.live, rig.outbox.sealed_lanes()) == (0, ())


async def test_one_that_failed_and_is_still_the_newest_is_sent_again(pulse):
    """Without a newer one a heartbeat is repeated like any other record: the same bytes under the same key."""
    rig = pulse(answer(503))
    rig.put("heartbeat", status="one")
    await rig.idle()
    await rig.advance(1.0)
    first, second = rig.transport.requests
    assert (first.body, stale(rig), rig.outbox.live) == (second.body, [], 0)
    assert len({sending.idempotency_key for sending in rig.courier.platform.said}) == 1


async def test_a_destination_that_is_away_gets_one_of_each_agent(pulse, make_record):
    """A lane is an agent's: the newest of each goes out when the destination is back."""
    rig = pulse(answer(401))
    rig.put("heartbeat", status="probe")
    await rig.idle()
    for number in range(3):
        for agent in ("a", "b"):
            beat = make_record("heartbeat", status=f"{agent}{number}")
            entry = rig.outbox.put(beat, agent=agent, now_us=rig.clock.now_us())
            rig.courier.touch({entry.lane})
    await rig.idle()
    assert statuses(rig) == ["probe"]
    await rig.advance_until(lambda: rig.outbox.live == 0)
    assert sorted(statuses(rig)[1:]) == ["a2", "b2", "probe"]
    assert sorted(stale(rig)) == ["a0", "a1", "b0", "b1"]


async def test_other_calls_of_the_platform_keep_all(pulse):
    """A call that does not say so keeps every record of its lane."""
    rig = pulse()
    for name in ("one", "two", "three"):
        rig.put("decision", context=name, run_id="r")
    await rig.idle()
    assert [sent.json()["context"] for sent in rig.transport.requests] == ["one", "two", "three"]
    assert stale(rig) == []


async def test_other_kinds_of_a_lane_are_left_alone(pulse):
    """Only records of the very kind give way, whatever shares their lane."""
    rig = pulse()
    beats = [rig.put("heartbeat", quiet=True, status=name) for name in ("one", "two")]
    decision = rig.put("decision", quiet=True, context="why", run_id="r")
    rig.outbox.entries.clear()
    for entry in (beats[0], decision, beats[1]):
        entry.lane = "mixed:x"
        rig.outbox.entries.setdefault("mixed:x", []).append(entry)
    rig.courier.touch({"mixed:x"})
    await rig.idle()
    assert [sent.path for sent in rig.transport.requests] == ["/decision", "/beat"]
    assert stale(rig) == ["one"]


async def test_after_a_crash_the_older_ones_are_as_stale_as_before(pulse, rig_class):
    """A start finds sealed and unsealed heartbeats: the newest alone is sent."""
    rig = pulse(answer(503))
    rig.put("heartbeat", status="sealed")
    await rig.idle()
    await rig.stop()
    for name in ("two", "three"):
        rig.put("heartbeat", quiet=True, status=name)
    again = rig_class(platform=Pulse(), outbox=rig.outbox.reopen(), clock=rig.clock)
    again.start()
    await again.idle()
    assert (statuses(again), stale(again), again.outbox.live) == (["three"], ["sealed", "two"], 0)
    await again.stop()


async def test_a_destinations_options_and_signing_secret_reach_its_adapter(pulse):
    """What the configuration says of a destination's variants and its secret is there when its adapter encodes and signs."""
    rig = pulse(options={"variant": "old"}, signing_secret="hush")
    rig.put("heartbeat", status="one")
    await rig.idle()
    adapter = rig.courier.platform
    assert (adapter.options, adapter.said[0].signing_secret) == ({"variant": "old"}, "hush")
    assert adapter.said[0].body == rig.transport.requests[0].body


async def test_without_options_there_are_none_and_nothing_is_signed(pulse):
    """Safe defaults: an adapter sees no option and no secret."""
    rig = pulse()
    rig.put("heartbeat", status="one")
    await rig.idle()
    assert (rig.courier.platform.options, rig.courier.platform.said[0].signing_secret) == ({}, None)


async def test_a_repeat_is_what_was_sealed_whatever_the_options_are_by_now(pulse):
    """Promise 4: a record that is sent alone is sealed with its bytes: the adapter is not asked again for a repeat."""
    rig = pulse(answer(503), options={"variant": "old"})
    rig.put("heartbeat", status="one")
    await rig.idle()
    rig.courier.platform.options = None
    await rig.advance(1.0)
    assert rig.courier.platform.options is None


def test_no_secret_is_printed(rig_class):
    """Neither key nor signing secret is in what a log would show."""
    settings = rig_class(platform=platforms.load("agentos"), signing_secret="hush").settings
    assert isinstance(settings, Settings)
    assert repr(settings) == "<Settings cloud>"
