"""Standing in for AgentOS towards pyagentos-sdk 0.4.0 (https://agentos-ai.dev/docs/ingest, authentication, approvals).

Runs, events and tasks are answered from here; invokes and questions to a person are gates; what the control plane reads goes
on. Everything that its SDK calls a write there (`read_only=False` in `agentos/_control.py`), answers to questions and decisions
on approvals are the admin's: nobody approves his own action through us.

The SDK repeats 5xx and network errors of what it calls idempotent, and 429 of everything: 429 is what "nothing was stored,
come again" has to be, since the creation of a task is repeated on nothing else. It never repeats a gate on another status;
what may have acted is 424 all the same, an AgentOSError and no AgentOSTransientError, which host code may well repeat.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Raw

from agentd.errors import RecordError
from agentd.exchange import Lost, Response
from agentd.platforms._sdk import checked, fields_of, is_null, is_object, members_of, object_in, reply, text_in, time_in
from agentd.standin import STATUSES, Asked, Called, Does, Door, Handed, Reply, Why

_INGEST = "/api/ingest/v1"
_RPC = "/api/v1/rpc"
_START = f"{_INGEST}/run/start"
_EVENTS = f"{_INGEST}/events"
_TASKS = f"{_INGEST}/tasks"
_HUMAN_INPUT = f"{_INGEST}/human-input/request"
_ENDS = {
    f"{_INGEST}/run/complete": ("run.complete", "completed"),
    f"{_INGEST}/run/fail": ("run.fail", "failed"),
    f"{_INGEST}/run/cancel": ("run.cancel", "cancelled"),
}
# Of 56 methods those with `read_only=True`, but for `api_keys_list`: keys are nothing for an agent's eyes.
_READS = (
    "agents_get", "agents_list", "alerts_list", "approvals_list", "conversations_get", "conversations_list", "evals_get_run",
    "evals_list_cases", "fleet_health", "folders_list", "integrations_list", "marketplace_list_templates", "members_list",
    "notifications_list", "reports_get", "reports_list", "resources_list", "runs_get", "runs_get_events", "runs_list",
    "schedules_get", "tools_list_builtin", "tools_list_composio", "tools_list_workspace", "workspaces_list",
)  # fmt: skip
_ADMIN = (
    f"{_RPC}/{{method}}",  # the writes, and methods that came later
    "/api/v1/approvals/{approval_id}/decide",
    "/api/v1/runs/{run_id}/reply",
    "/api/v1/runs/{run_id}/human-input",
)
_LONG_POLL_S = 285.0  # the SDK's own limits: the server answers within 270 and 300 s
_INVOKE_S = 310.0
_STATUSES = STATUSES | {Why.SPOOL_FULL: 429}
_CODES = {
    Why.MALFORMED: "VALIDATION_ERROR",
    Why.UNAUTHENTICATED: "UNAUTHENTICATED",
    Why.FORBIDDEN: "FORBIDDEN",
    Why.NOT_FOUND: "NOT_FOUND",
    Why.CONFLICT: "CONFLICT",
    Why.TOO_LARGE: "PAYLOAD_TOO_LARGE",
    Why.SPOOL_FULL: "RATE_LIMITED",
    Why.UNREACHABLE: "UNAVAILABLE",
    Why.NO_ANSWER: "GATEWAY_TIMEOUT",
    Why.OUTCOME_UNKNOWN: "OUTCOME_UNKNOWN",
    Why.INTERNAL: "INTERNAL_ERROR",
}


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


_START_FIELDS = _same("agent_id", "trigger_type", "input", "external_run_id", "parent_run_id")
_EVENT_FIELDS = _same("type", "level", "payload", "occurred_at")
_SPAN_FIELDS = _same("level", "payload", "span_id", "parent_span_id", "started_at", "ended_at", "duration_ms") | {
    "type": "name",
    "kind": "span_kind",
}
_TASK_FIELDS = _same("name", "status", "input", "output", "error_message") | {"id": "task_id"}
_TOKENS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_creation_tokens")
_END_FIELDS = {
    "run.complete": _same("run_id", "output"),
    "run.fail": _same("run_id", "error_message", "error_detail"),
    "run.cancel": _same("run_id", "reason"),
}
_TIMES = ("occurred_at", "started_at", "ended_at")
_encode = msgspec.json.Encoder().encode
_decode_list = msgspec.json.Decoder(list[Raw]).decode
_decode_text = msgspec.json.Decoder(str).decode


class AgentOSStandIn:
    """What of AgentOS's API passes, and as what."""

    doors: Sequence[Door] = (
        Door("POST", _START, Does.RECORD, kind="run.start"),
        Door("POST", _EVENTS, Does.RECORD, kind="event"),
        Door("POST", _TASKS, Does.RECORD, kind="task"),
        *(Door("POST", path, Does.RECORD, kind=kind) for path, (kind, _) in _ENDS.items()),
        Door("POST", _HUMAN_INPUT, Does.GATE, gate="human_input", patience_s=_LONG_POLL_S),
        Door("POST", "/api/v1/agents/{agent_id}/invoke", Does.GATE, gate="invoke", streams=True, patience_s=_INVOKE_S),
        *(Door("POST", f"{_RPC}/{method}", Does.READ) for method in _READS),
        Door("GET", "/api/v1/approvals", Does.READ),
        *(Door("POST", path, Does.ADMIN) for path in _ADMIN),
    )
    names: Mapping[str, str] = {
        "run_id": "run",
        "parent_run_id": "run",
        "agent_id": "agent",
        "request_id": "question",  # whose answer is asked for
    }
    headers: frozenset[str] = frozenset()

    def asks(self, called: Called) -> str | None:
        """The gate's name; a question that has its `request_id` already is only asked for its answer.

        What is no id (empty, blank, no string) asks anew, and so is a gate: the platform may well take it for left out.
        """
        if called.door.path == _HUMAN_INPUT and _is_id(called.members.get("request_id", Raw(b"null"))):
            return None
        return called.door.gate or None

    def hand_over(self, called: Called, make_id: Callable[[str], str]) -> Handed:
        members = members_of(called)
        path = called.door.path
        if path == _START:
            return _start(members, make_id)
        if path == _EVENTS:
            return _events(members)
        return _task(members) if path == _TASKS else _end(members, *_ENDS[path])

    def asked(self, called: Called) -> Asked:
        """The agent that asks is its run's; an invoke that has no parent run is asked by the agent that it names."""
        members = members_of(called)
        if called.door.path == _HUMAN_INPUT:
            _required(members, "prompt")
            return Asked("", _required(members, "run_id"), members)
        named, parent = called.segments["agent_id"], text_in(members, "parent_run_id") or None
        return Asked("" if parent else named, parent, {"agent_id": Raw(_encode(named)), **members})

    def refusal(self, why: Why, message: str) -> Reply:
        """`{data: null, error: {code, message}}`; the SDK goes by status and code."""
        return reply(_STATUSES[why], {"data": None, "error": {"code": _CODES[why], "message": message}})

    def streams(self, called: Called) -> bool:
        return called.door.streams and bytes(called.members.get("stream", Raw(b""))) == b"true"

    def whole(self, answer: Response) -> Response | Lost:
        """An invoke's last event as the answer that it gives without `stream`; one that breaks off has none."""
        for event in reversed(_stream_events(answer.body)):
            match event.get("type"):
                case "done":
                    return _as_answer(200, event)
                case "awaiting_approval":
                    return _as_answer(202, event | {"awaiting_approval": {"approval_id": event.get("approval_id")}})
                case "awaiting_input":
                    asked = {name: event.get(name) for name in ("request_id", "question")}
                    return _as_answer(202, event | {"awaiting_input": asked})
                case "error":
                    error = {"code": event.get("code"), "message": event.get("message")}
                    return Response(500, {}, _encode({"data": None, "error": {k: str(v) for k, v in error.items()}}))
                case _:
                    pass
        return Lost("the stream ended without its last event", sent=True)


