"""How AgentOS words what it answers: its envelope, its codes and its streams. Used by the face in `agentos` and its parts alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from agentd.sandbox.faces import Answer

_CODES = {
    400: "VALIDATION_ERROR",
    401: "UNAUTHENTICATED",
    402: "PAYMENT_REQUIRED",
    403: "FORBIDDEN",  # the word is a guess: no source names the code of a 403, 405 or 413
    404: "NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    408: "TIMEOUT",
    409: "CONFLICT",
    413: "PAYLOAD_TOO_LARGE",
    429: "RATE_LIMITED",
    502: "BAD_GATEWAY",
}
_SERVER_ERROR = 500


def said(status: int, data: Any) -> Answer:
    """`{data, error: null}`."""
    return Answer(status, msgspec.json.encode({"data": data, "error": None}))


def refusal(status: int, message: str) -> Answer:
    """`{data: null, error: {code, message}}` with the code that belongs to the status."""
    code = _CODES.get(status, "INTERNAL_ERROR" if status >= _SERVER_ERROR else "VALIDATION_ERROR")
    return Answer(status, msgspec.json.encode({"data": None, "error": {"code": code, "message": message}}))


def stream(events: Iterable[Mapping[str, Any]], *, bare_end: bool) -> Answer:
    """Server-sent events; `bare_end` leaves out the blank line that closes the last, as a server may that hangs up at once."""
    text = b"".join(b"data: " + msgspec.json.encode(event) + b"\n\n" for event in events)
    return Answer(200, text[:-2] if bare_end else text, "text/event-stream")
