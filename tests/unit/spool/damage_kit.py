"""What the tests of damage share: a spool in a real folder, and ways to break it.

`RealHarness` opens the store that the daemon uses. A `Story` is a spool with a bit of everything in it, and what must come out of
it again.
"""

import asyncio
import contextlib
import logging
import os
import pickle
import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from uuid import UUID

import msgspec
from spool_kit import DAY_US, SOURCE, Harness, seal_of

from agentd.outcomes import Cause, Learned
from agentd.queued import Death, Ref
from agentd.spool import gaterows
from agentd.spool.checked import pack
from agentd.spool.gaterows import GateRow, Step
from agentd.spool.journal import Journal
from agentd.spool.ledger import Limits
from agentd.spool.recovery import open_spool
from agentd.spool.store import Put, key_of
from agentd.spool.tables import Table

PAGE = 4096
LIMITS = Limits(
    quotas={"cloud": 10**8},
    max_bytes=10**8,
    dead_bytes=10**7,
    window_bytes=10**8,
    directory_bytes=10**6,
    seen_ids=10**4,
)


class RealHarness(Harness):
    """The harness over the store that the daemon uses, with its thread."""

    sync = "full"

    async def open(self, *, start=True, **changes):
        self.spool = await open_spool(
            self.folder,
            sync=self.sync,
            limits=LIMITS,
            identities={"cloud": "agentos at one"} | changes,
            journal=Journal(200 * DAY_US, 10**9),
            now_us=lambda: next(self.clock),
        )
        if start:
            self.spool.start()
        return self.spool

    async def restart(self, **changes):
        await self.spool.close()
        return await self.open(**changes)

    async def stop(self):
        await self.spool.close()
        self.spool = None

    @property
    def database(self):
        return self.folder / "spool" / "cache.db"

    def sql(self, statement, *values):
        with closing(sqlite3.connect(self.database)) as connection, connection:
            return connection.execute(statement, values).fetchall()

    def keys(self, table):
        low, high = key_of(table, 0), key_of(table + 1, 0) - 1
        return [key for (key,) in self.sql("SELECT key FROM Cache WHERE key BETWEEN ? AND ? ORDER BY key", low, high)]

    def change(self, key, value, column="value"):
        assert column in ("value", "tag")
        self.sql(f"UPDATE Cache SET {column} = ? WHERE key = ?", value, key)

    def flip(self, key, column="value", at=-1):
        """One bit of a row."""
        ((content,),) = self.sql(f"SELECT {column} FROM Cache WHERE key = ?", key)
        content = bytearray(content)
        content[at] ^= 0x10
        self.change(key, bytes(content), column)

    def set_aside(self, kind):
        return sorted(path.name for path in (self.folder / "quarantine").glob(f"{kind}*/*"))

    async def seen(self, lane="run:a"):
        return [e.number for e in (await self.filled()).peek(lane)]

    async def bodies(self):
        """Number → body of everything that is queued."""
        queue = await self.filled()
        return {entry.number: entry.body for lane in queue.lanes.values() for entry in lane.entries}


class Trap:
    """Whoever unpickles this leaves a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def pickled(path):
    return pickle.dumps(Trap(path))


# -- the story -----------------------------------------------------------------------------------------------------------


class Story:
    """A spool's folder, and what is queued in it: commits of two records, some of them long, some delivered, one dead."""

    def __init__(self, folder, bodies):
        self.folder = folder
        self.bodies = bodies  # number → body

    def copy(self, folder):
        shutil.copytree(self.folder, folder)
        folder.chmod(0o700)
        return Story(folder, self.bodies)


def gate(row, step):
    return GateRow(
        str(UUID(int=row)), "action", "cloud", SOURCE, -1, f"k{row}", b"d" * 32, "action", f"mine-{row}", None, None,
        b'{"what":"x"}', "platform-key", 5, 5.0, row=row, step=step,
    )  # fmt: skip


