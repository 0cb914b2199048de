"""The daemon towards its service manager: fed by work that was done, given time by work that goes on, told what there is to tell."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from types import SimpleNamespace

import pytest

from agentd.control.service import Service
from agentd.errors import ConfigError
from agentd.systemd import Inherited, Notifier
from agentd.vitals import Vital


class FakeCourier:
    """Goes round when it is touched, unless it hangs."""

    def __init__(self, state="ok"):
        self.rounds = 0
        self.hangs = False
        self.state = state

    def touch(self, lanes):
        assert lanes == set()
        self.rounds += not self.hangs

    def status(self):
        return self.state, None, None


class FakeSpool:
    def __init__(self, **queued):
        self.queues = {name: SimpleNamespace(live=live) for name, live in queued.items()}
        self.dead_count = 0
        self.now = Vital(0, busy=False)

    def vital(self):
        return self.now


class Manager:
    """systemd's end of NOTIFY_SOCKET."""

    def __init__(self, sock, path):
        self.sock = sock
        self.path = path

    def inherited(self, watchdog_s=30.0):
        return Inherited([], Notifier(self.path), watchdog_s)

    def heard(self):
        """What has come since, each datagram as its assignments."""
        found = []
        while True:
            try:
                found.append(dict(line.split("=", 1) for line in self.sock.recv(8192).decode().split("\n")))
            except BlockingIOError:
                return found


@pytest.fixture
def manager():
    with (
        tempfile.TemporaryDirectory(prefix="agentd-") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock,
    ):
        sock.bind(f"{folder}/notify")
        sock.setblocking(False)
        yield Manager(sock, f"{folder}/notify")


@pytest.fixture
def running(manager):
    """A service that is ready, its spool, its courier."""
    service, spool, courier = Service(manager.inherited()), FakeSpool(cloud=0), FakeCourier()
    service.ready(spool, {"cloud": courier})
    service.look()
    manager.heard()
    return service, spool, courier


def test_ready_is_said_with_what_waits(manager):
    """The status line names the largest queues, what keeps each, and the dead letters."""
    spool = FakeSpool(cloud=1200, archive=30, old=5, small=1, empty=0)
    spool.dead_count = 2
    Service(manager.inherited()).ready(spool, {"cloud": FakeCourier("waiting"), "archive": FakeCourier()})
    assert manager.heard() == [
        {
            "READY": "1",
            "STATUS": "takes records; 1,236 queued (cloud 1,200 waiting, archive 30, old 5 not configured, …), 2 dead",
        }
    ]


def test_a_daemon_that_has_nothing_to_do_is_fed(running, manager):
    """Idle is legitimate: couriers go round when they are asked, the storage thread has no job."""
    service, *_ = running
    for _ in range(3):
        service.look()
    assert manager.heard() == [{"WATCHDOG": "1"}] * 3


def test_a_courier_whose_loop_stands_still_is_not_fed_for(running, manager, caplog):
    """Its loop was asked to go round and has not: no feeding until it does, and the log and the status say whose it is."""
    service, _, courier = running
    courier.hangs = True
    service.look()  # asks, and finds the round of the look before
    assert manager.heard() == [{"WATCHDOG": "1"}]
    service.look()
    service.look()
    assert manager.heard() == [{"STATUS": "takes records; 0 queued; no progress: courier cloud"}]
    assert [(line.action, line.levelname) for line in caplog.records] == [("hangs", "ERROR")]
    courier.hangs = False
    service.look()
    service.look()
    assert manager.heard()[-1] == {"WATCHDOG": "1", "STATUS": "takes records; 0 queued"}


def test_storage_that_ends_no_job_is_not_fed_for(running, manager):
    """A thread with jobs that ends none hangs; with one slow job after the other it does not."""
    service, spool, _ = running
    spool.now = Vital(5, busy=True)
    service.look()
    spool.now = Vital(6, busy=True)
    service.look()
    assert manager.heard() == [{"WATCHDOG": "1"}] * 2
    service.look()
    assert manager.heard() == [{"STATUS": "takes records; 0 queued; no progress: storage"}]


