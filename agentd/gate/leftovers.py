"""What a start finds without a last word: ruled upon where it was cut off, followed on where it is pending.

What is pending at a destination that left the configuration waits for its return, as long as it would have been followed
(`gate.follow`), and ends like any other then: the platform gave no word, and may still.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from agentd.gate.desk import Common, Desk
from agentd.gate.flow import Flow, decided, unfinished
from agentd.gate.register import Register
from agentd.gating import Ruling, Word
from agentd.spool.gaterows import GateRow, Step, Stored
from agentd.units import format_duration

log = logging.getLogger("agentd.gate")


class Leftovers:
    """See the module. `begin` follows a flow on, `announce` hears of what was ruled upon once that is on disk."""

    def __init__(
        self,
        desks: Mapping[str, Desk],
        register: Register,
        common: Common,
        begin: Callable[[Flow], None],
        announce: Callable[[GateRow], None],
    ) -> None:
        self._desks = desks
        self._register = register
        self._common = common
        self._begin = begin
        self._announce = announce
        self._homeless: dict[str, GateRow] = {}  # pending at a destination that is not in the configuration

    def __repr__(self) -> str:
        return f"<Leftovers: {len(self._homeless)} without a destination>"

    async def take_over(self) -> None:
        """Call once, at the start."""
        for stored in self._register.open():
            await self._take_over(stored)

    async def _take_over(self, stored: Stored) -> None:
        gate = await self._common.shelf.load(stored)
        desk = self._desks.get(gate.destination)
        if gate.step is not Step.PENDING:
            ended = gate.step is Step.FINAL  # a damaged one: what is left of it says that nobody knows
            ruling = unfinished(gate, "agentd ended", left=True)
            self._close(gate if ended else decided(gate, ruling, self._common.now_us()))
        elif desk is None or gate.gate not in desk.gates:
            log.warning(
                "a %s gate waits for %s, which is not in the configuration", gate.gate, gate.destination,
                extra={"action": "removed", "destination": gate.destination},
            )  # fmt: skip
            self._homeless[gate.gate_id] = gate
        else:
            self._go_on(gate, desk)

    def returned(self, desk: Desk, is_resolved: Callable[[str], bool]) -> None:
        """The destination is back in the configuration: what waited for it is followed on."""
        waiting = [
            gate for gate in self._homeless.values() if gate.destination == desk.name and gate.gate in desk.gates
        ]
        for gate in [gate for gate in waiting if not is_resolved(gate.gate_id)]:
            del self._homeless[gate.gate_id]
            stored = self._register.book.get(gate.gate_id)
            if stored is not None and stored.brief.step is Step.PENDING:
                self._go_on(gate, desk)

    def _go_on(self, gate: GateRow, desk: Desk) -> None:
        if gate.identity != desk.identity:
            reason = f"{gate.destination} is another platform or account now: what became of it is not known here"
            self._close(decided(gate, Ruling(Word.UNAVAILABLE, reason, acted=True), self._common.now_us()))
        else:
            self._begin(Flow(gate, desk, self._common))

    def expire(self, is_resolved: Callable[[str], bool]) -> None:
        """End what has waited too long for its destination. `is_resolved`: a person is at it right now."""
        age_us, follow_us = self._common.age_us, int(self._common.follow_s * 1e6)
        for gate in [gate for gate in self._homeless.values() if age_us(gate.asked_us) >= follow_us]:
            if is_resolved(gate.gate_id):
                continue
            del self._homeless[gate.gate_id]
            stored = self._register.book.get(gate.gate_id)
            if stored is not None and stored.brief.step is Step.PENDING:
                self._close(decided(gate, self._expired(gate), self._common.now_us()))

    def _expired(self, gate: GateRow) -> Ruling:
        follow = format_duration(self._common.follow_s)
        reason = f"{gate.destination} left the configuration, and was not back within gate.follow ({follow})"
        return Ruling(Word.UNAVAILABLE, reason, acted=True)

    def _close(self, gate: GateRow) -> None:
        """Rule upon a gate that nobody waits for."""
        log.warning(
            "%s gate %s: %s", gate.gate, gate.gate_id, gate.reason,
            extra={"action": "gate_unfinished", "destination": gate.destination},
        )  # fmt: skip
        self._common.shelf.bury(gate)
        self._register.decided(gate, self._announce)
