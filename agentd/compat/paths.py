"""From a request's target to a door, and from a door to the path that goes out. Pure.

What goes out is never what came in: it is the door's own path with the segments that it names, quoted anew, and the query
encoded anew. So no spelling of a path leads anywhere else, neither here nor at the platform.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import parse_qsl, quote, unquote, urlencode

from agentd.errors import AgentdError
from agentd.standin import Door

MAX_TARGET = 4096  # characters of path and query
MAX_SEGMENT = 256  # of an id, as records have it
_HIDDEN = re.compile(
    r"%(2e|2f|5c|25)", re.IGNORECASE
)  # a dot, a slash, a backslash, or a percent sign to hide them again


class BadTarget(AgentdError):  # noqa: N818 - it is answered, not reported
    """The request's target leads nowhere."""


class Doors:
    """The doors of one stand-in; of two that fit, the one with fewer `{name}`."""

    def __init__(self, doors: Iterable[Door]) -> None:
        self._doors = [(door, door.path.strip("/").split("/")) for door in doors]
        self._doors.sort(key=lambda of: sum(_is_name(part) for part in of[1]))

    def find(self, method: str, segments: Sequence[str]) -> tuple[Door, dict[str, str]] | None:
        """The door for a call's path, and its named segments."""
        for door, parts in self._doors:
            if door.method == method and len(parts) == len(segments):
                named = _fit(parts, segments)
                if named is not None:
                    return door, named
        return None


def _is_name(part: str) -> bool:
    return part.startswith("{")


def _fit(parts: Sequence[str], segments: Sequence[str]) -> dict[str, str] | None:
    named: dict[str, str] = {}
    for part, segment in zip(parts, segments, strict=True):
        if _is_name(part):
            named[part[1:-1]] = segment
        elif part != segment:
            return None
    return named


def read_target(target: str) -> tuple[list[str], list[tuple[str, str]]]:
    """The decoded segments below the destination's name, and the query. Raises BadTarget.

    `target` is the request line's own, before anybody has tidied it up.
    """
    if len(target) > MAX_TARGET:
        raise BadTarget(f"the request's target has more than {MAX_TARGET} characters")
    path, _, query = target.partition("?")
    if not path.startswith("/") or path.startswith("//"):
        raise BadTarget("the request's target is not a path")
    return [_segment(raw) for raw in path[1:].split("/")[1:]], _query(query)


def _segment(raw: str) -> str:
    if _HIDDEN.search(raw):
        raise BadTarget("the path has an encoded '.', '/', '\\' or '%' in it")
    try:
        segment = unquote(raw, errors="strict")
    except UnicodeDecodeError:
        raise BadTarget("the path is not UTF-8") from None
    if _climbs(segment) or "\\" in segment or "#" in segment or not segment.isprintable():
        raise BadTarget("the path has an empty segment, '.', '..', a backslash or a control character in it")
    if len(segment) > MAX_SEGMENT:
        raise BadTarget(f"a segment of the path has more than {MAX_SEGMENT} characters")
    return segment


def _climbs(segment: str) -> bool:
    """Some servers take what follows a semicolon for parameters, and `..;x` for a way up."""
    return segment.partition(";")[0] in {"", ".", ".."}


def _query(query: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=100)
    except ValueError:  # of which UnicodeDecodeError is one
        raise BadTarget("the query is not UTF-8, or has more than 100 fields") from None


def path_of(door: Door, segments: Mapping[str, str], query: Sequence[tuple[str, str]]) -> str:
    """The path and query that go out. Raises BadTarget where what stands for an id can't stand in a path."""
    parts = [
        quote(_sendable(segments[part[1:-1]]), safe="") if _is_name(part) else part for part in door.path.split("/")
    ]
    return "/".join(parts) + (f"?{urlencode(query)}" if query else "")


def _sendable(segment: str) -> str:
    """An id of the platform's may hold a slash, which is quoted; it may not climb, for servers that tidy up."""
    if _climbs(segment):
        raise BadTarget(f"{segment!r} is no id that a path can name")
    return segment
