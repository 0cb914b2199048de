"""Any Python value as JSON bytes, at the call, in the caller's thread; never raises.

An ordinary payload (dicts with string keys, lists, tuples, strings, numbers, None) goes to msgspec as it is, after a look
at its types that costs less than a microsecond. Everything else is first made ordinary by `_Walk`:

    NaN, ±inf           "NaN", "Infinity", "-Infinity" (msgspec would write null)
    bytes               base64
    datetime            RFC 3339 in UTC; a naive one is taken to be local time. date, time: ISO 8601. timedelta: seconds
    Decimal, UUID       their text; paths too
    Enum                its value
    set, deque, tuple   an array
    exception           {"type", "message", "traceback"}, the traceback's end kept where it is long
    pydantic            model_dump(mode="json"); dataclasses, attrs and msgspec objects: their fields
    numpy-like          scalars by .item(), small arrays by .tolist()
    anything else       its repr; too deep, cyclic or endless: a repr or placeholder at that place

Dict keys become strings: numbers and true, false, null as JSON writes them, others by their text. Lone surrogates become U+FFFD.
"""

from __future__ import annotations

import os
import reprlib
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from math import isfinite
from typing import Any
from uuid import UUID

import msgspec

MAX_DEPTH = 60  # the daemon refuses a record that nests deeper than 64, and a payload lies inside a record
_MAX_CONTAINERS = 20_000  # above this the quick look is no longer quick
_MAX_VALUES = 200_000  # a record of 1 MiB holds fewer, so whoever has more is cyclic in spirit
_MAX_REPR = 4096  # characters
_MAX_TRACEBACK = 16_384  # characters, counted from the end, where the cause stands
_MAX_INT_BITS = 2000  # about 600 digits: int → str works below the lowest limit that Python lets one set
_STUB_COST = 100  # values; a doubling structure ends in so many of them that their sum would take minutes
_MAX_ARRAY = 1000  # elements of a numpy-like array that are written out

_SCALARS = frozenset({str, int, float, bool, type(None)})
_NEVER_NULL = frozenset({str, int, bool})  # what can't become a null that hides a NaN
_json = msgspec.json.Encoder().encode


def encode(value: object) -> bytes:
    """The value as JSON, valid UTF-8. Never raises."""
    try:
        if type(value) is dict and _NEVER_NULL.issuperset(map(type, value.values())):
            return _json(value)  # the most common payload by far
        if _is_ordinary(value):
            data = _json(value)
            if b"null" not in data or not _has_non_finite(value):
                return data
    except Exception:  # noqa: BLE001, S110 - lone surrogates, huge integers, a dict that another thread changes
        pass
    return _encode_carefully(value)


def _encode_carefully(value: object) -> bytes:
    try:
        return _json(_Walk().plain(value, MAX_DEPTH))
    except Exception:  # noqa: BLE001 - no payload may raise into the agent
        return _json(safe_repr(value))


def with_number(fields: Mapping[str, object], name: str, number: Decimal) -> bytes:
    """The fields as a JSON object in which the one of that name is this number, digit by digit, where `encode` writes text."""
    parts = {safe_str(key): msgspec.Raw(encode(value)) for key, value in fields.items()}
    return _json({**parts, name: msgspec.Raw(Decimal.__str__(number).encode())})


def plain(value: object) -> Any:
    """A copy made of dicts, lists, strings, numbers, booleans and None alone. Never raises."""
    try:
        return msgspec.json.decode(encode(value))
    except ValueError:  # an integer of thousands of digits, which JSON allows and the decoder does not
        return safe_repr(value)


