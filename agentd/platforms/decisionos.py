"""Decision OS (https://decisionos.com, decision-os-sdk 0.2.1): the log of decisions already made, and their snapshots.

What its strictness asks of us: its ledger is chained and never forgets, so a duplicate could not be taken back. Each record
therefore goes with a `requestId`, the client's own or the record's id, and the sealed bytes are kept, since the platform may
refuse other content under the same one. Names are camelCase, absent fields are left out, never null. Decisions that ask for
an evaluation (`runPolicyEval`) are gates and stand in `_decisionos_gates`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import Raw

from agentd.exchange import (
    Attempt,
    Call,
    Context,
    Item,
    Lost,
    Reference,
    Request,
    Response,
    Sending,
    Unencodable,
    Usage,
)
from agentd.gating import Gate
from agentd.identity import text_of
from agentd.outcomes import RECORD, Delivered, Learned, Pause, Reject, Retry, Scope, Unknown, Verdict
from agentd.platforms._decisionos_gates import GATES
from agentd.platforms._decisionos_sdk import STAND_IN
from agentd.platforms._decisionos_wire import (
    DECISIONS,
    LABELS,
    PREFIX,
    Body,
    decision_body,
    given_fields,
    read,
    resets_in,
    until_reset,
)
from agentd.platforms.base import by_status, is_cut, lost, next_month_s, object_of, with_extra
from agentd.probing import Probe
from agentd.records import TYPES, Decision, Snapshot
from agentd.stamp import runner_of
from agentd.standin import StandIn

_encode = msgspec.json.Encoder().encode
_decoders: dict[str, msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(TYPES[kind]) for kind in ("decision", "snapshot")
}

# Of a snapshot: the fields that go as they are, and the free ones with the form that the platform wants them in.
_SNAPSHOT = ("eval_score", "eval_pass", "policy_version_id", "event_id", "schema_version", *LABELS)
_SNAPSHOT_FREE: dict[str, Callable[[Raw], Any]] = {
    "tool_calls": object_of,
    "model_usage": object_of,
    "timings": object_of,
    "eval": object_of,
}


class DecisionOS:
    """The adapter; it has no state."""

    name = "decisionos"
    default_base_url = "https://decisionos.com"
    encoder_version = 1
    introduces = frozenset({"decision"})
    options: Mapping[str, tuple[str, ...]] = {}
    gates: Mapping[str, Gate] = GATES
    calls: Mapping[str, Call] = {
        "decision": Call("decisions", DECISIONS, strict_key=True),
        "snapshot": Call("snapshots", f"{PREFIX}/snapshots", strict_key=True),
    }
    stand_in: StandIn = STAND_IN
    probe = Probe("/api/public/v1/workspace/usage")
    cap = "Decision OS's monthly quota of decisions"

    def usage(self, request: Request, answer: Response, now_s: float) -> Usage:
        """Each decision counts; only the refusal tells of the quota (402, with `resetAt`)."""
        if answer.status == 402:  # noqa: PLR2004
            return Usage(left=0, reached=True, resets_in_s=resets_in(read(answer.body), now_s) or next_month_s(now_s))
        success = 200 <= answer.status < 300  # noqa: PLR2004
        spent = int(success and request.method == "POST" and request.path.partition("?")[0] == DECISIONS)
        return Usage(spent, bool(spent))

    def headers(self, sending: Sending) -> dict[str, str]:
        """The platform's own key is `requestId` in the body; the header is for whatever stands in between."""
        return {"authorization": f"Bearer {sending.api_key}", "idempotency-key": sending.idempotency_key}

    def references(self, item: Item) -> Sequence[Reference]:
        if item.kind != "snapshot":
            return ()
        return (Reference("decision", _decoders["snapshot"].decode(item.body).decision_id),)

    def encode(self, call: Call, items: Sequence[Item], context: Context) -> Request:
        item = items[0]
        record: Decision | Snapshot = _decoders[item.kind].decode(item.body)
        agent = context.agent(item.agent)
        if not agent:
            raise Unencodable(f"a {item.kind} names no agent_id and the destination has none")
        body: dict[str, Any] = {"agentId": agent, "requestId": record.request_id or text_of(item.record_id)}
        if isinstance(record, Decision):
            body |= _runner(context) | decision_body(record)
        else:
            body |= _snapshot(record, item, context)
        return Request(call.path, with_extra(_encode(body), record.extra))

    def classify(self, call: Call, items: Sequence[Item], answer: Response | Lost, attempt: Attempt) -> Verdict:
        if isinstance(answer, Lost):
            return lost(call, answer) or Unknown(answer.reason)
        body = read(answer.body)
        reason = f"{answer.status} {body.error}".strip()
        if 200 <= answer.status < 300:  # noqa: PLR2004 - RFC 9110 §15
            return _taken(items[0], answer, body)
        match answer.status:
            case 402:
                return Pause(Scope.DESTINATION, reason, until_reset(answer, body, attempt))
            case 404 if not body.ours:  # no route of Decision OS's: somebody else answers there
                return Pause(Scope.DESTINATION, f"{reason}: is base_url right?")
            case 404:
                return Reject(f"{reason} ({_missing(items[0], body)})")
            case 409:
                return _conflict(items[0], attempt, reason)
            case _:
                return by_status(answer, attempt, reason)


