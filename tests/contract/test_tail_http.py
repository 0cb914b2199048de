"""`GET /v1/tail` over real sockets, with a spool on disk: what is shown, to whom, and what a slow reader costs."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import aiohttp
import msgspec
import pytest

from agentd.ageing import Clocks
from agentd.control.queue import QueueControl
from agentd.control.tail import TailControl
from agentd.intake import tailing
from agentd.intake.access import Access
from agentd.intake.connection import Fault
from agentd.intake.routes import build_app
from agentd.intake.server import Server
from agentd.intake.tail import add_tail
from agentd.intake.tailing import MOST_OF_ONE
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
        add_tail(app, self.tail, self)
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

    async def come(self, count=1, *, uid=ME, agent="billing", to=("cloud",), kind="event", size=0, **fields):
        """Records are admitted; they are on disk when this returns. Gives their numbers."""
        numbers = range(self.records + 1, self.records + count + 1)
        self.records += count
        source = Source(agent, uid, 1, "frames")
        body = msgspec.json.encode({"kind": kind, "run_id": "r", "payload": "x" * size, **fields})
        self.clock.advance(0.001)
        copies = {
            name: [
                Entry(self.spool.number(name), UUID(int=n).bytes, "run:r", kind, LossClass.KEEP, source, self.clock.now_us(), body)
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


@pytest.fixture
async def house():
    made = House()
    await made.open()
    yield made
    await made.close()


async def until(condition):
    while not condition():
        await asyncio.sleep(0.01)


async def test_records_are_shown_once_they_are_on_disk(house):
    """One line each, with where it goes and whose it is; what came before is not shown."""
    await house.come()
    async with house.listen() as reader:
        assert reader.answer.headers["Content-Type"] == "application/x-ndjson"
        await house.come(to=("cloud", "archive"), type="hello")
        shown = await reader.next()
        assert shown["destinations"] == ["cloud", "archive"]
        assert (shown["kind"], shown["uid"], shown["agent"], shown["lane"]) == ("event", ME, "billing", "run:r")
        assert shown["record"] == {"kind": "event", "run_id": "r", "payload": "", "type": "hello"}
        assert await house.come(3) == await reader.numbers(3)


async def test_each_uid_sees_its_own(house):
    """Another user's records do not exist to him."""
    async with house.listen() as reader:
        await house.come(uid=OTHER)
        (mine,) = await house.come()
        assert await reader.numbers(1) == [mine]


async def test_admins_see_all(house):
    """Everybody's, also those that nobody in particular sent."""
    house.admin = True
    async with house.listen() as reader:
        numbers = [*await house.come(uid=OTHER), *await house.come(uid=-1), *await house.come()]
        assert await reader.numbers(3) == numbers


async def test_who_is_no_admin_any_more_sees_his_own(house):
    """What one may see is asked for each slice, not at the beginning alone."""
    house.admin = True
    async with house.listen() as reader:
        assert await house.come(uid=OTHER) == await reader.numbers(1)
        house.admin = False
        await house.come(uid=OTHER)
        assert await house.come() == await reader.numbers(1)


async def test_a_token_shows_what_it_was_given(house):
    """Over TCP: the sender's own uid, and of that the token's agents and destinations."""
    house.admin = True
    async with house.listen(token=TOKEN) as reader:
        await house.come(uid=OTHER)
        await house.come(agent="sales")
        await house.come(to=("archive",))
        await house.come(to=("archive", "cloud"))
        assert (await reader.next())["destinations"] == ["cloud"]


async def test_without_a_token_nothing_is_shown(house):
    """Over TCP nobody is anybody."""
    async with aiohttp.ClientSession() as session, session.get(f"{house.server.http_url}/v1/tail") as answer:
        assert answer.status == 401


async def test_a_token_that_is_taken_away_ends_it(house):
    """A reload without it: the next slice is not shown."""
    async with house.listen(token=TOKEN) as reader:
        assert await house.come() == await reader.numbers(1)
        house.access.follow(Security(), [])
        await house.come()
        assert await reader.next() is None
    await until(lambda: not len(house.tail.tails))


async def test_what_is_queued_comes_first(house):
    """The newest, the oldest of them first, each once; what comes meanwhile follows, and is not shown again."""
    house.admin = True
    numbers = [*await house.come(3), *await house.come(uid=OTHER), *await house.come(2, to=("cloud", "archive"))]
    async with house.listen("?last=3") as reader:
        assert await reader.numbers(3) == numbers[-3:]
        assert await house.come() == await reader.numbers(1)


