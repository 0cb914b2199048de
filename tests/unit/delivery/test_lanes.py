"""Which lanes may send, and when to look at a lane again: `now` in, lane names out."""

from __future__ import annotations

import pytest

from agentd.delivery.lanes import Hold, Lane, Lanes

BLOCKING = [Hold.BACKOFF, Hold.FORBIDDEN, Hold.REFERENCE]


@pytest.fixture
def lanes():
    return Lanes()


def ready(lanes):
    found = []
    while (lane := lanes.next_ready()) is not None:
        found.append(lane.key)
    return found


def held(lanes, key, hold, at=10.0):
    lanes.touch(key)
    lane = lanes.next_ready()
    lanes.hold(lane, hold, at, "why")
    return lane


def test_lanes_are_served_in_the_order_in_which_they_became_ready(lanes):
    """No lane starves another: first come, first served, and a lane stands in line once."""
    for key in ("b", "a", "b", "c", "a"):
        lanes.touch(key)
    assert ready(lanes) == ["b", "a", "c"]


def test_a_lane_under_way_is_not_ready(lanes):
    """Promise 2: a lane has at most one request under way, whatever news it gets meanwhile."""
    lanes.touch("a")
    lane = lanes.next_ready()
    lanes.begin(lane)
    lanes.touch("a")
    assert not lanes.has_ready
    assert lanes.in_flight == 1
    lanes.finish(lane)
    lanes.touch("a")
    assert ready(lanes) == ["a"]
    assert lanes.in_flight == 0


@pytest.mark.parametrize(
    ("hold", "is_ready"),
    [(Hold.GATHERING, True), (Hold.REFERENCE, True), (Hold.BACKOFF, False), (Hold.FORBIDDEN, False)],
)
def test_news_end_only_the_waits_that_they_may_end(lanes, hold, is_ready):
    """A new record may fill a batch or be the introducer that is waited for; it ends no backoff and no 403."""
    held(lanes, "a", hold)
    blocked = lanes.touch("a")
    assert lanes.has_ready is is_ready
    assert blocked is (hold is Hold.REFERENCE)


@pytest.mark.parametrize("hold", list(Hold))
@pytest.mark.parametrize(("now", "is_ready"), [(9.999, False), (10.0, True), (99.0, True)])
def test_a_wait_ends_at_its_time(lanes, hold, now, is_ready):
    """A held lane is ready again at its time, and says so to the queue if its records may have left memory."""
    held(lanes, "a", hold)
    assert lanes.next_time() == 10.0
    assert lanes.expire(now) == (["a"] if is_ready and hold is not Hold.GATHERING else [])
    assert lanes.has_ready is is_ready


def test_a_lane_that_is_just_ending_is_not_started_twice(lanes):
    """Promise 2: a wait that is over before its request has been taken off the books starts no second request."""
    lanes.touch("a")
    lane = lanes.next_ready()
    lanes.begin(lane)
    lanes.hold(lane, Hold.BACKOFF, 5.0)
    lanes.expire(5.0)
    assert not lanes.has_ready
    assert lane.hold is None  # so that its end looks at it again


def test_times_come_in_order_and_stale_ones_are_passed_over(lanes):
    """Only a lane's latest wait counts; the earlier ones that it replaced wake nobody."""
    late = held(lanes, "late", Hold.BACKOFF, 30.0)
    held(lanes, "soon", Hold.GATHERING, 5.0)
    lanes.touch("soon")
    assert lanes.next_time() == 30.0
    lanes.hold(late, Hold.BACKOFF, 40.0)
    assert lanes.next_time() == 40.0
    assert lanes.expire(35.0) == []
    assert ready(lanes) == ["soon"]


@pytest.mark.parametrize("hold", BLOCKING)
def test_a_flush_or_a_recovery_ends_all_waits(lanes, hold):
    """When the destination is back every lane is looked at, however long it meant to wait."""
    held(lanes, "a", hold, 1e9)
    held(lanes, "b", Hold.GATHERING, 1e9)
    assert lanes.release() == ["a"]
    assert sorted(ready(lanes)) == ["a", "b"]


