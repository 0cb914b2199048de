"""The books: per destination and kind, what was admitted and how it ended, each with its cause (promise 8).

At any moment  admitted = delivered + queued + dead + purged + shed + quarantined.  The books change in memory when an
operation is decided and reach the disk in the same transaction as the operation itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from agentd.outcomes import Cause, State

ADMITTED = "admitted"


class Line(NamedTuple):
    """One line of the books. `state` is `admitted` or how it ended; `cause` is empty where there is but one."""

    destination: str
    kind: str
    state: str
    cause: str
    records: int


class Books:
    """Counts by (destination, kind, state, cause)."""

    def __init__(self) -> None:
        self._counts: defaultdict[tuple[str, str, str, str], int] = defaultdict(int)

    def admit(self, destination: str, kind: str, count: int = 1) -> None:
        self._counts[destination, kind, ADMITTED, ""] += count

    def end(self, destination: str, kind: str, state: State, cause: Cause | str, count: int = 1) -> None:
        """Book `count` records out of the queue."""
        self._counts[destination, kind, state.value, str(cause)] += count

    def lines(self) -> Iterator[Line]:
        for (destination, kind, state, cause), count in sorted(self._counts.items()):
            if count:
                yield Line(destination, kind, state, cause, count)

    def total(self, destination: str, state: str) -> int:
        return sum(count for (d, _, s, _), count in self._counts.items() if d == destination and s == state)

    def causes(self, destination: str) -> dict[str, dict[str, int]]:
        """State → cause → count, for the states that are losses or detours."""
        found: dict[str, dict[str, int]] = {}
        for line in self.lines():
            if line.destination == destination and line.state not in (ADMITTED, State.DELIVERED):
                by_cause = found.setdefault(line.state, {})
                by_cause[line.cause] = by_cause.get(line.cause, 0) + line.records
        return found

    def queued(self, destination: str) -> int:
        """What must be in the queue if the books are right."""
        ended = sum(self.total(destination, s.value) for s in State if s is not State.QUEUED)
        return self.total(destination, ADMITTED) - ended

    def queued_kinds(self, destination: str) -> dict[str, int]:
        """The same by kind, kinds with none left out."""
        found: dict[str, int] = {}
        for (name, kind, state, _), count in self._counts.items():
            if name == destination:
                found[kind] = found.get(kind, 0) + (count if state == ADMITTED else -count)
        return {kind: count for kind, count in found.items() if count}

    def destinations(self) -> list[str]:
        return sorted({destination for destination, *_ in self._counts})

    def snapshot(self) -> list[Line]:
        return list(self.lines())

    def restore(self, lines: list[Line]) -> None:
        self._counts.clear()
        for line in lines:
            self._counts[line.destination, line.kind, line.state, line.cause] = line.records


def encode(lines: list[Line]) -> bytes:
    return msgspec.msgpack.encode(lines)


def decode(value: bytes) -> list[Line]:
    return msgspec.msgpack.decode(value, type=list[Line])
