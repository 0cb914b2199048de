"""What stands in a secret's place: `[redacted:RULE]`, and with a key `[redacted:RULE:TAG]`, by which the same secret is known again. Pure."""

from __future__ import annotations

import hmac
import re
from typing import Literal

Mode = Literal["mask", "hash", "drop"]
TAG_CHARS = (
    16  # 64 bits: two secrets of one journal won't share a tag in practice, and no secret can be read back from it
)
_MARK = re.compile(r'\[redacted:[^\[\]"\\\s]{1,96}\]')


class Marker:
    """Makes the marks. In mode `hash` a tag is the HMAC-SHA-256 of the secret, cut to 64 bits."""

    def __init__(self, mode: Mode, key: bytes = b"") -> None:
        self.mode: Mode = mode
        self.key = key

    def __repr__(self) -> str:
        """Without the key."""
        return f"<Marker {self.mode}>"

    def mark(self, rule: str, secret: str) -> str:
        if self.mode != "hash":
            return f"[redacted:{rule}]"
        tag = hmac.digest(self.key, secret.encode("utf-8", "surrogatepass"), "sha256").hex()[:TAG_CHARS]
        return f"[redacted:{rule}:{tag}]"


def is_mark(text: str) -> bool:
    """Whether nothing but a mark stands there: what is redacted already is left as it is."""
    return _MARK.fullmatch(text) is not None