def _stream_events(stream: bytes) -> list[dict[str, Any]]:
    """The events of a stream, read as the SDK reads them; what is none is passed over."""
    events, lines = [], []
    for line in [*stream.splitlines(), b""]:
        if line.startswith(b"data:"):
            lines.append(line[5:].strip())
        elif not line and lines:
            with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                events.append(msgspec.json.decode(b"\n".join(lines), type=dict[str, Any]))
            lines = []
    return events


def _as_answer(status: int, event: Mapping[str, Any]) -> Response:
    return Response(status, {}, _encode({"data": event, "error": None}))


def _start(members: Mapping[str, Raw], make_id: Callable[[str], str]) -> Handed:
    """`external_run_id` is what the SDK repeats a start under: the same gives the same run."""
    agent, external = _required(members, "agent_id"), text_in(members, "external_run_id")
    _check_object(members, "input")
    key = external and f"run {external} of {agent}"
    run_id = make_id(key)
    record = checked("run.start", {"run_id": run_id, **fields_of(members, _START_FIELDS)}, _START_FIELDS)
    return Handed([record], _answer({"run_id": run_id}), key=key)


def _events(members: Mapping[str, Raw]) -> Handed:
    run_id = _required(members, "run_id")
    try:
        events = _decode_list(members["events"])
    except (KeyError, msgspec.ValidationError):
        raise RecordError("$.events: expected an array of events") from None
    records = [_event(event, run_id, f"$.events[{index}]") for index, event in enumerate(events)]
    return Handed(records, _answer({"accepted": len(records)}), left_out=_beside(members, "run_id", "events"))


