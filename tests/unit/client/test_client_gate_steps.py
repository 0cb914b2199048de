"""The rules of asking and waiting, step by step on a clock that stands still."""

import json
from decimal import Decimal
from uuid import UUID

import pytest

from agentd import GateDenied, GateKeyConflict, GateRefused, GateTimeout, Verdict
from agentd.client.gates import (
    GRACE_S,
    LONG_POLL_S,
    Exchange,
    Pause,
    ask,
    decided,
    input_of,
    make_question,
    wait,
)
from agentd.client.http import Heard, Unheard
from agentd.testing import FakeClock

REFUSED = Unheard("/run/agentd.sock (connection refused)", sent=False)
CUT = Unheard("the connection was closed before the end of the answer", sent=True)


def verdict(word="allow", **more):
    base = {"gate_id": "g", "gate": "x", "destination": "d", "verdict": word, "proceed": word == "allow", "id": "i"}
    return Heard(200, json.dumps({**base, "reason": "", "final": word != "pending", "response": None, **more}).encode())


def fault(status, code, message="$.request: no"):
    return Heard(status, json.dumps({"error": {"code": code, "message": message}}).encode())


def question(deadline=5.0, key=None, **named):
    return make_question("x", {"a": 1}, deadline, key, **named)


class Play:
    """Does the steps: each exchange takes `took` seconds and brings the next answer; pauses take their time."""

    def __init__(self, *answers, took=0.0):
        self.clock = FakeClock()
        self.answers = list(answers)
        self.took = took
        self.steps = []

    def run(self, make):
        steps = make(self.clock)
        heard = None
        while True:
            try:
                step = steps.send(heard)
            except StopIteration as end:
                return end.value
            self.steps.append(step)
            if isinstance(step, Pause):
                self.clock.advance(step.seconds)
                heard = None
                continue
            heard = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            took = self.took
            if isinstance(heard, tuple) and not isinstance(heard, Heard | Unheard):
                took, heard = heard
            self.clock.advance(took)

    @property
    def bodies(self):
        exchanges = [step.message for step in self.steps if isinstance(step, Exchange)]
        return [json.loads(message.partition(b"\r\n\r\n")[2] or b"null") for message in exchanges]


def test_one_question_one_exchange():
    """The daemon's answer is the verdict; it is waited for a little longer than the deadline."""
    play = Play(verdict())
    found = play.run(lambda clock: ask(question(agent_id="a", run_id="r", to="d"), clock))
    assert found.proceed
    assert found.agent_id == "a"
    (step,) = play.steps
    assert step.timeout_s == 5.0 + GRACE_S
    (body,) = play.bodies
    assert body.pop("key").startswith("client:")
    assert body == {"gate": "x", "deadline": 5.0, "to": "d", "agent_id": "a", "run_id": "r", "request": {"a": 1}}


def test_without_a_daemon_the_answer_is_unavailable_at_once():
    """What certainly was not sent is not tried again: the reason names the cure."""
    play = Play(REFUSED)
    found = play.run(lambda clock: ask(question(), clock))
    assert (found.verdict, found.proceed, found.gate_id, found.final) == ("unavailable", False, "", True)
    assert found.id
    assert "connection refused" in found.reason
    assert "`agentd run`" in found.reason
    assert "nothing was asked" in found.reason
    assert len(play.steps) == 1


def test_what_was_sent_is_asked_again_under_its_key():
    """A daemon that was restarted in the middle is asked for the same gate, not for a second one."""
    play = Play(CUT, REFUSED, REFUSED, verdict(repeated=True))
    found = play.run(lambda clock: ask(question(), clock))
    assert found.proceed
    assert not found.repeated, "it was our own first try"
    assert len({body["key"] for body in play.bodies}) == 1
    assert [step.seconds for step in play.steps if isinstance(step, Pause)] == [0.05, 0.1, 0.2]
    deadlines = [body["deadline"] for body in play.bodies]
    assert deadlines == sorted(deadlines, reverse=True)
    assert deadlines[-1] == pytest.approx(4.65)


def test_a_key_of_the_callers_goes_along():
    """With a key of its own the caller hears that the verdict is a repeated one."""
    play = Play(CUT, verdict(repeated=True))
    found = play.run(lambda clock: ask(question(key="k"), clock))
    assert found.repeated
    assert [body["key"] for body in play.bodies] == ["k", "k"]


