"""Secrets within encoded JSON: found by member name and by form, and replaced where they stand. Pure.

The document is walked by its tokens and never built: what is no secret stays as it was sent, byte for byte (spaces, `1.0`, numbers of
thirty digits, members of one name). Strings that hold JSON are walked as such, three deep. Raises NotJson where it is none.
"""

from __future__ import annotations

import contextlib
import json
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from enum import Enum, auto

import msgspec

from agentd.redact.keys import GUARDED
from agentd.redact.patterns import Pattern, is_card
from agentd.redact.text import Texts, is_placeholder, looks_secret

MAX_LEVELS = 3  # of JSON in a string in JSON in a string
MAX_DEPTH = 250  # of one document: the walk is a recursion, and what is admitted is at most 200 deep
_SPACE = re.compile(rb"[ \t\r\n]*+")
_STRING = re.compile(rb'"([^"\\]*+(?:\\.[^"\\]*+)*+)"', re.DOTALL)
_MEMBER = re.compile(rb'[ \t\r\n]*+"([^"\\]*+(?:\\.[^"\\]*+)*+)"[ \t\r\n]*+:[ \t\r\n]*+', re.DOTALL)
_BEHIND = re.compile(rb"[ \t\r\n]*+([,}])")
_EMPTY = re.compile(rb"[ \t\r\n]*+}")
_SCALAR = re.compile(rb"[^\s\"{}\[\]:,]++")
_BRACKET = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[{}\[\]]', re.DOTALL)
_WORDS = frozenset({b"true", b"false", b"null"})
_CAMEL_ID = re.compile(r"[a-z]I[dD]s?$")
# A tool's parameters are described under their names: what consists of these members is JSON Schema and holds no value.
_SCHEMA = frozenset(
    [
        "$ref",
        "additionalProperties",
        "allOf",
        "anyOf",
        "deprecated",
        "description",
        "enum",
        "exclusiveMaximum",
        "exclusiveMinimum",
        "format",
        "items",
        "maxItems",
        "maxLength",
        "maximum",
        "minItems",
        "minLength",
        "minimum",
        "nullable",
        "oneOf",
        "pattern",
        "properties",
        "readOnly",
        "required",
        "title",
        "type",
        "uniqueItems",
        "writeOnly",
    ]
)


class NotJson(Exception):  # noqa: N818 - a verdict, caught within this package
    """Read as a text instead."""


class _Over(Exception):  # noqa: N818 - as above
    """Nothing more is to be found."""


class Place(Enum):
    """What the members of a document's outermost object are."""

    FREE = auto()  # judged by name and form
    TEXT = auto()  # a field of ours: by form, what is in it by both
    NEVER = auto()  # an id or a word of the contract: looked at, and left


class _Fate(Enum):
    LEFT = auto()
    DROPPED = auto()


def is_id(name: str) -> bool:
    """Whether a member's name says that it holds an id."""
    return (
        name.lower() == "id"
        or name.lower().endswith(("_id", "-id", "_ids", "-ids"))
        or _CAMEL_ID.search(name) is not None
    )


