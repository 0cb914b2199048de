"""Intake's side of the spool: room, numbers, references, and rows of its own (streams, the dedupe window, owners of runs)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from agentd.errors import SpoolDamaged
from agentd.queued import Entry, Ref, Refused
from agentd.records import LossClass
from agentd.spool.checked import pack, unpack
from agentd.spool.dead import DeadLetters
from agentd.spool.spool import Spool
from agentd.spool.store import Put, Rows, key_of, row_of
from agentd.spool.tables import Table


class SpoolShelf:
    """Forwards to the spool."""

    def __init__(self, spool: Spool, letters: DeadLetters | None = None) -> None:
        self._spool = spool
        self._letters = letters or DeadLetters(spool)

    def room_for(self, destination: str, size: int, loss: LossClass, uid: int | None = None) -> bool:
        return self._spool.room_for(destination, size, loss, uid)

    def quota(self, destination: str) -> int:
        return self._spool.limits.quotas.get(destination, 0)

    def number(self, destination: str) -> int:
        return self._spool.number(destination)

    def owners(self, kind: str, local_id: str) -> Sequence[Ref]:
        return self._spool.refs.owners(kind, local_id)

    def introduce(self, ref: Ref) -> Ref:
        return self._spool.refs.introduce(ref)

    def append(
        self, copies: dict[str, list[Entry]], *, puts: Sequence[Put] = (), introduced: Sequence[Ref] = ()
    ) -> asyncio.Future[None]:
        return self._spool.append(copies, puts=puts, introduced=introduced)

    def stream_row(self, row: int, value: bytes) -> Put:
        return Put(key_of(Table.STREAM, row), pack(value))

    def new_stream_row(self) -> int:
        return self._spool.take_row(Table.STREAM)

    def keep_stream(self, row: int, value: bytes) -> None:
        """Write a row with the next commit, or the first one after it that has room."""
        _ = self._spool.put(self.stream_row(row, value), ())  # nobody waits for it

    def drop_streams(self, rows: Sequence[int]) -> None:
        """Take rows of streams that nobody will come back for out."""
        self._spool.drop_rows(Table.STREAM, rows)

    def seen(self, value: bytes, count: int) -> Put:
        return self._spool.seen(value, count)

    def keep_invalid(self, refused: Sequence[Refused]) -> asyncio.Future[None] | None:
        """Keep what was refused as invalid; done when it is on disk, None where nothing new was kept."""
        kept = [self._letters.keep_invalid(one) for one in refused]
        return self._spool.barrier() if any(kept) else None

    async def wait_for_room(self) -> None:
        await self._spool.wait_for_room()

    # -- who owns which run ------------------------------------------------------------------------------------------

    def new_owner_row(self) -> int:
        return self._spool.take_row(Table.OWNER)

    def owner_row(self, row: int, value: bytes) -> Put:
        return Put(key_of(Table.OWNER, row), pack(value))

    def keep_owners(self, rows: Sequence[tuple[int, bytes]]) -> None:
        """Write rows with the next commit, or the first one after it that has room."""
        for row, value in rows:
            _ = self._spool.put(self.owner_row(row, value), ())  # nobody waits for it

    def drop_owners(self, rows: Sequence[int]) -> None:
        self._spool.drop_rows(Table.OWNER, rows)

    async def stored_owners(self) -> list[tuple[int, bytes | None]]:
        """(row, value) of every run that is watched, at a start; None for a row that is damaged."""
        return [(row, _unpacked(value)) for row, value in await self._spool.run_in_thread(_rows, Table.OWNER)]

    def withdraw(self, destination: str, lane: str, record_id: bytes) -> bool:
        """Book a record out of its queue, as shed for a newer one; False where a seal has it, or the window does not."""
        queue = self._spool.queues[destination]
        entry = next((entry for entry in queue.peek(lane) if entry.record_id == record_id), None)
        seals = self._spool.seals.of_lane(destination, lane)
        if entry is None or any(s.first <= entry.number <= s.last and entry.number not in s.exceptions for s in seals):
            return False
        _ = self._spool.discard_stale(
            destination, [entry]
        )  # nobody waits for it: after a crash both are there, in order
        return True

    # -- at a start --------------------------------------------------------------------------------------------------

    async def stored_streams(self) -> list[tuple[int, bytes]]:
        """(row, value) of every stream, at a start; recovery has set aside those that are damaged."""
        return _whole(await self._spool.run_in_thread(_rows, Table.STREAM))

    async def stored_ids(self) -> list[tuple[int, bytes]]:
        """(row, value) of the dedupe window, oldest first, at a start; but for what is damaged, as above."""
        return _whole(await self._spool.run_in_thread(_rows, Table.SEEN))


def _whole(rows: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    return [(row, inner) for row, value in rows if (inner := _unpacked(value)) is not None]


def _unpacked(value: bytes) -> bytes | None:
    try:
        return unpack(value)
    except SpoolDamaged:
        return None


def _rows(store: Rows, table: Table) -> list[tuple[int, bytes]]:
    return [(row_of(key), value) for key, value in store.rows(table)]
