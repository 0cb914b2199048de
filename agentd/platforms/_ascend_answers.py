"""How ASCEND words its answers: three envelopes of errors, a denial under 403, and the hint when to come back."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Raw

from agentd.exchange import ANSWER_BYTES, Response
from agentd.platforms.base import retry_after

_REASON_CHARS = 500
_GOVERNANCE = ("governance", "violation")
_CHANGING = frozenset({"correlation_id", "request_id", "timestamp", "processing_time_ms"})  # other in every answer
_NO_SUCH_ROUTE = "Not Found"  # what FastAPI, on which ASCEND runs, says of a path without a route

_decode_any = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def decoded(body: bytes | Raw) -> Any:
    """The JSON of an answer, None where there is none."""
    try:
        return _decode_any(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def is_json(answer: Response, said: Any) -> bool:
    """Whether `said`, read from the answer, is what it says: a null is JSON too."""
    return said is not None or answer.body.strip() == b"null"


def is_cut(answer: Response) -> bool:
    """Whether JSON was too long to be read whole."""
    return len(answer.body) >= ANSWER_BYTES and answer.body.lstrip().startswith((b"{", b"["))


def is_ours(said: Any) -> bool:
    """Whether a 404 is about the action: in an envelope of ASCEND's, and not what it says of a path without a route."""
    if not isinstance(said, dict):
        return False
    return isinstance(said.get("error"), dict) or said.get("detail", _NO_SUCH_ROUTE) != _NO_SUCH_ROUTE


def is_denial(said: Any) -> bool:
    """403 is also how ASCEND says that governance forbids it: `detail` is an object whose `error` tells."""
    detail = said.get("detail") if isinstance(said, dict) else None
    error = detail.get("error") if isinstance(detail, dict) else None
    return isinstance(error, str) and any(word in error.lower() for word in _GOVERNANCE)


def is_refusal(said: Any) -> bool:
    """Whether it says no under 200: an error envelope, or `success` false."""
    return isinstance(said, dict) and (said.get("success") is False or said.get("status") == "error")


def code_of(said: Any) -> str:
    """`error.code` of the one envelope, `error_code` of the other, or nothing."""
    if not isinstance(said, dict):
        return ""
    error = said.get("error")
    code = error.get("code") if isinstance(error, dict) else said.get("error_code")
    return code if isinstance(code, str) else ""


def _message(said: Any) -> str:
    """What any of the three envelopes says: `error.message`, or `detail` as text, object or array."""
    if not isinstance(said, dict):
        return ""
    error, detail = said.get("error"), said.get("detail")
    found = error if detail is None else detail
    if isinstance(found, dict):
        message = found.get("message")
        found = message if message is not None else {name: found[name] for name in found if name not in _CHANGING}
    return found if isinstance(found, str) else "" if found is None else _encode(found).decode()


def reason_of(status: int, said: Any) -> str:
    """Status, code and message, bounded, and the same for the same refusal so that repeats can be counted."""
    head = f"{status} {code_of(said)}".rstrip()
    return f"{head}: {_message(said)}"[:_REASON_CHARS].rstrip(": ")


def wait_s(headers: Mapping[str, str], now_s: float) -> float | None:
    """Seconds by `Retry-After`, else by a reset header; ASCEND's `X-RateLimit-Reset` is Unix time in seconds."""
    after_s = retry_after(headers, now_s)
    for name, since_s in (("x-ratelimit-reset-after", 0.0), ("x-ratelimit-reset", now_s)):
        if after_s is None and name in headers:
            with contextlib.suppress(ValueError):
                after_s = retry_after({"retry-after": repr(float(headers[name]) - since_s)}, now_s)  # its bounds hold
    return after_s