def test_an_answer_that_stays_lost():
    """Once the deadline is over nobody asks again, and the reason says that the platform may have been asked."""
    play = Play(CUT)
    found = play.run(lambda clock: ask(question(2.0), clock))
    assert (found.verdict, found.proceed) == ("unavailable", False)
    assert "may have been asked" in found.reason
    assert "agentd gates list" in found.reason
    assert sum(step.seconds for step in play.steps if isinstance(step, Pause)) <= 2.0


def test_a_daemon_that_hangs():
    """No answer within deadline and grace: unavailable, and asked once."""
    play = Play((7.0, Unheard("no answer within 7 s", sent=True)))
    found = play.run(lambda clock: ask(question(5.0), clock))
    assert found.unavailable
    assert "no answer within 7 s" in found.reason
    assert len(play.steps) == 1


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (422, "malformed", GateRefused),
        (422, "foreign_reference", GateRefused),
        (403, "forbidden", GateRefused),
        (400, "malformed", GateRefused),
        (413, "too_large", GateRefused),
        (409, "gate_key_conflict", GateKeyConflict),
    ],
)
def test_a_question_that_is_none_raises(status, code, kind):
    """The agent's author is at fault, so that nothing is hidden in a verdict."""
    with pytest.raises(kind, match=rf"{code}.*\$\.request: no") as caught:
        Play(fault(status, code)).run(lambda clock: ask(question(key="k"), clock))
    assert (type(caught.value), caught.value.status, caught.value.code) == (kind, status, code)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (fault(503, "spool_full", "spool full"), "could not ask (503 spool_full): spool full"),
        (fault(500, "internal", "x"), "could not ask (500"),
        (Heard(502, b"<html>"), "could not ask (502"),
        (fault(404, "not_found", "no such path"), "older than its client"),
        (Heard(200, b"[]"), "no verdict"),
    ],
)
def test_a_daemon_that_can_not_is_a_verdict(answer, words):
    """Whatever else it says does not raise and does not proceed."""
    found = Play(answer).run(lambda clock: ask(question(), clock))
    assert (found.verdict, found.proceed) == ("unavailable", False)
    assert words in found.reason


def test_a_conflict_under_our_own_key_is_no_conflict_of_the_callers():
    """The caller gave no key and hears of none."""
    found = Play(CUT, fault(409, "gate_key_conflict")).run(lambda clock: ask(question(), clock))
    assert found.unavailable
    assert "lost" in found.reason


def test_a_daemon_that_stops_with_our_question_is_asked_again_after_its_restart():
    """While it drains it answers 503: that is no verdict on what it has taken already."""
    play = Play(CUT, fault(503, "draining", "agentd is stopping"), REFUSED, verdict())
    assert play.run(lambda clock: ask(question(), clock)).proceed
    play = Play(CUT, fault(503, "draining", "agentd is stopping"))
    found = play.run(lambda clock: ask(question(1.0), clock))
    assert "503 agentd is stopping" in found.reason
    assert "may have been asked" in found.reason


def test_a_daemon_that_stops_while_a_person_thinks():
    """It lets its gates go as pending; the client finds them again in the next daemon, within its own deadline."""
    play = Play((300.0, verdict("pending")), REFUSED, REFUSED, (30.0, verdict("pending")), (5.0, verdict("allow")))
    found = play.run(lambda clock: ask(question(3600.0), clock))
    assert found.proceed
    lines = [step.message.split(b" HTTP")[0] for step in play.steps if isinstance(step, Exchange)]
    assert lines == [b"POST /v1/gate"] + [b"GET /v1/gates/g?wait=30.000"] * 4


def test_a_gate_that_will_hear_no_more():
    """A daemon that says `pending` early, and again when it is asked, can't hear the last word: nobody waits for it."""
    play = Play(verdict("pending", repeated=True), verdict("pending"))
    found = play.run(lambda clock: ask(question(60.0, key="k"), clock))
    assert (found.pending, found.final, found.repeated) == (True, False, True)
    assert play.clock() < 1001.0


