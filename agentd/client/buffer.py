"""What waits in the agent's memory, and the client's books. Pure: no thread, no socket, no clock; the caller holds the lock.

    emitted = accepted + refused + lost + buffered        at any moment, by kind as well

`buffered` is what is queued here plus what is under way to the daemon and unanswered. Both count towards the bound, since
both are memory. When a new record finds no room, the oldest `debug` record goes, then the oldest `info`; a new record never
pushes out one that matters more than itself, so a `debug` that finds only `info` is lost itself. Records that are never
shed (warn, error, runs, tasks, decisions) push out others of their own only when nothing else is left: the bound holds.
First go those that are parked, as they wait for what is full, the newest before the older that they have to follow; then
the oldest of the rest.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import Counter, deque
from collections.abc import Callable
from typing import Final, NamedTuple, Self

from msgspec import Struct

from agentd.client.lines import Late

Data = bytes | Late  # a record's bytes, or the parts that the link makes them of; never looked into here
DEBUG, INFO, KEEP = range(3)
LEVEL_CLASS = {"debug": DEBUG, "info": INFO}  # any other level is KEEP
MAX_RUNS_COUNTED = 1000  # runs whose losses are told apart; more would be a second unbounded memory


class Ticket:
    """Hears once what became of a record: `stored`, `refused` or `lost`, and why."""

    __slots__ = ("_tell", "reason", "state")

    def __init__(self, tell: Callable[[], None]) -> None:
        self.state = ""
        self.reason = ""
        self._tell = tell

    def settle(self, state: str, reason: str = "") -> None:
        self.state = state
        self.reason = reason
        self._tell()


class Entry(NamedTuple):
    """A record on its way. `number` rises with each emit of the process."""

    number: int
    rank: int
    kind: str
    run_id: str
    data: Data
    size: int
    ticket: Ticket | None


# What a queue holds: an Entry's fields in a plain tuple, which is made four times as fast, and that in the agent's own time
_Row = tuple[int, int, str, str, Data, int, Ticket | None]
_Queue = deque[_Row]
_SIZE: Final = 5  # where an Entry has its size


class Stats(Struct, frozen=True):
    """The client's books: emitted = accepted + refused + lost + buffered."""

    emitted: int
    accepted: int
    refused: int
    lost: int
    buffered: int
    buffered_bytes: int
    cut: int
    refused_by: dict[str, int]
    lost_by: dict[str, int]


class Dropped(int):
    """How many records were lost before intake. A number, with `by_cause` and `by_kind`."""

    by_cause: dict[str, int]
    by_kind: dict[str, int]

    def __new__(cls, lost: Counter[tuple[str, str]]) -> Self:
        """Sum up a counter of (cause, kind)."""
        self = super().__new__(cls, sum(lost.values()))
        causes: Counter[str] = Counter()
        kinds: Counter[str] = Counter()
        for (cause, kind), count in lost.items():
            causes[cause] += count
            kinds[kind] += count
        self.by_cause = dict(causes)
        self.by_kind = dict(kinds)
        return self


