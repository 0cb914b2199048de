"""What an answer says of the time."""

from __future__ import annotations

import pytest

from agentd import platforms
from agentd.exchange import Attempt, Lost, Response, told_at
from agentd.outcomes import Retry
from agentd.queued import Entry, Source
from agentd.records import LossClass

AT_S = 1_767_225_600.0  # 2026-01-01T00:00:00Z
OURS_S = 946_684_800.0  # ours is in 2000


@pytest.mark.parametrize(
    ("date", "at_s"),
    [
        ("Thu, 01 Jan 2026 00:00:00 GMT", AT_S),
        ("Thu, 01 Jan 2026 01:00:00 +0100", AT_S),
        ("Thu, 01 Jan 2026 00:00:00 -0000", AT_S),
        ("", OURS_S),
        ("yesterday", OURS_S),
        ("Thu, 99 Jan 2026 00:00:00 GMT", OURS_S),
    ],
)
def test_an_answer_is_dated_by_the_platforms_clock(date, at_s):
    """RFC 9110 §6.6.1: its `Date` counts; ours where it has none that can be read."""
    assert told_at(Response(200, {"date": date}, b""), OURS_S) == at_s


def test_without_an_answer_or_a_date_our_own_clock_counts():
    """Nobody else has said anything."""
    assert told_at(Response(200, {}, b""), OURS_S) == told_at(Lost("gone", sent=True), OURS_S) == OURS_S


@pytest.mark.parametrize("ours_s", [OURS_S, AT_S, AT_S + 366 * 86_400, 4_070_908_800.0])
@pytest.mark.parametrize("name", ["agentos", "ascend", "decidefyi", "decisionos"])
def test_a_retry_after_that_is_a_date_is_the_platforms(name, ours_s):
    """Promise 5: half a minute by its clock is half a minute, whatever ours says: not an hour, and not at once."""
    platform = platforms.load(name)
    headers = {"date": "Thu, 01 Jan 2026 00:00:00 GMT", "retry-after": "Thu, 01 Jan 2026 00:00:30 GMT"}
    answer = Response(429, headers, b"{}")
    kind, call = next(iter(platform.calls.items()))
    entry = Entry(1, bytes(16), "run:r", kind, LossClass.KEEP, Source("", 0, 0, "t"), 0, b"{}")
    verdict = platform.classify(call, [entry], answer, Attempt(told_at(answer, ours_s)))
    assert isinstance(verdict, Retry)
    assert verdict.after_s == 30.0
