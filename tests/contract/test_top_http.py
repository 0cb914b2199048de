"""`GET /v1/top` over real sockets, with a spool on disk: figures for everybody, lanes for their owners, and what a look costs."""

from __future__ import annotations

from types import SimpleNamespace

import aiohttp
import pytest
from sight_kit import OTHER, TOKEN, House

from agentd.control import top
from agentd.delivery.backoff import Backoff
from agentd.delivery.circuit import Circuit
from agentd.delivery.lanes import Hold, Lanes


@pytest.fixture
async def house():
    made = House()
    await made.open()
    yield made
    await made.close()


async def look(house, query=""):
    async with house.session.get(f"http://agentd/v1/top{query}") as answer:
        return answer.status, await answer.json()


async def lanes(house, query=""):
    status, document = await look(house, query)
    assert status == 200, document
    return [lane["lane"] for lane in document["lanes"]]


async def test_a_look(house):
    """The status, the histograms of what takes time, and the lanes with what they hold and wait for."""
    house.couriers["cloud"] = SimpleNamespace(lanes=Lanes(), circuit=Circuit(Backoff(0.25, 60.0)))
    await house.come(3, size=100)
    house.clock.advance(2.0)
    _, document = await look(house)
    assert document["status"] == house.status()
    (lane,) = document["lanes"]
    size = lane.pop("bytes")
    assert 300 < size < 700
    assert lane == {
        "destination": "cloud", "lane": "run:r", "agent": "billing", "records": 3, "oldest_age_s": 2.0, "waits_for": "memory",
        "reason": None, "next_try_in_s": None, "failures": 0,
    }  # fmt: skip
    assert (document["lanes_known"], document["lanes_looked_at"]) == (1, 1)
    assert sum(document["latency"]["ack"]["counts"]) == 1
    assert len(document["latency"]["ack"]["counts"]) == len(document["latency"]["ack"]["bounds"]) + 1
    assert document["latency"]["delivery"] == {}


async def test_which_lanes_come_first(house):
    """The oldest record, the most bytes, or the most failures and the longest wait."""
    courier = house.couriers["cloud"] = SimpleNamespace(lanes=Lanes(), circuit=Circuit(Backoff(0.25, 60.0)))
    for name, size in (("old", 10), ("large", 1000), ("failing", 10), ("waiting", 10), ("new", 10)):
        await house.come(lane=f"run:{name}", size=size)
        house.clock.advance(1.0)
    for name, failures, at in (("failing", 3, 10.0), ("waiting", 0, 20.0)):
        lane = courier.lanes.get(f"run:{name}")
        lane.failures = failures
        courier.lanes.hold(lane, Hold.BACKOFF, house.clock() + at, "503 no")
    courier.lanes.hold(courier.lanes.get("run:new"), Hold.GATHERING, house.clock() + 99)
    assert await lanes(house) == ["run:old", "run:large", "run:failing", "run:waiting", "run:new"]
    assert await lanes(house, "?sort=largest&limit=2") == ["run:large", "run:old"]
    assert await lanes(house, "?sort=slowest&limit=3") == ["run:failing", "run:waiting", "run:old"]
    first = (await look(house, "?sort=slowest"))[1]["lanes"][0]
    assert (first["waits_for"], first["reason"], first["next_try_in_s"], first["failures"]) == (
        "backoff",
        "503 no",
        10.0,
        3,
    )


async def test_lanes_of_one_destination(house):
    """The others are neither shown nor counted; a destination that is not there has none."""
    await house.come(to=("cloud", "archive"))
    await house.come(lane="run:other", to=("archive",))
    assert await lanes(house, "?destination=archive") == ["run:r", "run:other"]
    _, document = await look(house, "?destination=cloud")
    assert (document["lanes_known"], [lane["waits_for"] for lane in document["lanes"]]) == (1, ["removed"])
    assert await lanes(house, "?destination=nowhere") == []


async def test_lanes_are_their_owners(house):
    """Runs go by their names: others' are counted and not shown, but to admins."""
    await house.come(lane="run:theirs", uid=OTHER)
    await house.come(lane="run:mine")
    assert await lanes(house) == ["run:mine"]
    assert (await look(house))[1]["lanes_known"] == 2
    house.admin = True
    assert await lanes(house) == ["run:theirs", "run:mine"]


async def test_over_tcp_a_token_sees_what_it_was_given(house):
    """Its agents and destinations; without one nothing is answered."""
    house.admin = True
    await house.come(lane="run:mine")
    await house.come(lane="run:sales", agent="sales")
    await house.come(lane="run:elsewhere", to=("archive",))
    url = f"{house.server.http_url}/v1/top"
    async with aiohttp.ClientSession() as session:
        async with session.get(url) as answer:
            assert answer.status == 401
        async with session.get(url, headers={"Authorization": f"Bearer {TOKEN}"}) as answer:
            assert [lane["lane"] for lane in (await answer.json())["lanes"]] == ["run:mine"]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("?sort=newest", "sort: expected oldest, largest, slowest, got 'newest'"),
        ("?limit=101", "limit: expected 0 to 100, got '101'"),
        ("?limit=-1", "limit: expected 0 to 100"),
        ("?sord=oldest", "'sord': expected sort, destination, limit"),
    ],
)
async def test_a_question_that_is_wrong(house, query, message):
    """It is said what would be right."""
    status, document = await look(house, query)
    assert (status, document["error"]["code"]) == (400, "bad_request")
    assert document["error"]["message"].startswith(message)


async def test_what_a_look_costs_is_bounded(house, monkeypatch):
    """Of many lanes only the first are ranked, and it is said how many."""
    monkeypatch.setattr(top, "LOOKED_AT", 40)  # for two destinations
    for number in range(50):
        await house.come(lane=f"run:{number}")
    _, document = await look(house, "?limit=5")
    assert [lane["lane"] for lane in document["lanes"]] == [f"run:{number}" for number in range(5)]
    assert (document["lanes_known"], document["lanes_looked_at"]) == (50, 20)
    _, document = await look(house, "?limit=0")
    assert (document["lanes"], document["lanes_looked_at"]) == ([], 0)
