"""How long to wait, as a table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.delivery.backoff import Backoff

BACKOFF = Backoff(0.25, 60.0)


@pytest.mark.parametrize(
    ("failures", "step_s"),
    [(0, 0.25), (1, 0.25), (2, 0.5), (3, 1.0), (8, 32.0), (9, 60.0), (10, 60.0), (31, 60.0), (10**9, 60.0)],
)
def test_the_step_doubles_up_to_the_cap(failures, step_s):
    """Promise 5: backoff is exponential and capped, after however many failures."""
    assert BACKOFF.step(failures) == step_s


@pytest.mark.parametrize(("share", "wait_s"), [(0.0, 0.0), (0.5, 1.0), (0.999, 1.998), (1.0, 2.0)])
def test_the_wait_is_a_random_share_of_the_whole_step(share, wait_s):
    """Promise 5: full jitter takes any part of the step, none of it included."""
    assert BACKOFF.wait(4, share) == pytest.approx(wait_s)


@pytest.mark.parametrize(
    ("share", "at_least", "wait_s"),
    [(0.0, 7.0, 7.0), (1.0, 7.0, 7.7), (1.0, 0.1, 2.0), (0.0, 0.0, 0.0), (0.5, 0.0, 1.0)],
)
def test_a_server_is_never_asked_before_it_wishes(share, at_least, wait_s):
    """Promise 5: `Retry-After` is the least wait, with up to a tenth on top so that a fleet does not come back at once."""
    assert BACKOFF.wait(4, share, at_least) == pytest.approx(wait_s)


@given(st.integers(-5, 10**12), st.floats(0, 1), st.none() | st.floats(0, 3600))
def test_a_wait_is_within_its_bounds(failures, share, at_least):
    """A wait is never negative, never above the cap and what the server asked for, and never before it."""
    wait_s = BACKOFF.wait(failures, share, at_least)
    assert (at_least or 0.0) <= wait_s <= max(60.0, (at_least or 0.0) * 1.1 + 1e-9)
