"""Promise 5, rule by rule with its scope: what each kind of failure costs, and whom."""

from __future__ import annotations

import math

import msgspec
import pytest

from agentd import platforms
from agentd.exchange import Call, Lost, Response
from agentd.outcomes import Cause
from agentd.testing import answer

REFUSED = Lost("no connection to api:443: Connection refused", sent=False)
NO_ANSWER = Lost("no answer in time", sent=True)


def failing(status, **headers):
    return answer(status, {"data": None, "error": {"code": "CODE", "message": "words"}}, **headers)


def bad_if(wrong, status=400):
    """A platform that refuses a request whole if one event in it is wrong."""

    def answers(sent):
        return failing(status) if any(wrong(event) for event in sent.json()["events"]) else answer()

    return answers


# -- network, 408, 425, 5xx ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said", [failing(408), failing(425), failing(500), failing(502), failing(503), failing(599), NO_ANSWER]
)
async def test_a_passing_failure_backs_off_its_lane_alone(make_rig, said):
    """Promise 5: an answer lost, 408, 425 and 5xx cost the lane a backoff; other lanes go on, and nothing is lost."""
    rig = make_rig(said)
    rig.events(50, "a")
    await rig.idle()
    assert len(rig.transport.requests) == 1
    rig.events(50, "b")
    await rig.idle()
    assert rig.transport.requests[1].json()["run_id"] == "p-b"
    await rig.advance(0.249)
    assert len(rig.transport.requests) == 2
    await rig.advance(0.002)
    assert rig.transport.requests[2].body == rig.transport.requests[0].body
    assert rig.outbox.live == 0
    assert (rig.courier.counts.requests, rig.courier.counts.retries, rig.courier.counts.records) == (3, 1, 100)


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
async def test_the_lanes_backoff_has_full_jitter_and_a_cap(make_rig, share):
    """Promise 5: each wait is a random share of a step that doubles up to the cap."""
    rig = make_rig(then=lambda sent: failing(503) if sent.json()["run_id"] == "p-bad" else answer(), share=share)
    rig.events(50, "bad")
    await rig.idle()
    waits = []
    for _ in range(11):
        lane = rig.courier.lanes.get("run:bad")
        waits.append(lane.at - rig.clock())
        rig.events(50, "good")  # something else gets through, so that it is the lane's affair
        await rig.idle()
        await rig.advance(waits[-1] + 1e-6)
    assert waits == pytest.approx([share * min(60.0, 0.25 * 2**n) for n in range(11)], abs=1e-3)


async def test_a_503_may_say_when(make_rig):
    """Promise 5: a 5xx with `Retry-After` holds its lane at least that long."""
    rig = make_rig(failing(503, retry_after="20"))
    rig.events(50)
    await rig.idle()
    await rig.advance(19.9)
    assert len(rig.transport.requests) == 1
    await rig.advance(2.2)
    assert len(rig.transport.requests) == 2


async def test_five_failures_in_a_row_stop_the_destination(make_rig):
    """Promise 5: after five failed lanes with nothing delivered between, one probe at a time goes out for all."""
    rig = make_rig(*[failing(503)] * 5)
    for name in "abcde":
        rig.events(50, name)
    await rig.idle()
    assert (rig.health, len(rig.transport.requests)) == ("waiting", 5)
    rig.events(50, "f")
    rig.events(50, "g")
    await rig.idle()
    assert len(rig.transport.requests) == 5
    rig.transport.hold()
    await rig.advance(0.3)
    assert len(rig.transport.requests) == 6
    rig.transport.release()
    await rig.idle()
    assert rig.health == "ok"
    assert rig.outbox.live == 0


async def test_no_connection_stops_the_destination_at_once(make_rig):
    """Promise 5: a refused connection is the destination's, and each probe waits longer, up to the cap."""
    rig = make_rig(then=REFUSED)
    rig.events(50, "a")
    rig.events(50, "b")
    await rig.idle()
    waits = []
    for _ in range(10):
        waits.append(rig.courier.circuit.until - rig.clock())
        before = len(rig.transport.requests)
        await rig.advance(waits[-1] + 1e-6)
        assert len(rig.transport.requests) == before + 1
    assert waits == pytest.approx([0.25 * 2**n for n in range(8)] + [60, 60], abs=1e-3)
    assert rig.courier.status()[:2] == ("waiting", REFUSED.reason)
    rig.transport.then = answer()
    await rig.advance(61)
    assert (rig.health, rig.outbox.live) == ("ok", 0)