class Buffer:
    """Three queues by rank, merged by number when they are sent, and the counters."""

    def __init__(self, max_records: int, max_bytes: int) -> None:
        self.max_records = max_records
        self.max_bytes = max_bytes
        self.full_cause = "no_daemon"  # what a lack of room is due to; the channel knows
        self.emitted = 0
        self.accepted = 0
        self.cut = 0
        self.refused: Counter[tuple[str, str]] = Counter()
        self.lost: Counter[tuple[str, str]] = Counter()
        self.notices: list[tuple[str, str]] = []  # causes met for the first time, with an example
        self.queued = 0
        self.under_way = 0
        self.bytes_queued = 0
        self.bytes_under_way = 0
        self._queues: tuple[_Queue, _Queue, _Queue] = (deque(), deque(), deque())
        self._parked: list[_Row] = []  # by number; they count as queued
        self._seen: set[str] = set()
        self._lost_of_run: dict[str, int] = {}

    @property
    def buffered(self) -> int:
        return self.queued + self.under_way

    @property
    def parked(self) -> int:
        """Of those queued, how many were refused before for want of room."""
        return len(self._parked)

    def put(self, kind: str, rank: int, run_id: str, data: Data, size: int, ticket: Ticket | None = None) -> None:
        """Take a new record of at most `size` bytes, at the cost of older or lesser ones where there is no room."""
        self.emitted += 1
        entry = (self.emitted, rank, kind, run_id, data, size, ticket)
        if (
            self.queued + self.under_way >= self.max_records
            or self.bytes_queued + self.bytes_under_way + size > self.max_bytes
        ) and not self._make_room(rank, size):
            self._lose(Entry(*entry), self.full_cause)
            return
        self._queues[rank].append(entry)
        self.queued += 1
        self.bytes_queued += size

    def never(self, kind: str, run_id: str, cause: str, reason: str = "", ticket: Ticket | None = None) -> None:
        """Count a record that can't even be queued: no run, closed, not encodable."""
        self.emitted += 1
        self._lose(Entry(self.emitted, KEEP, kind, run_id, b"", 0, ticket), cause, reason)

    def _make_room(self, rank: int, size: int) -> bool:
        if self.under_way >= self.max_records or self.bytes_under_way + size > self.max_bytes:
            return False
        while self.buffered >= self.max_records or self.bytes_queued + self.bytes_under_way + size > self.max_bytes:
            victim = self._victim(rank)
            if victim is None:
                return False
            self._lose(victim, self.full_cause)
        return True

    def _victim(self, rank: int) -> Entry | None:
        queues = self._queues
        lesser = next((queue for queue in queues[: min(rank + 1, KEEP)] if queue), None)
        if lesser is not None or rank < KEEP:
            return None if lesser is None else self._pop(lesser)
        if self._parked:
            return self._unqueued(self._parked.pop())
        return self._pop(queues[KEEP]) if queues[KEEP] else None

    def _pop(self, queue: _Queue) -> Entry:
        return self._unqueued(queue.popleft())

    def _unqueued(self, row: _Row) -> Entry:
        entry = Entry(*row)
        self.queued -= 1
        self.bytes_queued -= entry.size
        return entry

    def take(self, max_records: int, max_bytes: int) -> list[Entry]:
        """The oldest records, in the order of their emits, now under way. At least one if there is any."""
        taken: list[Entry] = []
        room = max_bytes
        while len(taken) < max_records:
            heads = [queue for queue in self._queues if queue]
            if not heads:
                break
            queue = heads[0] if len(heads) == 1 else min(heads, key=_first_number)
            size = queue[0][_SIZE]
            if size > room and taken:
                break
            room -= size
            taken.append(self._pop(queue))
            self._leave(taken[-1])
        return taken

    def _leave(self, entry: Entry) -> None:
        self.under_way += 1
        self.bytes_under_way += entry.size

    def park(self, entry: Entry, data: Data | None = None) -> None:
        """Keep a record that was under way until there is room for it; `data`: what shall go out instead."""
        self._landed(entry)
        if data is not None:
            entry = entry._replace(data=data, size=max(entry.size, len(data)))
        insort(self._parked, entry)
        self.queued += 1
        self.bytes_queued += entry.size

    def take_parked(self, after: int, max_records: int, max_bytes: int) -> list[Entry]:
        """The oldest parked records with a number above `after`, now under way. At least one if there is any."""
        start = stop = self._after(after)
        room = max_bytes
        while stop < min(len(self._parked), start + max_records):
            room -= self._parked[stop][_SIZE]
            if room < 0 and stop > start:
                break
            stop += 1
        rows = self._parked[start:stop]
        del self._parked[start:stop]
        taken = [self._unqueued(row) for row in rows]
        for entry in taken:
            self._leave(entry)
        return taken

    def parked_after(self, number: int) -> bool:
        """Whether one with a higher number is parked."""
        return self._after(number) < len(self._parked)

    def _after(self, number: int) -> int:
        return bisect_right(self._parked, number, key=_number)

    def accept(self, entry: Entry) -> None:
        """The daemon has it on disk."""
        self._landed(entry)
        self.accepted += 1
        if entry.ticket is not None:
            entry.ticket.settle("stored")

    def refuse(self, entry: Entry, cause: str, reason: str) -> None:
        """The daemon doesn't want it."""
        self._landed(entry)
        self.refused[cause, entry.kind] += 1
        self._notice(cause, f"{entry.kind} refused: {reason}")
        if entry.ticket is not None:
            entry.ticket.settle("refused", reason)

    def lose(self, entry: Entry, cause: str, reason: str = "") -> None:
        """A record that was under way is given up."""
        self._landed(entry)
        self._lose(entry, cause, reason)

    def lose_all(self, cause: str) -> None:
        """Give up what is still queued."""
        for queue in self._queues:
            while queue:
                self._lose(self._pop(queue), cause)
        while self._parked:
            self._lose(self._unqueued(self._parked.pop(0)), cause)

    def _landed(self, entry: Entry) -> None:
        self.under_way -= 1
        self.bytes_under_way -= entry.size

    def _lose(self, entry: Entry, cause: str, reason: str = "") -> None:
        self.lost[cause, entry.kind] += 1
        if entry.run_id and (entry.run_id in self._lost_of_run or len(self._lost_of_run) < MAX_RUNS_COUNTED):
            self._lost_of_run[entry.run_id] = self._lost_of_run.get(entry.run_id, 0) + 1
        self._notice(cause, reason or f"{entry.kind} lost: {cause}")
        if entry.ticket is not None:
            entry.ticket.settle("lost", reason or cause)

    def _notice(self, cause: str, example: str) -> None:
        if cause not in self._seen:
            self._seen.add(cause)
            self.notices.append((cause, example))

    def take_notice(self) -> tuple[str, str]:
        """The next new cause with an example, two empty strings if there is none."""
        return self.notices.pop(0) if self.notices else ("", "")

    def take_lost_of(self, run_id: str) -> int:
        """How many records of a run were lost since this was last asked."""
        return self._lost_of_run.pop(run_id, 0)

    def oldest_queued(self) -> int | None:
        """The smallest number that waits."""
        return min((queue[0][0] for queue in (*self._queues, self._parked) if queue), default=None)

    def oldest_size(self) -> int | None:
        """The size of the record that `take` would begin with."""
        heads = [queue for queue in self._queues if queue]
        return min(heads, key=_first_number)[0][_SIZE] if heads else None

    def queued_until(self, number: int) -> int:
        """How many wait that were emitted no later than `number`."""
        return sum(entry[0] <= number for queue in (*self._queues, self._parked) for entry in queue)

    def lost_by(self) -> dict[str, int]:
        """The losses as `cause:kind` → count, as the hello reports them."""
        return {f"{cause}:{kind}": count for (cause, kind), count in self.lost.items()}

    def stats(self) -> Stats:
        """The books at this moment."""
        return Stats(
            emitted=self.emitted,
            accepted=self.accepted,
            refused=sum(self.refused.values()),
            lost=sum(self.lost.values()),
            buffered=self.buffered,
            buffered_bytes=self.bytes_queued + self.bytes_under_way,
            cut=self.cut,
            refused_by={f"{cause}:{kind}": count for (cause, kind), count in self.refused.items()},
            lost_by=self.lost_by(),
        )


def _first_number(queue: _Queue) -> int:
    return queue[0][0]


def _number(row: _Row) -> int:
    return row[0]
