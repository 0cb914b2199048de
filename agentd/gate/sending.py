"""Sending a gate's question: through the circuit, within its deadline, and again only where that can't act twice."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec
from msgspec import Struct

from agentd.exchange import GATE_ANSWER_BYTES, Attempt, Lost, Request, Response, Sending, told_at
from agentd.gate.desk import Common, Desk, Way
from agentd.gate.verdict import HeldBack
from agentd.gating import Gate, Question, Ruling, Word
from agentd.wire import deeper_than

log = logging.getLogger("agentd.gate")

_MAX_DEPTH = 200  # of an answer that is handed on
_LEAST_REST_S = 0.05
_REPEAT_S = 0.1  # before the first repeat of a question whose answer was lost; doubles


class Outcome(Struct, frozen=True):
    """What is to be recorded."""

    ruling: Ruling
    held_back: HeldBack = HeldBack.NOT
    response: bytes = b""
    status: int = 0  # of the answer whose body `response` is
    tries: int = 0


class Unsent(Exception):  # noqa: N818 - a way for a gate to end, not an error
    """Nothing of the question has left, and nothing will."""

    def __init__(self, reason: str, held_back: HeldBack = HeldBack.OTHER, word: Word = Word.UNAVAILABLE) -> None:
        super().__init__(reason)
        self.outcome = Outcome(Ruling(word, reason, acted=False), held_back)


class Sender:
    """What a flow sends with. `left` says whether a byte of the question may have left, `answer` is the platform's to it."""

    def __init__(
        self,
        desk: Desk,
        common: Common,
        question: Question,
        key: str,
        deadline: float,
        *,
        deadline_s: float,
        way: Way | None,
        relays: bool,
    ) -> None:
        """`key` is the question's idempotency key, `deadline` on the common clock, `way` the question's own way out if it has one.

        `deadline_s` is all the time that was given to it. `relays`: the question's bytes are an SDK's own, which repeats them itself, if at all.
        """
        self.left = False
        self.answer: Response | Lost | None = None
        self.desk = desk
        self.common = common
        self.question = question
        self.adapter: Gate = desk.gates[question.gate]
        self.deadline = deadline
        self._deadline_s = deadline_s
        self._key = key
        self._way = way or desk.way
        self._relays = relays

    def __repr__(self) -> str:
        return f"<Sender of {self.question.gate} {self.question.gate_id} at {self.desk.name}>"

    @property
    def goes_on(self) -> bool:
        """Whether the answer is waited for when the deadline is over. An SDK that asks itself has a time limit of its own."""
        return self.adapter.traits.answer_s is not None and not self._relays

    def left_s(self) -> float:
        """What is left of the deadline."""
        return self.deadline - self.common.clock()

    async def exchange(
        self, request: Request, timeout_s: float, way: Way | None = None, key: str = "", *, guard: bool = False
    ) -> Response | Lost:
        """One request through the circuit, or (`guard`) the read of a kill switch.

        Raises Unsent where it may not go out, or there is no time for it.
        """
        if timeout_s <= 0:
            raise Unsent("the deadline was over before anything was sent")
        breaker = self.desk.breaker
        passed = breaker.begin(self.common.clock())
        if passed is None:
            raise self.behind_circuit()
        begun = self.common.clock()
        try:
            answer = await self.fetch(request, timeout_s, way, key)
        except BaseException:
            breaker.give_up(passed)
            raise
        now = self.common.clock()
        hurried = now - begun >= timeout_s and self._is_hurry(timeout_s, guard=guard)
        if breaker.end(passed, now, self.common.share(), answer, hurried=hurried, guard=guard):
            call = "kill switch" if guard else self.adapter.traits.call
            log.warning(
                "%s: circuit open, the last to fail was %s: %s", self.desk.name, call, breaker.reason,
                extra={"action": "circuit_open", "destination": self.desk.name},
            )  # fmt: skip
        return answer

    def behind_circuit(self) -> Unsent:
        """Why nothing is sent. Behind a kill switch that could not be read nobody goes on, whatever the fail mode."""
        breaker = self.desk.breaker
        held_back = HeldBack.OTHER if breaker.unread else HeldBack.CIRCUIT
        return Unsent(f"circuit open: {breaker.reason}; nothing was sent", held_back)

    def _is_hurry(self, timeout_s: float, *, guard: bool) -> bool:
        """Whether so little time tells nothing about the platform: the agent gave it less than is usual, or little is left."""
        traits = self.adapter.traits
        usual_s = min(traits.poll_timeout_s, traits.deadline_s) if guard else traits.answer_s or traits.deadline_s
        given_s = timeout_s if self.goes_on else self._deadline_s
        return given_s < usual_s or timeout_s < usual_s / 2

    async def fetch(self, request: Request, timeout_s: float, way: Way | None = None, key: str = "") -> Response | Lost:
        """One request, circuit or not. A look has no key: it may be a POST too, and would get the first answer again."""
        desk = self.desk
        desk.spend()
        now_s, stamp = self.common.now_us() / 1e6, desk.stamp
        sending = Sending(desk.api_key, key, now_s, request.body, desk.signing_secret, stamp.environment)
        headers = {name: value for name, value in desk.platform.headers(sending).items() if value}
        headers = {**stamp.headers, **headers}
        return await (way or desk.way).send(request, headers, timeout_s=timeout_s, limit=GATE_ANSWER_BYTES)

    async def send(self, request: Request) -> Outcome:
        """The question, again where that can't act twice: turned away for a while, or its answer lost and the key protects."""
        outcome: Outcome | None = None
        maybe_taken = reached = False
        tries = 0
        while True:
            try:
                self.left = True
                self.answer = answer = await self.exchange(request, self._wait_s(), self._way, self._key)
            except Unsent:
                self.left = maybe_taken
                if outcome is None:
                    raise
                return outcome
            tries += 1
            ruling = self._ruling(answer, maybe_taken=maybe_taken)
            reached = reached or isinstance(answer, Response) or answer.sent
            maybe_taken = maybe_taken or (ruling.word is Word.UNAVAILABLE and ruling.acted)
            held_back = HeldBack.NOT if reached else HeldBack.NO_CONNECTION
            outcome = Outcome(ruling, held_back, json_of(answer), status_of(answer), tries)
            wait_s = self._rest_s(ruling, answer, tries)
            if wait_s is None:
                return outcome
            await asyncio.sleep(wait_s)

    def _wait_s(self) -> float:
        """How long to wait for the answer. It begins within the deadline, and need not end there."""
        left_s = self.left_s()
        return self.adapter.traits.answer_s or left_s if self.goes_on and left_s > 0 else left_s

    def _ruling(self, answer: Response | Lost, *, maybe_taken: bool) -> Ruling:
        """What the answer means. That an earlier try may have acted is not undone by a later one that did not."""
        attempt = self.attempt(answer, maybe_taken=maybe_taken)
        ruling = self.rule(lambda: self.adapter.rule(self.question, answer, attempt), answer)
        assert ruling is not None  # noqa: S101 - a gate always rules
        if maybe_taken and ruling.word is Word.UNAVAILABLE:
            return msgspec.structs.replace(ruling, acted=True)
        return ruling

    def rule(self, rule: Callable[[], Ruling | None], answer: Response | Lost) -> Ruling | None:
        """What the adapter says; `unavailable` where it falls over the answer."""
        try:
            return rule()
        except Exception as error:
            log.exception("%s: the adapter failed", self, extra={"action": "defect"})
            acted = isinstance(answer, Response) or answer.sent
            return Ruling(Word.UNAVAILABLE, f"defect in the {self.desk.platform.name} adapter: {error!r}", acted=acted)

    def attempt(self, answer: Response | Lost, *, maybe_taken: bool = False) -> Attempt:
        """The light in which the answer is to be read."""
        return Attempt(told_at(answer, self.common.now_us() / 1e6), maybe_taken)

    def _rest_s(self, ruling: Ruling, answer: Response | Lost, tries: int) -> float | None:
        """When the same may be asked again; None if it may not, or there would be no time left to answer."""
        repeat = self.adapter.traits.repeat
        wait_s: float | None = None
        if self._relays or ruling.word is not Word.UNAVAILABLE:
            return None
        if ruling.again_s is not None and (repeat or not ruling.acted):
            wait_s = max(ruling.again_s, _LEAST_REST_S)
        elif isinstance(answer, Lost) and answer.sent and repeat:
            wait_s = _REPEAT_S * 2.0 ** min(tries - 1, 5) * (1 + self.common.share()) / 2
        return wait_s if wait_s is not None and wait_s < self.left_s() else None


def status_of(answer: Response | Lost) -> int:
    return 0 if isinstance(answer, Lost) else answer.status


def json_of(answer: Response | Lost) -> bytes:
    """The platform's answer if it is JSON, to be handed on as it is; empty otherwise."""
    if isinstance(answer, Lost):
        return b""
    try:
        answer.body.decode()
        msgspec.json.decode(answer.body)
    except (ValueError, RecursionError):
        return b""
    return answer.body if not deeper_than(answer.body, _MAX_DEPTH) else b""
