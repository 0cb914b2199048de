"""The optional fields of the calls with many of them, for type checkers alone: nothing imports this at run time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias, TypedDict

Moment: TypeAlias = datetime | str | float  # a datetime (naive: local time), RFC 3339, or seconds since 1970


class Common(TypedDict, total=False):
    """Every record may name its agent and its destinations."""

    id: str
    to: str | Sequence[str]
    agent_id: str | None


class DecisionFields(Common, total=False):
    """What `log_decision` takes beside the context, options, chosen and confidence."""

    decision_id: str
    constraints: Sequence[str]
    assumptions: Any
    model: str
    runner: str
    prompt_version: str
    prompt_hash: str
    parameters: Any
    policy_version_id: str
    decision_type: str
    agent_name: str
    create_agent_if_missing: bool
    trace_id: str
    run_id: str | None
    span_id: str | None
    parent_span_id: str
    session_id: str
    conversation_id: str
    request_id: str
    tool_calls: Any
    mcp_servers: Any
    tokens_input: int
    tokens_output: int
    cost_usd: float
    latency_ms: float
    error_text: str


class SnapshotFields(Common, total=False):
    """What `capture_snapshot` takes beside the decision and the snapshot."""

    tool_calls: Any
    model_usage: Any
    timings: Any
    eval: Any
    eval_score: float
    eval_pass: bool
    policy_version_id: str
    event_id: str
    schema_version: str
    captured_at: Moment
    trace_id: str
    run_id: str | None
    span_id: str | None
    parent_span_id: str
    request_id: str


class ReceiptFields(Common, total=False):
    """What executions and outcomes share."""

    action_taken: str
    target_system: str
    target_object_id: str
    mutation: Any
    external_ref: str
    decision_record_hash: str
    decision_receipt_hash: str
    evidence_refs: Any


class ExecutionFields(ReceiptFields, total=False):
    execution_id: str
    state_before_hash: str
    state_after_hash: str
    state_before_ref: Any
    state_after_ref: Any
    executor: Any
    action_binding: Any
    execution_result: Any
    executed_at: Moment


class OutcomeFields(ReceiptFields, total=False):
    action_executed: bool
    observed_metrics: Mapping[str, Any]
    execution_receipt_id: str
    execution_hash: str


class CrmSyncFields(Common, total=False):
    sync_direction: str
    crm_provider: str
    crm_object_type: str
    crm_object_id: str
    crm_record_url: str
    decision_record_hash: str
    decision_receipt_hash: str
    decision_verdict: str
    decision_action: str
    policy_id: str
    policy_version: str
    field_mapping: Mapping[str, Any]


class ActionFields(Common, total=False):
    duration_ms: int
    occurred_at: Moment
