"""The gates as methods: `gate` for any, and one in each platform's own words. Shared by `Client` and `AsyncClient`.

Each makes its question at once (so that run, span and payload are those of the call) and leaves it to the client how to
wait: `Client` brings the verdict, `AsyncClient` something to await for it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from agentd.client.arguments import known_only, seconds, seconds_above_0, text
from agentd.client.gates import Question, Steps, ask_as, decided, input_of, make_question, wait_as
from agentd.client.runs import current_run, current_span
from agentd.client.verdict import Verdict

if TYPE_CHECKING:
    from decimal import Decimal
    from typing import Unpack

    from agentd.client.channel import Channel
    from agentd.client.fields import (
        ActionRequest,
        Asking,
        DeadlineAsking,
        DecideFields,
        EvaluationFields,
        IntentFields,
        InvokeFields,
    )
    from agentd.client.sender import Sender

DECISION_TIMEOUT_S = 60.0  # as long as ASCEND's own SDK waits for a decision
HUMAN_TIMEOUT_S = 3600.0  # as long as AgentOS's own SDK waits for a person
# More than the person is given: then the platform says that nobody replied (408), which would come too late at the same moment.
_LAST_WORD_S = 5.0
_MAX_DEADLINE_S = 86_400.0  # the daemon takes no longer one
_OPTIONS = frozenset({"to", "key", "agent_id", "run_id", "span_id", "deadline"})
V = TypeVar("V")  # a verdict, or something to await for it
S = TypeVar("S")  # a text, likewise


class Questions:
    """How a client makes a question, for both kinds of client and for `gated`."""

    _why_disabled: str
    _channel: Channel | None
    _sender: Sender
    _find: Callable[[], str]

    def _question(self, gate: str, asked: Mapping[str, object], options: Mapping[str, Any]) -> Question:
        """A question in its place: the run and span of the context and the run's agent, unless the caller named them."""
        run, span = current_run(), current_span()
        named = {name: options.get(name) for name in ("to", "agent_id", "run_id", "span_id")}
        if "run_id" not in options and run is not None:
            named["run_id"] = run.run_id
            named["agent_id"] = named["agent_id"] or run.agent_id  # of neither: agentd knows whose run it is
        else:
            named["agent_id"] = named["agent_id"] or self._sender.agent_id or None
        if "span_id" not in options and span is not None and span.run.run_id == named["run_id"]:
            named["span_id"] = span.span_id
        question = make_question(gate, asked, options.get("deadline"), options.get("key"), **named)
        if question.run_id is not None and self._channel is not None and self._channel.stats().buffered:
            self._channel.hurry_up()  # the gate waits for its run's start: it must not lie here
        return question

    def _asking(self, gate: str, asked: Mapping[str, object], options: Mapping[str, Any]) -> Steps[Verdict]:
        return ask_as(self._question(gate, asked, options), self._why_disabled)

    def _asking_fields(self, gate: str, asked: Mapping[str, object], fields: Mapping[str, Any]) -> Steps[Verdict]:
        """As above, from one heap of fields: how to ask, and what. None is a field that was left out."""
        options = {name: value for name, value in fields.items() if name in _OPTIONS}
        rest = {name: value for name, value in fields.items() if name not in _OPTIONS}
        asked = {name: value for name, value in {**asked, **rest}.items() if value is not None}
        return self._asking(gate, asked, options)

    def _asking_action(
        self, action_type: str, resource: str, timeout: float | None, fields: Mapping[str, Any]
    ) -> Steps[Verdict]:
        known_only("evaluate_action()", fields.keys() & {"deadline"}, {"timeout"})
        if timeout is not None:
            seconds_above_0("evaluate_action()", "timeout", timeout)
        asked = {"action_type": action_type, "resource": resource}
        return self._asking_fields("action", asked, {**fields, "deadline": timeout})


