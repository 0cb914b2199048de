"""The keeper: takes questions, keeps every gate on record, and answers from the record whoever asks again.

    keeper = Keeper(desks, shelf, …)
    await keeper.start()           # what a crash cut off is ruled upon, what is pending is followed on
    await keeper.ask(body, peer, grant)
    await keeper.close()           # what is under way ends with what is certain of it

Which gates there are says the book, how one goes says its flow; the keeper decides who may ask what and joins the two. Between
looking up a key and putting its gate into the book nothing is awaited: that is why a key acts once.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import random
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any

import msgspec
from msgspec import Struct

from agentd.ageing import Clocks
from agentd.exchange import Context, Lost, Request, Response
from agentd.gate import answers, following
from agentd.gate.asking import Asking, read_asking, read_resolution
from agentd.gate.book import may_ask_again, owner_of
from agentd.gate.desk import Common, Desk, Shelf, Way
from agentd.gate.flow import Flow
from agentd.gate.leftovers import Leftovers
from agentd.gate.owed import Owed, answer_of
from agentd.gate.reception import Reception
from agentd.gate.register import Register, is_own
from agentd.gate.resolving import Resolver
from agentd.gating import Word
from agentd.identity import Uuid7
from agentd.intake import GateRefusal, Grant, Peer
from agentd.intake.admit import Limits
from agentd.redact.build import no_redactor
from agentd.redact.engine import Redactor
from agentd.spool.gaterows import GateRow, Step, Stored, brief_of
from agentd.standin import Asked

log = logging.getLogger("agentd.gate")

_GRACE_S = 1.0  # for the commit of a verdict that came with the deadline
_PRUNE_EVERY_S = 30.0
_EVERYTHING = Grant()
_RELAY_S = 30.0  # the least that a gate gets whose SDK has a time limit of its own


class Passed(Struct, frozen=True):
    """What came of an SDK's own gate call: the platform's answer as it came (None: nothing was sent), and the record.

    A verdict that is not on record is no answer: then `answer` is Lost, whatever the platform said.
    """

    answer: Response | Lost | None
    gate: GateRow
    verdict: dict[str, Any]

    @property
    def from_record(self) -> bool:
        """Whether it was asked before the start, and nothing went out now."""
        return "repeated" in self.verdict

    @property
    def reason(self) -> str:
        """Why there is no answer, where there is none."""
        return str(self.verdict["reason"])


class Keeper:
    """See the module, and `agentd.intake.Gates`."""

    def __init__(
        self,
        desks: Iterable[Desk],
        shelf: Shelf,
        limits: Limits,
        *,
        reference_wait_s: float,
        remember_s: float,
        follow_s: float,
        open_bytes: int,
        index_bytes: int,
        announce: Callable[[GateRow, dict[str, Any]], None] = lambda _gate, _payload: None,
        trusted_uids: Iterable[int] = (),
        new_id: Callable[[], bytes] | None = None,
        clock: Callable[[], float] = time.monotonic,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
        clocks: Clocks | None = None,
        share: Callable[[], float] = random.random,
        redactor: Redactor | None = None,
    ) -> None:
        """`announce(gate, payload)` queues the event `gate.<name>` of a gate's run.

        `clocks` judges the stamps of `now_us` (None: by `clock` alone). `open_bytes` is what gates under way may take in memory, `index_bytes` what knowing of all the others may take.
        """
        self.desks = {desk.name: desk for desk in desks}
        self._register = register = Register(shelf, open_bytes, index_bytes)
        self._shelf = shelf
        self.redactor = redactor or no_redactor()
        self._reception = Reception(
            self.desks, shelf, limits, new_id or Uuid7(), now_us, frozenset(trusted_uids), self.redactor
        )
        self._announce_event = announce
        self._remember_us = int(remember_s * 1e6)
        self._now_us = now_us
        self._clock = clock
        self._clocks = clocks or Clocks(now_us, clock)
        self._common = Common(
            shelf, clock, now_us, self._clocks.age_us, share, reference_wait_s, follow_s,
            register.recorded, register.forgotten, self._announce,
        )  # fmt: skip
        self._away: dict[str, Desk] = {}  # left the configuration since the start
        self._owed = Owed()
        self._resolver = Resolver(register, self._common, self._begin)
        self._leftovers = Leftovers(self.desks, register, self._common, self._begin, self._announce_closed)
        self._pruned = -math.inf
        self._closed = False

    def __repr__(self) -> str:
        return f"<Keeper {len(self._register.flows)} under way, {len(self._register.book)} on record>"

    # -- life --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take over what the disk has: rule upon what was cut off, follow what is pending. Call once, on the event loop."""
        for stored in self._shelf.stored():
            self._register.book.put(stored)
        await self._leftovers.take_over()
        self._owed.load(self._register.book)
        strays = self._shelf.bury_strays([stored.brief.gate_id for stored in self._register.open()])
        if strays:
            log.error("%d names of gates that are not on record any more", strays, extra={"action": "gates_lost"})

    def _announce_closed(self, gate: GateRow) -> None:
        """What was ruled upon without a flow."""
        self._announce(gate, 0.0)
        if (desk := self.desks.get(gate.destination)) is not None:
            desk.counts[gate.gate, gate.word.value] += 1

    def _begin(self, flow: Flow) -> None:
        self._register.flows[flow.gate.gate_id] = flow
        flow.task = asyncio.create_task(_run(flow), name=f"gate {flow.gate.gate_id}")
        flow.task.add_done_callback(lambda task: None if task.cancelled() else self._register.ended(flow))

    def follow(
        self,
        desks: Iterable[Desk],
        limits: Limits,
        trusted_uids: Iterable[int],
        *,
        reference_wait_s: float,
        remember_s: float,
        follow_s: float,
    ) -> None:
        """By these from now on. Gates at a desk that is gone go on as they are: it stays theirs until it comes back."""
        self._reception.follow(limits, frozenset(trusted_uids))
        self._remember_us = int(remember_s * 1e6)
        self._common.reference_wait_s, self._common.follow_s = reference_wait_s, follow_s
        self._register.book.follow(self._shelf.max_bytes)
        new = {desk.name: desk for desk in desks}
        for name in [name for name in self.desks if name not in new]:
            self._away[name] = self.desks.pop(name)
        for name, desk in new.items():
            known = self.desks.get(name) or self._away.get(name)
            if known is not None and known.identity == desk.identity:
                known.follow(desk)
            is_back = name not in self.desks
            self.desks[name] = known if known is not None and known.identity == desk.identity else desk
            self._away.pop(name, None)
            if is_back:
                self._leftovers.returned(self.desks[name], self._resolver.is_at)

    def tick(self) -> None:
        """Forget what is old; about once a second."""
        now = self._clock()
        if now - self._pruned >= _PRUNE_EVERY_S:
            self._pruned = now
            self._leftovers.expire(self._resolver.is_at)
            self._shelf.drop(self._register.book.prune(self._clocks.ages(), self._remember_us))

    @property
    def under_way(self) -> int:
        """Gates whose end is worth waiting for."""
        return sum(flow.is_under_way for flow in self._register.flows.values())

    def drain(self) -> None:
        """Agentd is stopping: who waits for what is pending, now or from now on, hears that it is."""
        self._common.draining = True
        for flow in self._register.flows.values():
            flow.tell()

    async def close(self) -> None:
        """End what is under way with what is certain of it, and let everybody who waits know. Takes no more questions."""
        self._closed = True
        flows = list(self._register.flows.values())
        tasks = [flow.task for flow in flows if flow.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(flow.wrap_up("agentd was stopped") for flow in flows))
        self._register.flows.clear()

    # -- asking ------------------------------------------------------------------------------------------------------

    async def ask(self, body: bytes, peer: Peer, grant: Grant) -> dict[str, Any]:
        """See `agentd.intake.Gates`."""
        asking = read_asking(body, self._reception.limits)
        desk, agent = self._reception.place(asking, peer, grant)
        before = self._before(asking, desk, agent, peer)
        while before is not None and await self._resolver.quiet(before.brief.gate_id):
            before = self._before(asking, desk, agent, peer)
        flow = None if before is None else self._register.flow(before.brief.gate_id)
        if before is not None and flow is None and not may_ask_again(before.brief):
            return answers.verdict_of(await self._register.load(before), repeated=True)
        until = self._clock() + (
            desk.gates[asking.gate].traits.deadline_s if asking.deadline is None else asking.deadline
        )
        repeated = flow is not None
        if flow is None:
            again = None if before is None else before.brief.gate_id
            gate = self._reception.gate(asking, desk, agent, peer, origin="http", grant=grant, again=again)
            self._reception.check_fields(gate, desk, peer, grant)
            self._reception.remember(gate.gate_id, asking)
            flow = self._put_on_record(gate, desk, before)
        return await self._answer(flow, until, repeated=repeated)

    def _before(self, asking: Asking, desk: Desk, agent: str, peer: Peer) -> Stored | None:
        """The gate that was asked under the same key. Raises GateRefusal where it was another question."""
        if self._closed:
            raise GateRefusal(503, "draining", "agentd is stopping")
        before = None if asking.key is None else self._register.book.under(owner_of(peer.uid, peer.token), asking.key)
        if before is not None and self._reception.is_another(before.brief, asking, desk, agent):
            raise GateRefusal(
                409,
                "gate_key_conflict",
                "$.key: was used for another question (gate, destination, agent, run or request)",
            )
        return before

    def _put_on_record(
        self,
        gate: GateRow,
        desk: Desk,
        before: Stored | None = None,
        relayed: Callable[[Context], Request] | None = None,
        way: Way | None = None,
    ) -> Flow:
        """The flow of a new gate, begun; one that there is no room for has ended already."""
        gate.row = self._shelf.new_row() if before is None else before.row
        flow = Flow(gate, desk, self._common, relayed, way)
        flow.before = before
        size = len(gate.request)
        owner = owner_of(gate.source.uid, gate.token)
        if self._shelf.full or not self._register.book.room(size, owner):
            what = "the disk is full" if self._shelf.full else "the gates on record have no more room"
            flow.refuse(f"the question could not be recorded ({what}), so it was not sent")
            return flow
        self._shelf.drop(self._register.book.overflow(size))
        self._register.book.record(gate)
        self._begin(flow)
        return flow

    async def _answer(self, flow: Flow, until: float, *, repeated: bool) -> dict[str, Any]:
        """What is on record by then. A verdict that is just being written is waited for a little longer."""
        await self._wait(flow.last_word(), until)
        if flow.gate.step in (Step.ASKED, Step.SENDING) and not flow.gate.may_be_left:
            await self._wait(flow.heard(), until + _GRACE_S)
        if not flow.trouble:
            flow.announce_pending()
        return answers.verdict_of(flow.gate, flow.trouble, repeated=repeated)

    async def _wait(self, change: Coroutine[Any, Any, None], until: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, until - self._clock())):
                await change

    async def pass_on(
        self,
        destination: str,
        gate_name: str,
        asked: Asked,
        request: Request | Callable[[Context], Request],
        peer: Peer,
        *,
        deadline_s: float | None = None,
        way: Way | None = None,
        owed: bytes = b"",
    ) -> Passed:
        """The same record around an SDK's own request, which goes out as it is and never twice; returns its first word.

        A callable makes the request once the run is known, so that it may name the platform's ids. `way` is the way out for
        this one request (None: the destination's own). `owed` is the digest of what the SDK sent: what was sent before the
        start and is owed an answer is not sent again. Raises GateRefusal (422, 503), KeyError for a gate that the destination
        does not have.
        """
        if self._closed:
            raise GateRefusal(503, "draining", "agentd is stopping")
        desk = self.desks[destination]
        traits = desk.gates[gate_name].traits
        wait_s = max(traits.deadline_s, traits.poll_timeout_s, _RELAY_S) if deadline_s is None else deadline_s
        before = self._owed.take(owed, self._common.age_us) if owed else None
        if before is not None:
            return await self._pass_again(before, wait_s)
        asking = Asking(
            gate=gate_name,
            request=msgspec.Raw(msgspec.json.encode(asked.request)),
            run_id=asked.run_id,
            deadline=wait_s,
        )
        self._reception.check_run(desk, asked.run_id, asked.agent, peer)
        gate = self._reception.gate(asking, desk, asked.agent, peer, origin="sdk")
        gate.relayed, gate.owed = True, owed
        flow = self._put_on_record(gate, desk, None, request if callable(request) else lambda _context: request, way)
        if way is None:
            await self._wait(flow.heard(), flow.deadline + _GRACE_S)
        else:  # it has a time limit of its own; what it streams may take longer than any deadline
            await flow.heard()
        flow.announce_pending()
        verdict = answers.verdict_of(flow.gate, flow.trouble)
        if flow.gate.step in (Step.PENDING, Step.FINAL) and not flow.trouble:
            return Passed(flow.sender.answer, flow.gate, verdict)
        sent = flow.sender.answer is not None or flow.gate.step is Step.SENDING
        return Passed(Lost(verdict["reason"], sent=True) if sent else None, flow.gate, verdict)

    async def _pass_again(self, before: Stored, wait_s: float) -> Passed:
        """What the record has of an SDK's question from before the start; what is pending there is asked after."""
        gate_id = before.brief.gate_id
        flow = self._register.flow(gate_id)
        if flow is not None:
            await self._wait(flow.last_word(), self._clock() + wait_s)
        gate = flow.gate if flow is not None else await self._register.load(self._register.book.get(gate_id) or before)
        trouble = "" if flow is None else flow.trouble
        log.info(
            "%s gate %s: asked again after a restart, answered from the record", gate.gate, gate_id,
            extra={"action": "gate_repeated", "destination": gate.destination},
        )  # fmt: skip
        answer = Lost(trouble, sent=True) if trouble else answer_of(gate)
        return Passed(answer, gate, answers.verdict_of(gate, trouble, repeated=True))

    def told(self, gate: GateRow) -> None:
        """An SDK has its answer: the same bytes are another question from now on, also after the next start."""
        flow, stored = self._register.flow(gate.gate_id), self._register.book.get(gate.gate_id)
        if flow is not None:
            flow.told()
            return
        is_as_heard = stored is not None and stored.brief == brief_of(gate) and not self._resolver.is_at(gate.gate_id)
        if gate.owed and is_as_heard:
            paid = msgspec.structs.replace(gate, owed=b"")
            self._shelf.save(paid, []).add_done_callback(lambda done: self._paid(done, paid))

    def _paid(self, done: asyncio.Future[None], gate: GateRow) -> None:
        if not (done.cancelled() or done.exception()):  # where there was no room it stays owed
            self._register.recorded(gate)

    # -- looking -----------------------------------------------------------------------------------------------------

    async def look(
        self, gate_id: str, wait_s: float, viewer: Peer, *, admin: bool, grant: Grant = _EVERYTHING
    ) -> dict[str, Any] | None:
        """See `agentd.intake.Gates`."""
        stored = self._register.book.get(gate_id)
        if stored is None or not (admin or (is_own(stored, viewer) and self._is_within(stored, grant))):
            return None
        flow = self._register.flow(gate_id)
        if flow is not None and wait_s > 0:
            await self._wait(flow.last_word(), self._clock() + wait_s)
            kept = self.redactor.question(
                flow.gate.request
            )  # as it will be on record; the platform's word is the asker's
            return answers.facts_of(flow.gate, flow.trouble) | {"request": msgspec.Raw(kept.body)}
        seen = await self._register.see(stored)
        return None if seen is None else answers.facts_of(*seen)

    async def listing(
        self, state: str, limit: int, viewer: Peer, *, admin: bool, grant: Grant = _EVERYTHING
    ) -> list[dict[str, Any]]:
        """See `agentd.intake.Gates`."""
        own = self._register.own(state, viewer, admin=admin)
        found = list(itertools.islice((stored for stored in own if admin or self._is_within(stored, grant)), limit))
        shown = []
        for stored in found:  # one whole row in memory at a time
            seen = await self._register.see(stored)
            shown += [] if seen is None else [answers.summary_of(*seen)]
        return shown

    def _is_within(self, stored: Stored, grant: Grant) -> bool:
        """Whether it is of an agent and a destination that the grant covers: a uid may hold several tokens."""
        desk = self.desks.get(stored.brief.destination)
        agent = stored.brief.agent or (desk.default_agent if desk is not None else "")
        return grant.allows_agent(agent) and grant.allows_destination(stored.brief.destination)

    async def resolve(self, gate_id: str, body: bytes, admin: Peer) -> dict[str, Any] | None:
        """See `agentd.intake.Gates`."""
        found, stored = read_resolution(body), self._register.book.get(gate_id)
        return None if stored is None else answers.facts_of(await self._resolver.resolve(stored, found, admin))

    # -- what flows tell ---------------------------------------------------------------------------------------------

    def _announce(self, gate: GateRow, waited_s: float) -> None:
        if gate.run_id is not None:
            self._announce_event(gate, answers.payload_of(gate, waited_s))

    def observe(self, observer: Callable[[str, str, float], None]) -> None:
        """`observer(destination, gate, seconds)` hears how long each first word took."""
        self._common.observe = observer

    def verdicts(self) -> Iterator[tuple[str, str, str, int]]:
        """(destination, gate, verdict, count) since the start."""
        for desk in self.desks.values():
            for (gate, word), count in sorted(desk.counts.items()):
                yield desk.name, gate, word, count

    def status(self, destination: str) -> dict[str, Any]:
        """A destination's gates: those under way and on record open, verdicts since the start, and its circuit."""
        desk = self.desks[destination]
        counts = dict.fromkeys((word.value for word in Word), 0)
        for (_, word), count in desk.counts.items():
            counts[word] += count
        circuit = {"circuit": "open" if desk.breaker.is_open else "closed", "reason": desk.breaker.reason or None}
        return {"open": len(self._register.open(destination)), **counts, **circuit}


async def _run(flow: Flow) -> None:
    """From wherever it is to its last word."""
    try:
        if flow.gate.step is not Step.PENDING:
            await flow.ask()
        if flow.gate.step is Step.PENDING:
            await following.follow(flow)
    except Exception:
        log.exception("%r failed", flow, extra={"action": "defect"})
        await flow.wrap_up("a defect of agentd ended it")
