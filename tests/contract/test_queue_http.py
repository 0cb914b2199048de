"""`/v1/queue` over a real Unix socket, with a spool on disk: what each view says, to whom, and the end of a queue."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

import aiohttp
import pytest

from agentd.ageing import Clocks
from agentd.control import queue as queue_control
from agentd.control.queue import QueueControl
from agentd.delivery.backoff import Backoff
from agentd.delivery.circuit import Circuit, Health
from agentd.delivery.lanes import Hold, Lanes
from agentd.delivery.waits import standing
from agentd.intake import Grant, Peer
from agentd.intake.access import Access
from agentd.intake.queues import Asked, Busy, add_queues
from agentd.intake.routes import build_app
from agentd.intake.server import Server
from agentd.outcomes import Learned
from agentd.queued import Entry, Ref, Seal, Source
from agentd.records import LossClass
from agentd.sections import Config, Destination, Listen, PeerRule, Security
from agentd.spool import journal
from agentd.spool.journal import Journal
from agentd.spool.ledger import Limits
from agentd.spool.recovery import open_spool
from agentd.spool.tables import Table
from agentd.testing import FakeClock

ME, OTHER = os.getuid(), os.getuid() + 1
MINE, THEIRS = Source("billing", ME, 1, "frames"), Source("sales", OTHER, 2, "lines")


class FakeCourier:
    """Lanes and circuit as the test sets them; `suspended` is what dropping has told it."""

    def __init__(self, clock):
        self.clock = clock
        self.lanes, self.circuit = Lanes(), Circuit(Backoff(0.25, 60.0))
        self.told = []

    def status(self):
        return standing(self.lanes, self.circuit, self.clock())

    def suspend(self):
        self.told.append("suspend")

    def resume(self):
        self.told.append("resume")


class House:
    """A spool with two destinations, one of them not configured any more, and a server that answers for it."""

    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="ad-", dir="/tmp")
        self.path = f"{self.folder}/s"
        self.admin = self.decides = True
        self.clock = FakeClock()
        self.clocks = Clocks(self.clock.now_us, self.clock)
        self.courier = FakeCourier(self.clock)
        self.records = 0

    async def open(self):
        self.config = Config(
            listen=Listen(socket=self.path),
            destinations={"cloud": Destination("agentos", agent_id="default")},
            security=Security(peers=[PeerRule(uid=ME, agent_ids=["billing"])] if self.narrow else []),
        )
        self.spool = await open_spool(
            Path(self.folder) / "state", sync="normal",
            limits=Limits({"cloud": 10**6}, 10**7, 10**6, 10**6, 10**6, 10),
            identities={"cloud": "agentos at here", "old": "agentos at there"}, journal=Journal(2**62, 2**62),
            now_us=self.clocks.now_us,
        )  # fmt: skip
        self.committing = self.spool.start()
        self.queues = QueueControl(self.config, self.spool, {"cloud": self.courier}, self.clocks, self.clock)
        app = build_app(SimpleNamespace(refuse=lambda *_: None), self, self.config, Access(self.config.security))
        add_queues(app, self.queues, self)
        self.server = Server(self.config, SimpleNamespace(), app)
        await self.server.start()
        self.session = aiohttp.ClientSession(connector=aiohttp.UnixConnector(self.path), base_url="http://agentd")

    narrow = False

    async def close(self):
        await self.session.close()
        await self.server.aclose(1.0)
        self.queues.close()
        await self.spool.close()
        shutil.rmtree(self.folder)

    def is_admin(self, peer):
        assert peer.uid == ME
        return self.admin

    def may_decide(self, peer):
        return self.decides and self.is_admin(peer)

    async def put(self, lane="run:r1", kind="event", source=MINE, destination="cloud", count=1, body=None):
        made = []
        for _ in range(count):
            self.records += 1
            number = self.spool.number(destination)
            data = body or json.dumps({"kind": kind, "run_id": lane.partition(":")[2], "type": "t"}).encode()
            loss = LossClass.INFO if kind == "event" else LossClass.KEEP
            made.append(
                Entry(number, UUID(int=self.records).bytes, lane, kind, loss, source, self.clocks.now_us(), data)
            )
        await self.spool.append({destination: made})
        return made

    async def get(self, **query):
        async with self.session.get("/v1/queue", params=query) as answer:
            return answer.status, await answer.json()

    async def ok(self, **query):
        status, document = await self.get(**query)
        assert status == 200, document
        return document

    async def drop(self, **body):
        async with self.session.post("/v1/queue/drop", json=body) as answer:
            return answer.status, await answer.json()


@pytest.fixture
async def house():
    made = House()
    await made.open()
    yield made
    await made.close()


@pytest.fixture
async def narrow():
    """One whose peers have a rule: our uid may speak for `billing` alone."""
    made = House()
    made.narrow = True
    await made.open()
    yield made
    await made.close()


def _error(answer):
    status, document = answer
    return status, document["error"]["code"], document["error"]["message"]


async def test_figures_of_each_destination(house):
    """stats, the view without asking: how much waits, how old, on how much disk, in which state, for everybody."""
    await house.put(count=3)
    await house.put("run:r2", "run.start")
    house.clock.advance(60)
    await house.put(destination="old", source=THEIRS)
    house.courier.circuit = Circuit(Backoff(0.25, 60.0), Health.PAUSED, "401 UNAUTHENTICATED", house.clock() + 7.5)
    house.admin = False
    document = await house.ok()
    cloud, old = document["destinations"]["cloud"], document["destinations"]["old"]
    assert (cloud["state"], cloud["reason"], cloud["retry_in_s"]) == ("paused", "401 UNAUTHENTICATED", 7.5)
    assert (cloud["queued"], cloud["kinds"], cloud["oldest_age_s"]) == (4, {"event": 3, "run.start": 1}, 60.0)
    assert (cloud["max_bytes"], cloud["segments"], cloud["taken_for"]) == (10**6, 2, None)
    assert cloud["bytes"] == sum(cloud["bytes_by_loss"].values()) > 0
    assert (old["state"], old["platform"], old["queued"]) == ("removed", None, 1)
    house.admin = True  # it names agents, and what the platform calls them
    assert (await house.ok())["destinations"]["cloud"]["taken_for"] == "agentos at here"
    total = document["total"]
    assert (total["queued"], total["segments"], total["oldest_age_s"]) == (5, 3, 60.0)
    assert total["database_bytes"] > total["bytes"]
    assert document["running"] is True
    assert set((await house.ok(view="stats", destination="old"))["destinations"]) == {"old"}


async def test_how_fast_it_empties(house):
    """Rates and the time to empty come from the books over the last half minute; unknown until there is one to look back on."""
    await house.put(count=100)
    unknown = (await house.ok())["destinations"]["cloud"]
    assert (unknown["delivered_per_s"], unknown["drain"], unknown["eta_s"]) == (None, "unknown", None)
    house.queues.tick()
    made = await house.put(count=40)
    seal = Seal(0, "cloud", "run:r1", made[0].number, made[-1].number, 40, (), "k", 1, b"", "events")
    house.spool.fill("cloud")
    await house.spool.seal(seal)
    await house.spool.settle(seal, made)
    house.clock.advance(10)
    growing = (await house.ok())["destinations"]["cloud"]
    assert (growing["admitted_per_s"], growing["delivered_per_s"], growing["drain"]) == (4.0, 4.0, "not draining")
    house.queues.tick()
    assert "old" not in (await house.ok())["destinations"]  # not configured, and it holds nothing
    assert house.queues.flow("old")["drain"] == "empty"


async def test_lanes_and_what_they_wait_for(house):
    """lanes: each with its records, oldest and head, and the courier's word on what has to come first; filters and limits."""
    await house.put("run:r1", count=2)
    house.clock.advance(5)
    await house.put("run:r2", "task", source=THEIRS)
    house.clock.advance(0.5)
    await house.put("run:gone", destination="old")
    lanes = house.courier.lanes
    lanes.touch("run:r1")
    lane = lanes.next_ready()
    lane.failures = 3
    lanes.hold(lane, Hold.BACKOFF, house.clock() + 2.5, "503")
    document = await house.ok(view="lanes")
    first, second, third = document["lanes"]
    assert (first["lane"], first["records"], first["kinds"], first["parked"], first["sealed"]) == (
        "run:r1", 2, {"event": 2}, False, 0,
    )  # fmt: skip
    assert first["waits"] == {"for": "backoff", "reason": "503", "next_try_in_s": 2.5, "failures": 3}
    assert (first["oldest"]["age_s"], first["oldest"]["id"], first["head"]["number"]) == (5.5, str(UUID(int=1)), 1)
    assert (second["waits"]["for"], third["waits"]["for"]) == ("memory", "removed")
    assert document["matched"] == {"lanes": 3, "records": 4, "bytes": sum(each["bytes"] for each in document["lanes"])}
    assert document["destinations"] == {"cloud": {"queued": 3}, "old": {"queued": 1}}
    assert document["exact"]

    async def names(**query):
        return [each["lane"] for each in (await house.ok(view="lanes", **query))["lanes"]]

    assert await names(destination="cloud") == ["run:r1", "run:r2"]
    assert await names(run="r2") == await names(kind="task") == await names(agent="sales") == ["run:r2"]
    assert await names(older="5.2s") == ["run:r1"]
    assert await names(limit="1") == ["run:r1"]
    assert await names(sort="bytes", limit="1") == ["run:r1"]


