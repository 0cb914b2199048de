"""On which day a cap is reached: what the platform says, what we counted, and the calendar."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.delivery.quota import Quota, forecast
from agentd.exchange import Usage

CAP = "decide.fyi's monthly cap"
HOUR, DAY = 3600.0, 86400.0
SPENT = Usage(1, passed=True)


def at(text):
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def used_evenly(quota, start, hours, per_hour, left=None):
    """So many an hour for so many hours; the platform says what is left of `left` each time. Returns the time."""
    now = start
    for _ in range(hours):
        for _ in range(per_hour):
            left = None if left is None else left - 1
            quota.note(Usage(1, passed=True, left=left), now)
        now += HOUR
    return now


def test_the_day_is_said():
    """20 an hour since the 20th, 1,920 left: the 24th, in the words of the status."""
    quota = Quota()
    now = used_evenly(quota, at("2026-11-19T00:00"), 24, 20, left=2400)
    seen = forecast(quota, None, now)
    assert (seen.used, seen.left, round(seen.per_day), seen.reached) == (480, 1920, 480, False)
    assert seen.reached_s == pytest.approx(at("2026-11-24T00:00"), abs=HOUR)
    assert (
        seen.sentence(CAP, now)
        == "decide.fyi's monthly cap is reached on the 24th at this rate (1,920 left, 480 a day)"
    )


def test_nothing_to_fear_is_nothing_said():
    """A cap that is fresh again before it is reached is no matter for a sentence; its numbers are there all the same."""
    quota = Quota()
    now = used_evenly(quota, at("2026-11-19T00:00"), 24, 1, left=10_000)
    seen = forecast(quota, None, now)
    assert (seen.reached_s, seen.left, seen.sentence(CAP, now)) == (None, 9976, None)
    assert seen.resets_s == at("2026-12-01T00:00")


def test_our_own_count_where_the_platform_says_nothing():
    """Against the configured cap; without one there is a rate and no day."""
    quota = Quota()
    now = used_evenly(quota, at("2026-11-10T00:00"), 48, 10)
    assert forecast(quota, None, now).sentence(CAP, now) is None
    seen = forecast(quota, 1000, now)
    assert (seen.used, seen.left) == (480, 520)
    assert "is reached on the 14th at this rate (520 left, 2" in seen.sentence(CAP, now)


def test_the_platforms_word_goes_before_ours():
    """Others may use the same key: what the platform says is left counts, and what went since is taken off."""
    quota = Quota()
    now = at("2026-11-10T00:00")
    quota.note(Usage(1, passed=True, left=5), now)
    quota.note(SPENT, now)
    assert forecast(quota, 1000, now).left == 4


def test_a_cap_that_is_reached_and_lifted():
    """Until the platform's own time, or the next month; one that goes through before then says that it is lifted."""
    quota = Quota()
    now = at("2026-11-24T10:00")
    quota.note(Usage(left=0, reached=True, resets_in_s=at("2026-12-01T00:00") - now), now)
    seen = forecast(quota, None, now)
    assert seen.reached
    assert seen.sentence(CAP, now) == "decide.fyi's monthly cap is used up; it is fresh again on the 1st of December"
    quota.note(SPENT, now + DAY)
    assert not quota.reached
    quota.note(Usage(reached=True), now + DAY)
    assert forecast(quota, None, at("2026-11-30T23:59")).reached
    later = forecast(quota, None, at("2026-12-01T00:00"))
    assert (later.reached, later.left, later.used) == (False, None, 0)


def test_a_cap_of_which_nothing_is_said_but_that_it_is_reached():
    """No day is made up; the next month, or a call that goes through, ends it."""
    quota = Quota()
    now = at("2026-11-24T10:00")
    quota.note(Usage(reached=True), now)
    seen = forecast(quota, None, now)
    assert (seen.resets_s, seen.sentence("AgentOS's plan", now)) == (None, "AgentOS's plan is used up")
    assert not forecast(quota, None, at("2026-12-01T00:00")).reached


