"""Whether a destination may be sent to at all: one state for all its lanes. Pure: verdicts and `now` in, a state out.

    ok ── no connection, 429, five failures in a row ──▶ waiting(until) ──▶ one probe ──▶ ok | waiting again
    ok ── 401, 402, redirect, refusals without end ────▶ paused(reason) ──▶ one probe ──▶ ok | paused again

While it waits or is paused nothing is dropped; after the wait exactly one request goes out, and the others follow its success.
"""

from __future__ import annotations

import math
from enum import StrEnum

from msgspec import Struct

from agentd.delivery.backoff import Backoff

FAILURES_TO_OPEN = 5  # lane failures in a row, none delivered between: then it is the destination, not the lane
FORBIDDEN_TO_PAUSE = 3  # lanes that got 403, nothing delivered between
REFUSALS_TO_PAUSE = 100  # promise 5
REFUSAL_LANES = 3
_REFUSALS_KEPT = 16  # kinds
_PASSING_FAILURES = 3  # after so many waits in a row the destination counts as away


class Health(StrEnum):
    OK = "ok"
    WAITING = "waiting"
    PAUSED = "paused"


class Refused(Struct, frozen=True):
    """How often one kind of refusal came, and from which lanes (three are enough to know)."""

    times: int = 0
    lanes: frozenset[str] = frozenset()


class Circuit(Struct):
    """Times are seconds of the monotonic clock."""

    backoff: Backoff
    health: Health = Health.OK
    reason: str = ""
    until: float = 0.0
    failures: int = 0
    _rest_until: float = 0.0  # the platform itself asked for rest until then
    _in_a_row: int = 0
    _forbidden: set[str] = set()
    _refusals: dict[str, Refused] = {}  # the latest kinds, since the last delivery
    _refuses_all: bool = False

    def room(self, now: float, in_flight: int, max_in_flight: int) -> bool:
        """Whether one more request may go out."""
        if self.health is Health.OK:
            return in_flight < max_in_flight
        return now >= self.until and in_flight == 0

    def delivered(self, now: float = math.inf) -> bool:
        """A request went through. True if that ended a wait or a pause."""
        if now < self._rest_until:  # it was under way already when the platform asked for rest
            return False
        was = self.health
        self.health, self.reason, self.until = Health.OK, "", 0.0
        self.failures = self._in_a_row = 0
        self._forbidden = set()
        self._refusals = {}
        self._refuses_all = False
        return was is not Health.OK

    def wait(self, now: float, share: float, reason: str, after_s: float | None) -> None:
        """The destination is away or wants a rest."""
        if self.health is Health.OK or now >= self.until:  # requests that were under way together are one failure
            self.failures += 1
        if after_s is not None:
            self._rest_until = max(self._rest_until, now + after_s)
        until = now + self.backoff.wait(self.failures, share, after_s)
        self.until = max(until, self.until) if self.health is Health.WAITING else until
        if self.health is not Health.PAUSED:
            self.health = Health.WAITING
        self.reason = reason

    def pause(self, now: float, reason: str, until_s: float | None) -> None:
        """Sending makes no sense until somebody acts; a probe goes out at growing intervals, at most `max_s` apart."""
        if self.health is not Health.PAUSED or now >= self.until:
            self.failures += 1
        self.health, self.reason = Health.PAUSED, reason
        if until_s is not None:
            self._rest_until = max(self._rest_until, now + until_s)
        self.until = now + (until_s if until_s is not None else self.backoff.step(self.failures + 4))

    def lift(self, reason: str) -> bool:
        """What a pause was for is gone: True if it was this that it was for, and is over."""
        if self.health is Health.OK or self.reason != reason:
            return False
        self.health, self.reason, self.until, self._rest_until = Health.OK, "", 0.0, 0.0
        self.failures = 0
        return True

    def try_now(self, now: float, *, anew: bool) -> None:
        """Something was changed on our side: the next probe goes at once; `anew`, to who the platform takes for another, whatever rest it asked for."""
        if self.health is not Health.OK:
            self._rest_until = 0.0 if anew else self._rest_until
            self.until = max(now, self._rest_until)

    def passing(self, deadline: float) -> bool:
        """Whether requests may go out before `deadline` without anybody's help: ok, or a short wait not yet repeated often."""
        if self.health is Health.OK:
            return True
        return self.health is Health.WAITING and self.until <= deadline and self.failures <= _PASSING_FAILURES

    def lane_failed(self, now: float, share: float, reason: str, after_s: float | None) -> None:
        """One lane's request failed; several in a row are the destination's failure."""
        self._in_a_row += 1
        if self._in_a_row >= FAILURES_TO_OPEN or self.health is not Health.OK:
            self.wait(now, share, reason, after_s)

    def forbidden(self, now: float, lane: str, reason: str) -> None:
        """One lane got 403."""
        self._forbidden = {*self._forbidden, lane}
        if len(self._forbidden) >= FORBIDDEN_TO_PAUSE or self.health is Health.PAUSED:
            self.pause(now, reason, None)

    def refused(self, now: float, lane: str, reason: str) -> bool:
        """A record is about to be buried for `reason`. False: that is one too many of the same, the destination pauses.

        From then on until something is delivered none is buried, whatever its reason.

        Reasons are the same if they agree up to the first colon (status and code); behind it the platform may name ids. Others
        between them change nothing: a platform that refuses everything may have a code for each of its calls.
        """
        refusal = reason.partition(":")[0]
        seen = self._refusals.pop(refusal, Refused())
        lanes = seen.lanes if len(seen.lanes) >= REFUSAL_LANES else seen.lanes | {lane}
        self._refusals[refusal] = seen = Refused(seen.times + 1, lanes)
        if len(self._refusals) > _REFUSALS_KEPT:
            del self._refusals[next(iter(self._refusals))]
        self._refuses_all = self._refuses_all or (seen.times >= REFUSALS_TO_PAUSE and len(lanes) >= REFUSAL_LANES)
        if not self._refuses_all:
            return True
        self.pause(now, f"refuses everything: {reason}", None)
        return False
