"""Redaction: secrets out of what is about to be stored, said or logged. Pure; the daemon has one `Redactor`.

    redactor.records(bodies)    encoded records of a message: only those that were changed come back
    redactor.question(data)     the request of a gate, or the platform's answer to it
    redactor.raw(data)          what was no record, JSON or not
    redactor.text(text)         a reason, a line of the log

What is redacted once is found unchanged by a second look, so that a replay or a later version of the rules can go over it again.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

from msgspec import Struct

from agentd.redact.fields import place_in_question, place_of
from agentd.redact.keys import Keys
from agentd.redact.marks import Marker, Mode
from agentd.redact.patterns import Pattern
from agentd.redact.screen import Screen, Suspicion
from agentd.redact.text import Texts
from agentd.redact.walk import NotJson, Place, Walk

ENGINE = 1  # of this code: raised whenever it finds more or less by the same rules
NOTHING: Mapping[str, int] = {}


class Redacted(Struct, frozen=True):
    """A document without its secrets, and how many hits each rule had."""

    body: bytes
    hits: Mapping[str, int] = NOTHING


class Rules(Struct, frozen=True):
    """What is in force."""

    keys: Keys
    patterns: tuple[Pattern, ...]
    marker: Marker
    allow: tuple[str, ...] = ()

    @property
    def is_on(self) -> bool:
        return bool(self.keys.globs or self.patterns)

    def version(self) -> int:
        """The same number for the same rules, 0 for none; stored with every record that went through them."""
        if not self.is_on:
            return 0
        said = [
            str(ENGINE),
            self.marker.mode,
            self.marker.mark("version", "version"),
            *self.keys.globs,
            "!",
            *self.keys.exempt,
        ]
        said += [f"{pattern.name}={pattern.expression.pattern}" for pattern in self.patterns] + ["!", *self.allow]
        return (
            int.from_bytes(blake2b("\n".join(said).encode("utf-8", "surrogatepass"), digest_size=4).digest(), "big") | 1
        )


class Redactor:
    """The rules at work. `counts` are hits by rule, `ids` what looked like a secret and is an id, by field."""

    def __init__(self, rules: Rules, allowed: Sequence[re.Pattern[str]] = ()) -> None:
        self.counts: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self._own_key = secrets.token_bytes(32)
        self._take(rules, allowed)

    def _take(self, rules: Rules, allowed: Sequence[re.Pattern[str]]) -> None:
        self.rules = rules
        self.version = rules.version()
        self._allowed = tuple(allowed)
        self._texts = Texts(rules.patterns, rules.keys, rules.marker, allowed)
        self._screen = Screen(rules.keys, rules.patterns)

    def follow(self, other: Redactor) -> None:
        """Go by the rules of another from now on, and count on."""
        self._take(other.rules, other._allowed)

    def __repr__(self) -> str:
        """Without the key."""
        return (
            f"<Redactor {self.rules.marker.mode} {len(self.rules.keys.globs)} keys {len(self.rules.patterns)} patterns>"
        )

    @property
    def mode(self) -> Mode:
        return self.rules.marker.mode

    def document(self) -> dict[str, Any]:
        """For the status: what is in force, and what it has found since the start, by rule; `ids` were left, by field."""
        return {
            "version": self.version,
            "mode": self.mode if self.version else "off",
            "keys": len(self.rules.keys.globs),
            "patterns": len({pattern.name for pattern in self.rules.patterns}),
            "hits": dict(sorted(self.counts.items())),
            "ids": dict(sorted(self.ids.items())),
        }

    def records(self, bodies: Sequence[bytes]) -> dict[int, Redacted]:
        """By index, the records that hold a secret, without it. All others are to be taken as they are."""
        if not bodies or not self.version:
            return {}
        changed: dict[int, Redacted] = {}
        for index, suspicion in self._screen.suspects(bodies).items():
            redacted = self._document(bodies[index], place_of, suspicion)
            if redacted.hits:
                changed[index] = redacted
        return changed

    def question(self, data: bytes) -> Redacted:
        """A platform's JSON; what is none is gone over as a text."""
        if not data or not self.version or not self._screen.suspects([data]):
            return Redacted(data)
        return self._document(data, place_in_question)

    def raw(self, data: bytes) -> Redacted:
        """What a client has sent, whether it is a record or not."""
        if not data or not self.version or not self._screen.suspects([data]):
            return Redacted(data)
        return self._document(data, place_of)

    def fingerprint(self, data: bytes) -> bytes:
        """What tells this from anything else, for digests that reach the disk: itself, or with a secret in it a keyed digest.

        The key is `redact.key`, else one of this process alone: nobody can try out secrets on what is stored.
        """
        if not self.raw(data).hits:
            return data
        return hmac.digest(self.rules.marker.key or self._own_key, data, "sha256")

    def text(self, text: str) -> str:
        """A sentence. Counted with the others."""
        if not text or not self.version or not self._screen.suspects([text.encode("utf-8", "surrogatepass")]):
            return text
        spans = self._texts.spans(text, self._texts.of(text))
        self.counts.update(span.rule for span in spans)
        return self._texts.replace(text, spans) if spans else text

    def _document(self, data: bytes, place_of: Callable[[str], Place], found: Suspicion | None = None) -> Redacted:
        """`found` is what is suspected in a record, which is known to be JSON."""
        if found is None:
            walk = Walk(data, self._texts)
        else:
            walk = Walk(data, self._texts, patterns=found.patterns, named=found.named, places=found.places)
        try:
            body = walk.run(place_of)
        except NotJson:
            return self._as_text(data)
        self.counts.update(walk.hits)
        self.ids.update(walk.ids)
        return Redacted(body, dict(walk.hits)) if walk.hits else Redacted(data)

    def _as_text(self, data: bytes) -> Redacted:
        text = data.decode("utf-8", "surrogateescape")
        spans = self._texts.spans(text, self._texts.of(text))
        if not spans:
            return Redacted(data)
        hits = Counter(span.rule for span in spans)
        self.counts.update(hits)
        return Redacted(self._texts.replace(text, spans).encode("utf-8", "surrogateescape"), dict(hits))
