"""A destination's `rate_limit`: a token bucket on the monotonic clock. Pure.

A request takes a token; tokens come back evenly. The bucket holds one, and what comes back in 20 ms, so that a timer that is late
costs nothing: within any time at most 2 % of a second's requests go out above the limit. Questions are never held back and take
tokens too: records wait for them. But at least one record in four tokens' time goes out, whatever is asked.
"""

from __future__ import annotations

from msgspec import Struct

_LATE_S = 0.02
_DEBT_S = 60.0  # questions may be ahead by what comes back in this time: above it the limit is broken anyway
LEAST_SHARE = 4  # one in so many tokens' time is for records
_ENOUGH = 1 - 1e-9


class Bucket(Struct):
    """Times are monotonic seconds; `rate` is tokens a second."""

    rate: float
    level: float = 1.0
    _at: float | None = None
    _last: float | None = None  # when a record's request took one

    @property
    def size(self) -> float:
        return 1 + self.rate * _LATE_S

    def _fill(self, now: float) -> None:
        gone = 0.0 if self._at is None else max(0.0, now - self._at)
        self.level = min(self.size, self.level + gone * self.rate)
        self._at = now

    def ready_at(self, now: float) -> float:
        """When a record's request may go: `now` or later."""
        self._fill(now)
        by_level = now + max(0.0, _ENOUGH - self.level) / self.rate
        by_share = now if self._last is None else self._last + LEAST_SHARE / self.rate
        return max(now, min(by_level, by_share)) if self.level < _ENOUGH else now

    def take(self, now: float) -> float | None:
        """A record's request goes. What is returned undoes it, if given to `give_back`."""
        self._fill(now)
        self.level -= 1
        before, self._last = self._last, now
        return before

    def give_back(self, before: float | None) -> None:
        """It did not go after all."""
        self.level = min(self.size, self.level + 1)
        self._last = before

    def charge(self, now: float) -> None:
        """A question went: it asks for no leave."""
        self._fill(now)
        self.level = max(self.level - 1, min(self.level, -self.rate * _DEBT_S))
