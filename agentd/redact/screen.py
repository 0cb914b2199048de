"""The screen: which records may hold a secret at all. A few scans of memory over a whole message, and nothing per record. Pure.

Each rule has needles, short texts of which one stands in every hit. They are looked for with `strstr` of the C library: glibc's
compares 64 bytes at a time and takes 0.012 µs for 450 bytes, where `bytes.__contains__` takes 0.4 µs and a regular expression with
alternatives 9 to 22 µs (measured, Python 3.11, glibc 2.36). Without a C library to ask, `in` does the same, slower. Names, words and
digits are looked for in a folded copy: lower case, `-` as `_`, digits as `0`, and all other ASCII marks and spaces as `"`, so that a
name ends in a quote whether it is a member's, escaped, or assigned to in a text.

A needle that is found is confirmed where it stands; what is left is walked (`walk`).
"""

from __future__ import annotations

import ctypes
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from enum import Enum, auto
from itertools import accumulate

from agentd.redact.keys import Keys
from agentd.redact.patterns import Pattern, finds, is_card

Confirm = Callable[[bytes, bytes, int], bool]  # of the bytes and their folded copy, the needle at this place

_RARE = b"JQZXK$@%\\GVYHUWBF"  # rarest first, in records of ours
_DIGITS = b"0" * 13  # the least that a card number has
_GROUPS = (b"0000_0000_0000_0000", b'0000"0000"0000"0000', b"0000_000000_0000", b'0000"000000"0000')
_RUN = re.compile(rb"0{13,}")
_GROUPED = re.compile(rb'0000([_"])(?:0000\1){2}0{4,7}|0000([_"])000000\2(?:0{4,5})')
_SAID = re.compile(rb"[\\\"']*+(?:[ \t\r\n]|\\[nrt])*+(?:[:=]|%3[aAdD])")
_UNICODE = re.compile(rb"\\u00[2-7]")
_MAX_DIGITS = 19
_CARD_SIZES = (16, 15, 14, 17, 18, 19)  # of a number in groups
_FORM_BYTES = 320  # within which a form has matched whose needle is not its beginning
_FIRST = "23456"  # of a card number
_WORD_CHARS = 128


def _folding() -> bytes:
    table = bytearray(range(256))
    for code in range(128):
        char = chr(code)
        if char.isdigit():
            table[code] = ord("0")
        elif char.isalpha():
            table[code] = ord(char.lower())
        elif char in "-_":
            table[code] = ord("_")
        elif char != ".":
            table[code] = ord('"')
    return bytes(table)


FOLDING = _folding()


def _contains() -> Callable[[bytes, bytes], object]:
    """`strstr`, without giving up the interpreter's lock: a call takes 0.2 µs. The haystack holds no NUL (JSON never does)."""
    try:
        find = ctypes.PyDLL(None).strstr
    except (OSError, AttributeError):
        return bytes.__contains__
    find.restype = ctypes.c_void_p  # without argtypes: bytes are passed as they are, and a third faster
    return find


contains = _contains()


class Named(Enum):
    """A needle of the names'."""

    NAMED = auto()


class Suspicion:
    """What a record may hold. `places` are where, None: anywhere; `patterns` which, None: any; `named`: something by its name."""

    __slots__ = ("named", "patterns", "places")

    def __init__(self) -> None:
        self.places: list[int] | None = []
        self.patterns: list[Pattern] | None = []
        self.named = False

    def add(self, place: int, what: Pattern | Named | None) -> None:
        if self.places is not None:
            self.places.append(place)
        if what is None:  # an escape hides what it is
            self.patterns, self.named = None, True
        elif isinstance(what, Named):
            self.named = True
        elif self.patterns is not None and what not in self.patterns:
            self.patterns.append(what)

    def add_anywhere(self, pattern: Pattern) -> None:
        self.places = None
        if self.patterns is not None and pattern not in self.patterns:
            self.patterns.append(pattern)


