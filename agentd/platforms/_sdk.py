"""What the stand-ins share: the members of a call's body as the fields of a record, refused in the words of its SDK.

A member that a record has no field for goes into its `extra` as it was written, and from there back into the request: an SDK
newer than agentd loses nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import Raw

from agentd.errors import RecordError
from agentd.explain import explain
from agentd.records import TYPES
from agentd.standin import Called, Reply

_decode_members = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_text = msgspec.json.Decoder(str).decode
_encode = msgspec.json.Encoder().encode
_decoders: dict[str, msgspec.json.Decoder[Any]] = {kind: msgspec.json.Decoder(type_) for kind, type_ in TYPES.items()}
_HEAD = re.compile(r"^\$\.(\w+)")
_CAPITAL = re.compile(r"[A-Z]")
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def members_of(called: Called) -> Mapping[str, Raw]:
    """The members of the body, those that are null left out; no body is none. Raises RecordError for what is no object."""
    members = called.members or object_in(called.body)
    return {name: value for name, value in members.items() if not is_null(value)}


def object_in(data: bytes | Raw, place: str = "$") -> Mapping[str, Raw]:
    """The members of a JSON object; nothing at all has none. Raises RecordError."""
    if not bytes(data).strip():
        return {}
    try:
        return _decode_members(data)
    except msgspec.ValidationError:
        raise RecordError(f"{place}: expected an object") from None
    except _UNREADABLE as error:
        raise RecordError(f"{place}: no JSON: {error}") from None


def camel(name: str) -> str:
    """A field's name as the JSON of a camelCase platform has it."""
    head, *rest = name.split("_")
    return head + "".join(word.capitalize() for word in rest)


def snake(name: str) -> str:
    """A member's name as an SDK in Python has it."""
    return _CAPITAL.sub(lambda capital: "_" + capital[0].lower(), name)


def is_null(value: Raw) -> bool:
    return bytes(value).strip() in (b"", b"null")


def is_object(value: Raw) -> bool:
    return bytes(value).lstrip().startswith(b"{")


def text_in(members: Mapping[str, Raw], name: str) -> str:
    """A member that is a string, empty if it is not there. Raises RecordError."""
    value = members.get(name)
    if value is None or is_null(value):
        return ""
    try:
        return _decode_text(value)
    except _UNREADABLE:
        raise RecordError(f"$.{name}: expected a string") from None


def time_in(members: Mapping[str, Raw], name: str) -> datetime | None:
    """A member that is an ISO 8601 time. One without an offset is in UTC: SDKs in Python send what `isoformat()` gave them.

    Raises RecordError.
    """
    text = text_in(members, name)
    if not text:
        return None
    try:
        time = datetime.fromisoformat(text.strip())
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise RecordError(f"$.{name}: expected an ISO 8601 time such as 2026-01-31T12:00:00Z") from None


def fields_of(members: Mapping[str, Raw], names: Mapping[str, str], dropped: Collection[str] = ()) -> dict[str, Any]:
    """Members under the names of the record's fields, the others as `extra`; `dropped` are spoken for elsewhere."""
    fields: dict[str, Any] = {}
    extra: dict[str, Raw] = {}
    for name, value in members.items():
        if name in names:
            fields[names[name]] = value
        elif name not in dropped:
            extra[name] = value
    return fields | ({"extra": extra} if extra else {})


def checked(kind: str, fields: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The record of this kind. Raises RecordError that names the member by the SDK's name (`names`: member → field)."""
    record, data = {"kind": kind, **fields}, b""
    try:
        data = _encode(record)
        _decoders[kind].decode(data)
    except msgspec.ValidationError as error:
        spoken = {field: name for name, field in names.items()}
        told = explain(error, _encode({"kind": kind})).removesuffix(f" in {kind}")
        raise RecordError(_HEAD.sub(lambda found: f"$.{spoken.get(found[1], found[1])}", told), raw=data) from None
    except _UNREADABLE as error:
        raise RecordError(f"$: no JSON: {error}") from None
    return record


def said(body: Mapping[str, Any]) -> bytes:
    """An answer's body."""
    return _encode(body)


def reply(status: int, body: Mapping[str, Any]) -> Reply:
    """An answer as JSON."""
    return Reply(status, said(body))