async def test_a_destination_that_was_away_leaves_no_poison_behind(make_rig):
    """Promise 5: hours of failure that all lanes shared do not count against a batch that fails once afterwards."""
    rig = make_rig(then=failing(503))
    rig.events(1, "a")
    rig.events(1, "b")
    await rig.flush()
    await rig.advance_until(lambda: len(rig.transport.requests) >= 80, 30.0)
    assert rig.clock() > 1000 + 3600
    rig.transport.then = lambda sent: answer() if sent.json()["run_id"] == "p-a" else failing(503)
    await rig.advance_until(lambda: len(rig.outbox.delivered) == 1, 30.0)
    await rig.advance(61)
    assert rig.outbox.dead == []
    rig.transport.then = answer()
    await rig.advance_until(lambda: rig.outbox.live == 0, 30.0)
    assert len(rig.outbox.delivered) == 2


# -- 429 -------------------------------------------------------------------------------------------------------------------


async def test_429_stops_the_destination_for_retry_after_seconds(make_rig):
    """Promise 5: 429 is the key's affair: every lane waits as long as the server says."""
    rig = make_rig(failing(429, retry_after="7"), share=0.0)
    rig.events(50, "a")
    await rig.idle()
    rig.events(50, "b")
    await rig.advance(6.9)
    assert len(rig.transport.requests) == 1
    await rig.advance(0.2)
    assert rig.outbox.live == 0


async def test_429_may_name_a_date(make_rig):
    """Promise 5: `Retry-After` may be an HTTP date, which is read against the wall clock."""
    rig = make_rig(failing(429, retry_after="Thu, 01 Jan 2026 00:01:00 GMT"), share=0.0)
    rig.events(50)
    await rig.idle()
    await rig.advance(59.9)
    assert len(rig.transport.requests) == 1
    await rig.advance(0.2)
    assert rig.outbox.live == 0


async def test_429_without_a_time_backs_off(make_rig):
    """Promise 5: without `Retry-After` the destination backs off as for any other failure."""
    rig = make_rig(failing(429))
    rig.events(50)
    await rig.idle()
    assert rig.courier.status() == ("waiting", "429 CODE: words", 0.25)
    await rig.advance(0.26)
    assert rig.outbox.live == 0


# -- 401, 402, 403 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 402])
async def test_a_refused_key_pauses_and_keeps_everything(make_rig, status):
    """Promise 5: 401 and 402 pause the destination; it keeps everything, says so, and probes with its head batch alone."""
    rig = make_rig(then=failing(status))
    rig.events(50, "a")
    rig.events(50, "b")
    await rig.idle()
    assert rig.courier.status() == ("paused", f"{status} CODE: words", 4.0)
    before = len(rig.transport.requests)
    rig.events(50, "c")
    await rig.advance(3.9)
    assert len(rig.transport.requests) == before
    await rig.advance(0.2)
    assert len(rig.transport.requests) == before + 1
    assert rig.transport.requests[-1].body == rig.transport.requests[0].body
    assert (rig.outbox.live, rig.outbox.dead, rig.health) == (150, [], "paused")
    rig.transport.then = answer()
    await rig.advance(8.1)
    assert (rig.outbox.live, rig.health) == (0, "ok")


async def test_403_pauses_its_lane_alone_while_others_get_through(make_rig):
    """Promise 5: 403 pauses the lane; lanes that are allowed go on, and the lane is tried again later."""
    rig = make_rig(then=lambda sent: failing(403) if sent.json()["run_id"] == "p-a" else answer())
    rig.events(50, "a")
    rig.events(50, "b")
    await rig.idle()
    rig.events(50, "c")
    await rig.idle()
    assert rig.health == "ok"
    assert rig.outbox.live == 50
    assert rig.courier.status() == ("ok", "1 lanes wait: 403 CODE: words", 4.0)
    rig.events(50, "d")
    await rig.advance(4.1)
    assert [sent.json()["run_id"] for sent in rig.transport.requests].count("p-a") == 2
    assert rig.outbox.dead == []