def _is_ordinary(value: object) -> bool:
    """Whether msgspec writes all of it as promised. Level by level, so that depth and size are bounded on the way."""
    if type(value) in _SCALARS:
        return True
    level: list[Any] = [value]
    seen = 0
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for container in level:
            kind = type(container)
            if kind is dict:  # msgspec writes keys as promised, or refuses them
                items: Iterable[Any] = container.values()
            elif kind is list or kind is tuple:
                items = container
            else:
                return False
            if not _SCALARS.issuperset(map(type, items)):
                below += [item for item in items if type(item) not in _SCALARS]
        if not below:
            return True
        seen += len(below)
        if seen > _MAX_CONTAINERS:
            return False
        level = below
    return False


def _has_non_finite(value: Any) -> bool:
    """Whether an ordinary value holds NaN or an infinity. Asked only where the JSON holds a null."""
    stack = [value]
    while stack:
        item = stack.pop()
        kind = type(item)
        if kind is float:
            if not isfinite(item):
                return True
        elif kind is dict:
            stack.extend(item.values())
        elif kind is list or kind is tuple:
            stack.extend(item)
    return False


def clean(text: str) -> str:
    """The text with lone surrogates replaced: what UTF-8 can't hold would poison the whole batch."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def type_name(value: object) -> str:
    """The name of a value's class, with its module where that says more."""
    kind = type(value)
    module = getattr(kind, "__module__", "")
    name = getattr(kind, "__qualname__", "object")
    return clean(name if module in ("builtins", "__main__") else f"{module}.{name}")


def safe_repr(value: object, show: Callable[[object], str] = repr) -> str:
    """`repr` for values that may not have one, bounded."""
    try:
        text = show(value)
        return clean(text if len(text) <= _MAX_REPR else f"{text[:_MAX_REPR]}…[cut {len(text) - _MAX_REPR} characters]")
    except Exception:  # noqa: BLE001 - a __repr__ of the agent's own that fails
        return f"<unrepresentable {type_name(value)}>"


def safe_str(value: object) -> str:
    """`str` for values that may not have one."""
    try:
        return clean(str(value))
    except Exception:  # noqa: BLE001 - a __str__ of the agent's own that fails
        return safe_repr(value)


