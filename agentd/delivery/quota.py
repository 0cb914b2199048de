"""A platform's cap on what is sent in a month: what is used, what is left, and on which day it is reached at this rate. Pure.

What the platform says counts (`Usage`, of its answers' headers and refusals); where it says nothing, our own count since the month
began against the configured `monthly_cap`. The rate is that of the last 24 hours, which holds a whole day's ups and downs. Times
are Unix seconds: a month is a matter of the calendar, and of the platforms' calendar in UTC.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime

from msgspec import Struct

from agentd.exchange import Usage

_HOUR_S = 3600.0
_DAY_S = 86400.0
_SOONEST_S = 600.0  # before so much was seen, and a few requests, there is no rate
_FEWEST = 3


class Quota(Struct, omit_defaults=True):
    """What is known of one destination's cap; kept over restarts."""

    identity: str = ""  # what it is known of: another account begins anew
    month: str = ""
    used: int = 0  # by us since `counted_s`
    counted_s: float = 0.0  # when counting began in this month
    seen_s: float = 0.0  # when counting began at all
    hours: dict[int, int] = {}  # hour since 1970 → used in it, of the last day
    left: int | None = None  # as the platform said last, less what was used since
    reached: bool = False
    resets_s: float | None = None  # as the platform said

    def note(self, usage: Usage, now_s: float) -> None:
        """An answer came."""
        self.roll(now_s)
        if usage.spent:
            self.used += usage.spent
            hour = int(now_s // _HOUR_S)
            self.hours[hour] = self.hours.get(hour, 0) + usage.spent
        if usage.left is not None:
            self.left = usage.left
        elif self.left is not None:
            self.left = max(0, self.left - usage.spent)
        if usage.reached:
            self.reached = True
            self.resets_s = None if usage.resets_in_s is None else now_s + usage.resets_in_s
        elif usage.passed:
            self.reached, self.resets_s = False, None

    def roll(self, now_s: float) -> None:
        """Time has passed: a new month begins with nothing used, and a cap that was to be lifted is."""
        if not self.seen_s or self.seen_s > now_s:  # the first time, or a clock that was put back
            self.seen_s = now_s
        month = _utc(now_s).strftime("%Y-%m")
        lifted = self.resets_s is not None and now_s >= self.resets_s
        if month != self.month:
            self.counted_s = now_s if not self.month else max(_month_start(now_s), self.seen_s)
            self.month, self.used = month, 0
            lifted = lifted or self.resets_s is None
        if lifted:
            self.left, self.reached, self.resets_s = None, False, None
        oldest = int((now_s - _DAY_S) // _HOUR_S)
        self.hours = {hour: used for hour, used in self.hours.items() if oldest <= hour <= now_s // _HOUR_S}

    def per_day(self, now_s: float) -> float | None:
        """At which rate it is used, by the last 24 hours; None while that is too early to say."""
        span = min(now_s - self.seen_s, _DAY_S)
        used = sum(used for hour, used in self.hours.items() if (hour + 1) * _HOUR_S > now_s - _DAY_S)
        return used / span * _DAY_S if span >= _SOONEST_S and used >= _FEWEST else None


class Forecast(Struct, frozen=True):
    """What is to be expected of a cap. Times are Unix seconds."""

    used: int
    since_s: float
    cap: int | None
    left: int | None
    per_day: float | None
    reached: bool
    reached_s: float | None  # when it will be, if it is before `resets_s`
    resets_s: float | None  # None where it is reached and the platform does not say

    def sentence(self, cap: str, now_s: float) -> str | None:
        """For people; None where nothing is to be feared. `cap` is what the cap is called."""
        if self.reached:
            until = "" if self.resets_s is None else f"; it is fresh again {_day(self.resets_s, now_s)}"
            return f"{cap} is used up{until}"
        if self.reached_s is None or self.left is None or self.per_day is None:
            return None
        at = _day(self.reached_s, now_s)
        return f"{cap} is reached {at} at this rate ({self.left:,} left, {math.ceil(self.per_day):,} a day)"


def forecast(quota: Quota, cap: int | None, now_s: float) -> Forecast:
    """`cap` is the configured `monthly_cap`; what the platform says of what is left goes before it."""
    quota.roll(now_s)
    left = quota.left
    if left is None and cap is not None:
        left = max(0, cap - quota.used)
    reached = quota.reached or left == 0
    resets_s = None if quota.reached and quota.resets_s is None else quota.resets_s or _month_end(now_s)
    per_day = quota.per_day(now_s)
    reached_s = None
    if not reached and left is not None and per_day and resets_s is not None:
        at = now_s + left / per_day * _DAY_S
        reached_s = at if at < resets_s else None
    return Forecast(quota.used, quota.counted_s, cap, left, per_day, reached, reached_s, resets_s)


def _utc(at_s: float) -> datetime:
    return datetime.fromtimestamp(at_s, UTC)


def _month_start(now_s: float) -> float:
    now = _utc(now_s)
    return datetime(now.year, now.month, 1, tzinfo=UTC).timestamp()


def _month_end(now_s: float) -> float:
    now = _utc(now_s)
    year, month = (now.year + 1, 1) if now.month == 12 else (now.year, now.month + 1)  # noqa: PLR2004 - December
    return datetime(year, month, 1, tzinfo=UTC).timestamp()


def _day(at_s: float, now_s: float) -> str:
    """`today at 16:40 UTC`, `on the 24th`, and with the month where it is another: `on the 1st of December`."""
    at, now = _utc(at_s), _utc(now_s)
    if at.date() == now.date():
        return f"today at {at:%H:%M} UTC"
    month = "" if (at.year, at.month) == (now.year, now.month) else f" of {at:%B}"
    return f"on the {_ordinal(at.day)}{month}"


def _ordinal(day: int) -> str:
    ending = "th" if 11 <= day <= 13 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")  # noqa: PLR2004
    return f"{day}{ending}"
