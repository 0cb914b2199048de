"""Promise 5: a bad record costs itself and few requests, however many there are and however the platform says no."""

from __future__ import annotations

import math
import random

import pytest

from agentd.exchange import Lost
from agentd.outcomes import Cause
from agentd.testing import MemoryOutbox, answer

BATCH = 50
AT_MOST = 2 * math.log2(BATCH) + 2  # for one bad record


def failing(status, code="CODE"):
    return answer(status, {"data": None, "error": {"code": code, "message": "words"}})


def refusing(types, status=400):
    """A platform that refuses a request whole if one of its events is of these types."""

    def answers(sent):
        return failing(status) if any(event["type"] in types for event in sent.json()["events"]) else answer()

    return answers


def delivered(rig):
    """The types of the events that got through, in their order."""
    return [sent for number, sent in sorted((entry.number, entry) for entry in rig.outbox.delivered)]


async def cut_up(rig_class, bad, count, status):
    """A batch of `count` events in which those at the places `bad` are refused: how many requests it took."""
    rig = rig_class(outbox=MemoryOutbox(), max_events=count, max_request_events=count)
    rig.transport.then = refusing({f"t{place}" for place in bad}, status)
    rig.start()
    entries = rig.events(count)
    await rig.flush()
    await rig.until(lambda: rig.outbox.live == 0)
    await rig.stop()
    assert [entry for entry, _ in rig.outbox.dead] == [entry for place, entry in enumerate(entries) if place in bad]
    assert rig.outbox.delivered == [entry for place, entry in enumerate(entries) if place not in bad]
    assert {death.status for _, death in rig.outbox.dead} <= {status}
    return len(rig.transport.requests)


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_one_bad_record_in_fifty(rig_class, status):
    """Wherever it stands: it alone is dead, the others arrive in order, in at most 2·log2(50) + 2 requests."""
    for place in range(BATCH):
        assert await cut_up(rig_class, {place}, BATCH, status) <= AT_MOST


@pytest.mark.parametrize("seed", range(20))
async def test_any_bad_ones_of_any_number(rig_class, seed):
    """However many of however many: each costs at most the way down to it, and all together no more than one try for each part."""
    dice = random.Random(seed)
    count = dice.randint(1, BATCH)
    bad = set(dice.sample(range(count), dice.randint(0, count)))
    requests = await cut_up(rig_class, bad, count, 400)
    assert requests <= min(1 + len(bad) * 2 * math.ceil(math.log2(max(count, 1))), 2 * count - 1)


@pytest.mark.parametrize("lanes", [1, 2])
async def test_a_thousand_bad_ones_in_a_row_do_not_stop_their_lane(make_rig, lanes):
    """They are dead with the platform's answer, what is good behind them arrives, and the destination is in good health."""
    rig = make_rig(then=refusing({"bad"}))
    runs = [f"run{number}" for number in range(lanes)]
    for run in runs:
        rig.outbox.know("run", run, f"p-{run}")
        for _ in range(1000):
            rig.put("event", run_id=run, type="bad")
        rig.put("event", run_id=run, type="good")
    await rig.flush()
    await rig.until(lambda: rig.outbox.live == 0)
    assert (len(rig.outbox.dead), len(rig.outbox.delivered)) == (1000 * lanes, lanes)
    assert {(death.cause, death.status) for _, death in rig.outbox.dead} == {(Cause.REJECTED, 400)}
    assert rig.health == "ok"
    assert len(rig.transport.requests) <= 2 * 1000 * lanes + AT_MOST * lanes


async def test_a_thousand_bad_ones_stop_nobody_else(make_rig):
    """Three lanes of a thousand bad ones beside one whose records get through: all four come to their end."""
    rig = make_rig(then=refusing({"bad"}))
    for run in ("a", "b", "c"):
        rig.outbox.know("run", run, f"p-{run}")
        for _ in range(300):
            rig.put("event", run_id=run, type="bad")

    async def others_pass():
        rig.events(1, "d")
        await rig.flush()
        await rig.advance(1)

    for _ in range(2000):
        await others_pass()
        if len(rig.outbox.dead) == 900:
            break
    assert len(rig.outbox.dead) == 900
    await rig.advance(61)
    assert (rig.health, rig.outbox.live) == ("ok", 0)


