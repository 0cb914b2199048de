"""The body of `POST /v1/gate`: what may be asked, and in which form. Pure; every refusal names the field.

{"gate": NAME, "to"?: DESTINATION, "deadline"?: seconds, "key"?: text, "agent_id"?, "run_id"?, "span_id"?, "request": {…}}
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from agentd.explain import explain
from agentd.intake import GateRefusal
from agentd.intake.admit import Limits
from agentd.records import Id, Name, Text
from agentd.wire import deeper_than

MAX_DEADLINE_S = 86_400.0
_LONE = re.compile("[\ud800-\udfff]")
_HALF = "half of a surrogate pair, which no UTF-8 can hold"
_encode = msgspec.json.Encoder(order="deterministic").encode


class Asking(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A question as it was asked; `request` is one JSON object."""

    gate: Name
    request: Raw
    to: Name | None = None
    deadline: Annotated[float, Meta(gt=0, le=MAX_DEADLINE_S)] | None = None
    key: Annotated[str, Meta(min_length=1, max_length=300)] | None = None
    agent_id: Id | None = None
    run_id: Id | None = None
    span_id: Id | None = None

    @property
    def fields(self) -> dict[str, Raw]:
        """The platform's fields, nulls included."""
        return msgspec.json.decode(self.request, type=dict[str, Raw])

    @property
    def named_agent(self) -> str:
        """The agent that the request names; empty where it names none. What is no text is the adapter's to refuse."""
        try:
            return msgspec.json.decode(self.fields.get("agent_id", Raw(b'""')), type=str)
        except msgspec.ValidationError:
            return ""


class Resolution(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a person found out about a gate."""

    verdict: Literal["allow", "deny", "review", "unavailable"]
    platform_id: Id | None = None
    note: Text = ""


def read_asking(body: bytes, limits: Limits) -> Asking:
    """Raises GateRefusal (422 malformed)."""
    _check_text(body)
    try:
        asking = msgspec.json.decode(body, type=Asking)
    except msgspec.ValidationError as error:
        raise malformed(explain(error, b"")) from None
    request = bytes(asking.request)
    if not request.lstrip().startswith(b"{"):
        raise malformed("$.request: expected an object with the platform's fields")
    if len(request) > limits.max_record_bytes:
        raise malformed(f"$.request: {len(request)} bytes, above intake.max_record_bytes ({limits.max_record_bytes})")
    if deeper_than(request, limits.max_depth):
        raise malformed(f"$.request: nested deeper than intake.max_depth ({limits.max_depth})")
    return asking


def read_resolution(body: bytes) -> Resolution:
    """Raises GateRefusal (422 malformed)."""
    _check_text(body)
    try:
        return msgspec.json.decode(body, type=Resolution)
    except msgspec.ValidationError as error:
        if str(error).endswith("`$.verdict`"):
            raise malformed("$.verdict: expected allow, deny, review or unavailable") from None
        raise malformed(explain(error, b"")) from None


def _check_text(body: bytes) -> None:
    """That it is JSON to its innermost value: what stays raw is not looked at again before it is sent."""
    try:
        body.decode()
        msgspec.json.decode(body)
    except UnicodeDecodeError as error:
        raise malformed(f"$: invalid UTF-8 at byte {error.start}") from None
    except msgspec.DecodeError as error:
        raise malformed(_unfit(body) or f"$: {error}") from None
    except RecursionError:
        raise malformed("$: nested too deeply") from None


def _unfit(body: bytes) -> str:
    """The value that our parser takes for no JSON and Python's does, and its place; empty where there is none."""
    try:
        found = next(_unfit_in(json.loads(body), "$"), None)
    except (ValueError, RecursionError):
        return ""
    return "" if found is None else f"{found[0]}: {found[1]}"


def _unfit_in(value: Any, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, member in value.items():
            if _LONE.search(name):
                yield place, f"the name {ascii(name)[:64]} has {_HALF}"
            yield from _unfit_in(member, f"{place}.{name[:64]}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unfit_in(item, f"{place}[{index}]")
    elif isinstance(value, str) and _LONE.search(value):
        yield place, f"a text with {_HALF}"
    elif isinstance(value, float) and not math.isfinite(value):
        yield place, "a number out of range, or none"


def malformed(message: str) -> GateRefusal:
    return GateRefusal(422, "malformed", message)


def digest_of(gate: str, destination: str, agent: str, run_id: str | None, request: bytes) -> bytes:
    """What makes two askings the same one: order of members and white space in the request don't count."""
    return hashlib.sha256(_encode([gate, destination, agent, run_id, _plain(request)])).digest()


def _plain(request: bytes) -> Any:
    """The request as values; as text where numbers of it can't be written again."""
    value = msgspec.json.decode(request)
    try:
        _encode(value)
    except (OverflowError, ValueError, msgspec.EncodeError):
        return request.decode()
    return value
