"""What the daemon tells about itself, and what it may be asked to do: the answers behind the HTTP dialect."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any

from agentd import __version__
from agentd.ageing import Clocks
from agentd.control.health import Health
from agentd.control.queue import QueueControl
from agentd.control.records import RecordControl
from agentd.control.reloads import Reloads
from agentd.control.tail import TailControl
from agentd.control.top import TopControl
from agentd.delivery.courier import Courier
from agentd.gate.keeper import Keeper
from agentd.intake import Grant, Peer
from agentd.intake.sink import SpoolSink
from agentd.metrics import Metrics
from agentd.outcomes import State
from agentd.queued import Ref
from agentd.sections import Loaded
from agentd.spool.spool import Spool
from agentd.units import rfc3339
from agentd.wire import CONTRACT

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_POLL_S = 0.02  # a flush looks this often whether it is done


class DaemonControl:
    """See `agentd.intake.Control`."""

    def __init__(
        self,
        loaded: Loaded,
        spool: Spool,
        sink: SpoolSink,
        couriers: dict[str, Courier],
        connections: Callable[[], int],
        http_url: Callable[[], str | None] = lambda: None,
        keeper: Keeper | None = None,
        *,
        clocks: Clocks | None = None,
        decides: bool = True,
        health: Health | None = None,
        missing: Callable[[], str | None] = lambda: None,
        quota: Callable[[str], dict[str, Any]] = lambda _name: {"quota": None, "forecast": None},
    ) -> None:
        """`clocks` are those that the records were stamped by; `quota` tells of a destination's cap.

        `missing` says why nobody can connect, `health` is fed by whoever has opened it.
        `decides` False: agents run under the daemon's own uid, so that nobody on the socket may decide for them.
        """
        self.draining = False
        self._loaded = loaded
        self._config = loaded.config
        self._spool = spool
        self._sink = sink
        self._couriers = couriers
        self._connections = connections
        self._http_url = http_url
        self._keeper = keeper
        self._decides = decides
        self._quota = quota
        self._missing = missing
        self._health = health or Health()
        self._health.opened(spool)
        self._clocks = clocks or Clocks()
        self.reloads = Reloads(self._clocks.now_us)
        self.queues = QueueControl(self._config, spool, couriers, self._clocks)
        self.records = RecordControl(self._config, couriers, self.queues.read)
        self.tail = TailControl(spool, self.queues, self._clocks)
        self.top = TopControl(self.status, spool, couriers, self.queues, self._clocks, time.monotonic)
        self._started = self._clocks.now_us() / 1e6
        self._started_mono = time.monotonic()
        self._metrics = Metrics(
            self.status,
            lambda: iter(spool.books.lines()),
            lambda: keeper.verdicts() if keeper is not None else iter(()),
            spool.timings.told,
        )
        if keeper is not None:
            keeper.observe(self._metrics.observe_gate)
        self._admins = frozenset({0, os.geteuid(), *self._config.security.admin_uids})

    def follow(self, loaded: Loaded) -> None:
        """Tell of this configuration from now on."""
        self._loaded, self._config = loaded, loaded.config
        self.queues.follow(loaded.config)
        self.records.follow(loaded.config)
        self._admins = frozenset({0, os.geteuid(), *loaded.config.security.admin_uids})

    def observer(self, name: str) -> Callable[[str, float, int], None]:
        """What a courier reports its requests to."""
        return lambda verdict, seconds, records: self._metrics.observe(name, verdict, seconds, records)

    # -- health ------------------------------------------------------------------------------------------------------

    def unhealthy(self) -> str | None:
        return self._health.unhealthy()

    def unready(self) -> str | None:
        return "draining" if self.draining else self._missing() or self._health.stuck()

    def metrics(self) -> tuple[bytes, str]:
        return self._metrics.text()

    def is_admin(self, peer: Peer) -> bool:
        return peer.local and peer.uid in self._admins

    def may_decide(self, peer: Peer) -> bool:
        return self._decides and self.is_admin(peer)

    # -- status ------------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        named = [name for name, queue in self._spool.queues.items() if name in self._couriers or queue.live]
        destinations = {name: self._destination(name) for name in named}
        return {
            "agentd": __version__,
            "contract": CONTRACT,
            "pid": os.getpid(),
            "uid": os.geteuid(),
            "started_at": rfc3339(self._started),
            "uptime_s": round(time.monotonic() - self._started_mono, 3),
            "socket": self._config.listen.socket,
            "listen": {"socket": self._config.listen.socket, "http": self._http_url()},
            "config": self._loaded.path,
            "state": "draining" if self.draining else "running",
            "stuck": self._spool.stuck(),
            "reloads": self.reloads.document(),
            "spool": self._spool_status(),
            "intake": self._intake_status(),
            "redaction": self._sink.admission.redactor.document(),
            "destinations": destinations,
            "dead_letters": {
                "records": self._spool.dead_count,
                "bytes": self._spool.dead_bytes,
                "max_bytes": int(self._config.dead_letters.max_bytes),
                "invalid": self._spool.books.total("", State.DEAD.value),
            },
            "journal": self._spool.journal.document(),
            "memory": {
                "rss_bytes": _rss_bytes(),
                "budget_bytes": int(self._config.memory.budget),
                "window_bytes": sum(queue.window_bytes for queue in self._spool.queues.values()),
            },
            "balanced": all(facts["balanced"] for facts in destinations.values()) and not self._spool.books.queued(""),
        }

    def _spool_status(self) -> dict[str, Any]:
        spool = self._spool
        return {
            "directory": self._config.spool.directory,
            "sync": self._config.spool.sync,
            "bytes": spool.file_bytes(),
            "max_bytes": int(self._config.spool.max_bytes),
            "segments": sum(len(queue.segments) for queue in spool.queues.values()),
            "commits": spool.meta.commits,
            "disk_free_bytes": spool.folder.free_bytes(),
            "full": spool.disk_full,
            "quarantined_rows": spool.quarantined_rows,
        }

    def _intake_status(self) -> dict[str, Any]:
        admission = self._sink.admission
        return {
            "connections": self._connections(),
            "messages": self._sink.messages,
            "accepted": admission.accepted,
            "refused": {cause: count for cause, count in sorted(admission.refused.items()) if count},
            "held": self._sink.held,
            "tails": len(self.tail.tails),
            "runs": {} if self._sink.runs is None else self._sink.runs.status(),
            "lost_before_intake": self._sink.streams.lost(),
        }

    def _destination(self, name: str) -> dict[str, Any]:
        queue = self._spool.queues[name]
        books = self._spool.books
        courier = self._couriers.get(name)
        state, reason, retry_in_s = (
            courier.status() if courier else ("removed", "not in the configuration; its queue is kept", None)
        )
        oldest_us = queue.oldest_us(self._clocks.ages())
        configured = self._config.destinations.get(name)
        return {
            "platform": configured.platform if configured else None,
            "base_url": configured.base_url if configured else None,
            "state": state,
            "reason": reason,
            "retry_in_s": None if retry_in_s is None else round(retry_in_s, 3),
            "admitted": books.total(name, "admitted"),
            "queued": queue.live + self._spool.committing(name),
            **{s.value: books.total(name, s.value) for s in State if s is not State.QUEUED},
            **self.queues.flow(name),
            "queued_bytes": queue.stored_bytes,
            "max_bytes": self._spool.limits.quotas.get(name, 0),
            "oldest_age_s": None if oldest_us is None else round(oldest_us / 1e6, 3),
            "lanes": len(courier.lanes) if courier else 0,
            "in_flight": courier.lanes.in_flight if courier else 0,
            "concurrency": courier.throttle.width if courier else 0,
            "max_in_flight": configured.max_in_flight if configured else 0,
            "rate_limit": None if configured is None or configured.rate_limit is None else float(configured.rate_limit),
            "requests": courier.counts.requests if courier else 0,
            "retries": courier.counts.retries if courier else 0,
            "causes": books.causes(name),
            **self._quota(name),
            "gates": self._keeper.status(name) if self._keeper is not None and name in self._keeper.desks else None,
            "balanced": self._balanced(name),
        }

    def _balanced(self, name: str) -> bool:
        """Books and queue agree; records of the commit under way are in the books a moment before the queue."""
        return self._spool.books.queued(name) == self._spool.queues[name].live + self._spool.committing(name)

    # -- calls -------------------------------------------------------------------------------------------------------

    async def flush(self, until: str, timeout_s: float) -> dict[str, Any]:
        """Send what is queued by now and wait for it; `stored` waits for the disk only."""
        begun = time.monotonic()
        await self._spool.barrier()
        goals = {name: self._spool.meta.next_number.get(name, 1) for name in self._couriers}
        if until == "delivered":
            for courier in self._couriers.values():
                courier.flush()
            while self._left(goals) and time.monotonic() - begun < timeout_s:
                await asyncio.sleep(_POLL_S)
        left = self._left(goals) if until == "delivered" else {}
        reasons = [f"{name}: {reason}" for name in left if (reason := self._why(name))]
        return {
            "flushed": not left,
            "until": until,
            "left": left,
            "waited_s": round(time.monotonic() - begun, 3),
            "reason": "; ".join(reasons) or None,
        }

    def _left(self, goals: dict[str, int]) -> dict[str, int]:
        """Destinations with records that were queued before the flush, and how many wait there by now."""
        left = {}
        for name, goal in goals.items():
            lowest = self._spool.lowest(name)
            if lowest is not None and lowest < goal:
                left[name] = self._spool.queues[name].live
        return left

    def _why(self, name: str) -> str | None:
        courier = self._couriers.get(name)
        if courier is None:  # since the flush was asked for
            return "removed: not in the configuration; its queue is kept"
        state, reason, _ = courier.status()
        return reason if state == "ok" else f"{state}: {reason}"

    async def run(self, run_id: str, *, viewer: Peer, admin: bool, grant: Grant) -> dict[str, Any] | None:
        lane = f"run:{run_id}"
        refs = {ref.destination: ref for ref in self._spool.refs.owners("run", run_id)}
        found = {}
        for name in self._spool.queues:
            ref = refs.get(name)
            dead = self._spool.ledger.dead_lanes[name, lane]
            queued = await self._spool.count_lane(name, lane)
            if ref is not None or dead or queued:
                named = admin or (ref is not None and self._is_own(ref, viewer, grant))
                found[name] = _run_at(ref, named=named) | {"queued": queued, "dead": dead}
        return {"run_id": run_id, "destinations": found} if found else None

    def _is_own(self, ref: Ref, viewer: Peer, grant: Grant) -> bool:
        configured = self._config.destinations.get(ref.destination)
        agent = ref.agent or (configured.agent_id if configured else None) or ""
        return ref.uid == viewer.uid >= 0 and grant.allows_agent(agent) and grant.allows_destination(ref.destination)


def _run_at(ref: Ref | None, *, named: bool) -> dict[str, Any]:
    """`named`: with the platform's id, by which things can be had of the platform."""
    if ref is None:  # nothing introduced it here: the platform's own id, or one that is still to come
        return {"platform_id": None, "state": "assumed", "ended": False, "delivered": None}
    platform_id = ref.platform_id if named else None
    return {"platform_id": platform_id, "state": ref.state, "ended": ref.ended, "delivered": ref.delivered}


def _rss_bytes() -> int:
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - read at every status: the plain call is the short one
        return int(file.read().split()[1]) * _PAGE_BYTES
