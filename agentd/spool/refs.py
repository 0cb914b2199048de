"""References: the platform's id for a client-made one, and whose it is. Durable: they outlive their run by `runs.keep`.

A reference belongs to (destination, kind, id) and to the agent that introduced it. Its life: `introduced` by an admitted
run.start or decision → `known` once the platform has named it, or `dead` when the introducer was refused for good.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterator

import msgspec

from agentd.errors import SpoolDamaged
from agentd.queued import DEAD, INTRODUCED, KNOWN, Ref, is_anothers, made_up
from agentd.spool.checked import UNREADABLE, pack, unpack

log = logging.getLogger("agentd.spool")


class Refs:
    """All references, in memory; `changed` holds the rows that the next commit writes."""

    def __init__(self) -> None:
        self._refs: dict[tuple[str, str, str], Ref] = {}
        self._by_id: dict[tuple[str, str], list[Ref]] = {}
        self._by_number: dict[tuple[str, int], Ref] = {}  # those whose introducer has not ended
        self._by_name: dict[str, tuple[Ref, ...]] = {}  # by what a platform calls it
        self._next_row = 1
        self.changed: dict[int, Ref] = {}
        self.removed: list[int] = []
        self._counted: dict[int, Ref] = {}
        self._replaced: dict[int, Ref] = {}  # dead ones, until what takes their place is on disk

    def __len__(self) -> int:
        return len(self._refs)

    def __iter__(self) -> Iterator[Ref]:
        return iter(self._refs.values())

    def get(self, destination: str, kind: str, local_id: str) -> Ref | None:
        return self._refs.get((destination, kind, local_id))

    def find(self, destination: str, kind: str, local_id: str) -> Ref | None:
        """As `get`, for who needs it: what a client made up is dead."""
        return self.get(destination, kind, local_id) or made_up(destination, kind, local_id)

    def owners(self, kind: str, local_id: str) -> list[Ref]:
        """The references of that id at whichever destination; where nobody introduced it, those that go by it there.

        A platform's id is no way round whose a thing is: it stands in answers, pages and logs, and is no secret.
        """
        own = self._by_id.get((kind, local_id), [])
        called = self._by_name.get(local_id)
        if called is None:
            return own
        here = {ref.destination for ref in own}
        return own + [ref for ref in called if ref.kind == kind and ref.destination not in here]

    def named(self, destination: str, kind: str, platform_id: str) -> list[Ref]:
        """The references that the platform knows under this id: one owner's, who may have begun one thing twice."""
        called = self._by_name.get(platform_id, ())
        return [ref for ref in called if (ref.destination, ref.kind) == (destination, kind)]

    def introduce(self, ref: Ref) -> Ref:
        """Add a reference, or give the one that exists: a repeated introduction changes nothing.

        It reaches the disk with the append that introduces it (`Append.introduced`).
        """
        known = self._refs.get((ref.destination, ref.kind, ref.local_id))
        if known is not None and known.state != DEAD:
            return known
        if known is not None:
            self._replaced[known.row] = known
        ref.row = known.row if known else self._take_row()
        self._put(ref)
        return ref

    def stored(self, ref: Ref) -> None:
        """The introducing record is on disk."""
        self._replaced.pop(ref.row, None)

    def put(self, ref: Ref) -> Ref:
        """Add or replace a reference in whatever state; it reaches the disk with the next commit."""
        known = self._refs.get((ref.destination, ref.kind, ref.local_id))
        ref.row = known.row if known else self._take_row()
        self._put(ref)
        self.changed[ref.row] = ref
        return ref

    def withdraw(self, ref: Ref) -> Ref | None:
        """The introducing record was not kept after all. Returns the dead reference whose place it had: that one stands again."""
        if self._refs.get((ref.destination, ref.kind, ref.local_id)) is not ref:
            return None
        before = self._replaced.pop(ref.row, None)
        if before is None:
            self._remove(ref)
        else:
            self._put(before)
            self.changed[ref.row] = before
        return before

    def learn(self, destination: str, kind: str, local_id: str, platform_id: str, now_us: int) -> Ref | None:
        """The platform has named it. Returns the reference, None if there is none of that id.

        A platform that knows repeats by a key of the client's answers whoever guesses the key with what is another's. That
        is not given away: the reference is dead, and the first owner keeps what is his.
        """
        ref = self._refs.get((destination, kind, local_id))
        if ref is not None and any(is_anothers(other, ref) for other in self.named(destination, kind, platform_id)):
            log.warning(
                "%s: %s %r of uid %d turned out to be another's at the platform (%s): what names it is not sent",
                destination, kind, local_id[:64], ref.uid, platform_id[:64],
                extra={"action": "foreign_reference", "destination": destination},
            )  # fmt: skip
            ref.state = DEAD
            self.changed[ref.row] = ref
            self._by_number.pop((destination, ref.number), None)
        elif ref is not None and (ref.platform_id != platform_id or ref.state != KNOWN):
            self._unname(ref)
            ref.platform_id, ref.state, ref.touched_us = platform_id, KNOWN, now_us
            self._name(ref)
            self.changed[ref.row] = ref
            self._by_number.pop((destination, ref.number), None)
        return ref

    def bury(self, destination: str, number: int) -> None:
        """The record of that number was refused for good: what needs the reference that it introduced can't be sent."""
        ref = self._by_number.pop((destination, number), None)
        if ref is not None:
            ref.state = DEAD
            self.changed[ref.row] = ref

    def close(self, destination: str, kind: str, local_id: str) -> None:
        """The run has ended; later records are sent, and dead with cause `run_ended` if the platform refuses them."""
        ref = self._refs.get((destination, kind, local_id))
        if ref is not None and not ref.ended:
            ref.ended = True
            self.changed[ref.row] = ref

    def count(self, destination: str, lane: str, records: int, now_us: int) -> None:
        """Records of the lane's reference were delivered: it is in use."""
        kind, _, local_id = lane.partition(":")
        ref = self._refs.get((destination, kind, local_id))
        if ref is not None:
            ref.delivered += records
            ref.touched_us = now_us
            self._counted[ref.row] = ref

    def write_counts(self) -> bool:
        """Have the counts written with the next commit; True if there are any."""
        self.changed.update(self._counted)
        found = bool(self._counted)
        self._counted.clear()
        return found

    def prune(self, is_old: Callable[[int], bool], needed: Container[tuple[str, str]] = ()) -> int:
        """Forget what was touched so long ago, but for what the lanes in `needed` wait for. Returns how many.

        The caller knows that nothing queued needs what `is_old`.
        """
        old = [
            ref
            for ref in self._refs.values()
            if is_old(ref.touched_us) and (ref.destination, f"{ref.kind}:{ref.local_id}") not in needed
        ]
        for ref in old:
            self._remove(ref)
        return len(old)

    def forget(self, destination: str) -> int:
        """The destination is another one now: what the old one called things means nothing to it."""
        old = [ref for ref in self._refs.values() if ref.destination == destination]
        for ref in old:
            self._remove(ref)
        return len(old)

    def _remove(self, ref: Ref) -> None:
        del self._refs[ref.destination, ref.kind, ref.local_id]
        same = self._by_id[ref.kind, ref.local_id]
        same.remove(ref)
        if not same:
            del self._by_id[ref.kind, ref.local_id]
        self._unname(ref)
        self._by_number.pop((ref.destination, ref.number), None)
        self.changed.pop(ref.row, None)
        self._counted.pop(ref.row, None)
        self._replaced.pop(ref.row, None)
        self.removed.append(ref.row)

    def restore(self, rows: Iterator[tuple[int, bytes]]) -> list[int]:
        """Read the rows of a start; gives the numbers of those that can't be read."""
        damaged = []
        for row, value in rows:
            try:
                ref = msgspec.msgpack.decode(unpack(value), type=Ref)
            except (SpoolDamaged, *UNREADABLE):
                damaged.append(row)
                continue
            ref.row = row
            self._next_row = max(self._next_row, row + 1)
            self._put(ref)
        return damaged

    def _take_row(self) -> int:
        self._next_row += 1
        return self._next_row - 1

    def _put(self, ref: Ref) -> None:
        key = (ref.destination, ref.kind, ref.local_id)
        old = self._refs.get(key)
        same = self._by_id.setdefault((ref.kind, ref.local_id), [])
        if old is not None:
            same.remove(old)
            self._unname(old)
            self._by_number.pop((old.destination, old.number), None)
        self._refs[key] = ref
        same.append(ref)
        self._name(ref)
        if ref.state == INTRODUCED:
            self._by_number[ref.destination, ref.number] = ref

    def _name(self, ref: Ref) -> None:
        if ref.platform_id is not None:
            self._by_name[ref.platform_id] = (*self._by_name.get(ref.platform_id, ()), ref)

    def _unname(self, ref: Ref) -> None:
        if ref.platform_id is None:
            return
        left = tuple(other for other in self._by_name.get(ref.platform_id, ()) if other is not ref)
        if left:
            self._by_name[ref.platform_id] = left
        else:
            self._by_name.pop(ref.platform_id, None)


def encode(ref: Ref) -> bytes:
    """The row of a reference."""
    return pack(msgspec.msgpack.encode(ref))
