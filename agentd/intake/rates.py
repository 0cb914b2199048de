"""How fast a user may send: records and bytes a second, as token buckets on the monotonic clock. Pure: `now` is handed in.

A bucket holds what `BURST_S` bring. A message is taken whole while there is anything in the buckets, and what it is more than
they hold is a debt: so no message is too large, and over any time a user sends at most rate x time, a burst, and one message.
"""

from __future__ import annotations

from msgspec import Struct

BURST_S = 1.0
_MOST = 1024  # users that are remembered before those are forgotten whose buckets are full


class Bucket(Struct):
    """What a user may still send at once, below 0 for a debt, as of `at`."""

    records: float
    size: float
    at: float


class Rates:
    """Per user; a rate of 0 is none."""

    def __init__(self, records_per_s: float = 0, bytes_per_s: float = 0) -> None:
        self._records_per_s = float(records_per_s)
        self._bytes_per_s = float(bytes_per_s)
        self._buckets: dict[int, Bucket] = {}

    def __repr__(self) -> str:
        return f"<Rates {self._records_per_s:g} records/s, {self._bytes_per_s:g} B/s, {len(self._buckets)} users>"

    def follow(self, records_per_s: float, bytes_per_s: float) -> None:
        """By these from now on; everybody begins with a full bucket."""
        self._records_per_s, self._bytes_per_s = float(records_per_s), float(bytes_per_s)
        self._buckets.clear()

    @property
    def limits(self) -> bool:
        """Whether there is a limit at all."""
        return bool(self._records_per_s or self._bytes_per_s)

    def charge(self, who: int, records: int, size: int, now: float) -> None:
        """A user has sent this."""
        if self.limits:
            bucket = self._bucket(who, now)
            bucket.records -= records
            bucket.size -= size

    def wait_s(self, who: int, now: float) -> float:
        """How long until the user may send again; 0: now."""
        if not self.limits:
            return 0.0
        bucket = self._bucket(who, now)
        lacking = [
            (1 - level) / rate
            for level, rate in ((bucket.records, self._records_per_s), (bucket.size, self._bytes_per_s))
            if rate and level < 1
        ]
        return max(lacking, default=0.0)

    def _bucket(self, who: int, now: float) -> Bucket:
        bucket = self._buckets.get(who)
        if bucket is None:
            if len(self._buckets) >= _MOST:
                self._forget(now)
            bucket = self._buckets[who] = Bucket(self._full(self._records_per_s), self._full(self._bytes_per_s), now)
            return bucket
        passed = max(0.0, now - bucket.at)
        bucket.records = min(self._full(self._records_per_s), bucket.records + passed * self._records_per_s)
        bucket.size = min(self._full(self._bytes_per_s), bucket.size + passed * self._bytes_per_s)
        bucket.at = now
        return bucket

    def _full(self, rate: float) -> float:
        return max(1.0, rate * BURST_S)

    def _forget(self, now: float) -> None:
        for who in [who for who, known in self._buckets.items() if self.wait_s(who, now) == 0 and known.at == now]:
            bucket = self._buckets[who]
            if bucket.records >= self._full(self._records_per_s) and bucket.size >= self._full(self._bytes_per_s):
                del self._buckets[who]
