"""Patterns from the configuration: `name=regular expression`. What could stop the daemon is refused when it is read. Pure.

Python's expressions backtrack, so that some take years over a line (https://en.wikipedia.org/wiki/ReDoS). Refused are: repeats in a
repeat, alternatives in a repeat that begin alike, back references in a repeat, more than one open repeat of which one can give its
characters to another, whatever is slow over probes made of its own characters, and what matches an empty text. What is
left runs over windows of `WINDOW` characters, which bounds a search to about a second for a megabyte.
"""

from __future__ import annotations

import re
import re._constants as sre  # type: ignore[import-not-found]
import re._parser as parser  # type: ignore[import-not-found]
import time
from collections.abc import Iterator
from typing import Any

from agentd.errors import ConfigError
from agentd.redact.patterns import WINDOW, Pattern

MAX_CHARS = 1000  # of one expression
_OPEN = 64  # a repeat of more than this is as good as one without an end
_SLOW_S = 0.002  # over one probe; ordinary ones take microseconds
_TRIES = 3  # the least time counts
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")
_LEAST_LITERAL = 3


def read_own(entry: str, where: str) -> Pattern:
    """One pattern. Raises ConfigError that names it and says what is wrong."""
    name, _, source = entry.partition("=")
    place = f"{where}: [redact] patterns: {entry[:80]!r}"
    if not _NAME.fullmatch(name) or not source:
        raise ConfigError(
            f"{place}: expected the name of a built-in pattern, or NAME=EXPRESSION with a name of a-z, 0-9, _ or -"
        )
    if len(source) > MAX_CHARS:
        raise ConfigError(f"{place}: more than {MAX_CHARS} characters")
    try:
        expression = re.compile(source)
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(f"{place}: no regular expression: {error}") from None
    if expression.search("") is not None:
        raise ConfigError(f"{place}: matches an empty text, and so everything")
    why = catastrophic(source)
    if why is not None:
        raise ConfigError(f"{place}: may take for ever over some texts: {why}")
    literal = literal_of(source)
    group = 1 if expression.groups == 1 else 0
    return Pattern(name, expression, (literal,) if literal else (), None, group=group, own=True)


def read_allowed(source: str, where: str) -> re.Pattern[str]:
    """One of `redact.allow`: what is no secret. Raises ConfigError."""
    place = f"{where}: [redact] allow: {source[:80]!r}"
    try:
        expression = re.compile(source)
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(f"{place}: no regular expression: {error}") from None
    why = catastrophic(source)
    if why is not None:
        raise ConfigError(f"{place}: may take for ever over some texts: {why}")
    return expression


def literal_of(source: str) -> str:
    """The longest text that every hit holds, by which records are screened; empty where there is none of 3 characters."""
    tree = parser.parse(source)
    if tree.state.flags & re.IGNORECASE:
        return ""
    runs = [""]
    for op, value in tree:
        if op is sre.LITERAL and value < 128 and chr(value) not in '"\\/':  # noqa: PLR2004 - ASCII, not written as an escape
            runs[-1] += chr(value)
        elif op is not sre.AT:
            runs.append("")
    longest = max(runs, key=len)
    return longest if len(longest) >= _LEAST_LITERAL else ""


# -- catastrophes ------------------------------------------------------------------------------------------------------


def catastrophic(source: str) -> str | None:
    """What may make the expression slow; None for a tame one."""
    tree = parser.parse(source)
    why = _nested(tree, within=False) or _adjacent(tree)
    return why or _slow(source, tree)


def _parts(value: object) -> Iterator[Any]:
    """Every sequence of the parsed expression that stands directly in this one."""
    if isinstance(value, parser.SubPattern):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _parts(one)


def _is_open(op: Any, value: Any) -> bool:
    return op in (sre.MAX_REPEAT, sre.MIN_REPEAT) and (value[1] is sre.MAXREPEAT or value[1] > _OPEN)


def _nested(tree: Any, *, within: bool) -> str | None:
    """Repeats in a repeat, and choices in one that can be made in two ways. Possessive and atomic ones are never tried again."""
    for op, value in tree:
        if op in (sre.POSSESSIVE_REPEAT, sre.ATOMIC_GROUP):
            continue
        repeats = op in (sre.MAX_REPEAT, sre.MIN_REPEAT)
        is_single = repeats and len(value[2]) == 1 and value[2][0][0] in (sre.LITERAL, sre.IN, sre.ANY, sre.NOT_LITERAL)
        if within and repeats and value[0] != value[1]:
            return "a repeat stands within a repeat"
        if within and op is sre.BRANCH:
            return "a choice stands within a repeat"
        if within and op is sre.GROUPREF:
            return "a back reference stands within a repeat"
        inside = within or (repeats and not is_single and (value[1] is sre.MAXREPEAT or value[1] > 8))  # noqa: PLR2004 - 2**8
        for part in _parts(value):
            if why := _nested(part, within=inside):
                return why
    return None


def _adjacent(tree: Any) -> str | None:
    """More than one repeat without an end."""
    count = _count_open(tree)
    return (
        f"it has {count} repeats without an end (*, +, or above {_OPEN}): bound all but one, as in {{1,40}}"
        if count > 1
        else None
    )


def _count_open(tree: Any) -> int:
    return sum(_is_open(op, value) + sum(_count_open(part) for part in _parts(value)) for op, value in tree)


def _chars(tree: Any) -> str:
    """Characters that the expression is about."""
    found = []
    for op, value in tree:
        if op is sre.LITERAL:
            found.append(chr(value))
        elif op is sre.RANGE:
            found.append(chr(value[0]))
        elif op is sre.IN:
            found.append(_chars(value))
        elif op is sre.CATEGORY:
            found.append({sre.CATEGORY_DIGIT: "1", sre.CATEGORY_SPACE: " "}.get(value, "a"))
        found += [_chars(part) for part in _parts(value)]
    return "".join(found)


def _slow(source: str, tree: Any) -> str | None:
    """By trial: growing probes of its own characters, whose end fits nothing. Stops at the first slow one."""
    expression = re.compile(source)
    own = "".join(dict.fromkeys(_chars(tree)))[:12] or "a"
    bodies = {own, *own, _chars(tree)[:64], "a", "1", " "}
    for size in (16, 24, 32, 40, 48, 64, 256, 1024, WINDOW):
        for body in sorted(bodies - {""}):
            probe = (body * (size // len(body) + 1))[:size] + "\x00"
            if _time_of(expression, probe) > _SLOW_S:
                return f"{size} characters like {body[:12]!r} take it more than {_SLOW_S * 1000:.0f} ms; bound its repeats, as in {{1,40}}"
    return None


def _time_of(expression: re.Pattern[str], probe: str) -> float:
    """Seconds of this thread alone: the machine may be busy elsewhere. What is slow once is tried again, to be sure."""
    least = float("inf")
    for _ in range(_TRIES):
        begun = time.thread_time()
        for _ in expression.finditer(probe):
            pass
        least = min(least, time.thread_time() - begun)
        if least <= _SLOW_S:
            break
    return least
