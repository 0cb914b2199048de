"""`GET /v1/tail` over real sockets, with a spool on disk: what is shown, to whom, and what a slow reader costs."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from uuid import UUID

import aiohttp
import pytest
from sight_kit import ME, OTHER, TOKEN, House

from agentd.intake import tailing
from agentd.intake.connection import Fault
from agentd.intake.tailing import MOST_OF_ONE
from agentd.sections import Security


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
