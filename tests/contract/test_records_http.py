"""`GET /v1/records/{id}` over a real Unix socket, with a spool on disk: what is answered, and to whom."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote
from uuid import UUID

import aiohttp
import pytest

from agentd.ageing import Clocks
from agentd.control.queue import QueueControl
from agentd.control.records import RecordControl
from agentd.delivery.backoff import Backoff
from agentd.delivery.circuit import Circuit
from agentd.delivery.lanes import Hold, Lanes
from agentd.intake import Grant, Peer
from agentd.intake.access import Access
from agentd.intake.dedupe import Window
from agentd.intake.records import MAX_ID, add_records
from agentd.intake.routes import build_app
from agentd.intake.server import Server
from agentd.outcomes import Cause
from agentd.queued import Death, Entry, Ref, Source
from agentd.records import LossClass
from agentd.sections import Config, Destination, Listen, PeerRule, Security
from agentd.spool.gaterows import GateRow
from agentd.spool.gates import GateShelf
from agentd.spool.journal import Journal
from agentd.spool.ledger import Limits
from agentd.spool.recovery import open_spool
from agentd.spool.tables import Table
from agentd.testing import FakeClock

ME, OTHER = os.getuid(), os.getuid() + 1
GATE = "0190f3a0-0000-7000-8000-00000000000a"


class House:
    """A spool, a courier's lanes, and a server that answers for them."""

    def __init__(self, *, narrow):
        self.folder = tempfile.mkdtemp(prefix="ad-", dir="/tmp")
        self.admin = False
        self.clock = FakeClock()
        self.courier = SimpleNamespace(lanes=Lanes(), circuit=Circuit(Backoff(0.25, 60.0)))
        rules = [PeerRule(uid=ME, agent_ids=["billing"])] if narrow else []
        self.config = Config(
            listen=Listen(socket=f"{self.folder}/s"),
            destinations={"cloud": Destination("agentos", agent_id="default")},
            security=Security(peers=rules),
        )
        self.records = 0

    async def open(self):
        clocks = Clocks(self.clock.now_us, self.clock)
        self.spool = await open_spool(
            Path(self.folder) / "state", sync="normal", limits=Limits({"cloud": 10**6}, 10**7, 10**6, 10**6, 10**6, 10),
            identities={"cloud": "agentos at here", "old": "agentos at there"}, journal=Journal(2**62, 2**62),
            now_us=clocks.now_us,
        )  # fmt: skip
        self.committing = self.spool.start()
        couriers = {"cloud": self.courier}
        self.queues = QueueControl(self.config, self.spool, couriers, clocks, self.clock)
        app = build_app(SimpleNamespace(refuse=lambda *_: None), self, self.config, Access(self.config.security))
        self.control = RecordControl(self.config, couriers, self.queues.read, self.clock)
        add_records(app, self.control, self)
        self.server = Server(self.config, SimpleNamespace(), app)
        await self.server.start()
        connector = aiohttp.UnixConnector(self.config.listen.socket)
        self.session = aiohttp.ClientSession(connector=connector, base_url="http://agentd")

    async def close(self):
        await self.session.close()
        await self.server.aclose(1.0)
        self.queues.close()
        await self.spool.close()
        shutil.rmtree(self.folder)

    def is_admin(self, peer):
        assert peer.uid == ME
        return self.admin

    async def put(self, uid=ME, agent="billing", kind="task", lane="run:r", destination="cloud"):
        self.records += 1
        number = self.spool.number(destination)
        record_id = UUID(int=self.records)
        source = Source(agent, uid, 1, "frames")
        made = Entry(number, record_id.bytes, lane, kind, LossClass.KEEP, source, self.clock.now_us(), b"{}")
        await self.spool.append({destination: [made]})
        return made, str(record_id)

    async def get(self, name):
        async with self.session.get(f"/v1/records/{quote(str(name), safe='')}") as answer:
            return answer.status, await answer.json()

    async def state(self, name):
        status, document = await self.get(name)
        assert status == 200, document
        return [(there["destination"], there["state"]) for there in document["records"][0]["destinations"]]


@pytest.fixture(params=[False])
async def house(request):
    made = House(narrow=request.param)
    await made.open()
    yield made
    await made.close()


narrow = pytest.mark.parametrize("house", [True], indirect=True)


async def test_ones_own_record(house):
    """Its sender sees where it is, and what its lane waits for."""
    _, record_id = await house.put()
    house.courier.lanes.hold(house.courier.lanes.get("run:r"), Hold.BACKOFF, house.clock() + 4, "503")
    status, document = await house.get(record_id)
    (there,) = document["records"][0]["destinations"]
    assert (status, there["state"], there["waits"]["for"], there["waits"]["next_try_in_s"]) == (
        200, "queued", "backoff", 4.0,
    )  # fmt: skip


