"""Platforms that go away, daemons that are stopped, and daemons that are one too many."""

import json
import os
import select
import signal
import time
from pathlib import Path

from harness import Frames, http_call, wait_for


def _accept(world, daemon, run, events, **options):
    """A run's start and so many events, acknowledged."""
    with Frames(daemon) as client:
        assert client.deliver(world.ledger, [world.ledger.start(run)]) == {}
        assert client.deliver(world.ledger, world.ledger.events_of(run, events, **options)) == {}


def _end(world, daemon, run):
    with Frames(daemon) as client:
        assert client.deliver(world.ledger, [world.ledger.end(run)]) == {}


def test_a_platform_that_is_down_costs_nothing(world):
    """Promises 1 and 2: what is accepted during an outage arrives after it, in order; status says why it waits."""
    daemon = world.daemon()
    _accept(world, daemon, "before", 10)
    daemon.drained()
    world.platform.down()
    for run in ("before", "a", "b", "c", "d"):
        with Frames(daemon) as client:
            assert client.deliver(world.ledger, [world.ledger.start(run), *world.ledger.events_of(run, 100)]) == {}
    books = wait_for(lambda: (books := daemon.balanced())["state"] != "ok" and books, 10, daemon.books)
    assert books["state"] == "waiting"
    assert "no connection" in books["reason"]
    assert books["retry_in_s"] >= 0
    assert books["queued"] == 504 + 1
    shown = world.cli("--config", str(daemon.config), "status")
    assert shown.returncode == 3  # degraded
    assert "waiting" in shown.stdout
    assert "no connection" in shown.stdout
    world.platform.up()
    assert daemon.drained()["delivered"] == 516
    for run in ("before", "a", "b", "c", "d"):
        _end(world, daemon, run)


def test_a_restart_during_an_outage_costs_nothing(world):
    """Promise 1: a daemon that is stopped and one that is killed during an outage deliver what was accepted when both are back."""
    daemon = world.daemon(shutdown={"drain_timeout": "300ms"})
    _accept(world, daemon, "a", 100)
    daemon.drained()
    world.platform.down()
    for restart in (daemon.stop, daemon.kill):
        with Frames(daemon) as client:
            assert client.deliver(world.ledger, world.ledger.events_of("a", 100)) == {}
        wait_for(lambda: daemon.books()["state"] == "waiting", 10, daemon.books)
        restart()
        daemon.start()
    assert daemon.balanced()["queued"] == 200
    _end(world, daemon, "a")
    world.platform.up()
    assert daemon.drained()["delivered"] == 302


def test_an_answer_is_lost_while_the_daemon_dies(world):
    """Promise 4: a batch that the platform took without our hearing of it goes again after a crash as the same bytes under the same key."""
    daemon = world.daemon(batch={"max_interval": "100ms"})
    _accept(world, daemon, "a", 0)
    daemon.drained()
    world.platform.faults("latency=1s,path=/api/ingest/v1/events,count=1")
    with Frames(daemon) as client:
        assert client.deliver(world.ledger, world.ledger.events_of("a", 20)) == {}
        wait_for(lambda: world.platform.state().events == 20, 10)  # it is committed there, the answer is a second away
        daemon.kill()
    world.platform.down()  # so that there is more by the time that it can be sent
    daemon.configure(batch={"max_events": 7})  # as another version might deal it out
    daemon.start()
    with Frames(daemon) as client:
        assert client.deliver(world.ledger, [*world.ledger.events_of("a", 10), world.ledger.end("a")]) == {}
    world.platform.up()
    assert daemon.drained()["delivered"] == 32
    state = world.platform.state()
    assert (state.events, state.duplicates) == (50, 20)
    assert (state.keys["repeated"], state.keys["conflicting"]) == (1, 0)


def test_sigterm_sends_what_is_not_yet_due(world):
    """Promise 7: SIGTERM flushes what waits for its batch to fill, and exits 0."""
    daemon = world.daemon(batch={"max_interval": "1h"})
    _accept(world, daemon, "a", 30)
    wait_for(lambda: daemon.books()["delivered"] == 1, 10, daemon.books)  # the start: it never waits for a batch
    assert daemon.balanced()["queued"] == 30
    begun = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - begun < 5
    assert len(world.platform.run("a")["events"]) == 30
    assert not Path(daemon.socket).exists()


def test_sigterm_with_the_platform_down_ends_in_time(world):
    """Promise 7: with the platform down the daemon exits 0 within drain_timeout, and the next start delivers what is left."""
    daemon = world.daemon(shutdown={"drain_timeout": "2s"})
    _accept(world, daemon, "a", 10)
    daemon.drained()
    world.platform.down()
    with Frames(daemon) as client:
        assert client.deliver(world.ledger, [*world.ledger.events_of("a", 40), world.ledger.end("a")]) == {}
    begun = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - begun < 3.5
    (left,) = daemon.entries("left")
    assert "41 for agentos" in left["message"]
    world.platform.up()
    daemon.start()
    assert daemon.drained()["delivered"] == 52


