"""What becomes of dead letters: back into their queue (replay), away for good (purge), or into their room (invalid).

A replay keeps the record's id, and with it the idempotency key, and takes the end of its lane; what an introducer has carried
with it follows behind it in the old order. Each step is one commit: letter, queue, references, books and journal agree after
any crash. One replay or purge at a time.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec
from msgspec import Struct, field

from agentd.errors import SpoolDamaged, SpoolFull
from agentd.outcomes import Cause, State
from agentd.queued import DEAD, Death, Entry, Ref, Source
from agentd.records import INTRODUCES, LossClass
from agentd.spool import letters
from agentd.spool.letters import Brief, Letter, Wanted
from agentd.spool.spool import Spool
from agentd.spool.store import Rows
from agentd.spool.tables import Table
from agentd.spool.writer import Returned
from agentd.wire import decode_record

log = logging.getLogger("agentd.spool")

_STEP_BYTES = 2 * 2**20  # of letters in one commit
_INVALID_SHARE = (
    8  # what was refused at intake fills this part of the room at most: a bad client must pause no destination
)
_OVERHEAD = 64  # bytes of a record in its segment beside its own


class Found(NamedTuple):
    """A letter's row: enough to choose it by, not its contents."""

    key: int
    brief: Brief
    size: int


class Replayed(Struct):
    """What came of a replay. `left` says why letters stay, and how many for that reason."""

    replayed: int = 0
    left: Counter[str] = field(default_factory=Counter)


class DeadLetters:
    """The dead letters of an open spool."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._ledger = spool.ledger
        self._busy = asyncio.Lock()

    async def find(self, wanted: Wanted) -> list[Found]:
        """Those that are meant, the oldest first."""
        return await self._spool.run_in_thread(find, wanted)

    async def read(self, found: Sequence[Found]) -> list[Letter]:
        """Their contents; what is gone meanwhile or damaged is left out."""
        rows = await self._spool.run_in_thread(read, found)
        return [letter for _, letter in rows if letter is not None]

    # -- replay ------------------------------------------------------------------------------------------------------

    async def replay(self, wanted: Wanted, by: int, *, force: bool = False) -> Replayed:
        """Put them back into their queues, for the user `by`. `force` takes those along that may have acted.

        What a chosen introducer has carried with it comes along. `left` counts by: outcome_unknown, introducer_dead,
        gate_unavailable (its reference is still dead), invalid (refused at intake: it has no queue), no_destination, spool_full,
        damaged.
        """
        async with self._busy:
            result = Replayed()
            chosen = self._choose(await self.find(wanted), await self.find(Wanted()), result, force=force)
            for step in _steps(chosen):
                rows = await self._spool.run_in_thread(read, step)
                letters_ = [(found, letter) for found, letter in rows if letter is not None]
                result.left["damaged"] += len(rows) - len(letters_)
                try:
                    await self._give_back(letters_, by)
                except SpoolFull:
                    result.left["spool_full"] = len(chosen) - result.replayed - result.left["damaged"]
                    break
                result.replayed += len(letters_)
            result.left = +result.left
            return result

    def _choose(self, found: Sequence[Found], every: Sequence[Found], result: Replayed, *, force: bool) -> list[Found]:
        """The letters to replay, in the order of their old numbers."""
        dead = {(ref.destination, ref.number): ref for ref in self._spool.refs if ref.state == DEAD}
        introducers = [dead[place] for one in found if (place := (one.brief.destination, one.brief.number)) in dead]
        carried = {(ref.destination, f"{ref.kind}:{ref.local_id}") for ref in introducers}
        chosen = {one.key: one for one in found}
        for one in every:
            brief = one.brief
            if brief.cause == Cause.INTRODUCER_DEAD and (brief.destination, brief.lane) in carried:
                chosen[one.key] = one
        numbers = {(one.brief.destination, one.brief.number) for one in chosen.values()}
        taken = []
        for one in sorted(chosen.values(), key=lambda one: (one.brief.destination, one.brief.number, one.key)):
            reason = self._obstacle(one.brief, numbers, force=force)
            if reason is None:
                taken.append(one)
            else:
                result.left[reason] += 1
        return taken

    def _obstacle(self, brief: Brief, numbers: set[tuple[str, int]], *, force: bool) -> str | None:
        if not brief.destination:
            return "invalid"
        if brief.destination not in self._spool.queues:
            return "no_destination"
        if brief.cause == Cause.OUTCOME_UNKNOWN and not force:
            return brief.cause
        if brief.cause in (Cause.INTRODUCER_DEAD, Cause.GATE_UNAVAILABLE):
            kind, _, local_id = brief.lane.partition(":")
            ref = self._spool.refs.get(brief.destination, kind, local_id)
            if ref is not None and ref.state == DEAD and (brief.destination, ref.number) not in numbers:
                return brief.cause
        return None

    async def _give_back(self, step: Sequence[tuple[Found, Letter]], by: int) -> None:
        """Raises SpoolFull; then nothing of the step has changed."""
        for name in sorted({letter.destination for _, letter in step}):
            mine = [(found, letter) for found, letter in step if letter.destination == name]
            size = sum(len(letter.body) + _OVERHEAD for _, letter in mine)
            if not self._spool.room_for(name, size, LossClass.KEEP):
                raise SpoolFull
            entries = [letter.entry(self._spool.number(name)) for _, letter in mine]
            introduced = [ref for entry in entries if (ref := self._introduce(name, entry)) is not None]
            back = [Returned(found.key, found.brief, found.size) for found, _ in mine]
            await self._spool.give_back(name, entries, returned=back, introduced=introduced, by=by)

    def _introduce(self, name: str, entry: Entry) -> Ref | None:
        """What it introduces is waited for again, unless it became known by another record meanwhile."""
        if entry.kind not in INTRODUCES:
            return None
        kind, field_name = INTRODUCES[entry.kind]
        try:
            local_id = getattr(decode_record(entry.body), field_name)
        except msgspec.MsgspecError:
            return None
        if local_id is None:
            return None
        ref = Ref(
            name, kind, local_id, entry.source.agent, entry.source.uid, entry.number,
            touched_us=self._ledger.now_us(), lane=entry.lane,
        )  # fmt: skip
        return ref if self._spool.refs.introduce(ref) is ref else None

    # -- purge -------------------------------------------------------------------------------------------------------

    async def purge(self, wanted: Wanted, by: int, reason: str) -> int:
        """Take them away for good; the journal keeps who, when, why and the digest of each. Returns how many."""
        async with self._busy:
            chosen = await self.find(wanted)
            for step in _steps(chosen):
                rows = await self._spool.run_in_thread(read, step)
                for found, letter in rows:
                    self._purge_one(found, letter, by, reason)
                await self._spool.barrier()
            if chosen:
                log.warning("%d dead letters purged by uid %d: %s", len(chosen), by, reason, extra={"action": "purged"})
            return len(chosen)

    def _purge_one(self, found: Found, letter: Letter | None, by: int, reason: str) -> None:
        brief, books = found.brief, self._spool.books
        books.end(brief.destination, brief.kind, State.DEAD, brief.cause, -1)
        books.end(brief.destination, brief.kind, State.PURGED, Cause.DROPPED)
        self._ledger.remove_letter(brief, found.size)
        self._spool.drop_keys([found.key])
        entry = _of_brief(brief) if letter is None else letter.entry(letter.number)
        self._spool.journal.note(
            entry,
            State.PURGED,
            brief.destination,
            self._ledger.now_us(),
            cause=str(Cause.DROPPED),
            by=by,
            reason=reason,
        )

    # -- refused at intake -------------------------------------------------------------------------------------------

    def keep_invalid(self, kind: str, record_id: bytes, body: bytes, source: Source, reason: str) -> bool:
        """A decision or lifecycle record that was refused as invalid, with the reason, as it was sent.

        It is booked as admitted and dead of no destination. False: these letters fill their part of the room already, and only the
        count of refusals knows of it.
        """
        ledger = self._ledger
        now = ledger.now_us()
        entry = Entry(0, record_id, "", kind, LossClass.KEEP, source, now, body)
        letter = letters.letter_of("", entry, Death(Cause.INVALID, reason), now)
        value, tag = letters.encode(letter)
        room = self._spool.limits.dead_bytes // _INVALID_SHARE
        if ledger.disk_full or ledger.invalid_bytes + len(value) > room or not self._spool.dead_room(len(value)):
            return False
        self._spool.books.admit("", kind)
        self._spool.books.end("", kind, State.DEAD, Cause.INVALID)
        self._spool.keep_letter(letter, value, tag)
        ledger.journal.note(entry, State.DEAD, "", now, cause=str(Cause.INVALID), reason=reason)
        return True


def _of_brief(brief: Brief) -> Entry:
    """What is known of a letter that can't be read."""
    source = Source("", brief.uid, 0, "damaged")
    return Entry(brief.number, brief.record_id, brief.lane, brief.kind, LossClass.KEEP, source, 0, b"")