async def test_records_with_their_contents(house):
    """records: the oldest first, spliced as they were stored; whoever sent them, for an admin."""
    await house.put(body=b'{"kind":"event", "run_id":"r1","type":"t","payload":1.50}', source=THEIRS)
    await house.put("run:r2")
    found = (await house.ok(view="records", limit="1"))["records"]
    assert found[0]["record"]["payload"] == 1.5
    assert (found[0]["uid"], found[0]["agent"], found[0]["lane"], found[0]["id"]) == (
        OTHER, "sales", "run:r1", str(UUID(int=1)),
    )  # fmt: skip
    async with house.session.get("/v1/queue?view=records") as answer:
        assert b'"payload":1.50' in await answer.read()
    assert [each["lane"] for each in (await house.ok(view="records", run="r2"))["records"]] == ["run:r2"]


async def test_receipts_of_what_was_delivered(house):
    """receipts: id here and at the platform, key, tries, time."""
    [start] = await house.put("run:r1", "run.start")
    house.spool.refs.put(Ref("cloud", "run", "r1", "billing", ME, start.number))
    seal = Seal(0, "cloud", "run:r1", start.number, start.number, 1, (), "key-1", 1, b"", "run.start")
    await house.spool.seal(seal)
    await house.spool.settle(seal, [start], [Learned("run", "r1", "platforms-own")], 4)
    [found] = (await house.ok(view="receipts"))["receipts"]
    assert (found["id"], found["platform_id"], found["key"], found["tries"]) == (
        str(UUID(int=1)), "platforms-own", "key-1", 4,
    )  # fmt: skip
    assert (await house.ok(view="receipts", run="other"))["receipts"] == []
    assert len((await house.ok(view="receipts", since="1h", run="r1"))["receipts"]) == 1
    house.clock.advance(7200)
    assert (await house.ok(view="receipts", since="1h"))["receipts"] == []


