"""The audit: books, journal and rows recomputed from what is on disk and held against one another (promises 8 and 9).

Everything is counted from the records themselves: what is queued from the segments' bodies less their endings, what is dead from
the letters, what was delivered from the journal. Nothing is mended here, and nothing that recovery would mend is passed over.
Over a store of one moment (`look.open_rows`), whether a daemon runs or not; in memory are one segment and some numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import msgspec
from msgspec import Struct, field

from agentd.errors import NewerFormat, SpoolDamaged
from agentd.identity import text_of
from agentd.outcomes import State
from agentd.queued import GATE_LANE, INTRODUCED, Ref
from agentd.records import EVIDENCE
from agentd.spool import gaterows, letters
from agentd.spool.audit_journal import AT_ONCE, JournalCheck, Matching, Span, against_books
from agentd.spool.audit_queue import Introducers, SealCheck, Segments
from agentd.spool.books import ADMITTED, Line
from agentd.spool.checked import UNREADABLE, unpack
from agentd.spool.findings import Finding, Findings, Severity
from agentd.spool.letters import Brief
from agentd.spool.readonly import ReadOnlyStore
from agentd.spool.store import Rows, key_of, row_of
from agentd.spool.tables import Meta, Table, decode_meta

ENDS = (State.DELIVERED, State.QUEUED, State.DEAD, State.PURGED, State.SHED, State.QUARANTINED)


class Count(Struct):
    """One destination and kind: admitted, and what has become of it."""

    destination: str
    kind: str
    admitted: int = 0
    delivered: int = 0
    queued: int = 0
    dead: int = 0
    purged: int = 0
    shed: int = 0
    quarantined: int = 0

    @property
    def accounted(self) -> int:
        return self.delivered + self.queued + self.dead + self.purged + self.shed + self.quarantined


class Audit(Struct):
    """What was found. `causes`: destination → state → cause → records."""

    counts: list[Count] = field(default_factory=list)
    causes: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    journal: Span = field(default_factory=Span)
    gates: int = 0
    commits: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def balanced(self) -> bool:
        """Whether nothing contradicts anything."""
        return not any(finding.severity is Severity.ERROR for finding in self.findings)


def audit(store: Rows, tell: Callable[[str], None] = lambda _text: None) -> Audit:
    """Audit a spool. `tell` hears how far it is. Raises NewerFormat; whatever else is wrong is a finding."""
    return _Auditor(store, tell).run()


class _Auditor:
    def __init__(self, store: Rows, tell: Callable[[str], None]) -> None:
        self._store = store
        self._tell = tell
        self._findings = Findings()
        self._live: Counter[tuple[str, str]] = Counter()
        self._meta = Meta()

    def run(self) -> Audit:
        result = Audit()
        for what in self._store.check() if isinstance(self._store, ReadOnlyStore) else ():
            self._findings.error("database", "the database", what)
        try:
            self._run(result)
        except SpoolDamaged as error:  # a page that can't be read: what comes behind it is not known
            self._findings.error("database", "the database", str(error))
        result.findings = self._findings.all()
        return result

    def _run(self, result: Audit) -> None:
        self._meta = self._read_meta()
        result.commits = self._meta.commits
        if foreign := self._store.foreign():
            self._findings.error("foreign", "the database", f"{len(foreign)} rows that agentd did not write")
        self._tell("the journal is read")
        check = JournalCheck(self._store, self._meta, self._findings, self._tell)
        check.chain()
        result.journal = check.span
        self._queues(check)
        dead = self._letters()
        result.gates = self._gates(check)
        self._other_rows()
        result.counts, result.causes = self._books(dead)
        booked: Counter[tuple[str, str, str]] = Counter()
        for line in self._meta.books:
            booked[line.destination, line.kind, line.state] += line.records
        against_books(check, booked, self._findings)

    def _read_meta(self) -> Meta:
        value = self._store.read(key_of(Table.META, 0))
        if value is None:
            if any(next(iter(self._store.tags(table)), None) is not None for table in Table):
                self._findings.error("meta", "meta row", "is missing: there are no books")
            return Meta()
        try:
            return decode_meta(value)
        except NewerFormat:
            raise
        except SpoolDamaged as error:
            self._findings.error("meta", "meta row", f"can't be read: there are no books ({error})")
            return Meta()

    # -- queues --------------------------------------------------------------------------------------------------------

    def _queues(self, check: JournalCheck) -> None:
        segments = Segments(self._store, self._meta, self._findings, self._tell)
        segments.strays()
        seals = SealCheck(self._store, self._meta, self._findings)
        introducers = Introducers(self._introduced(), self._findings)
        matching = Matching(check, self._left_without_a_word(check), self._findings)
        parts = 1 + sum(line.records for line in self._meta.books if _waits(line)) // AT_ONCE
        for part in range(parts):
            self._tell("the queues are read" + (f" ({part + 1} of {parts})" if parts > 1 else ""))
            matching.begin(part, parts)
            for name, entries in segments.entries():
                matching.see(name, entries)
                if part == 0:
                    self._live.update((name, entry.kind) for entry in entries)
                    seals.see(name, entries)
                    introducers.see(name, entries)
            matching.end()
        matching.finish()
        seals.finish()
        introducers.finish()

    def _left_without_a_word(self, check: JournalCheck) -> Counter[str]:
        """How much evidence has left each queue with a segment: dropped, or set aside as damaged."""
        booked: Counter[str] = Counter()
        for line in self._meta.books:
            if line.kind in EVIDENCE and line.state == State.QUARANTINED:
                booked[line.destination] += line.records
        return check.tallies.dropped + (booked | check.tallies.quarantined)  # the greater one of the two

    def _introduced(self) -> dict[tuple[str, int], str]:
        """References that wait for a record; a gate looks after its own."""
        found = {}
        for key, value in self._store.rows(Table.REF):
            try:
                ref = msgspec.msgpack.decode(unpack(value), type=Ref)
            except (SpoolDamaged, *UNREADABLE) as error:
                self._findings.error("references", f"reference {row_of(key)}", f"can't be read: {error}")
                continue
            if ref.state == INTRODUCED and not ref.lane.startswith(GATE_LANE):
                found[ref.destination, ref.number] = f"{ref.kind} {ref.local_id[:64]}"
        return found

    # -- letters, gates, and what else has rows --------------------------------------------------------------------------

    def _letters(self) -> Counter[tuple[str, str, str]]:
        """Dead letters by destination, kind and cause."""
        self._tell("the dead letters are read")
        found: Counter[tuple[str, str, str]] = Counter()
        for key, tag, _ in self._store.tags(Table.DEAD):
            brief = self._letter(key, tag)
            if brief is not None:
                found[brief.destination, brief.kind, str(brief.cause)] += 1
        return found

    def _letter(self, key: int, tag: bytes | None) -> Brief | None:
        where = f"dead letter {row_of(key)}"
        value = self._store.read(key) or b""
        whole = said = None
        try:
            whole = letters.brief_of(letters.decode(value), len(value))
        except SpoolDamaged as error:
            self._findings.error("letters", where, f"can't be read: {error}")
        try:
            said = letters.decode_brief(tag)
        except SpoolDamaged as error:
            self._findings.error("letters", where, f"its tag can't be read: {error}")
        if whole is not None and said is not None and said.kind and _differ(whole, said):
            self._findings.error("letters", where, "its tag is of another letter")
        return whole or said

    def _gates(self, check: JournalCheck) -> int:
        """Every gate can be read, and one that the journal has as open is on record."""
        ids: set[str] = set()
        rows = 0
        for key, tag, _ in self._store.tags(Table.GATE):
            rows += 1
            row, where = row_of(key), f"gate row {row_of(key)}"
            try:
                brief = gaterows.decode_brief(row, tag)
                gate = gaterows.decode(row, self._store.read(key))
            except SpoolDamaged as error:
                self._findings.error("gates", where, f"can't be read: {error}")
                continue
            if gaterows.brief_of(gate) != brief:
                self._findings.error("gates", where, f"its tag says otherwise than the gate itself, {brief.gate_id}")
            if brief.gate_id in ids:
                self._findings.error("gates", where, f"gate {brief.gate_id} has a second row")
            ids.add(brief.gate_id)
        for gate_id, number in check.open_gates.items():
            if text_of(gate_id) not in ids:
                self._findings.error(
                    "gates", f"gate {text_of(gate_id)}", f"was asked (journal entry {number}), and is on record no more"
                )
        return rows

    def _other_rows(self) -> None:
        for table in (Table.SEEN, Table.STREAM, Table.OWNER, Table.LOST):
            for key, value in self._store.rows(table):
                try:
                    unpack(value)
                except SpoolDamaged as error:
                    self._findings.error("rows", f"{table.name.lower()} row {row_of(key)}", f"can't be read: {error}")

    # -- the books -----------------------------------------------------------------------------------------------------

    def _books(self, dead: Counter[tuple[str, str, str]]) -> tuple[list[Count], dict[str, dict[str, dict[str, int]]]]:
        """The books' lines with queued and dead as they were counted, and whether they add up."""
        counts: dict[tuple[str, str], Count] = {}
        causes: dict[str, dict[str, dict[str, int]]] = {}
        booked: Counter[tuple[str, str, str]] = Counter()
        for line in self._meta.books:
            count = counts.setdefault((line.destination, line.kind), Count(line.destination, line.kind))
            if line.state == State.DEAD:
                booked[line.destination, line.kind, line.cause] += line.records
            elif line.state in (ADMITTED, State.DELIVERED, State.PURGED, State.SHED, State.QUARANTINED):
                setattr(count, line.state, getattr(count, line.state) + line.records)
            else:
                self._findings.error("books", f"books of {line.destination}: {line.kind}", f"no state {line.state!r}")
            if line.state not in (ADMITTED, State.DELIVERED):
                by_cause = causes.setdefault(line.destination, {}).setdefault(line.state, {})
                by_cause[line.cause] = by_cause.get(line.cause, 0) + line.records
        for place, waiting in self._live.items():
            counts.setdefault(place, Count(*place)).queued = waiting
        for (name, kind, _), number in dead.items():
            counts.setdefault((name, kind), Count(name, kind)).dead += number
        self._dead(booked, dead)
        for count in counts.values():
            self._add_up(count)
        return [counts[place] for place in sorted(counts)], causes

    def _dead(self, booked: Counter[tuple[str, str, str]], found: Counter[tuple[str, str, str]]) -> None:
        for name, kind, cause in sorted({*booked, *found}):
            said, there = booked[name, kind, cause], found[name, kind, cause]
            if said != there:
                self._findings.error(
                    "letters",
                    f"books of {name or 'intake'}: {kind}",
                    f"{said} dead for {cause} by the books, {there} letters",
                )

    def _add_up(self, count: Count) -> None:
        if count.admitted != count.accounted:
            parts = " + ".join(f"{getattr(count, state.value)} {state.value}" for state in ENDS)
            self._findings.error(
                "books", f"books of {count.destination or 'intake'}: {count.kind}",
                f"{count.admitted} admitted, but {parts} = {count.accounted}",
            )  # fmt: skip


def _waits(line: Line) -> bool:
    """Whether it may count evidence that is queued."""
    return line.kind in EVIDENCE and line.state == ADMITTED


def _differ(one: Brief, other: Brief) -> bool:
    names = ("destination", "lane", "cause", "record_id", "number", "kind", "uid", "died_us")
    return any(getattr(one, name) != getattr(other, name) for name in names)
