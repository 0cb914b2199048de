"""Whether a destination is asked at all: after five requests in a row without an answer one goes out now and then. Pure.

    closed ── 5 lost answers, 5xx or no connection in a row ──▶ open(until) ──▶ one probe ──▶ closed | open again

Whatever else the platform answers (401, 402, 403, 429 included) says that it is there. An agent does not wait for what is
away: while the circuit is open nothing is sent, and the answer is `unavailable` at once.
"""

from __future__ import annotations

from typing import NamedTuple

from msgspec import Struct

from agentd.delivery.backoff import Backoff
from agentd.exchange import Lost, Response

FAILURES_TO_OPEN = 5
_SERVER_ERROR = 500


class Pass(NamedTuple):
    """The leave of one request."""

    probe: bool


class Breaker(Struct):
    """Times are seconds of the monotonic clock."""

    backoff: Backoff
    reason: str = ""
    failures: int = 0  # in a row
    until: float | None = None  # None: closed
    opened: int = 0  # times in a row: how long the pause is
    _probing: bool = False

    @property
    def is_open(self) -> bool:
        return self.until is not None

    def shut(self, now: float) -> bool:
        """Whether nothing may be sent now."""
        return self.until is not None and (now < self.until or self._probing)

    def begin(self, now: float) -> Pass | None:
        """A request wants to go out: its pass, None if it must not. While the circuit is open the one that may is a probe."""
        if self.shut(now):
            return None
        self._probing = self.until is not None
        return Pass(self._probing)

    def give_up(self, leave: Pass) -> None:
        """The request did not go out, or nobody waits for its answer any more."""
        if leave.probe:
            self._probing = False

    def end(self, leave: Pass, now: float, share: float, answer: Response | Lost, *, hurried: bool = False) -> bool:
        """What came of it. True if the circuit opens with it. `share` is random, 0 to 1.

        `hurried`: it was given less time than is usual, so that a lost answer says nothing of the platform.
        """
        self.give_up(leave)
        failure = _failure(answer)
        if failure is None:
            self.failures, self.opened, self.until, self.reason = 0, 0, None, ""
            return False
        if hurried and isinstance(answer, Lost) and answer.sent:
            return False
        self.failures += 1
        if not leave.probe and (self.until is not None or self.failures < FAILURES_TO_OPEN):
            return False  # those that were under way when it opened say nothing new
        self.opened += 1
        # at least half of the step: a probe that comes at once would be no pause
        self.until = now + self.backoff.step(self.opened + 1) * (1 + share) / 2
        self.reason = failure
        return self.opened == 1


def _failure(answer: Response | Lost) -> str | None:
    if isinstance(answer, Lost):
        return answer.reason
    return f"status {answer.status}" if answer.status >= _SERVER_ERROR else None
