"""What waits for a person at the emulated AgentOS: questions of an agent's own code, and a hosted agent's questions and approvals.

Sources: PyPI `pyagentos-sdk` 0.4.0 (run.py, _control.py) and https://agentos-ai.dev/docs/approvals. Known from there: a POST without
`request_id` is a new question each time; it is held back for at most 270 s and asked for again with the same body; 408 if nobody
answers in time, 409 if it is cancelled, as it is with its run; an approval that nobody decides within 24 h is rejected.
Chosen here: that a question asked for again has to be the same one (400), and that one of a run that has ended is a conflict.
Used by the face in `agentos` alone.
"""

from __future__ import annotations

import math
import uuid
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Struct

from agentd.sandbox._agentos_bodies import AgentosSwitches, QuestionBody, Refused
from agentd.sandbox._agentos_store import Run, given
from agentd.sandbox._agentos_wire import refusal, said
from agentd.sandbox.faces import Answer, Held
from agentd.units import rfc3339

State = Literal["pending", "answered", "cancelled", "timeout", "approved", "rejected"]
Kind = Literal["question", "approval"]

_APPROVAL_S = 24 * 3600.0
VERBS: dict[Kind, dict[str, State]] = {
    "question": {"answer": "answered", "cancel": "cancelled"},
    "approval": {"approve": "approved", "reject": "rejected"},
}
_EXPIRED: dict[Kind, State] = {"question": "timeout", "approval": "rejected"}


class Waiting(Struct):
    """A question or an approval. `text` is what was answered, or the note of a decision."""

    id: str
    kind: Kind
    run_id: str
    what: str  # the prompt, or the tool that is to be called
    asked_at: float
    until: float  # seconds since 1970; a hosted agent's question waits for ever
    more: dict[str, Any] = {}
    pauses: bool = False  # a hosted run goes on when this is settled
    state: State = "pending"
    text: str = ""
    posts: int = 1

    def shown(self) -> dict[str, Any]:
        """For people: everything."""
        until = {} if math.isinf(self.until) else {"until": rfc3339(self.until)}
        fields = {"id": self.id, "kind": self.kind, "status": self.state, "what": self.what, "run_id": self.run_id}
        return fields | self.more | {"text": self.text, "posts": self.posts, "asked_at": rfc3339(self.asked_at)} | until


