"""AgentOS (https://agentos-ai.dev/docs/ingest, pyagentos-sdk 0.4.0): runs, events, tasks.

What its strictness asks of us: optional fields are left out, never null, since one null makes the schema refuse the whole
batch; `external_run_id` is always sent, because the server dedupes starts on it and a repeat is then safe; events carry no
id, so the record's own travels as the first payload key `agentd_id`. Task creation is repeated with the same task id and
bytes (the SDK repeats it on 429 only): a server that does not dedupe by task id would show such a task twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct

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
from agentd.outcomes import Delivered, Learned, Pause, Reject, Retry, Scope, Unknown, Verdict
from agentd.platforms._agentos_gates import GATES
from agentd.platforms._agentos_sdk import STAND_IN
from agentd.platforms._agentos_wire import Envelope, by_code, envelope_in, reason_of
from agentd.platforms.base import by_status, is_cut, lost, with_extra
from agentd.probing import Probe
from agentd.records import TYPES, Event, Json, RunCancel, RunComplete, RunFail, RunStart, Span, Task, Time
from agentd.stamp import MEMBER
from agentd.standin import StandIn

_PREFIX = "/api/ingest/v1"
_ERROR_MESSAGE_CHARS = 4000  # pyagentos-sdk cuts here
_REASON_CHARS = 1000
_EVENTS = Call("events", f"{_PREFIX}/events", batch=True)
_TASKS = Call("tasks", f"{_PREFIX}/tasks")


class _Start(Struct, omit_defaults=True):
    agent_id: str
    trigger_type: str = ""
    input: Raw = Raw(b"")
    external_run_id: str = ""
    parent_run_id: str | None = None


class _Event(Struct, omit_defaults=True):
    """The event object; only what is set is sent."""

    type: str
    level: str = ""
    payload: Raw = Raw(b"")
    occurred_at: Time | None = None
    span_id: str | None = None
    parent_span_id: str | None = None
    kind: str | None = None
    started_at: Time | None = None
    ended_at: Time | None = None
    duration_ms: int | None = None


class _Events(Struct):
    run_id: str
    events: list[_Event | Raw]


_decoders: dict[str, msgspec.json.Decoder[Any]] = {kind: msgspec.json.Decoder(type_) for kind, type_ in TYPES.items()}
_encode = msgspec.json.Encoder().encode


class AgentOS:
    """The adapter; it has no state."""

    name = "agentos"
    default_base_url = "https://agentos-ai.dev"
    encoder_version = 1
    introduces = frozenset({"run.start"})
    options: Mapping[str, tuple[str, ...]] = {}
    gates: Mapping[str, Gate] = GATES
    stand_in: StandIn = STAND_IN
    # the one read that there is; an agent's key is known and has no leave for it (403), a wrong one is not (401)
    probe = Probe("/api/v1/approvals", frozenset({200, 403}))
    cap = "AgentOS's plan"
    calls: Mapping[str, Call] = {
        "run.start": Call("run/start", f"{_PREFIX}/run/start"),
        "event": _EVENTS,
        "span": _EVENTS,
        "task": _TASKS,
        "run.complete": Call("run/complete", f"{_PREFIX}/run/complete"),
        "run.fail": Call("run/fail", f"{_PREFIX}/run/fail"),
        "run.cancel": Call("run/cancel", f"{_PREFIX}/run/cancel"),
    }

    def usage(self, _request: Request, answer: Response, _now_s: float) -> Usage:
        """402 says that the plan is used up; of how much there is, and until when, no answer tells."""
        if by_code(answer, envelope_in(answer.body)).status == 402:  # noqa: PLR2004
            return Usage(reached=True)
        return Usage(passed=200 <= answer.status < 300)  # noqa: PLR2004

    def headers(self, sending: Sending) -> dict[str, str]:
        return {"authorization": f"Bearer {sending.api_key}", "idempotency-key": sending.idempotency_key}

    def references(self, item: Item) -> Sequence[Reference]:
        if item.kind != "run.start":
            return (Reference("run", _run_of(item)),)
        parent: str | None = _decoders["run.start"].decode(item.body).parent_run_id
        return () if parent is None else (Reference("run", parent, optional=True),)

    def encode(self, call: Call, items: Sequence[Item], context: Context) -> Request:
        record = _decoders[items[0].kind].decode(items[0].body)
        if isinstance(record, RunStart):
            return Request(call.path, with_extra(_encode(_start(record, items[0], context)), record.extra))
        run_id = context.resolve("run", _run_of(items[0]))
        if run_id is None:
            raise Unencodable("its run is unknown to the platform")
        if call is _EVENTS:
            return Request(call.path, _encode(_Events(run_id, [_event(item, context) for item in items])))
        single = _encode(_single(record, run_id))
        return Request(call.path, single if call is _TASKS else with_extra(single, record.extra))

    def classify(self, call: Call, items: Sequence[Item], answer: Response | Lost, attempt: Attempt) -> Verdict:
        if isinstance(answer, Lost):
            return lost(call, answer) or Unknown(answer.reason)
        envelope = envelope_in(answer.body)
        reason = reason_of(answer, envelope)
        answer = by_code(answer, envelope)
        introduces = items[0].kind in self.introduces
        if answer.status == 409 and not introduces and self._answers_our_repeat(call, attempt):  # noqa: PLR2004
            return Delivered()
        if answer.status == 404 and envelope is None:  # noqa: PLR2004 - no route of AgentOS's: somebody else answers there
            return Pause(Scope.DESTINATION, f"{reason}: is base_url right?")
        verdict = by_status(answer, attempt, reason)
        if not isinstance(verdict, Delivered):
            return verdict
        if answer.body.strip() and envelope is None and not is_cut(answer):
            return Retry(f"{answer.status} without AgentOS's envelope: is base_url right?", None, Scope.DESTINATION)
        if envelope is not None and envelope.error:
            return Reject(reason)
        return self._learn(items[0], envelope) if introduces else verdict

    @staticmethod
    def _answers_our_repeat(call: Call, attempt: Attempt) -> bool:
        """A conflict with what we sent ourselves. Events have no key to conflict by: theirs means that the run has ended."""
        return attempt.maybe_taken and not attempt.ended and call is not _EVENTS

    def _learn(self, item: Item, envelope: Envelope | None) -> Verdict:
        data = envelope.data if envelope is not None else None
        run_id = data.get("run_id") if isinstance(data, dict) else None
        if not isinstance(run_id, str) or not run_id:
            return Retry("run/start answered without data.run_id")  # safe: external_run_id dedupes the repeat
        return Delivered((Learned("run", _run_of(item), run_id),))


def _run_of(item: Item) -> str:
    return item.lane.partition(":")[2]


def _start(record: RunStart, item: Item, context: Context) -> _Start:
    parent = record.parent_run_id
    agent = context.agent(item.agent)
    if not agent:
        raise Unencodable("run.start names no agent_id and the destination has none")
    return _Start(
        agent_id=agent,
        trigger_type=record.trigger_type or "sdk",
        input=_stamped(object_of(record.input), context),
        external_run_id=record.external_run_id or record.run_id,
        parent_run_id=None if parent is None else context.resolve("run", parent),
    )


def _stamped(given: Raw, context: Context) -> Raw:
    """The run's input with where it came from, unless the agent has put something there itself."""
    return Raw(with_extra(bytes(given), {MEMBER: Raw(_encode(context.stamp))})) if context.stamp else given