def test_couriers_come_and_go_with_a_reload(running, manager):
    """The mapping is read at each look."""
    service, _, _ = running
    service._couriers["new"] = FakeCourier()
    service.look()
    del service._couriers["cloud"]
    service.look()
    assert manager.heard() == [{"WATCHDOG": "1"}] * 2


def test_without_a_watchdog_only_news_is_told(manager):
    """WatchdogSec= is not set: nobody is fed, and the status line comes when it changes."""
    service, spool = Service(manager.inherited(None)), FakeSpool(cloud=3)
    service.ready(spool, {})
    manager.heard()
    service.look()
    spool.queues["cloud"].live = 4
    service.look()
    service.look()
    assert [news["STATUS"] for news in manager.heard()][-1:] == ["takes records; 4 queued (cloud 4 not configured)"]


def test_a_start_is_given_time_as_long_as_it_gets_on(manager):
    """Recovery of a damaged spool: steps extend it, a start that hangs is not extended."""
    service = Service(manager.inherited())
    service._vitals.look(service._parts())
    service.look()
    assert [news for news in manager.heard() if "EXTEND_TIMEOUT_USEC" in news] == []
    service.pace.step()
    service.look()
    assert [news["EXTEND_TIMEOUT_USEC"] for news in manager.heard()] == ["20000000"]


def test_a_stop_is_given_time_as_long_as_it_gets_on(running, manager):
    """STOPPING=1 comes first; couriers that have ended are no reason to be killed; storage that hangs is."""
    service, spool, courier = running
    service.stopping()
    first, *_ = manager.heard()
    assert first == {"STOPPING": "1", "STATUS": "stopping; 0 queued"}
    courier.hangs = True
    spool.now = Vital(1, busy=True)
    for rounds in (2, 3):
        service.look()
        spool.now = Vital(rounds, busy=True)
    assert [news["EXTEND_TIMEOUT_USEC"] for news in manager.heard()] == ["20000000"] * 2
    service.look()
    manager.heard()
    service.look()
    assert not any("EXTEND_TIMEOUT_USEC" in news for news in manager.heard())


def test_a_reload_has_a_beginning_and_an_end(running, manager):
    """Also one that was refused, whose reason stays in the status until the next."""
    service, *_ = running
    with service.reloading():
        [begun] = manager.heard()
    assert (begun["RELOADING"], begun["MONOTONIC_USEC"].isdecimal()) == ("1", True)
    assert manager.heard() == [{"READY": "1", "STATUS": "takes records; 0 queued"}]
    with pytest.raises(ConfigError), service.reloading():
        raise ConfigError("agentd.toml: [batch] wrong")
    assert manager.heard()[-1]["STATUS"] == "takes records; 0 queued; not reloaded: agentd.toml: [batch] wrong"
    with service.reloading():
        pass
    assert manager.heard()[-1] == {"READY": "1", "STATUS": "takes records; 0 queued"}


async def test_it_looks_by_itself_for_as_long_as_it_is_open(manager, monkeypatch):
    """At least twice within WatchdogSec=, from the first moment to the last."""
    monkeypatch.setattr("agentd.control.service._LOOK_WHILE_S", 0.001)
    async with Service(manager.inherited(0.001)) as service:
        service.pace.step()
        while not any("EXTEND_TIMEOUT_USEC" in news for news in manager.heard()):
            await asyncio.sleep(0)
        service.ready(FakeSpool(), {})
        while not any("WATCHDOG" in news for news in manager.heard()):
            await asyncio.sleep(0)
    assert service._task.done()


async def test_without_a_service_manager_nothing_is_looked_at():
    """A daemon in a terminal, or beside a command."""
    async with Service() as service:
        service.ready(FakeSpool(), {})
        with service.reloading():
            service.stopping()
        assert (service._task, service.sockets) == (None, None)