def test_sigterm_waits_out_a_short_rest(world):
    """Promise 7: a platform that asked for a second's rest is waited for, and what is queued is delivered."""
    daemon = world.daemon(batch={"max_interval": "1h"}, shutdown={"drain_timeout": "20s"})
    world.platform.faults("status=429,retry_after=1s,count=1")
    with Frames(daemon) as client:
        assert client.deliver(world.ledger, world.ledger.whole_run("r", 30)) == {}
    wait_for(lambda: daemon.entries("waiting"), 10, daemon.books)
    assert daemon.stop(15) == 0
    assert len(world.platform.run("r")["events"]) == 30
    assert world.platform.run("r")["status"] == "completed"
    assert not daemon.entries("left")
    daemon.start()
    assert daemon.balanced()["delivered"] == 32


def test_sigterm_does_not_wait_for_a_platform_that_is_away(world):
    """Promise 7: where no connection is to be had the drain ends after a few tries, long before its time."""
    daemon = world.daemon(batch={"max_interval": "1h"}, shutdown={"drain_timeout": "60s"})
    with Frames(daemon) as client:
        assert client.deliver(world.ledger, [world.ledger.start("r"), *world.ledger.events_of("r", 30)]) == {}
        daemon_idle = lambda: daemon.books()["delivered"] == 1  # noqa: E731
        wait_for(daemon_idle, 10, daemon.books)
        world.platform.down()
    began = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - began < 15
    assert daemon.entries("left")
    world.platform.up()
    daemon.start()
    assert daemon.drained()["delivered"] == 31
    _end(world, daemon, "r")


def test_a_second_sigterm_ends_the_wait(world):
    """Promise 7: a platform that takes its time is waited for, a second signal ends that, and nothing is lost by it."""
    daemon = world.daemon(shutdown={"drain_timeout": "50s"})
    world.platform.faults("latency=40s")
    _accept(world, daemon, "a", 10)
    wait_for(lambda: daemon.books()["in_flight"] == 1, 10, daemon.books)
    daemon.signal(signal.SIGTERM)
    wait_for(lambda: daemon.entries("stopping"), 10)
    ended = os.pidfd_open(daemon.process.pid)
    try:
        assert select.select([ended], [], [], 0.5)[0] == []
    finally:
        os.close(ended)
    begun = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - begun < 3
    world.platform.faults()
    daemon.start()
    assert daemon.drained(10)["delivered"] == 11


def test_while_it_drains_nothing_new_is_taken(world):
    """Promise 7: SIGTERM stops intake first; who connects then is turned away and knows it."""
    daemon = world.daemon(shutdown={"drain_timeout": "20s"})
    world.platform.faults("latency=1s,count=1")
    _accept(world, daemon, "a", 5)
    wait_for(lambda: daemon.books()["in_flight"] == 1, 10, daemon.books)
    with Frames(daemon) as client:
        assert client.hello()["hello"] == 1
        daemon.signal(signal.SIGTERM)
        assert client.is_closed()
    assert daemon.wait() == 0
    daemon.start()


def test_a_second_daemon_harms_nothing(world):
    """Small print of section 5: a second daemon on the same socket or state folder exits 1 with a sentence; the first goes on."""
    first = world.daemon()
    same_socket = world.daemon("s", start=False, listen={"socket": first.socket})
    same_state = world.daemon("f", start=False, spool={"directory": str(first.state)})
    for second in (same_socket, same_state):
        second.spawn()
        assert second.wait() == 1
        words = second.log.read_text()
        assert "another agentd" in words
        assert str(first.process.pid) in words
        assert "Traceback" not in words
        assert len(words.splitlines()) == 1
        second.log.unlink()
        _accept(world, first, f"after {second.name}", 5)
        assert http_call(first.socket, "GET", "/readyz")[0] == 200
    checked = world.cli("--config", str(first.config), "check", KEY="k")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert first.drained()["delivered"] == 12


def test_a_stale_socket_is_replaced(world):
    """Small print of section 5: what kill -9 leaves at the socket's path is in nobody's way."""
    daemon = world.daemon()
    _accept(world, daemon, "a", 5)
    daemon.kill()
    assert Path(daemon.socket).is_socket()
    shown = world.cli("--config", str(daemon.config), "status", "--json")
    assert json.loads(shown.stdout)["state"] == "stopped"
    assert f"no daemon at {daemon.socket}: reading" in shown.stderr
    daemon.start()
    _end(world, daemon, "a")
    shown = world.cli("--config", str(daemon.config), "status", "--json")
    assert json.loads(shown.stdout)["state"] == "running"


def test_something_else_at_the_sockets_path_is_left_alone(world):
    """A file that is no socket is not deleted: exit 1, and it says so."""
    daemon = world.daemon(start=False)
    Path(daemon.socket).write_text("mine")
    daemon.spawn()
    assert daemon.wait() == 1
    assert "no socket" in daemon.log.read_text()
    assert Path(daemon.socket).read_text() == "mine"
    daemon.log.unlink()
