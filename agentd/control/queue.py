"""Looking into the queues of a running daemon, and dropping one.

Figures come from memory. Lanes, records and receipts are read from the disk by a connection of its own on a thread of its own,
one question at a time: neither the event loop nor the thread that commits ever waits for it. What lanes wait for is asked of the
couriers when the list is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from agentd.ageing import Clocks
from agentd.control import queue_documents as documents
from agentd.control.queue_documents import Ages
from agentd.delivery.courier import Courier
from agentd.delivery.flow import Flow, Rates
from agentd.delivery.waits import Waits, Why, tally, waits
from agentd.intake import Grant, Peer
from agentd.intake.queues import Asked, Busy
from agentd.outcomes import State
from agentd.queued import Source
from agentd.sections import Config
from agentd.spool.census import Interrupted, LaneCount, Sort, Wanted, census, oldest
from agentd.spool.drop import Deletion, drop
from agentd.spool.ledger import Ledger
from agentd.spool.readonly import ReadOnlyStore
from agentd.spool.receipts import WantedReceipts, receipts
from agentd.spool.spool import Spool
from agentd.spool.store import Rows

T = TypeVar("T")

_WAITING = 4  # questions that may stand behind the one that is answered
RECORD_BYTES = 4 * 2**20  # of records in one answer
_PATIENCE_S = 5.0  # for requests that are under way when a queue is dropped
_POLL_S = 0.02
_US = 1e6


class QueueControl:
    """See `agentd.intake.queues.Queues`."""

    def __init__(
        self,
        config: Config,
        spool: Spool,
        couriers: Mapping[str, Courier],
        clocks: Clocks,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clocks` are those that the records were stamped by, `monotonic` the couriers' clock."""
        self._config = config
        self._spool = spool
        self._couriers = couriers
        self._clocks = clocks
        self._monotonic = monotonic
        self._flows: dict[str, Flow] = {}
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="agentd-reader")
        self._reading = asyncio.Lock()
        self._asking = 0
        self._closing = threading.Event()
        self._dropping = asyncio.Lock()

    def follow(self, config: Config) -> None:
        self._config = config

    @contextlib.asynccontextmanager
    async def undropped(self) -> AsyncIterator[None]:
        """Within the block no queue is dropped; what is being dropped is waited for."""
        async with self._dropping:
            yield

    def close(self) -> None:
        """Answer nothing more; what is being read ends within a segment."""
        self._closing.set()
        self._reader.shutdown(wait=False, cancel_futures=True)

    # -- figures -----------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """About once a second: see how far the queues have come."""
        for name in self._spool.queues:
            self._flows.setdefault(name, Flow()).look(self._monotonic(), *self._counts(name))

    def flow(self, name: str) -> dict[str, Any]:
        """How fast a destination's queue fills and empties."""
        return documents.flow_document(self._spool.queues[name].live, self._rates(name))

    def _counts(self, name: str) -> tuple[int, int]:
        books = self._spool.books
        return books.total(name, "admitted"), books.total(name, State.DELIVERED)

    def _rates(self, name: str) -> Rates | None:
        flow = self._flows.get(name)
        return None if flow is None else flow.rates(self._monotonic(), *self._counts(name))

    def names(self) -> list[str]:
        return sorted(self._spool.queues)

    def stats(self, destination: str | None) -> dict[str, Any]:
        ages = self._clocks.ages()
        spool = self._spool
        shown = [name for name in self.names() if destination in (None, name)]
        if destination is None:
            shown = [name for name in shown if name in self._couriers or spool.queues[name].live]
        return documents.stats_document(
            {name: self._destination(name, ages) for name in shown},
            at_us=self._clocks.now_us(),
            running=True,
            max_bytes=int(self._config.spool.max_bytes),
            **disk_figures(spool.ledger),
        )

    def _destination(self, name: str, ages: Ages) -> dict[str, Any]:
        courier, queue = self._couriers.get(name), self._spool.queues[name]
        configured = self._config.destinations.get(name)
        state, reason, retry_in_s = (
            courier.status() if courier else ("removed", "not in the configuration; its queue is kept", None)
        )
        quota = self._spool.limits.quotas.get(name, 0)
        return {
            "platform": configured.platform if configured else None,
            "state": state,
            "reason": reason,
            "retry_in_s": None if retry_in_s is None else round(retry_in_s, 3),
            **documents.destination_document(self._spool.ledger, name, ages, self._rates(name), quota),
            "lanes": {
                "known": len(courier.lanes) if courier else 0,
                "waits": tally(courier.lanes) if courier else {},
                "parked": queue.parked,
            },
            "window_bytes": queue.window_bytes,
            "window_max_bytes": queue.window_limit,
        }

    # -- what has to be read -----------------------------------------------------------------------------------------

    async def lanes(self, asked: Asked, viewer: Peer, *, admin: bool, grant: Grant) -> dict[str, Any]:
        ages = self._clocks.ages()
        wanted = wanted_of(asked, ages, None if admin else self.own(viewer, grant))
        found = await self.read(lambda rows, stop: census(rows, wanted, Sort(asked.sort), asked.limit, stop=stop))
        queued = {name: queue.live for name, queue in self._spool.queues.items()}
        return documents.lanes_document(found, [self._lane(lane, ages) for lane in found.lanes], queued)

    def _lane(self, lane: LaneCount, ages: Ages) -> dict[str, Any]:
        in_memory = self._spool.queues[lane.destination].lanes.get(lane.lane)
        sealed = len(self._spool.seals.of_lane(lane.destination, lane.lane))
        parked = in_memory is not None and in_memory.parked
        return documents.lane_document(lane, ages, self._waits(lane), parked=parked, sealed=sealed)

    def _waits(self, lane: LaneCount) -> Waits:
        courier = self._couriers.get(lane.destination)
        if courier is None:
            return Waits(Why.REMOVED, "the destination is not in the configuration")
        return waits(courier.lanes.find(lane.lane), courier.circuit, self._monotonic())

    async def records(self, asked: Asked, viewer: Peer, *, admin: bool, grant: Grant) -> dict[str, Any]:
        ages, own = self._clocks.ages(), self.own(viewer, grant)
        narrow = asked.run is not None or asked.agent is not None  # whoever names one sees whether there is such a one
        wanted = wanted_of(asked, ages, own if narrow and not admin else None)
        found = await self.read(lambda rows, stop: oldest(rows, wanted, asked.limit, RECORD_BYTES, stop=stop))
        shown = [
            documents.record_document(name, entry, ages, whole=admin or own(name, entry.source))
            for name, entry in found.entries
        ]
        return documents.records_document(found, shown)

    async def receipts(self, asked: Asked, viewer: Peer, *, admin: bool, grant: Grant) -> dict[str, Any]:
        wanted = wanted_receipts_of(asked, self._clocks.ages(), None if admin else self.own(viewer, grant))
        rows = self._spool.journal.rows
        return documents.receipts_document(
            await self.read(lambda store, stop: receipts(store, rows, wanted, asked.limit, stop=stop))
        )

    def own(self, viewer: Peer, grant: Grant) -> Callable[[str, Source], bool]:
        """Whether a record is the viewer's, of an agent and a destination that it was given."""

        def own(name: str, source: Source) -> bool:
            configured = self._config.destinations.get(name)
            agent = source.agent or (configured.agent_id if configured else None) or ""
            known = viewer.uid >= 0  # several whom the kernel doesn't name are not one user
            return known and source.uid == viewer.uid and grant.allows_destination(name) and grant.allows_agent(agent)

        return own

    async def read(self, job: Callable[[Rows, Callable[[], bool]], T]) -> T:
        """`job(rows, stop)` on the reader's thread. Raises Busy."""
        if self._asking > _WAITING or self._closing.is_set():
            raise Busy("others look into the queue just now, or the daemon stops: ask again later")
        self._asking += 1
        try:
            async with self._reading:
                return await asyncio.get_running_loop().run_in_executor(self._reader, self._on_the_thread, job)
        except Interrupted:
            raise Busy("the daemon stops") from None
        finally:
            self._asking -= 1

    def _on_the_thread(self, job: Callable[[Rows, Callable[[], bool]], T]) -> T:
        store = ReadOnlyStore(self._spool.folder.spool)
        try:
            return job(store, self._closing.is_set)
        finally:
            store.close()

    # -- dropping ----------------------------------------------------------------------------------------------------

    async def drop(self, destination: str, reason: str, admin: Peer) -> dict[str, Any]:
        """Take out all that is queued for it by now, for good. What is under way then has a moment to end as it does."""
        async with self._dropping:
            courier = self._couriers.get(destination)
            if courier is not None:
                courier.suspend()
            try:
                deadline = self._monotonic() + _PATIENCE_S
                while courier is not None and courier.lanes.in_flight and self._monotonic() < deadline:
                    await asyncio.sleep(_POLL_S)
                dropped = await drop(self._spool, destination, Deletion(admin.uid, reason))
            finally:
                if courier is not None:
                    courier.resume()
        return documents.dropped_document(destination, dropped)


def disk_figures(ledger: Ledger) -> dict[str, int]:
    """What the spool takes on disk, and what is free there."""
    return {
        "database_bytes": sum(path.stat().st_size for path in ledger.folder.spool.glob("cache.db*")),
        "disk_free_bytes": ledger.folder.free_bytes(),
        "dead_letters": ledger.dead_count,
    }


def wanted_of(asked: Asked, ages: Ages, mine: Callable[[str, Source], bool] | None) -> Wanted:
    return Wanted(ages, asked.destination, asked.run, asked.agent, asked.kind, round(asked.older_s * _US), mine)


def wanted_receipts_of(asked: Asked, ages: Ages, mine: Callable[[str, Source], bool] | None) -> WantedReceipts:
    since_us = None if asked.since_s is None else round(asked.since_s * _US)
    return WantedReceipts(ages, asked.destination, asked.run, asked.kind, asked.agent, since_us, mine)
