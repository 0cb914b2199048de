"""Every way of being damaged that was ever met is a row of the table below: how to make it, and what must come of it.

Whatever it is, the daemon starts, what is whole is in the queue, what is not is counted, the log says so, nothing planted was
run, the books balance, and the start after it finds nothing amiss.
"""

import logging
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest
from damage_kit import (
    PAGE,
    RealHarness,
    database,
    frame_at,
    frame_of_content,
    overwrite,
    pickled,
    root_of,
    rubbish,
    sql,
    told_beforehand,
    wal,
)

from agentd.outcomes import State
from agentd.spool.store import key_of
from agentd.spool.tables import Table

ALL, SOME, NONE = "all", "some", "none"


class Fault(NamedTuple):
    """`make` breaks a store's folder. `keeps`: how much of what was queued must be in the queue again."""

    name: str
    make: Callable[[Path], object]
    keeps: str = ALL
    said: str = (
        ""  # a regular expression that a line of the log, of level error, fits; "" for a start that has nothing to say
    )
    killed: bool = False  # made of what a kill -9 left, the log beside the database; else of what a stop left
    counted: bool = True  # the books know how many records are missing
    doubles: bool = False  # what was delivered before may come back
    letters: int = 0  # dead ones that are set aside with it
    rebuilt: bool = True  # the whole store is set aside, and a new one made
    settles: bool = (
        True  # the next start has nothing to say; a gate that nobody knows of any more stays, for its key's sake
    )


def flip(table, row=1, column="value", at=20):
    """A bit of a row, with plain sqlite3."""

    def make(folder):
        ((content,),) = select(folder, f"SELECT {column} FROM Cache WHERE key = ?", key_of(table, row))
        broken = bytearray(content)
        broken[at % len(broken)] ^= 0x04
        sql(folder, (f"UPDATE Cache SET {column} = ? WHERE key = ?", bytes(broken), key_of(table, row)))

    return make


def select(folder, statement, *values):
    with closing(sqlite3.connect(database(folder))) as connection:
        return connection.execute(statement, values).fetchall()


def plant(**columns):
    """A row as somebody else would write it."""

    def make(folder):
        facts = {"key": key_of(Table.SEGMENT, 900), "raw": 1, "mode": 1, "value": b"x", "size": 0, "store_time": 0.0}
        facts |= {k: v(folder) if callable(v) else v for k, v in columns.items()}
        marks = ", ".join("?" * len(facts))
        sql(folder, (f"INSERT OR REPLACE INTO Cache ({', '.join(facts)}) VALUES ({marks})", *facts.values()))

    return make


def trap(folder):
    return pickled(folder.parent / "executed")


def zero(page):
    """A page of the database, by number or by the name of the tree that it is the root of."""

    def make(folder):
        number = page if isinstance(page, int) else root_of(folder, page)
        overwrite(database(folder), (number - 1) * PAGE, bytes(PAGE))

    return make


