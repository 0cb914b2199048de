"""A spool in a real folder with the real store, with something in each table; and hands that change rows behind its back.

As a program (`python look_kit.py FOLDER`) it fills a folder and kills itself.
"""

import asyncio
import hashlib
import itertools
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import msgspec
from spool_kit import DAY_US, Harness, limits, seal_of

from agentd.gating import Word
from agentd.outcomes import Cause, Learned
from agentd.queued import Death, Ref, Source
from agentd.records import LossClass
from agentd.spool.gaterows import GateRow, Step
from agentd.spool.gates import GateShelf
from agentd.spool.journal import Journal
from agentd.spool.recovery import open_spool
from agentd.spool.store import key_of

GATE_ID = "0190f3a0-0000-7000-8000-00000000000a"
RUN = b'{"kind":"run.start","run_id":"a"}'
DECISION = b'{"kind":"decision","context":"c","decision_id":"d-1","run_id":"a"}'
EVENT = b'{"kind":"event","run_id":"a","type":"t"}'


class Disk(Harness):
    """Opens spools over one folder with the store that the daemon uses, in its thread."""

    def __init__(self, folder):
        super().__init__(folder)
        self.clock = itertools.count(1_767_225_600_000_000)

    async def open(self, *, start=True, **changes):
        self.spool = await open_spool(
            self.folder,
            sync="full",
            limits=limits(**changes),
            identities=self.identities,
            journal=Journal(200 * DAY_US, 10**9),
            now_us=lambda: next(self.clock),
        )
        if start:
            self.spool.start()
        return self.spool

    async def stop(self):
        if self.spool is not None:
            await self.spool.close()
        self.spool = None

    async def fill(self):
        """A run whose start is delivered, events and a decision that wait, a sealed batch, a dead letter, a shed segment, a gate."""
        spool = self.spool
        ref = Ref("cloud", "run", "a", "billing", 1000, 1, touched_us=5, lane="run:a")
        (start,) = self.records(1, kind="run.start", body=RUN)
        await spool.append({"cloud": [start]}, introduced=[spool.refs.introduce(ref)])
        seal = seal_of([start], key="start-key")
        await spool.seal(seal)
        await spool.settle(seal, [start], [Learned("run", "a", "platform-run-a")])
        decisions = self.records(2, kind="decision", body=DECISION)
        events = [
            *self.records(4, body=EVENT),
            *self.records(2, loss=LossClass.INFO, body=EVENT),
            *self.records(2, loss=LossClass.DEBUG, body=EVENT),
        ]
        await spool.append({"cloud": [*decisions, *events], "local": self.records(2, "local", body=EVENT)})
        sealed = seal_of(events[:2], key="batch-key")
        await spool.seal(sealed)
        death = Death(Cause.REJECTED, "409 no", tries=3, status=409, answer="no", key="dead-key")
        await spool.bury(None, "cloud", [decisions[1], events[3]], death)
        full = spool.limits.quotas["cloud"] - spool.queues["cloud"].stored_bytes
        assert spool.room_for("cloud", full + 1, LossClass.KEEP)  # for which the debug events go
        await spool.barrier()
        shelf = GateShelf(spool)
        gate = gate_row(shelf.new_row())
        await shelf.save(gate, ["asked"], shelf.introduce(gate))
        gate.step, gate.word, gate.proceed, gate.platform_id = Step.FINAL, Word.ALLOW, True, "platform-gate"
        shelf.learn(gate)
        await shelf.save(gate, ["allow"])

    # -- behind its back -----------------------------------------------------------------------------------------------

    def sql(self, statement, *values):
        with closing(sqlite3.connect(self.folder / "spool" / "cache.db")) as connection, connection:
            return connection.execute(statement, values).fetchall()

    def keys(self, table):
        low, high = key_of(table, 0), key_of(table + 1, 0) - 1
        return [key for (key,) in self.sql("SELECT key FROM Cache WHERE key BETWEEN ? AND ? ORDER BY key", low, high)]

    def value(self, key, column="value"):
        ((value,),) = self.sql(f"SELECT {column} FROM Cache WHERE key = ?", key)
        return value

    def change(self, key, value, column="value"):
        self.sql(f"UPDATE Cache SET {column} = ? WHERE key = ?", value, key)

    def delete(self, key):
        self.sql("DELETE FROM Cache WHERE key = ?", key)

    def insert(self, key, value, tag=None):
        self.sql("INSERT INTO Cache (key, raw, mode, value, tag) VALUES (?, 1, 1, ?, ?)", key, value, tag)


def gate_row(row):
    return GateRow(
        GATE_ID, "decide", "cloud", Source("billing", 1000, 42, "http"), -1, "pay-7", b"d" * 32, "decision", "verdict-7",
        "a", None, b"{}", "gate-key", 1_767_225_600_000_500, 5.0, row=row,
    )  # fmt: skip


def files_of(folder):
    """Name → (digest, owner, mode, time of change) of every file below a folder."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        info = path.lstat()
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path.relative_to(folder))] = (digest, info.st_uid, info.st_mode, info.st_mtime_ns)
    return found


def killed(folder):
    """A spool that a daemon has left without closing it."""
    done = subprocess.run([sys.executable, __file__, str(folder)], check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return Disk(folder)


async def _fill_and_die(folder):
    disk = Disk(folder)
    await disk.open()
    await disk.fill()
    os.kill(os.getpid(), signal.SIGKILL)


def repacked(value, change):
    """A msgpack row with a change made to what it says."""
    fields = msgspec.msgpack.decode(value)
    change(fields)
    return msgspec.msgpack.encode(fields)


if __name__ == "__main__":
    asyncio.run(_fill_and_die(Path(sys.argv[1])))
