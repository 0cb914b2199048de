"""How many requests at once: the rule, and that no sequence of outcomes leads out of its bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.delivery.concurrency import Concurrency


def used_in_full(concurrency, rounds):
    """So many rounds of the platform's successes, each of as many requests as are allowed."""
    for _ in range(rounds):
        for _ in range(concurrency.width):
            concurrency.managed(concurrency.round, concurrency.width)


def test_it_begins_with_all_that_is_allowed():
    """A platform that never asks for less is never given less."""
    concurrency = Concurrency(8)
    used_in_full(concurrency, 10)
    assert (concurrency.width, concurrency.most) == (8, 8)


def test_it_halves_and_rises_by_one_a_round():
    """8 → 4 → 5 → 6 … 8, and never above."""
    concurrency = Concurrency(8)
    assert concurrency.overloaded(0)
    widths = [concurrency.width]
    for _ in range(6):
        used_in_full(concurrency, 1)
        widths.append(concurrency.width)
    assert widths == [4, 5, 6, 7, 8, 8, 8]


def test_what_was_under_way_together_is_one_event():
    """Eight requests that are all turned away halve it once; a success among them is no reason to rise."""
    concurrency = Concurrency(8)
    assert [concurrency.overloaded(0) for _ in range(8)] == [True] + [False] * 7
    for _ in range(100):
        concurrency.managed(0, 8)
    assert concurrency.width == 4


def test_never_below_one():
    """A platform that turns everything away is asked by one at a time, not by none."""
    concurrency = Concurrency(8)
    halved = [concurrency.overloaded(concurrency.round) for _ in range(10)]
    assert (concurrency.width, halved) == (1, [True] * 3 + [False] * 7)
    used_in_full(concurrency, 1)
    assert concurrency.width == 2


def test_what_was_not_tried_proves_nothing():
    """One at a time does not show that four would go well."""
    concurrency = Concurrency(8)
    concurrency.overloaded(0)
    for _ in range(100):
        concurrency.managed(1, 1)
    assert concurrency.width == 4


def test_another_limit_of_the_configuration():
    """More is used at once where it was never halved; less always is; a halved one rises to the new one."""
    concurrency = Concurrency(8)
    concurrency.resize(16)
    assert concurrency.width == 16
    concurrency.overloaded(0)
    concurrency.resize(4)
    assert (concurrency.width, concurrency.most) == (4, 4)
    concurrency.overloaded(1)
    concurrency.resize(6)
    assert concurrency.width == 2
    used_in_full(concurrency, 10)
    assert concurrency.width == 6


@given(
    st.integers(1, 64),
    st.lists(st.tuples(st.sampled_from(["overloaded", "managed", "resize"]), st.integers(0, 70), st.integers(1, 64))),
)
def test_no_outcomes_lead_out_of_the_bounds(most, outcomes):
    """From 1 to the configured limit, always; old rounds change nothing; one halving at most halves."""
    concurrency = Concurrency(most)
    for what, back, number in outcomes:
        before = concurrency.width
        began = max(0, concurrency.round - back)
        if what == "overloaded":
            was = concurrency.round
            concurrency.overloaded(began)
            assert concurrency.width == (max(1, before // 2) if began == was else before)
        elif what == "managed":
            concurrency.managed(began, number)
            assert before <= concurrency.width <= before + 1
        else:
            concurrency.resize(number)
        assert 1 <= concurrency.width <= concurrency.most


@pytest.mark.parametrize("share", [1, 3, 7])
def test_it_settles_near_what_the_platform_takes(share):
    """Against a platform that takes `share` at once the width goes to and fro around it, and is used: no collapse, no flood."""
    concurrency = Concurrency(32)
    widths = []
    for _ in range(300):
        began, width = concurrency.round, concurrency.width
        for number in range(width):
            if number < share:
                concurrency.managed(began, width)
            else:
                concurrency.overloaded(began)
        widths.append(width)
    settled = widths[50:]
    assert max(settled) <= share + 1
    assert sum(settled) / len(settled) >= share * 0.6
