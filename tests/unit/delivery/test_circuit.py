"""Whether a destination may be sent to, as verdicts and times in and a state out."""

from __future__ import annotations

import pytest

from agentd.delivery.backoff import Backoff
from agentd.delivery.circuit import Circuit, Health


@pytest.fixture
def circuit():
    return Circuit(Backoff(0.25, 60.0))


def refuse(circuit, times, lanes=3, reason="400 no"):
    return [circuit.refused(0.0, f"run:{n % lanes}", reason) for n in range(times)]


@pytest.mark.parametrize(("in_flight", "room"), [(0, True), (7, True), (8, False), (9, False)])
def test_a_healthy_destination_takes_up_to_max_in_flight(circuit, in_flight, room):
    """The lanes of a destination share `max_in_flight`."""
    assert circuit.room(0.0, in_flight, 8) is room


def test_after_a_wait_exactly_one_probe_goes_out(circuit):
    """While it waits nothing goes out, after it one request, and all of them once that went through."""
    circuit.wait(0.0, 1.0, "no connection", None)
    assert circuit.health is Health.WAITING
    assert not circuit.room(0.249, 0, 8)
    assert circuit.room(0.25, 0, 8)
    assert not circuit.room(0.25, 1, 8)
    assert circuit.delivered()
    assert circuit.room(0.25, 7, 8)
    assert not circuit.delivered()


def test_waits_grow_with_the_probes_that_fail(circuit):
    """Promise 5: backoff grows from probe to probe and is capped."""
    now, waits = 0.0, []
    for _ in range(10):
        circuit.wait(now, 1.0, "no connection", None)
        waits.append(circuit.until - now)
        now = circuit.until
    assert waits == [0.25, 0.5, 1, 2, 4, 8, 16, 32, 60, 60]


def test_requests_that_fail_together_are_one_failure(circuit):
    """Eight refused connections of one moment do not make the wait eight steps long."""
    for _ in range(8):
        circuit.wait(0.0, 1.0, "no connection", None)
    assert (circuit.failures, circuit.until) == (1, 0.25)


def test_a_shorter_wish_does_not_shorten_a_wait(circuit):
    """Promise 5: of two answers under way together the longer `Retry-After` counts."""
    circuit.wait(0.0, 0.0, "429", 30.0)
    circuit.wait(0.1, 0.0, "429", 2.0)
    assert circuit.until == 30.0


@pytest.mark.parametrize(("failures", "health"), [(4, Health.OK), (5, Health.WAITING)])
def test_five_failures_in_a_row_are_the_destinations(circuit, failures, health):
    """Promise 5: lanes back off on their own until five failures in a row say that it is the destination."""
    for _ in range(failures):
        circuit.lane_failed(0.0, 1.0, "503", None)
    assert circuit.health is health


def test_a_success_between_keeps_the_destination_open(circuit):
    """A failing lane among lanes that get through never stops them."""
    for _ in range(20):
        circuit.lane_failed(0.0, 1.0, "503", None)
        circuit.delivered()
    assert circuit.health is Health.OK


def test_403_from_three_lanes_with_nothing_between_pause_the_destination(circuit):
    """Promise 5: 403 is the lane's affair until three lanes have it and nothing gets through between."""
    circuit.forbidden(0.0, "run:a", "403")
    circuit.forbidden(0.0, "run:b", "403")
    assert circuit.health is Health.OK
    circuit.forbidden(0.0, "run:c", "403")
    assert (circuit.health, circuit.reason) == (Health.PAUSED, "403")


def test_one_lanes_403_are_its_own_however_many(circuit):
    """Promise 5: a lane that is forbidden again at each of its tries says nothing of the destination; a success counts anew."""
    for _ in range(10):
        circuit.forbidden(0.0, "run:a", "403")
        circuit.forbidden(0.0, "run:b", "403")
    assert circuit.health is Health.OK
    circuit.delivered()
    circuit.forbidden(0.0, "run:c", "403")
    assert circuit.health is Health.OK


def test_a_pause_probes_at_growing_intervals_up_to_the_cap(circuit):
    """Promise 5: a paused destination keeps everything and probes, more and more seldom, at most `max` apart."""
    now, waits = 0.0, []
    for _ in range(5):
        circuit.pause(now, "401", None)
        waits.append(circuit.until - now)
        now = circuit.until
    assert waits == [4.0, 8.0, 16.0, 32.0, 60.0]
    assert circuit.delivered()
    assert circuit.reason == ""


def test_a_pause_may_have_an_end_of_its_own(circuit):
    """Promise 5: a monthly cap pauses until its reset."""
    circuit.pause(10.0, "402", 86400.0)
    assert not circuit.room(86409.9, 0, 8)
    assert circuit.room(86410.0, 0, 8)


def test_a_lost_probe_leaves_a_pause_a_pause(circuit):
    """A network failure while paused does not hide why the destination is paused from its state."""
    circuit.pause(0.0, "401", None)
    circuit.wait(8.0, 1.0, "no connection", None)
    assert circuit.health is Health.PAUSED
    assert circuit.until > 8.0


def test_the_same_refusal_a_hundred_times_is_a_pause(circuit):
    """Promise 5: the hundredth same refusal in a row from three lanes pauses instead of burying one more record."""
    assert refuse(circuit, 99) == [True] * 99
    assert refuse(circuit, 1) == [False]
    assert (circuit.health, circuit.reason) == (Health.PAUSED, "refuses everything: 400 no")
    assert refuse(circuit, 1) == [False]


def test_refusals_are_the_same_whatever_ids_their_texts_name(circuit):
    """Promise 5: status and code, up to the first colon, make the signature; a platform may name a record's id behind it."""
    answers = [circuit.refused(0.0, f"run:{n}", f"400 INVALID: run {n} is not known") for n in range(100)]
    assert answers == [True] * 99 + [False]
    assert circuit.health is Health.PAUSED


def test_another_code_under_the_same_status_is_another_refusal(circuit):
    """Promise 5: what stands before the colon has to agree."""
    assert all(circuit.refused(0.0, f"run:{n}", f"400 CODE_{n}: words") for n in range(500))


def test_one_or_two_lanes_are_no_proof_against_the_destination(circuit):
    """Promise 5: from fewer than three lanes the refusals are the lanes' own."""
    assert all(refuse(circuit, 500, lanes=2))


def test_a_success_begins_the_count_anew(circuit):
    """Promise 5: only the same refusal without a success between counts."""
    refuse(circuit, 99)
    circuit.delivered()
    assert all(refuse(circuit, 99))


def test_refusals_of_another_kind_between_change_nothing(circuit):
    """Promise 5: a platform that refuses everything may have a code for each call; each is counted with lanes of its own."""
    for number in range(99):
        assert circuit.refused(0.0, f"run:{number % 3}", "400 EVENTS: no")
        assert circuit.refused(0.0, f"run:{number % 2}", "422 TASKS: no")
        assert circuit.refused(0.0, "run:0", f"409 {number}")
    assert circuit.refused(0.0, "run:1", "422 TASKS: no"), "from two lanes alone"
    assert not circuit.refused(0.0, "run:1", "400 EVENTS: no")
    assert circuit.reason == "refuses everything: 400 EVENTS: no"


def test_two_circuits_share_nothing():
    """A destination's refusals are its own."""
    one, other = Circuit(Backoff(1, 1)), Circuit(Backoff(1, 1))
    refuse(one, 50)
    assert refuse(other, 99) == [True] * 99
