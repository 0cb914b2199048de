"""Receipts: what the journal says was delivered, the newest first. Reads the journal's rows from their new end; see `census`."""

from __future__ import annotations

import logging
from collections.abc import Callable

from msgspec import Struct, field

from agentd.errors import SpoolDamaged
from agentd.outcomes import State
from agentd.queued import Source
from agentd.spool import journal
from agentd.spool.census import Interrupted
from agentd.spool.journal import Note
from agentd.spool.store import Rows, key_of
from agentd.spool.tables import Table

log = logging.getLogger("agentd.spool")

SEARCHED_BYTES = 256 * 2**20  # the whole journal as it is by default; about a second for each 40 MB


class WantedReceipts(Struct, frozen=True):
    """Which are meant; what is None leaves nothing out. `age_us` and `mine` are as in `census.Wanted`."""

    age_us: Callable[[int], int]
    destination: str | None = None
    run: str | None = None
    kind: str | None = None
    agent: str | None = None
    since_us: int | None = None  # how long ago at most
    mine: Callable[[str, Source], bool] | None = None

    def matches(self, note: Note) -> bool:
        return (
            note.state is State.DELIVERED
            and (self.destination is None or note.destination == self.destination)
            and (self.run is None or self.run == note.run or note.lane == f"run:{self.run}")
            and (self.kind is None or note.kind == self.kind)
            and (self.agent is None or note.agent == self.agent)
            and (self.since_us is None or self.age_us(note.at_us) <= self.since_us)
            and (self.mine is None or self.mine(note.destination, Source(note.agent, note.uid, 0, "")))
        )


class Receipts(Struct):
    """The notes of deliveries. `complete` is False where the journal goes further back than was searched."""

    notes: list[Note] = field(default_factory=list)
    complete: bool = True
    damaged: int = 0


def receipts(
    store: Rows,
    rows: range,
    wanted: WantedReceipts,
    limit: int,
    *,
    stop: Callable[[], bool] = lambda: False,
    max_bytes: int = SEARCHED_BYTES,
) -> Receipts:
    """The `limit` newest that match. `rows` are the journal's, oldest to newest (`Journal.rows`). Raises Interrupted."""
    found = Receipts()
    searched = 0
    for row in reversed(rows):
        if stop():
            raise Interrupted
        if searched > max_bytes:
            found.complete = False
            return found
        value = store.read(key_of(Table.JOURNAL, row))
        if value is None:  # of a commit that is still under way, or let go for its age since
            continue
        searched += len(value)
        try:
            notes = journal.decode(value)
        except SpoolDamaged as error:
            log.warning("journal row %d: %s: left out", row, error, extra={"action": "damaged"})
            found.damaged += 1
            continue
        if _are_older(notes, wanted):
            return found
        for note in reversed(notes):
            if wanted.matches(note):
                found.notes.append(note)
                if len(found.notes) == limit:
                    return found
    return found


def _are_older(notes: list[Note], wanted: WantedReceipts) -> bool:
    """Whether all of a row, and so all before it, is older than what is meant."""
    return bool(notes) and wanted.since_us is not None and wanted.age_us(notes[-1].at_us) > wanted.since_us
