"""What is on record and what is under way: the book, the flows, and rows that wait for room on disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from agentd.gate.book import Book, owner_of
from agentd.gate.desk import Shelf
from agentd.gate.flow import Flow
from agentd.intake import Peer
from agentd.spool.gaterows import GateRow, Step, Stored


class Register:
    """Where a gate is found. Whoever asks for one sees its flow while there is one, and else what the disk has."""

    def __init__(self, shelf: Shelf, open_bytes: int, index_bytes: int) -> None:
        self.book = Book(shelf.max_bytes, open_bytes, index_bytes)
        self.flows: dict[str, Flow] = {}
        self._shelf = shelf
        self._loose: dict[str, GateRow] = {}  # decided without a flow, and not on disk yet

    async def load(self, stored: Stored) -> GateRow:
        """A gate that is not under way."""
        return self._loose.get(stored.brief.gate_id) or await self._shelf.load(stored)

    def flow(self, gate_id: str) -> Flow | None:
        """The flow of a gate that is under way. One that has its last word may not have come to its end yet."""
        flow = self.flows.get(gate_id)
        return None if flow is None or flow.is_final else flow

    async def see(self, stored: Stored) -> tuple[GateRow, str] | None:
        """A gate as the disk has it, and why that is not the whole truth; None for one that is not on disk yet."""
        flow = self.flow(stored.brief.gate_id)
        if flow is None:
            return await self.load(stored), ""
        if flow.on_disk:
            return flow.gate, flow.trouble
        return None if flow.before is None else (await self.load(flow.before), "")

    def own(self, state: str, viewer: Peer, *, admin: bool) -> Iterator[Stored]:
        """The gates that the viewer may see, the newest first; `state` is open, final or all."""
        found = self.book.newest(lambda brief: state == "all" or (brief.step is Step.FINAL) == (state == "final"))
        return (stored for stored in found if admin or is_own(stored, viewer))

    def open(self, destination: str | None = None) -> list[Stored]:
        """Gates without a last word."""
        return list(
            self.book.newest(
                lambda brief: brief.step is not Step.FINAL and destination in (None, brief.destination),
            )
        )

    def recorded(self, gate: GateRow) -> None:
        """It is on disk as it is here."""
        self._loose.pop(gate.gate_id, None)
        self.book.record(gate)
        self._shelf.drop(self.book.overflow())

    def decided(self, gate: GateRow, then: Callable[[GateRow], None]) -> None:
        """It has its last word, which is on disk as soon as there is room; `then` hears of that.

        Nobody waits: a start would say the same again.
        """
        self.recorded(gate)
        self._loose[gate.gate_id] = gate

        def kept(done: asyncio.Future[None]) -> None:
            if self._loose.get(gate.gate_id) is gate:
                del self._loose[gate.gate_id]
            if not (done.cancelled() or done.exception()):
                then(gate)

        self._shelf.keep(gate, [gate.word]).add_done_callback(kept)

    def forgotten(self, gate_id: str, before: Stored | None) -> None:
        """Nothing of this asking is on disk, but perhaps of an earlier one."""
        self.book.remove(gate_id)
        if before is not None:
            self.book.put(before)

    def ended(self, flow: Flow) -> None:
        """Its task has come to its end."""
        if self.flows.get(flow.gate.gate_id) is flow:
            del self.flows[flow.gate.gate_id]


def is_own(stored: Stored, viewer: Peer) -> bool:
    """Whether the viewer asked it."""
    return owner_of(stored.brief.uid, stored.brief.token) == owner_of(viewer.uid, viewer.token)
