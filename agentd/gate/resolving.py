"""A person's word where the platform's is missing: what became of a gate whose answer was lost, or that is still pending."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agentd.errors import SpoolFull
from agentd.gate.asking import Resolution
from agentd.gate.desk import Common
from agentd.gate.flow import Flow, decided
from agentd.gate.register import Register
from agentd.gating import Ruling, Word
from agentd.intake import GateRefusal, Peer
from agentd.spool.gaterows import GateRow, Step, Stored


class Resolver:
    """Resolves gates, one at a time each. `resume` goes on with a flow whose resolution found no room."""

    def __init__(self, register: Register, common: Common, resume: Callable[[Flow], None]) -> None:
        self._register = register
        self._common = common
        self._resume = resume
        self._under_way: dict[str, asyncio.Future[None]] = {}

    def is_at(self, gate_id: str) -> bool:
        """Whether somebody is resolving the gate."""
        return gate_id in self._under_way

    async def quiet(self, gate_id: str) -> bool:
        """Return when nobody resolves the gate any more; True if somebody did, so that it may be another one now."""
        under_way = self._under_way.get(gate_id)
        if under_way is None:
            return False
        await asyncio.shield(under_way)
        return True

    async def resolve(self, stored: Stored, found: Resolution, admin: Peer) -> GateRow:
        """Record it. `unavailable` says that nothing was made of it: its key may be asked again, unless the platform has named it.

        Raises GateRefusal.
        """
        gate_id = stored.brief.gate_id
        if gate_id in self._under_way:
            raise GateRefusal(409, "under_way", "somebody else is resolving it")
        self._under_way[gate_id] = done = asyncio.get_running_loop().create_future()
        try:
            before = await self._open(stored)
            platform_id = found.platform_id or before.platform_id
            acted = found.verdict != "unavailable" or platform_id is not None  # what has a name there was made
            ruling = Ruling(Word(found.verdict), found.note or f"resolved by uid {admin.uid}", platform_id, acted=acted)
            gate = decided(before, ruling, self._common.now_us(), proceed=ruling.word is Word.ALLOW)
            gate.resolved_by, gate.note = admin.uid, found.note
            await self._record(gate, before)
            return gate
        finally:
            del self._under_way[gate_id]
            done.set_result(None)

    async def _open(self, stored: Stored) -> GateRow:
        """A gate that a person may rule upon; whoever followed it does so no more."""
        flow = self._register.flow(stored.brief.gate_id)
        if flow is None:
            return _unless_settled(await self._register.load(stored))
        if flow.gate.step is not Step.PENDING or flow.task is None:
            raise GateRefusal(409, "under_way", "its question is under way; try again when it is answered or given up")
        flow.task.cancel()
        await asyncio.gather(flow.task, return_exceptions=True)
        if flow.is_final:
            self._register.ended(flow)
        return _unless_settled(flow.gate)

    async def _record(self, gate: GateRow, before: GateRow) -> None:
        shelf, flow = self._common.shelf, self._register.flow(gate.gate_id)
        if gate.platform_id is not None:
            shelf.learn(gate)
        else:
            shelf.bury(gate)
        try:
            await asyncio.shield(shelf.save(gate, [gate.word]))
        except SpoolFull:
            shelf.note(before, before.word)  # the journal has the resolution already, and that it was taken back
            if flow is not None:
                self._resume(flow)
            raise GateRefusal(503, "spool_full", "the disk is full: the resolution could not be recorded") from None
        self._register.recorded(gate)
        self._common.announce(gate, (gate.decided_us - gate.asked_us) / 1e6)
        if flow is not None:
            self._register.ended(flow)
            flow.gate = gate
            flow.tell()


def _unless_settled(gate: GateRow) -> GateRow:
    if gate.step is Step.FINAL and gate.word is not Word.UNAVAILABLE and gate.resolved_by is None:
        raise GateRefusal(409, "resolved", f"the platform has said {gate.word}")
    return gate
