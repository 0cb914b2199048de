"""What waits in the agent's memory, and the client's books. Pure: no thread, no socket, no clock; the caller holds the lock.

    emitted = accepted + refused + lost + buffered        at any moment, by kind as well

`buffered` is what is queued here plus what is under way to the daemon and unanswered. Both count towards the bound, since
both are memory. When a new record finds no room, the oldest `debug` record goes, then the oldest `info`; a new record never
pushes out one that matters more than itself, so a `debug` that finds only `info` is lost itself. Records that are never
shed (warn, error, runs, tasks, decisions) push out others of their own only when nothing else is left: the bound holds.
First go those that are parked, as they wait for what is full, the newest before the older that they have to follow; then
the oldest of the rest.

What a run has lost it is told by an event (`losses`): right before its end, under the same number and beyond the bound, or else
once half of the buffer is free.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import Counter, deque
from collections.abc import Callable
from typing import Final, NamedTuple, Self

from msgspec import Struct

from agentd.client.lines import Late
from agentd.client.losses import RUN_ENDS, Gap, RunLosses

Data = bytes | Late  # a record's bytes, or the parts that the link makes them of
DEBUG, INFO, KEEP = range(3)
LEVEL_CLASS = {"debug": DEBUG, "info": INFO}  # any other level is KEEP
_MOST_TOLD = 50  # runs at once


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


class Notice(Ticket):
    """The ticket of an event that tells a run what it lost: lost itself, it gives that back."""

    __slots__ = ("_gap", "_losses", "_run_id", "data")

    def __init__(self, losses: RunLosses, run_id: str) -> None:
        super().__init__(lambda: None)
        self._losses = losses
        self._run_id = run_id
        self._gap: Gap = losses.take(run_id)
        self.data = self._gap.line()

    def settle(self, state: str, reason: str = "") -> None:
        super().settle(state, reason)
        if state == "lost":
            self._losses.give_back(self._run_id, self._gap)


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
        self._losses = RunLosses()
        self._ending: Counter[str] = Counter()  # runs whose end waits here

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
        if kind in RUN_ENDS:
            self._ending[run_id] += 1

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
        if entry.kind in RUN_ENDS:
            self._ending[entry.run_id] -= 1
            if not self._ending[entry.run_id]:
                del self._ending[entry.run_id]
        return entry

    def take(self, max_records: int, max_bytes: int) -> list[Entry]:
        """The oldest records, in the order of their emits, now under way. At least one if there is any.

        What goes before the ends of runs is not counted.
        """
        taken: list[Entry] = []
        room = max_bytes
        while len(taken) < max_records:
            heads = [queue for queue in self._queues if queue]
            if not heads:
                break
            queue = heads[0] if len(heads) == 1 else min(heads, key=_first_number)
            before = self._size_before(queue[0])
            size = queue[0][_SIZE] + before
            if size > room and taken:
                break
            room -= size
            entry = self._pop(queue)
            taken += self._now_leaving(entry, before)
        return taken

    def _now_leaving(self, entry: Entry, before: int) -> list[Entry]:
        """It is under way, and so is what goes before it."""
        self._leave(entry)
        return [self._tell_before(entry), entry] if before else [entry]

    def _size_before(self, row: _Row) -> int:
        """How much has to go before this record: 0 but for the end of a run that lost something."""
        if not self._losses or row[2] not in RUN_ENDS or row[3] not in self._losses:
            return 0
        return self._losses.size(row[3])

    def _tell_before(self, end: Entry) -> Entry:
        """The event that goes right before the end, under way as well. A full buffer has room for it: there are few of them."""
        notice = Notice(self._losses, end.run_id)
        self.emitted += 1
        entry = Entry(end.number, KEEP, "event", end.run_id, notice.data, len(notice.data), notice)
        self._leave(entry)
        return entry

    @property
    def has_to_tell(self) -> bool:
        """Whether half of the buffer is free, and runs are to be told what they lost whose end does not wait here."""
        if not self._losses or 2 * self.buffered > self.max_records:
            return False
        if 2 * (self.bytes_queued + self.bytes_under_way) > self.max_bytes:
            return False
        return any(self._may_tell(run_id) for run_id in self._losses.runs())

    def _may_tell(self, run_id: str) -> bool:
        size = self.bytes_queued + self.bytes_under_way + self._losses.size(run_id)
        return run_id not in self._ending and self.buffered < self.max_records and size <= self.max_bytes

    def tell(self) -> None:
        """Emit the events that tell them, as far as they need nobody else's room."""
        for run_id in self._losses.runs()[:_MOST_TOLD]:
            if self._may_tell(run_id):
                notice = Notice(self._losses, run_id)
                self.put("event", KEEP, run_id, notice.data, len(notice.data), notice)

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
        if entry.kind in RUN_ENDS:
            self._ending[entry.run_id] += 1

    def take_parked(self, after: int, max_records: int, max_bytes: int) -> list[Entry]:
        """The oldest parked records with a number above `after`, now under way. At least one if there is any. Counted as by `take`."""
        start = self._after(after)
        room = max_bytes
        befores: list[int] = []
        for row in self._parked[start : start + max_records]:
            before = self._size_before(row)
            room -= row[_SIZE] + before
            if room < 0 and befores:
                break
            befores.append(before)
        rows = self._parked[start : start + len(befores)]
        del self._parked[start : start + len(befores)]
        taken: list[Entry] = []
        for row, before in zip(rows, befores, strict=True):
            taken += self._now_leaving(self._unqueued(row), before)
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
        if entry.run_id:
            self._losses.add(entry.run_id, cause, entry.kind, entry.data)
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
