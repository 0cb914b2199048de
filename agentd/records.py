"""The record kinds: what an agent may hand over, as tagged msgspec Structs.

A record is decoded once at intake. Free JSON fields stay `msgspec.Raw`: they are checked to be JSON but never built into
Python objects, so an event costs about 1.5 µs however rich its payload is. Three questions are answered here as data:
which ordering key a record belongs to (`lane_of`), what may be shed when a queue is full (`loss_class`), and which kinds
introduce or refer to ids (`REFERENCE_FIELDS`). No I/O, no clock.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal, TypeAlias
from uuid import UUID

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

Id = Annotated[str, Meta(min_length=1, max_length=256)]
Name = Annotated[str, Meta(min_length=1, max_length=512)]
Text = Annotated[str, Meta(max_length=65536)]
UInt = Annotated[
    int, Meta(ge=0, le=2**63 - 1)
]  # msgspec's own integers are unbounded: 10**30 would break SQLite and servers
Share = Annotated[float, Meta(ge=0, le=1)]
Amount = Annotated[float, Meta(ge=0, le=1e15)]
Time = Annotated[datetime, Meta(tz=True)]  # RFC 3339 with an offset
Json: TypeAlias = Raw | UnsetType
Level = Literal["debug", "info", "warn", "error"]
TaskStatus = Literal["pending", "running", "completed", "failed", "skipped"]


class LossClass(StrEnum):
    """What a full queue may shed: `debug` first, then `info`, `keep` never."""

    KEEP = "keep"
    INFO = "info"
    DEBUG = "debug"


class _Common(Struct, tag_field="kind", forbid_unknown_fields=True, omit_defaults=True, kw_only=True, gc=False):
    id: UUID | None = None
    to: Name | list[Name] | None = None
    agent_id: Id | None = None
    extra: dict[str, Raw] | None = None  # what the platform takes and agentd has no field for; merged into the request


class RunStart(_Common, tag="run.start"):
    run_id: Id
    input: Json = UNSET
    trigger_type: Literal["manual", "scheduled", "webhook", "sdk"] | None = None
    external_run_id: Id | None = None
    parent_run_id: Id | None = None
    occurred_at: Time | None = None


class Event(_Common, tag="event"):
    run_id: Id
    type: Name
    level: Level = "info"
    payload: Json = UNSET
    occurred_at: Time | None = None


class Span(_Common, tag="span"):
    run_id: Id
    span_id: Id
    name: Name
    span_kind: Name | None = None
    parent_span_id: Id | None = None
    started_at: Time | None = None
    ended_at: Time | None = None
    duration_ms: UInt | None = None
    level: Level = "info"
    payload: Json = UNSET


class Task(_Common, tag="task"):
    run_id: Id
    task_id: Id
    name: Name
    status: TaskStatus
    input: Json = UNSET
    output: Json = UNSET
    error_message: Text | None = None


class Usage(Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True, gc=False):
    """Token counts of a run, under the names that AgentOS uses."""

    input_tokens: UInt | None = None
    output_tokens: UInt | None = None
    cache_read_tokens: UInt | None = None
    cache_creation_tokens: UInt | None = None


class RunComplete(_Common, tag="run.complete"):
    run_id: Id
    output: Json = UNSET
    usage: Usage | None = None


class RunFail(_Common, tag="run.fail"):
    run_id: Id
    error_message: Text
    error_detail: Json = UNSET


class RunCancel(_Common, tag="run.cancel"):
    run_id: Id
    reason: Text | None = None


class Decision(_Common, tag="decision"):
    context: Text
    decision_id: Id | None = None
    options: Json = UNSET
    chosen: Name | None = None
    confidence: Share | None = None
    constraints: list[Text] | None = None
    assumptions: Json = UNSET
    model: Name | None = None
    runner: Name | None = None
    prompt_version: Name | None = None
    prompt_hash: Name | None = None
    parameters: Json = UNSET
    policy_version_id: Name | None = None
    decision_type: Name | None = None
    agent_name: Name | None = None
    create_agent_if_missing: bool | None = None
    trace_id: Id | None = None
    run_id: Id | None = None
    span_id: Id | None = None
    parent_span_id: Id | None = None
    session_id: Id | None = None
    conversation_id: Id | None = None
    request_id: Id | None = None
    tool_calls: Json = UNSET
    mcp_servers: Json = UNSET
    tokens_input: UInt | None = None
    tokens_output: UInt | None = None
    cost_usd: Amount | None = None
    latency_ms: Amount | None = None
    error_text: Text | None = None


class Snapshot(_Common, tag="snapshot"):
    decision_id: Id
    snapshot: Raw
    tool_calls: Json = UNSET
    model_usage: Json = UNSET
    timings: Json = UNSET
    eval: Json = UNSET
    eval_score: Share | None = None
    eval_pass: bool | None = None
    policy_version_id: Name | None = None
    event_id: Id | None = None
    schema_version: Name | None = None
    captured_at: Time | None = None
    trace_id: Id | None = None
    run_id: Id | None = None
    span_id: Id | None = None
    parent_span_id: Id | None = None
    request_id: Id | None = None


class ActionCompleted(_Common, tag="action.completed"):
    action_id: Id
    result: Json = UNSET
    duration_ms: UInt | None = None
    occurred_at: Time | None = None


class ActionFailed(_Common, tag="action.failed"):
    action_id: Id
    error: Json
    duration_ms: UInt | None = None
    occurred_at: Time | None = None


class _Receipt(_Common, kw_only=True):
    """What the three receipts of decide.fyi share (https://www.decide.fyi/openapi.json)."""

    decision_id: Id
    action_taken: Text | None = None
    target_system: Name | None = None
    target_object_id: Name | None = None
    mutation: Json = UNSET
    external_ref: Name | None = None
    decision_record_hash: Name | None = None
    decision_receipt_hash: Name | None = None
    evidence_refs: Json = UNSET


class Execution(_Receipt, tag="execution", kw_only=True):
    execution_status: Name
    execution_id: Id | None = None
    state_before_hash: Name | None = None
    state_after_hash: Name | None = None
    state_before_ref: Json = UNSET
    state_after_ref: Json = UNSET
    executor: Json = UNSET
    action_binding: Json = UNSET
    execution_result: Json = UNSET
    executed_at: Time | None = None


class Outcome(_Receipt, tag="outcome", kw_only=True):
    outcome_status: Name
    action_executed: bool | None = None
    observed_metrics: Json = UNSET
    execution_receipt_id: Id | None = None
    execution_hash: Name | None = None


class CrmSync(_Common, tag="crm_sync"):
    decision_id: Id
    sync_status: Name
    sync_direction: Name | None = None
    crm_provider: Name | None = None
    crm_object_type: Name | None = None
    crm_object_id: Name | None = None
    crm_record_url: Text | None = None
    decision_record_hash: Name | None = None
    decision_receipt_hash: Name | None = None
    decision_verdict: Name | None = None
    decision_action: Text | None = None
    policy_id: Name | None = None
    policy_version: Name | None = None
    field_mapping: Json = UNSET


class Heartbeat(_Common, tag="heartbeat"):
    status: Name | None = None
    metrics: Json = UNSET


Record: TypeAlias = (
    RunStart
    | Event
    | Span
    | Task
    | RunComplete
    | RunFail
    | RunCancel
    | Decision
    | Snapshot
    | ActionCompleted
    | ActionFailed
    | Execution
    | Outcome
    | CrmSync
    | Heartbeat
)
TYPES: dict[str, type[Record]] = {str(t.__struct_config__.tag): t for t in Record.__args__}
KINDS: tuple[str, ...] = tuple(TYPES)
_TIMES = ("occurred_at", "started_at", "ended_at", "captured_at", "executed_at")
TIME_FIELDS: dict[str, tuple[str, ...]] = {
    k: tuple(f for f in _TIMES if f in t.__struct_fields__) for k, t in TYPES.items()
}
_KIND_OF: dict[type[Struct], str] = {t: kind for kind, t in TYPES.items()}

RUN_KINDS = frozenset({"run.start", "event", "span", "task", "run.complete", "run.fail", "run.cancel"})
# What somebody acts on or waits for, against what is only told: a lane that holds some goes before one that does not. `run.start` is
# among them because a gate waits for its run's.
URGENT = frozenset(
    {
        "run.start", "decision", "snapshot", "action.completed", "action.failed", "execution", "outcome", "crm_sync",
    }
)  # fmt: skip
RUN_ENDS = frozenset({"run.complete", "run.fail", "run.cancel"})
# Records that leave an entry in the journal: what an auditor asks for years later. Events and spans are telemetry.
EVIDENCE = frozenset(KINDS) - {"event", "span", "heartbeat"}

# kind → the id that it introduces / the ids that it may refer to, as (kind of id, field)
INTRODUCES: dict[str, tuple[str, str]] = {"run.start": ("run", "run_id"), "decision": ("decision", "decision_id")}
REFERENCE_FIELDS: dict[str, tuple[str, str]] = {
    "event": ("run", "run_id"),
    "span": ("run", "run_id"),
    "task": ("run", "run_id"),
    "run.complete": ("run", "run_id"),
    "run.fail": ("run", "run_id"),
    "run.cancel": ("run", "run_id"),
    "snapshot": ("decision", "decision_id"),
    "action.completed": ("action", "action_id"),
    "action.failed": ("action", "action_id"),
    "execution": ("decision", "decision_id"),
    "outcome": ("decision", "decision_id"),
    "crm_sync": ("decision", "decision_id"),
}


def kind_of(record: Record) -> str:
    """The wire name of a record's kind, such as `run.start`."""
    return _KIND_OF[type(record)]


def loss_class(record: Record) -> LossClass:
    """Only events and spans of level `debug` and `info`, and heartbeats, may ever be shed (promise 6)."""
    if isinstance(record, Event | Span):
        level = record.level
        return LossClass.INFO if level == "info" else LossClass.DEBUG if level == "debug" else LossClass.KEEP
    return LossClass.INFO if isinstance(record, Heartbeat) else LossClass.KEEP


def order_key(record: Record) -> str:
    """What must stay in order among records that wait for room, whatever the destination: a run, a decision, an agent."""
    run_id = getattr(record, "run_id", None)
    if run_id is not None:
        return "run:" + str(run_id)
    place = REFERENCE_FIELDS.get(_KIND_OF[type(record)])
    return f"{place[0]}:{getattr(record, place[1])}" if place else "agent:" + (record.agent_id or "")


def lane_of(record: Record, agent: str, ordering: str = "run", record_id: str = "") -> str:
    """The ordering key: records with the same key are sent one after the other, different keys at the same time.

    `agent` is the agent that the record was admitted for; `ordering` (`run`, `agent` or `none`) is the destination's
    setting and moves decisions alone.
    """
    if isinstance(record, Decision):
        if ordering == "none":
            return "record:" + record_id
        return "agent:" + agent if ordering == "agent" or record.run_id is None else "run:" + record.run_id
    if isinstance(record, Heartbeat):
        return "heartbeat:" + agent
    if isinstance(record, RunStart):
        return "run:" + record.run_id
    kind, field = REFERENCE_FIELDS[_KIND_OF[type(record)]]
    return f"{kind}:{getattr(record, field)}"
