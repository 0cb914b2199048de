"""ASCEND (OW-KAI; ascend-ai-sdk 2.7.1 and its documentation): what became of an action, and heartbeats.

The platform has no idempotency of any kind. A completion is repeated all the same when its answer was lost: it names one action
and one final state in the same bytes each time, so the worst that any source knows of is one more entry in the action's log,
while a completion held back would leave an action on the record that nobody saw end.

Sources disagree on two points, which `[destinations.NAME.options]` decides:

- `completion_route`: `sdk` (default; `/api/agent-action/{id}/complete`) or `server` (`/api/sdk/action/{id}/completed`, the older
  one). The server's takes ids of digits only, and answers 200 for a number that it has never seen; another id never goes there.
- `heartbeat_metrics`: `union` (default; flat as the SDK sends them, and nested as the server's model reads them), `flat`, `nested`.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import UNSET, Raw, Struct

from agentd.errors import ConfigError
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
)
from agentd.gating import Gate
from agentd.outcomes import Delivered, Pause, Reject, Retry, Scope, Unknown, Verdict
from agentd.platforms._ascend_answers import (
    code_of,
    decoded,
    is_cut,
    is_denial,
    is_ours,
    is_refusal,
    reason_of,
    wait_s,
)
from agentd.platforms._ascend_gates import GATES
from agentd.platforms._ascend_sdk import STAND_IN
from agentd.platforms.base import by_status, lost, with_extra
from agentd.probing import Probe
from agentd.records import ActionCompleted, ActionFailed, Heartbeat, Json
from agentd.standin import StandIn
from agentd.units import rfc3339

_COMPLETED = Call("complete", "/api/agent-action/{id}/complete")
_FAILED = Call("fail", "/api/agent-action/{id}/fail")
_HEARTBEAT = Call("heartbeat", "/api/agents/health/heartbeat", newest_only=True)
_OLD_ROUTES = {"complete": "/api/sdk/action/{id}/completed", "fail": "/api/sdk/action/{id}/failed"}
_DIGITS = re.compile(r"[0-9]+")
_MADE_LOCALLY = "fail_open_"  # what the SDK calls an action that it let pass without asking
_NO_SEGMENT = frozenset({".", ".."})  # a URL loses them on its way
_FLAT_METRICS = ("response_time_ms", "error_rate", "requests_count")
# The version of what we say and not of agentd: a heartbeat sealed before an upgrade is the same bytes after it.
_SDK_VERSION = "agentd/1"


class _Extra(Struct):
    extra: dict[str, Raw] | None = None


_decode_extra = msgspec.json.Decoder(_Extra).decode
_decode_completed = msgspec.json.Decoder(ActionCompleted).decode
_decode_failed = msgspec.json.Decoder(ActionFailed).decode
_decode_heartbeat = msgspec.json.Decoder(Heartbeat).decode
_decode_members = msgspec.json.Decoder(dict[str, Raw]).decode
_encode = msgspec.json.Encoder().encode


class Ascend:
    """The adapter; it has no state."""

    name = "ascend"
    default_base_url = "https://pilot.owkai.app"
    encoder_version = 1
    introduces: frozenset[str] = frozenset()  # an action gets its id from the gate that asks leave for it
    calls: Mapping[str, Call] = {
        "action.completed": _COMPLETED,
        "action.failed": _FAILED,
        "heartbeat": _HEARTBEAT,
    }
    gates: Mapping[str, Gate] = GATES
    options: Mapping[str, tuple[str, ...]] = {
        "completion_route": ("sdk", "server"),
        "heartbeat_metrics": ("union", "flat", "nested"),
    }
    stand_in: StandIn = STAND_IN
    probe = Probe("/api/sdk/kill-switch/status")

    def headers(self, sending: Sending) -> dict[str, str]:
        """Both forms of authentication, as the SDK sends them, and its signature if there is a secret."""
        timestamp = rfc3339(sending.now_s)
        headers = {
            "x-api-key": sending.api_key,
            "authorization": f"Bearer {sending.api_key}",
            "x-request-timestamp": timestamp,
        }
        if sending.idempotency_key:  # a read has none
            correlation_id = "asc_" + hashlib.sha256(sending.idempotency_key.encode()).hexdigest()[:16]
            headers |= {"idempotency-key": sending.idempotency_key, "x-correlation-id": correlation_id}
        if sending.environment:
            headers["x-environment"] = sending.environment
        if sending.signing_secret:
            headers["x-signature"] = _signature(sending.signing_secret, timestamp, sending.body)
        return headers

    def references(self, item: Item) -> Sequence[Reference]:
        return () if item.kind == "heartbeat" else (Reference("action", _action_of(item)),)

    def encode(self, call: Call, items: Sequence[Item], context: Context) -> Request:
        item = items[0]
        if item.kind == "heartbeat":
            return Request(call.path, _heartbeat(item, context))
        action_id = context.resolve("action", _action_of(item))
        if action_id is None:
            raise Unencodable("its action is unknown to the platform")
        route = _option(context, "completion_route")
        path = (call.path if route == "sdk" else _OLD_ROUTES[call.name]).format(id=_segment(action_id, route))
        body = _completed(item) if item.kind == "action.completed" else _failed(item, route)
        own = _encode({"action_id": action_id} | body if route == "sdk" else body)
        return Request(path, with_extra(own, _decode_extra(item.body).extra))

    def classify(self, call: Call, items: Sequence[Item], answer: Response | Lost, attempt: Attempt) -> Verdict:
        if isinstance(answer, Lost):
            return lost(call, answer) or Unknown(answer.reason)
        said = decoded(answer.body)
        reason = reason_of(answer.status, said)
        match answer.status:
            case 403 if is_denial(said):
                return Reject(reason)
            case 403 if code_of(said) == "ACCOUNT_LOCKED":
                return Pause(Scope.DESTINATION, reason)
            case 404 if not is_ours(said):
                return Pause(Scope.DESTINATION, f"{reason}: is base_url right, and options.completion_route?")
            case 409 if attempt.maybe_taken:
                return Delivered()  # it answers our own repeat
            case 429:
                return Retry(reason, wait_s(answer.headers, attempt.now_s), Scope.DESTINATION)
            case _:
                verdict = by_status(answer, attempt, reason)
        return _taken(items[0], answer, said, reason) if isinstance(verdict, Delivered) else verdict


# -- requests --------------------------------------------------------------------------------------------------------------


def _option(context: Context, name: str) -> str:
    """The variant to speak; the first of the known ones is the default. Raises ConfigError, which costs no record."""
    known = Ascend.options[name]
    chosen = context.options.get(name, known[0])
    if chosen not in known:
        raise ConfigError(f"options.{name} is {chosen!r}; ascend knows {', '.join(known)}")
    return chosen


def _action_of(item: Item) -> str:
    return item.lane.partition(":")[2]


def _segment(action_id: str, route: str) -> str:
    """The id as part of a path. Raises Unencodable for what must not go there."""
    if not action_id or action_id.startswith(_MADE_LOCALLY) or action_id in _NO_SEGMENT:
        raise Unencodable(f"action_id {action_id[:80]!r} is none that ASCEND gives")
    if route == "server" and _DIGITS.fullmatch(action_id) is None:
        raise Unencodable(f"action_id {action_id[:80]!r} is no number, and the server's route takes no other")
    return quote(action_id, safe="")


def _completed(item: Item) -> dict[str, Any]:
    record = _decode_completed(item.body)
    return {"status": "completed", "completed_at": _time(record.occurred_at, item)} | _set(
        {"result": _given(record.result), "duration_ms": record.duration_ms}
    )


def _failed(item: Item, route: str) -> dict[str, Any]:
    record = _decode_failed(item.body)
    error = _error(record.error, objects=route == "sdk")
    failed = {"status": "failed", "failed_at": _time(record.occurred_at, item), "error": error}
    return failed | _set({"duration_ms": record.duration_ms})


def _error(error: Json, *, objects: bool) -> Raw | str:
    """A string, or where the route takes it an object; any other JSON goes as its text."""
    given = _given(error)
    if given is None:
        return "unknown"
    text = bytes(given).strip()
    return given if text.startswith(b'"') or (objects and text.startswith(b"{")) else text.decode()


def _heartbeat(item: Item, context: Context) -> bytes:
    record = _decode_heartbeat(item.body)
    agent = context.agent(item.agent)
    if not agent:
        raise Unencodable("the heartbeat names no agent_id and the destination has none")
    ours = {"sdk_version": _SDK_VERSION, "timestamp": _time(None, item)}
    told = {
        name for name, value in (record.extra or {}).items() if _given(value) is not None
    }  # an SDK says these itself
    own = {"agent_id": agent} | {name: value for name, value in ours.items() if name not in told}
    own |= _set({"status": record.status})
    return with_extra(_encode(_with_metrics(own, record, context)), record.extra)


def _with_metrics(own: dict[str, Any], record: Heartbeat, context: Context) -> dict[str, Any]:
    metrics = _members(record.metrics)
    if not metrics:
        return own
    form = _option(context, "heartbeat_metrics")
    if form == "flat":
        return metrics | own
    flat = {name: metrics[name] for name in _FLAT_METRICS if name in metrics} if form == "union" else {}
    return own | flat | {"metrics": metrics}


def _members(value: Json) -> dict[str, Raw]:
    """The members that are not null; what is no object goes under `value`."""
    given = _given(value)
    if given is None:
        return {}
    try:
        members = _decode_members(given) if bytes(given).lstrip().startswith(b"{") else {"value": given}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Unencodable(f"metrics: {error}") from error
    return {name: member for name, member in members.items() if _given(member) is not None}


def _given(value: Json) -> Raw | None:
    return None if value is UNSET or bytes(value).strip() in (b"", b"null") else value


def _set(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _time(time: datetime | None, item: Item) -> datetime:
    return datetime.fromtimestamp(item.admitted_us / 1e6, UTC) if time is None else time.astimezone(UTC)


def _signature(secret: str, timestamp: str, body: bytes) -> str:
    """`X-Signature` is over the body as Python's json module writes it with sorted keys, not over the bytes on the wire."""
    try:
        text = json.dumps(json.loads(body), sort_keys=True)
    except (ValueError, RecursionError):
        text = body.decode(errors="replace")  # a server in Python can't read it either, and refuses it by another name
    signed = hmac.new(secret.encode(), f"{timestamp}.{text}".encode(), hashlib.sha256)
    return f"v1={signed.hexdigest()}"


# -- answers ---------------------------------------------------------------------------------------------------------------


def _taken(item: Item, answer: Response, said: Any, reason: str) -> Verdict:
    """What a 2xx means: a page is somebody else's, and ASCEND can say no under 200."""
    if said is None and answer.body.strip() not in (b"", b"null") and not is_cut(answer):
        return Retry(f"{answer.status} without JSON: is base_url right?", None, Scope.DESTINATION)
    if not is_refusal(said):
        return Delivered()
    # A heartbeat not taken may be tomorrow, when somebody has activated the agent; until then the newest one is kept.
    return Retry(reason) if item.kind == "heartbeat" else Reject(reason)


PLATFORM = Ascend()
