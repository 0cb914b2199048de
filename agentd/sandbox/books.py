"""What the sandbox remembers of the requests themselves: a ledger of the latest, counters, and every idempotency key's repeats.

Invariant: counters and repeats cover all requests since the last reset, the ledger only the latest `keep`. A key costs its text
and 32 bytes, so that a load test's keys fit.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque

import msgspec

NO_ANSWER = 0  # the status of a request that got none: the connection hung or was reset before the platform judged it


class RequestLine(msgspec.Struct, frozen=True):
    """One line of the ledger. `status` is what the platform decided; `fault` says if the client never heard it."""

    at: float  # seconds since 1970
    face: str
    method: str
    path: str
    status: int
    idempotency_key: str
    sha256: str  # of the body; empty if it was not read
    size: int
    fault: str


class Repeat(msgspec.Struct, frozen=True):
    """How often an idempotency key came, whether always with the same bytes, and the first body's digest."""

    count: int
    same_body: bool
    sha256: str


class Books:
    """Counters and ledger; `note` is on the path of every request."""

    def __init__(self, keep: int = 1000) -> None:
        self.ledger: deque[RequestLine] = deque(maxlen=keep)
        self._by_path: Counter[tuple[str, int]] = Counter()
        self._faults: Counter[str] = Counter()
        self._first: dict[str, bytes] = {}
        self._again: dict[str, tuple[int, bool]] = {}

    def note(self, line: RequestLine, ending: str = "") -> None:
        """Write down one request; `ending` is the kind of fault that ended it. An unread body says nothing of its key."""
        self.ledger.append(line)
        self._by_path[line.path, line.status] += 1
        if ending:
            self._faults[ending] += 1
        if line.idempotency_key and line.sha256:
            self._note_key(line.idempotency_key, bytes.fromhex(line.sha256))

    def _note_key(self, key: str, digest: bytes) -> None:
        first = self._first.setdefault(key, digest)
        if first is not digest:
            count, same = self._again.get(key, (1, True))
            self._again[key] = (count + 1, same and first == digest)

    def totals(self) -> tuple[dict[str, dict[str, int]], dict[str, int]]:
        """Requests by path and status (0: no answer), and faults by their ending."""
        by_path: dict[str, dict[str, int]] = {}
        for (path, status), count in sorted(self._by_path.items()):
            by_path.setdefault(path, {})[str(status)] = count
        return by_path, dict(self._faults)

    def key_totals(self) -> dict[str, int]:
        """Idempotency keys seen, seen more than once, and seen with differing bodies."""
        conflicting = sum(not same for _, same in self._again.values())
        return {"keys": len(self._first), "repeated": len(self._again), "conflicting": conflicting}

    def repeats(self, at_least: int = 1) -> dict[str, Repeat]:
        """Every idempotency key that came `at_least` so often, in order of first arrival."""
        keys = self._first if at_least <= 1 else self._again
        found = {key: self._repeat(key) for key in keys}
        return {key: repeat for key, repeat in found.items() if repeat.count >= at_least}

    def _repeat(self, key: str) -> Repeat:
        count, same = self._again.get(key, (1, True))
        return Repeat(count, same, self._first[key].hex())


def digest(body: bytes) -> str:
    """SHA-256 as the ledger shows it."""
    return hashlib.sha256(body).hexdigest()
