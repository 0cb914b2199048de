"""The queues as their rows have them: every segment's body against its checksum, its directory and its endings, seals over them.

One segment is in memory at a time; beside it what directories say, and of numbers those that a later segment might repeat.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from msgspec import Struct

from agentd.errors import SpoolDamaged
from agentd.queued import Entry, Seal
from agentd.spool import segments
from agentd.spool.directory import decode_bitmap
from agentd.spool.findings import Findings
from agentd.spool.seals import Seals
from agentd.spool.segments import Directory, lane_hash
from agentd.spool.store import Rows, row_of
from agentd.spool.tables import Meta, Table, ended_key

_TELL_BYTES = 64 * 2**20

Tell = Callable[[str], None]


class _Row(Struct):
    key: int
    directory: Directory | None  # None: damaged
    first: int


class Segments:
    """All segments of a store, read one at a time in the order of their numbers."""

    def __init__(self, store: Rows, meta: Meta, findings: Findings, tell: Tell = lambda _text: None) -> None:
        self._store = store
        self._meta = meta
        self._findings = findings
        self._tell = tell
        self._rows: list[_Row] = []
        self._checked = False
        for key, tag, _ in store.tags(Table.SEGMENT):
            self._rows.append(self._row(key, tag))
        self._rows.sort(key=lambda row: (row.first, row.key))

    def _row(self, key: int, tag: bytes | None) -> _Row:
        try:
            directory = segments.decode_directory(key, tag)
        except SpoolDamaged as error:
            self._findings.error("directories", f"segment {row_of(key)}", f"its directory can't be read: {error}")
            return _Row(key, None, 0)
        return _Row(key, directory, directory.first)

    def entries(self) -> Iterator[tuple[str, list[Entry]]]:
        """(destination, live records) of each segment. The first time all of it is checked, and what is wrong is found."""
        findings = Findings() if self._checked else self._findings
        self._checked = True
        checks = _Checks(self._meta, findings)
        done = 0
        for row in self._rows:
            value = self._store.read(row.key) or b""
            done += len(value)
            if done // _TELL_BYTES != (done - len(value)) // _TELL_BYTES:
                self._tell(f"{done // 2**20} MiB of the queues read")
            try:
                name, entries = segments.decode(row.key, value)
            except SpoolDamaged as error:
                findings.error("segments", f"segment {row_of(row.key)}", f"can't be read: {_bare(error)}")
                continue
            checks.segment(row, name, entries, len(value))
            yield name, self._live(row, entries, findings)

    def _live(self, row: _Row, entries: list[Entry], findings: Findings) -> list[Entry]:
        """Those that have not ended."""
        where = f"segment {row_of(row.key)}"
        bitmap = self._store.read(ended_key(row.key))
        if bitmap is None:
            return entries
        try:
            kinds, ended = decode_bitmap(bitmap, len(entries))
        except SpoolDamaged as error:
            findings.error("endings", where, f"which of its records have ended can't be read: {error}")
            return entries
        live = [entry for entry in entries if not ended[entry.index >> 3] & 1 << (entry.index & 7)]
        counted = Counter(entry.kind for entry in live)
        said = {kind: count for kind, count in kinds.items() if count}
        if said != counted:
            findings.error(
                "endings", where, f"its endings say that {_text(said)} wait, its records that {_text(counted)} do"
            )
        if int.from_bytes(ended, "little") >> len(entries):
            findings.error("endings", where, f"endings of more than its {len(entries)} records")
        return live

    def strays(self) -> None:
        """Endings of segments that are not there."""
        known = {row_of(row.key) for row in self._rows}
        for key, _, _ in self._store.tags(Table.ENDED):
            if row_of(key) not in known:
                self._findings.error("endings", f"segment {row_of(key)}", "endings of a segment that is not there")


class _Checks:
    """A segment against its directory, and against what came before it."""

    def __init__(self, meta: Meta, findings: Findings) -> None:
        self._meta = meta
        self._findings = findings
        self._recent: dict[str, set[int]] = {}  # numbers that a segment which begins later may still repeat
        self._pruned: dict[str, int] = {}

    def segment(self, row: _Row, name: str, entries: Sequence[Entry], size: int) -> None:
        where = f"segment {row_of(row.key)}"
        numbers = [entry.number for entry in entries]
        if not entries:
            self._findings.error("segments", where, "holds no record")
            return
        if row_of(row.key) >= self._meta.next_segment:
            self._findings.error(
                "segments", where, f"is not below the number of the next one ({self._meta.next_segment})"
            )
        if any(before >= after for before, after in pairwise(numbers)):
            self._findings.error("numbers", where, "its records' numbers do not rise")
        following = self._meta.next_number.get(name, 1)
        if max(numbers) >= following:
            self._findings.error(
                "numbers",
                where,
                f"record {max(numbers)} of {name} is not below the number of the next one ({following})",
            )
        self._unique(where, name, numbers)
        if row.directory is not None and (
            wrong := _differing(row.directory, _directory(name, entries, row.directory, size))
        ):
            self._findings.error("directories", where, f"its directory differs from its records in {', '.join(wrong)}")

    def _unique(self, where: str, name: str, numbers: list[int]) -> None:
        recent = self._recent.setdefault(name, set())
        if len(recent) > 2 * self._pruned.get(name, 0) + 2**16:
            recent = self._recent[name] = {number for number in recent if number >= numbers[0]}
            self._pruned[name] = len(recent)
        repeated = recent.intersection(numbers)
        if repeated:
            self._findings.error(
                "numbers",
                where,
                f"{len(repeated)} of its numbers stand in another segment of {name} too, the first: {min(repeated)}",
            )
        recent.update(numbers)


def _directory(name: str, entries: Sequence[Entry], found: Directory, size: int) -> Directory:
    """What the directory of these records has to be (`segments.encode`); older ones don't say whose they are."""
    lanes = array("Q", sorted(lane_hash(lane) for lane in {entry.lane for entry in entries}))
    return Directory(
        segments.VERSION, name, entries[0].loss, entries[0].number, entries[-1].number, len(entries), size,
        min(entry.admitted_us for entry in entries), dict(Counter(entry.kind for entry in entries)), lanes.tobytes(),
        None if found.uid is None else segments.uid_of(entries),
    )  # fmt: skip