async def test_of_what_is_queued_ones_own_comes_first(house):
    """The filters and the viewer's rights hold there as well."""
    (task,) = await house.come(kind="task")
    await house.come(5, uid=OTHER, kind="task")
    await house.come(5)
    async with house.listen("?last=1000&kind=task") as reader:
        assert await reader.numbers(1) == [task]
        assert await house.come(kind="task") == await reader.numbers(1)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("?kind=evnt", "kind: expected run.start"),
        ("?level=loud", "level: expected debug, info, warn, error, got 'loud'"),
        ("?last=-1", "last: expected 0 to 1000"),
        ("?last=1001", "last: expected 0 to 1000"),
        ("?last=1e3", "last: expected 0 to 1000"),
        ("?lvel=warn", "'lvel': expected kind, agent, run, destination, level, last"),
    ],
)
async def test_a_question_that_is_wrong(house, query, message):
    """It is said what would be right, and nobody listens."""
    status, error = await house.refusal(query)
    assert (status, error["code"]) == (400, "bad_request")
    assert error["message"].startswith(message)
    assert len(house.tail.tails) == 0


async def test_there_is_a_place_for_so_many_of_one_user(house):
    """The next is told so; whoever goes makes room, as soon as it shows."""
    async with house.listen(), house.listen(), house.listen(), house.listen():
        assert len(house.tail.tails) == MOST_OF_ONE
        status, error = await house.refusal()
        assert (status, error["code"]) == (429, "too_many_requests")
    await until(lambda: len(house.tail.tails) == 0)
    assert house.spool.ledger._show is None


async def test_the_end_of_the_daemon_ends_it(house):
    """What was held is shown, then the answer ends as it should; nobody is let in after it."""
    async with house.listen() as reader:
        (number,) = await house.come()
        house.tail.tails.close()
        assert await reader.numbers(1) == [number]
        assert await reader.next() is None
    assert (await house.refusal())[0] == 429


class Stalled:
    """A reader that asks and does not read."""

    def __init__(self, house):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.sock.setblocking(False)
        self.sock.connect(house.config.listen.socket)
        self.sock.send(b"GET /v1/tail HTTP/1.0\r\nHost: localhost\r\n\r\n")

    async def read_on(self, records):
        """What it reads when it reads again, until so many records were shown or named as missed."""
        data = b""
        while self._told(data) < records:
            data += await asyncio.get_running_loop().sock_recv(self.sock, 2**20)
        lines = data.partition(b"\r\n\r\n")[2] if data.startswith(b"HTTP") else data
        return [json.loads(line) for line in lines.split(b"\n") if line.strip()]

    def _told(self, data):
        whole = data[: data.rfind(b"\n") + 1]
        return whole.count(b'"admitted_at"') + sum(map(int, re.findall(rb'"not_shown":(\d+)', whole)))


async def test_a_reader_that_stalls_costs_little_and_misses_some(house):
    """Nobody waits for it, it is not cut off, what it costs is bounded, and when it reads again it is told how many it has missed."""
    stalled = Stalled(house)
    await until(lambda: len(house.tail.tails) == 1)
    (listener,) = house.tail.tails._listeners
    total = 0
    while not listener.missed > 200:
        total += len(await house.come(100, size=1000))
    assert listener._bytes <= tailing.HELD_BYTES
    protocol = next(iter(house.server._open))
    assert protocol._pipe.get_write_buffer_size() <= 2**16
    await asyncio.sleep(0.5)  # longer than intake.frame_timeout: whoever does not read an answer is cut off by then
    assert house.sink.refused == []
    lines = await stalled.read_on(total)
    missed = [line for line in lines if "not_shown" in line]
    assert sum(line["not_shown"] for line in missed) + len(lines) - len(missed) == total
    assert missed[0]["exact"] is False
    assert await house.come() == [total + 1]
    assert UUID((await stalled.read_on(1))[-1]["id"]).int == total + 1
    stalled.sock.close()
    await until(lambda: not len(house.tail.tails))
    assert Fault.SLOW_READER not in house.sink.refused


async def test_a_reader_that_stalls_does_not_hold_up_the_end(house):
    """The daemon stops: what it has not read by then it does not get."""
    stalled = Stalled(house)
    await until(lambda: len(house.tail.tails) == 1)
    while not next(iter(house.tail.tails._listeners)).missed:
        await house.come(100, size=1000)
    house.tail.tails.close()
    async with asyncio.timeout(1.0):
        await until(lambda: not house.server.connections)
    stalled.sock.close()
