"""Standing in for ASCEND towards ascend-ai-sdk 2.7.1.

Submitting an action, also an MCP tool call, is a gate. That an action was carried out or failed, and heartbeats, are
telemetry. The rest of what an agent reads is passed on. What changes the organisation (agents, approvals, kill switch,
webhooks, MCP servers, topology, supply chain) is control plane, `register()` included: its 403 is the SDK's AuthorizationError.

The SDK has two retry layers, one within the other: urllib3's repeats 429, 500, 502, 503 and 504 three times, also for POST,
and ends in a `requests.RetryError` that is none of the SDK's; its own repeats lost connections three times. One submission
can so become sixteen. What must not be repeated gets 403 with `detail` as text: that is AuthorizationError with our sentence,
raised at once, and not one of the three errors that its `fail_mode = "open"` lets an action pass on. 409 and 424 would not be
repeated either, but come as a bare `requests.HTTPError` without the sentence, and 422 would say that the action is malformed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Raw

from agentd.errors import RecordError
from agentd.platforms._sdk import checked, fields_of, is_null, is_object, members_of, object_in, reply, text_in, time_in
from agentd.standin import STATUSES, Asked, Called, Does, Door, Handed, Reply, Why
from agentd.units import rfc3339

_SUBMIT = "/api/v1/actions/submit"
_LIMIT_S = (
    4.0  # the SDK waits 5 s (DEFAULT_TIMEOUT) and repeats what takes longer; the verdict's commit takes its time, too
)
_BEAT = Door("POST", "/api/agents/health/heartbeat", Does.RECORD, kind="heartbeat")
_BEATS = Door("POST", "/api/agents/health/heartbeat/batch", Does.RECORD, array=True, kind="heartbeat")
_AGENT = "/api/registry/agents/{agent_id}"
# The SDK's routes and the older server's: what is told of an action → its status, and where the time of it stands
_ENDS = {
    "/api/agent-action/{action_id}/complete": ("completed", "completed_at"),
    "/api/agent-action/{action_id}/fail": ("failed", "failed_at"),
    "/api/sdk/action/{action_id}/completed": ("completed", "completed_at"),
    "/api/sdk/action/{action_id}/failed": ("failed", "failed_at"),
}
_GETS = (
    "/health", "/api/deployment-info", "/api/v1/actions", "/api/v1/actions/{action_id}", "/api/v1/actions/{action_id}/status",
    "/api/agent-activity", "/api/sdk/approval/{action_id}", "/api/sdk/kill-switch/status", f"{_AGENT}/commands",
    "/api/agents/health/{agent_id}", "/api/v1/resource-classifications", "/audit/logs", "/api/audit/logs",
    "/api/registry/mcp-servers", "/api/registry/mcp-servers/{server_name}", "/api/discovery/mcp/results",
    "/api/authorization/mcp-discovery/health-monitor", "/api/authorization/mcp-discovery/server-status",
    "/api/v1/orchestration/sessions/{session_id}", "/api/v1/orchestration/sessions/{session_id}/risk",
    "/api/v1/orchestration/stats", "/api/v1/output-filter/config", "/api/v1/output-filter/findings",
    "/api/v1/output-filter/findings/{action_id}", "/api/v1/supply-chain/components", "/api/v1/supply-chain/stats",
    "/api/v1/supply-chain/impact/{component_id}", "/api/v1/supply-chain/agents/{component_id}/dependencies",
    "/api/v1/supply-chain/sync/status", "/api/alerts",
)  # fmt: skip
_POSTED_READS = (
    "/api/governance/policies/evaluate-realtime",  # a dry run
    "/api/v1/output-filter/scan",
    # An agent's word that it has heard a command, known by the command's id. Held back, it would be told again for ever.
    f"{_AGENT}/commands/{{command_id}}/ack",
)
_ADMIN = (
    ("POST", "/api/registry/agents"), ("PUT", _AGENT), ("DELETE", _AGENT),
    ("POST", "/api/v1/actions/{action_id}/approve"), ("POST", "/api/v1/actions/{action_id}/reject"),
    ("POST", "/api/governance/workflows/{workflow_id}/approve"), ("POST", "/api/governance/workflows/{workflow_id}/deny"),
    ("POST", "/api/billing/kill-switch/{organization_id}/trigger"),
    ("POST", "/api/billing/kill-switch/{organization_id}/release"),
    ("POST", "/api/v1/orchestration/cascade-kill/{agent_id}"), ("POST", "/api/v1/orchestration/topology"),
    ("POST", "/api/v1/orchestration/topology/mcp"),
    # Also what is read of webhooks: their signing secrets may stand there.
    ("GET", "/api/webhooks"), ("POST", "/api/webhooks"), ("POST", "/api/webhooks/configure"),
    ("PUT", "/api/webhooks/{webhook_id}"), ("DELETE", "/api/webhooks/{webhook_id}"), ("POST", "/api/webhooks/{webhook_id}/test"),
    ("POST", "/api/registry/mcp-servers"), ("DELETE", "/api/registry/mcp-servers/{server_name}"),
    ("POST", "/api/registry/mcp-servers/{server_name}/activate"),
    ("POST", "/api/registry/mcp-servers/{server_name}/deactivate"),
    ("POST", "/api/discovery/mcp/scan"), ("POST", "/api/authorization/mcp-discovery/scan-network"),
    ("POST", "/api/v1/supply-chain/components"),
)  # fmt: skip
_END_NAMES = {
    "completed": {"result": "result", "duration_ms": "duration_ms"},
    "failed": {"error": "error", "duration_ms": "duration_ms"},
}
_BEAT_NAMES = {"agent_id": "agent_id", "status": "status"}
_FLAT_METRICS = ("response_time_ms", "error_rate", "requests_count")
_STATUSES = STATUSES | {
    Why.OUTCOME_UNKNOWN: 403,
    Why.UNREACHABLE: 403,
    Why.INTERNAL: 403,  # a defect may come after the submission went out
}
_CODES = {
    Why.MALFORMED: "VALIDATION_ERROR",
    Why.UNAUTHENTICATED: "INVALID_API_KEY",
    Why.FORBIDDEN: "INSUFFICIENT_PERMISSIONS",
}
_decode_list = msgspec.json.Decoder(list[Raw]).decode
_decode_number = msgspec.json.Decoder(int | float).decode


class AscendStandIn:
    """What of ASCEND's API passes, and as what."""

    doors = (
        Door("POST", _SUBMIT, Does.GATE, gate="action", limit_s=_LIMIT_S),
        Door("POST", "/api/v1/mcp/actions/submit", Does.GATE, gate="action", limit_s=_LIMIT_S),
        *(Door("POST", path, Does.RECORD, kind=f"action.{status}") for path, (status, _) in _ENDS.items()),
        _BEAT,
        _BEATS,
        *(Door("GET", path, Does.READ) for path in _GETS),
        *(Door("POST", path, Does.READ) for path in _POSTED_READS),
        *(Door(method, path, Does.ADMIN) for method, path in _ADMIN),
    )
    names: Mapping[str, str] = {"agent_id": "agent", "action_id": "action", "parent_action_id": "action"}
    # Not the signature: it is made with the secret of whoever holds the key, and over a body in which ids may have changed.
    headers = frozenset({"x-correlation-id", "x-environment", "x-sdk-version"})

    def asks(self, called: Called) -> str | None:
        return called.door.gate or None

    def hand_over(self, called: Called, make_id: Callable[[str], str]) -> Handed:
        """ASCEND has no idempotency field: repeats of the SDK's inner layer are the same bytes, and known by them."""
        del make_id
        if called.door == _BEAT:
            members = members_of(called)
            said = {"success": True, "agent_id": members.get("agent_id")}
            return Handed([_heartbeat(members)], reply(200, said))
        if called.door == _BEATS:
            beats = [_heartbeat(object_in(one, f"$[{place}]")) for place, one in enumerate(_elements(called.body))]
            results = [{"success": True, "agent_id": beat.get("agent_id")} for beat in beats]
            return Handed(beats, reply(200, {"processed": len(beats), "results": results}))
        return _end(called)

    def asked(self, called: Called) -> Asked:
        """An orchestration session is a label of ASCEND's and no run."""
        members = members_of(called)
        request = {name: value for name, value in members.items() if name != "agent_id"}
        return Asked(text_in(members, "agent_id"), None, request)

    def refusal(self, why: Why, message: str) -> Reply:
        """`detail` as text, which the SDK shows; an object there would be read for the word "governance", a denial."""
        status = _STATUSES[why]
        code = _CODES.get(why, why.name)
        return reply(status, {"detail": message, "error_code": code, "status": status})