def _event(event: Raw, run_id: str, place: str) -> dict[str, Any]:
    """An event, or a span where it has the id of one. Raises RecordError: one bad event refuses its batch, as at AgentOS."""
    members = {name: value for name, value in object_in(event, place).items() if not is_null(value)}
    try:
        times = {name: time_in(members, name) for name in _TIMES if name in members}
        _check_object(members, "payload")
        if "span_id" in members and times.get("occurred_at") == times.get("started_at"):
            fields = fields_of(members, _SPAN_FIELDS, dropped={"occurred_at"})
            return checked("span", {**fields, **_only(times, fields), "run_id": run_id}, _SPAN_FIELDS)
        fields = fields_of(members, _EVENT_FIELDS)  # a span's members without a span's form go on as `extra`
        return checked("event", {**fields, **_only(times, fields), "run_id": run_id}, _EVENT_FIELDS)
    except RecordError as error:
        raise RecordError(f"{place}{str(error).removeprefix('$')}") from None


def _task(members: Mapping[str, Raw]) -> Handed:
    task = {name: value for name, value in _object(members, "task").items() if not is_null(value)}
    fields = fields_of(task, _TASK_FIELDS) | {"run_id": _required(members, "run_id")}
    try:
        record = checked("task", fields, _TASK_FIELDS)
    except RecordError as error:
        raise RecordError(f"$.task{str(error).removeprefix('$')}", raw=error.raw) from None
    return Handed([record], _answer({"task_id": record["task_id"]}), left_out=_beside(members, "run_id", "task"))


def _end(members: Mapping[str, Raw], kind: str, status: str) -> Handed:
    run_id = _required(members, "run_id")
    _check_object(members, "error_detail")
    names = _END_FIELDS[kind]
    usage = {name: members[name] for name in _TOKENS if name in members and kind == "run.complete"}
    fields = fields_of(members, names, dropped=usage) | ({"usage": usage} if usage else {})
    try:
        record = checked(kind, fields, names)
    except RecordError as error:
        raise RecordError(str(error).replace("$.usage.", "$."), raw=error.raw) from None
    return Handed([record], _answer({"run_id": run_id, "status": status}))


def _is_id(value: Raw) -> bool:
    try:
        return bool(_decode_text(value).strip())
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False


def _required(members: Mapping[str, Raw], name: str) -> str:
    text = text_in(members, name)
    if not text:
        raise RecordError(f"$.{name}: required")
    return text


def _object(members: Mapping[str, Raw], name: str) -> Mapping[str, Raw]:
    if name not in members:
        raise RecordError(f"$.{name}: required")
    return object_in(members[name], f"$.{name}")


def _check_object(members: Mapping[str, Raw], name: str) -> None:
    if name in members and not is_object(members[name]):
        raise RecordError(f"$.{name}: expected an object")


def _only(times: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: time for name, time in times.items() if name in fields}


def _beside(members: Mapping[str, Raw], *known: str) -> list[str]:
    return sorted(set(members).difference(known))


def _answer(data: Mapping[str, Any]) -> Reply:
    return reply(200, {"data": data, "error": None})


STAND_IN = AgentOSStandIn()