class Gates(Questions, Generic[V, S]):
    """The methods. A missing daemon, a lost answer and a platform that is down are verdicts; nothing of that raises.

    What raises: TypeError and ValueError for arguments that can't be meant, GateRefused for a question that the daemon
    does not take, GateKeyConflict for a key that was used for another one.
    """

    def _verdict(self, steps: Steps[Verdict]) -> V:
        raise NotImplementedError

    def _text(self, steps: Steps[str]) -> S:
        raise NotImplementedError

    def gate(self, name: str, request: Mapping[str, Any], **asking: Unpack[DeadlineAsking]) -> V:
        """Ask any gate: `decide`, `decision`, `action`, `intent`, `invoke`, `human_input`, or one of your own adapter's.

            verdict = client.gate("decide", {"mode": "rulebook", "rulebook": rules, "context": {"inputs": facts}})
            if verdict:
                client.record_execution(verdict, execution_status="executed")

        `request` holds the platform's fields under the names of its Python SDK. Default deadlines: 5 s, `invoke` 60 s,
        `human_input` 3600 s; what the platform has not decided by then is `pending`, and `wait` hears of it later.
        """
        known_only("gate()", asking, _OPTIONS)
        return self._verdict(self._asking(name, request, asking))

    def decide(self, question: str | None = None, **fields: Unpack[DecideFields]) -> V:
        """Ask decide.fyi. Only `mode="rulebook"` binds: an advisory yes is a `review`."""
        return self._verdict(self._asking_fields("decide", {"question": question}, fields))

    def evaluate_decision(
        self,
        context: str,
        *,
        options: Sequence[Any] | None = None,
        chosen: str | None = None,
        confidence: float | None = None,
        **fields: Unpack[EvaluationFields],
    ) -> V:
        """Log a decision to Decision OS and hold it against the active policy (the SDK's `run_policy_eval`)."""
        span_id = fields.get("span_id", getattr(current_span(), "span_id", None))  # a label of the decision as well
        asked = {"context": context, "options": options, "chosen": chosen, "confidence": confidence, "span_id": span_id}
        return self._verdict(self._asking_fields("decision", asked, fields))

    def evaluate_action(
        self,
        action_type: str,
        resource: str,
        *,
        wait_for_decision: bool = True,
        timeout: float | None = None,
        **fields: Unpack[ActionRequest],
    ) -> V:
        """Ask ASCEND for leave, and wait at most `timeout` seconds (60) for somebody to decide; without waiting 5.

            verdict = client.evaluate_action("transaction", "stripe", parameters={"amount": 120})
            if verdict:
                client.complete_action(verdict, {"charge": "ch_1"})

        Nobody decided in time: `verdict.pending`, and `wait_for_decision(verdict)` goes on waiting.
        """
        if timeout is None and wait_for_decision:
            timeout = DECISION_TIMEOUT_S
        return self._verdict(self._asking_action(action_type, resource, timeout, fields))

    def submit_intent(self, amount: float | Decimal, currency: str, reason: str, **fields: Unpack[IntentFields]) -> V:
        """Ask Aegis for leave to spend. It never allows by `fail_mode`, and a person may have to decide.

        verdict = client.submit_intent(12500, "INR", "invoice 7", merchant="AWS")
        if client.wait_for_decision(verdict, timeout=600):
            pay()

        A Decimal goes as a number with all of its digits.
        """
        asked = {"amount": amount, "currency": currency, "reason": reason}
        return self._verdict(self._asking_fields("intent", asked, fields))

    def invoke(
        self,
        agent_id: str | None = None,
        input: Mapping[str, Any] | None = None,  # noqa: A002 - the field's name
        **fields: Unpack[InvokeFields],
    ) -> V:
        """Run a hosted agent of AgentOS and wait for it; its output is in `verdict.response`.

        `agent_id` is the agent that is to run, under its local name. Within a run the hosted one becomes its child. One that
        pauses for an approval or an answer is `pending`.
        """
        run = current_run()
        parent = fields.get("run_id") or (run.run_id if run is not None else None)
        asked = {"agent_id": agent_id, "input": input, "parent_run_id": parent}
        return self._verdict(self._asking_fields("invoke", asked, fields))

    def request_human_input(
        self, prompt: str, *, context: Any = None, timeout: float = HUMAN_TIMEOUT_S, **asking: Unpack[Asking]
    ) -> S:
        """Ask a person, through AgentOS, and bring the answer.

        Raises GateTimeout (a TimeoutError) if nobody answers in time, and GateDenied (a PermissionError) if the question
        was cancelled or could not be asked.
        """
        known_only("request_human_input()", asking, (_OPTIONS - {"deadline"}) | {"context", "timeout"})
        timeout = seconds_above_0("request_human_input()", "timeout", timeout)
        asked = {"prompt": prompt, "context": context, "timeout_seconds": max(1, round(timeout))}
        deadline = min(timeout + _LAST_WORD_S, max(timeout, _MAX_DEADLINE_S))
        steps = self._asking_fields("human_input", asked, {**asking, "deadline": deadline})
        return self._text(_then(steps, lambda verdict: input_of(verdict, timeout)))

    def wait_for_decision(self, verdict: Verdict | str, timeout: float = DECISION_TIMEOUT_S) -> V:
        """The last word on a gate, by its verdict or its `gate_id`. Raises GateTimeout if there is none in time."""
        steps = self._waiting("wait_for_decision()", verdict, timeout)
        return self._verdict(_then(steps, lambda found: decided(found, timeout)))

    def wait(self, gate_id: str, timeout: float = DECISION_TIMEOUT_S) -> V:
        """How a gate stands, at the latest after `timeout` seconds, sooner if its last word comes. Never raises for time."""
        return self._verdict(self._waiting("wait()", gate_id, timeout))

    def _waiting(self, call: str, known: Verdict | str, timeout: float) -> Steps[Verdict]:
        if not isinstance(known, Verdict):
            known = text(call, "gate_id", known)
        return wait_as(known, seconds(call, "timeout", timeout), self._why_disabled)


T = TypeVar("T")
R = TypeVar("R")


def _then(steps: Steps[T], work: Callable[[T], R]) -> Generator[Any, Any, R]:
    return work((yield from steps))
