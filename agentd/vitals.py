"""Signs of life: what tells a part of the daemon that works, or has nothing to do, from one that hangs.

Pure. A part says how many rounds of its work it has ended and whether there is more; whoever watches looks now and then and
compares. No clock of its own: a part that hangs is told by what it has not done between two looks, never by what still ticks
beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Vital(NamedTuple):
    """How far a part has come: `rounds` grows with each piece of work that it ends; `busy` while there is one that it has not ended."""

    rounds: int
    busy: bool


class Pace:
    """Counts the steps of one long piece of work, of which others want to know that it goes on. One thread steps, any may read."""

    def __init__(self) -> None:
        self.steps = 0

    def step(self) -> None:
        """One more: a page, a row, some instructions of SQLite's."""
        self.steps += 1

    def vital(self) -> Vital:
        """As long as the work lasts."""
        return Vital(self.steps, busy=True)


class Vitals:
    """Compares each look with the one before."""

    def __init__(self) -> None:
        self._before: Mapping[str, Vital] = {}

    def look(self, now: Mapping[str, Vital]) -> list[str]:
        """The parts that hang: they had work at the last look, have some now, and have ended none between. New parts never do."""
        before, self._before = self._before, dict(now)
        return [name for name, vital in now.items() if name in before and _hangs(before[name], vital)]


def _hangs(before: Vital, now: Vital) -> bool:
    return before.busy and now.busy and before.rounds == now.rounds