async def test_anothers_record_does_not_exist(house):
    """404 with the very sentence of what there is not: nobody learns that another has it. Admins see all."""
    made, record_id = await house.put(uid=OTHER)
    await house.spool.bury(None, "cloud", [made], Death(Cause.REJECTED, "no", key="the-key"))
    ref = Ref("cloud", "run", "their-run", "billing", OTHER, 0, "known", "their-platform-id", touched_us=1)
    house.spool.refs.put(ref)
    await house.spool.barrier()
    nothing = (await house.get("nonsense"))[1]["error"]
    for name in (record_id, "r", "the-key", "their-run", "their-platform-id"):
        status, document = await house.get(name)
        assert (status, document["error"]["code"]) == (404, "not_found"), name
        assert document["error"]["message"] == nothing["message"].replace("nonsense", name)
    house.admin = True
    for name in (record_id, "r", "the-key", "their-run", "their-platform-id"):
        assert (await house.get(name))[0] == 200, name


async def test_a_destination_that_is_not_configured_any_more(house):
    """Its records wait for somebody to put it back."""
    _, record_id = await house.put(destination="old")
    document = (await house.get(record_id))[1]
    assert document["records"][0]["destinations"][0]["waits"]["for"] == "removed"


@narrow
async def test_agents_that_one_may_not_speak_for(house):
    """A uid with a rule sees its records of the agents in it; the unnamed agent is the destination's own."""
    _, own = await house.put()
    _, foreign = await house.put(agent="sales")
    _, unnamed = await house.put(agent="")
    assert await house.state(own) == [("cloud", "queued")]
    assert [(await house.get(name))[0] for name in (foreign, unnamed)] == [404, 404]


async def test_whom_the_kernel_does_not_name_has_no_records(house):
    """Several programs over TCP are not one user: no record is theirs, and a gate is its token's."""
    _, record_id = await house.put(uid=-1)
    shelf = GateShelf(house.spool)
    source = Source("billing", -1, 0, "http")
    gate = GateRow(
        GATE, "decide", "cloud", source, 0, "pay-7", b"", "decision", "v", None, None, b"{}", "gk", 1, 5.0, row=1
    )
    await shelf.save(gate, ["asked"])
    first, second = Peer(-1, -1, 0, token=0), Peer(-1, -1, 0, token=1)
    for peer in (first, second):
        assert (await house.control.where(record_id, peer, admin=False, grant=Grant()))[0] is None
    assert (await house.control.where("pay-7", first, admin=False, grant=Grant()))[0]["gates"]
    assert (await house.control.where("pay-7", second, admin=False, grant=Grant()))[0] is None
    assert (await house.control.where("pay-7", first, admin=False, grant=Grant((), None)))[0] is None


async def test_an_event_that_is_gone_was_taken(house):
    """What the dedupe window still knows is said to have come, to its sender alone."""
    window = Window(10)
    mine, theirs = UUID(int=500), UUID(int=501)
    rows = window.add(ME, mine.bytes, b"x") + window.add(OTHER, theirs.bytes, b"y")
    house.spool._committer.put(house.spool.seen(rows, 2))
    await house.spool.barrier()
    status, document = await house.get(mine)
    assert (status, document["records"][0]["uid"], document["records"][0]["destinations"]) == (200, ME, [])
    assert "neither queued nor dead" in document["records"][0]["note"]
    assert (await house.get(theirs))[0] == 404
    house.admin = True
    assert (await house.get(theirs))[1]["records"][0]["uid"] == OTHER
    house.spool.drop_rows(Table.SEEN, [1])
    await house.spool.barrier()
    assert (await house.get(mine))[0] == 404


async def test_names_are_taken_as_they_are(house):
    """A run may be named with blanks, slashes and letters of any kind; no name is longer than 300 characters."""
    await house.put(lane="run:Fälle/2026 #7")
    assert (await house.get("Fälle/2026 #7"))[0] == 200
    assert (await house.get("x" * MAX_ID))[0] == 404
    status, document = await house.get("x" * (MAX_ID + 1))
    assert (status, document["error"]["code"]) == (400, "bad_request")


async def test_a_daemon_that_stops_says_so(house):
    """503: ask again later."""
    house.queues.close()
    status, document = await house.get("x")
    assert (status, document["error"]["code"]) == (503, "busy")
