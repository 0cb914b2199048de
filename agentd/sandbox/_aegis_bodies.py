"""The body and the queries of Aegis's intents, and how strictly they are read: camelCase, and a null is no value.

Source: https://www.aegis-comply.com/api-reference.html for fields, types, the list's filters and its limits. A snake_case name is
refused with the name that is meant; other unknown fields are let by and shown by the inspection, as no source says that they
are refused. Used by the face in `aegis` alone; the underscore keeps this module from being taken for a platform.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Literal, TypeAlias
from urllib.parse import parse_qs

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from agentd.units import rfc3339

Status: TypeAlias = Literal["pending", "approved", "denied", "pending_approval"]
Text = Annotated[str, Meta(min_length=1)]
Uuid = Annotated[str, Meta(pattern=r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\Z")]
Share = Annotated[float, Meta(ge=0, le=1)]
_SPENT = Meta(gt=0, le=10**15)  # no source has bounds; nothing and less can't be spent
Amount: TypeAlias = Annotated[int, _SPENT] | Annotated[float, _SPENT]

_SNAKE = re.compile(r"_([a-z0-9])")


class IntentBody(Struct, rename="camel", kw_only=True):
    agent_id: Uuid
    amount: Amount
    currency: Annotated[str, Meta(pattern=r"^[A-Z]{3}\Z")]
    reason: Text
    confidence: Share = 1.0
    merchant: Text | UnsetType = UNSET
    merchant_category: Text | UnsetType = UNSET
    metadata: dict[str, Any] | UnsetType = UNSET


class ListQuery(Struct, rename={"agent_id": "agentId", "since": "from", "until": "to"}, kw_only=True):
    """Both times count themselves in."""

    status: Status | None = None
    agent_id: Uuid | None = None
    since: datetime | None = None
    until: datetime | None = None
    limit: Annotated[int, Meta(ge=1, le=100)] = 20
    offset: Annotated[int, Meta(ge=0)] = 0


class Refused(Exception):  # noqa: N818 - named as its reader would say it
    """The platform refuses a request: status and sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


_decode_intent = msgspec.json.Decoder(IntentBody).decode
_KNOWN = frozenset(field.encode_name for field in msgspec.structs.fields(IntentBody))


def read_intent(body: bytes) -> tuple[IntentBody, dict[str, Any]]:
    """An intent's body, and what stood in it that Aegis documents nowhere. Raises Refused with 400."""
    try:
        sent = msgspec.json.decode(body.decode())
        if isinstance(sent, dict):
            _camel_only(sent)
        return _decode_intent(body), {name: sent[name] for name in sent if name not in _KNOWN}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(400, str(error)) from error


def read_query(text: str) -> ListQuery:
    """The filters of a list. Raises Refused with 400."""
    try:
        given = {name: values[-1] for name, values in parse_qs(text, keep_blank_values=True, errors="strict").items()}
        _camel_only(given)
        query = msgspec.convert(given, ListQuery, strict=False)
    except (msgspec.ValidationError, UnicodeDecodeError) as error:
        raise Refused(400, str(error)) from error
    for name, at in (("from", query.since), ("to", query.until)):
        if at is not None and at.tzinfo is None:
            raise Refused(400, f"expected a time with an offset such as {rfc3339(0)} - at `$.{name}`")
    return query


def _camel_only(names: dict[str, Any]) -> None:
    for name in names:
        camel = _SNAKE.sub(lambda match: match[1].upper(), name)
        if camel != name:
            raise Refused(400, f"unknown field `{name}`, the wire is camelCase: `{camel}`")
