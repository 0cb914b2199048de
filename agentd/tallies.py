"""Histograms on hot paths: how many values fell between which bounds, and their sum. Pure; `metrics` makes Prometheus text of them.

One `add` is a bisection and two additions, 0.3 µs, and can stand for many values at once. One thread writes; who reads sees counts
that may lack the value that is being added.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

LATENCY_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
# from a batch that fills at once to a platform that was away for days
DELAY_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0, 43200.0, 259200.0)
RECORDS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000)


class Tally:
    """See the module. `bounds` are inclusive upper ones, ascending; above the last there is one bucket more."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def __repr__(self) -> str:
        return f"<Tally of {sum(self.counts)}>"

    def add(self, value: float, times: int = 1) -> None:
        """Count a value, or as many of about this one."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def add_all(self, values: Sequence[float]) -> None:
        """Count each of these."""
        bounds, counts = self.bounds, self.counts
        for value in values:
            counts[bisect_left(bounds, value)] += 1
        self.total += sum(values)

    def span(self, least: float, most: float, times: int) -> None:
        """Count values that lie evenly between two, a batch's first and last: in one step where they share a bucket."""
        low, high = bisect_left(self.bounds, least), bisect_left(self.bounds, most)
        if low == high or times == 1:
            self.add((least + most) / 2, times)
            return
        step = (most - least) / (times - 1)
        for index in range(times):
            self.add(least + index * step)

    def cumulative(self) -> Iterator[tuple[str, int]]:
        """(bound, how many values are at most that), as Prometheus has it, the last one `+Inf`."""
        names = [repr(float(bound)) for bound in self.bounds]
        return zip([*names, "+Inf"], accumulate(self.counts), strict=True)


class Told(NamedTuple):
    """A histogram for the exposition, and its labelled parts."""

    name: str
    text: str
    labels: tuple[str, ...]
    parts: dict[tuple[str, ...], Tally]


Tell = Callable[[], Iterator[Told]]
