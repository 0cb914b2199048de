"""The rows of the dedupe window on disk (`intake.dedupe`): which may go. Pure.

    value = what intake wants kept, one user's ids, oldest first: each begins with the uid, as u32be
    tag   = number of ids:u32le uid:u32be           rows of older versions lack the uid

As in memory it is the user with most ids who loses his oldest, so that nobody's flood of ids has the others' forgotten by a restart.
"""

from __future__ import annotations

from collections import deque

_COUNT = 4
_UID = 4


class SeenRows:
    """Rows by user, the oldest first."""

    def __init__(self) -> None:
        self.count = 0
        self._users: dict[bytes, deque[tuple[int, int]]] = {}  # by uid: (row, number of ids)
        self._counts: dict[bytes, int] = {}

    @staticmethod
    def tag(value: bytes, count: int) -> bytes:
        """A row's tag."""
        return count.to_bytes(_COUNT, "little") + value[:_UID]

    def add(self, row: int, tag: bytes, most: int, largest: int | None = None) -> list[int]:
        """A row is there, or will be; gives those that the window of `most` ids has passed.

        `largest` is what a damaged count may not exceed.
        """
        uid, count = tag[_COUNT:], int.from_bytes(tag[:_COUNT], "little")
        count = count if largest is None else min(count, largest)
        self._users.setdefault(uid, deque()).append((row, count))
        self._counts[uid] = self._counts.get(uid, 0) + count
        self.count += count
        return self._pass(most)

    def _pass(self, most: int) -> list[int]:
        passed: list[int] = []
        while True:
            uid = max(self._counts, key=self._counts.__getitem__)
            row, count = self._users[uid][0]
            if self.count - count < most or len(self._users[uid]) == 1:
                return passed
            self._users[uid].popleft()
            self._counts[uid] -= count
            self.count -= count
            passed.append(row)
