"""One record's bytes from its fields, cut to the limits of the record kinds rather than refused for them.

`line` is the general way; `event_line` the fast one, which splices ready-made parts around the payload. Which limit a field
has is a table here, because reading it off `agentd.records` at run time would cost an agent 10 ms at import; a test compares
the two. None means "left out": a null would make some platforms refuse a whole batch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from agentd.client.encode import clean, encode, safe_str, time_text

MAX_ID = 256
MAX_NAME = 512
MAX_TEXT = 65536

IDS = frozenset(
    [
        "run_id",
        "external_run_id",
        "parent_run_id",
        "span_id",
        "parent_span_id",
        "task_id",
        "decision_id",
        "trace_id",
        "session_id",
        "conversation_id",
        "request_id",
        "event_id",
        "action_id",
        "execution_id",
        "execution_receipt_id",
        "agent_id",
    ]
)
NAMES = frozenset(
    [
        "type",
        "name",
        "span_kind",
        "chosen",
        "model",
        "runner",
        "prompt_version",
        "prompt_hash",
        "policy_version_id",
        "decision_type",
        "agent_name",
        "schema_version",
        "target_system",
        "target_object_id",
        "external_ref",
        "decision_record_hash",
        "decision_receipt_hash",
        "execution_status",
        "state_before_hash",
        "state_after_hash",
        "outcome_status",
        "execution_hash",
        "sync_status",
        "sync_direction",
        "crm_provider",
        "crm_object_id",
        "crm_object_type",
        "decision_verdict",
        "policy_id",
        "policy_version",
        "status",
        "level",
        "trigger_type",
    ]
)
TEXTS = frozenset(
    ["error_message", "reason", "context", "error_text", "action_taken", "crm_record_url", "decision_action"]
)
TEXT_LISTS = frozenset({"constraints"})
TIMES = frozenset(["occurred_at", "started_at", "ended_at", "captured_at", "executed_at"])
INTEGERS = frozenset(["duration_ms", "tokens_input", "tokens_output"])
NUMBERS = frozenset(["confidence", "cost_usd", "latency_ms", "eval_score"])
_REQUIRED_NAMES = frozenset({"type", "name"})

LEVELS = {  # the words of others for our four
    "debug": "debug",
    "info": "info",
    "warn": "warn",
    "error": "error",
    "trace": "debug",
    "warning": "warn",
    "critical": "error",
    "fatal": "error",
}
USAGE = {  # our names, and those of the model vendors' usage objects
    "input_tokens": ("input_tokens", "prompt_tokens"),
    "output_tokens": ("output_tokens", "completion_tokens"),
    "cache_read_tokens": ("cache_read_tokens", "cache_read_input_tokens"),
    "cache_creation_tokens": ("cache_creation_tokens", "cache_creation_input_tokens"),
}
_LIMITS = {**dict.fromkeys(IDS, MAX_ID), **dict.fromkeys(NAMES, MAX_NAME), **dict.fromkeys(TEXTS, MAX_TEXT)}
_MAX_QUOTED = 1024  # event types kept ready-made
_MIN_CUT = 64  # characters: shorter strings are not worth cutting
_quoted: dict[str, bytes] = {}
_second = (b"0", b"1970-01-01T00:00:00")


def stamp(moment: float) -> bytes:
    """RFC 3339 in UTC with microseconds. The part before the point is made once a second."""
    global _second  # noqa: PLW0603 - one tuple, replaced whole: threads can't see half of it
    digits = b"%.6f" % moment
    second, rest = digits[:-7], digits[-7:]
    known, text = _second
    if known != second:
        text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(int(second))).encode()
        _second = (second, text)
    return text + rest + b"Z"


def now() -> bytes:
    """The time of this call."""
    return stamp(time.time())


def cut_text(value: object, limit: int) -> str:
    """The value's text within the limit; what was cut is marked where there is room for the mark."""
    text = clean(str.__str__(value)) if isinstance(value, str) else safe_str(value)
    if len(text) <= limit:
        return text
    mark = f"…[cut {len(text) - limit} characters]" if limit >= MAX_NAME else ""
    return text[: limit - len(mark)] + mark


def level_of(level: object) -> str:
    """One of our four levels where it can be guessed; the daemon refuses the rest by name."""
    return LEVELS.get(level, level) if isinstance(level, str) else safe_str(level)


def usage_of(usage: object) -> dict[str, int] | None:
    """The four token counts, from a dict or from an SDK's usage object under its own names."""
    if usage is None:
        return None
    counts: dict[str, int] = {}
    for name, aliases in USAGE.items():
        for alias in aliases:
            value = _count(usage, alias)
            if value is not None:
                counts[name] = value
                break
    return counts


def _count(usage: object, name: str) -> int | None:
    try:
        value = usage.get(name) if isinstance(usage, Mapping) else getattr(usage, name, None)
        return int(value) if isinstance(value, int | float) and value >= 0 else None
    except Exception:  # noqa: BLE001 - a property of the vendor's object; NaN
        return None


def _field(name: str, value: Any) -> bytes | None:
    """A field's value as JSON; None: leave it out."""
    limit = _LIMITS.get(name)
    if limit is not None:
        text = cut_text(value, limit)
        if not text and limit != MAX_TEXT:
            return b'"unnamed"' if name in _REQUIRED_NAMES else None
        return encode(text)
    if name in TIMES:
        return encode(_time(value))
    if name in INTEGERS or name in NUMBERS:
        return encode(_numeric(value, int if name in INTEGERS else float))
    if name in TEXT_LISTS:
        texts = [value] if isinstance(value, str) else _list(value)
        return encode([cut_text(text, MAX_TEXT) for text in texts])
    if name == "to":
        return encode(
            cut_text(value, MAX_NAME) if isinstance(value, str) else [cut_text(to, MAX_NAME) for to in _list(value)]
        )
    return encode(value)


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple | set | frozenset) else [value]


