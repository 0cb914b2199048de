"""What decide.fyi says in whatever it answers: its envelope, the two meanings of 409, and how long it wants to be left alone."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from agentd.exchange import Attempt, Response
from agentd.platforms.base import retry_after

_REASON_CHARS = 500
_MILLISECONDS = 1e11  # as seconds since 1970 this is the year 5138: whatever is larger is in milliseconds
_MAX_WAIT_S = 3600.0  # a limit of requests a minute that asks for more is asked again in an hour
_MAX_PAUSE_S = 32 * 86400.0  # the cap is monthly: a reset that lies further away is a mistake
_MIN_PAUSE_S = 60.0  # the reset beside a monthly cap may be that of the minute: no probe a second for weeks
_CODE = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+")
_IN_PROGRESS = frozenset({"in_progress", "in_flight", "inflight", "processing", "running", "pending"})
OPERATOR = frozenset(
    {"RULEBOOK_ATTESTATION_SIGNATURE_REQUIRED", "DECIDE_AI_DISABLED_ZERO_COST", "DECIDE_AI_CONFIGURATION_INVALID"}
)
RATE_CODES = frozenset({"DECIDE_API_RATE_LIMITED", "RATE_LIMIT_EXCEEDED"})

_decode = msgspec.json.Decoder().decode


def object_in(body: bytes) -> dict[str, Any]:
    """The body as a JSON object, empty where it is none."""
    try:
        decoded = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}
    return decoded if isinstance(decoded, dict) else {}


def text_in(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    return value if isinstance(value, str) else ""


def is_envelope(body: Mapping[str, Any]) -> bool:
    """Whether decide.fyi wrote it: `{c, v, error, message, request_id}`, of which some answers have only a part."""
    if text_in(body, "c") and text_in(body, "v"):
        return True
    error = text_in(body, "error")
    return bool(error) and (_CODE.fullmatch(error) is not None or bool(text_in(body, "request_id")))


def in_progress(answer: Response, body: Mapping[str, Any]) -> bool:
    """Whether a 409 says that the first use of our key is still running. No source names the field: any clear word counts.

    Prose does not, nor does `execution_status`, which may be our own word sent back.
    """
    nested = body.get("idempotency")
    words = [
        *(text_in(body, name) for name in ("status", "idempotency_status", "v")),
        text_in(nested, "status") if isinstance(nested, dict) else "",
        answer.headers.get("x-idempotency-status", ""),
    ]
    if any(word.strip().lower().replace("-", "_").replace(" ", "_") in _IN_PROGRESS for word in words):
        return True
    code = text_in(body, "error")
    return "IN_PROGRESS" in code or "IN_FLIGHT" in code


def reason_of(answer: Response, body: Mapping[str, Any]) -> str:
    """Status, code and sentence; without ids, so that the same refusals can be counted: a 404 may name the decision."""
    code = text_in(body, "error") or text_in(body, "v")
    message = "" if answer.status == 404 and code else text_in(body, "message")  # noqa: PLR2004
    return f"{answer.status} {code}: {message}"[:_REASON_CHARS].rstrip(": ")


def is_capped(body: Mapping[str, Any]) -> bool:
    """Whether a refusal is for the month's cap, and not for the minute's limit."""
    return "MONTHLY_CAP" in text_in(body, "error") or text_in(body, "v") == "monthly_cap_exceeded"


def left_in(answer: Response) -> int | None:
    """How many records of the month are left."""
    text = answer.headers.get("x-usage-monthly-remaining", "").strip()
    return int(text[:18]) if text.isascii() and text.isdigit() else None


# -- how long to wait -------------------------------------------------------------------------------------------------------


def _seconds_in(body: Mapping[str, Any]) -> float | None:
    """`retry_after` of the body; None where it is no number of seconds."""
    value = body.get("retry_after")
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        seconds = float(value)
    except (ValueError, OverflowError):
        return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def _reset_s(answer: Response, now_s: float) -> float | None:
    """Seconds until `X-RateLimit-Reset`, which is Unix time in milliseconds or in seconds; None if it is past or absurd."""
    try:
        at = float(answer.headers.get("x-ratelimit-reset", ""))
    except ValueError:
        return None
    wait = (at / 1000 if at >= _MILLISECONDS else at) - now_s
    return wait if 0 < wait <= _MAX_PAUSE_S else None


def wait_s(answer: Response, body: Mapping[str, Any], attempt: Attempt) -> float | None:
    wait = retry_after(answer.headers, attempt.now_s)
    if wait is None:
        wait = _seconds_in(body)
    return None if wait is None else min(wait, _MAX_WAIT_S)


def rate_s(answer: Response, body: Mapping[str, Any], attempt: Attempt) -> float | None:
    wait = wait_s(answer, body, attempt)
    if wait is None:
        wait = _reset_s(answer, attempt.now_s)
    return None if wait is None else min(wait, _MAX_WAIT_S)


def until_s(answer: Response, body: Mapping[str, Any], attempt: Attempt) -> float | None:
    """How long a cap lasts by what the answer says; None if it says nothing that makes sense."""
    wait = _reset_s(answer, attempt.now_s) or _seconds_in(body) or retry_after(answer.headers, attempt.now_s)
    return None if not wait else min(max(wait, _MIN_PAUSE_S), _MAX_PAUSE_S)