async def test_403_pauses_the_destination_if_nothing_else_gets_through(make_rig):
    """Promise 5: three lanes forbidden with nothing delivered between are the destination's pause; nothing is lost."""
    rig = make_rig(then=failing(403))
    for name in "abcdef":
        rig.events(50, name)
    await rig.idle()
    assert (rig.health, rig.outbox.live, rig.outbox.dead) == ("paused", 300, [])
    rig.transport.then = answer()
    await rig.advance_until(lambda: rig.outbox.live == 0)
    assert len(rig.outbox.delivered) == 300


# -- 413, 400, 422 ---------------------------------------------------------------------------------------------------------


async def test_413_halves_a_batch_until_it_fits(make_rig):
    """Promise 5: 413 splits; order stays, and nothing is lost."""
    rig = make_rig(then=lambda sent: answer() if len(sent.json()["events"]) <= 13 else failing(413))
    rig.events(50)
    await rig.idle(200)
    assert [len(types) for types in rig.types] == [50, 25, 12, 13, 25, 12, 13]
    assert [entry.number for entry in rig.outbox.delivered] == list(range(1, 51))


async def test_413_for_one_record_alone_is_its_end(make_rig):
    """Promise 5: a record that is too large even alone is dead, cause `too_large`; its neighbours are delivered."""
    rig = make_rig(then=bad_if(lambda event: event["type"] == "t2", 413))
    rig.events(4)
    await rig.flush()
    await rig.idle(200)
    assert rig.outbox.causes() == {Cause.TOO_LARGE: 1}
    assert len(rig.outbox.delivered) == 3


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize("place", [0, 1, 24, 25, 37, 49])
async def test_one_bad_record_of_fifty_is_found_by_halving(make_rig, status, place):
    """Promise 5: 400 and 422 bisect until the bad record stands alone, in at most 2·log2(50)+2 requests; it alone is dead."""
    rig = make_rig(then=bad_if(lambda event: event["type"] == f"t{place}", status))
    rig.events(50)
    await rig.until(lambda: rig.outbox.live == 0)
    assert len(rig.transport.requests) <= 2 * math.log2(50) + 2
    [(entry, death)] = rig.outbox.dead
    assert entry.number == place + 1
    assert (death.cause, death.status) == (Cause.REJECTED, status)
    assert "words" in death.answer
    assert [entry.number for entry in rig.outbox.delivered] == [n for n in range(1, 51) if n != place + 1]


async def test_the_parts_of_a_batch_are_batches_of_their_own(make_rig):
    """Promise 4: the parts of a refused batch are new sealed batches: none has the key of another."""
    rig = make_rig(then=bad_if(lambda event: event["type"] == "t3"))
    rig.events(8)
    await rig.flush()
    await rig.until(lambda: rig.outbox.live == 0)
    keys = [sent.headers["idempotency-key"] for sent in rig.transport.requests]
    assert len(set(keys)) == len(keys)
    assert [what for what, _ in rig.outbox.log].count("seal") == 1


async def test_a_hundred_same_refusals_from_three_lanes_are_a_pause(make_rig):
    """Promise 5: a platform that refuses everything alike pauses its destination; it does not purge the queue."""
    rig = make_rig(then=failing(422))
    for name in "abc":
        rig.events(50, name)
    await rig.until(lambda: rig.health == "paused")
    assert rig.courier.status()[1] == "refuses everything: 422 CODE: words"
    assert len(rig.outbox.dead) == 99
    assert rig.outbox.live == 51
    await rig.advance(4.1)
    assert (len(rig.outbox.dead), rig.health) == (99, "paused")
    rig.transport.then = answer()
    await rig.advance(61)
    await rig.until(lambda: rig.outbox.live == 0)
    assert len(rig.outbox.delivered) == 51


async def test_a_redirect_or_a_wrong_path_pauses(make_rig):
    """A redirect is never followed: a POST would become a GET and its success a lie. The operator is told why."""
    rig = make_rig(answer(301, b"", location="https://elsewhere/"))
    rig.events(50)
    await rig.idle()
    state, reason, _ = rig.courier.status()
    assert state == "paused"
    assert reason == "301: redirected to https://elsewhere/: is base_url right?"


# -- poison ----------------------------------------------------------------------------------------------------------------


