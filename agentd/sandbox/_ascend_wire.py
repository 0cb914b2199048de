"""Who asks ASCEND, how often, and how it words a refusal. Used by the face in `ascend` alone.

Sources: ascend-ai-sdk 2.7.1 and its documentation for the signature, the codes, the three error envelopes and the headers of the
rate limit, whose reset is Unix time in seconds.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping

import msgspec

from agentd.sandbox._ascend_bodies import AscendSwitches, Fields, Refused, read_json
from agentd.sandbox.faces import Answer, Call
from agentd.units import rfc3339

_WINDOW_S = 60
_CODES = {
    400: "INVALID_FIELD_VALUE",
    401: "INVALID_API_KEY",
    403: "INSUFFICIENT_PERMISSIONS",
    404: "ACTION_NOT_FOUND",
    409: "INVALID_STATE",
    413: "PAYLOAD_TOO_LARGE",  # the word is a guess, as those of 409 and 5xx
    422: "VALIDATION_ERROR",
    429: "RATE_LIMIT_EXCEEDED",
}
_SERVER_ERROR = 500


def error_answer(refusal: Refused, envelope: str, correlation_id: str, now: float) -> Answer:
    """A refusal in one of the three envelopes that are met in the wild."""
    status, detail = refusal.status, refusal.detail
    code = (
        refusal.code or _CODES.get(status) or ("INTERNAL_ERROR" if status >= _SERVER_ERROR else "INVALID_FIELD_VALUE")
    )
    said: Fields = {"detail": detail}
    if not refusal.raw and envelope == "enveloped":
        details = {} if isinstance(detail, str) else {"details": detail}
        error = {"code": code, "message": detail if isinstance(detail, str) else code, **details}
        said = {"status": "error", "error": error, "meta": {"request_id": correlation_id, "timestamp": rfc3339(now)}}
    elif not refusal.raw and envelope == "flat":
        said |= {"error_code": code, "status": status, "correlation_id": correlation_id, "timestamp": rfc3339(now)}
    return Answer(status, msgspec.json.encode(said), headers=refusal.headers)


def bearer(headers: Mapping[str, str]) -> str:
    """The token of `Authorization: Bearer …`, or nothing."""
    scheme, _, token = headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def need_user(headers: Mapping[str, str]) -> str:
    """Some calls want a person: a JWT as bearer. Raises Refused where there is an API key."""
    token = bearer(headers)
    if len([part for part in token.split(".") if part]) != 3:  # noqa: PLR2004 - header, claims, signature (RFC 7519)
        raise Refused(401, "a user's token is needed here, an API key is none", "INVALID_TOKEN")
    return token


def check_signature(call: Call, switches: AscendSwitches) -> None:
    """`X-Signature: v1=` HMAC-SHA256 over timestamp, a dot, and the body as json.dumps writes it with sorted keys.

    The timestamp is taken to be that of `X-Request-Timestamp`. Raises Refused.
    """
    presented = call.headers.get("X-Signature", "")
    if switches.signature == "off" or not call.body or (not presented and switches.signature == "check"):
        return
    timestamp = call.headers.get("X-Request-Timestamp", "")
    read_json(call.body)  # what is no JSON is refused as that
    canonical = json.dumps(json.loads(call.body), sort_keys=True)
    signed = f"{timestamp}.{canonical}".encode(errors="replace")
    expected = "v1=" + hmac.new(switches.signing_secret.encode(), signed, hashlib.sha256).hexdigest()
    if not timestamp or not hmac.compare_digest(presented.encode(errors="replace"), expected.encode()):
        raise Refused(401, "X-Signature is missing or wrong", "INVALID_TOKEN")


class Ration:
    """So many calls in each minute of the clock."""

    def __init__(self) -> None:
        self._window = self._used = 0

    def count(self, now: float, switches: AscendSwitches) -> dict[str, str]:
        """Count a call; the headers that tell of the limit, if there is one. Raises Refused with 429."""
        most = switches.per_minute
        if most is None:
            return {}
        window = int(now // _WINDOW_S)
        self._used = self._used + 1 if window == self._window else 1
        self._window = window
        end = (window + 1) * _WINDOW_S
        told = {"Limit": most, "Remaining": max(0, most - self._used), "Reset": end}
        headers = {f"X-RateLimit-{name}": str(value) for name, value in told.items()}
        if self._used <= most:
            return headers
        if switches.rate_headers == "both":
            headers["Retry-After"] = str(int(end - now) + 1)
        raise Refused(429, "Rate limit exceeded", headers=headers)
