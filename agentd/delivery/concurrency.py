"""How many requests of one destination may be under way: halved when it has too much to do, one more for each round that it managed.

Additive increase, multiplicative decrease, as TCP finds its share of a line: Chiu and Jain, "Analysis of the increase and decrease
algorithms for congestion avoidance in computer networks", 1989. Pure.

Requests that were under way together are one event: after a halving the outcomes of those that began before it count no more. The
width rises by one for as many successes as it is wide, and only while it is used in full: what was not tried proves nothing.
"""

from __future__ import annotations

from msgspec import Struct

LEAST = 1


class Concurrency(Struct):
    """`most` is the configured `max_in_flight`."""

    most: int
    round: int = 0  # halvings so far: a request carries the one that it began in
    width: int = 0  # how many, from 1 to `most`
    _managed: int = 0  # since the width last changed

    def __post_init__(self) -> None:
        """It begins with all that is allowed: most platforms never ask for less."""
        self.width = self.width or self.most

    def resize(self, most: int) -> None:
        """The configuration says another number: a width that is not below the old one takes it over."""
        self.width = most if self.width == self.most else min(self.width, most)
        self.most = most

    def overloaded(self, began: int) -> bool:
        """A request of round `began` was too much. True if that halves the width."""
        if began != self.round:
            return False
        self.round += 1
        self._managed = 0
        before, self.width = self.width, max(LEAST, self.width // 2)
        return self.width < before

    def managed(self, began: int, in_flight: int) -> None:
        """A request of round `began` went through while `in_flight` were under way, itself among them."""
        if began != self.round or in_flight < self.width or self.width == self.most:
            return
        self._managed += 1
        if self._managed >= self.width:
            self.width += 1
            self._managed = 0
