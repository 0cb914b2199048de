"""Room for what comes: within a destination's quota, and on a disk that may be full; what is shed for it, and in which order (promise 6).

A full disk is like a full queue, shared by all: what rows were deleted of is free room within the store, which new rows take without
more of the disk. So what was delivered makes room, and where that is not enough older debug, then info events of whichever queue are
shed for what may not be refused yet. How much there is each commit measures while the disk is full; of what is shed, rows are counted
on before that, less the pages that they may share.

One user's records leave room for the others' (`_need`): as soon as a second one sends anything the last quarter of each queue is for
users who hold less than a sixteenth of it, and what is shed is shed of those who hold most. A user alone may fill a queue.

Part of that room is reserved for endings, seals, letters and journal (`RESERVED_BYTES`), and taken while the disk has any: a disk that is
full to the last byte, and kept so by a neighbour who takes whatever is given back, still lets a queue drain.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator

from msgspec import Struct

from agentd.crashpoints import Point, reached
from agentd.outcomes import Cause, State
from agentd.records import LossClass
from agentd.spool.committer import Committer
from agentd.spool.directory import Segment
from agentd.spool.folder import FLOOR_BYTES
from agentd.spool.ledger import Ledger
from agentd.spool.queue import Queue

log = logging.getLogger("agentd.spool")

SHED_STEP = 2**20  # room made at once, so that a full queue does not shed for each record anew
KEPT_BYTES = FLOOR_BYTES
LOW_BYTES = (
    2**30
)  # free space below which room is reserved within the store: more than a neighbour fills between two looks
_LOG_EVERY_US = 10**6
_PAGE_BYTES = 4096
_COST = 2  # of a record on disk, beside its bytes in a segment: journal, reference and their indexes


_KEPT = 4  # one part in 4 of a queue is kept for users who hold little of it,
_LITTLE = 16  # which is less than one part in 16


class _Need(Struct):
    """How many bytes are lacking; 0 or less: none. Of what is shed in other queues, only the disk has anything."""

    quota: int
    disk: int

    def is_met(self) -> bool:
        return self.quota <= 0 and self.disk <= 0


class Room:
    """`tell(name, lanes)` hears which lanes see further since something was shed, `found` that the disk has room again."""

    def __init__(
        self, ledger: Ledger, committer: Committer, tell: Callable[[str, set[str]], None], found: Callable[[], None]
    ) -> None:
        self._ledger = ledger
        self._committer = committer
        self._tell = tell
        self._found = found
        self._said: dict[tuple[str, LossClass], tuple[int, int]] = {}  # when, and how many records were shed since

    def room_for(self, destination: str, size: int, loss: LossClass, uid: int | None = None) -> bool:
        """Whether `size` more bytes fit; sheds what is worth less for them where that makes them fit, and nothing in vain.

        `uid` is whose they are; None: no user's, so that no share holds for them.
        """
        queue = self._ledger.queues[destination]
        need = self._need(queue, size, uid)
        if need.is_met():
            return True
        # what arrives may not push out what is worth more
        classes = (LossClass.DEBUG,) if loss is LossClass.DEBUG else (LossClass.DEBUG, LossClass.INFO)
        plan: dict[tuple[str, LossClass], list[Segment]] = {}
        for shedding in classes:
            for each in self._sources(queue, need):
                if chosen := list(self._choose(each, shedding, need, is_own=each is queue, uid=uid)):
                    plan[each.name, shedding] = chosen
            if need.is_met():
                for (name, of), segments in plan.items():
                    self._shed(self._ledger.queues[name], of, segments)
                return True
        return False

    def fits(self, destination: str, size: int) -> bool:
        """Whether `size` more bytes fit as it is: nothing is shed for them."""
        return self._need(self._ledger.queues[destination], size).is_met()

    def has_disk_for(self, size: int) -> bool:
        """Whether the disk has room for so much, whatever the quotas say."""
        return self._lacking(size) <= 0

    def _need(self, queue: Queue, size: int, uid: int | None = None) -> _Need:
        taken = queue.stored_bytes + self._committer.append_bytes(queue.name) + size
        quota = self._ledger.limits.quotas.get(queue.name, 0)
        if uid is not None and self._has_others(queue, uid) and self._held_by(queue, uid) + size > quota // _LITTLE:
            quota -= quota // _KEPT
        return _Need(taken - quota, self._lacking(size))

    def _has_others(self, queue: Queue, uid: int) -> bool:
        """Whether anybody else sends records."""
        senders = self._ledger.senders
        if len(senders) < 2:  # noqa: PLR2004 - of two at least one is another, whoever asks
            senders.add(uid)
        return not senders <= {uid} or not queue.index.uid_bytes.keys() <= {uid, None}

    def _held_by(self, queue: Queue, uid: int) -> int:
        return queue.index.uid_bytes.get(uid, 0) + self._committer.append_bytes(queue.name, uid)

    def _lacking(self, size: int) -> int:
        """How much of the disk is lacking."""
        return _COST * size - self._committer.free_inside(_COST) if self._ledger.disk_full else 0

    # -- shedding ----------------------------------------------------------------------------------------------------

    def _sources(self, queue: Queue, need: _Need) -> list[Queue]:
        """Its own queue first; for room on the disk the others as well, the largest first."""
        others = [other for other in self._ledger.queues.values() if other is not queue] if need.disk > 0 else []
        return [queue, *sorted(others, key=lambda other: -other.stored_bytes)]

    def _choose(
        self, queue: Queue, loss: LossClass, need: _Need, *, is_own: bool, uid: int | None = None
    ) -> Iterator[Segment]:
        """The oldest of a class, of those who hold most, until there is what is needed and a step more; `need` goes down with them."""
        quota = SHED_STEP if is_own and need.quota > 0 else 0
        disk = SHED_STEP if need.disk > 0 else 0
        if not queue.index.class_bytes[loss]:
            return
        for segment in self._by_holder(queue, uid if is_own else None):
            if not (quota and need.quota > -quota) and not (disk and need.disk > -disk):
                return
            if segment.loss is not loss or self._is_sealed(queue, segment):
                continue
            if not quota and not _frees(segment):
                continue  # of a row that shares its page nobody knows what it gives
            need.quota -= segment.size if is_own else 0
            need.disk -= _frees(segment)
            yield segment

    def _by_holder(self, queue: Queue, uid: int | None) -> Iterable[Segment]:
        """Segments in the order in which they are given up; those of users who hold no more than the `uid` or their share are left out."""
        held = queue.index.uid_bytes
        if len(held) <= 1 and held.keys() <= {uid, None}:
            return queue.index
        own = 0 if uid is None else self._held_by(queue, uid)
        fair = 0 if uid is None else queue.stored_bytes // len(held.keys() | {uid})
        giving = [each for each, size in held.items() if each in (uid, None) or (size > fair and size >= own)]
        giving.sort(key=lambda each: (each is not None, -held[each]))
        return (segment for each in giving for segment in queue.index if segment.uid == each)

    def _is_sealed(self, queue: Queue, segment: Segment) -> bool:
        return self._ledger.seals.covers(queue.name, segment)

    def _shed(self, queue: Queue, loss: LossClass, segments: list[Segment]) -> None:
        queue.take_out(segments)
        reached(Point.SHED_TAKEN)
        for segment in segments:
            self._committer.shed(queue.name, segment, _frees(segment))
            self._ledger.lose(queue.name, segment, State.SHED, Cause.QUEUE_FULL)
        self._say(queue, loss, sum(segment.live for segment in segments))
        reached(Point.SHED_BOOKED)
        self._committer.wake()
        self._tell(queue.name, queue.released())

    def _say(self, queue: Queue, loss: LossClass, records: int) -> None:
        """A line a second at most: a full queue may give up something for each record that comes."""
        now, key = self._ledger.now_us(), (queue.name, loss)
        said_us, unsaid = self._said.get(key, (0, 0))
        if 0 <= now - said_us < _LOG_EVERY_US:
            self._said[key] = said_us, unsaid + records
            return
        self._said[key] = now, 0
        log.warning(
            "%s: %s full, shed %d %s records%s", queue.name, "disk" if self._ledger.disk_full else "queue", records, loss,
            f" ({unsaid} more since the last line)" if unsaid else "",
            extra={"action": "shed", "destination": queue.name},
        )  # fmt: skip

    # -- the disk ----------------------------------------------------------------------------------------------------

    def check_disk(self) -> None:
        """Look at the free space; call it now and then. All is as before as soon as there is room again."""
        ledger = self._ledger
        free = ledger.folder.free_bytes()
        if ledger.disk_low is not (free < LOW_BYTES):
            ledger.disk_low = not ledger.disk_low
            self._committer.measure()
        if ledger.disk_full:
            # a disk that fails says nothing by its free space: it is well when a commit has gone through
            if free > FLOOR_BYTES and not self._committer.broken and ledger.folder.refill_ballast():
                ledger.disk_full = False
                self._committer.recovered()
                log.warning("the disk takes records again", extra={"action": "disk_recovered"})
                self._found()
        elif free < FLOOR_BYTES:
            ledger.disk_full = True
            ledger.free_inside = 0
            self._committer.measure()
            log.error(
                "disk nearly full (%d bytes free): what there is no room for is refused",
                free,
                extra={"action": "disk_full"},
            )

    @property
    def kept_bytes(self) -> int:
        """How much free room within the store does not go back to the file system: on a full disk there is no other."""
        return KEPT_BYTES if self._ledger.disk_low or self._ledger.disk_full else 0


def _frees(segment: Segment) -> int:
    """What deleting its row surely gives: all of its pages but those that it shares."""
    return max(0, segment.size - 2 * _PAGE_BYTES)
