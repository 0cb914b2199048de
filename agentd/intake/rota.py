"""Whose turn it is on the event loop. No I/O: the clock and the loop's next turn are handed in.

In one turn of the loop each user gets `QUANTUM_S` of work, ten of them while he is alone; what is more waits for the next turns, which serve the users who wait
one after the other, and each user's connections likewise. So whoever asks for little waits for no more than one message and a
quantum of each of the others, however many connections they hold. A message is taken whole: who has had more than his quantum
pays it back as long as anybody else waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

_ALONE = 10  # quanta of a turn for who is alone: what comes at once then goes to disk with one sync
SHARED_S = 1.0
QUANTUM_S = 0.005  # about 250 records of 400 bytes on a slow machine; a commit on a good disk takes as long
REQUEST_S = 0.001  # what an HTTP request counts as: its cost is spread over handlers that wait


class Rota:
    """Work by user."""

    def __init__(
        self,
        clock: Callable[[], float],
        later: Callable[[Callable[[], None]], object],
        quantum_s: float = QUANTUM_S,
        shared_s: float = SHARED_S,
    ) -> None:
        """`later` calls something in the loop's next turn; for `shared_s` after two users had a turn both count as being there."""
        self._shared_s = shared_s
        self.clock = clock
        self._later = later
        self._quantum_s = quantum_s
        self._spent: dict[int, float] = {}
        self._waiting: dict[int, deque[Callable[[], None]]] = {}
        self._scheduled = False
        self._last: int | None = None  # who had work done last
        self._shared_until = 0.0

    def __repr__(self) -> str:
        return f"<Rota {sum(map(len, self._waiting.values()))} of {len(self._waiting)} users wait>"

    def has_turn(self, who: int) -> bool:
        """Whether the user may have more work done in this turn."""
        spent = self._spent.get(who, 0.0)
        if spent < self._quantum_s:
            return True
        is_alone = who == self._last and self.clock() >= self._shared_until
        return is_alone and spent < _ALONE * self._quantum_s

    def spend(self, who: int, seconds: float) -> None:
        """So much work was done for him."""
        self._spent[who] = self._spent.get(who, 0.0) + seconds
        if who != self._last:
            self._shared_until = 0.0 if self._last is None else self.clock() + self._shared_s
            self._last = who
        self._schedule()

    def wait(self, who: int, go: Callable[[], None]) -> None:
        """Call `go` when it is his turn again; it may find that there is nothing left to do."""
        self._waiting.setdefault(who, deque()).append(go)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._later(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        if len(self._waiting) > 1:
            self._spent = {who: left for who, spent in self._spent.items() if (left := spent - self._quantum_s) > 0}
        else:
            self._spent.clear()  # nobody else waits: there is nobody to pay back to
        for who in list(self._waiting):
            queue = self._waiting[who]
            left = len(queue)  # who waits again, waits for the next turn
            while left and self.has_turn(who):
                left -= 1
                queue.popleft()()
            if not queue:
                del self._waiting[who]
        if self._waiting:
            self._schedule()
