"""The client library against the real daemon: kill -9, fork, the end of a process, and clients that do nothing."""

import time

import pytest
from harness import Frames, wait_for

from agentd import Client

pytestmark = pytest.mark.usefixtures("agentd_live")


@pytest.mark.parametrize("word", ["stored", "delivered"])
def test_what_flush_reported_outlives_kill_9(world, word):
    """Section 8: of what flush called stored or delivered nothing is lost and nothing doubled, while the daemon dies and comes back."""
    daemon = world.daemon()
    ledger = world.ledger
    with Client(socket=daemon.socket) as client:
        run = client.start_run(run_id="r")
        for _ in range(4):
            records = ledger.events_of("r", 300)
            for record in records:
                run.emit(record["type"], record["payload"])
            result = client.flush(15, until=word)
            assert result.ok, result
            ledger.took(records)
            kept = daemon.books()
            assert kept["admitted"] >= len(ledger.events["r"])
            if word == "delivered":
                assert len(world.platform.run("r")["events"]) >= len(ledger.events["r"])
            more = ledger.events_of("r", 200)  # under way when the axe falls
            for record in more[:100]:
                run.emit(record["type"], record["payload"])
            daemon.kill()
            for record in more[100:]:
                run.emit(record["type"], record["payload"])
            daemon.start()
            ledger.took(more)
        run.complete()
        assert client.flush(15, until="delivered").ok
        stats = client.stats()
        assert (stats.emitted, stats.accepted, client.dropped) == (2002, 2002, 0)
    assert daemon.drained()["delivered"] == 2002
    assert world.platform.state().faces["agentos"]["details"]["distinct_ids"] == 2000


def test_flush_says_what_is_left_when_the_platform_is_down(world):
    """Section 8: flush(until="delivered") with the platform down says how many are left, where and why; stored it is all the same."""
    daemon = world.daemon()
    world.platform.down()
    with Client(socket=daemon.socket) as client:
        with client.start_run(run_id="r") as run:
            run.emit("x")
        assert client.flush(10).ok
        result = client.flush(0.7, until="delivered")
        assert not result
        assert result.left == {"agentos": 3}
        assert "no connection" in result.reason
        world.platform.up()
        assert client.flush(10, until="delivered").ok
    assert world.platform.run("r")["status"] == "completed"


def test_a_daemon_that_comes_later_gets_what_was_emitted_before(world):
    """Section 8: emitting never waits for a daemon; one that comes up later gets it all, in order."""
    daemon = world.daemon(start=False)
    with Client(socket=daemon.socket) as client:
        begun = time.monotonic()
        records = world.ledger.events_of("r", 500)
        with client.start_run(run_id="r") as run:
            for record in records:
                run.emit(record["type"], record["payload"])
        assert time.monotonic() - begun < 1
        daemon.start()
        assert client.flush(20, until="delivered").ok
        assert client.dropped == 0
    world.ledger.took([world.ledger.start("r"), *records, world.ledger.end("r")])


FORK = """
import os
from agentd import Client
client = Client()
with client.start_run(run_id="parent") as run:
    run.emit("before", {"run": "parent", "n": 0})
    pid = os.fork()
    if pid == 0:
        with client.start_run(run_id="child", parent_run_id=None) as mine:
            mine.emit("x", {"run": "child", "n": 0})
        assert client.flush(10), "child"
        os._exit(0)
    run.emit("after", {"run": "parent", "n": 1})
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert client.flush(10), "parent"
assert client.dropped == 0
"""


def test_a_client_works_on_in_parent_and_child_of_a_fork(world):
    """Section 8: after fork the client works in both, and what was under way is sent by one of them only."""
    daemon = world.daemon()
    done = world.python(FORK, AGENTD_SOCKET=daemon.socket)
    assert (done.returncode, done.stderr) == (0, "")
    ledger = world.ledger
    ledger.took([ledger.start("parent"), ledger.event("parent"), ledger.event("parent"), ledger.end("parent")])
    ledger.took([ledger.start("child"), ledger.event("child"), ledger.end("child")])
    assert daemon.drained()["delivered"] == 7
    assert [event["type"] for event in world.platform.run("parent")["events"]] == ["before", "after"]


LEAVE = """
import sys
from agentd import Client
run = Client().start_run(run_id="r")
for number in range(1000):
    run.emit("x", {"run": "r", "n": number})
run.complete()
sys.exit(3)
"""


def test_a_process_that_ends_leaves_nothing_behind(world):
    """Section 8: without a flush or close, what was emitted is handed over at the end of the process, and its exit code stands."""
    daemon = world.daemon()
    done = world.python(LEAVE, AGENTD_SOCKET=daemon.socket)
    assert (done.returncode, done.stderr) == (3, "")
    ledger = world.ledger
    ledger.took([ledger.start("r"), *ledger.events_of("r", 1000), ledger.end("r")])


def test_required_means_required(world):
    """Section 8: with AGENTD_REQUIRED=1 `Client()` fails without a daemon and works with one; without it, it never fails."""
    daemon = world.daemon(start=False)
    script = "from agentd import Client; Client().start_run(run_id='r').complete()"
    done = world.python(script, AGENTD_SOCKET=daemon.socket, AGENTD_REQUIRED="1")
    assert done.returncode == 1
    assert "NoDaemon" in done.stderr.splitlines()[-1]
    assert daemon.socket in done.stderr.splitlines()[-1]
    assert world.python(script, AGENTD_SOCKET=daemon.socket).returncode == 0
    daemon.start()
    done = world.python(script, AGENTD_SOCKET=daemon.socket, AGENTD_REQUIRED="1")
    assert (done.returncode, done.stderr) == (0, "")
    world.ledger.took([world.ledger.start("r"), world.ledger.end("r")])