def _time(value: object) -> str:
    try:
        return time_text(value)
    except (OverflowError, ValueError, OSError):  # year 1 in local time, seconds beyond the calendar
        return safe_str(value)


def _numeric(value: Any, kind: type[int | float]) -> Any:
    try:
        return value if type(value) is kind else kind(value)
    except (TypeError, ValueError, OverflowError):
        return value  # the daemon says what is wrong with it


def fields(values: Mapping[str, Any]) -> bytes:
    """`,"name":value` for each field that has a value."""
    parts: list[bytes] = []
    for name, value in values.items():
        if value is None or name == "kind":
            continue
        data = _field(name, value)
        if data is not None:
            parts.append(b"," + quoted(name) + b":" + data)
    return b"".join(parts)


def head(kind: str, values: Mapping[str, Any]) -> bytes:
    """A record's beginning, without its closing brace: ready for more fields."""
    return b'{"kind":"' + kind.encode() + b'"' + fields(values)


def line(kind: str, values: Mapping[str, Any]) -> bytes:
    """A whole record."""
    return head(kind, values) + b"}"


def quoted(text: str) -> bytes:
    """A name as JSON, remembered: an agent has few event types and sends each many times."""
    data = _quoted.get(text) if type(text) is str else None
    if data is None:
        data = encode(cut_text(text, MAX_NAME) or "unnamed")
        if type(text) is str and len(_quoted) < _MAX_QUOTED and len(text) <= MAX_NAME:
            _quoted[text] = data
    return data


Late = tuple[bytes, bytes, str, bytes, float]  # an event of which only the payload is encoded: see `late_event`
LATE_BYTES = len(',"type":,"level":"error","payload":,"occurred_at":"2026-01-31T12:00:00.000000Z"}')


def late_event(run_head: bytes, event_type: str, level: str, payload: object) -> tuple[Late, int]:
    """An event's parts and the most bytes that they can come to. `level` is one of our four.

    The rest is put together by the thread that sends it: writing a time and splicing would double what an emit costs an
    agent that has just been doing something else.
    """
    body = b"" if payload is None else encode(payload)
    name = quoted(event_type)
    return (run_head, name, level, body, time.time()), len(run_head) + len(name) + len(body) + LATE_BYTES


def render(data: bytes | Late) -> bytes:
    """A record's bytes, the same ones each time."""
    if isinstance(data, bytes):
        return data
    run_head, name, level, body, moment = data
    level_part = b"" if level == "info" else b',"level":"' + level.encode() + b'"'
    payload_part = b',"payload":' + body if body else b""
    return b"".join((run_head, b',"type":', name, level_part, payload_part, b',"occurred_at":"', stamp(moment), b'"}'))


def narrow(data: bytes | Late, to: Sequence[str]) -> bytes:
    """The record for these destinations alone; all else of it stays as it was written."""
    record = msgspec.json.decode(render(data), type=dict[str, msgspec.Raw])
    record["to"] = msgspec.Raw(msgspec.json.encode(to))
    return msgspec.json.encode(record)


def event_line(run_head: bytes, event_type: str, level: str, payload: object, occurred_at: object) -> bytes:
    """An event of the run whose beginning is `run_head`."""
    data = run_head + b',"type":' + quoted(event_type)
    if level != "info":
        data += b',"level":' + quoted(level)
    if payload is not None:
        data += b',"payload":' + encode(payload)
    if occurred_at is None:
        return data + b',"occurred_at":"' + now() + b'"}'
    return data + b',"occurred_at":' + encode(_time(occurred_at)) + b"}"


def head_of(data: bytes | Late) -> bytes:
    """The beginning of an event of the same run as this record: for the same agent and destinations."""
    if not isinstance(data, bytes):
        return data[0]
    record = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    parts = [quoted(name) + b":" + bytes(record[name]) for name in ("run_id", "agent_id", "to") if name in record]
    return b",".join([b'{"kind":"event"', *parts])


def shrink(data: bytes, limit: int) -> bytes:
    """The record within `limit` bytes: its longest strings are cut and marked, at last whole fields."""
    try:
        record = msgspec.json.decode(data)
    except ValueError:  # an integer of thousands of digits
        record = {"kind": "event", "payload": safe_str(data[:MAX_TEXT])}
    longest = len(data)
    while len(data) > limit and longest > _MIN_CUT:
        longest = max(longest // 2, _MIN_CUT)
        data = encode({name: _cut(value, longest) if name not in _LIMITS else value for name, value in record.items()})
    return data if len(data) <= limit else _cut_fields(record, limit)


def _cut(value: Any, longest: int) -> Any:
    if isinstance(value, str):
        return value if len(value) <= longest else f"{value[:longest]}…[cut {len(value) - longest} characters]"
    if isinstance(value, dict):
        return {_cut(key, longest): _cut(item, longest) for key, item in value.items()}
    return [_cut(item, longest) for item in value] if isinstance(value, list) else value


def _cut_fields(record: dict[str, Any], limit: int) -> bytes:
    """For millions of small values: the beginning of each large field's JSON, as text in an object."""
    room = limit
    while True:
        room //= 2
        small = {name: _as_text(value, room) for name, value in record.items()}
        data = encode(small)
        if len(data) <= limit or room <= _MIN_CUT:
            return data


def _as_text(value: Any, room: int) -> Any:
    text = encode(value)
    if len(text) <= room:
        return value
    if isinstance(value, str):
        return _cut(value, max(room // 4, 1))
    start = text[: room // 4].decode(errors="ignore")
    return {"cut": f"{start}…[cut {len(text) - len(start)} characters]"}
