"""Faults that no other end-to-end test has: disks that fail or crawl, wires that break, a daemon that is frozen, a key that is corrected."""

from __future__ import annotations

import errno
import resource
import signal
import threading
import time
from pathlib import Path

import pytest
from harness import Frames, Ledger, Producer, deal, http_call, wait_for
from wire_kit import FailingDisk, Wire, certificate_in

from agentd.sandbox.faults import Fault

FULL = "spool full"
EVENTS = "/api/ingest/v1/events"
DISK = {"disk_full", "commit_failed", "read_failed"}  # what a disk that fails has agentd say


def told(world, daemon, *records):
    with Frames(daemon) as client:
        assert client.deliver(world.ledger, list(records)) == {}


def health(daemon):
    status, said = http_call(daemon.socket, "GET", "/healthz")
    return status, said.get("reason", "")


def refused(world, daemon, run):
    """Warnings that are handed in until they are refused; nothing is said to be taken that is not on disk."""
    with Frames(daemon) as client:
        return client.deliver(world.ledger, world.ledger.events_of(run, 3, level="warn"))


# -- the disk --------------------------------------------------------------------------------------------------------------

BROKEN = {
    "writes EIO": ({"writes": errno.EIO}, "disk I/O error"),
    "syncs EIO": ({"syncs": errno.EIO}, "disk I/O error"),
    "read-only": ({"writes": errno.EROFS}, ""),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_disk_that_breaks_refuses_and_says_so(world, how):
    """Promise 1: the daemon lives, refuses by name, is not healthy, floods no log, and goes on by itself when the disk does."""
    fails, word = BROKEN[how]
    disk = FailingDisk(world)
    daemon, ledger = disk.daemon.start(), world.ledger
    daemon.expected = DISK
    world.platform.down()
    told(world, daemon, ledger.start("r"), *ledger.events_of("r", 20))
    disk.fails(**fails)
    wait_for(lambda: set(refused(world, daemon, "r").values()) == {FULL}, 10, daemon.tail)
    assert daemon.status()["spool"]["full"]
    assert health(daemon) == (200, "")  # one commit that fails is no sick daemon
    _, reason = wait_for(lambda: (found := health(daemon))[0] == 503 and found, 20, daemon.tail)
    assert "commits failed in a row" in reason
    lines = len(daemon.entries())
    begun = time.monotonic()
    wait_for(lambda: time.monotonic() > begun + 2, 3)  # what it writes meanwhile is what it writes all night
    assert len(daemon.entries()) - lines <= 10, daemon.tail()
    assert set(refused(world, daemon, "r").values()) == {FULL}
    assert not daemon.entries("disk_recovered")
    assert any(word in line["message"] for line in daemon.entries("commit_failed"))
    disk.fails()
    wait_for(lambda: not daemon.status()["spool"]["full"], 10, daemon.tail)
    assert len(daemon.entries("disk_recovered")) == 1
    assert health(daemon)[0] == 200
    world.platform.up()
    told(world, daemon, *ledger.events_of("r", 20), ledger.end("r"))
    assert daemon.drained()["dead"] == 0


def test_a_death_on_a_broken_disk_loses_nothing_that_was_acknowledged(world):
    """Promise 1: kill -9 while nothing can be written; on the mended disk everything that was said to be taken is there."""
    disk = FailingDisk(world)
    daemon, ledger = disk.daemon.start(), world.ledger
    daemon.expected = DISK
    world.platform.faults("status=503,rate=0.3")
    told(world, daemon, ledger.start("r"), *ledger.events_of("r", 200))
    disk.fails(writes=errno.EIO)
    wait_for(lambda: set(refused(world, daemon, "r").values()) == {FULL}, 10, daemon.tail)
    daemon.kill()
    disk.fails()
    world.platform.faults()
    world.doubles = True  # what it could not write down as delivered
    daemon.start()
    told(world, daemon, ledger.end("r"))
    assert daemon.drained()["quarantined"] == 0


def test_a_disk_that_breaks_does_not_hold_up_the_end(world):
    """Promise 7: SIGTERM on a disk that takes nothing ends in time; the next start has what was acknowledged."""
    disk = FailingDisk(world, shutdown={"drain_timeout": "1s"})
    daemon, ledger = disk.daemon.start(), world.ledger
    daemon.expected = {*DISK, "commit_abandoned"}
    world.platform.down()
    told(world, daemon, ledger.start("r"), *ledger.events_of("r", 50))
    disk.fails(writes=errno.EIO)
    wait_for(lambda: set(refused(world, daemon, "r").values()) == {FULL}, 10, daemon.tail)
    daemon.signal(signal.SIGTERM)
    assert daemon.wait(20) == 0
    disk.fails()
    world.platform.up()
    daemon.start()
    told(world, daemon, ledger.end("r"))
    assert daemon.drained()["delivered"] == 52


def test_records_that_cannot_be_read_just_now_are_not_damaged(world):
    """Promises 1 and 8: a disk that fails to read costs time: nothing is set aside, and all is delivered when it reads again."""
    disk = FailingDisk(world, memory={"budget": "16MiB"}, shutdown={"drain_timeout": "100ms"})
    daemon, ledger = disk.daemon.start(), world.ledger
    daemon.expected = DISK
    world.platform.down()
    for run in "abcd":
        told(world, daemon, ledger.start(run))
        for _ in range(10):
            told(world, daemon, *ledger.events_of(run, 20, size=10_000))
    assert daemon.stop() == 0
    daemon.start()  # with nothing of it in any cache of SQLite's
    disk.fails(reads=errno.EIO)
    world.platform.up()
    wait_for(lambda: daemon.entries("read_failed"), 20, daemon.tail)
    books = daemon.balanced()
    assert (books["quarantined"], books["dead"]) == (0, 0)
    disk.fails()
    books = daemon.drained(40)
    assert (books["delivered"], books["quarantined"], books["dead"]) == (804, 0, 0)
    told(world, daemon, *(ledger.end(run) for run in "abcd"))
    assert not list(daemon.state.glob("quarantine/*"))


def test_a_start_on_a_disk_that_cannot_be_read_harms_nothing(world):
    """Promise 1: exit 1 and one sentence; no store is set aside or begun anew, and on the mended disk everything is there."""
    disk = FailingDisk(world, shutdown={"drain_timeout": "100ms"})
    daemon, ledger = disk.daemon.start(), world.ledger
    world.platform.down()
    told(world, daemon, *ledger.whole_run("r", 50))
    assert daemon.stop() == 0
    log = daemon.log.read_bytes()
    disk.fails(reads=errno.EIO)
    daemon.spawn()
    assert daemon.wait() == 1
    *_, said = daemon.log.read_bytes()[len(log) :].decode().splitlines()
    assert said.startswith("agentd: ")
    assert not list(daemon.state.glob("quarantine/*"))
    daemon.log.write_bytes(log)
    disk.fails()
    world.platform.up()
    daemon.start()
    assert daemon.drained()["delivered"] == 52


def test_a_start_on_a_read_only_disk_says_so(world):
    """Promise 1: exit 1 and one sentence that names the file; nothing is touched."""
    disk = FailingDisk(world, shutdown={"drain_timeout": "100ms"})
    daemon, ledger = disk.daemon.start(), world.ledger
    world.platform.down()
    told(world, daemon, *ledger.whole_run("r", 50))
    assert daemon.stop() == 0
    log = daemon.log.read_bytes()
    disk.fails(writes=errno.EROFS)
    daemon.spawn()
    assert daemon.wait() == 1
    (said,) = daemon.log.read_bytes()[len(log) :].decode().splitlines()
    assert "Read-only file system" in said
    assert str(daemon.state) in said
    daemon.log.write_bytes(log)
    disk.fails()
    world.platform.up()
    daemon.start()
    assert daemon.drained()["delivered"] == 52


def test_a_slow_disk_is_shared_and_holds_up_nobody_who_asks(world):
    """Promise 1: with syncs of a quarter of a second many clients share each, answers wait for theirs, and health is told at once."""
    disk = FailingDisk(world)
    daemon, ledger = disk.daemon.start(), world.ledger
    runs = [f"r{number}" for number in range(8)]
    told(world, daemon, *(ledger.start(run) for run in runs))
    daemon.drained()
    disk.fails(sync_ms=250)
    before = daemon.status()["spool"]["commits"]
    answers, looks = [], []

    def talk(run):
        with Frames(daemon) as client:
            for _ in range(5):
                begun = time.monotonic()
                assert client.deliver(ledger, ledger.events_of(run, 5)) == {}
                answers.append(time.monotonic() - begun)

    talking = [threading.Thread(target=talk, args=[run]) for run in runs]
    for each in talking:
        each.start()
    while any(each.is_alive() for each in talking):
        begun = time.monotonic()
        assert health(daemon)[0] == 200
        looks.append(time.monotonic() - begun)
    for each in talking:
        each.join()
    commits = daemon.status()["spool"]["commits"] - before
    disk.fails()
    assert min(answers) >= 0.2, "somebody was told before the disk had it"
    assert (len(answers), commits < len(answers)) == (40, True), commits
    assert sorted(looks)[len(looks) // 2] < 0.1, looks
    told(world, daemon, *(ledger.end(run) for run in runs))
    assert daemon.drained()["delivered"] == 8 + 200 + 8


# -- the wire --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mood", "taken", "word"),
    [
        ("reset request", False, "reset"),
        ("torn answer", True, ""),
        ("dripping answer", True, "no answer in time"),
        ("silent", False, "no answer in time"),
    ],
)
def test_a_wire_that_breaks_costs_nothing(world, mood, taken, word):
    """Promises 1, 4 and 5: whatever of a request or an answer is lost, it is tried again as the same bytes; status says why it waits."""
    wire = Wire(world)
    daemon = world.daemon(destination={"base_url": wire.url, "timeout": "400ms"})
    ledger = world.ledger
    told(world, daemon, ledger.start("r"))
    daemon.drained()
    wire.mood = mood
    told(world, daemon, *ledger.events_of("r", 20))
    wait_for(lambda: wire.met >= 3 and word in (daemon.books()["reason"] or ""), 15, daemon.books)
    books = daemon.balanced()
    assert (books["queued"], books["dead"], books["delivered"]) == (20, 0, 1)
    assert bool(world.platform.state().events) == taken
    wire.mood = "whole"
    world.doubles = taken  # AgentOS keeps no key of events
    told(world, daemon, ledger.end("r"))
    assert daemon.drained(20)["delivered"] == 22
    assert world.platform.state().keys["conflicting"] == 0


def test_a_certificate_that_nobody_vouches_for_is_named_and_can_be_trusted(world):
    """Promise 5: nothing is sent, nothing is lost, status names the certificate; SSL_CERT_FILE and a restart are the cure."""
    certificate = certificate_in(world.folder)
    wire = Wire(world, certificate)
    daemon = world.daemon(destination={"base_url": wire.url}, shutdown={"drain_timeout": "100ms"})
    told(world, daemon, *world.ledger.whole_run("r", 20))
    wait_for(lambda: daemon.books()["state"] == "waiting", 10, daemon.books)
    assert "certificate" in daemon.books()["reason"].lower()
    assert (daemon.balanced()["queued"], world.platform.requests()) == (22, [])
    assert daemon.stop() == 0
    daemon.environment = {"SSL_CERT_FILE": str(certificate[0])}
    daemon.start()
    assert daemon.drained()["delivered"] == 22


def test_a_host_that_nobody_knows_is_named(world):
    """Promise 5: a name that does not resolve is no connection: everything is kept, status names the host."""
    daemon = world.daemon(destination={"base_url": "https://no-such-host.invalid"})
    ledger = Ledger()  # none of it will be delivered
    with Frames(daemon) as client:
        assert client.deliver(ledger, ledger.whole_run("r", 20)) == {}
    books = wait_for(lambda: (found := daemon.balanced())["state"] == "waiting" and found, 20, daemon.books)
    assert "no connection" in books["reason"]
    assert (books["queued"], books["dead"]) == (22, 0)
    shown = world.cli("--config", str(daemon.config), "status")
    assert "no-such-host.invalid" in shown.stdout
    dropped = world.cli(
        "--config", str(daemon.config), "queue", "drop", "agentos", "--yes", "--reason", "a typing error"
    )
    assert dropped.returncode == 0, dropped.stderr
    assert daemon.balanced()["purged"] == 22


# -- the platform ------------------------------------------------------------------------------------------------------------


def test_a_key_that_is_corrected_sends_what_was_kept(world):
    """README: 401 is a pause; the key's file is corrected, the daemon started again, and the queue is delivered as it was sealed."""
    watched = world.platform.watched
    answer = watched._answer

    def guarded(call):
        right = watched.face.presented_key(call.headers) == "right"
        return answer(call) if right else watched.face.refuse(401, "no such key")

    world.platform.ask(lambda: setattr(watched, "_answer", guarded))
    key = world.folder / "agentos.key"
    key.write_text("wrong\n")
    key.chmod(0o600)
    daemon = world.daemon(destination={"api_key": {"file": str(key)}}, shutdown={"drain_timeout": "100ms"})
    daemon.expected = {"paused"}
    told(world, daemon, *world.ledger.whole_run("r", 20))
    wait_for(lambda: daemon.books()["state"] == "paused", 10, daemon.books)
    assert "401" in daemon.books()["reason"]
    assert daemon.balanced()["queued"] == 22
    assert daemon.stop() == 0
    key.write_text("right\n")
    daemon.start()
    books = daemon.drained()
    assert (books["delivered"], books["dead"]) == (22, 0)
    assert "wrong" not in daemon.log.read_text()


@pytest.mark.parametrize("rest", ["status=429,count=2", "status=503,retry_after=1s,count=1"])
def test_a_rest_that_is_asked_for_is_granted(world, rest):
    """Promise 5: 429 without a time backs off, 503 with one waits it out; nothing is dead and nothing comes early."""
    daemon = world.daemon()
    ledger = world.ledger
    told(world, daemon, ledger.start("r"))
    daemon.drained()
    world.platform.faults(f"{rest},path={EVENTS}")
    told(world, daemon, *ledger.events_of("r", 20), ledger.end("r"))
    books = daemon.drained()
    assert (books["delivered"], books["dead"]) == (22, 0)
    asked = [line.at for line in reversed(world.platform.requests()) if line.path == EVENTS]
    assert books["retries"] == len(asked) - 1 >= 1
    if "retry_after" in rest:
        assert asked[1] - asked[0] >= 1


# -- the process ---------------------------------------------------------------------------------------------------------------


def test_a_daemon_that_was_frozen_goes_on(world):
    """Promises 1, 2, 4: stopped for longer than any request may take, as a laptop's or a paused container's: all arrives, in order."""
    world.platform.faults("latency=100ms..300ms")
    daemon = world.daemon(destination={"timeout": "500ms"})
    producer = Producer(daemon, world.ledger, deal(world.ledger, 1000, 10), frame=20, pause_s=0.01)
    world.on_exit(producer.give_up)
    wait_for(lambda: producer.acked >= 10 and daemon.books()["in_flight"], 20, daemon.books)
    daemon.signal(signal.SIGSTOP)
    frozen = producer.acked
    begun = time.monotonic()
    wait_for(lambda: time.monotonic() > begun + 1.5, 3)
    assert producer.acked - frozen <= 8  # what was answered already
    daemon.signal(signal.SIGCONT)
    world.doubles = True  # answers that came while nobody listened
    producer.join()
    world.platform.faults()
    books = daemon.drained()
    assert (books["delivered"], books["dead"]) == (1020, 0)
    assert producer.reconnects == 0


ONE_RUN = """
import os
from agentd import Client
client = Client()
with client.start_run(run_id="one") as run:
    children = []
    for child in range(3):
        pid = os.fork()
        if pid == 0:
            for number in range(100):
                run.emit("x", {"by": child, "number": number})
            assert client.flush(15), "child"
            os._exit(0)
        children.append(pid)
    for number in range(100):
        run.emit("x", {"by": 3, "number": number})
    for pid in children:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert client.flush(15), "parent"
assert client.dropped == 0
"""


def test_processes_that_share_a_run_lose_nothing_of_it(world):
    """§8: four processes write to one run at once: all of it arrives, each one's in its order, before the end that one of them gives."""
    daemon = world.daemon(runs={"orphan_grace": "30s"})
    done = world.python(ONE_RUN, AGENTD_SOCKET=daemon.socket)
    assert done.returncode == 0, done.stderr
    books = daemon.drained()
    assert (books["delivered"], books["dead"]) == (402, 0)
    run = world.platform.run("one")
    assert run["status"] == "completed"
    for by in range(4):
        numbers = [event["payload"]["number"] for event in run["events"] if event["payload"]["by"] == by]
        assert numbers == list(range(100))


def test_a_log_that_cannot_be_written_stops_nothing(world):
    """Promises 1, 5, 7: a log on a full disk costs its lines: an outage is sat out, all is delivered, and SIGTERM ends it with 0."""
    daemon = world.daemon(start=False)
    daemon.log = Path("/dev/full")
    daemon.start()
    world.platform.down()
    told(world, daemon, *world.ledger.whole_run("r", 20))
    wait_for(lambda: daemon.books()["state"] == "waiting", 10, daemon.books)  # it has had something to say
    world.platform.up()
    assert daemon.drained()["delivered"] == 22
    assert daemon.stop() == 0
    daemon.log = world.folder / "none.log"


def test_a_daemon_without_file_descriptors_waits_for_some(world):
    """Promise 5: no descriptor for a connection to the platform is no connection: it says so, keeps all, and goes on by itself."""
    daemon = world.daemon()
    ledger = world.ledger
    with Frames(daemon) as client:
        assert client.deliver(ledger, [ledger.start("r")]) == {}
        daemon.drained()
        world.platform.down()  # and with it the connection that is kept open
        world.platform.up()
        pid = daemon.process.pid
        taken = {int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()}
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        free = next(number for number in range(len(taken) + 1) if number not in taken)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (free, before[1]))
        assert client.deliver(ledger, [*ledger.events_of("r", 20), ledger.end("r")]) == {}
        wait_for(lambda: any("Too many open files" in line["message"] for line in daemon.entries("waiting")), 10)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    books = daemon.drained()
    assert (books["delivered"], books["dead"]) == (22, 0)


def test_a_start_that_is_answered_without_a_name_is_asked_again(world):
    """Promise 2: nothing of a run goes out before its name is known; AgentOS knows the repeat by its `external_run_id`."""
    daemon = world.daemon()
    nameless = Fault(status=200, body='{"data":{},"error":null}', path="/api/ingest/v1/run/start", count=2)
    world.platform.ask(lambda: world.platform.sandbox.faults.replace(nameless))
    told(world, daemon, *world.ledger.whole_run("r", 20))
    books = daemon.drained()
    assert (books["delivered"], books["dead"], books["retries"]) == (22, 0, 2)
    assert len(world.platform.runs()) == 1