def _differing(one: Directory, other: Directory) -> list[str]:
    return [name for name in Directory.__struct_fields__ if getattr(one, name) != getattr(other, name)]


def _text(kinds: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "none"


def _bare(error: SpoolDamaged) -> str:
    """Without the place, which is said beside it."""
    return str(error).partition(": ")[2] or str(error)


class SealCheck:
    """Seals over live records: `see` every one of them, then `finish`."""

    def __init__(self, store: Rows, meta: Meta, findings: Findings) -> None:
        self._meta = meta
        self._findings = findings
        self._seals = Seals()
        rows = [(row_of(key), value) for key, value in store.rows(Table.SEAL)]
        for row in self._seals.restore(rows):
            findings.error("seals", f"seals {row}", "can't be read: their batches may be regrouped")
        self._live: dict[int, int] = {}  # by seq: how many of a seal's records are there
        self._lanes: dict[tuple[str, str], list[Seal]] = {}
        for seal in self._seals.all():
            self._lanes.setdefault((seal.destination, seal.lane), []).append(seal)

    def see(self, name: str, entries: Sequence[Entry]) -> None:
        """Live records of a destination."""
        if not self._lanes:
            return
        for entry in entries:
            for seal in self._lanes.get((name, entry.lane), ()):
                if seal.first <= entry.number <= seal.last and entry.number not in seal.exceptions:
                    self._live[seal.seq] = self._live.get(seal.seq, 0) + 1

    def finish(self) -> None:
        """A seal that ended is in its row until its neighbours have: a row of which none is over anything is told, and no error."""
        rows: dict[int, list[Seal]] = {}
        for seal in self._seals.all():
            rows.setdefault(seal.row, []).append(seal)
            self._one(seal, self._live.get(seal.seq, 0))
        for row, seals in rows.items():
            if not any(self._live.get(seal.seq) for seal in seals):
                self._findings.note(
                    "seals", f"seals {row}", f"none of its {len(seals)} batches has a record in the queue any more"
                )

    def _one(self, seal: Seal, live: int) -> None:
        where = f"seal {seal.key}"
        inside = sum(seal.first <= number <= seal.last for number in seal.exceptions)
        following = self._meta.next_number.get(seal.destination, 1)
        if not (0 < seal.first <= seal.last and 0 < seal.count <= seal.last - seal.first + 1 - inside):
            self._findings.error(
                "seals", where, f"{seal.count} records can't lie between {seal.first} and {seal.last} of {seal.lane}"
            )
        elif seal.last >= following:
            self._findings.error(
                "seals",
                where,
                f"is over records {seal.first}-{seal.last} of {seal.destination}, which there never were: the next is {following}",
            )
        elif live > seal.count:
            self._findings.error(
                "seals", where, f"was made over {seal.count} records of {seal.lane}, {live} lie within its bounds"
            )


class Introducers:
    """References that wait for a record of a queue: it has to be there. `see` every live record, then `finish`."""

    def __init__(self, wanted: dict[tuple[str, int], str], findings: Findings) -> None:
        """`wanted`: destination and number of the record → the reference, as text."""
        self._wanted = wanted
        self._findings = findings

    def see(self, name: str, entries: Sequence[Entry]) -> None:
        if self._wanted:
            for entry in entries:
                self._wanted.pop((name, entry.number), None)

    def finish(self) -> None:
        for (name, number), what in self._wanted.items():
            self._findings.error(
                "references", what, f"waits for record {number} of {name}, which is not in its queue any more"
            )
