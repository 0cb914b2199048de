"""Switches: each platform's behaviour on which no source is certain, or on which two of them disagree.

A face keeps them in a frozen Struct, so that the field's type says what may be chosen and its default what we take to be likely.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple, TypeVar

import msgspec

from agentd.errors import UsageError
from agentd.units import parse_duration, parse_size

SwitchesT = TypeVar("SwitchesT", bound=msgspec.Struct)
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")  # a delay may be bare seconds, or have a unit


class Switch(NamedTuple):
    """One switch as text: which face, which of its switches, which way."""

    face: str
    name: str
    value: str


def parse_switch(text: str) -> Switch:
    """Read `"agentos.late_events=409"`. Names are checked when the switch is thrown. Raises UsageError."""
    target, equals, value = text.partition("=")
    face, dot, name = target.strip().partition(".")
    if not (equals and dot and face and name):
        raise UsageError(f"expected a switch such as 'agentos.late_events=409', got {text!r}")
    return Switch(face, name, value.strip())


def with_switch(switches: SwitchesT, name: str, value: Any) -> SwitchesT:
    """A copy with one switch thrown; text is read leniently, delays take units, `none` stands for no limit. Raises UsageError."""
    fields = msgspec.structs.asdict(switches)
    if name not in fields:
        raise UsageError(f"no switch {name!r}; there are {', '.join(fields)}")
    if value is not None and str(value).lower() == "none":
        value = None
    elif value is not None and name.endswith("_bytes"):
        value = parse_size(int(value) if str(value).isdigit() else value)
    elif value is not None and name.endswith(("_delay", "_poll")):
        value = parse_duration(float(value) if _NUMBER.fullmatch(str(value)) else value)
    elif value is not None:
        value = str(value)
    try:
        return msgspec.convert({**fields, name: value}, type(switches), strict=False)
    except msgspec.ValidationError as error:
        raise UsageError(f"switch {name}: {error}") from error
