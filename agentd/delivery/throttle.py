"""What keeps a destination's requests back while it is well: how many at once, how many a second. Pure, by its two parts."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from agentd.delivery.concurrency import Concurrency
from agentd.delivery.rate import Bucket
from agentd.exchange import Lost, Response, is_overload
from agentd.outcomes import Delivered, Retry, Verdict


class Leave(Struct):
    """One request's leave to go; `asked` once it went."""

    round: int = 0
    asked: bool = False
    undo: float | None = None


class Throttle:
    """`clock` is monotonic seconds."""

    def __init__(self, most: int, rate: float | None, clock: Callable[[], float]) -> None:
        self.concurrency = Concurrency(most)
        self._bucket = None if rate is None else Bucket(rate)
        self._clock = clock

    def __repr__(self) -> str:
        return f"<Throttle {self.width} of {self.concurrency.most}{'' if self._bucket is None else f', {self._bucket.rate}/s'}>"

    @property
    def width(self) -> int:
        """How many requests may be under way."""
        return self.concurrency.width

    def follow(self, most: int, rate: float | None) -> None:
        """The configuration says something else."""
        self.concurrency.resize(most)
        if rate is None or self._bucket is None:
            self._bucket = None if rate is None else Bucket(rate)
        else:
            self._bucket.rate = rate

    def ready_at(self, now: float) -> float:
        """When the next request may go by the rate: `now` or later."""
        return now if self._bucket is None else self._bucket.ready_at(now)

    def begin(self) -> Leave:
        """A request is about to be made."""
        undo = None if self._bucket is None else self._bucket.take(self._clock())
        return Leave(self.concurrency.round, undo=undo)

    def end(self, leave: Leave) -> None:
        """It is over; one that never went gives its token back."""
        if not leave.asked and self._bucket is not None:
            self._bucket.give_back(leave.undo)

    def heard(self, leave: Leave, verdict: Verdict, answer: Response | Lost, in_flight: int) -> bool:
        """What came of it. True if fewer may be under way from now on."""
        if isinstance(verdict, Delivered):
            self.concurrency.managed(leave.round, in_flight)
            return False
        return isinstance(verdict, Retry) and is_overload(answer) and self.concurrency.overloaded(leave.round)

    def charge(self) -> None:
        """A gate's question goes, which is never held back."""
        if self._bucket is not None:
            self._bucket.charge(self._clock())