async def test_poison_is_bisected_after_twenty_tries_and_an_hour(make_rig):
    """Promise 5: a batch that keeps failing with 5xx while others pass is cut up, and its bad record ends alone."""
    rig = make_rig(then=bad_if(lambda event: event["type"] == "poison", 500))
    rig.events(1, "a")
    rig.put("event", run_id="a", type="poison")
    await rig.flush()

    async def others_pass():
        rig.events(50, "b")
        await rig.advance(30)

    while rig.types.count(["t0", "poison"]) < 20 or rig.clock() < 1000 + 3590:
        assert ["t0"] not in rig.types
        await others_pass()
    for _ in range(20):
        await others_pass()
    assert ["t0"] in rig.types
    while not rig.outbox.dead:
        await others_pass()
    [(entry, death)] = rig.outbox.dead
    assert entry.number == 2
    assert death.cause is Cause.REJECTED
    assert death.tries >= 20
    assert rig.clock() > 1000 + 2 * 3600


# -- calls that must not be repeated ---------------------------------------------------------------------------------------


class Once:
    """The AgentOS adapter with calls that must not be repeated when their answer was lost."""

    def __init__(self):
        self._inner = platforms.load("agentos")
        self.calls = {
            kind: Call(call.name, call.path, batch=call.batch, repeat=False) for kind, call in self._inner.calls.items()
        }

    def encode(self, call, items, context):
        return self._inner.encode(self._inner.calls[items[0].kind], items, context)

    def __getattr__(self, name):
        return getattr(self._inner, name)


async def test_an_answer_lost_where_a_repeat_could_act_twice_is_unknown(make_rig):
    """Promise 5: an answer lost on a call that must not be repeated is `outcome_unknown`, after exactly one request."""
    rig = make_rig(NO_ANSWER, platform=Once())
    rig.events(2)
    await rig.flush()
    assert rig.outbox.causes() == {Cause.OUTCOME_UNKNOWN: 2}
    assert len(rig.transport.requests) == 1


async def test_what_never_reached_the_platform_is_repeated_all_the_same(make_rig):
    """Promise 5: a refused connection or a rate limit took nothing, so the call may be made again."""
    rig = make_rig(REFUSED, failing(429, retry_after="1"), failing(401), platform=Once())
    rig.events(2)
    await rig.flush()
    await rig.advance_until(lambda: rig.outbox.live == 0)
    assert len(rig.outbox.delivered) == 2
    assert len(rig.transport.requests) == 4


async def test_unknown_with_full_dead_letters_is_not_sent_again(make_rig):
    """Promise 5: the pause for want of room in the dead letters ends in a burial, never in a second call."""
    rig = make_rig(NO_ANSWER, platform=Once())
    rig.outbox.dead_limit = 0
    rig.events(2)
    await rig.flush()
    assert rig.health == "paused"
    await rig.advance(31)
    rig.outbox.dead_limit = None
    await rig.advance(31)
    assert rig.outbox.causes() == {Cause.OUTCOME_UNKNOWN: 2}
    assert len(rig.transport.requests) == 1


async def test_a_crash_counts_as_an_answer_lost(rig_class):
    """Promise 5: a batch that a dead daemon may have sent is not sent again where a repeat could act twice."""
    rig = rig_class(platform=Once())
    rig.transport.hold()
    rig.events(2)
    rig.start()
    await rig.flush()
    assert len(rig.transport.requests) == 1
    await rig.stop()
    after = rig_class(platform=Once(), outbox=rig.outbox.reopen())
    after.start()
    await after.idle()
    assert after.transport.requests == []
    assert after.outbox.causes() == {Cause.OUTCOME_UNKNOWN: 2}
    await after.stop()


# -- dead letters ----------------------------------------------------------------------------------------------------------


async def test_full_dead_letters_pause_and_discard_nothing(make_rig):
    """Promise 5: with the dead letters full the destination pauses with that reason; with room again it goes on."""
    rig = make_rig(then=bad_if(lambda event: event["type"] == "t0"))
    rig.outbox.dead_limit = 0
    rig.events(1, "a")
    await rig.flush()
    state, reason, retry_in_s = rig.courier.status()
    assert (state, retry_in_s) == ("paused", 30.0)
    assert "dead_letters.max_bytes" in reason
    assert (rig.outbox.live, rig.outbox.dead) == (1, [])
    rig.outbox.dead_limit = None
    await rig.advance(30.1)
    assert rig.outbox.causes() == {Cause.REJECTED: 1}


