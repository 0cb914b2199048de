"""Ids that are the same when the same is asked twice, also after a restart: nothing is remembered for them. Pure.

A call without an idempotency field of its own is known again by its caller, its path and its body, for ten minutes. Its
records' ids are made from these and from the minute in which it came first; the next ten minutes look for that in the
dedupe window, which is on disk with the records.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from uuid import UUID

from msgspec import Struct

_MINUTE_US = 60 * 10**6
REMEMBERED_US = 10 * _MINUTE_US


class Caller(Struct, frozen=True):
    """Who calls which destination."""

    uid: int
    token: int
    destination: str

    def id_for(self, *words: object) -> UUID:
        """Name-based: the same for the same caller and words."""
        parts = (self.uid, self.token, self.destination, *words)
        digest = blake2b(digest_size=16, person=b"agentd.compat")
        for part in parts:
            data = part if isinstance(part, bytes) else str(part).encode(errors="surrogatepass")
            digest.update(len(data).to_bytes(4, "big") + data)
        return UUID(bytes=digest.digest(), version=5)  # what many checks of UUIDs know; RFC 9562 §5.5 but for the hash


class Naming(Struct, frozen=True):
    """The ids of one call, as if it had come first in `minute`."""

    caller: Caller
    path: str
    digest: bytes  # of the body
    minute: int

    def make_id(self, word: str) -> str:
        """See `agentd.standin.StandIn.hand_over`."""
        words = ("word", word) if word else ("own", self.path, self.digest, self.minute)
        return str(self.caller.id_for(*words))

    def record_ids(self, count: int, key: str) -> list[UUID]:
        """The ids of the call's records, in their order."""
        words = ("keyed", self.path, key) if key else ("record", self.path, self.digest, self.minute)
        first = self.caller.id_for(*words).int
        return [UUID(int=first ^ index) for index in range(count)]


def namings(caller: Caller, path: str, body: bytes, spans: Iterable[tuple[int, int]]) -> list[Naming]:
    """What the call's ids are, and what they were if it came first in one of the minutes before; this minute's first.

    `spans` is what the wall clock said in the last `REMEMBERED_US`, the latest first (`agentd.ageing.Clocks.said_us`).
    """
    digest = blake2b(body, digest_size=16).digest()
    minutes = dict.fromkeys(
        minute for first_us, last_us in spans for minute in range(last_us // _MINUTE_US, first_us // _MINUTE_US - 1, -1)
    )
    return [Naming(caller, path, digest, minute) for minute in minutes]
