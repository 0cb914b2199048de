"""Whether a destination is asked at all: after five requests in a row without an answer one goes out now and then. Pure.

    closed ── 5 lost answers, 5xx or no connection in a row ──▶ open(until) ──▶ one probe ──▶ closed | open again

Whatever else the platform answers (401, 402, 403, 429 included) says that it is there. An agent does not wait for what is
away: while the circuit is open nothing is sent, and the answer is `unavailable` at once. A kill switch that answers says
nothing of the calls behind it, so that it does not break the row; one that fails may be thrown, and the circuit remembers it.
"""

from __future__ import annotations

from typing import NamedTuple

from msgspec import Struct

from agentd.delivery.backoff import Backoff
from agentd.exchange import Lost, Response

FAILURES_TO_OPEN = 5
PROBE_S = 5.0  # after this another probe may go: the first one may be a long poll, and the platform well
_SERVER_ERROR = 500


class Pass(NamedTuple):
    """The leave of one request; `probe` numbers those that go out while the circuit is open, 0 is none."""

    probe: int


class Breaker(Struct):
    """Times are seconds of the monotonic clock."""

    backoff: Backoff
    reason: str = ""
    failures: int = 0  # in a row
    until: float | None = None  # None: closed
    opened: int = 0  # times in a row: how long the pause is
    unread: bool = False  # a kill switch that can't be read is among the failures
    _probe: int = 0  # the newest
    _probed: float | None = None  # since when it is under way

    @property
    def is_open(self) -> bool:
        return self.until is not None

    def shut(self, now: float) -> bool:
        """Whether nothing may be sent now."""
        return self.until is not None and (now < self.until or self._is_probing(now))

    def _is_probing(self, now: float) -> bool:
        return self._probed is not None and now < self._probed + PROBE_S

    def begin(self, now: float) -> Pass | None:
        """A request wants to go out: its pass, None if it must not. While the circuit is open the one that may is a probe."""
        if self.shut(now):
            return None
        if self.until is None:
            return Pass(0)
        self._probe, self._probed = self._probe + 1, now
        return Pass(self._probe)

    def give_up(self, leave: Pass) -> None:
        """The request did not go out, or nobody waits for its answer any more."""
        if leave.probe == self._probe:
            self._probed = None

    def end(
        self,
        leave: Pass,
        now: float,
        share: float,
        answer: Response | Lost,
        *,
        hurried: bool = False,
        guard: bool = False,
    ) -> bool:
        """What came of it. True if the circuit opens with it. `share` is random, 0 to 1.

        `hurried`: it was given less time than is usual, so that a lost answer says nothing of the platform. `guard`: it was
        the read of a kill switch.
        """
        is_probe = self._probed is not None and leave.probe == self._probe
        self.give_up(leave)
        failure = _failure(answer)
        if failure is None:
            self._heard(guard=guard)
            return False
        if guard and (isinstance(answer, Response) or answer.sent):
            self.unread = True
        if hurried and isinstance(answer, Lost) and answer.sent:
            return False
        self.failures += 1
        if not is_probe and (self.until is not None or self.failures < FAILURES_TO_OPEN):
            return False  # those that were under way when it opened say nothing new
        self.opened += 1
        # at least half of the step: a probe that comes at once would be no pause
        self.until = now + self.backoff.step(self.opened + 1) * (1 + share) / 2
        self.reason = failure
        return self.opened == 1

    def _heard(self, *, guard: bool) -> None:
        self.unread = False
        if guard and self.until is None:
            return
        self.failures, self.opened, self.until, self.reason, self._probed = 0, 0, None, "", None


def _failure(answer: Response | Lost) -> str | None:
    if isinstance(answer, Lost):
        return answer.reason
    return f"status {answer.status}" if answer.status >= _SERVER_ERROR else None
