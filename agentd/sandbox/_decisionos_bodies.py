"""The bodies of Decision OS's two calls, and how strictly they are read: camelCase, no unknown name, no null.

Sources: PyPI `decision-os-sdk` 0.2.1 and the project's page for names and types. No source says what happens to unknown names
or nulls; the SDK sends neither, so that refusing them is the reading under which nothing works by accident here that would not
work there. Used by the face in `decisionos` alone; the underscore keeps this module from being taken for a platform.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

Text = Annotated[str, Meta(min_length=1)]
Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=0)]
Amount = Annotated[float, Meta(ge=0)]
Object = dict[str, Any]


class _Strict(Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """A field may be left out, but is never null, and has no other name."""


class Option(_Strict, kw_only=True):
    key: Text
    label: str | UnsetType = UNSET
    probability: Share | UnsetType = UNSET
    meta: Object | UnsetType = UNSET


class Assumption(_Strict, kw_only=True):
    text: Text
    confidence: Share | UnsetType = UNSET


class _Logged(_Strict, kw_only=True):
    """What both calls share."""

    agent_id: Text
    request_id: Text | UnsetType = UNSET
    policy_version_id: Text | UnsetType = UNSET
    trace_id: Text | UnsetType = UNSET
    run_id: Text | UnsetType = UNSET
    span_id: Text | UnsetType = UNSET
    parent_span_id: Text | UnsetType = UNSET


class DecisionBody(_Logged, kw_only=True):
    context: Annotated[str, Meta(pattern=r"\S")]
    options: list[str | Option] | UnsetType = UNSET
    chosen_option_key: Text | UnsetType = UNSET
    constraints: list[str] | UnsetType = UNSET
    assumptions: list[str | Assumption] | UnsetType = UNSET
    confidence: Share | UnsetType = UNSET
    model: Text | UnsetType = UNSET
    runner: Text | UnsetType = UNSET
    prompt_version: Text | UnsetType = UNSET
    prompt_hash: Text | UnsetType = UNSET
    parameters: Object | UnsetType = UNSET
    agent_name: Text | UnsetType = UNSET
    session_id: Text | UnsetType = UNSET
    conversation_id: Text | UnsetType = UNSET
    decision_type: Text = "action_selection"
    create_agent_if_missing: bool = False
    run_policy_eval: bool = False
    tool_calls: list[Object] | UnsetType = UNSET  # an array here, an object in a snapshot
    mcp_servers: list[Any] | UnsetType = UNSET
    tokens_input: Count | UnsetType = UNSET
    tokens_output: Count | UnsetType = UNSET
    cost_usd: Amount | UnsetType = UNSET
    latency_ms: Amount | UnsetType = UNSET
    error_text: str | UnsetType = UNSET


class SnapshotBody(_Logged, kw_only=True):
    decision_id: Text
    snapshot: Object
    tool_calls: Object | UnsetType = UNSET
    model_usage: Object | UnsetType = UNSET
    timings: Object | UnsetType = UNSET
    eval: Object | UnsetType = UNSET
    eval_score: Share | UnsetType = UNSET
    eval_pass: bool | UnsetType = UNSET
    event_id: Text | UnsetType = UNSET
    schema_version: Text | UnsetType = UNSET
    captured_at: datetime | UnsetType = UNSET


_DECODERS: dict[type[Struct], msgspec.json.Decoder[Any]] = {
    body: msgspec.json.Decoder(body) for body in (DecisionBody, SnapshotBody)
}
BodyT = TypeVar("BodyT", DecisionBody, SnapshotBody)


class Refused(Exception):  # noqa: N818 - named as its reader would say it
    """The platform refuses a request: status, sentence, and what else stands in the body."""

    def __init__(self, status: int, message: str, **more: Any) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.more = more


class Invalid(Refused):
    """A field is missing or wrong: 400 or 422, as the switch says."""

    def __init__(self, message: str) -> None:
        super().__init__(400, message)


def read_body(body: bytes, shape: type[BodyT]) -> tuple[BodyT, dict[str, Any]]:
    """One body, validated and as it was sent. Raises Invalid with the place that is wrong."""
    try:
        body.decode()  # strings that are skipped over are not checked for UTF-8 otherwise
        decoded: BodyT = _DECODERS[shape].decode(body)
        return decoded, json.loads(body)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise Invalid(str(error)) from error


def option_keys(body: DecisionBody) -> frozenset[str] | None:
    """What may be chosen; None where no options were given."""
    if body.options is UNSET:
        return None
    return frozenset(one if isinstance(one, str) else one.key for one in body.options)