class People:
    """What waits and what has waited. Invariant: what is settled stays as it was settled."""

    def __init__(self) -> None:
        self.known: dict[str, Waiting] = {}
        self._open: dict[str, dict[str, Waiting]] = {}  # run → what waits in it, the oldest first

    # -- what is asked ----------------------------------------------------------------------------------------------------------

    def question(self, run_id: str, prompt: str, now: float, timeout_s: float, **more: Any) -> Waiting:
        """A new question of an agent's own code."""
        return self._add(Waiting(str(uuid.uuid4()), "question", run_id, prompt, now, now + timeout_s, given(**more)))

    def approval(self, run_id: str, tool: str, now: float, **more: Any) -> Waiting:
        """A new approval of a tool's call, for which a hosted run pauses."""
        until = now + _APPROVAL_S
        return self._add(Waiting(str(uuid.uuid4()), "approval", run_id, tool, now, until, more, pauses=True))

    def hosted_question(self, run_id: str, question: str, now: float, **more: Any) -> Waiting:
        """A new question for which a hosted run pauses, however long."""
        return self._add(Waiting(str(uuid.uuid4()), "question", run_id, question, now, math.inf, more, pauses=True))

    def _add(self, waiting: Waiting) -> Waiting:
        self.known[waiting.id] = waiting
        self._open.setdefault(waiting.run_id, {})[waiting.id] = waiting
        return waiting

    def pending(self, run_id: str) -> list[Waiting]:
        """What waits in a run, the oldest first."""
        return list(self._open.get(run_id, {}).values())

    def pause(self, run_id: str) -> Waiting | None:
        """What a hosted run has paused for."""
        return next((waiting for waiting in self.pending(run_id) if waiting.pauses), None)

    def all_pending(self, kind: Kind) -> list[Waiting]:
        """Everything of a kind that waits, the newest first."""
        return [
            waiting for waiting in reversed(self.known.values()) if (waiting.kind, waiting.state) == (kind, "pending")
        ]

    def of_run(self, run_id: str) -> list[Waiting]:
        """Everything that a run has ever waited for."""
        return [waiting for waiting in self.known.values() if waiting.run_id == run_id]

    def find(self, item_id: str) -> Waiting | None:
        """By its id, or the oldest that waits in the run of that id."""
        return self.known.get(item_id) or next(iter(self.pending(item_id)), None)

    def offered(self, run_id: str) -> dict[str, Any]:
        """What a run's row says of the oldest that waits in it: the verbs, and which of them take a text."""
        oldest = next(iter(self.pending(run_id)), None)
        if oldest is None:
            return {"waits_for": None, "verbs": []}
        texts = ["answer"] if oldest.kind == "question" else []
        return {"waits_for": f"{oldest.kind}: {oldest.what}", "verbs": list(VERBS[oldest.kind]), "with_text": texts}

    def counts(self) -> dict[str, dict[str, int]]:
        """Questions and approvals by their state."""
        found = Counter((waiting.kind, waiting.state) for waiting in self.known.values())
        return {f"{kind}s": {state: count for (of, state), count in found.items() if of == kind} for kind in VERBS}

    # -- what becomes of it -----------------------------------------------------------------------------------------------------

    def settle(self, waiting: Waiting, state: State, text: str = "") -> None:
        """What was decided. Raises Refused if something was decided before."""
        if waiting.state != "pending":
            raise Refused(409, f"{waiting.kind} {waiting.id} is {waiting.state} already")
        waiting.state, waiting.text = state, text
        del self._open[waiting.run_id][waiting.id]
        if not self._open[waiting.run_id]:
            del self._open[waiting.run_id]

    def expire(self, now: float) -> Iterator[Waiting]:
        """Settle what nobody saw to in time, and yield those for which a run has paused."""
        if not self._open:
            return
        for waiting in [each for of_run in self._open.values() for each in of_run.values() if each.until <= now]:
            self.settle(waiting, _EXPIRED[waiting.kind], "nobody decided in time")
            if waiting.pauses:
                yield waiting

    def end(self, run_id: str) -> None:
        """The run is cancelled, and with it what it waits for."""
        for waiting in self.pending(run_id):
            self.settle(waiting, "cancelled" if waiting.kind == "question" else "rejected", "the run was cancelled")

    # -- human input ------------------------------------------------------------------------------------------------------------

    def ask(self, run: Run, body: QuestionBody, switches: AgentosSwitches, now: float) -> Answer:
        """The first POST or a later one, held back while nothing is decided. Raises Refused."""
        waiting = self._new(run, body, switches, now) if body.request_id is UNSET else self._known(body)
        return self.turn(waiting, now + switches.human_input_poll, now)

    def _new(self, run: Run, body: QuestionBody, switches: AgentosSwitches, now: float) -> Waiting:
        if run.terminals:
            raise Refused(409, f"run {run.run_id} has ended: {run.status}")
        waiting = self.question(run.run_id, body.prompt, now, body.timeout_seconds, context=body.context)
        at_once: dict[str, State] = {"answer": "answered", "timeout": "timeout", "cancel": "cancelled"}
        if switches.human_input in at_once:
            text = switches.human_input_answer if switches.human_input == "answer" else ""
            self.settle(waiting, at_once[switches.human_input], text)
        return waiting

    def _known(self, body: QuestionBody) -> Waiting:
        waiting = self.known.get(str(body.request_id))
        if waiting is None or waiting.run_id != body.run_id or waiting.kind != "question" or waiting.pauses:
            raise Refused(404, f"no request {body.request_id} in run {body.run_id}")
        asked = {"prompt": waiting.what, **given(context=waiting.more.get("context"))}
        if {"prompt": body.prompt, **given(context=body.context)} != asked:
            raise Refused(400, f"request {waiting.id} asked something else - at `$.prompt`")
        waiting.posts += 1
        return waiting

    def turn(self, waiting: Waiting, until: float, now: float) -> Answer:
        """What is to be said of a question now; held, while nobody has decided and `until` is not there."""
        if waiting.state == "pending" and waiting.until <= now:
            self.settle(waiting, "timeout")
        if waiting.state == "answered":
            return said(200, {"input": waiting.text, "request_id": waiting.id})
        if waiting.state == "timeout":
            return refusal(408, "Human input not received within timeout")
        if waiting.state != "pending":
            return refusal(409, "Request was cancelled.")
        pending = said(202, {"request_id": waiting.id, "status": "pending"})
        if now >= until:
            return pending
        held = Held(min(until, waiting.until), partial(self.turn, waiting, until))
        return msgspec.structs.replace(pending, held=held)
