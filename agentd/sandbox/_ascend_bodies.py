"""What ASCEND's calls carry, and how strictly it is read. Used by the face in `ascend` alone.

Sources: ascend-ai-sdk 2.7.1 and its documentation for fields and types; the older server for
which fields it demands and the sentence that it says so in. Unknown fields are let by, as no source says that they are
refused; a null stands for a field left out. `risk_score` and `risk_level` are among the unknown: a client may not score itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

Text = Annotated[str, Meta(min_length=1)]
Count = Annotated[int, Meta(ge=0)]
Limit = Annotated[int, Meta(ge=1)]
Percent = Annotated[int, Meta(ge=0, le=100)]
Fields = dict[str, Any]
AgentType = Literal["supervised", "autonomous", "mcp_server", "advisory", "custom"]

_ACTION_TYPES = frozenset(
    {"data_access", "data_modification", "transaction", "recommendation", "communication", "system_operation"}
    | {"query", "analysis", "report_generation", "api_call"}  # these came with SDK 2.7.1
)
_REQUIRED = {
    "doc": ("agent_id", "agent_name", "action_type", "resource"),
    "minimal": ("agent_id", "action_type"),
    "server": ("agent_id", "action_type", "description", "tool_name"),
}
_UNPROCESSABLE = 422
_NUMBER = re.compile(r"[0-9]{1,9}")
_MISSING = re.compile(r"missing required field `(\w+)`")


class AscendSwitches(Struct, frozen=True, forbid_unknown_fields=True):
    """What no source settles, or sources settle differently, and how the sandbox decides. Defaults: the documentation."""

    required_fields: Literal["doc", "minimal", "server"] = "doc"  # of a submission; doc also closes the list of types
    missing_field: Literal["400", "422"] = "422"
    response_shape: Literal["A", "B", "C", "D"] = "A"  # documented flat, enveloped, older server, decision as an object
    id_type: Literal["int", "string"] = "string"
    completion_routes: Literal["sdk", "server", "both"] = "sdk"
    list_shape: Literal["object", "array"] = "object"
    governance_403: Literal["on", "off"] = "off"  # on: a denial comes as 403 without an action_id
    error_envelope: Literal["enveloped", "flat", "fastapi"] = "flat"
    decision: Literal["rules", "approved", "denied", "pending"] = "rules"  # of the next submissions
    decision_delay: Annotated[float, Meta(ge=0)] | None = None  # seconds until what is pending decides itself
    delayed_decision: Literal["approved", "denied"] = "approved"
    unregistered: Literal["accept", "refuse"] = "accept"  # agents that submit or send heartbeats without registration
    heartbeat_metrics: Literal["nested", "flat", "both"] = "nested"  # which of them the server reads
    signature: Literal["off", "check", "require"] = "off"  # X-Signature: not looked at, if there is one, always
    signing_secret: str = "sandbox"  # noqa: S105 - a secret for playing
    per_minute: Limit | None = None  # calls; above: 429
    rate_headers: Literal["both", "reset"] = "both"  # Retry-After and X-RateLimit-Reset, or the latter alone


class Refused(Exception):  # noqa: N818 - named as its reader would say it
    """The platform refuses a request. `raw` is for answers that are FastAPI's own, whatever the envelope."""

    def __init__(
        self, status: int, detail: Any, code: str = "", *, raw: bool = False, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.code = code
        self.raw = raw
        self.headers = headers or {}


# -- bodies ------------------------------------------------------------------------------------------------------------------


class SubmitBody(Struct):
    """What a submission may hold; which of it must be there is a switch."""

    agent_id: Text | None = None
    agent_name: Text | None = None
    action_type: Text | None = None
    resource: Text | None = None
    description: Text | None = None
    tool_name: Text | None = None
    resource_id: str | None = None
    action_details: Fields | None = None
    context: Fields | None = None
    risk_indicators: Fields | None = None
    orchestration_session_id: str | None = None
    parent_action_id: int | str | None = None
    orchestration_depth: Annotated[int, Meta(ge=0, le=5)] | None = None
    mcp_server_name: str | None = None
    model_id: str | None = None
    parameters: Fields | None = None
    metadata: Fields | None = None
    require_approval: bool | None = None
    callback_url: str | None = None
    data_sensitivity: Literal["none", "low_sensitivity", "medium_sensitivity", "high_sensitivity"] | None = None


class McpBody(Struct):
    """An MCP tool call as the SDK submits it: without its agent, whom only the key could tell, and with nulls."""

    mcp_server: Text
    namespace: Text
    verb: Text
    resource: Text
    agent_id: Text | None = None
    action_type: Text | None = None
    description: str | None = None
    tool_name: Text | None = None
    parameters: Fields | None = None
    context: Fields | None = None
    environment: str | None = None

    def submission(self) -> SubmitBody:
        """The same as an action."""
        return SubmitBody(
            agent_id=self.agent_id,
            action_type=self.action_type or f"{self.namespace}.{self.verb}",
            resource=self.resource,
            description=self.description,
            tool_name=self.tool_name,
            parameters=self.parameters,
            context=self.context,
            mcp_server_name=self.mcp_server,
        )


class DryRunBody(Struct):
    """A question what the policies would say. Its `risk_score` is a hint that the sandbox, which scores by itself, leaves alone."""

    action_type: Text
    resource: Text
    agent_id: Text | None = None
    risk_score: float | None = None
    context: Fields | None = None
    risk_indicators: Fields | None = None
    require_approval: bool | None = None

    def submission(self) -> SubmitBody:
        """The same as an action."""
        return SubmitBody(
            agent_id=self.agent_id,
            action_type=self.action_type,
            resource=self.resource,
            context=self.context,
            risk_indicators=self.risk_indicators,
            require_approval=self.require_approval,
        )


class CompleteBody(Struct):
    """What the SDK sends when an action has been carried out."""

    action_id: str | int
    status: Literal["completed"]
    completed_at: Text
    result: Any = None
    duration_ms: Count | None = None


class FailBody(Struct):
    """What the SDK sends when it has not."""

    action_id: str | int
    status: Literal["failed"]
    failed_at: Text
    error: str | Fields
    duration_ms: Count | None = None


class OldCompleteBody(Struct):
    """What the older server reads of a completion."""

    result: Any = None


class OldFailBody(Struct):
    """What the older server reads of a failure: the error is a string."""

    error: str


class RegisterBody(Struct):
    """A registration as the server reads it."""

    agent_id: Annotated[str, Meta(min_length=3, max_length=64)]
    display_name: Annotated[str, Meta(min_length=1, max_length=255)]
    agent_type: AgentType = "supervised"
    auto_approve_below: Percent | None = None
    max_risk_threshold: Percent | None = None


class Vitals(Struct):
    """The metrics of a heartbeat, flat or nested."""

    response_time_ms: Annotated[float, Meta(ge=0)] | None = None
    error_rate: Annotated[float, Meta(ge=0, le=1)] | None = None
    requests_count: Count | None = None


class HeartbeatBody(Vitals, kw_only=True):
    """A heartbeat: the SDK's fields flat, the server's model nested."""

    agent_id: Text
    sdk_version: str | None = None
    timestamp: str | None = None
    metrics: Vitals | None = None


class KillBody(Struct):
    """A kill switch is thrown for a reason."""

    reason: Annotated[str, Meta(min_length=10)]


class HookBody(Struct):
    """A webhook under either of the names that the documents have for its fields."""

    url: Annotated[str, Meta(pattern="^https://")] | None = None
    target_url: Annotated[str, Meta(pattern="^https://")] | None = None
    events: list[str] | None = None
    event_types: list[str] | None = None
    secret: str | None = None
    agent_id: str | None = None


class AnyBody(Struct):
    """An object of which only the reason is read."""

    reason: str | None = None
    comments: str | None = None


BodyT = TypeVar("BodyT")


def read_json(body: bytes) -> Any:
    """The body as Python objects. Raises Refused with 400 INVALID_JSON."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(400, f"the body is not JSON: {error}", "INVALID_JSON") from error


def read_body(body: bytes, shape: type[BodyT], switches: AscendSwitches) -> BodyT:
    """Decode and validate one body."""
    return read_value(read_json(body), shape, switches)


def read_value(sent: Any, shape: type[BodyT], switches: AscendSwitches) -> BodyT:
    """Validate what was decoded. Raises Refused: 400 or 422 for a missing field as the switch says, else 422."""
    try:
        return msgspec.convert(sent, shape)
    except msgspec.ValidationError as error:
        missing = _MISSING.search(str(error))
        if missing is not None:
            raise _missing([missing[1]], switches) from error
        words, _, place = str(error).partition(" - at ")
        location = ["body", *re.findall(r"\w+", place)]
        detail = [{"loc": location, "msg": words, "type": "value_error"}]
        raise Refused(_UNPROCESSABLE, detail) from error


def _missing(names: list[str], switches: AscendSwitches) -> Refused:
    sentence = f"Missing required fields: {', '.join(names)}"
    return Refused(int(switches.missing_field), sentence, "MISSING_REQUIRED_FIELD")


def read_submission(body: bytes, switches: AscendSwitches) -> tuple[SubmitBody, Fields]:
    """A submission, validated against the variant of required fields that is in force, and as it was sent."""
    sent = read_json(body)
    read = read_value(sent, SubmitBody, switches)
    variant = switches.required_fields
    missing = [name for name in _REQUIRED[variant] if getattr(read, name) is None]
    if missing:
        # The older server says 422 for it; only the documents disagree on the status.
        raise _missing(
            missing, msgspec.structs.replace(switches, missing_field="422") if variant == "server" else switches
        )
    if variant == "doc" and read.action_type not in _ACTION_TYPES:
        raise Refused(_UNPROCESSABLE, f"action_type must be one of {', '.join(sorted(_ACTION_TYPES))}")
    return read, sent


def read_mcp(body: bytes, switches: AscendSwitches) -> tuple[SubmitBody, Fields]:
    """An MCP tool call as an action, and as it was sent."""
    sent = read_json(body)
    return read_value(sent, McpBody, switches).submission(), sent


def number_in(asked: Mapping[str, str], name: str, default: int) -> int:
    """A whole number of the query. Raises Refused."""
    given = asked.get(name)
    if given is None:
        return default
    if _NUMBER.fullmatch(given) is None:
        raise Refused(
            422, [{"loc": ["query", name], "msg": "value is not a valid integer", "type": "type_error.integer"}]
        )
    return int(given)
