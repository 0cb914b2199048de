"""How fast a destination's queue fills and empties, from its books now and a little earlier. Pure: `now` and counts in.

The books count since the first start; two looks at them half a minute apart say more than an average since then. The window is
short, so that neither a burst that came before nor an outage that is over is taken for what happens now.
"""

from __future__ import annotations

from collections import deque
from enum import StrEnum
from typing import NamedTuple

WINDOW_S = 30.0
_STEP_S = 2.5  # between two looks that are kept: thirteen of them span the window
_LEAST_S = 1.0  # below that a rate is noise


class Drain(StrEnum):
    """Whether a queue empties."""

    EMPTY = "empty"
    DRAINING = "draining"
    NOT_DRAINING = "not draining"
    UNKNOWN = "unknown"  # not looked at for long enough


class Rates(NamedTuple):
    """Records a second over the window at most."""

    admitted: float
    delivered: float


class _Look(NamedTuple):
    at: float
    admitted: int
    delivered: int


class Flow:
    """The last looks at the books of one destination. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._looks: deque[_Look] = deque()

    def look(self, now: float, admitted: int, delivered: int) -> None:
        """Note what the books say; call it about once a second."""
        if not self._looks or now - self._looks[-1].at >= _STEP_S:
            self._looks.append(_Look(now, admitted, delivered))
        while len(self._looks) > 1 and now - self._looks[1].at >= WINDOW_S:
            self._looks.popleft()

    def rates(self, now: float, admitted: int, delivered: int) -> Rates | None:
        """Since the oldest look that counts; None before there is one. What a full disk takes back is no rate below zero."""
        if not self._looks or now - self._looks[0].at < _LEAST_S:
            return None
        first = self._looks[0]
        span = now - first.at
        return Rates(max(0.0, (admitted - first.admitted) / span), max(0.0, (delivered - first.delivered) / span))


def drain(queued: int, rates: Rates | None) -> tuple[Drain, float | None]:
    """Whether it empties, and in how many seconds if all goes on as it does."""
    if queued == 0:
        return Drain.EMPTY, 0.0
    if rates is None:
        return Drain.UNKNOWN, None
    gain = rates.delivered - rates.admitted
    return (Drain.DRAINING, queued / gain) if gain > 0 else (Drain.NOT_DRAINING, None)
