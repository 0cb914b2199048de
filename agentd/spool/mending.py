"""What damage leaves behind, put right: references that are lost or whose introducer is, and where lost records stood.

A reference whose introducing record is gone would be waited for without end: it is dead, and what names it is a dead letter. One
that is gone itself is made anew from the journal, which knows the platform's name for every run. Only called where something
was found damaged: it reads the rows that it needs.
"""

from __future__ import annotations

import logging
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from agentd.errors import SpoolDamaged
from agentd.outcomes import Cause, State
from agentd.queued import DEAD, GATE_LANE, INTRODUCED, KNOWN, Ref
from agentd.records import RUN_ENDS, LossClass
from agentd.spool import journal as journals
from agentd.spool import segments
from agentd.spool.directory import Segment
from agentd.spool.journal import Note
from agentd.spool.ledger import Ledger
from agentd.spool.segments import lane_hash
from agentd.spool.store import Rows, key_of
from agentd.spool.tables import Table

log = logging.getLogger("agentd.spool")

_DAY_US = 86_400 * 10**6
_RECENT_US = 7 * _DAY_US  # of runs that are that old and have nothing queued nobody will speak again (`runs.keep`)
_NOTE_BYTES = 32  # an entry of the journal takes more
_TOLD = 10  # ranges of numbers in a line of the log
_LAST = re.compile(r"\d+-(\d+)")  # of the numbers of records that were lost together


def restore_references(ledger: Ledger, store: Rows) -> int:
    """Make references to runs anew that the journal knows and the table has not. Returns how many."""
    queued = {
        name: {h for s in queue.segments.values() for h in s.hashes or ()} for name, queue in ledger.queues.items()
    }
    made: dict[tuple[str, str], Ref] = {}
    for note in _notes(store):
        lane = f"run:{note.run}"
        if not note.run or ledger.refs.get(note.destination, "run", note.run) is not None:
            continue
        ref = made.get((note.destination, note.run))
        if note.kind == "run.start":
            made[note.destination, note.run] = _merged(ref, note, lane)
        elif ref is not None and note.kind in RUN_ENDS and note.state is not State.QUEUED:
            ref.ended = True
    newest = max((ref.touched_us for ref in made.values()), default=0)
    restored = 0
    for ref in made.values():
        recent = ref.touched_us > newest - _RECENT_US
        if (recent or lane_hash(ref.lane) in queued.get(ref.destination, ())) and ref.state != "":
            ledger.refs.put(ref)
            restored += 1
    if restored:
        log.error("%d references to runs were made anew from the journal", restored, extra={"action": "repaired"})
    return restored


def _merged(ref: Ref | None, note: Note, lane: str) -> Ref:
    """A run's reference as of one more note on a run.start of it. State "" is one of which nothing useful is known."""
    if ref is None:
        ref = Ref(note.destination, "run", note.run, note.agent, note.uid, note.queue_number, "", lane=lane)
    ref.touched_us = note.at_us
    if note.state is State.DELIVERED and note.platform_id:
        ref.state, ref.platform_id = KNOWN, note.platform_id
    elif note.state is State.QUEUED and ref.state != KNOWN and note.queue_number:
        ref.state, ref.number = INTRODUCED, note.queue_number
    elif note.state is not State.QUEUED and ref.state == INTRODUCED:
        ref.state = "" if note.state is State.DELIVERED else DEAD
    return ref


def _notes(store: Rows) -> Iterator[Note]:
    for key, value in store.rows(Table.JOURNAL):
        try:
            yield from journals.decode(value)
        except SpoolDamaged as error:
            log.error("journal row %#x: %s", key, error, extra={"action": "quarantine"})


def book_lost_letters(ledger: Ledger, there: Counter[tuple[str, str, str]]) -> None:
    """Dead letters that can't be read have left their room: they are set aside, and not dead any more in the books.

    `there` counts the others by destination, kind and cause; where tags of format 1 name no kind, nothing can be said.
    """
    if not all(kind for _, kind, _ in there):
        return
    now = ledger.now_us()
    for line in ledger.books.snapshot():
        missing = line.records - there[line.destination, line.kind, line.cause] if line.state == State.DEAD else 0
        if missing > 0:
            log.error(
                "%s: %d dead letters (%s, %s) can't be read: booked as quarantined", line.destination or "intake", missing,
                line.kind, line.cause, extra={"action": "quarantine", "destination": line.destination},
            )  # fmt: skip
            ledger.books.end(line.destination, line.kind, State.DEAD, line.cause, -missing)
            ledger.books.end(line.destination, line.kind, State.QUARANTINED, Cause.DAMAGED, missing)
            ledger.journal.note_lost(
                line.destination, line.kind, missing, state=State.QUARANTINED, numbers="unknown", admitted_us=now,
                at_us=now, cause=str(Cause.DAMAGED),
            )  # fmt: skip


def bury_lost_introducers(ledger: Ledger, store: Rows) -> None:
    """Let references die whose introducing record is not in the queue any more: all that names them would wait for ever."""
    owed: dict[str, dict[int, Ref]] = {}
    for ref in _introduced(ledger):
        owed.setdefault(ref.destination, {})[ref.number] = ref
    for name, refs in owed.items():
        queue = ledger.queues.get(name)
        numbers = sorted(refs)
        for segment in () if queue is None else queue.segments.values():
            place = bisect_left(numbers, segment.first)
            if segment.loss is LossClass.KEEP and place < len(numbers) and numbers[place] <= segment.last:
                for number in _live_numbers(store, segment):
                    refs.pop(number, None)
        for ref in refs.values():
            _bury(ledger, ref)


