"""What the daemon tells about itself: the same numbers as its books, and records only to those who may see them."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from types import SimpleNamespace

import msgspec
import pytest

from agentd.control.answers import DaemonControl
from agentd.intake import Grant, Peer
from agentd.queued import Ref
from agentd.redact.build import no_redactor
from agentd.sections import Config, Destination, Listen, Loaded, Security
from agentd.spool.timings import Timings
from agentd.vitals import Vital

OWNER = Peer(1000, 1000, 1)
STRANGER = Peer(1001, 1001, 2)


class Books:
    def __init__(self):
        self.counts = {"admitted": 10, "delivered": 6, "dead": 1}
        self.adrift = 0

    def total(self, _name, state):
        return self.counts.get(state, 0)

    def causes(self, _name):
        return {"rejected": 1}

    def queued(self, name):
        return 3 if name else self.adrift

    def lines(self):
        return [("cloud", "event", "admitted", "", 10)]


class FakeQueue:
    live, stored_bytes, window_bytes, segments = 3, 300, 100, (1, 2)

    def __init__(self):
        self.low = 8

    def oldest_us(self, age_us):
        return None

    def lowest(self):
        return self.low


class FakeSpool:
    """As much of a spool as the control asks for."""

    def __init__(self):
        self.queues = {"cloud": FakeQueue()}
        self.books = Books()
        self.meta = SimpleNamespace(commits=4, next_number={"cloud": 11})
        self.folder = SimpleNamespace(free_bytes=lambda: 10**9)
        self.limits = SimpleNamespace(quotas={"cloud": 2**29})
        self.refs = SimpleNamespace(owners=lambda _kind, _id: [])
        self.disk_full, self.quarantined_rows, self.dead_count, self.dead_bytes = False, 0, 1, 40
        self.ledger = SimpleNamespace(dead_lanes=Counter())
        self.journal = SimpleNamespace(document=lambda: {"entries": 7, "rows": 2, "bytes": 90, "max_bytes": 10**6})
        self.trouble = None
        self.in_commit = 0
        self.lane_counts = {}
        self.timings = Timings()

    def __getattr__(self, name):
        return {
            "file_bytes": lambda: 4096, "vital": lambda: Vital(0, busy=False), "stuck": lambda: self.trouble, "committing": lambda _name: self.in_commit,
            "lowest": lambda name: self.queues[name].lowest(),
        }[name]  # fmt: skip

    async def barrier(self):
        await asyncio.sleep(0)

    async def count_lane(self, name, lane):
        return self.lane_counts.get((name, lane), 0)


class FakeCourier:
    def __init__(self):
        self.flushed = 0
        self.now = ("ok", None, None)
        self.counts = SimpleNamespace(requests=5, retries=2)
        self.throttle = SimpleNamespace(width=8)
        self.lanes = type("Lanes", (), {"in_flight": 1, "__len__": lambda _self: 2})()

    def flush(self):
        self.flushed += 1

    def status(self):
        return self.now


@pytest.fixture
def parts():
    config = Config(destinations={"cloud": Destination("agentos")}, security=Security(admin_uids=[77]))
    sink = SimpleNamespace(
        messages=3,
        held=4,
        runs=None,
        streams=SimpleNamespace(lost=lambda: {"no_daemon": 2}),
        admission=SimpleNamespace(accepted=10, refused={"invalid": 2, "spool_full": 0}, redactor=no_redactor()),
    )
    spool, courier = FakeSpool(), FakeCourier()
    return DaemonControl(Loaded(config, None), spool, sink, {"cloud": courier}, lambda: 4), spool, courier


def test_the_status_holds_the_books(parts):
    """Promise 8: admitted, queued and every end per destination, and whether they balance; it is JSON."""
    control, spool, _ = parts
    status = control.status()
    cloud = status["destinations"]["cloud"]
    assert (cloud["admitted"], cloud["queued"], cloud["delivered"], cloud["dead"], cloud["causes"]) == (
        10,
        3,
        6,
        1,
        {"rejected": 1},
    )
    assert (cloud["state"], cloud["lanes"], cloud["in_flight"], cloud["requests"], cloud["retries"]) == (
        "ok",
        2,
        1,
        5,
        2,
    )
    assert status["intake"] == {
        "connections": 4,
        "messages": 3,
        "accepted": 10,
        "refused": {"invalid": 2},
        "held": 4,
        "tails": 0,
        "runs": {},
        "lost_before_intake": {"no_daemon": 2},
    }
    assert (status["balanced"], status["state"]) == (True, "running")
    msgspec.json.encode(status)
    assert status["dead_letters"] == {"records": 1, "bytes": 40, "max_bytes": 2**27, "invalid": 1}
    spool.books.adrift = 1
    assert not control.status()["balanced"]
    spool.books.adrift = 0
    spool.queues["cloud"].live = 2
    assert not control.status()["balanced"]


def test_a_queue_without_a_courier_is_shown(parts):
    """A destination that is no longer configured keeps its queue, and the status says so."""
    control, spool, _ = parts
    spool.queues["old"] = FakeQueue()
    old = control.status()["destinations"]["old"]
    assert (old["state"], old["platform"], old["queued"]) == ("removed", None, 3)


@pytest.mark.parametrize(("peer_uid", "admin"), [(0, True), (os.geteuid(), True), (77, True), (4321, False)])
def test_who_is_an_admin(parts, peer_uid, admin):
    """The daemon's own uid, root, and those that are configured."""
    assert parts[0].is_admin(Peer(peer_uid, 0, 1)) is admin


