"""What becomes of dead letters: back into their queue (replay), away for good (purge), or into their room (invalid).

A replay keeps the record's id, and with it the idempotency key, and takes the end of its lane; what an introducer has carried
with it follows behind it in the old order. Each step is one commit: letter, queue, references, books and journal agree after
any crash. One replay or purge at a time.

What was refused at intake (cause `invalid`) has no queue: its replay is another admission, as its sender. Only once that is on
disk the letter goes; a crash between the two leaves both, and the next replay finds by the record's id that it was taken.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from itertools import groupby, islice
from sys import intern
from typing import NamedTuple, TypeAlias

import msgspec
from msgspec import Struct, field

from agentd.crashpoints import Point, reached
from agentd.errors import SpoolDamaged, SpoolFull
from agentd.outcomes import Cause, State
from agentd.queued import DEAD, Death, Entry, Ref, Refused, Source, is_anothers
from agentd.records import INTRODUCES, REFERENCE_FIELDS, LossClass
from agentd.spool import letters
from agentd.spool.booking import REPLAYED
from agentd.spool.letters import Brief, Letter, Wanted
from agentd.spool.spool import Spool
from agentd.spool.store import Rows, row_of
from agentd.spool.tables import Table
from agentd.spool.writer import Returned
from agentd.wire import decode_record

log = logging.getLogger("agentd.spool")

_STEP_BYTES = 2**19  # of letters in one commit: what has no room is left in steps of this size
_KEPT = 4  # one part in 4 of their room is kept for users who have little in it: less than one part in 16
_LITTLE = 16
_INVALID_SHARE = 8  # what was refused at intake fills this part of the room at most: no bad client pauses a destination
_OVERHEAD = 64  # bytes of a record in its segment beside its own
_PAGE_BYTES = 4 * 2**20  # of a listing: letters may hold a megabyte each
_REASONS = 20  # of admissions that are told apart; the rest is counted together
_WAITS_FOR_ANOTHER = frozenset({Cause.INTRODUCER_DEAD, Cause.GATE_UNAVAILABLE})
FULL = "spool_full"

Readmit: TypeAlias = Callable[[Refused], Awaitable[str | None]]


class Found(NamedTuple):
    """A letter's row: enough to choose it by, not its contents."""

    key: int
    brief: Brief
    size: int

    @property
    def place(self) -> tuple[str, int]:
        """Destination and number: what its reference knows its introducer by."""
        return self.brief.destination, self.brief.number


class Replayed(Struct):
    """What came of a replay. `left` says why letters stay, and how many for that reason."""

    replayed: int = 0
    left: Counter[str] = field(default_factory=Counter)


