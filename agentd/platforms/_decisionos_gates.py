"""Decision OS's gate: a decision that is logged and held against the active policy at once (`runPolicyEval`).

Source: PyPI decision-os-sdk 0.2.1. The request is that of a decision record, so that the ledger shows no difference; its
`requestId` makes a repeat with the same bytes safe. The evaluation comes inside a success: `ok: true` without an error and
without a change against the policy is an allow unless something else in the answer speaks against it, a plain `ok: false` a deny,
all else a review. `status` is open text there: it says nothing, unless it is a known no.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Raw

from agentd.exchange import Attempt, Context, Lost, Reference, Request, Response, Unencodable
from agentd.explain import explain
from agentd.gating import Gate, Question, Ruling, Traits, Word
from agentd.platforms._decisionos_wire import DECISIONS, Body, decision_body, read
from agentd.platforms._objections import objection
from agentd.platforms._questions import given, wrong
from agentd.platforms._rulings import after, bounded, failed, is_cut, lost, says_twice, segment
from agentd.platforms.base import retry_after, with_extra
from agentd.records import Decision

_OURS = frozenset({"id", "to", "kind"})  # of a record, and of no gate
_ASKS = "run_policy_eval"  # the SDK's name for what this gate is
_REST_S = 1.0  # after a 429 or a 5xx that names no time
_FREE = frozenset(  # the client's own words, which the decision repeats
    {"assumptions", "constraints", "context", "mcpservers", "metadata", "options", "parameters", "toolcalls"}
)

_decode_decision = msgspec.json.Decoder(Decision).decode
_decode_any = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class PolicyEval:
    """The gate; it has no state."""

    traits = Traits("decisions", "decision", "decision_id", repeat=True)

    def references(self, question: Question) -> Sequence[Reference]:
        """None: its run is a label for Decision OS, in the agent's own words."""
        del question
        return ()

    def ask(self, question: Question, context: Context) -> Request:
        """The fields of a decision record; `run_id` is the question's where the request names none."""
        record = _record(question)
        if not record.context.strip():
            raise wrong("context", "expected a string that is not blank")
        agent = context.agent(_agent_of(question, record))
        if not agent:
            raise Unencodable("$.agent_id: required, since the destination has none")
        body: dict[str, Any] = {"agentId": agent, "requestId": record.request_id or question.gate_id}
        body |= decision_body(record)
        if record.run_id is None and question.run_id is not None:
            body["runId"] = question.run_id
        return Request(DECISIONS, with_extra(_encode(body | {"runPolicyEval": True}), record.extra))

    def rule(self, question: Question, answer: Response | Lost, attempt: Attempt) -> Ruling:
        if isinstance(answer, Lost):
            return after(attempt, lost(answer))
        body = read(answer.body)
        if answer.status in {200, 201}:  # no source says with which of them a decision is made
            return _decided(answer, body)
        reason = f"{answer.status} {body.error}".strip()
        if 200 <= answer.status < 300:  # noqa: PLR2004 - RFC 9110 §15
            return Ruling(Word.REVIEW, bounded(f"{reason}: no answer of Decision OS's"), body.id or None)
        return after(attempt, _refused(question, answer, body, attempt, reason))

    def follow(self, question: Question, platform_id: str, context: Context) -> Request | None:
        """Nothing: the evaluation is part of the answer."""
        del question, platform_id, context
        return None

    def rule_followed(self, question: Question, answer: Response | Lost, attempt: Attempt) -> Ruling:
        return self.rule(question, answer, attempt)


# -- the request ------------------------------------------------------------------------------------------------------------


def _record(question: Question) -> Decision:
    """The request as the record that it would be without the evaluation. Raises Unencodable that names the field."""
    fields = given(question, "")
    for name in _OURS & fields.keys():
        raise wrong(name, "unknown field of the gate decision")
    if bytes(fields.pop(_ASKS, Raw(b"true"))).strip() != b"true":
        raise wrong(_ASKS, "expected true: the gate decision is this evaluation; log_decision is without it")
    data = _encode({"kind": "decision", **fields})
    try:
        return _decode_decision(data)
    except msgspec.ValidationError as error:
        raise Unencodable("$.request" + explain(error, data).removeprefix("$")) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Unencodable(f"$.request: {error}"[:200]) from error


