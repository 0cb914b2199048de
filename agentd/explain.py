"""Validation errors in the words of whoever wrote the record: the path, what was found, what is allowed.

Invalid enum value 'warning' - at `$.level`   →   $.level: expected one of debug, info, warn, error, got "warning"
"""

from __future__ import annotations

import difflib
import re
import typing

import msgspec

from agentd.records import KINDS, TYPES, Usage

_AT = re.compile(r"^(?P<what>.*?)(?: - at `(?P<path>[^`]*)`)?$", re.DOTALL)
_NAMES = {"str": "string", "int": "integer", "bool": "boolean", "float": "number", "null": "null", "datetime": "time"}
_MAX_MESSAGE = 300  # an error quotes names that came from outside: bounded


class _Kind(msgspec.Struct):
    kind: str = ""


def explain(error: msgspec.ValidationError, record: bytes) -> str:
    """One sentence that names the field and what would be right. `record` is the JSON of the one record at fault."""
    match = _AT.match(str(error))
    what, path = (match["what"], match["path"] or "$") if match else (str(error), "$")
    kind = _kind_of(record)
    return _sentence(what, path, kind)[:_MAX_MESSAGE]


def _kind_of(record: bytes) -> str:
    try:
        return msgspec.json.decode(record, type=_Kind).kind
    except (ValueError, RecursionError):
        return ""


def _sentence(what: str, path: str, kind: str) -> str:
    if path == "$.kind" or "required field `kind`" in what:
        got = f", got {kind[:64]!r}" if kind else ""
        return f"$.kind: expected one of {', '.join(KINDS)}{got}{_nearest(kind, KINDS)}"
    quoted = re.search(r"`([^`]*)`", what)
    if "unknown field" in what and quoted:
        return f"{path}.{quoted[1][:64]}: unknown field{_of(kind)}{_nearest(quoted[1], _fields(kind, path))}"
    if "missing required field" in what and quoted:
        return f"{path}.{quoted[1]}: required{' in ' + kind if kind in TYPES else ''}"
    if what.startswith("Invalid enum value"):
        got = what.removeprefix("Invalid enum value").strip()
        return f"{path}: expected one of {', '.join(_allowed(kind, path))}, got {got[:64]}"
    if "RFC3339" in what or "`datetime`" in what:
        return f"{path}: expected an RFC 3339 time with an offset such as 2026-01-31T12:00:00Z"
    if "UUID" in what or "`uuid`" in what:
        return f"{path}: expected a UUID such as 01890a5d-ac96-774b-bcce-b302099a8057"
    return f"{path}: {_plain(what)}"


def _plain(what: str) -> str:
    text = re.sub(r"`([^`]*)`", lambda types: re.sub(r"\w+", lambda name: _NAMES.get(name[0], name[0]), types[1]), what)
    return text[:1].lower() + text[1:]


def _of(kind: str) -> str:
    return f" of {kind}" if kind in TYPES else ""


def _fields(kind: str, path: str) -> tuple[str, ...]:
    if path == "$.usage":
        return Usage.__struct_fields__
    return TYPES[kind].__struct_fields__ if kind in TYPES else ()


def _nearest(name: str, names: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _allowed(kind: str, path: str) -> list[str]:
    field = path.rpartition(".")[2]
    if kind not in TYPES:
        return []
    hint = typing.get_type_hints(TYPES[kind]).get(field)
    return [str(value) for value in _literals(hint)]


def _literals(hint: object) -> list[object]:
    if typing.get_origin(hint) is typing.Literal:
        return list(typing.get_args(hint))
    return [value for part in typing.get_args(hint) for value in _literals(part)]
