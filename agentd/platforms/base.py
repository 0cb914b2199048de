"""What adapters share: the meaning of a status where a platform says nothing special of it.

A new platform is one module `agentd/platforms/NAME.py` with a `PLATFORM` (see `agentd.exchange.Platform`).
"""

from __future__ import annotations

import email.utils
from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec
from msgspec import Raw

from agentd.exchange import ANSWER_BYTES, Attempt, Call, Lost, Response
from agentd.outcomes import Cause, Delivered, Pause, Reject, Retry, Scope, Split, Verdict

_MIN_PAUSE_S = 60.0  # no probe a second while a month turns
_TRANSIENT = frozenset({408, 425})
_MAX_RETRY_AFTER_S = (
    3600.0  # a server that says "next year" is asked again in an hour; a cap's reset comes by its own field
)


def by_status(response: Response, attempt: Attempt, reason: str) -> Verdict:
    """What a status means where the platform says nothing special of it (promise 5)."""
    status = response.status
    if 200 <= status < 300:  # noqa: PLR2004 - RFC 9110 §15
        return Delivered()
    if status < 400:  # noqa: PLR2004
        return Pause(
            Scope.DESTINATION,
            f"{reason}: redirected to {response.headers.get('location', '?')[:200]}: is base_url right?",
        )
    if status == 429:  # noqa: PLR2004
        return Retry(reason, retry_after(response.headers, attempt.now_s), Scope.DESTINATION)
    if status >= 500 or status in _TRANSIENT:  # noqa: PLR2004
        return Retry(reason, retry_after(response.headers, attempt.now_s))
    if status in {401, 402}:
        return Pause(Scope.DESTINATION, reason)
    if status == 403:  # noqa: PLR2004
        return Pause(Scope.LANE, reason)
    if status == 405:  # noqa: PLR2004 - all our calls are POST: somebody else answers there
        return Pause(Scope.DESTINATION, f"{reason}: is base_url right?")
    if status == 413:  # noqa: PLR2004
        return Split(reason, Cause.TOO_LARGE)
    if status in {400, 422}:
        return Split(reason)
    return Reject(reason)


def with_extra(own: bytes, extra: Mapping[str, Raw] | None) -> bytes:
    """A JSON object with what `extra` holds beside it: its own members win, and a null in `extra` is left out."""
    if not extra:
        return own
    members = msgspec.json.decode(own, type=dict[str, Raw])
    more = {name: value for name, value in extra.items() if name not in members and bytes(value).strip() != b"null"}
    return msgspec.json.encode(members | more) if more else own


def lost(call: Call, answer: Lost) -> Verdict | None:
    """A request without an answer: again where a repeat is safe or nothing was sent, None where it may have acted."""
    if not answer.sent:
        return Retry(answer.reason, None, Scope.DESTINATION)
    return Retry(answer.reason) if call.repeat else None


def retry_after(headers: Mapping[str, str], now_s: float) -> float | None:
    """Seconds to wait by `Retry-After`, which is seconds or an HTTP date (RFC 9110 §10.2.3); None without one."""
    text = headers.get("retry-after", "").strip()
    if not text:
        return None
    try:
        wait = float(text)
    except ValueError:
        try:
            date = email.utils.parsedate_to_datetime(text)
        except ValueError:
            return None
        wait = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now_s
    return min(max(wait, 0.0), _MAX_RETRY_AFTER_S) if wait == wait else None  # noqa: PLR0124 - NaN


def next_month_s(now_s: float) -> float:
    """Seconds until the next month begins in UTC, when a monthly cap is fresh again; a minute at least."""
    now = datetime.fromtimestamp(now_s, UTC)
    year, month = (now.year + 1, 1) if now.month == 12 else (now.year, now.month + 1)  # noqa: PLR2004 - December
    return max(datetime(year, month, 1, tzinfo=UTC).timestamp() - now_s, _MIN_PAUSE_S)


def is_cut(answer: Response) -> bool:
    """An object of which we have the beginning only."""
    return len(answer.body) >= ANSWER_BYTES and answer.body.lstrip().startswith(b"{")


def array_of(value: Raw) -> Raw:
    """The JSON value as an array: anything else is its only element."""
    text = bytes(value).strip()
    return value if text.startswith(b"[") else Raw(b"[" + text + b"]")


def object_of(value: Raw) -> Raw:
    """The JSON value as an object: anything else goes under `value`."""
    text = bytes(value).strip()
    return value if text.startswith(b"{") else Raw(b'{"value":' + text + b"}")
