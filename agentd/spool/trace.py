"""Where a thing is that somebody names: a record, run, decision, action or gate, by the client's id, agentd's or the platform's.

Looks through references, gates, journal, dead letters and queues of one moment (`readonly`, `look`). A journal holds hundreds of
megabytes: its rows are searched as bytes for the names, and only those are decoded that hold one. What is found may name the
thing otherwise (a platform's id leads to the run, a key to the record), and then what goes by that name is looked for too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from hashlib import sha256
from uuid import UUID

import msgspec
from msgspec import Struct, field

from agentd.errors import SpoolDamaged
from agentd.outcomes import State
from agentd.queued import GATE_LANE, Entry, Ref, Seal
from agentd.records import EVIDENCE
from agentd.spool import gaterows, letters
from agentd.spool.census import Interrupted
from agentd.spool.checked import UNREADABLE, unpack
from agentd.spool.gaterows import GateRow
from agentd.spool.journal import Note, decode
from agentd.spool.letters import Brief, Letter
from agentd.spool.store import Rows, key_of, row_of
from agentd.spool.tables import Table, decode_meta
from agentd.spool.trace_queue import QueueSearch, Wanted

MOST = 200  # records of one answer; a run may have more
MOST_COUNTED = 100_000  # of those that are left out: about 15 MB of ids
_PASSES = 3  # over the journal: names that lead to names that lead to names
_NAMED = ("run", "decision", "action")  # kinds of ids that lanes are named for
_UUID_TEXT = (32, 36)


class Waiting(Struct):
    """A record in a queue, without its body, and the batch that it was sealed in. `size` is the body's."""

    destination: str
    entry: Entry
    seal: Seal | None = None
    size: int = 0


class Traced(Struct):
    """One record, by its id and its sender's uid, with all that is known of it. Two hundred bodies may be 200 MB: none is kept."""

    uid: int
    record_id: bytes
    notes: list[Note] = field(default_factory=list)
    letters: list[tuple[int, Letter]] = field(default_factory=list)  # with their numbers, without their bodies
    waiting: list[Waiting] = field(default_factory=list)
    sha256: bytes = b""  # of its body, where no note has it

    def take_body(self, stored: Entry | Letter) -> None:
        """Keep the digest of what is stored in its place."""
        if not (self.notes or self.sha256):
            self.sha256 = sha256(stored.body).digest()
        stored.body = b""


class Lane(Struct):
    """How many records of a lane wait at a destination, and how many are dead."""

    queued: int = 0
    dead: int = 0


class Trace(Struct):
    """What was found. `more` records are left out, or more than `MOST_COUNTED`; `lanes` counts those of all the same."""

    asked: str
    records: list[Traced] = field(default_factory=list)
    more: int = 0
    references: list[Ref] = field(default_factory=list)
    gates: list[GateRow] = field(default_factory=list)
    lanes: dict[tuple[str, str], Lane] = field(default_factory=dict)
    first: int = 0  # of the journal's entries
    last: int = 0
    since_us: int = 0
    damaged: int = 0  # rows that can't be read, and may have said more

    def __bool__(self) -> bool:
        return bool(self.records or self.references or self.gates or self.lanes)


def id_of(asked: str) -> bytes | None:
    """A record's id, None for what can't be one."""
    try:
        return UUID(asked).bytes if len(asked) in _UUID_TEXT else None
    except ValueError:
        return None


def trace(
    store: Rows, asked: str, uid: int | None = None, *, stop: Callable[[], bool] = lambda: False, most: int = MOST
) -> Trace:
    """Find whatever goes by this name, of this user alone if one is given. Raises Interrupted as soon as `stop` says so."""
    return _Search(store, asked, uid, stop, most).run()