USE = """
import json, os, sys, threading
from agentd import Client

def files():
    return sorted(os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}"))

before = files()
client = Client(CODE)
with client.start_run(run_id="r") as run:
    run.emit("x")
    run.start_task("t").complete()
    client.log_decision("d", chosen="x")
assert client.flush(1).ok
assert client.disabled
assert client.dropped == 0
assert threading.active_count() == 1, threading.enumerate()
assert files() == before, (before, files())
assert "socket" not in sys.modules, "the client loaded what it does not need"
"""


@pytest.mark.parametrize(
    ("code", "environment"), [("disabled=True", {}), ("", {"AGENTD_DISABLED": "1"}), ("", {"AGENTD_DISABLED": "allow"})]
)
def test_a_client_that_is_switched_off_does_nothing(world, code, environment):
    """Section 8: no-op mode opens no socket, starts no thread and touches no file, also with a daemon beside it."""
    daemon = world.daemon()
    done = world.python(USE.replace("CODE", code), AGENTD_SOCKET=daemon.socket, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert daemon.status()["intake"]["messages"] == 0


SUITE = """
import threading
from agentd import Client

client = Client()

def test_it(agentd_recorder):
    with client.start_run(run_id="r") as run:
        run.emit("x", {"n": 1})
    assert [record["kind"] for record in agentd_recorder.records] == ["run.start", "event", "run.complete"]
    assert threading.active_count() == 1
"""


def test_a_test_suite_sends_nothing_to_a_live_daemon(world):
    """Section 8: with the plugin of the installed package a test session reaches no daemon, unless it says --agentd-live."""
    daemon = world.daemon()
    (world.folder / "test_suite.py").write_text(SUITE)
    command = (
        "import sys, pytest; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', 'test_suite.py', *sys.argv[1:]]))"
    )
    done = world.python(command, AGENTD_SOCKET=daemon.socket)
    assert done.returncode == 0, done.stdout
    assert daemon.status()["intake"]["messages"] == 0
    live = world.python(command.replace("*sys.argv[1:]", "'--agentd-live'"), AGENTD_SOCKET=daemon.socket)
    assert live.returncode == 1, live.stdout  # its client has a thread now, as the suite finds out
    wait_for(lambda: daemon.books()["delivered"] == 3, 10, daemon.books)


def lost_of(world, run):
    return [event["payload"] for event in world.platform.run(run)["events"] if event["type"] == "agentd.lost"]


def test_what_a_client_lost_is_told_to_its_runs_and_kept_by_the_daemon(world):
    """Promise 8: emitted = accepted + refused + lost, with the losses told once to each run, before its end, and in the daemon's books over restarts."""
    daemon = world.daemon(start=False)
    ledger = world.ledger
    with Client(socket=daemon.socket, max_buffer_records=100) as client:
        runs = [client.start_run(run_id=run) for run in ("ends", "goes-on", "quiet")]
        emitted = {run.run_id: ledger.events_of(run.run_id, 300, level="debug") for run in runs[:2]}
        for run in runs[:2]:
            for record in emitted[run.run_id]:
                run.emit(record["type"], record["payload"], level="debug")
        runs[0].complete()
        runs[2].emit("x", level="warn")
        lost = int(client.dropped)
        daemon.start()
        assert client.flush(15, until="delivered").ok
        wait_for(lambda: lost_of(world, "goes-on"), 10)
        runs[1].complete()
        runs[2].complete()
        assert client.flush(15, until="delivered").ok
        stats = client.stats()
        assert (stats.lost, stats.refused, stats.buffered) == (lost, 0, 0)
        assert stats.emitted == stats.accepted + stats.lost == 3 + 600 + 1 + 3 + 2
    for run, records in emitted.items():
        found = {event["payload"]["n"] for event in world.platform.run(run)["events"] if "n" in event["payload"]}
        ledger.took([record for record in records if record["payload"]["n"] in found])
        (told,) = lost_of(world, run)
        assert told["records"] == len(records) - len(found)
        assert told["causes"] == {"no_daemon": told["records"]}
        assert world.platform.run(run)["status"] == "completed"
    assert lost_of(world, "quiet") == []
    assert sum(lost_of(world, run)[0]["records"] for run in emitted) == lost
    assert daemon.status()["intake"]["lost_before_intake"] == {"no_daemon:event": lost}
    daemon.kill()
    daemon.start()
    assert daemon.status()["intake"]["lost_before_intake"] == {"no_daemon:event": lost}


def test_what_a_client_says_in_its_hello_alone_outlives_the_daemon(world):
    """Promise 8: one that lost everything and sends nothing more is in the books as well."""
    daemon = world.daemon()
    with Frames(daemon) as client:
        client.send({"hello": 1, "stream": "all-lost", "lost": {"no_daemon:event": 7, "no_daemon:task": 2}})
        assert client.receive()["last_seq"] == 0
        assert client.deliver(world.ledger, [world.ledger.start("r"), world.ledger.end("r")]) == {}  # a commit later
    daemon.kill()
    daemon.start()
    assert daemon.status()["intake"]["lost_before_intake"] == {"no_daemon:event": 7, "no_daemon:task": 2}
