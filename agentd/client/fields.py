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


# -- gates -----------------------------------------------------------------------------------------------------------------


class Asking(TypedDict, total=False):
    """How a gate is asked. Left out: run and span of the context, the run's agent, the gate's own deadline, no key."""

    to: str | None  # the destination, where more than one has such a gate
    key: str | None  # of the client's making: asked again under it, the same verdict comes and nothing acts twice
    agent_id: str | None
    run_id: str | None
    span_id: str | None


class DeadlineAsking(Asking, total=False):
    deadline: float | None  # seconds


class DecideFields(DeadlineAsking, total=False):
    """What `decide` takes beside the question."""

    mode: str  # rulebook (binding), single, multi, runtime
    binding_mode: str
    rulebook: Mapping[str, Any]
    context: Mapping[str, Any]
    adapter: Mapping[str, Any]
    options: Sequence[Any]
    response_view: str  # minimal, standard, full
    decision_id: str  # the client's own name for the decision


class ActionRequest(Asking, total=False):
    """What asking for an action takes beside its type and resource."""

    agent_name: str
    parameters: Mapping[str, Any]
    action_details: Mapping[str, Any]
    context: Any
    metadata: Mapping[str, Any]
    resource_id: str
    risk_indicators: Any
    require_approval: bool
    orchestration_session_id: str
    parent_action_id: int
    orchestration_depth: int
    mcp_server_name: str
    model_id: str
    tool_name: str
    description: str
    business_justification: str
    action_id: str  # the client's own name for the action


class IntentFields(DeadlineAsking, total=False):
    """What `submit_intent` takes beside amount, currency and reason."""

    confidence: float
    merchant: str
    merchant_category: str
    metadata: Mapping[str, Any]
    intent_id: str  # the client's own name for the intent


class InvokeFields(TypedDict, total=False):
    """What `invoke` takes beside the agent and its input. Its `agent_id` is the one that is to run."""

    to: str | None
    key: str | None
    run_id: str | None
    span_id: str | None
    deadline: float | None
    invocation_id: str  # the client's own name for the hosted run
    prompt_variables: Mapping[str, str]
    parent_run_id: str
    session_id: str
    start_session: bool
    history: Sequence[Mapping[str, str]]
    external_user_id: str
    test: bool


class EvaluationFields(DecisionFields, total=False):
    """What `evaluate_decision` takes beside the context, options, chosen and confidence: that of `log_decision`."""

    key: str | None
    deadline: float | None


class AnswerFields(TypedDict, total=False):
    """What a scripted answer may say beside its word."""

    response: Any
    id: str
    platform_id: str
    destination: str
    reason: str
    then: str  # what a wait hears later
    fail_open: bool
