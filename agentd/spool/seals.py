"""Seals: a batch's bounds, key and digest, on disk before its first try and never regrouped after it (promise 4)."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from agentd.errors import SpoolDamaged
from agentd.queued import Seal
from agentd.spool.checked import UNREADABLE, pack, unpack
from agentd.spool.directory import Segment
from agentd.spool.segments import lane_hash


class Seals:
    """The live seals, and the rows that hold them: one row per commit, deleted when all in it are retired."""

    def __init__(self) -> None:
        self._by_lane: dict[tuple[str, str], list[Seal]] = {}
        self._hashed: dict[str, dict[int, set[str]]] = {}  # destination → lane hash → its lanes with a seal
        self._rows: dict[int, int] = {}
        self._next_seq = 1

    def __len__(self) -> int:
        return sum(self._rows.values())

    def take_seq(self) -> int:
        self._next_seq += 1
        return self._next_seq - 1

    def of_lane(self, destination: str, lane: str) -> list[Seal]:
        """The lane's sealed batches in the order in which they are to be sent."""
        return self._by_lane.get((destination, lane), [])

    def all(self) -> list[Seal]:
        return [seal for seals in self._by_lane.values() for seal in seals]

    def lanes(self, destination: str) -> list[str]:
        return [lane for (d, lane) in self._by_lane if d == destination]

    def covers(self, destination: str, segment: Segment) -> bool:
        """Whether a segment of the destination may hold sealed records.

        A full queue asks that of all its segments for each record that comes: seals are found by the segment's lanes. With 2000 of
        either that takes 20 ms, and 0.8 s for every seal against every segment.
        """
        sealed = self._hashed.get(destination, {})
        if segment.hashes is None or len(sealed) < len(segment.hashes):
            found = [hashed for hashed in sealed if segment.may_hold(hashed)]
        else:
            found = [hashed for hashed in segment.hashes if hashed in sealed]
        return any(
            seal.first <= segment.last and segment.first <= seal.last
            for hashed in found
            for lane in sealed[hashed]
            for seal in self._by_lane[destination, lane]
        )

    def add(self, seals: Iterable[Seal], row: int) -> None:
        """Take new seals, which row `row` of the next commit holds."""
        for seal in seals:
            seal.row = row
            self._take(seal)
            self._rows[row] = self._rows.get(row, 0) + 1

    def _take(self, seal: Seal) -> None:
        lane = self._by_lane.get((seal.destination, seal.lane))
        if lane is None:
            lane = self._by_lane[seal.destination, seal.lane] = []
            self._hashed.setdefault(seal.destination, {}).setdefault(lane_hash(seal.lane), set()).add(seal.lane)
        lane.append(seal)
        lane.sort(key=lambda s: (s.first, s.seq))

    def retire(self, seal: Seal) -> int | None:
        """The batch has ended or was cut up. Returns the row to delete, if that was its last."""
        key = (seal.destination, seal.lane)
        lane = self._by_lane.get(key, [])
        if seal not in lane:
            return None
        lane.remove(seal)
        if not lane:
            del self._by_lane[key]
            self._unhash(seal)
        self._rows[seal.row] -= 1
        if self._rows[seal.row]:
            return None
        del self._rows[seal.row]
        return seal.row

    def _unhash(self, seal: Seal) -> None:
        hashed, sealed = lane_hash(seal.lane), self._hashed[seal.destination]
        sealed[hashed].remove(seal.lane)
        if not sealed[hashed]:
            del sealed[hashed]

    def restore(self, rows: Iterable[tuple[int, bytes]]) -> list[int]:
        """Read the rows of a start; gives the numbers of those that can't be read.

        A later seal takes the place of an earlier one over the same records: parts are sealed in the transaction that
        retires the whole, whose row may live on for the sake of its neighbours.
        """
        damaged: list[int] = []
        found: list[Seal] = []
        for row, value in rows:
            try:
                seals = msgspec.msgpack.decode(unpack(value), type=list[Seal])
            except (SpoolDamaged, *UNREADABLE):
                damaged.append(row)
                continue
            for seal in seals:
                seal.row = row
                found.append(seal)
                self._rows[row] = self._rows.get(row, 0) + 1
        found.sort(key=lambda s: -s.seq)
        for seal in found:
            self._next_seq = max(self._next_seq, seal.seq + 1)
            if not any(_replaces(later, seal) for later in self.of_lane(seal.destination, seal.lane)):
                seal.tried = True  # a daemon that died may have sent it
                self._take(seal)
            else:
                self._rows[seal.row] -= 1
        return damaged

    def empty_rows(self, rows: Iterable[int]) -> list[int]:
        """Those of the restored rows that hold no live seal."""
        self._rows = {row: count for row, count in self._rows.items() if count}
        return [row for row in rows if row not in self._rows]


def _replaces(later: Seal, earlier: Seal) -> bool:
    """A part of a batch that was cut up begins at a record of the whole."""
    return earlier.first <= later.first <= earlier.last and later.first not in earlier.exceptions


def encode(seals: list[Seal]) -> bytes:
    return pack(msgspec.msgpack.encode(seals))