# -- requests --------------------------------------------------------------------------------------------------------------


def _runner(context: Context) -> dict[str, Any]:
    """What runs it, for an agent that does not say. A gate's decision goes without: its key may meet another identity."""
    runner = runner_of(context.stamp)
    return {} if runner is None else {"runner": runner}


def _snapshot(record: Snapshot, item: Item, context: Context) -> dict[str, Any]:
    decision_id = context.resolve("decision", record.decision_id)
    if decision_id is None:
        raise Unencodable("its decision is unknown to the platform")
    captured = record.captured_at or datetime.fromtimestamp(item.admitted_us / 1e6, UTC)  # left out: the server's time
    body = {
        "decisionId": decision_id,
        "snapshot": object_of(record.snapshot),
        "capturedAt": captured if captured.tzinfo is UTC else captured.astimezone(UTC),
    }
    return body | given_fields(record, _SNAPSHOT, _SNAPSHOT_FREE)


# -- answers ---------------------------------------------------------------------------------------------------------------


def _taken(item: Item, answer: Response, body: Body) -> Verdict:
    """A success names what it made. One that does not is asked again, which is safe: `requestId` makes it one decision."""
    local_id = _decoders["decision"].decode(item.body).decision_id if item.kind == "decision" else None
    if body.id and local_id is not None:
        return Delivered((Learned("decision", local_id, body.id),))
    if body.id:
        return Delivered((Learned(RECORD, text_of(item.record_id), body.id),))
    if local_id is None and is_cut(answer):
        return Delivered()
    if body.error:
        return Retry(f"{answer.status} {body.error}")
    if is_cut(answer) or answer.body.lstrip().startswith(b"{"):
        return Retry(f"{answer.status} without data.id")
    return Retry(f"{answer.status} without Decision OS's answer: is base_url right?", None, Scope.DESTINATION)


def _conflict(item: Item, attempt: Attempt, reason: str) -> Verdict:
    """409: something is known under this `requestId`. Ours from an earlier try, or somebody else's: no source says which.

    An id that is the record's own can only have been used by an earlier try of it. A word that the client chose may have
    been used for other content as well.
    """
    record: Decision | Snapshot = _decoders[item.kind].decode(item.body)
    if not attempt.maybe_taken:
        return Reject(f"{reason}: its requestId was used before")
    if record.request_id is not None:
        return Unknown(f"{reason}: an earlier try was taken, or its request_id belongs to another {item.kind}")
    if isinstance(record, Decision) and record.decision_id is not None:
        return Unknown(f"{reason}: an earlier try was taken, and the answer with the decision's id was lost")
    return Delivered()


def _missing(item: Item, body: Body) -> str:
    """What a 404 speaks of; the sentence is the same for all records of an agent, so that repeats can be counted as one."""
    agent = f"agent {item.agent!r}" if item.agent else "the destination's agent_id"
    said = body.error.lower()
    if item.kind == "decision" or ("agent" in said and "decision" not in said):
        return f"is {agent} in this workspace? create_agent_if_missing would make it"
    if "decision" in said:
        return "its decision is not in this workspace"
    return f"either its decision or {agent} is not in this workspace"


PLATFORM = DecisionOS()