async def test_others_see_counts_only(house):
    """Who is no admin sees lanes, contents and receipts of its own uid; of others the counts, and no name of a run or an agent."""
    house.admin = False
    await house.put("run:mine")
    await house.put("run:secret", source=THEIRS, body=b'{"kind":"event","run_id":"secret","type":"t","payload":"hush"}')
    lanes = await house.ok(view="lanes")
    assert [lane["lane"] for lane in lanes["lanes"]] == ["run:mine"]
    assert (lanes["matched"]["records"], lanes["destinations"]["cloud"]["queued"]) == (1, 2)
    own, other = (await house.ok(view="records"))["records"]
    assert own["record"]["run_id"] == "mine"
    assert set(other) == {"destination", "number", "kind", "bytes", "admitted_at", "age_s"}
    assert (await house.ok(view="records", run="secret"))["records"] == []
    assert (await house.ok(view="records", agent="sales"))["records"] == []
    for view in ("stats", "lanes", "records", "receipts"):
        assert "secret" not in json.dumps(await house.ok(view=view))
        assert "sales" not in json.dumps(await house.ok(view=view))


async def test_an_agent_that_it_may_not_speak_for_is_anothers(narrow):
    """[[security.peers]] narrows what a uid sees of its own, as it narrows what it may send; no name is the destination's own agent."""
    narrow.admin = False
    await narrow.put("run:a")
    await narrow.put("run:b", source=Source("sales", ME, 1, "frames"))
    await narrow.put("run:c", source=Source("", ME, 1, "frames"))
    assert [lane["lane"] for lane in (await narrow.ok(view="lanes"))["lanes"]] == ["run:a"]
    assert ["record" in each for each in (await narrow.ok(view="records"))["records"]] == [True, False, False]


async def test_whom_the_kernel_does_not_name_owns_nothing(house):
    """Two callers whose uid is not known are not one user."""
    await house.put(source=Source("billing", -1, 0, "http"))
    asked, nobody = Asked(), Peer(-1, -1, 0, token=0)
    found = await house.queues.lanes(asked, nobody, admin=False, grant=Grant())
    assert found["lanes"] == []
    [record] = (await house.queues.records(asked, nobody, admin=False, grant=Grant()))["records"]
    assert "record" not in record


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"view": "all"}, "view: expected stats, lanes, records, receipts, got 'all'"),
        ({"veiw": "stats"}, "'veiw': no such parameter; expected view, destination, run"),
        ({"destination": "clod"}, "destination: there is no queue 'clod'; there are cloud, old"),
        ({"view": "lanes", "kind": "evnt"}, "kind: expected run.start, event"),
        ({"view": "lanes", "sort": "age"}, "sort: expected oldest, records, bytes, got 'age'"),
        ({"view": "lanes", "limit": "0"}, "limit: expected 1 to 1000, got '0'"),
        ({"view": "lanes", "limit": "9999"}, "limit: expected 1 to 1000"),
        ({"view": "lanes", "limit": "00000000150000"}, "limit: expected 1 to 1000"),
        ({"view": "lanes", "older": "5 parsecs"}, "older: expected a number with a unit"),
        ({"view": "receipts", "since": "nan"}, "since: expected a number with a unit"),
    ],
)
async def test_a_wrong_question_is_told_what_would_be_right(house, query, message):
    """400 that names the parameter, never the answer to another question."""
    status, code, text = _error(await house.get(**query))
    assert (status, code) == (400, "bad_request")
    assert message in text


