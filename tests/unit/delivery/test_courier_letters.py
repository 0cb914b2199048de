"""What a courier leaves to the dead letters: the history of a batch's tries, and a pause for want of room that ends with room."""

from __future__ import annotations

import pytest

from agentd.delivery.backoff import Backoff
from agentd.delivery.circuit import Circuit, Health
from agentd.delivery.lanes import TRIES_KEPT, Lane
from agentd.exchange import Lost
from agentd.outcomes import Cause
from agentd.queued import Try
from agentd.testing import answer

REFUSED = Lost("no connection to api:443: Connection refused", sent=False)


def failing(status, **headers):
    return answer(status, {"data": None, "error": {"code": "CODE", "message": "words"}}, **headers)


# -- history -----------------------------------------------------------------------------------------------------------------


def test_a_lane_remembers_its_last_tries():
    """At most 16, the newest of them, the oldest first."""
    lane = Lane("run:r")
    for number in range(TRIES_KEPT + 5):
        lane.note_try(Try(number, 503, "503"))
        assert len(lane.history) == min(number + 1, 16)
    assert [tried.at_us for tried in lane.history] == list(range(5, 21))
    assert Lane("run:other").history == []


async def test_a_dead_letter_has_the_history_of_its_tries(make_rig):
    """Each with its time, the platform's status where there was an answer, and the reason; the last one is what it died of."""
    rig = make_rig(REFUSED, failing(503), failing(429, retry_after="1"), failing(400))
    begun = rig.clock.now_us()
    rig.events(1)
    await rig.flush()
    await rig.advance_until(lambda: rig.outbox.dead, 0.25)
    [(_, death)] = rig.outbox.dead
    assert [tried.status for tried in death.history] == [None, 503, 429, 400]
    assert death.history[0].reason == REFUSED.reason
    assert death.history[-1].reason == death.reason
    times = [tried.at_us for tried in death.history]
    assert times == sorted(times)
    assert begun <= times[0] < times[-1] == rig.clock.now_us()


async def test_a_delivery_ends_the_history(make_rig):
    """What failed before it says nothing of the next batch of the lane."""
    rig = make_rig(failing(503), answer(), failing(400))
    rig.events(1)
    await rig.flush()
    await rig.advance_until(lambda: rig.outbox.delivered)
    rig.events(1)
    await rig.flush()
    [(_, death)] = rig.outbox.dead
    assert [tried.status for tried in death.history] == [400]


async def test_a_burial_ends_the_history(make_rig):
    """The next batch of the lane has tries of its own."""
    rig = make_rig(failing(400), failing(400), max_events=1, max_request_events=1)
    rig.events(2)
    await rig.flush()
    await rig.advance_until(lambda: len(rig.outbox.dead) == 2)
    assert [len(death.history) for _, death in rig.outbox.dead] == [1, 1]


async def test_the_parts_of_a_refused_batch_have_its_history(make_rig):
    """The bad record was in each of the halves: the refusals on the way to it are what it died of."""
    rig = make_rig(
        then=lambda sent: failing(400) if any(e["type"] == "t2" for e in sent.json()["events"]) else answer()
    )
    rig.events(4)
    await rig.flush()
    await rig.advance_until(lambda: rig.outbox.live == 0)
    [(entry, death)] = rig.outbox.dead
    assert b'"t2"' in entry.body
    assert [tried.status for tried in death.history][-1] == 400
    assert len(rig.outbox.delivered) == 3


# -- room --------------------------------------------------------------------------------------------------------------------


async def full(make_rig, *script):
    """A destination that has paused because the dead letters are full."""
    rig = make_rig(*script, then=failing(400))
    rig.outbox.dead_limit = 0
    rig.events(1)
    await rig.flush()
    state, reason, _ = rig.courier.status()
    assert (state, "dead_letters.max_bytes" in reason) == ("paused", True)
    return rig


async def test_room_among_the_letters_ends_the_pause_at_once(make_rig):
    """Nobody has to wait for the probe: a replay or a purge is what it waits for."""
    rig = await full(make_rig)
    rig.outbox.dead_limit = None
    await rig.idle()
    assert (rig.outbox.dead, len(rig.transport.requests)) == ([], 1)
    rig.courier.letters_left()
    await rig.idle()
    assert rig.outbox.causes() == {Cause.REJECTED: 1}
    assert rig.courier.status() == ("ok", None, None)


async def test_too_little_room_is_another_pause(make_rig):
    """It tries once, and keeps the record."""
    rig = await full(make_rig)
    rig.courier.letters_left()
    await rig.idle()
    assert (rig.health, rig.outbox.live, len(rig.transport.requests)) == ("paused", 1, 2)


async def test_room_ends_no_other_pause(make_rig):
    """A refused key is no matter of letters."""
    rig = make_rig(failing(401))
    rig.events(1)
    await rig.flush()
    rig.courier.letters_left()
    await rig.idle()
    assert (rig.health, len(rig.transport.requests)) == ("paused", 1)


@pytest.mark.parametrize("health", list(Health))
def test_a_circuit_is_lifted_for_its_own_reason_alone(health):
    """And then it is as if nothing had been."""
    circuit = Circuit(Backoff(0.25, 60.0))
    if health is Health.PAUSED:
        circuit.pause(0.0, "why", 30.0)
    elif health is Health.WAITING:
        circuit.wait(0.0, 1.0, "why", 30.0)
    assert not circuit.lift("other")
    assert circuit.health is health
    assert circuit.lift("why") is (health is not Health.OK)
    assert (circuit.health, circuit.failures) == (Health.OK, 0)
    assert circuit.room(0.0, 7, 8)
    circuit.pause(1.0, "again", 5.0)
    assert circuit.delivered(6.0)
