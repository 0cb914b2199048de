"""One look at a daemon that works: its status, where the time goes, and the lanes that stand out. From memory alone.

A look is asked for about once a second, so what it costs has a bound: of the lanes in memory the first `LOOKED_AT` are ranked, of
each destination an equal share: those that have been in memory longest; the answer says how many there were. `agentd queue list` reads all from the disk.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any, NamedTuple

from agentd.ageing import Clocks
from agentd.control.queue import QueueControl
from agentd.delivery.courier import Courier
from agentd.delivery.lanes import Hold
from agentd.delivery.lanes import Lane as Sending
from agentd.delivery.waits import Waits, Why, waits
from agentd.intake import Grant, Peer
from agentd.queued import Source
from agentd.spool.lane import ENTRY_OVERHEAD, Lane
from agentd.spool.spool import Spool
from agentd.tallies import Tally

LOOKED_AT = 2000  # lanes, of all destinations together; about 1 µs each
_SLOW = (Hold.BACKOFF, Hold.FORBIDDEN, Hold.REFERENCE)


class _Met(NamedTuple):
    """A lane with records in memory."""

    destination: str
    lane: Lane
    sending: Sending | None  # what delivery remembers of it

    @property
    def oldest_us(self) -> int:
        return self.lane.entries[0].admitted_us

    @property
    def size(self) -> int:
        """Bytes of its records in memory."""
        return self.lane.size - ENTRY_OVERHEAD * len(self.lane.entries)


_RANKS: dict[str, Callable[[_Met], tuple[float, ...]]] = {
    "oldest": lambda met: (met.oldest_us,),
    "largest": lambda met: (-met.size, met.oldest_us),
    "slowest": lambda met: (*_held(met.sending), met.oldest_us),
}


def _held(sending: Sending | None) -> tuple[float, float]:
    """Failures and how long it still waits, the most first; a batch that fills is no wait."""
    if sending is None or sending.hold not in _SLOW:
        return 0, 0
    return -sending.failures, -sending.at


class TopControl:
    """See `agentd.intake.top.Top`."""

    def __init__(
        self,
        status: Callable[[], dict[str, Any]],
        spool: Spool,
        couriers: Mapping[str, Courier],
        queues: QueueControl,
        clocks: Clocks,
        monotonic: Callable[[], float],
    ) -> None:
        """`clocks` are those that the records were stamped by, `monotonic` the couriers' clock."""
        self._status = status
        self._spool = spool
        self._couriers = couriers
        self._queues = queues
        self._clocks = clocks
        self._monotonic = monotonic

    def look(
        self, sort: str, destination: str | None, limit: int, viewer: Peer, *, admin: bool, grant: Grant
    ) -> dict[str, Any]:
        own = None if admin else self._queues.own(viewer, grant)
        names = [name for name in self._spool.queues if destination in (None, name)]
        share = LOOKED_AT // max(1, len(names)) if limit else 0
        met = [one for name in names for one in self._met(name, own, share)]
        first = heapq.nsmallest(limit, met, key=_RANKS[sort])
        timings = self._spool.timings
        return {
            "status": self._status(),
            "lanes": [self._lane(one) for one in first],
            "lanes_known": sum(len(self._spool.queues[name].lanes) for name in names),
            "lanes_looked_at": len(met),
            "latency": {
                "ack": _tally(timings.ack),
                "commit": _tally(timings.commit),
                "delivery": {name: _tally(tally) for name, tally in timings.delivery.items()},
            },
        }

    def _met(self, name: str, own: Callable[[str, Source], bool] | None, most: int) -> Iterable[_Met]:
        courier = self._couriers.get(name)
        for lane in islice(self._spool.queues[name].lanes.values(), most):
            if lane.entries and (own is None or own(name, lane.entries[0].source)):
                yield _Met(name, lane, None if courier is None else courier.lanes.find(lane.key))

    def _lane(self, met: _Met) -> dict[str, Any]:
        courier = self._couriers.get(met.destination)
        waiting = Waits(Why.REMOVED) if courier is None else waits(met.sending, courier.circuit, self._monotonic())
        return {
            "destination": met.destination,
            "lane": met.lane.key,
            "agent": met.lane.entries[0].agent,
            "records": len(met.lane.entries),  # in memory; there may be more on disk
            "bytes": met.size,
            "oldest_age_s": round(max(0, self._clocks.age_us(met.oldest_us)) / 1e6, 3),
            "waits_for": waiting.why.value,
            "reason": waiting.reason or None,
            "next_try_in_s": None if waiting.next_s is None or math.isinf(waiting.next_s) else round(waiting.next_s, 3),
            "failures": waiting.failures,
        }


def _tally(tally: Tally) -> dict[str, Any]:
    """Values at most each of the bounds and above the one before, since the start; the last count is of those above all bounds."""
    return {"bounds": tally.bounds, "counts": tally.counts}