def time_text(value: object) -> str:
    """RFC 3339 in UTC from a datetime (naive: local time) or seconds since 1970; text stays as it is."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = datetime.fromtimestamp(value, UTC)
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"
    return safe_str(value)


def error_detail(error: BaseException) -> dict[str, Any]:
    """Class, message and traceback of an exception."""
    detail: dict[str, Any] = {"type": type_name(error), "message": safe_str(error)}
    if error.__traceback__ is not None:
        detail["traceback"] = _traceback(error)
    return detail


def _traceback(error: BaseException) -> str:
    from traceback import format_exception

    try:
        text = clean("".join(format_exception(error)))
    except Exception:  # noqa: BLE001 - it calls the exception's own __str__ and reads source files
        return "<unprintable traceback>"
    return (
        text
        if len(text) <= _MAX_TRACEBACK
        else f"[cut {len(text) - _MAX_TRACEBACK} characters]…{text[-_MAX_TRACEBACK:]}"
    )


class _Walk:
    """Makes one value ordinary. Remembers which containers it is inside of, and how many values it has seen."""

    __slots__ = ("_inside", "_seen")

    def __init__(self) -> None:
        self._inside: set[int] = set()
        self._seen = 0

    def plain(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind is str:
            return clean(value)
        if kind is bool or value is None:
            return value
        if kind is int:
            return value if value.bit_length() <= _MAX_INT_BITS else f"{value:#x}"
        if kind is float:
            return _number(value)
        self._seen += 1
        if self._seen > _MAX_VALUES:
            return f"<{type_name(value)}: too many values>"
        if depth == 0 or id(value) in self._inside:
            return self._stub(value)
        self._inside.add(id(value))
        try:
            return self._other(value, depth)
        except Exception:  # noqa: BLE001 - methods of the agent's own objects
            return safe_repr(value)
        finally:
            self._inside.discard(id(value))

    def _stub(self, value: Any) -> str:
        """For what is too deep or contains itself: a repr that looks six levels down, or only the class after many of them."""
        self._seen += _STUB_COST
        return safe_repr(value, reprlib.repr) if self._seen < _MAX_CONTAINERS else f"<{type_name(value)}: too deep>"

    def _other(self, value: Any, depth: int) -> Any:
        if isinstance(value, Enum):
            return self.plain(value.value, depth - 1)
        if isinstance(value, dict | Mapping):
            return self._mapping(value, depth)
        if isinstance(value, list | tuple | set | frozenset | deque | AbstractSet):
            self._seen += len(value)
            return [self.plain(item, depth - 1) for item in _items(value, _MAX_VALUES - self._seen)]
        scalar = _scalar(value)
        if scalar is not value:
            return scalar
        return self._object(value, depth)

    def _mapping(self, value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        pairs = list(value.items())  # at once: another thread may change it meanwhile
        self._seen += len(pairs)
        return {self._key(key): self.plain(item, depth - 1) for key, item in pairs[:_MAX_VALUES]}

    def _key(self, key: Any) -> str:
        if isinstance(key, Enum):
            key = key.value
        if isinstance(key, bool):
            return "true" if key else "false"
        if key is None:
            return "null"
        if isinstance(key, str):
            return clean(str.__str__(key))
        text = self.plain(key, 2)
        return text if isinstance(text, str) else safe_str(key)

    def _object(self, value: Any, depth: int) -> Any:
        if isinstance(value, BaseException):
            return error_detail(value)
        if isinstance(value, type):
            return safe_repr(value)
        kind = type(value)
        if kind is msgspec.Raw:
            return self.plain(msgspec.json.decode(bytes(value)), depth)  # nobody else has checked that it is JSON
        if callable(getattr(kind, "model_dump", None)):
            return self.plain(value.model_dump(mode="json"), depth - 1)
        names = _field_names(kind)
        if names is not None:
            return self._mapping({name: getattr(value, name) for name in names if hasattr(value, name)}, depth)
        if hasattr(kind, "dtype") and hasattr(kind, "item"):
            return self.plain(_array(value), depth - 1)
        if isinstance(value, os.PathLike):
            return clean(os.fsdecode(value))
        return safe_repr(value)


def _items(value: Any, room: int) -> list[Any]:
    items = list(value)
    return items if len(items) <= room else [*items[: max(room, 0)], f"…[cut {len(items) - max(room, 0)} items]"]


def _number(value: float) -> float | str:
    if isfinite(value):
        return value
    return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"  # noqa: PLR0124 - NaN alone differs from itself


def _scalar(value: Any) -> Any:
    """What a leaf of a known type is written as; the value itself if it is none."""
    if isinstance(value, str):
        return clean(str.__str__(value))
    if isinstance(value, int):
        return int.__int__(value) if value.bit_length() <= _MAX_INT_BITS else f"{int.__int__(value):#x}"
    if isinstance(value, float):
        return _number(float.__float__(value))
    if isinstance(value, bytes | bytearray | memoryview):
        return b64encode(bytes(value)).decode()
    if isinstance(value, datetime):
        return time_text(value)
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal | UUID):
        return str(value)
    return value


def _field_names(kind: type) -> list[str] | None:
    """The fields of a dataclass, an attrs class or a msgspec Struct, without importing any of them."""
    fields = getattr(kind, "__dataclass_fields__", None)
    if fields is not None:
        return list(fields)
    attributes = getattr(kind, "__attrs_attrs__", None)
    if attributes is not None:
        return [attribute.name for attribute in attributes]
    names = getattr(kind, "__struct_fields__", None)
    return None if names is None else list(names)


def _array(value: Any) -> Any:
    if getattr(value, "shape", ()) == ():
        return value.item()
    return value.tolist() if getattr(value, "size", _MAX_ARRAY + 1) <= _MAX_ARRAY else safe_repr(value)