class _Search:
    def __init__(self, store: Rows, asked: str, uid: int | None, stop: Callable[[], bool], most: int) -> None:
        self._store = store
        self._asked = asked
        self._uid = uid
        self._stop = stop
        self._most = most
        self._found = Trace(asked)
        self._records: dict[tuple[int, bytes], Traced] = {}
        self._left_out: set[tuple[int, bytes]] = set()
        record_id = id_of(asked)
        self._ids = set() if record_id is None else {record_id}
        self._names = {asked}
        self._places: set[tuple[str, int]] = set()  # (destination, number) of records that introduce what is meant

    def run(self) -> Trace:
        found = self._found
        self._span()
        self._references()
        self._gates()
        self._journal()
        self._letters()
        self._queues()
        self._lost_whole()
        found.records = sorted(self._records.values(), key=_first_us)
        found.more = len(self._left_out)
        return found

    def _record(self, uid: int, record_id: bytes) -> Traced | None:
        """The record's own place in the answer; None where there is no room for one more."""
        key = uid, record_id
        known = self._records.get(key)
        if known is None:
            if len(self._records) >= self._most:
                if len(self._left_out) < MOST_COUNTED:
                    self._left_out.add(key)
                return None
            known = self._records[key] = Traced(uid, record_id)
        return known

    def _is_shown(self, uid: int) -> bool:
        return self._uid is None or uid == self._uid

    def _goes_on(self) -> None:
        if self._stop():
            raise Interrupted

    def _span(self) -> None:
        """How far the journal reaches."""
        with suppress(SpoolDamaged, StopIteration):
            oldest = decode(next(iter(self._store.rows(Table.JOURNAL)))[1])[0]
            self._found.first, self._found.since_us = oldest.number, oldest.at_us
        with suppress(SpoolDamaged):
            self._found.last = decode_meta(self._store.read(key_of(Table.META, 0)) or b"").journal_number - 1

    # -- names ---------------------------------------------------------------------------------------------------------

    def _references(self) -> None:
        for _, value in self._store.rows(Table.REF):
            if self._asked.encode() not in value:
                continue
            try:
                ref = msgspec.msgpack.decode(unpack(value), type=Ref)
            except (SpoolDamaged, *UNREADABLE):
                self._found.damaged += 1
                continue
            if self._is_shown(ref.uid) and self._asked in (ref.local_id, ref.platform_id):
                self._found.references.append(ref)
                self._names.add(ref.local_id)
                if ref.number:
                    self._places.add((ref.destination, ref.number))
                if ref.lane.startswith(GATE_LANE) and (gate_id := id_of(ref.lane.removeprefix(GATE_LANE))):
                    self._ids.add(gate_id)

    def _gates(self) -> None:
        needles = self._needles()
        for key, value in self._store.rows(Table.GATE):
            if not any(needle in value for needle in needles):
                continue
            try:
                gate = gaterows.decode(row_of(key), value)
            except SpoolDamaged:
                self._found.damaged += 1
                continue
            if self._is_shown(gate.source.uid) and self._names_gate(gate):
                self._found.gates.append(gate)

    def _names_gate(self, gate: GateRow) -> bool:
        gate_id = id_of(gate.gate_id)
        if gate_id in self._ids or self._asked in (gate.key, gate.local_id, gate.platform_id, gate.idempotency_key):
            self._names.add(gate.local_id)
            if gate_id is not None:
                self._ids.add(gate_id)
            return True
        return gate.run_id in self._names

    def _needles(self) -> list[bytes]:
        """What a row has to hold to be worth decoding."""
        texts = {str(UUID(bytes=record_id)) for record_id in self._ids} | self._names
        return [*self._ids, *(text.encode() for text in texts)]

    def _lane_names(self) -> set[str]:
        return {f"{kind}:{name}" for kind in _NAMED for name in self._names}

    # -- the journal ---------------------------------------------------------------------------------------------------

    def _journal(self) -> None:
        """The last pass knows all names, and finds all that the ones before it found."""
        for _ in range(_PASSES):
            known = len(self._ids), len(self._names)
            self._records.clear()
            self._left_out.clear()
            for note in self._matching():
                record = self._record(note.uid, note.record_id)
                if record is not None:
                    record.notes.append(note)
            if known == (len(self._ids), len(self._names)):
                break

    def _matching(self) -> Iterator[Note]:
        """The notes that mean what is asked for; takes up what else it goes by."""
        needles, lanes = self._needles(), self._lane_names()
        for notes in self._rows(needles):
            own = (note for note in notes if note.record_id and self._is_shown(note.uid))
            yield from [note for note in own if self._means(note, lanes)]

    def _rows(self, needles: list[bytes]) -> Iterator[list[Note]]:
        """The journal's rows that hold one of these, decoded."""
        for _, value in self._store.rows(Table.JOURNAL):
            self._goes_on()
            if any(needle in value for needle in needles):
                try:
                    yield decode(value)
                except SpoolDamaged:
                    self._found.damaged += 1

    def _means(self, note: Note, lanes: set[str]) -> bool:
        if self._asked in (note.key, note.platform_id, note.local_id):
            self._ids.add(note.record_id)
        if self._asked in (note.platform_id, note.local_id):  # a key is of the record alone
            self._names.update(name for name in (note.local_id, note.run if note.kind == "run.start" else "") if name)
        return (
            note.record_id in self._ids or note.run in self._names or note.local_id in self._names or note.lane in lanes
        )

    def _lost_whole(self) -> None:
        """Evidence that is neither queued nor dead nor ended went with its segment: one entry says so for all of that kind."""
        gone = [
            (record, note)
            for record in self._records.values()
            for note in _last(record.notes).values()
            if note.state is State.QUEUED and note.kind in EVIDENCE and not _is_somewhere(record, note.destination)
        ]
        kinds = {note.kind for _, note in gone}
        if not kinds:
            return
        needles = [b"\xc4\x00" + msgspec.msgpack.encode(kind) for kind in kinds]  # no id, then the kind
        for notes in self._rows(needles):
            for lost in (note for note in notes if not note.record_id):
                for record, note in gone:
                    if _covers(lost, note):
                        record.notes.append(lost)

    # -- dead letters --------------------------------------------------------------------------------------------------

    def _letters(self) -> None:
        lanes = self._lane_names()
        for key, tag, size in self._store.tags(Table.DEAD):
            self._goes_on()
            brief = self._brief(key, tag, size)
            if brief is None or not self._is_shown(brief.uid):
                continue
            if brief.lane in lanes:
                self._lane(brief.destination, brief.lane).dead += 1
            is_meant = brief.record_id in self._ids or (brief.destination, brief.number) in self._places
            if not (is_meant or brief.lane in lanes):
                continue
            record = self._record(brief.uid, brief.record_id)
            if record is not None:
                try:
                    letter = letters.decode(self._store.read(key) or b"")
                except SpoolDamaged:
                    self._found.damaged += 1
                else:
                    record.take_body(letter)
                    record.letters.append((row_of(key), letter))

    def _brief(self, key: int, tag: bytes | None, size: int) -> Brief | None:
        """From its tag, or from the letter where the tag is damaged or of format 1."""
        try:
            brief = letters.decode_brief(tag)
            if brief.kind:
                return brief
        except SpoolDamaged:
            pass
        try:
            return letters.brief_of(letters.decode(self._store.read(key) or b""), size)
        except SpoolDamaged:
            self._found.damaged += 1
            return None

    def _lane(self, destination: str, lane: str) -> Lane:
        return self._found.lanes.setdefault((destination, lane), Lane())

    # -- queues --------------------------------------------------------------------------------------------------------

    def _queues(self) -> None:
        lanes = self._lane_names()
        places = self._places | {
            (note.destination, note.queue_number)
            for record in self._records.values()
            for note in _last(record.notes).values()
            if note.state is State.QUEUED and note.queue_number
        }
        # an id of which the journal knows nothing may be that of telemetry: nothing but its record says where it is
        unknown = frozenset(each for each in self._ids if not any(key[1] == each for key in self._records))
        wanted = Wanted(frozenset(lanes), frozenset(places), frozenset(self._ids), unknown, self._asked)
        search = QueueSearch(self._store, wanted, self._goes_on)
        for found in search.run():
            if not self._is_shown(found.uid):
                continue
            if found.lane in lanes:
                self._lane(found.destination, found.lane).queued += 1
            record = self._record(found.uid, found.record_id)
            if record is not None:
                entry = found.entry()
                size = len(entry.body)
                record.take_body(entry)
                record.waiting.append(Waiting(found.destination, entry, found.seal, size))
        self._found.damaged += search.damaged


def _last(notes: Iterable[Note]) -> dict[str, Note]:
    """The last entry at each destination."""
    return {note.destination: note for note in notes}


def _is_somewhere(record: Traced, destination: str) -> bool:
    return any(waiting.destination == destination for waiting in record.waiting) or any(
        letter.destination == destination for _, letter in record.letters
    )


def _covers(lost: Note, note: Note) -> bool:
    """Whether an entry for a whole segment is the end of what another entry has queued."""
    if (lost.destination, lost.kind) != (note.destination, note.kind) or lost.number < note.number:
        return False
    for part in lost.lane.split(", "):
        first, _, last = part.partition("-")
        if first.isdecimal() and last.isdecimal() and int(first) <= note.queue_number <= int(last):
            return True
    return False


def _first_us(record: Traced) -> int:
    times = [
        *(note.admitted_us for note in record.notes),
        *(waiting.entry.admitted_us for waiting in record.waiting),
        *(letter.admitted_us for _, letter in record.letters),
    ]
    return min(times, default=0)