def test_only_named_lanes_are_released(lanes):
    """What was learned frees the lanes that waited for it and leaves the others in their backoff."""
    held(lanes, "a", Hold.REFERENCE)
    held(lanes, "b", Hold.BACKOFF)
    assert lanes.release(["a"]) == ["a"]
    assert ready(lanes) == ["a"]
    assert [lane.key for lane in lanes.waiting()] == ["b"]


@pytest.mark.parametrize("other", [Hold.BACKOFF, Hold.FORBIDDEN, Hold.GATHERING])
def test_lanes_that_wait_for_references_are_known(lanes, other):
    """Those held for a reference now: not one that was released or touched, waits for something else since, or is forgotten."""
    for key in ("waits", "released", "touched", "other", "expired", "gone"):
        held(lanes, key, Hold.REFERENCE, 5.0 if key == "expired" else 10.0)
    lanes.release(["released"])
    lanes.touch("touched")
    lanes.expire(5.0)
    lanes.hold(lanes.get("other"), other, 10.0)
    lanes.release(["gone"])
    ready(lanes)
    lanes.forget(lanes.get("gone"))
    assert lanes.waiting_for_references() == ["waits"]
    held(lanes, "released", Hold.REFERENCE)
    assert sorted(lanes.waiting_for_references()) == ["released", "waits"]


def test_an_idle_lane_is_forgotten_and_no_other(lanes):
    """Memory does not grow with the lanes ever seen; one that is ready, waits or is under way is kept."""
    held(lanes, "held", Hold.BACKOFF)
    lanes.touch("ready")
    busy = lanes.get("busy")
    lanes.begin(busy)
    for key in ("held", "ready", "busy", "idle"):
        lanes.forget(lanes.get(key))
    assert len(lanes) == 3
    lanes.finish(busy)
    lanes.forget(busy)
    assert len(lanes) == 2


def test_failures_are_forgotten_with_success_and_with_the_destinations_return(lanes):
    """A lane's failures count towards its own backoff only; a success, or the destination's return, ends the count."""
    lane = lanes.get("a")
    lane.failures, lane.reason = 7, "503"
    lanes.succeeded(lane)
    assert (lane.failures, lane.reason) == (0, "")
    lane.failures = 7
    lanes.forgive()
    assert lane.failures == 0


def test_the_repr_tells_how_it_stands(lanes):
    """A debugger sees how many lanes are known, ready and under way."""
    held(lanes, "a", Hold.BACKOFF)
    lanes.touch("b")
    assert repr(lanes) == "<Lanes 2 known, 1 ready, 0 in flight>"


def test_what_fails_with_everything_else_is_not_the_lanes_own():
    """Promise 5: a failure counts towards poison if most requests of other lanes got through since the one before it."""
    lane = Lane("run:a")
    lane.failed(0.0, 1, 1)
    lane.failed(60.0, 2, 2)  # nothing else was sent
    lane.failed(120.0, 6, 5)  # three others, two of them in vain
    assert (lane.failures, lane.own_failures) == (3, 1)
    lane.failed(180.0, 10, 7)  # three others, one of them in vain
    assert (lane.failures, lane.own_failures, lane.first_failure) == (4, 2, 0.0)


def test_a_lane_is_poisoned_after_twenty_failures_of_its_own_and_an_hour():
    """Promise 5: both, and what gets through in between forgets them."""
    lanes = Lanes()
    lane = lanes.get("run:a")
    for number in range(20):
        assert not lane.is_poisoned(3600.0)
        lane.failed(float(number), 2 * number + 1, number + 1)
    assert not lane.is_poisoned(3599.0)
    assert lane.is_poisoned(3600.0)
    lanes.forgive()  # the destination was away meanwhile
    assert lane.is_poisoned(3600.0)
    lanes.succeeded(lane)
    assert not lane.is_poisoned(10_000.0)
