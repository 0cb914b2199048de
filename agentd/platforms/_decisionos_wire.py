"""What goes to Decision OS and how its answers read, for records and gates alike: a decision under its camelCase names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct

from agentd.exchange import Attempt, Response, Unencodable
from agentd.platforms._sdk import camel
from agentd.platforms.base import array_of, object_of, retry_after
from agentd.records import Decision

PREFIX = "/api/public/v1"
DECISIONS = f"{PREFIX}/decisions"
_REASON_CHARS = 500
_MAX_PAUSE_S = 3600.0  # a quota is monthly, but somebody may buy a larger one today: a probe an hour finds out
_MILLISECONDS = 1e11  # seconds since 1970 come here in the year 5138
LABELS = ("trace_id", "run_id", "span_id", "parent_span_id")  # free words for the platform: never replaced by its ids


def _elements(value: Raw) -> list[Any]:
    """The elements of an array of texts and objects; a null among them or in an object is left out."""
    return [_without_nulls(one) for one in _decode_list(array_of(value)) if bytes(one).strip() != b"null"]


def _without_nulls(element: Raw) -> Any:
    text = bytes(element).strip()
    if not text.startswith(b"{") or b"null" not in text:
        return element
    return {name: member for name, member in _decode_fields(text).items() if bytes(member).strip() != b"null"}


def _options(value: Raw) -> list[Any]:
    """A text is key and label at once, an object is taken as it is given."""
    return [_named(one) for one in _elements(value)]


def _named(option: Any) -> Any:
    if not isinstance(option, Raw) or not bytes(option).lstrip().startswith(b'"'):
        return option
    return {"key": option, "label": option}


_decode_list = msgspec.json.Decoder(list[Raw]).decode
_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_any = msgspec.json.Decoder().decode

# Of a decision: the fields that go as they are, and the free ones with the form that the platform wants them in.
_DECISION = (
    "confidence", "constraints", "model", "runner", "prompt_version", "prompt_hash", "policy_version_id", "decision_type",
    "agent_name", *LABELS, "session_id", "conversation_id", "tokens_input", "tokens_output", "cost_usd", "latency_ms",
    "error_text",
)  # fmt: skip
_DECISION_FREE: dict[str, Callable[[Raw], Any]] = {
    "options": _options,
    "assumptions": _elements,
    "parameters": object_of,
    "tool_calls": array_of,  # an array here, an object in a snapshot
    "mcp_servers": array_of,
}


class Body(Struct, frozen=True):
    """What an answer says. With `ours` false it is nothing that Decision OS would say."""

    ours: bool = False
    id: str = ""
    error: str = ""
    reset_at: Any = None


# -- requests --------------------------------------------------------------------------------------------------------------


def decision_body(record: Decision) -> dict[str, Any]:
    """What a decision says, but for its agent and its requestId. Raises Unencodable for a blank context."""
    if not record.context.strip():
        raise Unencodable("Decision OS takes no decision whose context is blank")
    body: dict[str, Any] = {"context": record.context}
    if record.chosen is not None:
        body["chosenOptionKey"] = record.chosen
    if record.create_agent_if_missing:
        body["createAgentIfMissing"] = True
    return body | given_fields(record, _DECISION, _DECISION_FREE)


def given_fields(record: Struct, plain: Sequence[str], free: Mapping[str, Callable[[Raw], Any]]) -> dict[str, Any]:
    """What is given of a record's fields, under the platform's names."""
    found = {camel(name): getattr(record, name) for name in plain if getattr(record, name) is not None}
    for name, form in free.items():
        value = getattr(record, name)
        if value is not UNSET and bytes(value).strip() not in (b"", b"null"):
            found[camel(name)] = form(value)
    return found


# -- answers ---------------------------------------------------------------------------------------------------------------


def read(body: bytes) -> Body:
    """`{data:{…}}` or the same without the wrapping, `{error:"text"}` or `{message:"text"}`."""
    try:
        found = _decode_any(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Body()
    if not isinstance(found, dict):
        return Body()
    data = found.get("data") or found
    named = data.get("id") if isinstance(data, dict) else None
    error = found.get("error") or found.get("message")
    text = error.strip() if isinstance(error, str) else ""
    reset_at = found.get("resetAt") or (data.get("resetAt") if isinstance(data, dict) else None)
    id_ = named if isinstance(named, str) and named.strip() else ""
    return Body(bool(id_ or text), id_, text[:_REASON_CHARS], reset_at)


def until_reset(answer: Response, body: Body, attempt: Attempt) -> float | None:
    """Seconds until the quota's `resetAt` (an ISO time, or a number since 1970), else `Retry-After`, else unknown."""
    at = _unix(body.reset_at)
    if at is None:
        return retry_after(answer.headers, attempt.now_s)
    left_s = at - attempt.now_s
    return min(left_s, _MAX_PAUSE_S) if left_s > 0 else None


def resets_in(body: Body, now_s: float) -> float | None:
    """Seconds until the quota is fresh again, where the answer says when."""
    at = _unix(body.reset_at)
    return at - now_s if at is not None and at > now_s else None


def _unix(moment: Any) -> float | None:
    """Seconds since 1970; None for what is no moment."""
    try:
        if isinstance(moment, str):
            at = datetime.fromisoformat(moment.strip())
            return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
        if isinstance(moment, bool) or not isinstance(moment, int | float):
            return None
        return float(moment) / (1000 if moment > _MILLISECONDS else 1)
    except (ValueError, OverflowError):
        return None