async def test_too_many_questions_at_once(house, monkeypatch):
    """One is answered at a time, a few wait, the others are told to come back; figures are there for everybody."""
    await house.put()
    holding, go_on = threading.Event(), threading.Event()
    read = queue_control.census

    def slow(*arguments, **named):
        holding.set()
        go_on.wait(20)
        return read(*arguments, **named)

    monkeypatch.setattr(queue_control, "census", slow)
    asking = [asyncio.create_task(house.get(view="lanes")) for _ in range(10)]
    await asyncio.to_thread(holding.wait, 20)
    done, _ = await asyncio.wait(asking, timeout=20, return_when=asyncio.FIRST_COMPLETED)
    assert {_error(task.result())[:2] for task in done} == {(503, "busy")}
    assert (await house.ok())["total"]["queued"] == 1
    go_on.set()
    answers = [status for status, _ in await asyncio.gather(*asking)]
    assert sorted(answers) == [200] * 5 + [503] * 5


async def test_a_daemon_that_stops_answers_no_more(house):
    """What is asked after the end is refused, and what is read just then ends within a segment."""
    house.queues.close()
    with pytest.raises(Busy):
        await house.queues.lanes(Asked(), Peer(ME, 0, 1), admin=True, grant=Grant())
    assert _error(await house.get(view="lanes"))[:2] == (503, "busy")


async def test_a_queue_is_dropped(house):
    """Everything that waits is purged, with the caller's uid and words in the journal; the courier pauses for it and goes on."""
    await house.put(count=3)
    await house.put("run:r2", "decision", source=THEIRS)
    await house.put(destination="old")
    status, answer = await house.drop(destination="cloud", reason=" moving \n house ")
    assert (status, answer) == (
        200,
        {"destination": "cloud", "dropped": 4, "kinds": {"decision": 1, "event": 3}, "tried": 0},
    )
    assert house.courier.told == ["suspend", "resume"]
    books = house.spool.books
    assert (books.total("cloud", "purged"), books.queued("cloud"), books.queued("old")) == (4, 0, 1)
    assert (await house.ok())["total"]["queued"] == 1
    rows = await house.spool.run_in_thread(lambda store: [value for _, value in store.rows(Table.JOURNAL)])
    notes = [note for value in rows for note in journal.decode(value) if note.state == "purged"]
    assert {(note.by, note.reason, note.cause) for note in notes} == {(ME, "moving house", "dropped")}
    assert (await house.drop(destination="old", reason="it is gone"))[1]["dropped"] == 1


async def test_dropping_waits_for_what_is_under_way(house):
    """A request that has been sent gets its answer first, as long as that takes no longer than a moment."""
    await house.put()
    house.courier.lanes.in_flight = 1
    dropping = asyncio.create_task(house.drop(destination="cloud", reason="why"))
    while house.courier.told != ["suspend"]:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.05)
    assert house.spool.books.total("cloud", "purged") == 0
    house.clock.advance(5.1)  # it never comes
    assert (await dropping)[1]["dropped"] == 1
    assert house.courier.told == ["suspend", "resume"]


async def test_who_may_drop(house):
    """Who may decide: the daemon's own uid, root, admins; and nobody where agents run under the daemon's own uid."""
    await house.put()
    house.decides = False
    status, code, text = _error(await house.drop(destination="cloud", reason="why"))
    assert (status, code) == (403, "forbidden")
    assert "within a sidecar for nobody" in text
    assert house.spool.books.total("cloud", "purged") == 0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"destination": "cloud"}, "missing required field `reason`"),
        ({"destination": "cloud", "reason": "  "}, "reason: expected 1 to 1000 characters"),
        ({"destination": "cloud", "reason": "x" * 1001}, "reason: expected 1 to 1000 characters"),
        ({"destination": "clod", "reason": "why"}, "destination: there is no queue 'clod'; there are cloud, old"),
        ({"destination": "cloud", "reason": "why", "force": True}, "unknown field `force`"),
    ],
)
async def test_a_wrong_order_drops_nothing(house, body, message):
    """400 that names the field; everything is still there."""
    await house.put()
    status, code, text = _error(await house.drop(**body))
    assert (status, code) == (400, "bad_request")
    assert message in text
    assert (await house.ok())["total"]["queued"] == 1
