"""The real daemon over a damaged spool: it comes up, delivers what is whole, and says what is not, in the log and in its books.

One platform and a daemon for each way of damage. All of them have a run delivered and two runs waiting, some of it sealed and
tried, when the platform is away and they are killed; then each folder is damaged in its own way, and each is started again.
"""

import os
import pickle
import random
import re
import sqlite3
from collections import Counter
from contextlib import ExitStack, closing
from typing import NamedTuple

import pytest
from harness import Frames, Ledger, World, wait_for

from agentd.spool import segments
from agentd.spool.store import key_of
from agentd.spool.tables import Table

PAGE = 4096
FRAME = PAGE + 24
WAITING = 40  # envelopes of three events, two for every run that waits
EXPECTED = {"quarantine", "repaired", "recovered", "reseal"}


class Case(NamedTuple):
    """One daemon, what it was told, and the platform of all."""

    daemon: object
    ledger: Ledger
    platform: object


# -- the story -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cases():
    """All daemons, killed over their queues; the platform is back."""
    with ExitStack() as stack:
        world = World()
        stack.callback(world.close)
        daemons = {name: world.daemon(name, start=False) for name in DAMAGES}
        for daemon in daemons.values():
            daemon.spawn()
        for daemon in daemons.values():
            wait_for(daemon._is_up, 30, daemon.tail)
        ledgers = {name: Ledger() for name in DAMAGES}
        clients = {name: stack.enter_context(Frames(daemon)) for name, daemon in daemons.items()}
        for name, client in clients.items():
            client.deliver(ledgers[name], ledgers[name].whole_run(f"{name}-done", 20))
        for daemon in daemons.values():
            assert daemon.drained()["delivered"] == 22
        world.platform.down()
        for name, client in clients.items():
            wait_in_line(client, ledgers[name], name)
        for daemon in daemons.values():
            wait_for(lambda daemon=daemon: daemon.books()["reason"], 10, daemon.books)  # it has tried, and failed
            daemon.kill()
        world.platform.up()
        yield {name: Case(daemon, ledgers[name], world.platform) for name, daemon in daemons.items()}


def wait_in_line(client, ledger, name):
    for run in ("b", "c"):
        client.deliver(ledger, [ledger.start(f"{name}-{run}")])
    for number in range(WAITING):
        run = f"{name}-{'bc'[number % 2]}"
        client.deliver(ledger, ledger.events_of(run, 3, size=6000 if number % 5 == 2 else 700))


# -- the damages; each takes the folder of the store -----------------------------------------------------------------------


