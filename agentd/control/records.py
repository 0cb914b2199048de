"""Where a record is, for a running daemon: read from the disk on a thread of its own, with what only the couriers know.

See `agentd.spool.trace` for what is looked through, `record_documents` for what is answered.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from agentd.control import record_documents as documents
from agentd.delivery.courier import Courier
from agentd.delivery.waits import Waits, Why, waits
from agentd.errors import SpoolDamaged
from agentd.gate.book import owner_of
from agentd.intake import Grant, Peer
from agentd.intake.dedupe import holders
from agentd.sections import Config
from agentd.spool.checked import unpack
from agentd.spool.gaterows import GateRow
from agentd.spool.store import Rows
from agentd.spool.tables import Table
from agentd.spool.trace import Trace, Waiting, id_of, trace

Looked = tuple[Trace, list[int]]
Read = Callable[[Callable[[Rows, Callable[[], bool]], Looked]], Awaitable[Looked]]


class RecordControl:
    """See `agentd.intake.records.Records`. `read` runs a job over the rows of one moment, off the event loop and one at a time."""

    def __init__(
        self,
        config: Config,
        couriers: Mapping[str, Courier],
        read: Read,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`monotonic` is the couriers' clock."""
        self._config = config
        self._couriers = couriers
        self._read = read
        self._monotonic = monotonic

    def follow(self, config: Config) -> None:
        self._config = config

    async def where(self, asked: str, viewer: Peer, *, admin: bool, grant: Grant) -> tuple[dict[str, Any] | None, str]:
        """What is known of it, None if nothing is that the viewer may see; and the sentence for that."""
        uid = None if admin else viewer.uid
        found, taken = await self._read(lambda rows, stop: look_for(rows, asked, uid, stop))
        own = documents.everything if admin else self._own(viewer, grant)
        known = taken if admin or viewer.uid >= 0 else []
        shown = documents.document(found, own, self._waits, known, self._gates(viewer, grant, admin=admin))
        return shown, documents.unknown(asked, found.since_us)

    def _waits(self, waiting: Waiting) -> Waits:
        courier = self._couriers.get(waiting.destination)
        if courier is None:
            return Waits(Why.REMOVED, "the destination is not in the configuration")
        return waits(courier.lanes.find(waiting.entry.lane), courier.circuit, self._monotonic())

    def _own(self, viewer: Peer, grant: Grant) -> documents.Own:
        """A record is its sender's, of an agent and a destination that it was given; whom the kernel doesn't name has none."""

        def own(destination: str, agent: str, uid: int) -> bool:
            return uid == viewer.uid >= 0 and self._is_within(grant, destination, agent)

        return own

    def _gates(self, viewer: Peer, grant: Grant, *, admin: bool) -> Callable[[GateRow], bool]:
        """As `GET /v1/gates` has it: a gate over TCP is its token's."""

        def sees(gate: GateRow) -> bool:
            own = owner_of(gate.source.uid, gate.token) == owner_of(viewer.uid, viewer.token)
            return admin or (own and self._is_within(grant, gate.destination, gate.source.agent))

        return sees

    def _is_within(self, grant: Grant, destination: str, agent: str) -> bool:
        configured = self._config.destinations.get(destination)
        named = agent or (configured.agent_id if configured else None) or ""
        return grant.allows_agent(named) and (not destination or grant.allows_destination(destination))


def look_for(rows: Rows, asked: str, uid: int | None, stop: Callable[[], bool] = lambda: False) -> Looked:
    """What is found, and where nothing is, from whom a record of that id was taken; of one user alone if `uid` is given."""
    found = trace(rows, asked, uid, stop=stop)
    record_id = id_of(asked)
    if found or record_id is None:
        return found, []
    taken: list[int] = []
    for _, value in rows.rows(Table.SEEN):
        if record_id in value:
            with contextlib.suppress(SpoolDamaged):
                taken += holders(unpack(value), record_id)
    return found, [each for each in dict.fromkeys(taken) if uid in (None, each)]
