"""A spool on disk and a server that shows what comes to it, over a Unix socket and over TCP with a token."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import aiohttp
import msgspec

from agentd.ageing import Clocks
from agentd.control.queue import QueueControl
from agentd.control.tail import TailControl
from agentd.control.top import TopControl
from agentd.intake.access import Access
from agentd.intake.routes import build_app
from agentd.intake.server import Server
from agentd.intake.top import add_sight
from agentd.queued import Entry, Source
from agentd.records import LossClass
from agentd.sections import Config, Destination, Intake, Listen, Secret, Security, TokenRule
from agentd.spool.journal import Journal
from agentd.spool.ledger import Limits
from agentd.spool.recovery import open_spool
from agentd.testing import FakeClock

ME, OTHER = os.getuid(), os.getuid() + 1
TOKEN = "a-token-of-sixteen-characters"


class Sink:
    """Counts what is refused."""

    def __init__(self):
        self.refused = []

    def refuse(self, cause, _detail, _peer):
        self.refused.append(cause)


class House:
    """A spool, and a server that shows what comes to it."""

    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="ad-", dir="/tmp")
        self.admin = False
        self.clock = FakeClock()
        rule = TokenRule(token=Secret(env="T"), agent_ids=["billing"], destinations=["cloud"])
        self.config = Config(
            listen=Listen(socket=f"{self.folder}/s", http="127.0.0.1:0"),
            intake=Intake(frame_timeout=0.2),
            destinations={"cloud": Destination("agentos"), "archive": Destination("agentos", copy=True)},
            security=Security(tokens=[rule]),
        )
        self.access = Access(self.config.security, [TOKEN])
        self.records = 0
        self.couriers = {}

    def status(self):
        return {"agentd": "0.1.0", "destinations": {}}

    async def open(self):
        clocks = Clocks(self.clock.now_us, self.clock)
        self.spool = await open_spool(
            Path(self.folder) / "state", sync="normal",
            limits=Limits({"cloud": 2**28, "archive": 2**28}, 2**29, 2**20, 2**20, 2**20, 10),
            identities={"cloud": "here", "archive": "there"}, journal=Journal(2**62, 2**62), now_us=clocks.now_us,
        )  # fmt: skip
        self.committing = self.spool.start()
        self.queues = QueueControl(self.config, self.spool, {}, clocks, self.clock)
        self.tail = TailControl(self.spool, self.queues, clocks)
        self.sink = Sink()
        app = build_app(self.sink, self, self.config, self.access)
        self.top = TopControl(self.status, self.spool, self.couriers, self.queues, clocks, self.clock)
        add_sight(app, self.top, self.tail, self)
        self.server = Server(self.config, self.sink, app)
        await self.server.start()
        self.session = aiohttp.ClientSession(connector=aiohttp.UnixConnector(self.config.listen.socket))

    async def close(self):
        await self.session.close()
        self.tail.tails.close()
        await self.server.aclose(2.0)
        self.queues.close()
        await self.spool.close()
        shutil.rmtree(self.folder)

    def is_admin(self, peer):
        return self.admin and peer.local

    async def come(
        self, count=1, *, uid=ME, agent="billing", to=("cloud",), kind="event", size=0, lane="run:r", **fields
    ):
        """Records are admitted; they are on disk when this returns. Gives their numbers."""
        numbers = range(self.records + 1, self.records + count + 1)
        self.records += count
        source = Source(agent, uid, 1, "frames")
        body = msgspec.json.encode({"kind": kind, "run_id": "r", "payload": "x" * size, **fields})
        self.clock.advance(0.001)
        copies = {
            name: [
                Entry(self.spool.number(name), UUID(int=n).bytes, lane, kind, LossClass.KEEP, source, self.clock.now_us(), body)
                for n in numbers
            ]
            for name in to
        }  # fmt: skip
        await self.spool.append(copies)
        return list(numbers)

    @asynccontextmanager
    async def listen(self, query="", *, token=None):
        """A reader that hears from now on."""
        base = self.server.http_url if token else "http://agentd"
        session = aiohttp.ClientSession() if token else self.session
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            async with session.get(f"{base}/v1/tail{query}", headers=headers) as answer:
                yield Reader(answer)
        finally:
            if token:
                await session.close()

    async def refusal(self, query="", headers=()):
        async with self.session.get(f"http://agentd/v1/tail{query}", headers=dict(headers)) as answer:
            return answer.status, (await answer.json())["error"]


class Reader:
    def __init__(self, answer):
        self.answer = answer

    async def next(self):
        """The next line that says something."""
        while True:
            line = await self.answer.content.readline()
            if line != b"\n":
                return json.loads(line) if line else None

    async def numbers(self, count):
        return [UUID((await self.next())["id"]).int for _ in range(count)]