class Walk:
    """One document, walked once. `hits` counts by rule; `ids` what looked like a secret and was an id of ours."""

    def __init__(
        self,
        data: bytes,
        texts: Texts,
        *,
        patterns: Sequence[Pattern] | None = None,
        named: bool = True,
        places: Sequence[int] | None = None,
        level: int = 0,
    ) -> None:
        """`patterns` are those that can hit (None: to be found out), `named` says whether names can.

        `places` are where, of a document that is known to be JSON: what holds none of them is passed over. None: anywhere.
        """
        self.hits: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self._data = data
        self._texts = texts
        self._keys = texts.keys
        self._patterns = texts.of(data.decode(errors="replace")) if patterns is None else patterns
        self._named = named
        self._places = None if places is None else sorted(places)
        self._level = level
        self._edits: list[tuple[int, int, bytes]] = []
        self._drops = texts.marker.mode == "drop"
        self._floor = 0  # members at this depth stay, and what is in them is masked

    def run(self, place_of: Callable[[str], Place] | None = None) -> bytes:
        """The document without its secrets, the very same where there were none. Raises NotJson.

        `place_of` judges the members of the outermost object; None: all of them are free.
        """
        self._floor = 0 if place_of is None else 1
        with contextlib.suppress(_Over):
            if self._skip(self._value(0, "", None, 0, place_of)[0]) != len(self._data):
                raise NotJson
        if not self._edits:
            return self._data
        parts, at = [], 0
        for start, stop, new in sorted(self._edits):
            parts += [self._data[at:start], new]
            at = stop
        return b"".join([*parts, self._data[at:]])

    # -- tokens ------------------------------------------------------------------------------------------------------

    def _skip(self, at: int) -> int:
        found = _SPACE.match(self._data, at)
        assert found is not None  # noqa: S101 - it matches nothing as well
        return found.end()

    def _expect(self, at: int, chars: bytes) -> int:
        """The byte at `at`, which has to be one of these."""
        if at >= len(self._data) or self._data[at] not in chars:
            raise NotJson
        return self._data[at]

    def _value(
        self, at: int, name: str, rule: str | None, depth: int, place_of: Callable[[str], Place] | None = None
    ) -> tuple[int, _Fate]:
        """Walk one value. `rule` is its name's; (where it ends, whether its member goes)."""
        at = self._skip(at)
        if at >= len(self._data) or depth > MAX_DEPTH:
            raise NotJson
        first = self._data[at : at + 1]
        if first == b'"':
            return self._string(at, name, rule, depth)
        if first in (b"{", b"["):
            if rule is not None and name.lower() not in GUARDED:
                end = self._end_of(at)
                if not self._is_schema(at, end):
                    return end, self._cover(at, end, rule, self._data[at:end].decode(errors="replace"), depth)
            return (self._object(at, depth, place_of) if first == b"{" else self._array(at, depth)), _Fate.LEFT
        return self._scalar(at, name, rule, depth)

    def _object(self, at: int, depth: int, place_of: Callable[[str], Place] | None) -> int:
        members: list[tuple[int, int, _Fate]] = []
        end = _EMPTY.match(self._data, at + 1)
        if end is not None:
            return end.end()
        at += 1
        while True:
            found = _MEMBER.match(self._data, at)
            if found is None:
                raise NotJson
            start, at = found.start(1) - 1, found.end()
            if self._is_clean(start, at):
                at, fate = self._end_of_value(at), _Fate.LEFT
            else:
                at, fate = self._member(at, _text_of(found[1]), depth + 1, place_of)
            members.append((start, at, fate))
            behind = _BEHIND.match(self._data, at)
            if behind is None:
                raise NotJson
            at = behind.end()
            if behind[1] == b"}":
                break
        if self._drops and any(fate is _Fate.DROPPED for *_, fate in members):
            self._take_out(members)
        return at

    def _member(self, at: int, name: str, depth: int, place_of: Callable[[str], Place] | None) -> tuple[int, _Fate]:
        place = Place.FREE if place_of is None else place_of(name)
        if place is Place.FREE:
            return self._value(at, name, self._keys.rule(name), depth)
        if place is Place.TEXT:
            return self._value(at, "", None, depth)
        return self._look_at(at, name, depth), _Fate.LEFT

    def _look_at(self, at: int, name: str, depth: int) -> int:
        """What is never changed; whether it looks like a secret is said all the same."""
        inner = Walk(self._data, self._texts, patterns=self._patterns, named=self._named, level=MAX_LEVELS)
        end, _ = inner._value(at, "id", None, depth)
        if inner.hits:
            self.ids[name] += 1
        return end

    def _array(self, at: int, depth: int) -> int:
        at = self._skip(at + 1)
        if self._data[at : at + 1] == b"]":
            return at + 1
        while True:
            start = self._skip(at)
            if self._is_clean(start, start):
                at, fate = self._end_of_value(start), _Fate.LEFT
            else:
                at, fate = self._value(start, "", None, depth + 1)
            if fate is _Fate.DROPPED:
                self._edits.append((start, at, b"null"))
            at = self._skip(at)
            if self._expect(at, b",]") == 0x5D:  # noqa: PLR2004 - `]`
                return at + 1
            at += 1

    def _string(self, at: int, name: str, rule: str | None, depth: int) -> tuple[int, _Fate]:
        found = _STRING.match(self._data, at)
        if found is None:
            raise NotJson
        end = found.end()
        text = _text_of(found[1])
        if rule is not None and self._is_secret(text, name):
            return end, self._cover(at, end, rule, text, depth)
        new = self._inner(text)
        if new is None:
            spans = self._texts.spans(text, self._patterns, is_id=is_id(name), named=self._named)
            if not spans:
                return end, _Fate.LEFT
            self.hits.update(span.rule for span in spans)
            if self._drops and depth > self._floor:
                return end, _Fate.DROPPED
            new = self._texts.replace(text, spans)
        if new != text:
            self._edits.append((at, end, _encoded(new)))
        return end, _Fate.LEFT

    def _inner(self, text: str) -> str | None:
        """A text that is JSON, without its secrets; None for any other."""
        if self._level >= MAX_LEVELS or text.lstrip()[:1] not in ("{", "[", '"'):
            return None
        walk = Walk(
            text.encode("utf-8", "surrogatepass"),
            self._texts,
            patterns=self._patterns,
            named=self._named,
            level=self._level + 1,
        )
        try:
            new = walk.run()
        except NotJson:
            return None
        self.hits.update(walk.hits)
        return new.decode("utf-8", "surrogatepass")

    def _scalar(self, at: int, name: str, rule: str | None, depth: int) -> tuple[int, _Fate]:
        found = _SCALAR.match(self._data, at)
        if found is None:
            raise NotJson
        word, end = found[0], found.end()
        if word in _WORDS:
            return end, _Fate.LEFT
        text = word.decode(errors="replace")
        if rule is not None and name.lower() not in GUARDED:
            return end, self._cover(at, end, rule, text, depth)
        if len(word) >= 13 and word.isdigit() and not is_id(name):  # noqa: PLR2004 - the least that a card number has
            card = next((pattern for pattern in self._texts.patterns if pattern.digits), None)
            if card is not None and is_card(text) and not self._texts.is_allowed(text):
                return end, self._cover(at, end, card.name, text, depth)
        return end, _Fate.LEFT

    def _is_clean(self, start: int, value_at: int) -> bool:
        """Whether nothing is suspected from `start` to the end of the value at `value_at`. Raises _Over where nothing is from there on."""
        if self._places is None:
            return False
        index = bisect_left(self._places, start)
        if index == len(self._places) and not self._drops:  # members that are taken out are known by those behind them
            raise _Over
        return index == len(self._places) or self._places[index] >= self._end_of_value(value_at)

    def _end_of_value(self, at: int) -> int:
        at = self._skip(at)
        first = self._data[at : at + 1]
        if first in (b"{", b"["):
            return self._end_of(at)
        found = (_STRING if first == b'"' else _SCALAR).match(self._data, at)
        if found is None:
            raise NotJson
        return found.end()

    # -- what becomes of it ------------------------------------------------------------------------------------------

    def _is_secret(self, text: str, name: str) -> bool:
        if is_placeholder(text) or self._texts.is_allowed(text):
            return False
        return name.lower() not in GUARDED or looks_secret(text)

    def _cover(self, start: int, end: int, rule: str, secret: str, depth: int) -> _Fate:
        """A value that goes as a whole. What stands in a record's own field can't be left out, so that it is masked."""
        self.hits[rule] += 1
        if self._drops and depth > self._floor:
            return _Fate.DROPPED
        self._edits.append((start, end, _encoded(self._texts.marker.mark(rule, secret))))
        return _Fate.LEFT

    def _take_out(self, members: list[tuple[int, int, _Fate]]) -> None:
        """Members with a comma each, so that what stays is still an object."""
        kept = [index for index, (*_, fate) in enumerate(members) if fate is _Fate.LEFT]
        last = kept[-1] if kept else -1
        for index, (start, _, fate) in enumerate(members[: last + 1]):
            if fate is _Fate.DROPPED:
                self._edits.append((start, members[index + 1][0], b""))
        if last + 1 < len(members):
            begin = members[last][1] if kept else members[0][0]
            self._edits.append((begin, members[-1][1], b""))

    def _end_of(self, at: int) -> int:
        depth = 0
        for found in _BRACKET.finditer(self._data, at):
            if found[0] in (b"{", b"["):
                depth += 1
            elif found[0] in (b"}", b"]"):
                depth -= 1
                if depth == 0:
                    return found.end()
        raise NotJson

    def _is_schema(self, start: int, end: int) -> bool:
        """Whether it describes a value rather than holding one; an empty container holds nothing either."""
        try:
            value = msgspec.json.decode(self._data[start:end])
        except (ValueError, RecursionError):
            raise NotJson from None
        return not value or (isinstance(value, dict) and isinstance(value.get("type"), str) and value.keys() <= _SCHEMA)


def _text_of(inner: bytes) -> str:
    """What the inside of a JSON string says."""
    try:
        if b"\\" not in inner:
            return inner.decode("utf-8", "surrogatepass")
        text = json.loads(b'"%b"' % inner, strict=False)
    except ValueError:
        raise NotJson from None
    return str(text)


def _encoded(text: str) -> bytes:
    """As a JSON string."""
    try:
        return msgspec.json.encode(text)
    except UnicodeEncodeError:  # half of a surrogate pair
        return json.dumps(text).encode()
