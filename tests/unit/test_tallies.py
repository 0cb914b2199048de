"""Histograms: each value in its bucket, and the buckets add up."""

from __future__ import annotations

import pytest

from agentd.tallies import Tally


@pytest.mark.parametrize(
    ("value", "bucket"), [(0, 0), (0.999, 0), (1, 0), (1.001, 1), (2, 1), (5, 2), (5.1, 3), (1e9, 3)]
)
def test_a_bound_belongs_to_its_bucket(value, bucket):
    """Bounds are inclusive upper ones, as Prometheus has them; what is above all is counted too."""
    tally = Tally((1, 2, 5))
    tally.add(value)
    assert tally.counts.index(1) == bucket
    assert tally.total == value


def test_many_values_in_one_step():
    """`times` values of about one size count as so many."""
    tally = Tally((1, 2, 5))
    tally.add(1.5, 50)
    tally.add_all([0.5, 1.5, 7])
    assert tally.counts == [1, 51, 0, 1]
    assert tally.total == 84
    assert list(tally.cumulative()) == [("1.0", 1), ("2.0", 52), ("5.0", 52), ("+Inf", 53)]
    assert repr(tally) == "<Tally of 53>"


@pytest.mark.parametrize(
    ("least", "most", "times", "counts"),
    [(0.1, 0.9, 10, [10, 0, 0, 0]), (0.5, 1.5, 3, [2, 1, 0, 0]), (0.5, 9.5, 10, [1, 1, 3, 5]), (3, 3, 1, [0, 0, 1, 0])],
)
def test_a_batch_is_spread_between_its_ends(least, most, times, counts):
    """All of a batch is counted, whether it fits one bucket or not, and the sum is that of an even spread."""
    tally = Tally((1, 2, 5))
    tally.span(least, most, times)
    assert tally.counts == counts
    assert tally.total == pytest.approx((least + most) / 2 * times)
