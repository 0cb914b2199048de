"""What each run has lost in the agent's own memory, and the events that say so. Pure; the buffer calls it under its lock.

A run is told once for each gap: right before its end where that waits, else as soon as there is room to say anything at all. What
is lost after that is told anew, also of a run that another process ends. An event that is lost itself gives its gap back.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

import msgspec
from msgspec import Struct, field

from agentd.client.lines import Late, event_line, head, head_of

RUN_ENDS: Final = frozenset({"run.complete", "run.fail", "run.cancel"})
MAX_RUNS = 1000  # more would be a second unbounded memory
_TYPE = "agentd.lost"
_BYTES = 256  # of the event beside its head and what it counts
_BYTES_EACH = 192  # a cause has 64 characters at most, a kind 16, and both may stand twice


class Gap(Struct):
    """What a run has lost. `head` is the beginning of its events: its id, agent and destinations."""

    head: bytes
    lost: Counter[tuple[str, str]] = field(default_factory=Counter)  # by (cause, kind)

    @property
    def records(self) -> int:
        return sum(self.lost.values())

    def line(self) -> bytes:
        """The event that tells it."""
        causes: Counter[str] = Counter()
        kinds: Counter[str] = Counter()
        for (cause, kind), count in self.lost.items():
            causes[cause] += count
            kinds[kind] += count
        worst = max(causes, key=lambda cause: causes[cause], default="")
        payload = {"records": self.records, "cause": worst, "causes": dict(causes), "kinds": dict(kinds)}
        return event_line(self.head, _TYPE, "warn", payload, None)


class RunLosses:
    """The gaps of at most MAX_RUNS runs."""

    def __init__(self) -> None:
        self._gaps: dict[str, Gap] = {}

    def __len__(self) -> int:
        return len(self._gaps)

    def __contains__(self, run_id: object) -> bool:
        return run_id in self._gaps

    def runs(self) -> list[str]:
        """Those with a gap, the first to lose something first."""
        return list(self._gaps)

    def add(self, run_id: str, cause: str, kind: str, data: bytes | Late) -> None:
        """A record of the run is lost."""
        gap = self._gaps.get(run_id)
        if gap is None:
            if len(self._gaps) >= MAX_RUNS:
                return
            gap = self._gaps[run_id] = Gap(_head(run_id, data))
        gap.lost[cause, kind] += 1

    def size(self, run_id: str) -> int:
        """How many bytes its event will have, at most; cheap enough to ask at every turn."""
        gap = self._gaps[run_id]
        return len(gap.head) + _BYTES + _BYTES_EACH * len(gap.lost)

    def take(self, run_id: str) -> Gap:
        """It is being told."""
        return self._gaps.pop(run_id)

    def give_back(self, run_id: str, gap: Gap) -> None:
        """It was not told after all."""
        known = self._gaps.get(run_id)
        if known is not None:
            known.lost += gap.lost
        elif len(self._gaps) < MAX_RUNS:
            self._gaps[run_id] = gap


def _head(run_id: str, data: bytes | Late) -> bytes:
    try:
        return head_of(data)
    except msgspec.DecodeError:  # it was lost before it was made
        return head("event", {"run_id": run_id})