def _steps(found: Sequence[Found]) -> Iterator[list[Found]]:
    """Letters of about `_STEP_BYTES` together, in their order."""
    step: list[Found] = []
    size = 0
    for one in found:
        if step and size + one.size > _STEP_BYTES:
            yield step
            step, size = [], 0
        step.append(one)
        size += one.size
    if step:
        yield step


# -- in the storage thread, or over a store that nobody writes ---------------------------------------------------------


def find(store: Rows, wanted: Wanted) -> list[Found]:
    """The letters that are meant, the oldest first; of rows of format 1 the value is read, since their tags say less."""
    found = []
    for key, tag, size in list(store.tags(Table.DEAD)):
        try:
            brief = letters.decode_brief(tag)
            if not brief.kind:
                brief = letters.brief_of(letters.decode(store.read(key) or b""), size)
        except SpoolDamaged as error:
            log.error("dead letter %#x can't be read: %s", key, error, extra={"action": "damaged"})
            continue
        if wanted.matches(brief):
            found.append(Found(key, brief, size))
    return found


def read(store: Rows, found: Sequence[Found]) -> list[tuple[Found, Letter | None]]:
    """Each with its contents, None for a damaged one; those that are gone are left out."""
    rows: list[tuple[Found, Letter | None]] = []
    for one in found:
        try:
            value = store.read(one.key)
            if value is not None:
                rows.append((one, letters.decode(value)))
        except SpoolDamaged as error:
            log.error("dead letter %#x can't be read: %s", one.key, error, extra={"action": "damaged"})
            rows.append((one, None))
    return rows