# -- records -----------------------------------------------------------------------------------------------------------------


def _end(called: Called) -> Handed:
    """What became of an action. The id is the path's; the answer has it in the form that the body had, number or text."""
    status, at = _ENDS[called.door.path]
    action_id, members = called.segments["action_id"], members_of(called)
    shown = members.get("action_id", action_id)
    if _text(shown) != action_id:
        raise RecordError(f"$.action_id: {_text(shown)[:80]!r} is not the action of the path")
    if (said := text_in(members, "status")) not in {"", status}:
        raise RecordError(f"$.status: expected {status}, got {said[:64]!r}")
    names = _END_NAMES[status]
    fields = fields_of(members, names, dropped={"action_id", "status", at})
    if status == "failed":
        fields.setdefault("error", Raw(b"null"))  # of a failure nothing more than that may be known
    _keep_fraction(fields)
    fields |= {"action_id": action_id, "occurred_at": time_in(members, at)}
    record = checked(f"action.{status}", fields, names)
    now = rfc3339(called.now_us / 1e6)
    return Handed([record], reply(200, {"action_id": shown, "status": status, "logged_at": now}))


def _keep_fraction(fields: dict[str, Any]) -> None:
    """Milliseconds with a fraction have no field with us and go on as they are: the SDK keeps quiet about what it can't log."""
    try:
        number = _decode_number(fields.get("duration_ms", Raw(b"0")))
    except msgspec.DecodeError:
        return
    if isinstance(number, float) and number >= 0:
        fields.setdefault("extra", {})["duration_ms"] = fields.pop("duration_ms")


def _text(value: Raw | str) -> str:
    """A number or a text as the text that a path has of it."""
    if isinstance(value, str):
        return value
    is_text = bytes(value).lstrip().startswith(b'"')
    return text_in({"action_id": value}, "action_id") if is_text else bytes(value).decode().strip()


def _heartbeat(members: Mapping[str, Raw]) -> dict[str, Any]:
    given = {name: value for name, value in members.items() if not is_null(value)}
    nested = given.pop("metrics", Raw(b"{}"))
    metrics = dict(object_in(nested)) if is_object(nested) else {"value": nested}
    metrics |= {name: given.pop(name) for name in _FLAT_METRICS if name in given}
    fields = fields_of(given, _BEAT_NAMES) | ({"metrics": metrics} if metrics else {})
    return checked("heartbeat", fields, {})


def _elements(body: bytes) -> Sequence[Raw]:
    try:
        return _decode_list(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise RecordError("$: expected an array of heartbeats") from None


STAND_IN = AscendStandIn()
