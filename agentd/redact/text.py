"""Secrets within a text: where they begin and end, and the text without them. Pure.

Three looks at a text: by form (`patterns`), by an assignment to a name that is a secret's (`password=…`, `"api_key": "…"`, `Cookie: …`,
`--token …`), and both again with percent escapes decoded, where there are any. Only what was hit is replaced.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from agentd.redact.keys import GUARDED, Keys, fold
from agentd.redact.marks import Marker, is_mark
from agentd.redact.patterns import Pattern, finds

_SHORTEST = 8  # characters: no built-in form is shorter
_GUARDED_CHARS = 12  # the least that a value under a guarded name has
_SCHEME = r"(?:(?:[Bb]earer|BEARER|[Bb]asic|[Tt]oken|[Dd]igest|[Aa]pi[Kk]ey)\s{1,4})"
_ASSIGNED = re.compile(
    r"(?<![A-Za-z0-9_.-])(?P<name>[A-Za-z][A-Za-z0-9_.-]{1,63})(?P<quoted>\\{0,3}[\"'])?(?P<sign>\s{0,4}(?:=>|:=|=|:)\s{0,4})"
    rf"(?P<open>\\{{0,3}}[\"'])?(?P<scheme>{_SCHEME})?(?P<value>[^\s\"'&,;<>()\{{\}}\[\]\\|]{{3,}})"
)
_FLAG = re.compile(r"(?<!\S)--(?P<name>[a-z][a-z0-9-]{1,40})\s{1,4}(?P<value>[^\s\"'-][^\s\"']{2,})")
_PLACEHOLDER = re.compile(
    r"\*+|x{3,}|\.+|\$\{?\w+\}?|\{\{?\s*[\w.]+\s*\}?\}|<[\w -]+>|%\w+%|none|null|nil|true|false|undefined",
    re.IGNORECASE,
)
_FIGURE = re.compile(r"[0-9!@#$%^*+/=~]")
_CODE = re.compile(r"[A-Za-z_][\w.]*")
_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")


class Span(NamedTuple):
    start: int
    end: int
    rule: str


def is_placeholder(value: str) -> bool:
    """Whether it stands for a secret and is none: stars, `${NAME}`, a mark of ours."""
    return not value.strip() or _PLACEHOLDER.fullmatch(value.strip()) is not None or is_mark(value)


def looks_secret(value: str) -> bool:
    """Whether a value under a guarded name is one: no word, no piece of prose."""
    return len(value) >= _GUARDED_CHARS and not re.search(r"\s", value) and any(char.isdigit() for char in value)


class Texts:
    """Finds and replaces in texts."""

    def __init__(
        self, patterns: Sequence[Pattern], keys: Keys, marker: Marker, allow: Sequence[re.Pattern[str]] = ()
    ) -> None:
        """`allow` are secrets that are none: what one of these matches whole is left."""
        self.patterns = tuple(patterns)
        self.keys = keys
        self.marker = marker
        self._allow = tuple(allow)
        self._has_own = any(pattern.own for pattern in patterns)

    def is_allowed(self, secret: str) -> bool:
        return any(pattern.fullmatch(secret) for pattern in self._allow)

    def _is_new(self, secret: str) -> bool:
        return not is_mark(secret) and not self.is_allowed(secret)

    def of(self, whole: str) -> Sequence[Pattern]:
        """The patterns that can hit in a document, or in a part of it: for all of its texts this is found out once."""
        is_hidden = "\\u00" in whole or _ESCAPE.search(whole) is not None
        return [
            pattern for pattern in self.patterns
            if not (words := pattern.beside or pattern.needles) or (is_hidden and not pattern.beside) or any(word in whole for word in words)
        ]  # fmt: skip

    def spans(self, text: str, patterns: Sequence[Pattern], *, is_id: bool = False, named: bool = True) -> list[Span]:
        """What is to be replaced, in order and apart; `patterns` are those that can hit (`of`). An id is no card number.

        Not `named`: nothing is assigned to a name of the rules' in it.
        """
        found = list(self._look(text, patterns, is_id=is_id, named=named))
        if "%" in text and _ESCAPE.search(text):
            plain, places = _decoded(text)
            found += [
                Span(places[one.start], places[one.end], one.rule)
                for one in self._look(plain, patterns, is_id=is_id, named=named)
            ]
        return _apart(found) if found else found

    def replace(self, text: str, spans: Sequence[Span]) -> str:
        parts, at = [], 0
        for span in spans:
            parts += [text[at : span.start], self.marker.mark(span.rule, text[span.start : span.end])]
            at = span.end
        return "".join([*parts, text[at:]])

    def _look(self, text: str, patterns: Sequence[Pattern], *, is_id: bool, named: bool) -> Iterator[Span]:
        if len(text) < _SHORTEST and not self._has_own:
            patterns = ()
        for pattern in patterns:
            if is_id and pattern.digits:
                continue
            for found in finds(pattern, text):
                start, end = found.span(pattern.group)
                if end > start and (pattern.check is None or pattern.check(found)) and self._is_new(text[start:end]):
                    yield Span(start, end, pattern.name)
        if named and self.keys.globs:
            yield from self._assigned(text)

    def _assigned(self, text: str) -> Iterator[Span]:
        if "=" in text or ":" in text:
            for found in _ASSIGNED.finditer(text):
                rule = self.keys.rule(found["name"])
                if rule is not None and (span := self._value(text, found, rule)) is not None:
                    yield span
        if "--" in text:
            for found in _FLAG.finditer(text):
                rule = self.keys.rule(found["name"])
                if rule is not None and not is_placeholder(found["value"]) and not self.is_allowed(found["value"]):
                    yield Span(*found.span("value"), rule)

    def _value(self, text: str, found: re.Match[str], rule: str) -> Span | None:
        start, end = found.span("value")
        opening = found["open"]
        if "cookie" in fold(found["name"]) and not opening:
            end = min((at for at in (text.find("\n", start), text.find("\r", start)) if at >= 0), default=len(text))
        elif opening:
            closing = text.find(opening, start)
            line = text.find("\n", start)
            if closing >= 0 and (line < 0 or closing < line):
                end = closing
        value = text[start:end]
        if is_placeholder(value) or self.is_allowed(value) or fold(value) == fold(found["name"]):
            return None
        if found["name"].lower() in GUARDED and not looks_secret(value):
            return None
        if not opening and not found["scheme"] and not _is_said(found, text[end : end + 1]):
            return None
        return Span(start, end, rule)


def _is_said(found: re.Match[str], following: str) -> bool:
    """Whether a value without quotes is one, and neither prose nor code: `password: must …`, `password = getpass()`."""
    value, sign = found["value"].rstrip(".,!?"), found["sign"]
    if following in ("(", "[") and _CODE.fullmatch(value):
        return False
    return sign == "=" or _FIGURE.search(value) is not None


def _apart(found: list[Span]) -> list[Span]:
    """In order; what overlaps is one, by the rule of the first, which of two at one place is the one found first."""
    apart: list[Span] = []
    for span in sorted(found, key=lambda one: one.start):
        if apart and span.start < apart[-1].end:
            if span.end > apart[-1].end:
                apart[-1] = apart[-1]._replace(end=span.end)
        else:
            apart.append(span)
    return apart


def _decoded(text: str) -> tuple[str, list[int]]:
    """The text with its percent escapes as characters, and where each of these stood; one place more for the end."""
    plain: list[str] = []
    places: list[int] = []
    at = 0
    for found in _ESCAPE.finditer(text):
        plain.append(text[at : found.start()])
        places += range(at, found.start() + 1)
        plain.append(chr(int(found[0][1:], 16)))
        at = found.end()
    plain.append(text[at:])
    places += range(at, len(text) + 1)
    return "".join(plain), places
