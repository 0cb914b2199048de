"""Whether a platform takes a key: one cheap authenticated read, never a write, and what its answer says. Pure.

Each adapter has a `probe`. No answer says nothing of the key, and 5xx or 429 little: only what the platform itself says of who asks
counts as a refusal.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from msgspec import Struct

from agentd.exchange import Lost, Request, Response

_REDIRECTS = range(300, 400)
_SERVER_ERRORS = range(500, 600)
_UNAUTHENTICATED, _UNPAID, _FORBIDDEN, _TOO_MANY = 401, 402, 403, 429
_SAID_CHARS = 200


class Probe(Struct, frozen=True):
    """A read. `taken` are the statuses that only a key which the platform knows is answered with."""

    path: str
    taken: frozenset[int] = frozenset({200})

    @property
    def request(self) -> Request:
        return Request(self.path, b"", method="GET")


class Found(StrEnum):
    TAKEN = "taken"
    REFUSED = "refused"
    AWAY = "away"  # nobody answered: nothing is known of the key
    UNCLEAR = "unclear"  # somebody answered, and not to that


class Verdict(NamedTuple):
    found: Found
    reason: str


def judge(probe: Probe, answer: Response | Lost) -> Verdict:
    """What the answer says of the key."""
    asked = f"GET {probe.path.partition('?')[0]}"
    if isinstance(answer, Lost):
        return Verdict(Found.AWAY, f"can't be reached, so nothing is known of the key: {answer.reason}")
    status = answer.status
    if status in probe.taken:
        return Verdict(Found.TAKEN, f"the platform takes the key ({asked}: {status})")
    if status == _UNPAID:
        return Verdict(
            Found.TAKEN, f"the platform takes the key, and says that its quota is used up or unpaid ({asked}: 402)"
        )
    if status in (_UNAUTHENTICATED, _FORBIDDEN):
        return Verdict(Found.REFUSED, f"the platform refuses the key ({asked}: {status}{_said(answer)})")
    if status in _REDIRECTS:
        where = answer.headers.get("location", "?")[:_SAID_CHARS]
        return Verdict(Found.UNCLEAR, f"it redirects to {where}: is base_url right? ({asked}: {status})")
    if status == _TOO_MANY or status in _SERVER_ERRORS:
        return Verdict(
            Found.AWAY, f"has no answer now, so nothing is known of the key ({asked}: {status}{_said(answer)})"
        )
    return Verdict(
        Found.UNCLEAR, f"does not answer as the platform would: is base_url right? ({asked}: {status}{_said(answer)})"
    )


def _said(answer: Response) -> str:
    """What came with it, in one line."""
    text = " ".join(answer.body[: 4 * _SAID_CHARS].decode(errors="replace").split())
    return f", {text[:_SAID_CHARS]}" if text.isprintable() and text else ""
