"""The gate room's side of the spool: rows of gates, the references that they introduce, their entries in the journal."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from uuid import UUID

import msgspec

from agentd.errors import SpoolDamaged, StateError
from agentd.gating import Word
from agentd.outcomes import State
from agentd.queued import DEAD, GATE_LANE, INTRODUCED, KNOWN, Entry, Ref, is_anothers
from agentd.records import LossClass
from agentd.redact.build import no_redactor
from agentd.redact.engine import Redactor
from agentd.spool.folder import Folder
from agentd.spool.gaterows import GateRow, Stored, decode, encode, of_brief
from agentd.spool.spool import Spool
from agentd.spool.store import Rows, key_of
from agentd.spool.tables import Table
from agentd.spool.writer import Noted

log = logging.getLogger("agentd.spool")

_SHARE = 8  # gates take at most this part of spool.max_bytes: an agent that asks without end must not stop the queues
_WORDS = frozenset(Word) - {Word.PENDING}


class GateShelf:
    """The gate room's side of the spool. Futures are done when the change is on disk; they raise SpoolFull."""

    def __init__(self, spool: Spool, redactor: Redactor | None = None) -> None:
        """What reaches the disk goes through `redactor`; in memory a gate stays as it was asked and answered."""
        self._spool = spool
        self._redactor = redactor or no_redactor()

    # -- rows --------------------------------------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Whether the disk has no room: nothing can be recorded, so nothing may be sent."""
        return self._spool.disk_full

    @property
    def max_bytes(self) -> int:
        """What all gates together may take."""
        return self._spool.limits.max_bytes // _SHARE

    def stored(self) -> list[Stored]:
        """The rows of a start, oldest first."""
        return self._spool.ledger.gates

    def new_row(self) -> int:
        return self._spool.take_row(Table.GATE)

    def save(self, gate: GateRow, steps: Sequence[str], introduced: Sequence[Ref] = ()) -> asyncio.Future[None]:
        """Put a gate on disk with journal entries for `steps`; refused where there is no room."""
        kept, hits = self._without_secrets(gate)
        notes = [self._noted(kept, step, hits) for step in steps]
        return self._spool.append({}, puts=[encode(kept)], introduced=introduced, notes=notes, awaited=True)

    def keep(self, gate: GateRow, steps: Sequence[str]) -> asyncio.Future[None]:
        """The same for what was refused and must not be lost while we live: done as soon as there is room."""
        kept, hits = self._without_secrets(gate)
        return self._spool.put(encode(kept), [self._noted(kept, step, hits) for step in steps])

    def note(self, gate: GateRow, step: str) -> None:
        """An entry in the journal alone, with the next commit."""
        kept, hits = self._without_secrets(gate)
        self._spool.note(self._noted(kept, step, hits))

    def drop(self, rows: Iterable[int]) -> None:
        """Forget gates, with the next commit."""
        self._spool.drop_rows(Table.GATE, rows)

    async def load(self, stored: Stored) -> GateRow:
        """The whole of a gate; of a damaged one what its tag says."""
        if stored.damaged:
            return of_brief(stored.brief, stored.row)
        gate = await self._spool.run_in_thread(_load, self._spool.folder, stored)
        if gate is None:
            stored.damaged = True
            return of_brief(stored.brief, stored.row)
        return gate

    def _without_secrets(self, gate: GateRow) -> tuple[GateRow, dict[str, int]]:
        """The gate as it is stored, and the rules that were hit."""
        redactor = self._redactor
        if not redactor.version:
            return gate, {}
        request, response = redactor.question(gate.request), redactor.question(gate.response)
        source = msgspec.structs.replace(gate.source, redaction=redactor.version)
        kept = msgspec.structs.replace(
            gate, source=source, request=request.body, response=response.body, reason=redactor.text(gate.reason),
            note=redactor.text(gate.note),
        )  # fmt: skip
        return kept, dict(Counter(request.hits) + Counter(response.hits))

    def _noted(self, gate: GateRow, step: str, hits: Mapping[str, int]) -> Noted:
        state = State.QUEUED
        if step in _WORDS:
            state = State.DEAD if step == Word.UNAVAILABLE else State.DELIVERED
        entry = Entry(
            0, UUID(gate.gate_id).bytes, gate.lane, f"gate.{gate.gate}", LossClass.KEEP, gate.source, gate.asked_us,
            gate.request, redactions=hits,
        )  # fmt: skip
        facts: dict[str, str | bool | int] = {
            "cause": step, "key": gate.idempotency_key, "platform_id": gate.platform_id or "", "run": gate.run_id or "",
            "local_id": gate.local_id, "tries": gate.tries,
        }  # fmt: skip
        if step in _WORDS:
            facts |= {"proceed": gate.proceed, "fail_open": gate.fail_open}
            if gate.resolved_by is not None:
                facts |= {"by": gate.resolved_by, "reason": gate.note}
        return Noted(entry, state, gate.destination, facts)

    # -- references --------------------------------------------------------------------------------------------------

    def reference(self, destination: str, kind: str, local_id: str) -> Ref | None:
        return self._spool.refs.find(destination, kind, local_id)

    def owners(self, kind: str, local_id: str) -> Sequence[Ref]:
        return self._spool.refs.owners(kind, local_id)

    def introduce(self, gate: GateRow) -> list[Ref]:
        """The reference that a gate makes, for `save`: what names it waits until the platform has spoken."""
        ref = self._ref(gate, gate.local_id, INTRODUCED)
        return [ref] if self._spool.refs.introduce(ref) is ref else []

    def learn(self, gate: GateRow) -> None:
        """The platform has named it; both names lead to its own from the next commit on, unless it is another's there."""
        assert gate.platform_id is not None  # noqa: S101 - the caller has it from the answer
        refs = self._spool.refs
        if refs.get(gate.destination, gate.kind, gate.local_id) is None:
            refs.put(self._ref(gate, gate.local_id, INTRODUCED))
        known = refs.learn(gate.destination, gate.kind, gate.local_id, gate.platform_id, self._spool.ledger.now_us())
        own = known is not None and known.state == KNOWN
        if own and refs.get(gate.destination, gate.kind, gate.platform_id) is None:
            refs.put(self._ref(gate, gate.platform_id, KNOWN))
        self._spool.tell_named()

    def is_anothers(self, gate: GateRow, kind: str, name: str) -> bool:
        """Whether the thing that goes by this name, the agents' or the platform's, is another user's or agent's."""
        refs = [ref for ref in self.owners(kind, name) if ref.destination == gate.destination]
        return any(is_anothers(ref, gate.source) for ref in refs)

    def bury(self, gate: GateRow) -> None:
        """No platform knows it: what names it can't be sent."""
        known = self.reference(gate.destination, gate.kind, gate.local_id)
        if gate.kind and (known is None or (known.lane == gate.lane and known.state == INTRODUCED)):
            self._spool.refs.put(self._ref(gate, gate.local_id, DEAD))
            self._spool.tell_named()

    def bury_strays(self, known: Iterable[str]) -> int:
        """End the waiting for gates of which nothing is known any more; `known` are the ids of those that are."""
        lanes = {GATE_LANE + gate_id for gate_id in known}
        refs = [ref for ref in self._spool.refs if ref.state == INTRODUCED and ref.lane.startswith(GATE_LANE)]
        strays = [ref for ref in refs if ref.lane not in lanes]
        for ref in strays:
            ref.state = DEAD
            self._spool.refs.put(ref)
        return len(strays)

    def _ref(self, gate: GateRow, local_id: str, state: str) -> Ref:
        source = gate.source
        return Ref(
            gate.destination, gate.kind, local_id, source.agent, source.uid, 0, state,
            gate.platform_id if state == KNOWN else None, touched_us=self._spool.ledger.now_us(), lane=gate.lane,
        )  # fmt: skip

    async def wait_for_names(self) -> None:
        """Return when a reference has become known or dead since."""
        await self._spool.wait_for_names()


def _load(store: Rows, folder: Folder, stored: Stored) -> GateRow | None:
    """None for a damaged row, of which a copy is set aside."""
    key, value = key_of(Table.GATE, stored.row), b""
    try:
        value = store.read(key) or b""
        return decode(stored.row, value)
    except SpoolDamaged as error:
        log.error("%s: set aside", error, extra={"action": "quarantine"})
    try:
        folder.keep("gates", f"{key:x}", value)
    except (OSError, StateError) as error:
        log.error("can't keep a copy of row %#x: %s", key, error, extra={"action": "quarantine"})
    return None