def _agent_of(question: Question, record: Decision) -> str:
    """The local name. The request may repeat it, since the SDK has `agent_id` among the decision's fields."""
    if record.agent_id and question.agent and record.agent_id != question.agent:
        raise wrong("agent_id", f"expected {question.agent!r}, as beside the request, or to be left out")
    return record.agent_id or question.agent


# -- the answer -------------------------------------------------------------------------------------------------------------


def _decided(answer: Response, body: Body) -> Ruling:
    decision_id = body.id if segment(body.id) is not None else None
    if decision_id is None:
        text = "its answer is cut" if is_cut(answer) else body.error or "no data.id: is base_url right?"
        return Ruling(Word.REVIEW, bounded(f"{answer.status} {text}"))
    word, reason = _evaluation(answer)
    if word is Word.ALLOW:
        doubt = "a name occurs twice" if says_twice(answer.body) else objection(_decode_any(answer.body), _FREE)
        if doubt:
            word, reason = Word.REVIEW, f"{reason}, and in the answer {doubt}"
    return Ruling(word, bounded(reason), decision_id)


def _evaluation(answer: Response) -> tuple[Word, str]:
    """What `policyEval` (or `policy_eval`, as the SDK also takes it) says; REVIEW unless it is certain."""
    found = _decode_any(answer.body)  # it has been read before: a JSON object with an id
    if found.get("error"):
        return Word.REVIEW, f"a decision and an error: {str(found['error'])[:400]}"
    data = found.get("data") or found
    said = [at[name] for at in (data, found) for name in ("policyEval", "policy_eval") if at.get(name) is not None]
    if not said:
        return Word.REVIEW, "the decision is logged, its policy was not evaluated"
    if any(one != said[0] for one in said):
        return Word.REVIEW, "it has two evaluations, which contradict one another"
    result = said[0]
    if not isinstance(result, dict) or not isinstance(result.get("ok"), bool):
        return Word.REVIEW, "policyEval can't be read"
    if result.get("error") not in (None, ""):
        return Word.REVIEW, f"policyEval error: {str(result['error'])[:400]}"
    if not result["ok"]:
        return Word.DENY, f"policyEval not ok{_version(result)}"
    diff = result.get("diff")
    if diff is None:
        diff = {}
    if not isinstance(diff, dict) or not isinstance(diff.get("changed", False), bool | None):
        return Word.REVIEW, "policyEval.diff can't be read"
    if diff.get("changed"):
        return Word.REVIEW, f"policyEval ok, but the policy decides otherwise{_version(result)}"
    return Word.ALLOW, f"policyEval ok{_version(result)}"


def _version(result: Mapping[str, Any]) -> str:
    version = result.get("policyVersionId") or result.get("policy_version_id")
    return f" by {version[:80]}" if isinstance(version, str) else ""


def _refused(question: Question, answer: Response, body: Body, attempt: Attempt, reason: str) -> Ruling:
    """An answer that is no success. 409 says that something exists under this requestId."""
    match answer.status:
        case 402:
            return failed(402, f"{reason}: the quota of the month is used up")
        case 404 if body.ours:
            agent = f"agent {question.agent!r}" if question.agent else "the destination's agent_id"
            return failed(404, f"{reason}: is {agent} in this workspace? create_agent_if_missing would make it")
        case 404:
            return failed(404, f"{reason}: is base_url right?")
        case 409:
            return failed(409, f"{reason}: its requestId was used before")
        case 429:
            wait = retry_after(answer.headers, attempt.now_s)
            return failed(429, reason, _REST_S if wait is None else wait)
        case status if status >= 500:  # noqa: PLR2004 - RFC 9110 §15; the same requestId makes one decision
            wait = retry_after(answer.headers, attempt.now_s)
            return failed(status, reason, _REST_S if wait is None else wait)
        case _:
            return failed(answer.status, reason)


GATES: Mapping[str, Gate] = {"decision": PolicyEval()}
