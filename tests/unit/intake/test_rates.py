"""Records and bytes a second of one user."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.intake.rates import Rates


def test_a_burst_of_a_second_is_free_and_then_time_decides():
    """Up to the rate at once; what is more is a debt that is waited for."""
    rates = Rates(records_per_s=100)
    assert rates.wait_s(1, 0.0) == 0
    rates.charge(1, 99, 0, 0.0)
    assert rates.wait_s(1, 0.0) == 0
    rates.charge(1, 51, 0, 0.0)
    assert rates.wait_s(1, 0.0) == pytest.approx(0.51)
    assert rates.wait_s(1, 0.5) == pytest.approx(0.01)
    assert rates.wait_s(1, 0.52) == 0


def test_bytes_and_records_count_each_for_itself():
    """The longer wait is the one that counts."""
    rates = Rates(records_per_s=100, bytes_per_s=1000)
    rates.charge(1, 101, 3000, 0.0)
    assert rates.wait_s(1, 0.0) == pytest.approx(2.001)


def test_users_wait_for_themselves_alone():
    """Another's debt is nobody else's."""
    rates = Rates(records_per_s=10)
    rates.charge(1, 1000, 0, 0.0)
    assert rates.wait_s(1, 0.0) > 90
    assert rates.wait_s(2, 0.0) == 0


def test_no_rate_is_no_limit():
    """The default."""
    rates = Rates()
    rates.charge(1, 10**9, 10**12, 0.0)
    assert (rates.limits, rates.wait_s(1, 0.0)) == (False, 0)


def test_a_clock_that_stands_still_or_steps_back_gives_nothing():
    """It is the monotonic clock's time; a caller's older `now` is no gain."""
    rates = Rates(records_per_s=10)
    rates.charge(1, 20, 0, 5.0)
    assert rates.wait_s(1, 4.0) == pytest.approx(1.1)
    assert rates.wait_s(1, 5.0) <= 1.1


def test_users_whose_buckets_are_full_are_forgotten():
    """65,536 uids of a user namespace leave no more behind than is owed."""
    rates = Rates(records_per_s=10)
    rates.charge(7, 10**6, 0, 0.0)
    for who in range(5000):
        rates.charge(10 + who, 1, 0, float(who))
    assert "users>" in repr(rates)
    assert int(repr(rates).split(", ")[2].split()[0]) <= 1100
    assert rates.wait_s(7, 5000.0) > 0


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(1, 50)), max_size=60))
def test_nobody_sends_more_than_rate_times_time_a_burst_and_a_message(steps):
    """Whenever he sends, as soon as he may."""
    rates, now, sent, first = Rates(records_per_s=20), 0.0, 0, None
    for pause, records in steps:
        now += pause
        now += rates.wait_s(1, now) + 1e-9
        first = now if first is None else first
        rates.charge(1, records, 0, now)
        sent += records
        assert sent <= 20 * (now - first) + 20 + 50 + 1
