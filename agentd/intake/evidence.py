"""Decisions and lifecycle records that are refused as invalid: what of them is kept, and as whose (promise 8). Pure.

Only what is invalid is kept. What was well understood and has no place (unrouted, full, an id of another's) is its sender's to
send again: it was told so. The kind is read from the bytes as far as they can be read: a record that is no JSON for us, for its
depth or for half a surrogate pair, is known by a `kind` that comes first, where every client of ours writes it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from uuid import UUID

import msgspec
from msgspec import Raw, Struct

from agentd.errors import RecordError, WireError
from agentd.intake import Grant
from agentd.queued import Allowed, Refused, Source
from agentd.records import EVIDENCE, Record
from agentd.redact.engine import Redacted
from agentd.wire import Message, decode_message, encode

_KIND_FIRST = re.compile(rb'\s*\{\s*"kind"\s*:\s*"([a-z_.]{1,32})"')
_MAX_NAME = 256
_MARGIN = 8192  # what is cut off is screened with so much behind it, and no secret of that length is cut in two
_fields_of = msgspec.json.Decoder(dict[str, Raw]).decode


class Sender(Struct, frozen=True):
    """Who sent it: uid and pid, the dialect, and with a local token what that one was allowed."""

    uid: int
    pid: int
    origin: str
    allowed: Allowed | None = None
    redaction: int = 0


def refused_record(
    item: Record | RecordError,
    reason: str,
    sender: Sender,
    limit: int,
    new_id: Callable[[], bytes],
    kind: str = "",
    hide: Callable[[bytes], Redacted] = Redacted,
) -> Refused | None:
    """What is kept of a record that was refused as invalid, at most `limit` bytes of it; None unless it is evidence.

    `kind` is for what can't say itself what it is. `hide` takes secrets out of what is no record; it sees little more than is kept.
    """
    body = item.raw if isinstance(item, RecordError) else encode(item)
    fields = _readable(body)
    kind = _text(fields.get("kind")) or kind
    if kind not in EVIDENCE:
        return None
    if len(body) > limit:
        reason = f"{reason} (the first {limit} of {len(body)} bytes are kept)"
    hidden = _hidden(body, limit, hide) if isinstance(item, RecordError) else Redacted(body)
    run_id = _text(fields.get("run_id"))
    return Refused(
        kind, _id_in(fields) or new_id(), f"run:{run_id}" if run_id else "", hidden.body[:limit],
        Source(_text(fields.get("agent_id")), sender.uid, sender.pid, sender.origin, sender.redaction), reason, sender.allowed,
        dict(hidden.hits),
    )  # fmt: skip


def _hidden(body: bytes, limit: int, hide: Callable[[bytes], Redacted]) -> Redacted:
    """At least the first `limit` bytes without their secrets; what is longer by far is not looked at to its end."""
    if len(body) <= limit + _MARGIN:
        return hide(body)
    hidden = hide(body[: limit + _MARGIN])
    return Redacted(hidden.body[:-_MARGIN], hidden.hits)  # marks may be shorter: what was cut in two stays outside


def allowed_by(grant: Grant) -> Allowed:
    """A grant, to be kept with what came under it."""
    return Allowed(grant.agent_ids, None if grant.destinations is None else tuple(sorted(grant.destinations)))


def grant_of(allowed: Allowed) -> Grant:
    """The grant again."""
    return Grant(allowed.agent_ids, None if allowed.destinations is None else frozenset(allowed.destinations))


def record_in(refused: Refused) -> Record | RecordError:
    """The record as this version reads it, under the id that it is kept by; or why it is none."""
    try:
        message = decode_message(refused.body)
    except WireError as error:
        return RecordError(str(error))
    if not isinstance(message, Message) or len(message.items) != 1:
        return RecordError("$: expected one record")
    record = message.items[0]
    if not isinstance(record, RecordError) and record.id is None:
        record.id = UUID(bytes=refused.record_id)
    return record


def _readable(body: bytes) -> dict[str, Raw]:
    """The record's members, or its kind alone."""
    try:
        return _fields_of(body)
    except (ValueError, RecursionError):  # msgspec's own errors are ValueErrors
        found = _KIND_FIRST.match(body)
        return {"kind": Raw(b'"%b"' % found[1])} if found else {}


def _text(value: Raw | None) -> str:
    """A member that is a string of a name's length, else ""."""
    if value is None:
        return ""
    try:
        text = msgspec.json.decode(value, type=str)
    except (ValueError, RecursionError):
        return ""
    return text if len(text) <= _MAX_NAME else ""


def _id_in(fields: dict[str, Raw]) -> bytes | None:
    try:
        return UUID(_text(fields.get("id"))).bytes
    except ValueError:
        return None