async def test_a_dead_letter_has_the_platforms_answer(make_rig):
    """Promise 5: a dead letter holds status, answer, tries and key, so that a person can act on it; the answer is cut."""
    rig = make_rig(then=Response(400, {}, b"\xff no \xc3" + b"x" * 5000))
    entry = rig.events(1)[0]
    await rig.flush()
    [(_, death)] = rig.outbox.dead
    assert (death.status, death.tries) == (400, 1)
    assert len(death.answer) == 2048
    assert death.answer.startswith("\ufffd no \ufffd")
    assert death.key == rig.transport.requests[0].headers["idempotency-key"]
    msgspec.json.encode(death)
    assert entry not in rig.outbox.delivered


async def test_what_comes_after_the_end_and_is_refused_is_run_ended(make_rig, started):
    """Records after a run's terminal one are sent after it; refused, they are dead with cause `run_ended`."""
    rig = make_rig(started, answer(), failing(409))
    rig.put("run.start", run_id="r")
    rig.put("run.complete", run_id="r")
    await rig.idle()
    rig.put("event", run_id="r", type="late")
    await rig.flush()
    assert rig.paths == ["run/start", "run/complete", "events"]
    assert rig.outbox.causes() == {Cause.RUN_ENDED: 1}


def ended_run(rig):
    """A run that the platform knows and that has had its end."""
    rig.outbox.know("run", "r", "p-r")
    rig.put("run.complete", run_id="r")


async def test_a_late_event_that_is_refused_after_a_doubt_is_dead(make_rig):
    """Promise 5: an event after its run's end, answered 503 and then 409, is dead as `run_ended` and not booked as delivered."""
    rig = make_rig(answer(), failing(503), failing(409))
    ended_run(rig)
    await rig.idle()
    late = rig.put("event", run_id="r", type="late")
    await rig.flush()
    await rig.advance_until(lambda: rig.outbox.live == 0)
    assert rig.paths == ["run/complete", "events", "events"]
    assert [(entry, death.cause) for entry, death in rig.outbox.dead] == [(late, Cause.RUN_ENDED)]
    assert late not in rig.outbox.delivered


@pytest.mark.parametrize("doubt", [failing(503), NO_ANSWER], ids=["503", "no answer"])
async def test_a_runs_end_that_conflicts_with_its_own_first_try_is_delivered(make_rig, doubt):
    """Promise 5: the run had not ended before, so the 409 to its end's repeat says that the first try was taken."""
    rig = make_rig(doubt, failing(409))
    ended_run(rig)
    await rig.idle()
    await rig.advance_until(lambda: rig.outbox.live == 0)
    assert rig.paths == ["run/complete"] * 2
    assert (len(rig.outbox.delivered), rig.outbox.dead) == (1, [])


async def test_a_second_end_of_an_ended_run_is_dead(make_rig):
    """Promise 5: whatever became of its first try, the 409 to a second end is about the first end: dead as `run_ended`."""
    rig = make_rig(answer(), failing(503), failing(409))
    ended_run(rig)
    await rig.idle()
    second = rig.put("run.fail", run_id="r", error_message="after all")
    await rig.idle()
    await rig.advance_until(lambda: rig.outbox.live == 0)
    assert rig.paths == ["run/complete", "run/fail", "run/fail"]
    assert [(entry, death.cause) for entry, death in rig.outbox.dead] == [(second, Cause.RUN_ENDED)]


# -- defects ---------------------------------------------------------------------------------------------------------------


async def test_an_adapter_that_raises_costs_its_lane_alone(make_rig, caplog):
    """A defect of ours rests its lane and is logged in full; other lanes go on and nothing is lost."""
    rig = make_rig(ValueError("a defect"))
    rig.events(50, "a")
    await rig.idle()
    rig.events(50, "b")
    await rig.idle()
    assert (rig.outbox.live, rig.health) == (50, "ok")
    assert "defect" in caplog.text
    assert "ValueError" in caplog.text
    assert "defect: ValueError('a defect')" in rig.courier.status()[1]
    await rig.advance(8.1)
    assert rig.outbox.live == 0
    assert rig.outbox.dead == []


