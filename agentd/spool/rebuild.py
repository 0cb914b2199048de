"""A new store out of what is whole of a damaged one.

The damaged one is only read, where it lies, and the new one counts for nothing until it is complete and takes its place
(`Folder.swap`): a start that is killed on the way does it all again. What fails its checksum, and what was written by
somebody else, is not taken over; the damaged store goes to the quarantine whole. Many rows carry a checksum of their own;
those of format 1 that carry none are taken as they are, and recovery looks at each again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct, field

from agentd.errors import SpoolDamaged
from agentd.spool import gaterows, segments
from agentd.spool.checked import unpack
from agentd.spool.salvage import Row, Salvage
from agentd.spool.segments import Directory
from agentd.spool.store import TABLE_BITS, Put, Rows, row_of
from agentd.spool.tables import Table, decode_meta
from agentd.vitals import Pace

_COMMIT_BYTES = 4 * 2**20
_TABLES = frozenset(Table)
# Rows that are written once and never changed, and endings, of which an older state means that something is sent again: an older
# version does where the newest is damaged. Of the others it would lie: a gate that has left would seem not to have.
_ANY_VERSION = {Table.SEGMENT, Table.ENDED, Table.SEAL, Table.DEAD, Table.JOURNAL, Table.SEEN}


class Lost(Struct):
    """A row that could not be taken over. `directory` says which records it held, where that can be read."""

    key: int
    reason: str
    directory: Directory | None = None


class Rebuilt(Struct):
    """What became of a damaged store."""

    taken: Counter[str] = field(default_factory=Counter)  # rows by table
    stray: int = 0  # of these, rows that the table did not lead to any more: they may have been deleted
    lost: list[Lost] = field(default_factory=list)
    foreign: int = 0
    broken: int = 0  # pages and cells
    frames: int = 0  # of the write-ahead log, lost
    counted: bool = True  # whether `lost` is all that there was

    @property
    def numbers(self) -> dict[str, list[tuple[int, int]]]:
        """Destination → ranges of numbers that held what is lost; nothing unless every lost row says so."""
        found: dict[str, list[tuple[int, int]]] = {}
        for each in self.lost:
            if each.directory is not None:
                found.setdefault(each.directory.destination, []).append((each.directory.first, each.directory.last))
            elif each.key >> TABLE_BITS == Table.SEGMENT:
                return {}
        return found if self.counted else {}

    def may_lack(self, table: Table) -> bool:
        """Whether rows of a table may be lost."""
        return not self.counted or any(each.key >> TABLE_BITS == table for each in self.lost)

    def __str__(self) -> str:
        lost = Counter(Table(each.key >> TABLE_BITS).name for each in self.lost)
        known = "" if self.counted else " that is known of"
        parts = [f"{_by_table(self.taken) or 'no'} rows taken over", f"{_by_table(lost) or 'nothing'} lost{known}"]
        if self.foreign:
            parts.append(f"{self.foreign} rows that agentd did not write left out")
        if self.frames:
            parts.append(f"{self.frames} frames of the write-ahead log lost, and what was acknowledged in them")
        if lost[Table.ENDED.name]:
            parts.append("records whose ending is lost are sent a second time")
        if self.stray:
            parts.append(f"{self.stray} found outside of the table's tree: what they hold may be sent a second time")
        return "; ".join(parts)


def _by_table(rows: Counter[str]) -> str:
    return ", ".join(f"{count} {table.lower()}" for table, count in sorted(rows.items()))


def is_ours(key: int) -> bool:
    """Whether a key is of one of agentd's tables."""
    return key >> TABLE_BITS in _TABLES


def needed_bytes(source: Salvage) -> int:
    """Room that a new store takes: its rows, its indexes, and the write-ahead log on its way."""
    found, pages = source.found, source.pages
    size = min(found.bytes, pages.count * pages.size)  # no more than there is, whatever a planted row says of itself
    rows = size + size // 8 + 512 * (found.live + found.stray)
    return rows + min(rows, 2 * _COMMIT_BYTES) + 2**18


def rebuild(source: Salvage, store: Rows, made: Rebuilt) -> None:
    """Write what is whole into an empty store, in commits of a few megabytes, and say so in `made`. Call `source.survey` before.

    Raises DiskFull, sqlite3.Error, NewerFormat.
    """
    found = source.found
    made.foreign, made.broken, made.frames = found.foreign, found.broken, source.pages.log.lost
    made.counted = found.missing is not None and not made.frames
    puts: list[Put] = []
    size = 0
    for key, versions in source.rows():
        put = _best(key, versions, made)
        if put is None:
            continue
        puts.append(put)
        size += len(put.value)
        if size > _COMMIT_BYTES:
            store.commit(puts, [])
            puts, size = [], 0
    if puts:
        store.commit(puts, [])
    made.lost += [Lost(key, f"row {key:#x}: its page is damaged") for key in found.missing or ()]


def _best(key: int, versions: Iterator[Row], made: Rebuilt) -> Put | None:
    """The first version that is whole, None if there is none that may be taken."""
    lost: Lost | None = None
    table = Table(key >> TABLE_BITS)
    for row in versions:
        try:
            put = _checked(table, row)
        except SpoolDamaged as error:
            lost = lost or Lost(key, str(error), _directory(table, row))
            if table not in _ANY_VERSION:
                break
            continue
        made.taken[table.name] += 1
        made.stray += row.stray
        return put
    if lost is not None:
        made.lost.append(lost)
    return None


def _checked(table: Table, row: Row) -> Put:
    """The row as it was written. Raises SpoolDamaged; NewerFormat for the spool of a newer agentd."""
    value = row.value
    if table is Table.GATE:
        _check_gate(row)
        return Put(row.key, value or b"", row.tag)
    if value is None:
        raise SpoolDamaged(f"row {row.key:#x}: a part of it is missing")
    if table is Table.SEGMENT:
        segments.check(row.key, value)
    elif table is Table.META:
        decode_meta(value)
    else:
        unpack(value)
    return Put(row.key, value, row.tag)


def _check_gate(row: Row) -> None:
    """Either half of it keeps its key from being used again. Raises SpoolDamaged."""
    try:
        gaterows.decode_brief(row_of(row.key), row.tag)
    except SpoolDamaged:
        gaterows.decode(row_of(row.key), row.value)


def _directory(table: Table, row: Row) -> Directory | None:
    if table is not Table.SEGMENT:
        return None
    try:
        return segments.decode_directory(row.key, row.tag)
    except SpoolDamaged:
        return None


def salvage_of(folder: Path, *, synced: bool, pace: Pace | None = None) -> Salvage:
    """A damaged store's rows. `synced`: each commit was; `pace` is stepped on the way through them."""
    return Salvage(folder, is_ours, synced=synced, pace=pace)
