"""Intake's side of the spool: room, numbers, references, and rows of its own (streams, the dedupe window)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from agentd.queued import Entry, Ref
from agentd.records import LossClass
from agentd.spool.spool import Spool
from agentd.spool.store import Put, Rows, key_of, row_of
from agentd.spool.tables import Table


class SpoolShelf:
    """Forwards to the spool."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool

    def room_for(self, destination: str, size: int, loss: LossClass) -> bool:
        return self._spool.room_for(destination, size, loss)

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
        return Put(key_of(Table.STREAM, row), value)

    def new_stream_row(self) -> int:
        return self._spool.take_row(Table.STREAM)

    def drop_streams(self, rows: Sequence[int]) -> None:
        """Take rows of streams that nobody will come back for out."""
        self._spool.drop_rows(Table.STREAM, rows)

    def seen(self, value: bytes, count: int) -> Put:
        return self._spool.seen(value, count)

    async def wait_for_room(self) -> None:
        await self._spool.wait_for_room()

    async def stored_streams(self) -> list[tuple[int, bytes]]:
        """(row, value) of every stream, at a start."""
        return await self._spool.run_in_thread(_rows, Table.STREAM)

    async def stored_ids(self) -> list[tuple[int, bytes]]:
        """(row, value) of the dedupe window, oldest first, at a start."""
        return await self._spool.run_in_thread(_rows, Table.SEEN)


def _rows(store: Rows, table: Table) -> list[tuple[int, bytes]]:
    return [(row_of(key), value) for key, value in store.rows(table)]