async def tell(harness, commits=60):
    """Fill an open spool; gives what is queued at the end."""
    die = random.Random(commits)
    spool = harness.spool
    queued = {}
    await spool.append(
        {},
        puts=[
            gaterows.encode(gate(1, Step.FINAL)),
            gaterows.encode(gate(2, Step.SENDING)),
            Put(key_of(Table.OWNER, 1), pack(b"\x90")),
            Put(key_of(Table.LOST, 1), pack(msgspec.msgpack.encode((False, {"cloud": {}})))),
        ],
    )
    ref = spool.refs.introduce(Ref("cloud", "run", "a", "billing", 1000, 1, touched_us=5, lane="run:a"))
    for commit in range(commits):
        size = 12_000 if commit % 7 == 3 else 300
        kind = "run.start" if commit == 0 else "event"
        records = harness.records(2, kind="event", body=die.randbytes(size))
        records[0].kind = kind
        puts = [Put(key_of(Table.STREAM, 3), pack(die.randbytes(40))), spool.seen(die.randbytes(28), 1)]
        await spool.append({"cloud": records}, puts=puts, introduced=[] if commit else [ref])
        queued |= {entry.number: entry for entry in records}
    entries = list(queued.values())
    for part in (entries[:20:2], entries[1:20:2]):  # ten segments are half done, then wholly
        seal = seal_of(part, key=f"K{part[0].number}")
        await spool.seal(seal)
        await spool.settle(seal, part, [Learned("run", "a", "platform-a")])
    await spool.settle(seal_of(entries[20:21]), entries[20:21])  # the first of a segment
    await spool.bury(None, "cloud", entries[-1:], Death(Cause.REJECTED, "no"))
    await spool.seal(seal_of(entries[30:33], key="open"))
    await spool.barrier()
    return {entry.number: entry.body for entry in entries[21:-1]}


async def left_behind(folder, *, killed, **options):
    """The folder as a stop leaves it, or as kill -9 does: the files as they are while the daemon lives."""
    harness = RealHarness(folder / "alive")
    await harness.open()
    bodies = await tell(harness, **options)
    if killed:
        shutil.copytree(harness.folder, folder / "killed")
    await harness.stop()
    return Story(folder / "killed" if killed else harness.folder, bodies)


def told_beforehand(folder, *, killed):
    """The same for a fixture of a whole module, which has no loop of its own; what the log says meanwhile is nobody's."""
    logger = logging.getLogger("agentd")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        return asyncio.run(left_behind(folder, killed=killed))
    finally:
        logger.setLevel(level)


# -- ways to break it; each takes the folder of the store ------------------------------------------------------------------


def database(folder: Path) -> Path:
    return folder / "cache.db"


def wal(folder: Path) -> Path:
    return folder / "cache.db-wal"


def overwrite(path, offset, content):
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def rubbish(size, seed=1):
    return random.Random(seed).randbytes(size)


def sql(folder, *statements):
    """As somebody with plain sqlite3 would, without the scrubbing of what is deleted."""
    with closing(sqlite3.connect(database(folder))) as connection, connection:
        connection.execute("PRAGMA secure_delete = OFF")
        for statement, *values in statements:
            connection.execute(statement, values)


def frame_at(folder, number):
    """Where the log's frame of that number begins, from 0; negative ones count from the end."""
    path = wal(folder)
    count = (path.stat().st_size - 32) // (24 + PAGE)
    return 32 + (number % count) * (24 + PAGE)


def frame_of_content(folder):
    """Where the log holds a page of contents alone that it holds once, in its later half."""
    content = wal(folder).read_bytes()
    starts = range(32, len(content), 24 + PAGE)
    pages = [content[at : at + 4] for at in starts]
    once = [at for at, page in zip(starts, pages, strict=True) if pages.count(page) == 1 and content[at + 24] == 0]
    return once[len(once) * 3 // 4]


def root_of(folder, name):
    with closing(sqlite3.connect(f"file:{database(folder)}?mode=ro", uri=True)) as connection:
        ((root,),) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (name,)).fetchall()
    return root


def without_log(folder):
    for end in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            (folder / f"cache.db{end}").unlink()
