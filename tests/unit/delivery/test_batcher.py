"""What goes into a request, and when: records and `now` in, a plan out."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.delivery.batcher import IDLE, Limits, Plan, plan

NOW_US = 10_000_000
LIMITS = Limits(max_events=4, max_bytes=100, max_interval_us=500_000, max_request_events=4)


class R(NamedTuple):
    number: int
    kind: str = "event"
    admitted_us: int = NOW_US
    body: bytes = b"x" * 10


class Call(NamedTuple):
    name: str
    batch: bool


CALLS = {
    "event": Call("events", True),
    "span": Call("events", True),
    "other": Call("others", True),
    "task": Call("tasks", False),
    "run.complete": Call("run/complete", False),
}


def call_of(kind):
    return CALLS[kind]


def events(count, **fields):
    return [R(number, **fields) for number in range(1, count + 1)]


def planned(records, limits=LIMITS, now_us=NOW_US, flush_through=0):
    return plan(iter(records), call_of, limits, lambda admitted_us: now_us - admitted_us, flush_through)


def test_an_empty_lane_has_no_plan():
    """Nothing queued: nothing to send and no time to look again."""
    assert planned([]) == IDLE == Plan(0, None)


@pytest.mark.parametrize(("count", "take"), [(3, 0), (4, 4), (5, 4), (9, 4)])
def test_a_batch_goes_at_max_events(count, take):
    """Promise 3: a batch goes out at `max_events`, tested one below, at and above it, and a request holds no more."""
    assert planned(events(count)).take == take


@pytest.mark.parametrize(
    ("sizes", "take"), [((50, 49), 0), ((50, 50), 2), ((50, 51), 1), ((99,), 0), ((100,), 1), ((500,), 1)]
)
def test_a_batch_goes_at_max_bytes(sizes, take):
    """Promise 3: a batch goes out at `max_bytes`; one record above it goes alone, and none is left behind for its size."""
    assert planned([R(n, body=b"x" * size) for n, size in enumerate(sizes, 1)]).take == take


@pytest.mark.parametrize(("age_us", "take"), [(0, 0), (499_999, 0), (500_000, 2), (10**12, 2)])
def test_a_batch_goes_at_max_interval(age_us, take):
    """Promise 3: the interval counts from admission, so that all is due after a restart."""
    assert planned(events(2, admitted_us=NOW_US - age_us)).take == take


def test_a_batch_that_is_not_due_says_when_it_is():
    """The first record's age decides, and the plan names the moment."""
    records = [R(1, admitted_us=NOW_US - 100_000), R(2, admitted_us=NOW_US)]
    assert planned(records) == Plan(0, 400_000)


@pytest.mark.parametrize(
    ("kinds", "take"),
    [
        (["event", "event", "task"], 2),
        (["event", "span", "run.complete"], 2),
        (["event", "other"], 1),
        (["task", "event"], 1),
        (["run.complete"], 1),
        (["event", "span"], 0),
    ],
)
def test_another_call_sends_what_is_before_it(kinds, take):
    """A task or a run's end sends the events before it at once, and itself alone; spans and events share a request."""
    assert planned([R(n, kind) for n, kind in enumerate(kinds, 1)]).take == take


@pytest.mark.parametrize(("flush_through", "take"), [(0, 0), (1, 0), (2, 2), (9, 2)])
def test_a_flush_makes_what_it_waits_for_due(flush_through, take):
    """A flush sends what was queued when it was asked for, and does not hurry what came after."""
    assert planned([R(2), R(3)], flush_through=flush_through).take == take


def test_a_request_holds_at_most_max_request_events():
    """Promise 3: `max_request_events` bounds a request where the platform takes fewer than a batch has."""
    limits = Limits(max_events=50, max_bytes=10**6, max_interval_us=500_000, max_request_events=3)
    assert planned(events(2), limits).take == 0
    assert planned(events(3), limits).take == 3
    assert planned(events(50), limits).take == 3


@given(
    st.lists(st.tuples(st.sampled_from(sorted(CALLS)), st.integers(1, 150), st.integers(0, 10**6)), max_size=12),
    st.integers(0, 14),
)
def test_a_plan_is_always_sound(rows, flush_through):
    """Whatever waits: a plan takes one call's records from the front, within all limits, or names a later time."""
    records = [R(n, kind, NOW_US - age, b"x" * size) for n, (kind, size, age) in enumerate(rows, 1)]
    take, wait_us = planned(records, flush_through=flush_through)
    taken = records[:take]
    assert len({call_of(r.kind).name for r in taken}) <= 1
    assert take <= LIMITS.max_request_events
    assert take <= 1 or sum(len(r.body) for r in taken) <= LIMITS.max_bytes
    assert take <= 1 or all(call_of(r.kind).batch for r in taken)
    assert (wait_us is not None) == (take == 0 and bool(records))
    assert wait_us is None or 0 < wait_us <= LIMITS.max_interval_us
