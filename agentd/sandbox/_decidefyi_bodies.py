"""What comes to decide.fyi and how strictly it is read: lifecycle bodies, forbidden fields, the refusal of a request.

Sources: https://www.decide.fyi/openapi.json v1.10.0 and the developer pages for fields and codes, the repository decidefyi/decide for
`executor`, `action_binding`, `evidence_refs` and the hash's normalisation. Only what carries a `*` there is required. Unknown fields
are let by and kept, as no source says that they are refused; a documented field may be left out but not be null.
Used by the face in `decidefyi` alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from agentd.sandbox._decidefyi_rulebook import problems

DIRECT, TRUSTED = "direct_declarative_rulebook", "trusted_adapter_facts_then_declarative_rulebook"
_ADAPTER_FIELDS = {"adapter_id": str, "version": str, "manifest_hash": str, "input": dict}
MAX_KEY = 300  # characters of an idempotency key that count

# What a caller may not bring along, because it is what decide.fyi gives out.
FORBIDDEN = frozenset(
    {
        "runtime_binding", "trusted_adapter", "adapter_facts", "rulebook_attestation", "rulebook_contract",
        "decision_contract", "input_hash", "decision_id", "record_hash", "receipt_hash", "verify_url", "replay_url",
        "engine", "evaluator_version", "verdict", "application_verdict", "action", "reason_code", "matched_rule_id",
    }
)  # fmt: skip

Text = Annotated[str, Meta(min_length=1)]


class Refused(Exception):  # noqa: N818 - named as its reader would say it
    """The platform refuses a request: status, `error`, `v`, sentence, and what else its envelope and headers carry."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        /,
        v: str = "try again",
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.v = status, code, message, v
        self.headers = dict(headers or {})
        self.more = more


class _Lifecycle(Struct, kw_only=True):
    action_taken: Text | UnsetType = UNSET
    target_system: Text | UnsetType = UNSET
    target_object_id: Text | UnsetType = UNSET
    mutation: str | UnsetType = UNSET
    external_ref: Text | UnsetType = UNSET
    decision_record_hash: Text | UnsetType = UNSET
    decision_receipt_hash: Text | UnsetType = UNSET


class _Executor(Struct):
    type: Text | UnsetType = UNSET
    id: Text | UnsetType = UNSET


class _Evidence(Struct):
    id: Text | UnsetType = UNSET
    type: Text | UnsetType = UNSET
    hash: Text | UnsetType = UNSET


class ExecutionBody(_Lifecycle):
    execution_status: Text
    execution_id: Text | UnsetType = UNSET
    state_before_hash: Text | UnsetType = UNSET
    state_after_hash: Text | UnsetType = UNSET
    executor: _Executor | UnsetType = UNSET
    action_binding: dict[str, Any] | UnsetType = UNSET


class OutcomeBody(_Lifecycle):
    outcome_status: Text
    action_executed: bool | UnsetType = UNSET
    observed_metrics: dict[str, float] | UnsetType = UNSET
    evidence_refs: list[_Evidence] | UnsetType = UNSET
    execution_receipt_id: Text | UnsetType = UNSET
    execution_hash: Text | UnsetType = UNSET


class CrmSyncBody(Struct):
    sync_status: Text | UnsetType = UNSET
    sync_direction: Text | UnsetType = UNSET
    crm_provider: Text | UnsetType = UNSET
    crm_object_type: Text | UnsetType = UNSET
    crm_object_id: Text | UnsetType = UNSET
    crm_record_url: Text | UnsetType = UNSET
    decision_record_hash: Text | UnsetType = UNSET
    decision_receipt_hash: Text | UnsetType = UNSET
    decision_verdict: Text | UnsetType = UNSET
    decision_action: Text | UnsetType = UNSET
    policy_id: Text | UnsetType = UNSET
    policy_version: Text | UnsetType = UNSET
    field_mapping: dict[str, Any] | UnsetType = UNSET


def read_object(body: bytes) -> dict[str, Any]:
    """A body that is a JSON object. Raises Refused with 400."""
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(400, "DECIDE_API_INVALID_JSON", f"invalid JSON body: {error}") from error
    if not isinstance(decoded, dict):
        raise Refused(400, "DECIDE_API_INVALID_JSON", "invalid JSON body: not an object")
    return decoded


def check_shape(sent: Mapping[str, Any], shape: type[Struct], code: str) -> None:
    """Hold an object against its shape. Raises Refused with 400 and the place that is wrong."""
    try:
        msgspec.convert(sent, shape)
    except msgspec.ValidationError as error:
        raise Refused(400, code, str(error)) from error


def forbidden_in(request: Mapping[str, Any]) -> list[str]:
    """Where a rulebook request brings along what only decide.fyi may say: at the top, and anywhere inside facts."""
    found = sorted(FORBIDDEN & request.keys())
    context, adapter = request.get("context"), request.get("adapter")
    if isinstance(context, dict):
        found += _inside(context.get("inputs"), "context.inputs")
    if isinstance(adapter, dict):
        found += _inside(adapter.get("input"), "adapter.input")
    return found


def _inside(facts: Any, where: str) -> Iterator[str]:
    waiting: list[tuple[Any, str]] = [(facts, where)]
    while waiting:
        value, place = waiting.pop()
        if isinstance(value, dict):
            for name, child in value.items():
                if name in FORBIDDEN:
                    yield f"{place}.{name}"
                waiting.append((child, f"{place}.{name}"))
        elif isinstance(value, list):
            waiting += [(child, f"{place}[{index}]") for index, child in enumerate(value)]


def check_rulebook_request(request: Mapping[str, Any]) -> None:
    """Everything about a rulebook request that is 422."""
    forbidden = forbidden_in(request)
    if forbidden:
        message = "a request must not bring along what decide.fyi gives out"
        raise Refused(422, "RULEBOOK_OUTPUT_MATERIAL_FORBIDDEN", message, forbidden_fields=forbidden)
    binding = request.get("binding_mode")
    if binding not in (None, DIRECT, TRUSTED):
        raise Refused(422, "RULEBOOK_BINDING_MODE_UNSUPPORTED", f"binding_mode must be {DIRECT} or {TRUSTED}")
    adapter, context = request.get("adapter"), request.get("context", {})
    has_inputs = isinstance(context, dict) and "inputs" in context
    if (binding == TRUSTED and adapter is None) or (binding == DIRECT and adapter is not None):
        raise Refused(422, "RULEBOOK_BINDING_MODE_CONFLICT", f"{binding} does not go with what was sent")
    if adapter is not None and has_inputs:
        raise Refused(422, "TRUSTED_ADAPTER_INPUT_CONFLICT", "facts come from context.inputs or from an adapter")
    found = [each._asdict() for each in problems(request.get("rulebook"))]
    if found:
        raise Refused(422, "RULEBOOK_INVALID", "the rulebook is invalid", errors=found)
    if adapter is not None:
        _check_adapter(adapter)
    elif not has_inputs or not isinstance(context["inputs"], dict):
        wrong = {"field": "context.inputs", "code": "REQUIRED", "message": "must be an object"}
        raise Refused(422, "RULEBOOK_INVALID", "context.inputs must be an object", errors=[wrong])


def _check_adapter(adapter: Any) -> None:
    fits = isinstance(adapter, dict) and adapter.keys() == _ADAPTER_FIELDS.keys()
    if not fits or not all(isinstance(adapter[name], kind) for name, kind in _ADAPTER_FIELDS.items()):
        raise Refused(422, "TRUSTED_ADAPTER_INVALID", "adapter must be {adapter_id, version, manifest_hash, input}")