def _event(item: Item, context: Context) -> _Event | Raw:
    record: Event | Span = _decoders[item.kind].decode(item.body)
    event = _event_of(record, item, context)
    return Raw(with_extra(_encode(event), record.extra)) if record.extra else event


def _event_of(record: Event | Span, item: Item, context: Context) -> _Event:
    payload = _payload(record.payload, item.record_id if context.inject_id else None)
    if isinstance(record, Event):
        return _Event(record.type, record.level, payload, _utc(record.occurred_at) or _admitted(item))
    return _Event(
        type=record.name,
        level=record.level,
        payload=payload,
        occurred_at=_utc(record.started_at) or _admitted(item),
        span_id=record.span_id,
        parent_span_id=record.parent_span_id,
        kind=record.span_kind,
        started_at=_utc(record.started_at),
        ended_at=_utc(record.ended_at),
        duration_ms=record.duration_ms,
    )


def _utc(time: datetime | None) -> datetime | None:
    return time if time is None or time.tzinfo is UTC else time.astimezone(UTC)


def _admitted(item: Item) -> datetime:
    return datetime.fromtimestamp(item.admitted_us / 1e6, UTC)


def _single(record: Any, run_id: str) -> dict[str, Any]:
    match record:
        case Task():
            task = {"id": record.task_id, "name": record.name, "status": record.status}
            facts = {
                "input": _given(record.input),
                "output": _given(record.output),
                "error_message": record.error_message,
            }
            return {"run_id": run_id, "task": Raw(with_extra(_encode(task | _set(facts)), record.extra))}
        case RunComplete():
            usage = {} if record.usage is None else msgspec.structs.asdict(record.usage)
            return {"run_id": run_id} | _set({"output": _given(record.output), **usage})
        case RunFail():
            detail = None if _given(record.error_detail) is None else object_of(record.error_detail)
            return {"run_id": run_id, "error_message": record.error_message[:_ERROR_MESSAGE_CHARS]} | _set(
                {"error_detail": detail}
            )
        case RunCancel():
            return {"run_id": run_id} | _set(
                {"reason": None if record.reason is None else record.reason[:_REASON_CHARS]}
            )
        case _:
            raise Unencodable(f"{type(record).__name__} has no call at AgentOS")


def _set(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _given(value: Json) -> Raw | None:
    """The JSON value, None where it is absent or null: AgentOS takes no null."""
    return None if value is UNSET or bytes(value).strip() in (b"", b"null") else value


def object_of(value: Json) -> Raw:
    """The JSON value as the object that AgentOS demands: absent is `{}`, anything else goes under `value`."""
    given = _given(value)
    if given is None:
        return Raw(b"{}")
    return given if bytes(given).lstrip().startswith(b"{") else Raw(b'{"value":' + bytes(given) + b"}")


def _payload(value: Json, record_id: bytes | None) -> Raw:
    """The payload as an object, with the record's id as its first key, whatever the agent put there itself."""
    payload = object_of(value)
    if record_id is None:
        return payload
    data = bytes(payload).strip()
    if b"agentd_id" in data or b"\\u" in data:  # a name may be written in escapes
        fields = msgspec.json.decode(data, type=dict[str, Raw])
        if fields.pop("agentd_id", None) is not None:
            data = _encode(fields)
    rest = data[1:].lstrip()
    comma = b"" if rest == b"}" else b","
    return Raw(b'{"agentd_id":"' + text_of(record_id).encode() + b'"' + comma + rest)


PLATFORM = AgentOS()
