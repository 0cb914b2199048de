"""How long things take on their way through the spool: to the disk, within a commit, and from admission to delivery.

Observed once a message, a commit or a batch, never once a record: 0.2 µs a message, 1.5 µs a commit, 2.5 µs a batch (measured).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from agentd.queued import Entry
from agentd.spool.writer import Append
from agentd.tallies import DELAY_S, LATENCY_S, RECORDS, Tally, Told


class Timings:
    """Written by the event loop alone. Seconds, and numbers of records."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` is the one that `Append.at` was read from."""
        self.ack = Tally(LATENCY_S)
        self.commit = Tally(LATENCY_S)
        self.commit_records = Tally(RECORDS)
        self.delivery: dict[str, Tally] = {}
        self.last_commit_s = 0.0
        self._clock = clock

    def committed(self, begun: float, appends: Sequence[Append], records: int) -> None:
        """A commit that began then is on disk, and whoever waited is about to be answered."""
        now = self._clock()
        self.last_commit_s = now - begun
        self.commit.add(self.last_commit_s)
        if records:
            self.commit_records.add(records)
        self.ack.add_all(
            [now - append.at for append in appends if append.copies and not append.moved and not append.returned]
        )

    def delivered(self, name: str, entries: Sequence[Entry], age_us: Callable[[int], int]) -> None:
        """A platform has a batch. Its records count as spread evenly between its first and its last."""
        tally = self.delivery.get(name)
        if tally is None:
            tally = self.delivery[name] = Tally(DELAY_S)
        first, last = age_us(entries[0].admitted_us) / 1e6, age_us(entries[-1].admitted_us) / 1e6
        tally.span(min(first, last), max(first, last), len(entries))

    def told(self) -> Iterator[Told]:
        """For the metrics."""
        yield Told(
            "agentd_ack_seconds", "From a message's admission to its records on disk, when it is answered.",
            (), {(): self.ack},
        )  # fmt: skip
        yield Told("agentd_commit_seconds", "A transaction, its sync included.", (), {(): self.commit})
        yield Told("agentd_commit_records", "Records in a transaction that brings some.", (), {(): self.commit_records})
        yield Told(
            "agentd_delivery_seconds", "From a record's admission to the platform's answer that it has it.",
            ("destination",), {(name,): tally for name, tally in self.delivery.items()},
        )  # fmt: skip
