"""The clock by which things grow old. Pure: times go in.

A wall clock may be wrong for a moment (a board without a battery, a virtual machine that wakes up, a hand that slipped). What
is deleted for its age must not be deleted for that: nothing ages faster here than the time that really went by since the
start. A clock that is put back makes everything younger, which deletes nothing.
"""

from __future__ import annotations

from msgspec import Struct


class AgeingClock(Struct, frozen=True):
    """`begun_us` is the wall clock at the start, `begun` the monotonic seconds of the same moment."""

    begun_us: int
    begun: float

    def now_us(self, wall_us: int, monotonic: float) -> int:
        """The time to judge ages by; never later than the wall clock."""
        return min(wall_us, self.begun_us + int((monotonic - self.begun) * 1e6))