class DeadLetters:
    """The dead letters of an open spool. `readmit` takes what was refused at intake once more: None, or why it is refused again."""

    def __init__(self, spool: Spool) -> None:
        self.readmit: Readmit | None = None
        self._spool = spool
        self._ledger = spool.ledger
        self._busy = asyncio.Lock()
        self._listeners: list[Callable[[], None]] = []
        self._warned = False  # that there is no room for what was refused at intake

    def listen(self, listener: Callable[[], None]) -> None:
        """`listener` hears whenever letters have left their room."""
        self._listeners.append(listener)

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
        gate_unavailable (its reference is still dead), foreign_reference (its id is another's by now), no_destination,
        spool_full, damaged; and what is refused at intake again by the reason of that.
        """
        async with self._busy:
            result = Replayed()
            chosen = await self._choose(wanted, result, force=force)
            for name, found in groupby(chosen, key=lambda one: one.brief.destination):
                if name:
                    await self._replay_at(name, list(found), by, result)
                else:
                    await self._replay_refused(list(found), by, result)
            result.left = +result.left
            if chosen:
                log.info("%d dead letters replayed by uid %d", result.replayed, by, extra={"action": "replayed"})
            return result

    async def _choose(self, wanted: Wanted, result: Replayed, *, force: bool) -> list[Found]:
        """The letters to replay, by destination and there in the order of their old numbers."""
        chosen = {one.key: one for one in await self.find(wanted)}
        dead = {(ref.destination, ref.number): ref for ref in self._spool.refs if ref.state == DEAD}
        introducers = [dead[one.place] for one in chosen.values() if one.place in dead]
        if introducers:
            lanes = frozenset((ref.destination, f"{ref.kind}:{ref.local_id}") for ref in introducers)
            carried = await self.find(Wanted(cause=Cause.INTRODUCER_DEAD, lanes=lanes))
            chosen |= {one.key: one for one in carried}
        taken: list[Found] = []
        places: set[tuple[str, int]] = set()
        for one in sorted(chosen.values(), key=lambda one: one.brief.cause in _WAITS_FOR_ANOTHER):
            reason = self._obstacle(one.brief, places, force=force)
            if reason is None:
                taken.append(one)
                places.add(one.place)
            else:
                result.left[reason] += 1
        return sorted(taken, key=lambda one: (*one.place, one.key))

    def _obstacle(self, brief: Brief, places: set[tuple[str, int]], *, force: bool) -> str | None:
        """What is in the way of a letter where those at `places` are replayed with it."""
        if not brief.destination:
            return None if self.readmit is not None else Cause.INVALID
        if brief.destination not in self._spool.limits.quotas:
            return "no_destination"
        if brief.cause == Cause.OUTCOME_UNKNOWN and not force:
            return brief.cause
        if brief.cause in _WAITS_FOR_ANOTHER:
            kind, _, local_id = brief.lane.partition(":")
            ref = self._spool.refs.find(brief.destination, kind, local_id)
            if ref is not None and ref.state == DEAD and (brief.destination, ref.number) not in places:
                return brief.cause
        return None

    async def _replay_at(self, name: str, found: Sequence[Found], by: int, result: Replayed) -> None:
        """One destination's, in its order; what finds no room is left, and all behind it."""
        done = 0
        for step in _steps(found):
            rows = await self._spool.run_in_thread(read, step)
            whole = [(one, letter) for one, letter in rows if letter is not None]
            result.left["damaged"] += len(rows) - len(whole)
            own = [(one, letter) for one, letter in whole if not self._is_anothers(letter)]
            result.left[Cause.FOREIGN_REFERENCE] += len(whole) - len(own)
            try:
                if own:
                    await self._give_back(name, own, by)
            except SpoolFull:
                result.left[FULL] += len(own) + len(found) - done - len(step)
                return
            done += len(step)
            result.replayed += len(own)

    def _is_anothers(self, letter: Letter) -> bool:
        """Whether what it introduces or names has become another's since it was admitted, when nobody could tell."""
        refs = [self._spool.refs.get(letter.destination, kind, local_id) for kind, local_id in _ids_in(letter)]
        return any(ref is not None and letter.number < ref.number and is_anothers(ref, letter.source) for ref in refs)

    async def _give_back(self, name: str, step: Sequence[tuple[Found, Letter]], by: int) -> None:
        """Raises SpoolFull; then nothing of the step has changed."""
        size = sum(len(letter.body) + _OVERHEAD for _, letter in step)
        if not self._spool.fits(name, size):  # a letter is kept: no record is shed for it
            raise SpoolFull
        entries = [letter.entry(self._spool.number(name)) for _, letter in step]
        introduced = [ref for entry in entries if (ref := self._introduce(name, entry)) is not None]
        back = [Returned(found.key, found.brief, found.size) for found, _ in step]
        reached(Point.REPLAY_BEGUN)
        await self._spool.give_back(name, entries, returned=back, introduced=introduced, by=by)
        reached(Point.REPLAY_STORED)
        self._tell()

    def _introduce(self, name: str, entry: Entry) -> Ref | None:
        """What it introduces is waited for again, unless it became known by another record meanwhile."""
        place = INTRODUCES.get(entry.kind)
        local_id = None if place is None else _field(entry.body, place[1])
        if place is None or local_id is None:
            return None
        ref = Ref(
            name, place[0], local_id, entry.source.agent, entry.source.uid, entry.number,
            touched_us=self._ledger.now_us(), lane=entry.lane,
        )  # fmt: skip
        return ref if self._spool.refs.introduce(ref) is ref else None

    async def _replay_refused(self, found: Sequence[Found], by: int, result: Replayed) -> None:
        """Through admission once more; what is taken leaves the room."""
        assert self.readmit is not None  # noqa: S101 - `_obstacle` has seen to it
        for step in _steps(found):
            for one, letter in await self._spool.run_in_thread(read, step):
                if letter is None:
                    result.left["damaged"] += 1
                    continue
                refusal = await self.readmit(letter.refused())
                if refusal is None:
                    self._take_out(one, letter, by)
                    result.replayed += 1
                else:
                    known = refusal in result.left or len(result.left) < _REASONS
                    result.left[refusal if known else Cause.INVALID] += 1
        await self._spool.barrier()
        self._tell()

    def _take_out(self, found: Found, letter: Letter, by: int) -> None:
        """It was admitted after all: its destinations have it in their books now, and these never had it."""
        books, brief = self._spool.books, found.brief
        books.end("", brief.kind, State.DEAD, brief.cause, -1)
        books.admit("", brief.kind, -1)
        self._ledger.remove_letter(brief, found.size)
        self._spool.drop_keys([found.key])
        now = self._ledger.now_us()
        self._spool.journal.note(letter.entry(0), State.QUEUED, "", now, cause=REPLAYED, by=by)

    # -- purge -------------------------------------------------------------------------------------------------------

    async def purge(self, wanted: Wanted, by: int, reason: str) -> int:
        """Take them away for good; the journal keeps who, when, why and the digest of each. Returns how many."""
        async with self._busy:
            purged = 0
            for step in _steps(await self.find(wanted)):
                rows = await self._spool.run_in_thread(read, step)
                for found, letter in rows:
                    self._purge_one(found, letter, by, reason)
                reached(Point.PURGE_BEGUN)
                await self._spool.barrier()
                purged += len(rows)
                self._tell()
            if purged:
                log.warning("%d dead letters purged by uid %d: %s", purged, by, reason, extra={"action": "purged"})
            return purged

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

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()

    # -- refused at intake -------------------------------------------------------------------------------------------

    def keep_invalid(self, refused: Refused) -> bool:
        """A decision or lifecycle record that was refused as invalid, as it was sent; on disk with the next commit.

        It is booked as admitted and dead of no destination. The same bytes of the same user are kept once. False: it is known, or
        these letters fill their part of the room already, and only the count of refusals knows of it.
        """
        ledger = self._ledger
        if letters.repeat_of(refused.source.uid, refused.body) in ledger.invalid:
            return False
        now = ledger.now_us()
        entry = Entry(
            0,
            refused.record_id,
            refused.lane,
            refused.kind,
            LossClass.KEEP,
            refused.source,
            now,
            refused.body,
            redactions=refused.redactions,
        )
        letter = letters.letter_of("", entry, Death(Cause.INVALID, refused.reason), now)
        letter.allowed = refused.allowed
        value, tag = letters.encode(letter)
        room = self._spool.limits.dead_bytes // _INVALID_SHARE
        uid = refused.source.uid
        own = ledger.invalid_bytes[uid] + len(value)
        most = room if own <= room // _LITTLE else room - room // _KEPT  # the rest is for those who have little in it
        total = ledger.invalid_bytes.total() + len(value)
        full = ledger.disk_full or total > most or not self._spool.dead_room(len(value))
        if full and not self._warned:
            log.warning(
                "no room for what is refused as invalid: from now on it is counted and not kept; replay or purge some",
                extra={"action": "invalid_full"},
            )
        self._warned = full
        if full:
            return False
        self._spool.books.admit("", refused.kind)
        self._spool.books.end("", refused.kind, State.DEAD, Cause.INVALID)
        self._spool.keep_letter(letter, value, tag)
        ledger.journal.note(entry, State.DEAD, "", now, cause=str(Cause.INVALID), reason=refused.reason)
        return True


def _ids_in(letter: Letter) -> list[tuple[str, str]]:
    """What a record introduces and what it names, as (kind of id, id)."""
    places = [place for table in (INTRODUCES, REFERENCE_FIELDS) if (place := table.get(letter.kind)) is not None]
    if letter.kind == "run.start":
        places.append(("run", "parent_run_id"))
    ids = [(kind, _field(letter.body, name)) for kind, name in places]
    return [(kind, local_id) for kind, local_id in ids if local_id is not None]


def _field(body: bytes, name: str) -> str | None:
    """A field of a record; None where it has none, or is not one of this version's."""
    try:
        value: str | None = getattr(decode_record(body), name)
    except msgspec.MsgspecError:
        return None
    return value


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
    """The letters that are meant, the oldest first."""
    return list(_scan(store, wanted))


def page(store: Rows, wanted: Wanted, limit: int, after: int | None = None) -> list[tuple[int, Letter]]:
    """The newest `limit` of the letters that are meant, the newest first; or those `after` a row's number, the oldest first.

    Each with the number of its row, and no more than an answer can hold, but for one.
    """
    if after is None:
        chosen: Iterable[Found] = reversed(deque(_scan(store, wanted), maxlen=limit))
    else:
        chosen = islice(_scan(store, wanted, after), limit)
    letters_: list[tuple[int, Letter]] = []
    size = 0
    for one in list(chosen):
        if letters_ and size > _PAGE_BYTES:
            break
        letters_ += [(row_of(one.key), letter) for _, letter in read(store, [one]) if letter is not None]
        size += one.size
    return letters_


def carried(store: Rows, introducers: Sequence[Letter]) -> list[int]:
    """For each how many are dead because it is: those that wait for what it introduces. One search for all of them."""
    lanes = [_introduced_lane(letter) for letter in introducers]
    wanted = frozenset(lane for lane in lanes if lane is not None)
    if not wanted:
        return [0] * len(lanes)
    briefs = (one.brief for one in _scan(store, Wanted(cause=Cause.INTRODUCER_DEAD, lanes=wanted)))
    counts = Counter((brief.destination, brief.lane) for brief in briefs)
    return [0 if lane is None else counts[lane] for lane in lanes]


def _introduced_lane(letter: Letter) -> tuple[str, str] | None:
    """Destination and lane of what waits for it; None where nothing does."""
    place = INTRODUCES.get(letter.kind)
    if place is None or not letter.destination:
        return None
    local_id = _field(letter.body, place[1])
    return None if local_id is None else (letter.destination, f"{place[0]}:{local_id}")


def _scan(store: Rows, wanted: Wanted, after: int = -1) -> Iterator[Found]:
    """Those behind a row's number."""
    for key, tag, size in store.tags(Table.DEAD, after):
        brief = _brief(store, key, tag, size)
        if brief is not None and wanted.matches(brief):
            yield Found(key, _slim(brief), size)


def _brief(store: Rows, key: int, tag: bytes | None, size: int) -> Brief | None:
    """From its tag; from the row itself where the tag is damaged or of format 1, which says less."""
    try:
        brief = letters.decode_brief(tag)
    except SpoolDamaged:
        brief = None
    if brief is not None and brief.kind:
        return brief
    try:
        return letters.brief_of(letters.decode(store.read(key) or b""), size)
    except SpoolDamaged as error:
        log.error("dead letter %#x can't be read: %s", key, error, extra={"action": "damaged"})
        return brief


def _slim(brief: Brief) -> Brief:
    """Hundreds of thousands of letters say the same few words."""
    brief.destination, brief.lane = intern(brief.destination), intern(brief.lane)
    brief.cause, brief.kind = intern(str(brief.cause)), intern(brief.kind)
    return brief


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
