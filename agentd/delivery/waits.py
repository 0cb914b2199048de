"""What a lane waits for, for people: the courier's lanes and circuit, said in one word and a reason. Pure."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from typing import NamedTuple

from agentd.delivery.circuit import Circuit, Health
from agentd.delivery.lanes import Hold, Lane, Lanes
from agentd.delivery.throttle import Throttle


class Why(StrEnum):
    """What has to come first. Stable words: the command line and whoever reads its JSON know them."""

    ANSWER = "answer"  # a request of it is under way
    BATCH = "batch"  # its batch is not full and not due
    BACKOFF = "backoff"  # its last try failed; it goes again at a time
    FORBIDDEN = "forbidden"  # the platform says 403 to it
    REFERENCE = "reference"  # an id that it needs is not known yet
    DESTINATION = "destination"  # no lane is sent: the destination is away or paused
    TURN = "turn"  # it may go; others are before it
    MEMORY = "memory"  # its records are on disk, and there is no room to read them yet
    REMOVED = "removed"  # the destination is not in the configuration
    SEAL = "seal"  # of a stopped daemon: a batch was sealed and has to be sent again as it is
    DAEMON = "daemon"  # of a stopped daemon: nothing else is known to keep it back


class Waits(NamedTuple):
    """`next_s` is in how many seconds something is tried, None where that is not a matter of time."""

    why: Why
    reason: str = ""
    next_s: float | None = None
    failures: int = 0


_HOLDS = {
    Hold.GATHERING: Why.BATCH,
    Hold.BACKOFF: Why.BACKOFF,
    Hold.FORBIDDEN: Why.FORBIDDEN,
    Hold.REFERENCE: Why.REFERENCE,
    Hold.READING: Why.MEMORY,
}


_OWN = (Hold.REFERENCE, Hold.FORBIDDEN)  # what keeps a lane back whatever becomes of its destination


def waits(lane: Lane | None, circuit: Circuit, now: float) -> Waits:
    """Of one lane with records queued; None for a lane that the courier has not heard of."""
    if lane is not None and lane.in_flight:
        return Waits(Why.ANSWER, lane.reason, None, lane.failures)
    if circuit.health is not Health.OK and (lane is None or lane.hold not in _OWN):
        failures = 0 if lane is None else lane.failures
        return Waits(Why.DESTINATION, f"{circuit.health}: {circuit.reason}", max(0.0, circuit.until - now), failures)
    if lane is not None and lane.hold is not None:
        return Waits(_HOLDS[lane.hold], lane.reason, max(0.0, lane.at - now), lane.failures)
    if lane is None or not lane.ready:
        return Waits(Why.MEMORY)
    return Waits(Why.TURN, lane.reason, None, lane.failures)


def standing(lanes: Lanes, circuit: Circuit, now: float) -> tuple[str, str | None, float | None]:
    """(state, reason, seconds until the next try) of a destination."""
    if circuit.health is not Health.OK:
        return circuit.health.value, circuit.reason, max(0.0, circuit.until - now)
    held = lanes.waiting()
    if held:
        return "ok", f"{len(held)} lanes wait: {held[0].reason}", max(0.0, held[0].at - now)
    return "ok", None, None


def next_step(lanes: Lanes, circuit: Circuit, throttle: Throttle, now: float) -> float | None:
    """When there is something to do by the clock alone; None: not before there are news."""
    times = [time for time in (lanes.next_time(),) if time is not None]
    if lanes.has_ready and (by_rate := throttle.ready_at(now)) > now:
        times.append(by_rate)
    if circuit.health is not Health.OK and lanes.has_ready and not lanes.in_flight:
        times.append(circuit.until)
    return min(times, default=None)


def tally(lanes: Lanes) -> dict[str, int]:
    """How many of the lanes that are known wait for what, but for what keeps all of them back."""
    return dict(Counter(_why(lane).value for lane in lanes))


def _why(lane: Lane) -> Why:
    if lane.in_flight:
        return Why.ANSWER
    return _HOLDS[lane.hold] if lane.hold is not None else Why.TURN if lane.ready else Why.MEMORY