def test_a_platforms_month_need_not_be_the_calendars():
    """A reset on the 15th is taken at its word, over the turn of a month too."""
    quota = Quota()
    now = at("2026-11-28T00:00")
    quota.note(Usage(left=0, reached=True, resets_in_s=17 * DAY), now)
    assert forecast(quota, None, at("2026-12-02T00:00")).reached
    assert not forecast(quota, None, at("2026-12-15T00:01")).reached


def test_a_new_month_is_counted_anew_at_the_old_rate():
    """What was used yesterday says how fast it goes today."""
    quota = Quota()
    now = used_evenly(quota, at("2026-11-30T00:00"), 24, 10)
    seen = forecast(quota, 1000, now)
    assert (seen.used, seen.left, seen.since_s) == (0, 1000, at("2026-12-01T00:00"))
    assert seen.per_day == pytest.approx(240)
    assert "on the 5th at this rate" in seen.sentence(CAP, now)


def test_too_early_to_say():
    """A burst in the first minutes is no rate."""
    quota = Quota()
    now = at("2026-11-10T00:00")
    for _ in range(100):
        quota.note(SPENT, now)
    assert forecast(quota, 200, now + 60).sentence(CAP, now) is None
    assert forecast(quota, 200, now + 601).per_day is not None
    assert Quota().per_day(now) is None


def test_the_rate_is_the_last_days():
    """A busy week that is over is no reason to fear, a quiet one no reason not to."""
    quota = Quota()
    now = used_evenly(quota, at("2026-11-01T00:00"), 24 * 7, 100)
    quota.note(SPENT, now + 25 * HOUR)
    assert forecast(quota, 100_000, now + 25 * HOUR).per_day in (None, pytest.approx(0, abs=110))
    assert len(quota.hours) <= 26


@pytest.mark.parametrize(
    ("reached", "words"),
    [("2026-11-20T17:00", "today at 17:00 UTC"), ("2026-11-21T00:01", "on the 21st"), ("2026-11-22T00:01", "on the 22nd"), ("2026-11-23T00:01", "on the 23rd"), ("2026-11-12T00:01", "on the 12th")],
)  # fmt: skip
def test_days_in_words(reached, words):
    """As people say them."""
    now = at("2026-11-20T08:00" if reached > "2026-11-20" else "2026-11-05T00:00")
    quota = Quota(month="2026-11", seen_s=now - DAY, hours={int((now - HOUR) // HOUR): 24}, left=0)
    quota.left = round((at(reached) - now) / DAY * 24 + 0.49)
    assert words in forecast(quota, None, now).sentence(CAP, now)


def test_it_survives_a_restart():
    """As JSON and back it says the same."""
    quota = Quota("a")
    now = used_evenly(quota, at("2026-11-19T00:00"), 24, 20, left=2400)
    again = msgspec.json.decode(msgspec.json.encode(quota), type=Quota)
    assert forecast(again, None, now) == forecast(quota, None, now)


@given(
    st.lists(
        st.tuples(
            st.floats(-400 * DAY, 400 * DAY), st.booleans(), st.none() | st.integers(0, 10**6), st.none() | st.floats(0, 40 * DAY)
        ),
        max_size=30,
    ),
    st.none() | st.integers(1, 10**6),
)  # fmt: skip
def test_no_clock_and_no_answer_breaks_it(steps, cap):
    """Time that jumps by a year either way, and whatever a platform says: a forecast, bounded, and never a day that is past."""
    quota = Quota()
    now = at("2026-06-15T00:00")
    for jump, reached, left, resets in steps:
        now = max(at("2020-01-01T00:00"), min(now + jump, at("2099-01-01T00:00")))
        quota.note(Usage(0 if reached else 1, passed=not reached, left=left, reached=reached, resets_in_s=resets), now)
        seen = forecast(quota, cap, now)
        assert seen.used >= 0
        assert seen.left is None or seen.left >= 0
        assert seen.reached_s is None or now <= seen.reached_s < seen.resets_s
        assert seen.per_day is None or seen.per_day >= 0
        assert len(quota.hours) <= 26
        seen.sentence(CAP, now)