def bury_introducers(ledger: Ledger, name: str, lost: Segment) -> None:
    """The same while the daemon runs, for what was in a segment that could not be read and is not in the queue any more."""
    index = ledger.queues[name].index
    for ref in [
        ref for ref in _introduced(ledger) if ref.destination == name and lost.first <= ref.number <= lost.last
    ]:
        lane = ref.lane or f"{ref.kind}:{ref.local_id}"
        others = (other for other in index.holding(lane) if other.first <= ref.number <= other.last)
        if lost.may_hold(lane_hash(lane)) and next(others, None) is None:
            _bury(ledger, ref)


def _introduced(ledger: Ledger) -> Iterator[Ref]:
    """References whose introducing record is in a queue; a gate looks after its own."""
    return (ref for ref in ledger.refs if ref.state == INTRODUCED and not ref.lane.startswith(GATE_LANE))


def _bury(ledger: Ledger, ref: Ref) -> None:
    ref.state = DEAD
    ledger.refs.put(ref)
    log.error(
        "%s: what introduces %s %r is lost: what names it can't be sent", ref.destination, ref.kind, ref.local_id[:64],
        extra={"action": "quarantine", "destination": ref.destination},
    )  # fmt: skip


def _live_numbers(store: Rows, segment: Segment) -> list[int]:
    """The numbers of a segment's records that have not ended; none of one that can't be read."""
    try:
        _, entries = segments.decode(segment.key, _read(store, segment.key) or b"")
    except SpoolDamaged:
        return []
    return [entry.number for entry in entries if not segment.has_ended(entry.index)]


def end_of_journal(ledger: Ledger, store: Rows) -> None:
    """Go on behind its newest row that can be read, and behind all that those after it may have held: no number twice.

    Neither of its own nor of a queue, as far as it knows them.
    """
    journal, passed, found = ledger.journal, 0, False
    for row in reversed(range(1, journal.next_row)):
        value = _read(store, key_of(Table.JOURNAL, row))
        if value is None:
            return
        try:
            newest = journals.decode_row(value)
        except SpoolDamaged:
            passed += len(value) // _NOTE_BYTES
            continue
        if not found:
            found, journal.head = True, newest.digest
            journal.next_number = newest.notes[-1].number + 1 + passed
        for note in newest.notes:
            told = [note.queue_number] if note.record_id else [int(last) for last in _LAST.findall(note.lane)]
            see_number(ledger, note.destination, max(told, default=0))


def in_order(stamps: Sequence[int], now_us: int) -> Iterator[int]:
    """When the journal's rows were made, by their order: a damaged time lets no evidence go early, and holds none up.

    Nor does a clock that is behind now: while the newest two rows are later than that, no row is disbelieved for it.
    """
    limit_us = max(now_us, min(stamps[-2:], default=0)) + _DAY_US
    newest_us = next((stamp for stamp in stamps if 0 < stamp < limit_us), now_us)
    for stamp in stamps:
        newest_us = max(newest_us, stamp if stamp < limit_us else 0)
        yield newest_us


def see_number(ledger: Ledger, destination: str, number: int) -> None:
    """A number of a destination's queue was given: it is not given again."""
    following = ledger.meta.next_number
    if number >= following.get(destination, 1):
        following[destination] = number + 1


def _read(store: Rows, key: int) -> bytes | None:
    try:
        return store.read(key)
    except SpoolDamaged:
        return b""


def book_missing(ledger: Ledger, name: str, kind: str, missing: int, known: Iterable[tuple[int, int]]) -> None:
    """Records that the books hold and the disk does not: quarantined, in the books, the journal and the log."""
    numbers = where(ledger, name, known)
    log.error(
        "%s: %d records (%s) are missing on disk: booked as quarantined; they are among the numbers %s",
        name, missing, kind, numbers, extra={"action": "quarantine", "destination": name},
    )  # fmt: skip
    ledger.books.end(name, kind, State.QUARANTINED, Cause.DAMAGED, missing)
    now = ledger.now_us()
    ledger.journal.note_lost(
        name,
        kind,
        missing,
        state=State.QUARANTINED,
        numbers=numbers,
        admitted_us=now,
        at_us=now,
        cause=str(Cause.DAMAGED),
    )


def where(ledger: Ledger, name: str, known: Iterable[tuple[int, int]]) -> str:
    """Among which numbers of a destination's queue records are missing, as text.

    `known` ranges are those of rows that could not be taken over; else it is the numbers that no segment covers, delivered ones
    included.
    """
    ranges = sorted(known) or _gaps(ledger.queues[name].segments.values(), ledger.meta.next_number.get(name, 1))
    if not ranges:
        return "unknown"
    text = ", ".join(f"{first}-{last}" for first, last in ranges[-_TOLD:])
    return text if len(ranges) <= _TOLD else f"…, {text}"


def _gaps(held: Iterable[Segment], following: int) -> list[tuple[int, int]]:
    found, low = [], 1
    for segment in sorted(held, key=lambda s: s.first):
        if segment.first > low:
            found.append((low, segment.first - 1))
        low = max(low, segment.last + 1)
    if following > low:
        found.append((low, following - 1))
    return found