def test_a_daemon_that_came_up_without_its_folder():
    """What was heard stays heard: nobody is told that the question was wrong."""
    play = Play(verdict("pending"), fault(404, "not_found"))
    assert play.run(lambda clock: ask(question(60.0), clock)).pending


def test_pending_at_the_deadline_is_the_answer():
    """Nobody asks again when the time is over."""
    play = Play((5.0, verdict("pending")))
    assert play.run(lambda clock: ask(question(5.0), clock)).pending
    assert len(play.steps) == 1


def test_pending_and_then_no_daemon():
    """What is known stays known: `pending`, with its gate_id, and why nobody could be asked."""
    play = Play(verdict("pending"), REFUSED)
    found = play.run(lambda clock: ask(question(5.0), clock))
    assert (found.verdict, found.gate_id, found.final) == ("pending", "g", False)
    assert "connection refused" in found.reason


@pytest.mark.parametrize(
    ("asked", "deadline", "key", "error", "words"),
    [
        ("text", None, None, TypeError, "mapping"),
        (["a"], None, None, TypeError, "mapping"),
        ({}, 0, None, ValueError, "deadline"),
        ({}, -1, None, ValueError, "deadline"),
        ({}, float("nan"), None, ValueError, "deadline"),
        ({}, float("inf"), None, ValueError, "deadline"),
        ({}, None, "", ValueError, "1 to 300"),
        ({}, None, "k" * 301, ValueError, "1 to 300"),
        ({}, None, 5, TypeError, "the key must be a text of 1 to 300 characters, got 5"),
        ({}, None, b"k", TypeError, "the key must be a text"),
        ({}, None, "\ud800", ValueError, "the key must be Unicode, got a lone surrogate in"),
        ({}, "soon", None, TypeError, "the deadline must be a number of seconds, got 'soon'"),
        ({}, True, None, TypeError, "the deadline must be a number of seconds, got True"),
        ({}, [5], None, TypeError, "the deadline must be a number of seconds"),
        ({}, 10**400, None, ValueError, "the deadline must be a number of seconds"),
    ],
)
def test_what_can_not_be_meant_raises_before_anybody_is_asked(asked, deadline, key, error, words):
    """Arguments are looked at where they are given."""
    with pytest.raises(error, match=words):
        make_question("x", asked, deadline, key)


@pytest.mark.parametrize("name", ["to", "agent_id", "run_id", "span_id"])
@pytest.mark.parametrize(("value", "error"), [(5, TypeError), ("", ValueError), ("\udfff", ValueError)])
def test_names_that_are_none(name, value, error):
    """The error says which; a UUID is its text, as in records."""
    with pytest.raises(error, match=f"gate 'x': the {name} must be"):
        make_question("x", {}, None, None, **{name: value})
    assert getattr(make_question("x", {}, None, None, **{name: UUID(int=1)}), name) == str(UUID(int=1))


@pytest.mark.parametrize("amount", ["12.50", "1E+2", "0.10", "-0", "98765432109876543.21"])
def test_an_amount_keeps_its_digits(amount):
    """A Decimal is a JSON number in an intent, whichever way it is asked; the other fields and their order stay."""
    asked = {"currency": "EUR", "amount": Decimal(amount), "metadata": {"tax": Decimal("2.50")}}
    text = f'{{"currency":"EUR","amount":{amount},"metadata":{{"tax":"2.50"}}}}'
    assert make_question("intent", asked, None, None).request == text.encode()
    assert make_question("x", {"amount": Decimal(amount)}, None, None).request == f'{{"amount":"{amount}"}}'.encode()


@pytest.mark.parametrize("amount", ["NaN", "sNaN", "Infinity", "1E+999"])
def test_an_amount_that_is_none(amount):
    """What JSON has no number for is said at the call."""
    with pytest.raises(ValueError, match="the amount must be a finite number"):
        make_question("intent", {"amount": Decimal(amount)}, None, None)


@pytest.mark.parametrize(
    ("gate", "deadline_s"), [("decide", 5), ("action", 5), ("intent", 5), ("invoke", 60), ("human_input", 3600)]
)
def test_default_deadlines(gate, deadline_s):
    """Those of the contract (§4)."""
    assert make_question(gate, {}, None, "k" * 300).deadline_s == deadline_s