def checkpointed(folder):
    """As any tool that looks into it leaves it: all of the log is in the database."""
    with closing(sqlite3.connect(folder / "cache.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def overwrite(path, offset, content):
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def rubbish(size):
    return random.Random(size).randbytes(size)


def truncated(folder):
    checkpointed(folder)
    os.truncate(folder / "cache.db", (folder / "cache.db").stat().st_size // 2)


def garbage(folder):
    checkpointed(folder)
    overwrite(folder / "cache.db", (folder / "cache.db").stat().st_size // 2 // PAGE * PAGE, rubbish(65536))


def headless(folder):
    checkpointed(folder)
    overwrite(folder / "cache.db", 0, bytes(100))


def emptied(folder):
    os.truncate(folder / "cache.db", 0)


def scrambled_log(folder):
    """In the middle of what waits: contents that the log holds once, and commits behind them."""
    log = (folder / "cache.db-wal").read_bytes()
    starts = range(32, len(log), FRAME)
    pages = Counter(log[at : at + 4] for at in starts)
    once = [at for at in starts if pages[log[at : at + 4]] == 1 and log[at + 24] == 0]
    overwrite(folder / "cache.db-wal", once[len(once) * 2 // 3], rubbish(9000))


def cut_log(folder):
    size = (folder / "cache.db-wal").stat().st_size
    os.truncate(folder / "cache.db-wal", size - 60 * FRAME)


def dropped(folder):
    with closing(sqlite3.connect(folder / "cache.db")) as connection, connection:
        connection.execute("PRAGMA secure_delete = OFF")  # Debian's SQLite scrubs what it deletes
        connection.execute("DROP TABLE Cache")


def rows(folder, table):
    with closing(sqlite3.connect(folder / "cache.db")) as connection:
        sql = "SELECT key, value, tag FROM Cache WHERE key BETWEEN ? AND ? ORDER BY key"
        return connection.execute(sql, (key_of(table, 0), key_of(table + 1, 0) - 1)).fetchall()


def flip(folder, key, value):
    with closing(sqlite3.connect(folder / "cache.db")) as connection, connection:
        broken = value[:200] + bytes([value[200] ^ 4]) + value[201:]
        connection.execute("UPDATE Cache SET value = ? WHERE key = ?", (broken, key))


def flipped_segment(folder):
    """Three events of the second half."""
    found = [(key, value) for key, value, tag in rows(folder, Table.SEGMENT) if events_in(key, tag) == 3]
    flip(folder, *found[len(found) // 2])


def events_in(key, tag):
    kinds = segments.decode_directory(key, tag).kinds
    return kinds.get("event", 0) if set(kinds) == {"event"} else 0


class Trap:
    """Whoever unpickles this leaves a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def planted_rows(folder):
    """A pickle, a way out of the folder, and a journal entry that is not what was written."""
    trap = pickle.dumps(Trap(folder.parent / "executed"))
    secret = folder.parent / "secret"
    secret.write_text("precious")
    key, value, _ = rows(folder, Table.JOURNAL)[0]
    flip(folder, key, value)
    with closing(sqlite3.connect(folder / "cache.db")) as connection, connection:
        sql = "INSERT INTO Cache (key, raw, mode, value, filename, size, store_time) VALUES (?, 1, ?, ?, ?, 0, 0)"
        connection.execute(sql, (key_of(Table.SEGMENT, 9001), 4, trap, None))
        connection.execute(sql, (key_of(Table.SEGMENT, 9002), 2, None, "../secret"))


def planted_settings(folder):
    with closing(sqlite3.connect(folder / "cache.db")) as connection, connection:
        connection.execute("INSERT INTO Settings VALUES ('_directory', '/elsewhere')")
        connection.execute("CREATE TRIGGER Sweep AFTER INSERT ON Cache BEGIN DELETE FROM Cache; END")


REBUILT = r"spool damaged: \S*cache\.db\S*: .*set aside in \S*/quarantine/\S+, beginning a new one: .*\d+ segment.* rows taken over; "


class Damage(NamedTuple):
    make: object
    said: str  # what a line of the log says, and how many lines of level error there are at most beside it
    loses: bool = False  # records
    counted: bool = True  # and the books say how many
    doubles: bool = False  # what was delivered before may be delivered again


DAMAGES = {
    "half": Damage(truncated, REBUILT, loses=True, doubles=True),
    "garbage": Damage(garbage, REBUILT + r".*\d+ segment lost", loses=True, doubles=True),
    "header": Damage(headless, REBUILT + "nothing lost"),
    "empty": Damage(emptied, REBUILT + "nothing lost"),
    "log": Damage(scrambled_log, REBUILT + r".*\d+ frames of the write-ahead log lost", loses=True, doubles=True),
    "cutlog": Damage(cut_log, REBUILT + r".*\d+ frames of the write-ahead log lost", loses=True, counted=False),
    "dropped": Damage(dropped, REBUILT, counted=False, doubles=True),
    "segment": Damage(flipped_segment, r"segment 0x\w+: wrong checksum: 3 records \(numbers \d+-\d+\) set aside", loses=True),
    "rows": Damage(planted_rows, r"2 rows that agentd did not write were set aside in \S*/quarantine/foreign-rows"),
    "settings": Damage(planted_settings, REBUILT + "nothing lost"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_daemon_comes_up_and_delivers_what_is_whole(cases, name):
    """Promises 1, 8: what was whole is delivered once, the rest is counted and said, the books balance, and nothing planted runs."""
    damage, case = DAMAGES[name], cases[name]
    daemon = case.daemon
    daemon.expected = EXPECTED
    damage.make(daemon.state / "spool")
    daemon.start()
    books = daemon.drained()
    lost = missing(case, doubles=damage.doubles)
    dead = sum(letter["kind"] == "event" for letter in daemon.dead_letters())
    assert bool(lost) == damage.loses, f"{len(lost)} lost"
    if damage.counted:
        assert len(lost) == books["quarantined"] + dead, books
    assert [line for line in daemon.entries("quarantine") if re.search(damage.said, line["message"])], daemon.tail()
    assert daemon.faults_in_log() == []
    assert not (daemon.state / "executed").exists()
    assert daemon.stop() == 0
    modes = {path.stat().st_mode & 0o077 for path in [daemon.state, *daemon.state.rglob("*")] if path.name != "secret"}
    assert modes == {0}
    daemon.expected = set()
    daemon.log.write_text("")
    daemon.start()
    assert daemon.balanced()["queued"] == 0
    assert daemon.stop() == 0
    assert daemon.faults_in_log() == []


def missing(case, *, doubles):
    """What was acknowledged and is not at the platform; what is there is in order and, but for `doubles`, there once."""
    lost = set()
    for run, acknowledged in case.ledger.events.items():
        found = case.platform.run(run)
        numbers = [event["payload"]["n"] for event in found["events"] if "n" in event["payload"]] if found else []
        assert set(numbers) <= acknowledged
        if not doubles:
            assert len(numbers) == len(set(numbers)), f"{run}: twice"
        first = list(dict.fromkeys(numbers))
        assert first == sorted(first), f"{run} is out of order"
        lost |= {(run, number) for number in acknowledged - set(numbers)}
    return lost