def leaf(folder, number=-2):
    """The page of one of the table's leaves, in file order."""
    content = database(folder).read_bytes()
    pages = [at // PAGE + 1 for at in range(0, len(content), PAGE) if content[at] == 0x0D and at // PAGE > 6]
    return pages[number]


def cut(path, share):
    def make(folder):
        size = path(folder).stat().st_size
        with path(folder).open("r+b") as file:
            file.truncate(int(size * share))

    return make


def flip_index_key(folder):
    """The last byte of the first key in a leaf of the unique index: a row that is there, and found under another key."""
    content = database(folder).read_bytes()
    for at in range(0, len(content), PAGE):
        first = int.from_bytes(content[at + 8 : at + 10], "big")
        entry = content[at + first : at + first + 14]
        if content[at] == 0x0A and entry[1:2] == b"\x04":  # a record of three columns
            overwrite(database(folder), at + first + 5 + 6, bytes([entry[11] ^ 0x40]))
            return
    raise AssertionError("no leaf of the index found")


def everything(*steps):
    def make(folder):
        for step in steps:
            step(folder)

    return make


SET_ASIDE = r"spool damaged: .*set aside in .*quarantine.*beginning a new one"
LOST = r"cloud: \d+ records \(\w+[.\w]*\) are missing on disk: booked as quarantined; they are among the numbers "

ENDLESS = (
    "CREATE VIEW Cache AS WITH RECURSIVE c(x) AS (VALUES (1) UNION ALL SELECT x + 1 FROM c) "
    "SELECT x AS key, 1 AS raw, x AS value FROM c"
)
FAULTS = [
    # -- the database
    Fault("truncated at half", cut(database, 0.5), SOME, SET_ASIDE, doubles=True),
    Fault("truncated within a page", cut(database, 0.71), SOME, SET_ASIDE, doubles=True),
    Fault("truncated at half, log beside it", cut(database, 0.5), ALL, SET_ASIDE, killed=True),
    Fault("64 KiB of garbage in the middle", lambda f: overwrite(database(f), 40 * PAGE, rubbish(65536)), SOME, SET_ASIDE),
    Fault("header zeroed", lambda f: overwrite(database(f), 0, bytes(100)), ALL, SET_ASIDE),
    Fault("first page zeroed", zero(1), ALL, SET_ASIDE),
    Fault("header names another page size", lambda f: overwrite(database(f), 16, b"\x20\x00"), ALL, SET_ASIDE),
    Fault("first ten pages zeroed", lambda f: overwrite(database(f), 0, bytes(10 * PAGE)), SOME, SET_ASIDE, counted=False, doubles=True),
    Fault("root of the table zeroed", zero("Cache"), ALL, SET_ASIDE),
    Fault("root of the unique index zeroed", zero("Cache_key_raw"), ALL, SET_ASIDE),
    Fault("both roots zeroed", everything(zero("Cache"), zero("Cache_key_raw")), ALL, SET_ASIDE, doubles=True),
    Fault("a key in the unique index flipped", flip_index_key, ALL, SET_ASIDE),
    Fault("pointer map zeroed", zero(2), ALL, SET_ASIDE),
    Fault("a leaf zeroed", lambda f: zero(leaf(f))(f), SOME, LOST),
    Fault("a leaf scrambled", lambda f: overwrite(database(f), (leaf(f) - 1) * PAGE, rubbish(PAGE)), SOME, LOST),
    Fault("schema says the table is elsewhere", lambda f: sql(f, ("PRAGMA writable_schema = ON",), ("UPDATE sqlite_master SET rootpage = 3 WHERE name = 'Cache'",)), ALL, SET_ASIDE),
    Fault("the Cache table dropped", lambda f: sql(f, ("DROP TABLE Cache",)), ALL, SET_ASIDE, counted=False, doubles=True),
    Fault("the Settings table dropped", lambda f: sql(f, ("DROP TABLE Settings",)), ALL, SET_ASIDE),
    Fault("a zero-length file", lambda f: database(f).write_bytes(b""), NONE, SET_ASIDE, counted=False),
    Fault("garbage from end to end", lambda f: database(f).write_bytes(rubbish(10**6)), NONE, SET_ASIDE, counted=False),
    Fault("zeros from end to end", lambda f: database(f).write_bytes(bytes(10**6)), NONE, SET_ASIDE, counted=False),
    Fault("text from end to end", lambda f: database(f).write_bytes(b"garbage " * 999), NONE, SET_ASIDE, counted=False),
    # -- the write-ahead log, and the database beside it
    Fault("a zero-length file, all of it in the log", lambda f: database(f).write_bytes(b""), ALL, SET_ASIDE, killed=True),
    Fault("the database deleted, all of it in the log", lambda f: database(f).unlink(), ALL, SET_ASIDE, killed=True),
    Fault("the log scrambled in the middle", lambda f: overwrite(wal(f), frame_of_content(f), rubbish(20_000)), SOME, SET_ASIDE, killed=True, doubles=True),
    Fault("the same without the index beside it", everything(lambda f: overwrite(wal(f), frame_of_content(f), rubbish(20_000)), lambda f: (f / "cache.db-shm").unlink()), SOME, SET_ASIDE, killed=True, doubles=True),
    Fault("one bit of one frame of the log", lambda f: overwrite(wal(f), frame_of_content(f) + 2000, b"\xaa\x55"), SOME, SET_ASIDE, killed=True, doubles=True),
    Fault("the log's header zeroed", lambda f: overwrite(wal(f), 0, bytes(32)), ALL, SET_ASIDE, killed=True),
    Fault("the same without the index beside it", everything(lambda f: overwrite(wal(f), 0, bytes(32)), lambda f: (f / "cache.db-shm").unlink()), ALL, SET_ASIDE, killed=True),
    Fault("the log cut off", cut(wal, 0.5), SOME, "of the write-ahead log lost", killed=True, counted=False, doubles=True),
    Fault("the log's end scrambled", lambda f: overwrite(wal(f), frame_at(f, -90), rubbish(90 * (PAGE + 24))), SOME, "of the write-ahead log lost", killed=True, counted=False, doubles=True),
    Fault("the log deleted", lambda f: wal(f).unlink(), NONE, "frames of the write-ahead log lost", killed=True, counted=False),
    Fault("the index beside the log scrambled", lambda f: (f / "cache.db-shm").write_bytes(rubbish(32768)), ALL, "", killed=True, rebuilt=False),
    # -- single rows
    Fault("a segment's bytes", flip(Table.SEGMENT, 20), SOME, r"segment 0x\w+: wrong checksum: 2 records \(numbers 39-40\) set aside", rebuilt=False),
    Fault("a long segment's bytes", flip(Table.SEGMENT, 18, at=20_000), SOME, r"wrong checksum: 2 records \(numbers 35-36\)", rebuilt=False),
    Fault("a segment's directory", flip(Table.SEGMENT, 20, "tag"), ALL, "made anew from the records", rebuilt=False),
    Fault("a segment and its directory", everything(flip(Table.SEGMENT, 20), flip(Table.SEGMENT, 20, "tag")), SOME, LOST + "1-20, 39-40", rebuilt=False),
    Fault("which records have ended", flip(Table.ENDED, 11, at=6), ALL, "all are sent again", rebuilt=False, doubles=True),
    Fault("a seal", flip(Table.SEAL, 3), ALL, "seals 3: damaged", rebuilt=False),
    Fault("a dead letter", flip(Table.DEAD, 1, at=60), ALL, "", rebuilt=False),
    Fault("a dead letter's tag", flip(Table.DEAD, 1, "tag", at=8), ALL, "made anew from the row", rebuilt=False),
    Fault("a dead letter and its tag", everything(flip(Table.DEAD, 1, at=60), flip(Table.DEAD, 1, "tag", at=8)), ALL, "dead letter.*set aside", letters=1, rebuilt=False),
    Fault("an entry of the journal", flip(Table.JOURNAL, 2, at=60), ALL, "", rebuilt=False),
    Fault("seen ids", flip(Table.SEEN, 5), ALL, "some repeats may be stored twice", rebuilt=False),
    Fault("a stream", flip(Table.STREAM, 3, at=5), ALL, "repeats may be stored twice", rebuilt=False),
    Fault("a reference", flip(Table.REF, 1), ALL, "1 references to runs were made anew from the journal", rebuilt=False),
    Fault("the meta row", flip(Table.META, 0), ALL, "meta row: .*: rebuilt from the others", rebuilt=False),
    Fault("the meta row's format alone", flip(Table.META, 0, at=1), ALL, "", rebuilt=False),
    Fault("a gate", flip(Table.GATE, 1), ALL, "", rebuilt=False),
    Fault("a gate's tag", flip(Table.GATE, 1, "tag"), ALL, "gate 1: brief: wrong checksum: made anew from the row", rebuilt=False),
    Fault("a gate that was under way", flip(Table.GATE, 2), ALL, "gate 2: wrong checksum: its key is kept, what became of it is unknown", rebuilt=False, settles=False),
    Fault("a gate and its tag", everything(flip(Table.GATE, 1), flip(Table.GATE, 1, "tag")), ALL, "gate 1: wrong checksum: set aside", rebuilt=False),
    Fault("a gate and the file's header", everything(flip(Table.GATE, 2), lambda f: overwrite(database(f), 0, bytes(100))), ALL, "gate 2: wrong checksum: its key is kept", settles=False),
    Fault("who owns a run", flip(Table.OWNER, 1, at=3), ALL, "owner 1: wrong checksum: its run is not watched any more: set aside", rebuilt=False),
    Fault("what runs lost", flip(Table.LOST, 1, at=8), ALL, "some runs are told twice of it, or never: set aside", rebuilt=False),
    # -- planted
    Fault("a pickle as a value", plant(mode=4, value=trap), ALL, "1 rows that agentd did not write", rebuilt=False),
    Fault("a pickle as a key", plant(key=trap, raw=0), ALL, "1 rows that agentd did not write", rebuilt=False),
    Fault("a pickle in the place of the meta row", plant(key=key_of(Table.META, 0), mode=4, value=trap), ALL, "meta row", rebuilt=False),
    Fault("a file name", plant(mode=2, value=None, filename="../../secret"), ALL, "1 rows that agentd did not write", rebuilt=False),
    Fault("a pickle and a broken header", everything(plant(mode=4, value=trap), lambda f: overwrite(database(f), 0, bytes(100))), ALL, "1 rows that agentd did not write left out"),
    Fault("a setting", lambda f: sql(f, ("INSERT INTO Settings VALUES ('_directory', '/elsewhere')",)), ALL, "its settings hold"),
    Fault("a pragma as a setting", lambda f: sql(f, ("INSERT INTO Settings VALUES ('sqlite_temp_store_directory', '/')",)), ALL, "its settings hold"),
    Fault("a trigger that deletes", lambda f: sql(f, ("CREATE TRIGGER Sweep AFTER INSERT ON Cache BEGIN DELETE FROM Cache; END",)), ALL, "its schema holds trigger Sweep"),
    Fault("a trigger of a name of diskcache's", lambda f: sql(f, ("DROP TRIGGER Settings_count_insert",), ("CREATE TRIGGER Settings_count_insert AFTER INSERT ON Cache BEGIN DELETE FROM Cache; END",)), ALL, "its schema holds trigger"),
    Fault("an index over an expression", lambda f: sql(f, ("CREATE INDEX Slow ON Cache (abs(size))",)), ALL, "its schema holds index Slow"),
    Fault("an endless view in the place of the table", lambda f: sql(f, ("ALTER TABLE Cache RENAME TO Other",), (ENDLESS,)), ALL, "its schema holds", counted=False, doubles=True),
]  # fmt: skip


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    """What a kill and what a stop leave behind."""
    return {killed: told_beforehand(tmp_path_factory.mktemp("story"), killed=killed) for killed in (True, False)}


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
async def test_a_known_fault(fault, stories, tmp_path, caplog):
    """Promises 1, 8: what is whole is kept, what is damaged is set aside, loudly and with a count, and nothing foreign runs."""
    caplog.set_level(logging.INFO, "agentd")
    story = stories[fault.killed].copy(tmp_path / "state")
    fault.make(story.folder / "spool")
    harness = RealHarness(tmp_path)
    spool = await harness.open()
    try:
        found = await harness.bodies()
        kept = {number for number in found if found[number] == story.bodies.get(number)}
        back = found.keys() - story.bodies.keys()
        assert kept | back == found.keys()
        assert fault.doubles or not back, f"came back: {sorted(back)}"
        assert_kept(fault.keeps, len(kept), len(story.bodies))
        assert harness.balanced()
        quarantined = spool.books.total("cloud", State.QUARANTINED)
        assert quarantined == (max(0, len(story.bodies) - len(found)) if fault.counted else 0) + fault.letters
        assert_said(fault.said, errors(caplog))
        assert bool(list(story.folder.glob("quarantine/*/spool"))) == fault.rebuilt
        assert not list(tmp_path.rglob("executed"))
        await harness.put(1)
    finally:
        await harness.stop()
    caplog.clear()
    await harness.open()
    assert len(await harness.bodies()) == len(found) + 1
    await harness.stop()
    assert errors(caplog) == [] or not fault.settles


def errors(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def assert_said(expected, said):
    assert bool(expected) == bool(said), said
    assert not expected or any(re.search(expected, line) for line in said), said


def assert_kept(keeps, kept, queued):
    least, most = {ALL: (queued, queued), SOME: (1, queued - 1), NONE: (0, 0)}[keeps]
    assert least <= kept <= most, f"{kept} of {queued}"
