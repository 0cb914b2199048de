"""Reading: rows of the store into the windows of the queues, and what an operator asks to see.

A row that can't be read is set aside under `quarantine/`, booked and deleted; a store that can't be read just now is asked
again later, since a busy or failing disk says nothing about the row.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable

from agentd.errors import SpoolDamaged, StateError
from agentd.outcomes import Cause, State
from agentd.queued import Entry
from agentd.spool import segments
from agentd.spool.committer import RETRY_S, Committer
from agentd.spool.folder import Folder
from agentd.spool.ledger import Ledger
from agentd.spool.mending import bury_introducers
from agentd.spool.storage import Storage
from agentd.spool.store import Put, Rows
from agentd.spool.tables import ended_key

log = logging.getLogger("agentd.spool")

_RECOUNTS = 3  # a lane's segments may be rewritten while they are counted


class Loader:
    """One task per destination, as long as its queue says what to read next."""

    def __init__(self, ledger: Ledger, storage: Storage, committer: Committer, retry_s: float = RETRY_S) -> None:
        self._ledger = ledger
        self._storage = storage
        self._committer = committer
        self._retry_s = retry_s
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._listeners: dict[str, Callable[[set[str]], None]] = {}

    def listen(self, name: str, listener: Callable[[set[str]], None]) -> None:
        self._listeners[name] = listener

    def tell(self, name: str, lanes: set[str]) -> None:
        """These lanes of a destination may be taken from now, or further than before."""
        listener = self._listeners.get(name)
        if listener is not None and lanes:
            listener(lanes)

    def fill(self, name: str) -> None:
        """See to it that the window of a destination is read from disk as far as there is room."""
        task = self._tasks.get(name)
        if task is None or task.done():
            self._tasks[name] = asyncio.create_task(self._load(name), name=f"spool window {name}")

    async def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _load(self, name: str) -> None:
        queue = self._ledger.queues[name]
        while (key := queue.next_load()) is not None:
            try:
                entries = await self._storage.run(read_segment, key)
                queue.check(key, entries)
            except SpoolDamaged as error:
                is_kept = await self._storage.run(_keep_copy, self._ledger.folder, key)
                self._set_aside(name, key, error, is_kept=is_kept)
            except sqlite3.OperationalError as error:
                queue.load_failed()
                log.error("%s: can't read: %s; trying again", name, error, extra={"action": "read_failed"})
                await asyncio.sleep(self._retry_s)
            else:
                self.tell(name, queue.loaded(key, entries))
        self.tell(name, queue.released())

    def _set_aside(self, name: str, key: int, error: SpoolDamaged, *, is_kept: bool) -> None:
        """Out of the queue. What a full disk has no room to keep a copy of stays where it is until the next start."""
        segment = self._ledger.queues[name].unreadable(key)
        if segment is None:
            return
        self._ledger.quarantined_rows += 1
        log.error(
            "%s: %s: %d records (numbers %d-%d) set aside",
            name, error, segment.live, segment.first, segment.last, extra={"action": "quarantine", "destination": name},
        )  # fmt: skip
        self._ledger.lose(name, segment, State.QUARANTINED, Cause.DAMAGED)
        bury_introducers(self._ledger, name, segment)
        if is_kept:
            self._committer.delete_segment(key)
        else:
            self._committer.put(Put(ended_key(key), segment.end_all()))
        self._committer.wake()

    async def count_lane(self, name: str, lane: str) -> int:
        """How many records of a lane are queued; reads the segments that may hold them."""
        count = None
        for _ in range(_RECOUNTS):
            count, rewritten = await self._count(name, lane)
            if not rewritten:
                break
        return count or 0

    async def _count(self, name: str, lane: str) -> tuple[int, bool]:
        count = 0
        for segment in self._ledger.queues[name].index.holding(lane):
            try:
                entries = await self._storage.run(read_segment, segment.key)
            except SpoolDamaged:
                if segment.gone:
                    return count, True
                continue  # the window's loader books it when it comes to it
            count += sum(1 for entry in entries if entry.lane == lane and not segment.has_ended(entry.index))
        return count, False


def read_segment(store: Rows, key: int) -> list[Entry]:
    """The records of a row. Raises SpoolDamaged."""
    value = store.read(key)
    if value is None:
        raise SpoolDamaged(f"segment {key:#x}: its row is gone")
    return segments.decode(key, value)[1]


def _keep_copy(store: Rows, folder: Folder, key: int) -> bool:
    try:
        value = store.read(key) or b""
        folder.keep("segments", f"{key:x}", value)
    except (StateError, sqlite3.Error, OSError) as error:
        log.error("can't keep a copy of segment %#x: %s", key, error, extra={"action": "quarantine"})
        return False
    return True