def test_waiting_looks_again_until_the_last_word():
    """Each look waits at the daemon for 30 s at most; no pause between two looks that have waited."""
    play = Play((30.0, verdict("pending")), (30.0, verdict("pending")), (1.0, verdict("deny")))
    found = play.run(lambda clock: wait("g/ä", 100.0, clock))
    assert found.denied
    lines = [step.message.partition(b" HTTP")[0] for step in play.steps]
    assert lines == [b"GET /v1/gates/g%2F%C3%A4?wait=30.000"] * 3
    assert play.steps[0].timeout_s == LONG_POLL_S + GRACE_S


def test_waiting_survives_a_restart_of_the_daemon():
    """The gate goes on without us: a daemon that comes back is asked again."""
    play = Play(CUT, REFUSED, REFUSED, verdict("allow"))
    assert play.run(lambda clock: wait("g", 60.0, clock)).proceed


def test_waiting_does_not_hammer_a_daemon_that_does_not_wait():
    """Answers that come at once are asked for at growing distances."""
    play = Play(verdict("pending"))
    found = play.run(lambda clock: wait("g", 10.0, clock))
    assert found.pending
    assert len(play.steps) < 40


def test_time_over_is_no_error_of_waiting():
    """How it stands is the answer; without a daemon what was known before stays, and nothing proceeds."""
    pending = Play(verdict("pending")).run(lambda clock: wait("g", 0.0, clock))
    assert (pending.pending, pending.final) == (True, False)
    known = Verdict("g", "action", "ascend", "pending", False, "a-1", final=False, agent_id="billing")
    found = Play(REFUSED).run(lambda clock: wait(known, 1.0, clock))
    assert (found.id, found.gate, found.agent_id, found.final, found.proceed) == (
        "a-1",
        "action",
        "billing",
        False,
        False,
    )
    assert "`agentd run`" in found.reason
    found = Play(fault(503, "x", "draining")).run(lambda clock: wait("g", 1.0, clock))
    assert (found.verdict, found.gate_id, found.id, found.final) == ("unavailable", "g", "g", False)
    assert "draining" in found.reason


def test_waiting_for_an_unknown_gate_raises():
    """404 is nothing that time would cure."""
    with pytest.raises(GateRefused, match="not_found"):
        Play(fault(404, "not_found")).run(lambda clock: wait("g", 60.0, clock))


def test_no_final_word_in_time():
    """GateTimeout is a TimeoutError and keeps what is known."""
    open_one = Verdict("g", "intent", "aegis", "review", False, "i", reason="pending_approval", final=False)
    with pytest.raises(GateTimeout, match=r"within 15 s: intent of aegis is review: pending_approval") as caught:
        decided(open_one, 15.0)
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.verdict is open_one


def answered(word, response, **more):
    return Verdict("g", "human_input", "agentos", word, word == "allow", "q", response=response, **more)


@pytest.mark.parametrize(
    "response", [{"data": {"input": "yes", "request_id": "q"}, "error": None}, {"input": "yes", "request_id": "q"}]
)
def test_what_a_person_answered(response):
    """With or without the platform's envelope."""
    assert input_of(answered("allow", response), 5.0) == "yes"


@pytest.mark.parametrize(
    ("found", "error"),
    [
        (answered("pending", None, final=False), GateTimeout),
        (answered("deny", {"data": None, "error": {"code": "TIMEOUT", "message": "nobody"}}), GateTimeout),
        (answered("deny", {"data": None, "error": {"code": "CONFLICT", "message": "cancelled"}}), GateDenied),
        (answered("unavailable", None), GateDenied),
        (answered("review", {"data": {"input": ""}}), GateDenied),
        (answered("allow", {"data": {}}), GateDenied),
        (answered("allow", None), GateDenied),
    ],
)
def test_no_answer_of_a_person(found, error):
    """Nobody in time is a TimeoutError, cancelled or never asked a PermissionError."""
    with pytest.raises(error):
        input_of(found, 5.0)


def test_nothing_of_a_person_where_nobody_was_asked():
    """What proceeds by fail_mode alone holds no answer to go on with."""
    opened = Verdict("g", "human_input", "agentos", "unavailable", True, "q", fail_open=True)
    with pytest.raises(GateDenied, match="no input"):
        input_of(opened, 5.0)
