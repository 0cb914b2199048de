"""What is wrong with a value of the configuration, in the words of whoever wrote it: section, key, what would be right.

`$.destinations[...].passthrough`: Invalid enum value 'all'   →   [destinations.cloud] passthrough: expected one of agent, admin, got 'all'

msgspec's path does not say which key of a table it went through, nor which values there are; both follow from table and types.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Iterator
from types import NoneType
from typing import Any

import msgspec

_AT = re.compile(r"(?P<what>.*?)(?: - at `\$(?P<path>[^`]*)`)?", re.DOTALL)
_STEP = re.compile(r"\.(?P<name>\w+)|\[(?P<index>\d+)\]|\[\.\.\.\]")
_MAX_SHOWN = 64  # characters of a wrong value

Hook = Callable[[type, Any], Any]  # msgspec's `dec_hook`


def explain_fault(error: msgspec.ValidationError, table: dict[str, Any], root: type, dec_hook: Hook) -> str:
    """One sentence. `table` could not be converted to `root`, and `error` says why."""
    found = _AT.fullmatch(str(error))
    what, path = (found["what"], found["path"] or "") if found else (str(error), "")
    names: list[str | int] = []
    value: Any = table
    hint: Any = root
    for step in _STEP.finditer(path):
        name = _name(step, value, hint, dec_hook)
        names.append(name)
        value, hint = value[name], _inner(hint, name)
    values = [str(one) for one in _literals(hint)]
    if values:
        what = f"expected one of {', '.join(values)}, got {value!r:.{_MAX_SHOWN}}"
    place = _place(names, is_section=what.startswith("Object "))  # of which a key is missing
    return f"{place}: {what}"


def _name(step: re.Match[str], value: Any, hint: Any, dec_hook: Hook) -> str | int:
    """The key, or the index, that a step of the path goes by; for `[...]` it is the first whose value can't be converted."""
    if step["name"] is not None:
        return step["name"]
    if step["index"] is not None:
        return int(step["index"])
    keys = (str(key) for key, inner in value.items() if not _converts(inner, _inner(hint, key), dec_hook))
    return next(keys)


def _converts(value: Any, hint: Any, dec_hook: Hook) -> bool:
    try:
        msgspec.convert(value, hint, dec_hook=dec_hook)
    except msgspec.ValidationError:
        return False
    return True


def _inner(hint: Any, name: str | int) -> Any:
    """The type of what stands under this name."""
    parts = list(_parts(hint))
    hint = next((part for part in parts if not isinstance(part, type) or issubclass(part, msgspec.Struct)), parts[0])
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return typing.get_type_hints(hint)[str(name)]
    return typing.get_args(hint)[-1]  # of a table its values, of an array its elements


def _parts(hint: Any) -> Iterator[Any]:
    """Of `X | None` X."""
    if typing.get_origin(hint) is None or not any(part is NoneType for part in typing.get_args(hint)):
        yield hint
        return
    yield from (part for part in typing.get_args(hint) if part is not NoneType)


def _literals(hint: Any) -> tuple[Any, ...]:
    return next((typing.get_args(part) for part in _parts(hint) if typing.get_origin(part) is typing.Literal), ())


def _place(names: list[str | int], *, is_section: bool) -> str:
    """`[section] key`, `[[array]] #1 key`, and `#2` for what stands in an array; each counted from one."""
    row = next((place for place, name in enumerate(names) if isinstance(name, int)), len(names))
    if row < len(names) and (is_section or names[row + 1 :]):
        return f"[[{_shown(names[:row])}]] {_shown(names[row:])}"
    if is_section:
        return f"[{_shown(names)}]"
    return f"[{_shown(names[: row - 1])}] {_shown(names[row - 1 :])}"


def _shown(names: list[str | int]) -> str:
    text = "".join(f".{name}" if isinstance(name, str) else f" #{name + 1} " for name in names)
    return text.replace(" .", " ").strip(". ")
