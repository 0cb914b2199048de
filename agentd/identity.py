"""Ids that agentd makes: UUIDv7 (RFC 9562 §5.7), rising within a process even when the clock does not."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from uuid import UUID

_COUNTER_BITS = (
    74  # rand_a (12) and rand_b (62) used as one counter, seeded afresh each millisecond (RFC 9562 §6.2, method 2)
)
_SEED_MASK = (1 << (_COUNTER_BITS - 1)) - 1  # the top bit starts at 0, so that a millisecond's counter can't run over


class Uuid7:
    """A generator of 16-byte UUIDv7 values, for one thread of one process; `now_ms` and `random` are the seams for tests."""

    def __init__(
        self,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._now_ms = now_ms
        self._random = random
        self._last_ms = -1
        self._counter = 0

    def __call__(self) -> bytes:
        """Sixteen bytes, each greater than the one before."""
        now = self._now_ms()
        if now > self._last_ms:
            self._last_ms = now
            self._counter = int.from_bytes(self._random(10), "big") & _SEED_MASK
        else:
            self._counter += 1
        counter = self._counter
        value = self._last_ms << 80 | 0x7 << 76 | (counter >> 62) << 64 | 0b10 << 62 | counter & ((1 << 62) - 1)
        return value.to_bytes(16, "big")


def text_of(record_id: bytes) -> str:
    """The usual 36-character form of a 16-byte id."""
    return str(UUID(bytes=record_id))
