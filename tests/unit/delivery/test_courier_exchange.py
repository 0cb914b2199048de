"""A courier whose settings are exchanged while it works: nothing under way is lost, and what was sealed stays what it was."""

from __future__ import annotations

import msgspec
import pytest

from agentd import platforms
from agentd.delivery.backoff import Backoff
from agentd.delivery.circuit import Circuit, Health
from agentd.testing import ScriptedTransport, answer

REFUSED = answer(401, {"data": None, "error": {"code": "UNAUTHORIZED", "message": "key"}})
AWAY = answer(503, {"data": None, "error": {"code": "DOWN", "message": "soon"}})


def settings_of(rig, **changes):
    return msgspec.structs.replace(rig.courier.settings, **changes)


def keys_of(requests):
    return [sent.headers["authorization"] for sent in requests]


async def test_a_paused_destination_is_tried_at_once_with_the_new_key(make_rig):
    """Promise 5: a 401 pauses for long; who gives a new key does not wait for the next probe."""
    rig = make_rig(REFUSED)
    rig.events(50)
    await rig.until(lambda: rig.health == "paused")
    rig.courier.exchange(settings_of(rig, api_key="aos_agent_fresh"), rig.transport, probes=True)
    await rig.until(lambda: rig.outbox.live == 0)
    assert keys_of(rig.transport.requests) == ["Bearer aos_agent_secret", "Bearer aos_agent_fresh"]
    first, second = rig.transport.requests
    assert (first.body, first.headers["idempotency-key"]) == (second.body, second.headers["idempotency-key"])
    assert rig.health == "ok"


async def test_what_was_refused_under_the_old_key_goes_again_under_the_new_one(make_rig):
    """Requests that were under way when the key was exchanged: their 401 says nothing of the new key, and pauses nobody."""
    rig = make_rig(REFUSED, REFUSED)
    rig.transport.hold()
    rig.events(50, "a")
    rig.events(50, "b")
    await rig.idle()
    assert rig.transport.under_way == 2
    rig.courier.exchange(settings_of(rig, api_key="aos_agent_fresh"), rig.transport, probes=True)
    rig.transport.release()
    await rig.until(lambda: rig.outbox.live == 0)
    assert sorted(keys_of(rig.transport.requests)) == ["Bearer aos_agent_fresh"] * 2 + ["Bearer aos_agent_secret"] * 2
    assert len({sent.headers["idempotency-key"] for sent in rig.transport.requests}) == 2
    assert rig.health == "ok"


async def test_a_request_under_way_ends_as_it_began(make_rig):
    """Another way out is for what comes next: the answer that is on its way is taken, and nothing is sent twice."""
    rig = make_rig()
    rig.transport.hold()
    rig.events(50)
    await rig.idle()
    other = ScriptedTransport()
    rig.courier.exchange(settings_of(rig, max_in_flight=1), other, probes=True)
    rig.transport.release()
    await rig.until(lambda: rig.outbox.live == 0)
    rig.events(50)
    await rig.until(lambda: rig.outbox.live == 0)
    assert (len(rig.transport.requests), len(other.requests)) == (1, 1)


async def test_new_limits_count_for_what_is_gathering(make_rig):
    """A lane that waits for 50 events or half a second goes by what is configured now."""
    rig = make_rig()
    rig.events(3)
    await rig.idle()
    assert rig.transport.requests == []
    limits = msgspec.structs.replace(rig.courier.settings.limits, max_events=3)
    rig.courier.exchange(settings_of(rig, limits=limits), rig.transport)
    await rig.until(lambda: rig.outbox.live == 0)


async def test_a_sealed_batch_keeps_its_bytes_whatever_shapes_the_next_ones(make_rig):
    """Promise 4: what is configured now shapes new batches; a repeat is encoded as it was sealed, and a later start has its bytes."""
    rig = make_rig(AWAY, AWAY, platform=_Shaped(), options={"shape": "a"}, dialect="a")
    rig.events(50)
    await rig.until(lambda: len(rig.transport.requests) == 1)
    await rig.idle()
    for shape in "bcd":
        rig.courier.exchange(settings_of(rig, options={"shape": shape}, dialect=shape), rig.transport, probes=True)
        await rig.advance(300)
    await rig.advance_until(lambda: rig.outbox.live == 0)
    assert len({sent.body for sent in rig.transport.requests}) == 1
    assert len({sent.headers["idempotency-key"] for sent in rig.transport.requests}) == 1
    rig.events(50)
    await rig.until(lambda: rig.outbox.live == 0)
    assert rig.transport.requests[-1].body.endswith(b"shape d")


async def test_a_later_start_has_the_bytes_of_what_was_sealed_before_a_reload(make_rig, rig_class):
    """Promise 4 over a reload and a crash behind it: the batch carries its bytes on disk from the reload on."""
    rig = make_rig(then=AWAY, platform=_Shaped(), options={"shape": "a"}, dialect="a")
    rig.events(50)
    await rig.until(lambda: rig.courier.counts.requests == 1)
    await rig.idle()
    rig.courier.exchange(settings_of(rig, options={"shape": "b"}, dialect="b"), rig.transport)
    await rig.stop()
    after = rig_class(
        outbox=rig.outbox.reopen(), clock=rig.clock, platform=_Shaped(), options={"shape": "b"}, dialect="b"
    )
    after.start()
    await after.advance_until(lambda: after.outbox.live == 0)
    await after.stop()
    assert after.transport.requests[0].body == rig.transport.requests[0].body
    assert after.transport.requests[0].body.endswith(b"shape a")


async def test_a_queue_that_another_courier_had_is_taken_over(make_rig, rig_class):
    """A destination that comes back finds its lanes, also those that its courier before had given up for a while."""
    rig = rig_class()
    rig.events(50, "a", quiet=True)
    rig.events(50, "b", quiet=True)
    rig.outbox.block("run:b")
    rig.start()
    await rig.idle()
    assert rig.transport.requests == []
    rig.courier.take_over(rig.outbox.entries)
    rig.courier.touch(set())
    await rig.until(lambda: rig.outbox.live == 0)
    assert rig.outbox.blocked == set()
    await rig.stop()


@pytest.mark.parametrize(("anew", "until"), [(True, 10.0), (False, 3600.0)])
def test_the_rest_that_a_platform_asked_for_is_the_old_keys(anew, until):
    """With a new key the next probe goes at once; without one a monthly cap is still the same cap."""
    circuit = Circuit(Backoff(0.25, 60.0))
    circuit.pause(0.0, "monthly cap", 3600.0)
    circuit.try_now(10.0, anew=anew)
    assert (circuit.health, circuit.until) == (Health.PAUSED, until)


class _Shaped:
    """AgentOS with one more option that shapes its batches."""

    def __init__(self):
        self._own = platforms.load("agentos")

    def __getattr__(self, name):
        return getattr(self._own, name)

    def encode(self, call, entries, context):
        request = self._own.encode(call, entries, context)
        return msgspec.structs.replace(request, body=request.body + f" shape {context.options['shape']}".encode())