@pytest.mark.parametrize("codes", [("SAME",), ("ONE", "OTHER"), ("A", "B", "C", "D")])
async def test_a_platform_that_refuses_everything_ends_as_a_pause(make_rig, codes):
    """From three lanes, by one code or by one for each call: a pause that says why, fewer than 100 dead of each, the rest is kept."""
    rig = make_rig(then=lambda sent: failing(400, codes[len(sent.body) % len(codes)]))
    for number in range(20):
        rig.events(100, f"run{number}")
    await rig.flush()
    await rig.until(lambda: rig.health == "paused")
    await rig.idle()
    before = len(rig.outbox.dead)
    assert before <= 100 * len(codes)
    assert rig.courier.status()[1].startswith("refuses everything: 400 ")
    for _ in range(50):
        await rig.advance(61)
    assert (rig.health, len(rig.outbox.dead)) == ("paused", before)
    rig.transport.then = answer()
    await rig.advance(61)
    await rig.until(lambda: rig.outbox.live == 0)
    assert len(rig.outbox.delivered) == 2000 - before


async def test_full_dead_letters_are_no_refusal_of_everything(make_rig):
    """What waits for room among the dead is refused at each probe: that does not count, and with room it goes on."""
    rig = make_rig(then=refusing({"bad"}), outbox=MemoryOutbox(dead_limit=0))
    for run in ("a", "b", "c"):
        rig.outbox.know("run", run, f"p-{run}")
        rig.put("event", run_id=run, type="bad")
    await rig.flush()
    for _ in range(120):
        await rig.advance(61)
    assert "dead letters are full" in rig.courier.status()[1]
    rig.outbox.dead_limit = None
    for _ in range(5):
        await rig.advance(61)
    assert (rig.outbox.live, len(rig.outbox.dead)) == (0, 3)


# -- 5xx for one batch alone -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every_s", [30, 600])
async def test_what_fails_alone_is_found_out(make_rig, every_s):
    """A batch that fails with 500 while others pass, be it many or a few an hour: cut up after twenty tries and an hour."""
    rig = make_rig(then=refusing({"poison"}, 500))
    rig.events(3, "a")
    rig.put("event", run_id="a", type="poison")
    await rig.flush()

    async def others_pass():
        rig.events(1, "b")
        await rig.flush()
        for _ in range(every_s // 30):
            await rig.advance(30)

    begun = rig.clock()
    for _ in range(60 * 3600 // every_s):
        await others_pass()
        if rig.outbox.dead:
            break
    [(entry, death)] = rig.outbox.dead
    assert (entry.number, death.cause) == (4, Cause.REJECTED)
    assert [e.number for e in rig.outbox.delivered if e.lane == "run:a"] == [1, 2, 3]
    assert rig.clock() - begun > 3 * 3600  # the whole, a half, and it alone


@pytest.mark.parametrize("said", [failing(503), Lost("no answer in time", sent=True)])
async def test_an_outage_with_a_few_bright_moments_cuts_nothing_up(make_rig, said):
    """A destination that is away for days, and takes something about once an hour: batches stay whole, nothing is dead."""
    rig = make_rig(then=said)
    for number in range(5):
        rig.events(4, f"run{number}")
    await rig.flush()
    for _ in range(30):
        for _ in range(20):
            await rig.advance(120)
        before = len(rig.outbox.delivered)
        rig.transport.then = lambda sent: rig.transport.script.append(said) or answer()
        rig.events(1, "bright")
        rig.courier.touch({"run:bright"})
        await rig.advance_until(lambda before=before: len(rig.outbox.delivered) > before, 10.0)
        rig.transport.then = said
    assert rig.outbox.dead == []
    assert {len(types) for types in rig.types} <= {1, 4}
