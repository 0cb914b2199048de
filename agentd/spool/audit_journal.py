"""The journal: its numbers without a gap, its chain of digests up to the one that the meta row names, and what it says of the queues.

It is read row by row. What it says is queued is kept as one number each, of so many numbers at a time that memory stays bounded:
a journal or queue with more of them is read several times.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from msgspec import Struct, field

from agentd.errors import SpoolDamaged
from agentd.identity import text_of
from agentd.outcomes import Cause, State
from agentd.queued import Entry
from agentd.records import EVIDENCE
from agentd.spool.booking import MOVED, REPLAYED
from agentd.spool.books import ADMITTED
from agentd.spool.findings import Findings
from agentd.spool.journal import Note, Row, decode_row
from agentd.spool.store import Rows, row_of
from agentd.spool.tables import Meta, Table

AT_ONCE = 500_000  # numbers in memory: about 50 MB
_GATE = "gate."
_SHOWN = 20

Tell = Callable[[str], None]


class Span(Struct):
    """What there is of the journal."""

    rows: int = 0
    entries: int = 0
    size: int = 0
    first: int = 0  # the oldest entry's number
    last: int = 0
    since_us: int = 0
    head: bytes = b""  # the newest row's digest, as it was computed
    is_whole: bool = True  # every row could be read, and none is missing between them
    unnumbered: int = 0  # entries of format 1: they don't say which record of the queue they are of

    @property
    def is_complete(self) -> bool:
        """Whether it goes back to the first entry of all."""
        return self.is_whole and (self.first == 1 or not self.rows)


class Tallies(Struct):
    """What the entries count up to, by (destination, kind): of evidence all of it, of other kinds what was lost."""

    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # destination, kind, state or `admitted`
    dropped: Counter[str] = field(default_factory=Counter)  # by destination: evidence that went with its segment
    quarantined: Counter[str] = field(default_factory=Counter)

    def add(self, note: Note) -> None:
        if note.kind.startswith(_GATE):
            return
        place = (note.destination, note.kind)
        if note.state is State.QUEUED:
            self.counts[(*place, ADMITTED)] += note.cause not in (REPLAYED, MOVED)
        elif note.cause == Cause.SPOOL_FULL:
            self.counts[(*place, ADMITTED)] -= note.state is State.PURGED
        else:
            self.counts[(*place, note.state.value)] += note.count
        if not note.record_id and note.kind in EVIDENCE:
            if note.state is State.QUARANTINED:
                self.quarantined[note.destination] += note.count
            else:
                self.dropped[note.destination] += note.count


class JournalCheck:
    """The journal of a store. `chain` reads it once, `open_numbers` and `last_words` again."""

    def __init__(self, store: Rows, meta: Meta, findings: Findings, tell: Tell = lambda _text: None) -> None:
        self.span = Span()
        self.tallies = Tallies()
        self.open_gates: dict[bytes, int] = {}  # asked and without a last word → the entry that says so
        self._store = store
        self._meta = meta
        self._findings = findings
        self._tell = tell

    # -- the chain ---------------------------------------------------------------------------------------------------

    def chain(self) -> None:
        """Read all of it: rows, numbers, digests, and what they count up to."""
        before: tuple[int, Row] | None = None
        for key, value in self._store.rows(Table.JOURNAL):
            number = row_of(key)
            self.span.rows += 1
            self.span.size += len(value)
            try:
                row = decode_row(value)
            except SpoolDamaged as error:
                self._broken("journal", f"journal row {number}", f"can't be read: {error}")
                before = None
                continue
            if not row.notes:
                self._broken("journal", f"journal row {number}", "holds no entry")
                continue
            if before is not None:
                self._follows(*before, number, row)
            elif self.span.first:
                self._gap(number, row.notes[0].number)
            self._take(row)
            before = number, row
        self._end(before)

    def _take(self, row: Row) -> None:
        span = self.span
        numbers = [note.number for note in row.notes]
        span.first = span.first or numbers[0]
        span.since_us = span.since_us or row.notes[0].at_us
        span.last = numbers[-1]
        span.head = row.digest
        span.entries += len(numbers)
        if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            self._broken("journal", f"journal entry {numbers[0]}", "the numbers of its row have a gap")
        for note in row.notes:
            self.tallies.add(note)
            if note.kind.startswith(_GATE):
                self._gate(note)
            elif note.record_id and not note.queue_number and note.destination:
                span.unnumbered += 1

    def _gate(self, note: Note) -> None:
        if note.state is State.QUEUED:
            self.open_gates[note.record_id] = note.number
        else:
            self.open_gates.pop(note.record_id, None)

    def _follows(self, before: int, earlier: Row, number: int, row: Row) -> None:
        """Whether a row is the one after another one."""
        where = f"journal row {number}"
        if number != before + 1:
            self._broken(
                "journal",
                where,
                f"{number - before - 1} rows before it are missing: entries {earlier.notes[-1].number + 1} to "
                f"{row.notes[0].number - 1}",
            )
            return
        if row.notes[0].number != earlier.notes[-1].number + 1:
            self._broken(
                "journal", where, f"begins with entry {row.notes[0].number}, behind {earlier.notes[-1].number}"
            )
        if row.previous and row.previous != earlier.digest:
            self._broken(
                "journal", where, f"row {before} is not the one that it was written behind: its content was changed"
            )
        elif not row.previous and earlier.previous:
            self._broken("journal", where, "names no row before it")

    def _gap(self, number: int, first: int) -> None:
        if first != self.span.last + 1:
            self._broken(
                "journal", f"journal row {number}", f"entries {self.span.last + 1} to {first - 1} can't be read"
            )

    def _end(self, newest: tuple[int, Row] | None) -> None:
        """The meta row knows the number and digest that the journal ends with."""
        meta, span = self._meta, self.span
        if not span.rows:
            return
        if meta.journal_number != span.last + 1:
            what = f"its newest entry is {span.last}, the last that was written {meta.journal_number - 1}"
            self._broken("journal", "the journal's end", what)
        elif meta.journal_head and newest is not None and newest[1].digest != meta.journal_head:
            self._broken("journal", "the journal's end", f"row {newest[0]} is not as it was written last")

    def _broken(self, sort: str, where: str, what: str) -> None:
        self.span.is_whole = False
        self._findings.error(sort, where, what)

    # -- against the queues ------------------------------------------------------------------------------------------

    def open_numbers(self, part: int, parts: int) -> dict[str, set[int]]:
        """Destination → numbers of evidence that was queued and has not ended since; those of one of `parts` parts."""
        found: dict[str, set[int]] = {}
        for note in self._notes():
            number = note.queue_number
            if note.was_number and note.was_number % parts == part:
                found.setdefault(note.destination, set()).discard(note.was_number)
            if number and number % parts == part and note.kind in EVIDENCE and note.destination:
                if note.state is State.QUEUED:
                    found.setdefault(note.destination, set()).add(number)
                else:
                    found.setdefault(note.destination, set()).discard(number)
        return found

    def last_words(self, wanted: set[tuple[str, int]]) -> dict[tuple[str, int], Note]:
        """The last entry of each of these (destination, number)."""
        found = {}
        for note in self._notes():
            place = (note.destination, note.queue_number)
            if place in wanted:
                found[place] = note
        return found

    def _notes(self) -> Iterator[Note]:
        for _, value in self._store.rows(Table.JOURNAL):
            try:
                yield from decode_row(value).notes
            except SpoolDamaged:
                continue  # `chain` has said so


class Matching:
    """Queued evidence against the journal's open entries, one part of the numbers at a time.

    What a segment held that was dropped or could not be read has left the queue without an entry of its own: `allowed` says how
    many, by destination.
    """

    def __init__(self, check: JournalCheck, allowed: Counter[str], findings: Findings) -> None:
        self._check = check
        self._allowed = allowed
        self._findings = findings
        self._gone: Counter[str] = Counter()  # open in the journal, not in the queue
        self._shown: list[tuple[str, int]] = []
        self._unknown: dict[tuple[str, int], Entry] = {}  # in the queue, not open in the journal
        self._part, self._parts = 0, 1
        self._open: dict[str, set[int]] = {}

    def begin(self, part: int, parts: int) -> None:
        self._part, self._parts = part, parts
        self._open = self._check.open_numbers(part, parts)

    def see(self, name: str, entries: Sequence[Entry]) -> None:
        """Live records of a destination."""
        waiting = self._open.get(name, set())
        for entry in entries:
            if entry.kind not in EVIDENCE or entry.number % self._parts != self._part:
                continue
            if entry.number in waiting:
                waiting.discard(entry.number)
            elif len(self._unknown) < AT_ONCE:
                self._unknown[name, entry.number] = entry

    def end(self) -> None:
        """All live records were seen: what is still open is not in the queue."""
        for name, numbers in self._open.items():
            self._gone[name] += len(numbers)
            self._shown += [(name, number) for number in sorted(numbers)[:_SHOWN]]

    def finish(self) -> None:
        """After the last part."""
        wanted = {*self._shown, *self._unknown}
        words = self._check.last_words(wanted) if wanted else {}
        for name, count in self._gone.items():
            if count > self._allowed[name] and self._check.span.is_whole:
                for place in [place for place in self._shown if place[0] == name]:
                    self._missing(words[place])
                if count > _SHOWN:
                    self._findings.error("lost", f"{name}", f"{count} records are missing so in all")
        for place, entry in self._unknown.items():
            self._stranger(place[0], entry, words.get(place))

    def _missing(self, note: Note) -> None:
        self._findings.error(
            "lost", f"{note.kind} {text_of(note.record_id)}",
            f"queued for {note.destination} as record {note.queue_number} (journal entry {note.number}), is not in the queue, and "
            "no entry says how it ended",
        )  # fmt: skip

    def _stranger(self, name: str, entry: Entry, note: Note | None) -> None:
        where = f"{entry.kind} {text_of(entry.record_id)}"
        span = self._check.span
        if note is not None:
            what = (
                f"is in the queue of {name} (record {entry.number}), but is {note.state} (journal entry {note.number})"
            )
            self._findings.error("ended", where, what)
        elif span.is_complete and not span.unnumbered:
            self._findings.error(
                "unknown",
                where,
                f"is in the queue of {name} (record {entry.number}), and the journal has no entry of it",
            )


def against_books(check: JournalCheck, booked: Counter[tuple[str, str, str]], findings: Findings) -> None:
    """Where the journal goes back to the beginning it has to count up to what the books say.

    `booked`: records by destination, kind and state (or `admitted`).
    """
    if not check.span.is_complete or not check.span.rows:
        return
    counted = check.tallies.counts
    for name, kind, state in sorted({*booked, *counted}):
        is_counted = state == State.SHED or (kind in EVIDENCE and state in (ADMITTED, State.DELIVERED))
        if not name or not is_counted:
            continue
        said, noted = booked[name, kind, state], counted[name, kind, state]
        if said != noted:
            findings.error("books", f"books of {name}: {kind}", f"{said} {state} by the books, {noted} by the journal")
