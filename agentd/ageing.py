"""How old a thing is, by the monotonic clock: what was stamped by the wall clock keeps its age when that one is set.

A wall clock may be wrong (a board without a battery, a virtual machine that wakes up, a hand that slipped), and is put right in
one step. Stamps stay what the wall clock said, since people and platforms read them. Their age is judged here: the wall clock is
read together with the monotonic one, each step between the two begins another epoch, and a stamp is placed in the epoch that it
was made in. So nothing that was stamped since the start ages faster or slower than time goes by, whatever the wall clock does.

Of what was stamped before the start nobody knows more than the wall clock says, at the start or since: the least of it counts,
and never less than the time since the start. A stamp that lies in the future ages from the start on.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from msgspec import Struct

_STEP_US = (
    100_000  # more than two reads of clocks can be apart by chance, less than any time daemon steps by (ntpd: 128 ms)
)
_APART_S = 0.02  # a read that was interrupted for longer is made again
_READS = 5
_SLACK_US = 1_000_000  # a stamp this much beside its epoch is still of it
_EPOCHS = 64


class _Epoch(Struct):
    """From one step of the wall clock to the next: times of the monotonic clock, and by how much the wall clock differs."""

    first_us: int
    last_us: int
    shift_us: int

    def holds(self, stamp_us: int) -> bool:
        return self.first_us - _SLACK_US <= stamp_us - self.shift_us <= self.last_us + _SLACK_US


class Clocks:
    """Every stamp that is to be judged here has to be taken by `now_us`: a step that it does not see is unknown."""

    def __init__(
        self,
        wall_us: Callable[[], int] = lambda: time.time_ns() // 1000,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall_us = wall_us
        self._monotonic = monotonic
        wall, self._begun = wall_us(), monotonic()
        self._begun_us = wall
        self._epochs = [_Epoch(wall, wall, 0)]
        self._forgot = False

    def __repr__(self) -> str:
        return f"<Clocks, wall clock off by {self._epochs[-1].shift_us / 1e6:+.1f} s since the start>"

    def now_us(self) -> int:
        """The wall clock: microseconds since 1970."""
        return self._read()[0]

    def age_us(self, stamp_us: int) -> int:
        """How long ago the wall clock said this; never below zero.

        Where it was put back and says the same again later, the later time counts: that is off by no more than the step.
        """
        return self.ages()(stamp_us)

    def ages(self) -> Callable[[int], int]:
        """`age_us` as of this moment, for many stamps."""
        now_us = self._read()[1]
        epochs = self._epochs
        up_us = now_us - (epochs[0].first_us if self._forgot else self._begun_us)
        if len(epochs) == 1:
            latest_us = now_us + epochs[0].shift_us
            soon_us = latest_us + _SLACK_US
            return lambda at_us: latest_us - at_us if at_us <= latest_us else 0 if at_us <= soon_us else up_us
        return lambda at_us: self._age_us(at_us, now_us, up_us)

    def said_us(self, ago_us: int) -> list[tuple[int, int]]:
        """What the wall clock said from so long ago until now: one span, or one for each of its steps, the latest first."""
        now_us = self._read()[1]
        spans, until_us = [], now_us
        for epoch in reversed(self._epochs):
            begin_us = max(epoch.first_us, now_us - ago_us) if epoch is not self._epochs[0] else now_us - ago_us
            if begin_us <= until_us:
                spans.append((begin_us + epoch.shift_us, until_us + epoch.shift_us))
            until_us = epoch.first_us
        return spans

    def _age_us(self, stamp_us: int, now_us: int, up_us: int) -> int:
        for epoch in reversed(self._epochs):
            if epoch.holds(stamp_us):
                return max(0, now_us - (stamp_us - epoch.shift_us))
        if self._forgot:  # of an epoch that is not remembered: as old as what is
            return up_us
        since = [now_us + epoch.shift_us - stamp_us for epoch in self._epochs]
        return min((age_us for age_us in since if age_us >= up_us), default=up_us)

    def _read(self) -> tuple[int, int]:
        """(wall clock, monotonic clock counted from the wall clock at the start); takes note of a step."""
        now, wall_us = self._monotonic(), self._wall_us()
        for _ in range(_READS):
            if self._monotonic() - now <= _APART_S:
                break
            now, wall_us = self._monotonic(), self._wall_us()
        steady_us = self._begun_us + round((now - self._begun) * 1e6)
        epoch = self._epochs[-1]
        if abs(wall_us - steady_us - epoch.shift_us) > _STEP_US:
            self._epochs.append(_Epoch(steady_us, steady_us, wall_us - steady_us))
            if len(self._epochs) > _EPOCHS:
                del self._epochs[0]
                self._forgot = True
        else:
            epoch.last_us = steady_us
        return wall_us, steady_us
