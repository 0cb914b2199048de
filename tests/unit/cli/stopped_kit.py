"""A state folder as a stopped daemon leaves it, with a configuration that names it."""

import asyncio
import contextlib
import sqlite3
from uuid import UUID

from agentd.gating import Word
from agentd.intake import streams
from agentd.outcomes import Cause, Learned
from agentd.queued import Death, Entry, Ref, Seal, Source
from agentd.records import LossClass
from agentd.spool.checked import pack
from agentd.spool.gaterows import GateRow, Step
from agentd.spool.gates import GateShelf
from agentd.spool.journal import Journal
from agentd.spool.ledger import Limits
from agentd.spool.recovery import open_spool
from agentd.spool.store import Put, key_of
from agentd.spool.tables import Table

NOW = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z
GATE = "0190f3a0-0000-7000-8000-00000000000a"
SOURCE = Source("billing", 1000, 42, "frames")


class StoppedDaemon:
    """`config` is the configuration's path, `sql` a hand that changes rows."""

    def __init__(self, folder):
        self.folder = folder
        self.state = folder / "state"
        self.config = folder / "agentd.toml"
        self.socket = folder / "agentd.sock"
        self.config.write_text(
            f'[listen]\nsocket = "{self.socket}"\n[spool]\ndirectory = "{self.state}"\n'
            '[destinations.cloud]\nplatform = "agentos"\napi_key = { env = "KEY" }\nagent_id = "a"\n'
            '[destinations.fresh]\nplatform = "decisionos"\napi_key = { env = "KEY" }\nagent_id = "a"\n'
        )

    def fill(self):
        """A run that has begun, an event that waits, a dead task, a gate; one record for a destination that was taken out."""
        asyncio.run(self._fill())
        return self

    async def _fill(self):
        clock = iter(range(NOW, NOW + 10**9, 1000))
        spool = await open_spool(
            self.state, sync="full", limits=Limits({"cloud": 10**6, "old": 10**6}, 10**7, 10**6, 10**6, 10**6, 10),
            identities={"cloud": "here", "old": "there"}, journal=Journal(2**60, 2**40), now_us=lambda: next(clock),
        )  # fmt: skip
        spool.start()
        start, event, task = (self._entry(spool, number, kind) for number, kind in enumerate(KINDS, 1))
        ref = Ref("cloud", "run", "r", "billing", 1000, start.number, touched_us=NOW, lane="run:r")
        await spool.append({"cloud": [start, event, task]}, introduced=[spool.refs.introduce(ref)])
        seal = Seal(0, "cloud", "run:r", start.number, start.number, 1, (), "start-key", 1, b"", "start")
        await spool.seal(seal)
        await spool.settle(seal, [start], [Learned("run", "r", "p-1")])
        await spool.bury(None, "cloud", [task], Death(Cause.REJECTED, "400 no", 2, 400, "no", "task-key"))
        await spool.append({"old": [self._entry(spool, 9, "event", "old")]})
        shelf = GateShelf(spool)
        gate = GateRow(
            GATE, "decide", "cloud", SOURCE, -1, "pay-7", b"", "decision", "v", "r", None, b'{"amount":5}', "gk", NOW, 5.0,
            step=Step.PENDING, word=Word.PENDING, row=shelf.new_row(),
        )  # fmt: skip
        await shelf.save(gate, ["asked"])
        stream = streams.Stream(1000, "s", lost={"buffer_full:event": 3})
        spool._committer.put(Put(key_of(Table.STREAM, 1), pack(streams.encode(stream))))
        await spool.barrier()
        await spool.close()

    def _entry(self, spool, number, kind, name="cloud"):
        body = b'{"kind":"%s","run_id":"r"}' % kind.encode()
        return Entry(spool.number(name), UUID(int=number).bytes, "run:r", kind, LossClass.KEEP, SOURCE, NOW, body)

    def sql(self, statement, *values):
        with contextlib.closing(sqlite3.connect(self.state / "spool" / "cache.db")) as connection, connection:
            return connection.execute(statement, values).fetchall()

    def contents(self):
        """Every file with its bytes."""
        return {path: path.read_bytes() for path in sorted(self.state.rglob("*")) if path.is_file()}


KINDS = ("run.start", "event", "task")