class Screen:
    """The needles of the rules in force."""

    def __init__(self, keys: Keys, patterns: Sequence[Pattern]) -> None:
        self._raw: list[tuple[bytes | None, bytes, Confirm, Pattern | None]] = []
        self._folded: list[tuple[bytes, Confirm, Pattern | Named]] = [
            (needle, _Name(keys), Named.NAMED) for needle in keys.needles()
        ]
        self._beside: list[Pattern] = []
        self._always: list[Pattern] = []
        for pattern in patterns:
            self._add(pattern)
        if self.is_on:
            self._raw += [
                (b"\\", b"\\u00", _escape, None), (b"@", b":\\/\\/", _always, None), (b"%", b"%40", _percent_url, None),
            ]  # fmt: skip

    @property
    def is_on(self) -> bool:
        return bool(self._raw or self._folded or self._always)

    def _add(self, pattern: Pattern) -> None:
        if pattern.digits:
            self._folded += [(_DIGITS, _is_run, pattern), *((group, _is_group, pattern) for group in _GROUPS)]
        elif pattern.beside:
            self._beside.append(pattern)
            known = {needle for _, needle, _, _ in self._raw}
            words = [word for word in map(str.encode, pattern.beside) if word not in known]
            self._raw += [(_rarest(word), word, _always, pattern) for word in words]
        elif pattern.folded:
            self._folded += [(needle, _Form(pattern), pattern) for needle in pattern.folded]
        elif pattern.needles:
            needles = map(str.encode, pattern.needles)
            self._raw += [(_rarest(needle), needle, _Form(pattern), pattern) for needle in needles]
        else:
            self._always.append(pattern)

    def suspects(self, bodies: Sequence[bytes]) -> dict[int, Suspicion]:
        """Which of the bodies may hold a secret, and what of it is suspected where."""
        data = bodies[0] if len(bodies) == 1 else b"\n".join(bodies)
        if b"\0" in data:
            data = data.replace(b"\0", b"\1")
        folded = data.translate(FOLDING)
        hits = list(self._hits(data, folded))
        if not hits and not self._always:
            return {}
        starts = [0, *accumulate(len(body) + 1 for body in bodies)]
        found: dict[int, Suspicion] = {}
        for place, what in hits:
            index = bisect_right(starts, place) - 1
            found.setdefault(index, Suspicion()).add(place - starts[index], what)
        for pattern in self._always:
            for index, body in enumerate(bodies):
                if index in found or _may_match(pattern, body):
                    found.setdefault(index, Suspicion()).add_anywhere(pattern)
        for index, suspicion in found.items():
            for pattern in self._beside:
                if any(word.encode() in bodies[index] for word in pattern.beside):
                    suspicion.add_anywhere(pattern)
        return found

    def _hits(self, data: bytes, folded: bytes) -> Iterator[tuple[int, Pattern | Named | None]]:
        for rare, needle, confirm, what in self._raw:
            if (rare is None or rare in data) and contains(data, needle):
                yield from ((place, what) for place in _confirmed(data, data, folded, needle, confirm))
        for needle, confirm, that in self._folded:
            if contains(folded, needle):
                yield from ((place, that) for place in _confirmed(folded, data, folded, needle, confirm))


def _confirmed(searched: bytes, data: bytes, folded: bytes, needle: bytes, confirm: Confirm) -> Iterator[int]:
    at = searched.find(needle)
    while at >= 0:
        if confirm(data, folded, at):
            yield at
        at = searched.find(needle, at + 1 if needle != _DIGITS else _after_zeros(folded, at))


def _after_zeros(folded: bytes, at: int) -> int:
    found = _RUN.match(folded, at)
    return at + 1 if found is None else found.end()


def _rarest(needle: bytes) -> bytes | None:
    """A character of it that few records hold, if it has one: a byte that is missing is known five times as fast as a needle."""
    rare = [needle[i : i + 1] for i in range(len(needle)) if needle[i] in _RARE]
    return min(rare, key=_RARE.index, default=None)


class _Name:
    """A word of the folded copy that is a name of the rules', and has something assigned to it: in prose it is a word like others."""

    def __init__(self, keys: Keys) -> None:
        self._rule = keys.rule

    def __call__(self, data: bytes, folded: bytes, at: int) -> bool:
        start = folded.rfind(b'"', max(0, at - _WORD_CHARS), at) + 1 or max(0, at - _WORD_CHARS)
        end = folded.find(b'"', at, at + 2 * _WORD_CHARS)
        end = end if end >= 0 else at + _WORD_CHARS
        # an escape before the name is read as a part of it: `\\ntoken=`, `\\u00e9token=`
        words = [
            data[skip:end] for skip in ((start, start + 1, start + 5) if data[start - 1 : start] == b"\\" else (start,))
        ]
        if _SAID.match(data, end) is None and not any(word.startswith(b"--") for word in words):
            return False
        return any(self._rule(word.decode(errors="replace")) is not None for word in words)


class _Form:
    """The pattern itself, from where its needle stands."""

    def __init__(self, pattern: Pattern) -> None:
        self._expression, self._back = pattern.confirm, pattern.back

    def __call__(self, data: bytes, _folded: bytes, at: int) -> bool:
        if self._expression is None:
            return True
        if self._back:
            return self._expression.search(data, max(0, at - self._back), at + _FORM_BYTES) is not None
        return self._expression.match(data, at) is not None


def _percent_url(data: bytes, _folded: bytes, at: int) -> bool:
    """The `@` of `%3A%2F%2Fuser%3Apassword%40host`, in either case."""
    return b"%3a%2f%2f" in data[max(0, at - 1024) : at].lower()


def _escape(data: bytes, _folded: bytes, at: int) -> bool:
    """A printable character that is written as an escape hides what it is part of."""
    return _UNICODE.match(data, at) is not None


def _always(_data: bytes, _folded: bytes, _at: int) -> bool:
    return True


def _is_run(data: bytes, folded: bytes, at: int) -> bool:
    found = _RUN.match(folded, at)
    assert found is not None  # noqa: S101 - the needle is its beginning
    digits = data[at : found.end()].decode()
    skips = range(5) if b"\\u" in data[max(0, at - 5) : at] else (0,)  # the digits of an escape before it
    return any(
        len(digits) - skip <= _MAX_DIGITS and digits[skip] in _FIRST and is_card(digits[skip:]) for skip in skips
    )


def _is_group(data: bytes, folded: bytes, at: int) -> bool:
    if chr(data[at]) not in _FIRST:
        return False
    found = _GROUPED.match(folded, at)
    if found is None:
        return False
    digits = re.sub(rb"[^0-9]", b"", data[at : found.end()]).decode()
    return any(is_card(digits[:size]) for size in _CARD_SIZES if size <= len(digits))


def _may_match(pattern: Pattern, body: bytes) -> bool:
    """Whether a pattern without a needle may match in a record: an escape may hide anything."""
    return b"\\" in body or next(finds(pattern, body.decode(errors="replace")), None) is not None