@pytest.mark.parametrize("uid", [0, os.geteuid(), 77])
def test_nobody_over_tcp_is_an_admin(parts, uid):
    """Whatever uid the connection has: the loopback listener is never admin."""
    assert not parts[0].is_admin(Peer(uid, -1, 0, token=0))


def test_the_status_says_where_it_listens():
    """The socket, and the loopback listener with the port that it got; null without one."""
    sink = SimpleNamespace(
        messages=0,
        held=0,
        runs=None,
        streams=SimpleNamespace(lost=dict),
        admission=SimpleNamespace(accepted=0, refused={}, redactor=no_redactor()),
    )
    loaded = Loaded(Config(listen=Listen(socket="/x/s", http="127.0.0.1:0")), None)
    url = "http://127.0.0.1:4319"
    assert DaemonControl(loaded, FakeSpool(), sink, {}, int, lambda: url).status()["listen"] == {
        "socket": "/x/s",
        "http": url,
    }
    assert DaemonControl(loaded, FakeSpool(), sink, {}, int).status()["listen"]["http"] is None


def test_health_and_readiness(parts):
    """The daemon is unready while it drains, and unhealthy when its storage is stuck, whatever the platforms do."""
    control, spool, _ = parts
    assert (control.unhealthy(), control.unready()) == (None, None)
    spool.trouble = "the disk hangs"
    control.draining = True
    assert (control.unhealthy(), control.unready()) == ("the disk hangs", "draining")
    assert control.status()["state"] == "draining"


def test_ready_means_that_socket_and_spool_work(parts):
    """A socket that was taken away and commits that fail make it unready, each with its reason."""
    control, spool, _ = parts
    spool.trouble = "5 commits failed in a row"
    assert control.unready() == "5 commits failed in a row"
    control._missing = lambda: "the socket /x is gone"
    assert control.unready() == "the socket /x is gone"


async def test_a_flush_says_what_is_left_and_why(parts):
    """A flush waits for what was queued before it, and names what is left with the destination's reason."""
    control, spool, courier = parts
    courier.now = ("paused", "401", 4.0)
    answer = await control.flush("delivered", 0.0)
    assert (answer["flushed"], answer["left"], answer["reason"]) == (False, {"cloud": 3}, "cloud: paused: 401")
    assert courier.flushed == 1
    spool.queues["cloud"].low = 11  # what came after the flush is not waited for
    assert (await control.flush("delivered", 5.0))["flushed"] is True


async def test_a_flush_until_stored_hurries_nobody(parts):
    """`stored` waits for the disk and leaves delivery alone."""
    control, _, courier = parts
    answer = await control.flush("stored", 5.0)
    assert (answer["flushed"], answer["left"], courier.flushed) == (True, {}, 0)


async def test_a_run_is_told_from_all_places(parts):
    """What of a run is delivered, queued and dead, with the platform's id; a run that nobody knows is None."""
    control, spool, _ = parts
    asked = {"viewer": OWNER, "admin": False, "grant": Grant()}
    assert await control.run("r", **asked) is None
    spool.refs.owners = lambda _kind, _id: [Ref("cloud", "run", "r", "billing", 1000, 1, "known", "p-r", delivered=6)]
    spool.lane_counts["cloud", "run:r"] = 2
    spool.ledger.dead_lanes.update([("cloud", "run:r"), ("cloud", "run:other"), ("local", "run:r")])
    found = (await control.run("r", **asked))["destinations"]["cloud"]
    assert found == {"platform_id": "p-r", "state": "known", "ended": False, "delivered": 6, "queued": 2, "dead": 1}


@pytest.mark.parametrize(
    ("viewer", "admin", "grant", "named"),
    [
        (OWNER, False, Grant(), True),
        (OWNER, False, Grant(("billing",), frozenset({"cloud"})), True),
        (OWNER, False, Grant(("sales",)), False),
        (OWNER, False, Grant(None, frozenset({"other"})), False),
        (STRANGER, False, Grant(), False),
        (STRANGER, True, Grant(), True),
    ],
)
async def test_the_platforms_id_of_a_run_is_its_owners(parts, viewer, admin, grant, named):
    """Others see how far a run is, and not by what name it can be had of the platform."""
    control, spool, _ = parts
    spool.refs.owners = lambda _kind, _id: [
        Ref("cloud", "run", "r", "billing", OWNER.uid, 1, "known", "p-r", delivered=6)
    ]
    found = (await control.run("r", viewer=viewer, admin=admin, grant=grant))["destinations"]["cloud"]
    assert (found["platform_id"], found["delivered"]) == ("p-r" if named else None, 6)


async def test_whom_the_kernel_does_not_name_owns_no_run(parts):
    """Several whose uid is not known are not one user: none is told what the platform calls another's run."""
    control, spool, _ = parts
    spool.refs.owners = lambda _kind, _id: [Ref("cloud", "run", "r", "billing", -1, 1, "known", "p-r")]
    viewer = Peer(-1, -1, 0, token=0)
    found = (await control.run("r", viewer=viewer, admin=False, grant=Grant()))["destinations"]["cloud"]
    assert found["platform_id"] is None


def test_what_couriers_report_reaches_the_metrics(parts):
    """Each request is seen in the exposition, under its destination and verdict."""
    control, _, _ = parts
    control.observer("cloud")("delivered", 0.1, 50)
    text, _ = control.metrics()
    assert b'agentd_request_seconds_count{destination="cloud",verdict="delivered"} 1.0' in text
