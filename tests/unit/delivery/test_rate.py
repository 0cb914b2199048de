"""`rate_limit`: never more than it says, never less than it could, and questions first without an end of records."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.delivery.rate import LEAST_SHARE, Bucket
from agentd.delivery.throttle import Throttle
from agentd.exchange import Lost, Response
from agentd.outcomes import Delivered, Pause, Reject, Retry, Scope
from agentd.testing import FakeClock


def times_of(bucket, until, *, late=0.0, asked=()):
    """When requests went by `until`, each as soon as it may, `late` seconds after; questions went at the times `asked`."""
    asked, now, went = list(asked), 0.0, []
    while now < until:
        at = bucket.ready_at(now)
        if asked and asked[0] <= at:
            now = max(now, asked.pop(0))
            bucket.charge(now)
        elif at > now:
            now = at + late
        else:
            bucket.take(now)
            went.append(now)
    return [time for time in went if time < until]


def test_twenty_a_minute_are_twenty_a_minute():
    """decide.fyi's Starter plan: evenly spread, and in no minute more, also not in the first."""
    went = times_of(Bucket(20 / 60), 599.9)
    assert len(went) == 200
    assert max(sum(start <= time < start + 59.999 for time in went) for start in went) == 20


def test_a_late_timer_costs_nothing():
    """A loop that wakes up 5 ms late keeps the rate, as far as 2 % of a second's requests may go together."""
    assert len(times_of(Bucket(100.0), 60.0, late=0.005)) >= 5990


def test_after_a_rest_no_burst():
    """An hour without requests is no leave for an hour's requests."""
    bucket = Bucket(10.0)
    bucket.take(0.0)
    went = [bucket.take(3600.0) for _ in range(1)]
    assert (len(went), bucket.ready_at(3600.0) > 3600.0) == (1, True)


@given(st.floats(0.05, 500.0), st.lists(st.floats(0.0, 3.0), max_size=40))
def test_no_pauses_lead_above_the_limit(rate, pauses):
    """Whatever the times between: in any span of T at most rate·T + 1 + 2 % of a second's, the very bound that is written down."""
    bucket, now, went = Bucket(rate), 0.0, []
    for pause in pauses:
        now += pause
        for _ in range(200):
            if bucket.ready_at(now) > now:
                break
            bucket.take(now)
            went.append(now)
    for index, first in enumerate(went):
        for number, last in enumerate(went[index:], 1):
            assert number <= rate * (last - first) + 1 + rate * 0.02 + 1e-6


def test_what_did_not_go_gives_its_token_back():
    """A batch that has to wait for a reference costs nothing."""
    bucket = Bucket(1.0)
    before = bucket.take(10.0)
    assert bucket.ready_at(10.0) == pytest.approx(11.0)
    bucket.give_back(before)
    assert bucket.ready_at(10.0) == 10.0


def test_records_wait_for_questions():
    """Each question costs a token: records and questions together keep the limit."""
    asked = [float(second) for second in range(0, 60, 2)]
    went = times_of(Bucket(1.0), 60.0, asked=asked)
    assert 28 <= len(went) <= 31


def test_records_are_not_starved_by_questions():
    """Ten times the limit in questions, and still one record in four tokens' time goes out; afterwards all is as before within a minute."""
    asked = [second / 10 for second in range(3000)]
    went = times_of(Bucket(1.0), 300.0, asked=asked)
    assert len(went) == pytest.approx(300 / LEAST_SHARE, abs=2)
    bucket = Bucket(1.0)
    for second in asked:
        bucket.charge(second)
    assert bucket.level >= -61
    assert bucket.ready_at(362.0) == 362.0


# -- both together -----------------------------------------------------------------------------------------------------


def answered(status):
    return Response(status, {}, b"")


@pytest.mark.parametrize(
    ("verdict", "answer", "halves"),
    [
        (Retry("429", 1.0, Scope.DESTINATION), answered(429), True),
        (Retry("503"), answered(503), True),
        (Retry("no answer in time"), Lost("no answer in time", sent=True, late=True), True),
        (Retry("500"), answered(500), False),  # a defect of theirs is no sign of load
        (Retry("no connection", None, Scope.DESTINATION), Lost("no connection", sent=False), False),
        (Retry("closed"), Lost("connection closed before the answer", sent=True), False),
        (Pause(Scope.DESTINATION, "monthly cap"), answered(429), False),  # fewer at once would not help
        (Reject("400"), answered(400), False),
        (Delivered(), answered(200), False),
    ],
)
def test_what_halves(verdict, answer, halves):
    """429, 503 and answers that don't come in time; nothing else says that there is too much to do."""
    throttle = Throttle(8, None, FakeClock())
    assert throttle.heard(throttle.begin(), verdict, answer, 8) is halves
    assert throttle.width == (4 if halves else 8)


def test_without_a_limit_nothing_waits():
    """No `rate_limit`, no clock is looked at."""
    throttle = Throttle(8, None, lambda: pytest.fail("asked for the time"))
    for _ in range(100):
        throttle.charge()
        throttle.end(throttle.begin())
    assert throttle.ready_at(5.0) == 5.0


def test_a_reload_changes_the_limit():
    """Another rate from now on, what is owed stays; none at all; and one where there was none."""
    clock = FakeClock()
    throttle = Throttle(8, 1.0, clock)
    throttle.begin().asked = True
    now = clock()
    assert throttle.ready_at(now) == pytest.approx(now + 1)
    throttle.follow(8, 10.0)
    assert throttle.ready_at(now) == pytest.approx(now + 0.1)
    throttle.follow(4, None)
    assert (throttle.ready_at(now), throttle.width) == (now, 4)
    throttle.follow(4, 1.0)
    assert throttle.ready_at(now) == now
    assert repr(throttle) == "<Throttle 4 of 4, 1.0/s>"


def test_a_token_comes_back_only_from_what_did_not_go():
    """`asked` is the courier's word that bytes went out."""
    clock = FakeClock()
    throttle = Throttle(8, 1.0, clock)
    leave = throttle.begin()
    throttle.end(leave)
    assert throttle.ready_at(clock()) == clock()
    leave = throttle.begin()
    leave.asked = True
    throttle.end(leave)
    assert throttle.ready_at(clock()) > clock()
