"""Patterns over agents' names, as `fnmatch.fnmatchcase` reads them: `*`, `?`, `[abc]`, `[a-z]`, `[!a-z]`. Pure."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection
from fnmatch import fnmatchcase

_SPECIAL = re.compile(r"[*?\[]")
# A class as fnmatch delimits it: a `]` right at its start is a member. A `[` that nothing closes is itself.
_TOKEN = re.compile(r"\*+|\[!?+\]?+[^\]]*+\]|.", re.DOTALL)


def any_common(first: Collection[str], second: Collection[str]) -> bool:
    """Whether some name matches a pattern of the one and a pattern of the other. Exact."""
    names, others = _plain(first), _plain(second)
    globs, other_globs = set(first) - names, set(second) - others
    return (
        not names.isdisjoint(others)
        or any(fnmatchcase(name, glob) for name in names for glob in other_globs)
        or any(fnmatchcase(name, glob) for name in others for glob in globs)
        or any(common(one, other) for one in globs for other in other_globs)
    )


def common(first: str, second: str) -> bool:
    """Whether some name matches both patterns: a walk over the pairs of places that a common name could have reached."""
    a, b = _tokens(first), _tokens(second)
    reached, todo = {(0, 0)}, [(0, 0)]
    while todo:
        i, j = todo.pop()
        if i == len(a) and j == len(b):
            return True
        for place in _steps(a, b, i, j) - reached:
            reached.add(place)
            todo.append(place)
    return False


def _steps(a: list[str], b: list[str], i: int, j: int) -> set[tuple[int, int]]:
    """Where one character more, or a `*` that ends, leads to."""
    one, other = a[i : i + 1], b[j : j + 1]
    steps = set()
    if one == ["*"]:
        steps.add((i + 1, j))
        if other and _share("?", other[0]):
            steps.add((i, j + 1))
    if other == ["*"]:
        steps.add((i, j + 1))
        if one and _share("?", one[0]):
            steps.add((i + 1, j))
    if one and other and "*" not in (one[0], other[0]) and _share(one[0], other[0]):
        steps.add((i + 1, j + 1))
    return steps


def _share(one: str, other: str) -> bool:
    """Whether two patterns for one character each have one in common.

    Classes are intervals that begin and end at characters written in them, or beside these where they are negated: if
    two of them meet at all, they meet at one of these.
    """
    if len(one) == len(other) == 1 and "?" not in (one, other):
        return one == other
    written = {ord(character) for character in one + other}
    near = {point + step for point in written for step in (-1, 0, 1) if 0 <= point + step <= sys.maxunicode}
    return any(fnmatchcase(chr(point), one) and fnmatchcase(chr(point), other) for point in near)


def _plain(patterns: Collection[str]) -> set[str]:
    return {pattern for pattern in patterns if not _SPECIAL.search(pattern)}


def _tokens(pattern: str) -> list[str]:
    """A pattern as patterns for one character each, and `*`."""
    return ["*" if part[0] == "*" else "[[]" if part == "[" else part for part in _TOKEN.findall(pattern)]
