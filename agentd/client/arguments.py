"""What an agent's author passed, looked at where it was passed: the error names the argument and says what is right.

Each function gives the argument back as it is used. TypeError for what is of another kind, ValueError for what is out of
bounds; `call` is what the author called, for the error's beginning.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf, isnan
from typing import Any
from uuid import UUID

_SAME = {"deadline": "timeout", "timeout": "deadline"}  # what the other calls name it
_MAX_QUOTED = 60  # characters of a value that an error quotes


def known_only(call: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse an option that there is not, with the nearest that there is: a slip would go unheard otherwise."""
    names = sorted(known)
    for name in given:
        if name not in names:
            raise TypeError(f"{call} takes no option {name!r}; {_hint(name, names)}")


def _hint(name: str, names: list[str]) -> str:
    from difflib import get_close_matches

    same = [other for other in (_SAME.get(name),) if other in names]
    close = same or get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"


def seconds(call: str, name: str, value: Any) -> float:
    """A time to wait; nothing and less is none."""
    if isinstance(value, bool | str | bytes) or not hasattr(value, "__float__"):
        raise TypeError(f"{call}: the {name} must be a number of seconds, got {_quoted(value)}")
    try:
        found = float(value)
    except (ValueError, OverflowError):  # a signalling NaN; an integer of 400 digits
        found = float("nan")
    if isnan(found):
        raise ValueError(f"{call}: the {name} must be a number of seconds, got {_quoted(value)}")
    return found


def seconds_above_0(call: str, name: str, value: Any) -> float:
    """A time within which something has to happen."""
    found = seconds(call, name, value)
    if not 0 < found < inf:
        raise ValueError(f"{call}: the {name} must be seconds above 0, got {_quoted(value)}")
    return found


def text(call: str, name: str, value: Any, most: float = inf) -> str:
    """A text of 1 to `most` characters that UTF-8 can hold; a UUID is its text."""
    if isinstance(value, UUID):
        return str(value)
    right = f"a text of 1 to {most} characters" if most < inf else "a text that is not empty"
    if not isinstance(value, str):
        raise TypeError(f"{call}: the {name} must be {right}, got {_quoted(value)}")
    if not 0 < len(value) <= most:
        raise ValueError(f"{call}: the {name} must be {right}, got {_quoted(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{call}: the {name} must be Unicode, got a lone surrogate in {_quoted(value)}") from None
    return value


def _quoted(value: Any) -> str:
    from agentd.client.encode import safe_repr

    return safe_repr(value)[:_MAX_QUOTED]
