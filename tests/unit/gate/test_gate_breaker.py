"""The breaker: five without an answer, a pause, one probe."""

import pytest

from agentd.delivery.backoff import Backoff
from agentd.exchange import Lost, Response
from agentd.gate.breaker import FAILURES_TO_OPEN, PROBE_S, Breaker

LOST = Lost("connection closed before the answer", sent=True)
DOWN = Lost("no connection", sent=False)


def answer(status):
    return Response(status, {}, b"")


def fail(breaker, now=0.0, times=1, said=LOST):
    return [breaker.end(breaker.begin(now), now, 1.0, said) for _ in range(times)]


def opened(now=0.0):
    breaker = Breaker(Backoff(1.0, 60.0))
    fail(breaker, now, FAILURES_TO_OPEN)
    return breaker


@pytest.mark.parametrize("said", [LOST, DOWN, answer(500), answer(503)])
def test_five_in_a_row_open_it(said):
    """Lost answers, no connection, 5xx: four are not enough, the fifth opens it and says so once."""
    breaker = Breaker(Backoff(1.0, 60.0))
    assert fail(breaker, times=FAILURES_TO_OPEN, said=said) == [False] * (FAILURES_TO_OPEN - 1) + [True]
    assert breaker.is_open
    assert breaker.begin(0.1) is None
    assert breaker.reason


@pytest.mark.parametrize("status", [200, 400, 401, 402, 403, 404, 422, 429])
def test_every_other_answer_says_that_the_platform_is_there(status):
    """401, 402, 403 and 429 never open it, and break the row."""
    breaker = Breaker(Backoff(1.0, 60.0))
    fail(breaker, times=FAILURES_TO_OPEN - 1)
    fail(breaker, said=answer(status))
    fail(breaker, times=FAILURES_TO_OPEN - 1)
    assert not breaker.is_open


def test_one_probe_goes_out_after_the_pause():
    """Only one at a time; its success closes the circuit."""
    breaker = opened()
    assert breaker.begin(breaker.until - 0.01) is None
    probe = breaker.begin(breaker.until)
    assert probe.probe
    assert breaker.begin(breaker.until) is None
    breaker.end(probe, 5.0, 1.0, answer(200))
    assert not breaker.is_open
    assert breaker.begin(5.0) == (0,)


def test_a_probe_that_fails_makes_the_pause_longer():
    """Backoff, at most `retry.max`; never shorter than half a step."""
    breaker = opened()
    pauses = []
    for share in (1.0, 1.0, 1.0, 0.0):
        now = breaker.until
        breaker.end(breaker.begin(now), now, share, DOWN)
        pauses.append(breaker.until - now)
    assert pauses == [4.0, 8.0, 16.0, 16.0]


def test_a_probe_that_is_given_up_leaves_its_place():
    """An agent that is stopped in the middle doesn't keep the circuit open for ever."""
    breaker = opened()
    breaker.give_up(breaker.begin(breaker.until))
    assert breaker.begin(breaker.until) is not None


def test_stragglers_say_nothing_new():
    """Requests that were under way when it opened neither lengthen the pause nor take the probe's place."""
    breaker = Breaker(Backoff(1.0, 60.0))
    passes = [breaker.begin(0.0) for _ in range(8)]
    for leave in passes[:FAILURES_TO_OPEN]:
        breaker.end(leave, 0.0, 1.0, LOST)
    until = breaker.until
    probe = breaker.begin(until)
    for leave in passes[FAILURES_TO_OPEN:]:
        breaker.end(leave, until, 1.0, LOST)
    assert breaker.until == until
    assert breaker.begin(until) is None
    breaker.end(probe, until, 1.0, answer(200))
    assert not breaker.is_open


def test_a_hurried_loss_says_nothing():
    """An answer that was not waited for is no failure of the platform; no connection is one all the same."""
    breaker = Breaker(Backoff(1.0, 60.0))
    for _ in range(9):
        breaker.end(breaker.begin(0.0), 0.0, 1.0, LOST, hurried=True)
    assert breaker.failures == 0
    breaker.end(breaker.begin(0.0), 0.0, 1.0, DOWN, hurried=True)
    assert breaker.failures == 1


def test_a_long_probe_makes_way_for_another():
    """A probe may be a long poll that takes minutes: after a few seconds the next may go, and its answer closes the circuit."""
    breaker = opened()
    begun = breaker.until
    first = breaker.begin(begun)
    assert breaker.begin(begun + PROBE_S - 0.01) is None
    second = breaker.begin(begun + PROBE_S)
    assert second.probe
    assert breaker.begin(begun + PROBE_S) is None
    breaker.give_up(first)
    assert breaker.begin(begun + PROBE_S) is None  # the second one is still out
    breaker.end(second, begun + PROBE_S, 1.0, answer(200))
    assert not breaker.is_open
    breaker.end(first, begun + 285, 1.0, LOST)
    assert not breaker.is_open  # one lost answer, as any other


def test_the_circuit_knows_that_a_kill_switch_could_not_be_read():
    """From an answered or lost read of it to the next success; that nobody was there says nothing of it."""
    for said, unread in ((answer(503), True), (LOST, True), (DOWN, False)):
        breaker = Breaker(Backoff(1.0, 60.0))
        breaker.end(breaker.begin(0.0), 0.0, 1.0, said, guard=True)
        fail(breaker, times=FAILURES_TO_OPEN - 1)
        assert (breaker.is_open, breaker.unread) == (True, unread)
        breaker.end(breaker.begin(99.0), 99.0, 1.0, answer(200), guard=True)
        assert (breaker.is_open, breaker.unread) == (False, False)


def test_a_kill_switch_that_answers_does_not_break_the_row():
    """It is read before each call, and the calls behind it may all hang."""
    breaker = Breaker(Backoff(1.0, 60.0))
    for _ in range(FAILURES_TO_OPEN):
        breaker.end(breaker.begin(0.0), 0.0, 1.0, answer(200), guard=True)
        fail(breaker)
    assert breaker.is_open
