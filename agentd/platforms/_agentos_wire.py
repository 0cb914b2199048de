"""What AgentOS says in whatever it answers: `{data, error}`, and codes that mean the same under any status."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from agentd.exchange import Response

_STATUS_OF_CODE = {"UNAUTHENTICATED": 401, "PAYMENT_REQUIRED": 402, "RATE_LIMITED": 429}


class _Failure(Struct):
    code: str = ""
    message: str = ""


class Envelope(Struct):
    """`{data, error}`; other fields are let pass. With neither it is somebody else's JSON."""

    data: Any = UNSET
    error: _Failure | UnsetType | None = UNSET


_decode_envelope = msgspec.json.Decoder(Envelope).decode


def envelope_in(body: bytes) -> Envelope | None:
    try:
        envelope = _decode_envelope(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return None if envelope.data is UNSET and envelope.error is UNSET else envelope


def by_code(answer: Response, envelope: Envelope | None) -> Response:
    """The SDK takes these codes for what they say under any status, and so do we."""
    error = envelope.error if envelope is not None else None
    status = _STATUS_OF_CODE.get(error.code) if error else None
    return answer if status is None else Response(status, answer.headers, answer.body)


def reason_of(answer: Response, envelope: Envelope | None) -> str:
    if envelope is not None and envelope.error:
        return f"{answer.status} {envelope.error.code}: {envelope.error.message}"[:500].rstrip(": ")
    return f"{answer.status}"
