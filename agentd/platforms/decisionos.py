"""Decision OS (https://decisionos.com, decision-os-sdk 0.2.1): the log of decisions already made, and their snapshots.

What its strictness asks of us: its ledger is chained and never forgets, so a duplicate could not be taken back. Each record
therefore goes with a `requestId`, the client's own or the record's id, and the sealed bytes are kept, since the platform may
refuse other content under the same one. Names are camelCase, absent fields are left out, never null. Decisions that ask for
an evaluation (`runPolicyEval`) are gates and are not sent from here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct

from agentd.exchange import (
    ANSWER_BYTES,
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
)
from agentd.identity import text_of
from agentd.outcomes import Delivered, Learned, Pause, Reject, Retry, Scope, Unknown, Verdict
from agentd.platforms.base import by_status, lost, retry_after
from agentd.records import TYPES, Decision, Snapshot

_PREFIX = "/api/public/v1"
_REASON_CHARS = 500
_MAX_PAUSE_S = 32 * 86400.0  # a quota is monthly: a reset that lies further away is a mistake
_MILLISECONDS = 1e11  # seconds since 1970 come here in the year 5138
_LABELS = ("trace_id", "run_id", "span_id", "parent_span_id")  # free words for the platform: never replaced by its ids


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(word.capitalize() for word in rest)


def _array(value: Raw) -> Raw:
    """The JSON value as the array that Decision OS demands: anything else is its only element."""
    text = bytes(value).strip()
    return value if text.startswith(b"[") else Raw(b"[" + text + b"]")


def _object(value: Raw) -> Raw:
    """The JSON value as the object that Decision OS demands: anything else goes under `value`."""
    text = bytes(value).strip()
    return value if text.startswith(b"{") else Raw(b'{"value":' + text + b"}")


def _elements(value: Raw) -> list[Any]:
    """The elements of an array of texts and objects; a null among them or in an object is left out."""
    return [_without_nulls(one) for one in _decode_list(_array(value)) if bytes(one).strip() != b"null"]


def _without_nulls(element: Raw) -> Any:
    text = bytes(element).strip()
    if not text.startswith(b"{") or b"null" not in text:
        return element
    return {name: member for name, member in _decode_fields(text).items() if bytes(member).strip() != b"null"}


def _options(value: Raw) -> list[Any]:
    """A text is key and label at once, an object is taken as it is given."""
    return [_named(one) for one in _elements(value)]


def _named(option: Any) -> Any:
    if not isinstance(option, Raw) or not bytes(option).lstrip().startswith(b'"'):
        return option
    return {"key": option, "label": option}


_decode_list = msgspec.json.Decoder(list[Raw]).decode
_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_any = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
_decoders: dict[str, msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(TYPES[kind]) for kind in ("decision", "snapshot")
}

# Of each kind: the fields that go as they are, and the free ones with the form that the platform wants them in.
_DECISION = (
    "confidence", "constraints", "model", "runner", "prompt_version", "prompt_hash", "policy_version_id", "decision_type",
    "agent_name", *_LABELS, "session_id", "conversation_id", "tokens_input", "tokens_output", "cost_usd", "latency_ms",
    "error_text",
)  # fmt: skip
_DECISION_FREE: dict[str, Callable[[Raw], Any]] = {
    "options": _options,
    "assumptions": _elements,
    "parameters": _object,
    "tool_calls": _array,  # an array here, an object in a snapshot
    "mcp_servers": _array,
}
_SNAPSHOT = ("eval_score", "eval_pass", "policy_version_id", "event_id", "schema_version", *_LABELS)
_SNAPSHOT_FREE: dict[str, Callable[[Raw], Any]] = {
    "tool_calls": _object,
    "model_usage": _object,
    "timings": _object,
    "eval": _object,
}


class _Body(Struct, frozen=True):
    """What an answer says. With `ours` false it is nothing that Decision OS would say."""

    ours: bool = False
    id: str = ""
    error: str = ""
    reset_at: Any = None


class DecisionOS:
    """The adapter; it has no state."""

    name = "decisionos"
    default_base_url = "https://decisionos.com"
    encoder_version = 1
    introduces = frozenset({"decision"})
    options: Mapping[str, tuple[str, ...]] = {}
    calls: Mapping[str, Call] = {
        "decision": Call("decisions", f"{_PREFIX}/decisions", strict_key=True),
        "snapshot": Call("snapshots", f"{_PREFIX}/snapshots", strict_key=True),
    }

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
            body |= _decision(record)
        else:
            body |= _snapshot(record, item, context)
        return Request(call.path, _encode(body))

    def classify(self, call: Call, items: Sequence[Item], answer: Response | Lost, attempt: Attempt) -> Verdict:
        if isinstance(answer, Lost):
            return lost(call, answer) or Unknown(answer.reason)
        body = _read(answer.body)
        reason = f"{answer.status} {body.error}".strip()
        if 200 <= answer.status < 300:  # noqa: PLR2004 - RFC 9110 §15
            return _taken(items[0], answer, body)
        match answer.status:
            case 402:
                return Pause(Scope.DESTINATION, reason, _until_reset(answer, body, attempt))
            case 404 if not body.ours:  # no route of Decision OS's: somebody else answers there
                return Pause(Scope.DESTINATION, f"{reason}: is base_url right?")
            case 404:
                return Reject(f"{reason} ({_missing(items[0], body)})")
            case 409:
                return _conflict(items[0], attempt, reason)
            case _:
                return by_status(answer, attempt, reason)


# -- requests --------------------------------------------------------------------------------------------------------------


def _decision(record: Decision) -> dict[str, Any]:
    if not record.context.strip():
        raise Unencodable("Decision OS takes no decision whose context is blank")
    body: dict[str, Any] = {"context": record.context}
    if record.chosen is not None:
        body["chosenOptionKey"] = record.chosen
    if record.create_agent_if_missing:
        body["createAgentIfMissing"] = True
    return body | _fields(record, _DECISION, _DECISION_FREE)


def _snapshot(record: Snapshot, item: Item, context: Context) -> dict[str, Any]:
    decision_id = context.resolve("decision", record.decision_id)
    if decision_id is None:
        raise Unencodable("its decision is unknown to the platform")
    captured = record.captured_at or datetime.fromtimestamp(item.admitted_us / 1e6, UTC)  # left out: the server's time
    body = {
        "decisionId": decision_id,
        "snapshot": _object(record.snapshot),
        "capturedAt": captured if captured.tzinfo is UTC else captured.astimezone(UTC),
    }
    return body | _fields(record, _SNAPSHOT, _SNAPSHOT_FREE)


def _fields(record: Struct, plain: Sequence[str], free: Mapping[str, Callable[[Raw], Any]]) -> dict[str, Any]:
    """What is given of a record's fields, under the platform's names."""
    found = {_camel(name): getattr(record, name) for name in plain if getattr(record, name) is not None}
    for name, form in free.items():
        value = getattr(record, name)
        if value is not UNSET and bytes(value).strip() not in (b"", b"null"):
            found[_camel(name)] = form(value)
    return found


# -- answers ---------------------------------------------------------------------------------------------------------------


def _read(body: bytes) -> _Body:
    """`{data:{…}}` or the same without the wrapping, `{error:"text"}` or `{message:"text"}`."""
    try:
        found = _decode_any(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Body()
    if not isinstance(found, dict):
        return _Body()
    data = found.get("data") or found
    named = data.get("id") if isinstance(data, dict) else None
    error = found.get("error") or found.get("message")
    text = error.strip() if isinstance(error, str) else ""
    reset_at = found.get("resetAt") or (data.get("resetAt") if isinstance(data, dict) else None)
    id_ = named if isinstance(named, str) and named.strip() else ""
    return _Body(bool(id_ or text), id_, text[:_REASON_CHARS], reset_at)


def _taken(item: Item, answer: Response, body: _Body) -> Verdict:
    """A success names what it made. One that does not is asked again, which is safe: `requestId` makes it one decision."""
    local_id = _decoders["decision"].decode(item.body).decision_id if item.kind == "decision" else None
    if body.id:
        return Delivered(() if local_id is None else (Learned("decision", local_id, body.id),))
    if local_id is None and _cut(answer):
        return Delivered()
    if body.error:
        return Retry(f"{answer.status} {body.error}")
    if _cut(answer) or answer.body.lstrip().startswith(b"{"):
        return Retry(f"{answer.status} without data.id")
    return Retry(f"{answer.status} without Decision OS's answer: is base_url right?", None, Scope.DESTINATION)


def _cut(answer: Response) -> bool:
    """An object of which we have the beginning only."""
    return len(answer.body) >= ANSWER_BYTES and answer.body.lstrip().startswith(b"{")


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


def _missing(item: Item, body: _Body) -> str:
    """What a 404 speaks of; the sentence is the same for all records of an agent, so that repeats can be counted as one."""
    agent = f"agent {item.agent!r}" if item.agent else "the destination's agent_id"
    said = body.error.lower()
    if item.kind == "decision" or ("agent" in said and "decision" not in said):
        return f"is {agent} in this workspace? create_agent_if_missing would make it"
    if "decision" in said:
        return "its decision is not in this workspace"
    return f"either its decision or {agent} is not in this workspace"


def _until_reset(answer: Response, body: _Body, attempt: Attempt) -> float | None:
    """Seconds until the quota's `resetAt` (an ISO time, or a number since 1970), else `Retry-After`, else unknown."""
    at = _unix(body.reset_at)
    if at is None:
        return retry_after(answer.headers, attempt.now_s)
    left_s = at - attempt.now_s
    return min(left_s, _MAX_PAUSE_S) if left_s > 0 else None


def _unix(moment: Any) -> float | None:
    """Seconds since 1970; None for what is no moment."""
    try:
        if isinstance(moment, str):
            at = datetime.fromisoformat(moment.strip())
            return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
        if isinstance(moment, bool) or not isinstance(moment, int | float):
            return None
        return float(moment) / (1000 if moment > _MILLISECONDS else 1)
    except (ValueError, OverflowError):
        return None


PLATFORM = DecisionOS()