class Fragile:
    """AgentOS's adapter with a defect: it falls over records whose body has one of these words."""

    def __init__(self, *words):
        self._sound = platforms.load("agentos")
        self._words = words

    def __getattr__(self, name):
        return getattr(self._sound, name)

    def encode(self, call, items, context):
        if any(word in item.body for item in items for word in self._words):
            raise KeyError("a defect")
        return self._sound.encode(call, items, context)


@pytest.mark.parametrize("place", [0, 24, 49])
async def test_an_adapter_that_falls_over_one_record_costs_that_one_alone(make_rig, caplog, place):
    """A record that the adapter can't bear is dead as `unencodable`, with the defect in log and letter; all others go, in order."""
    rig = make_rig(platform=Fragile(b'"poison"'))
    entries = [*rig.events(place), rig.put("event", run_id="r", type="poison"), *rig.events(49 - place)]
    await rig.flush()
    await rig.idle(100)
    [(dead, death)] = rig.outbox.dead
    assert (dead, death.cause) == (entries[place], Cause.UNENCODABLE)
    assert death.reason == "defect in the agentos adapter: KeyError('a defect')"
    assert rig.outbox.delivered == [entry for entry in entries if entry is not dead]
    assert (rig.outbox.live, rig.health) == (0, "ok")
    assert "KeyError" in caplog.text


async def test_an_adapter_that_falls_over_everything_buries_no_queue(make_rig):
    """Promise 5: the same defect a hundred times from three lanes is a pause, not a purge; other records begin no new count."""
    rig = make_rig(platform=Fragile(b"event"))
    for number in range(300):
        rig.events(1, f"run-{number % 6}")
    await rig.flush()
    await rig.until(lambda: rig.health == "paused")
    await rig.idle(1000)
    assert rig.outbox.causes() == {Cause.UNENCODABLE: 99}
    assert rig.outbox.live == 201
    for _ in range(20):
        await rig.advance(60.1)
    assert rig.outbox.causes() == {Cause.UNENCODABLE: 99}
    assert rig.transport.requests == []


async def test_an_adapter_that_falls_over_a_batch_but_no_record_rests_its_lane(make_rig):
    """A defect that no record alone provokes buries none: the lane rests and is tried again."""

    class Crowd(Fragile):
        def encode(self, call, items, context):
            if len(items) > 1:
                raise KeyError("too many")
            return self._sound.encode(call, items, context)

    rig = make_rig(platform=Crowd())
    rig.events(3)
    await rig.flush()
    assert (rig.outbox.live, rig.outbox.dead) == (3, [])
    assert "defect: KeyError('too many')" in rig.courier.status()[1]


async def test_refusals_that_name_ids_are_the_same_refusal(make_rig):
    """Promise 5: a platform that puts a record's id into each refusal refuses everything all the same: the hundredth is a pause."""

    def refuse(sent):
        words = f"event {sent.json()['events'][0]['payload']['agentd_id']} is not allowed"
        return answer(400, {"data": None, "error": {"code": "FORBIDDEN_TYPE", "message": words}})

    rig = make_rig(then=refuse, max_events=1, max_request_events=1)
    for number in range(300):
        rig.events(1, f"run-{number % 6}")
    await rig.until(lambda: rig.health == "paused")
    await rig.idle(1000)
    assert rig.outbox.causes() == {Cause.REJECTED: 99}
    assert rig.outbox.live == 201
    assert len({death.reason for _, death in rig.outbox.dead}) == 99


async def test_no_key_in_repr_status_or_log(make_rig, caplog):
    """A platform's key appears in the request's headers and nowhere else."""
    caplog.set_level("DEBUG")
    rig = make_rig(failing(401), ValueError("x"), failing(400), REFUSED)
    rig.events(1)
    await rig.flush()
    await rig.advance(10)
    shown = f"{rig.courier!r} {rig.settings!r} {rig.courier.status()} {rig.courier.circuit!r} {caplog.text}"
    assert "aos_agent_secret" not in shown
    assert "aos_agent_secret" in rig.transport.requests[0].headers["authorization"]


async def test_an_observer_hears_of_every_request(make_rig):
    """Metrics see each request with its verdict, its time and its records."""
    rig = make_rig(failing(503))
    heard = []
    rig.courier.observe(lambda verdict, seconds, records: heard.append((verdict, records)))
    rig.events(50)
    await rig.idle()
    await rig.advance(1)
    assert heard == [("retry", 50), ("delivered", 50)]
