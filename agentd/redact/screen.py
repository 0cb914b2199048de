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


class Screen:
    """The needles of the rules in force."""

    def __init__(self, keys: Keys, patterns: Sequence[Pattern]) -> None:
        self._raw: list[tuple[bytes | None, bytes, Confirm]] = []
        self._folded: list[tuple[bytes, Confirm]] = [(needle, _Name(keys)) for needle in keys.needles()]
        self._always: list[Pattern] = []
        for pattern in patterns:
            self._add(pattern)
        if self.is_on:
            self._raw += [(b"\\", b"\\u00", _escape), (b"@", b":\\/\\/", _always), (b"%", b"%40", _percent_url)]

    @property
    def is_on(self) -> bool:
        return bool(self._raw or self._folded or self._always)

    def _add(self, pattern: Pattern) -> None:
        if pattern.digits:
            self._folded += [(_DIGITS, _is_run), *((group, _is_group) for group in _GROUPS)]
        elif pattern.beside:
            known = {needle for _, needle, _ in self._raw}
            self._raw += [
                (_rarest(word), word, _always) for word in map(str.encode, pattern.beside) if word not in known
            ]
        elif pattern.folded:
            self._folded += [(needle, _Form(pattern)) for needle in pattern.folded]
        elif pattern.needles:
            self._raw += [(_rarest(needle), needle, _Form(pattern)) for needle in map(str.encode, pattern.needles)]
        else:
            self._always.append(pattern)

    def suspects(self, bodies: Sequence[bytes]) -> set[int]:
        """Which of the bodies may hold a secret."""
        data = bodies[0] if len(bodies) == 1 else b"\n".join(bodies)
        if b"\0" in data:
            data = data.replace(b"\0", b"\1")
        folded = data.translate(FOLDING)
        places = list(self._places(data, folded))
        if not places and not self._always:
            return set()
        ends = list(accumulate(len(body) + 1 for body in bodies))
        found = {bisect_right(ends, place) for place in places}
        for pattern in self._always:
            found |= {index for index, body in enumerate(bodies) if index not in found and _may_match(pattern, body)}
        return found

    def _places(self, data: bytes, folded: bytes) -> Iterator[int]:
        for rare, needle, confirm in self._raw:
            if (rare is None or rare in data) and contains(data, needle):
                yield from _confirmed(data, data, folded, needle, confirm)
        for needle, confirm in self._folded:
            if contains(folded, needle):
                yield from _confirmed(folded, data, folded, needle, confirm)


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
            return self._expression.search(data, max(0, at - self._back), at + 4096) is not None
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
    return any(is_card(digits[:size]) for size in range(13, len(digits) + 1))


def _may_match(pattern: Pattern, body: bytes) -> bool:
    """Whether a pattern without a needle may match in a record: an escape may hide anything."""
    return b"\\" in body or next(finds(pattern, body.decode(errors="replace")), None) is not None
