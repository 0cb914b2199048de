"""One gate under way: from its question to its last word.

    asked on disk → its run is known → no kill switch → sending on disk → the request → the verdict on disk → the agent hears

Nothing leaves before the disk has it, and `gate` is always what the disk has: who looks at a flow sees nothing that a crash
could take back. A flow is a task of its own, so that an agent which hangs up stops nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

import msgspec

from agentd.crashpoints import Point, reached
from agentd.errors import SpoolFull
from agentd.exchange import Context, Lost, Reference, Request, Unencodable
from agentd.gate.desk import Common, Desk, Way
from agentd.gate.sending import Outcome, Sender, Unsent
from agentd.gate.verdict import HeldBack, leave
from agentd.gating import Gate, Guarded, Question, Ruling, Word
from agentd.queued import DEAD, KNOWN
from agentd.spool.gaterows import GateRow, Step, Stored

log = logging.getLogger("agentd.gate")

_REASON_CHARS = 1000
_LAST_COMMIT_S = 1.0  # for the commit of what is certain of a gate that was cut off


def question_of(gate: GateRow) -> Question:
    """The question as an adapter wants it."""
    return Question(
        gate.gate, gate.gate_id, gate.local_id, gate.source.agent, gate.run_id,
        msgspec.json.decode(gate.request, type=dict[str, msgspec.Raw]), gate.asked_us,
    )  # fmt: skip


def decided(gate: GateRow, ruling: Ruling, now_us: int, *, proceed: bool = False, fail_open: bool = False) -> GateRow:
    """The gate with this ruling."""
    return msgspec.structs.replace(
        gate, step=Step.FINAL if ruling.final else Step.PENDING, word=ruling.word, proceed=proceed, fail_open=fail_open,
        reason=ruling.reason[:_REASON_CHARS], platform_id=ruling.platform_id or gate.platform_id, acted=ruling.acted,
        decided_us=now_us,
    )  # fmt: skip


class Flow:
    """See the module. `ask`, `conclude` and `wrap_up` are its task's; everybody else may look, and wait with `heard` and `last_word`."""

    def __init__(
        self,
        gate: GateRow,
        desk: Desk,
        common: Common,
        relayed: Callable[[Context], Request] | None = None,
        way: Way | None = None,
    ) -> None:
        """`gate` is new, or as the disk has it. `relayed` makes the request where its bytes are an SDK's own; `way` is its way out."""
        self.gate = gate
        self.on_disk = gate.step is Step.PENDING
        self.trouble = ""  # why the verdict could not be recorded
        self.desk = desk
        self.common = common
        self.adapter: Gate = desk.gates[gate.gate]
        self.question = question_of(gate)
        self.deadline = common.clock() + (gate.deadline_s if gate.step is Step.ASKED else 0.0)
        self.sender = Sender(
            desk, common, self.question, gate.idempotency_key, self.deadline, deadline_s=gate.deadline_s, way=way,
            relays=relayed is not None,
        )  # fmt: skip
        self.stuck = False  # it is pending, and there is no way to hear more of it
        self.watchers = 0
        self.looked_for = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.before: Stored | None = None  # what is on disk of an earlier try under the same key
        self._relayed = relayed
        self._begun = common.clock()
        self._announced = Step.PENDING if self.on_disk else None  # how far what was announced had come
        self._saving: asyncio.Future[None] | None = None
        self._waiting: set[asyncio.Future[None]] = set()

    def __repr__(self) -> str:
        return f"<Flow {self.gate.gate} {self.gate.gate_id} at {self.gate.destination}: {self.gate.step}>"

    # -- for those who wait ------------------------------------------------------------------------------------------

    @property
    def waited_s(self) -> float:
        return self.common.clock() - self._begun

    @property
    def is_under_way(self) -> bool:
        """Whether its end is near: the question is out, or somebody waits for it to go."""
        return bool(self._waiting) or (self.gate.step is Step.SENDING and not self.trouble)

    @property
    def is_final(self) -> bool:
        return self.gate.step is Step.FINAL

    async def heard(self) -> None:
        """Return when the platform's first word is on record, or why it can't be."""
        while self.gate.step in (Step.ASKED, Step.SENDING) and not self.trouble:
            await self._change()

    async def last_word(self) -> None:
        """Return when nothing more will come of itself. While somebody waits here a pending gate is asked after often.

        When agentd is stopping nobody waits for what is pending: the next start follows it.
        """
        self.watchers += 1
        self.looked_for.set()
        try:
            while not (self.gate.step is Step.FINAL or self.trouble or self.stuck or self._is_left_to_the_next_start):
                await self._change()
        finally:
            self.watchers -= 1

    @property
    def _is_left_to_the_next_start(self) -> bool:
        return self.common.draining and self.gate.step is Step.PENDING

    async def _change(self) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await future
        finally:
            self._waiting.discard(future)

    def tell(self) -> None:
        """Something of it has changed."""
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    # -- the first word ----------------------------------------------------------------------------------------------

    async def ask(self) -> None:
        """From the question to the platform's first word, on record."""
        try:
            outcome = await self._ask()
        except Unsent as unsent:
            outcome = unsent.outcome
        except SpoolFull:
            outcome = Unsent("the question could not be recorded (disk full), so it was not sent").outcome
            if not self.on_disk:
                self.refuse(outcome.ruling.reason)
                return
        await self.conclude(outcome)

    async def _ask(self) -> Outcome:
        self._check_circuit()
        needed = self.adapter.references(self.question)
        shelf, place = self.common.shelf, self.gate.destination
        unknown = [each for each in needed if shelf.reference(place, each.kind, each.local_id) is None]
        steps = [Step.ASKED]
        if isinstance(self.adapter, Guarded) or any(self._wait_s(reference) > 0 for reference in needed):
            await self._save(self.gate, steps)
            steps = []
            for reference in needed:
                await self._await_reference(reference)
            for reference in unknown:
                self._check_owner(reference)
        request = self._request()
        if isinstance(self.adapter, Guarded):
            await self._read_guard(self.adapter)
        self._check_circuit()
        word = Word.PENDING if self.sender.goes_on else self.gate.word
        await self._save(msgspec.structs.replace(self.gate, step=Step.SENDING, word=word), [*steps, Step.SENDING])
        reached(Point.GATE_SENDING)
        outcome = await self.sender.send(request)
        reached(Point.GATE_ANSWERED)
        return outcome

    def _check_circuit(self) -> None:
        if self.desk.breaker.shut(self.common.clock()):
            raise self.sender.behind_circuit()

    def _request(self) -> Request:
        context = self.context()
        try:
            return self._relayed(context) if self._relayed is not None else self.adapter.ask(self.question, context)
        except Unencodable as error:
            raise Unsent(f"not sent: {error}") from None
        except Exception as error:
            log.exception("%s: the adapter failed", self, extra={"action": "defect"})
            raise Unsent(f"not sent: defect in the {self.desk.platform.name} adapter: {error!r}") from None

    def context(self) -> Context:
        """What the adapter may ask while it encodes."""
        return Context(self.desk.agent_of, self._platform_id, options=self.desk.options, stamp=self.desk.stamp.members)

    def _platform_id(self, kind: str, local_id: str) -> str | None:
        ref = self.common.shelf.reference(self.gate.destination, kind, local_id)
        return local_id if ref is None else ref.platform_id

    # -- what has to be known first ----------------------------------------------------------------------------------

    def _wait_s(self, needed: Reference) -> float:
        """How long the reference may still be waited for; 0: it is as good as it will be. Raises Unsent if it is dead."""
        ref = self.common.shelf.reference(self.gate.destination, needed.kind, needed.local_id)
        left_s = self.sender.left_s()
        if ref is None:  # nobody has introduced it: after reference_wait it is taken to be the platform's own
            return min(self._begun + self.common.reference_wait_s - self.common.clock(), left_s)
        if ref.state == KNOWN:
            return 0.0
        if ref.state == DEAD:
            if needed.optional:
                return 0.0
            raise Unsent(f"{needed.kind} {needed.local_id} was refused for good; nothing was sent")
        if needed.optional:
            left_s = min(left_s, self._begun + self.common.reference_wait_s - self.common.clock())
        elif left_s <= 0:
            away = self.desk.way.unreachable
            raise Unsent(
                f"{needed.kind} {needed.local_id} is not known to the platform yet; nothing was sent",
                HeldBack.NO_CONNECTION if away else HeldBack.OTHER,
            )
        return left_s

    async def _await_reference(self, needed: Reference) -> None:
        """Raises Unsent where it is dead."""
        while (wait_s := self._wait_s(needed)) > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self.common.shelf.wait_for_names()

    def _check_owner(self, named: Reference) -> None:
        """What was known when the question came was checked then; this came to be known since. Raises Unsent."""
        if self.common.shelf.is_anothers(self.gate, named.kind, named.local_id):
            raise Unsent(f"{named.kind} {named.local_id} belongs to another; nothing was sent")

    async def _read_guard(self, guarded: Guarded) -> None:
        """Raises Unsent where the kill switch is thrown or can't be read."""
        sender = self.sender
        wait_s = min(self.adapter.traits.poll_timeout_s, sender.left_s())
        answer = await sender.exchange(guarded.guard(), wait_s, guard=True)
        ruling = sender.rule(lambda: guarded.rule_guard(answer, sender.attempt(answer)), answer)
        if ruling is not None:
            away = isinstance(answer, Lost) and not answer.sent
            raise Unsent(ruling.reason, HeldBack.NO_CONNECTION if away else HeldBack.OTHER, ruling.word)

    # -- the record --------------------------------------------------------------------------------------------------

    async def conclude(self, outcome: Outcome) -> None:
        """Record the platform's word. What finds no room is kept until it does, and nobody acts upon it before."""
        made = outcome.ruling.platform_id
        if made is not None and self.common.shelf.is_anothers(self.gate, self.gate.kind, made):
            outcome = self._withhold(outcome)
        ruling, now_us = outcome.ruling, self.common.now_us()
        may = leave(ruling, outcome.held_back, self.adapter.traits, open_mode=self.desk.open_mode)
        gate = decided(self.gate, ruling, now_us, proceed=may.proceed, fail_open=may.fail_open)
        if outcome.response:
            gate.response, gate.status = outcome.response, outcome.status
        gate.tries += outcome.tries
        await self.settle(gate)

    def _withhold(self, outcome: Outcome) -> Outcome:
        """Nothing was made of this question: who names another's idempotency key gets what the other one asked."""
        reason = "the platform answered with what another asked under the same key; that is nothing to go by"
        self.sender.answer = Lost(reason, sent=True)
        return Outcome(Ruling(Word.UNAVAILABLE, reason, acted=False), tries=outcome.tries)

    async def settle(self, gate: GateRow) -> None:
        """Put a word on disk, with its reference."""
        first = self.gate.step in (Step.ASKED, Step.SENDING)
        shelf = self.common.shelf
        if gate.platform_id is not None:
            shelf.learn(gate)
        elif gate.step is Step.FINAL:
            shelf.bury(gate)
        try:
            await self._save(gate, [] if self.on_disk or gate.step is Step.PENDING else [Step.ASKED], [gate.word])
        except SpoolFull:
            self._give_up("the verdict could not be recorded (disk full)")
            await self._keep(gate)
        reached(Point.GATE_SETTLED)
        if first:
            self.common.observe(gate.destination, gate.gate, self.waited_s)

    async def _keep(self, gate: GateRow) -> None:
        future = self.common.shelf.keep(gate, [gate.word])
        future.add_done_callback(lambda done: self._saved(done, gate))
        await asyncio.shield(future)

    def refuse(self, reason: str) -> None:
        """Nothing of it is on disk, nothing will be, and so nothing is sent."""
        self._complain(reason)
        self.common.shelf.bury(self.gate)
        self.gate = decided(self.gate, Ruling(Word.UNAVAILABLE, reason, acted=False), self.common.now_us())
        self.desk.counts[self.gate.gate, self.gate.word.value] += 1
        self.common.forgotten(self.gate.gate_id, self.before)
        self.tell()

    def _give_up(self, reason: str) -> None:
        self.trouble = reason
        self._complain(reason)
        self.tell()

    def _complain(self, reason: str) -> None:
        more = self.common.unrecorded.more(reason, self.common.clock())
        if more is not None:
            log.error(
                "%r: %s%s", self, reason, f" (and {more} more since the last line)" if more else "",
                extra={"action": "gate_unrecorded", "destination": self.gate.destination},
            )  # fmt: skip

    def announce_pending(self) -> None:
        """The agent goes without the platform's decision."""
        if self.gate.may_be_left:
            self._announce(self.gate)

    def _announce(self, gate: GateRow) -> None:
        """Once while it is open, and once when it has its last word."""
        if self._announced is Step.FINAL or (self._announced is not None and gate.step is not Step.FINAL):
            return
        self._announced = gate.step
        self.desk.counts[gate.gate, gate.word.value] += 1
        self.common.announce(gate, self.waited_s)

    async def _save(self, gate: GateRow, steps: list[Step], words: list[Word] | None = None) -> None:
        introduced = (
            [] if self.on_disk or gate.step in (Step.PENDING, Step.FINAL) else self.common.shelf.introduce(gate)
        )
        future = self.common.shelf.save(gate, [*steps, *(words or ())], introduced)
        future.add_done_callback(lambda done: self._saved(done, gate))
        self._saving = future
        await asyncio.shield(future)

    def _saved(self, done: asyncio.Future[None], gate: GateRow) -> None:
        if done.cancelled() or done.exception() is not None:
            return
        self.gate, self.on_disk, self.trouble = gate, True, ""
        self.common.recorded(gate)
        self.tell()
        if gate.step is Step.FINAL:  # in this very turn: who hears the verdict may end its run next
            self._announce(gate)

    def told(self) -> None:
        """An SDK has been answered; what it was owed is paid (see `GateRow.owed`)."""
        if self._saving is not None and not self._saving.done():
            self._saving.add_done_callback(lambda _done: self.told())
        elif self.gate.owed and self.on_disk and not self.trouble and self.task is not None and not self.task.done():
            self.gate.owed = b""  # here at once: what is recorded next comes from this row
            gate = msgspec.structs.replace(self.gate)
            self._saving = self.common.shelf.save(gate, [])
            self._saving.add_done_callback(lambda done: self._saved(done, gate))

    async def wrap_up(self, why: str) -> None:
        """The task has ended before its last word: say what is certain, once it is on disk. What is pending stays so."""
        try:
            async with asyncio.timeout(_LAST_COMMIT_S):
                await self._wrap_up(why)
        except TimeoutError:
            self._give_up(f"{why}, and what is certain of it could not be recorded in time")
        self.stuck = True
        self.tell()

    async def _wrap_up(self, why: str) -> None:
        if self._saving is not None and not self._saving.done():
            with contextlib.suppress(SpoolFull):
                await asyncio.shield(self._saving)
        if self.gate.step in (Step.ASKED, Step.SENDING) and not self.trouble:  # else its verdict waits for room
            ruling = unfinished(self.gate, why, left=self.sender.left)
            gate = decided(self.gate, ruling, self.common.now_us())
            self.common.shelf.bury(gate)
            await self._keep(gate)


def unfinished(gate: GateRow, why: str, *, left: bool) -> Ruling:
    """What is certain of a gate that was cut off: before its request could leave, or after."""
    if gate.step is Step.ASKED or not left:
        return Ruling(Word.UNAVAILABLE, f"{why} before anything was sent", acted=False)
    return Ruling(Word.UNAVAILABLE, f"{why} before the answer came; it may have acted", acted=True)
