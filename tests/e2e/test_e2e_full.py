"""Queues and disks that are full: what is shed, what is refused, and what happens when there is room again."""

import select
import threading

import pytest
from disk_kit import fill, mount, release
from harness import Frames, wait_for

FULL = "spool full"


def _missing(world, run):
    """Accepted and not at the platform."""
    found = {event["payload"]["n"] for event in world.platform.run(run)["events"]}
    return world.ledger.events[run] - found


@pytest.fixture
def daemon(world):
    """A daemon with a queue of 200 KiB and a platform that is down. The run's start is the head: nothing else is sealed."""
    daemon = world.daemon(destination={"max_bytes": "200KiB"}, intake={"max_pending_bytes": "256KiB"})
    world.platform.down()
    with Frames(daemon) as client:
        assert client.deliver(world.ledger, [world.ledger.start("r")]) == {}
    wait_for(lambda: daemon.books()["state"] == "waiting", 10, daemon.books)
    return daemon


def test_a_full_queue_sheds_debug_before_info(world, daemon):
    """Promise 6: for what is worth more, the oldest `debug` events go first, counted by cause; then `info`; `warn` never."""
    ledger = world.ledger
    levels = {}

    def push(client, level, count):
        records = ledger.events_of("r", count, level=level, size=1000)
        levels.update({record["payload"]["n"]: level for record in records})
        return client.deliver(ledger, records)

    with Frames(daemon) as client:
        for level, count in (("warn", 20), ("info", 60), ("debug", 60)):
            assert push(client, level, count) == {}
        assert daemon.balanced()["shed"] == 0
        while not daemon.balanced()["shed"]:  # info pushes debug out
            assert push(client, "info", 5) == {}
        books = daemon.balanced()
        assert books["shed"] <= 60
        assert books["causes"]["shed"] == {"queue_full": books["shed"]}
        world.platform.up()
        daemon.drained()
        missing = _missing(world, "r")
        assert len(missing) == books["shed"]
        assert {levels[number] for number in missing} == {"debug"}
        assert client.deliver(ledger, [ledger.end("r")]) == {}


def test_a_full_queue_refuses_what_may_not_be_shed(world, daemon):
    """Promise 6: when nothing is left to shed, `warn`, `error` and lifecycle records are refused by name, and none that was taken is lost."""
    ledger = world.ledger
    levels = {}
    refused = {}
    with Frames(daemon) as client:
        for level in ("debug", "info"):
            records = ledger.events_of("r", 20, level=level, size=1000)
            levels.update({record["payload"]["n"]: level for record in records})
            assert client.deliver(ledger, records) == {}
        while not refused:
            records = ledger.events_of("r", 10, level="warn", size=1000)
            levels.update({record["payload"]["n"]: "warn" for record in records})
            refused = client.deliver(ledger, records)
        assert set(refused.values()) == {FULL}
        books = daemon.balanced()
        assert (books["shed"], books["causes"]["shed"]) == (40, {"queue_full": 40})
        for record in (ledger.event("r", level="error", size=1000), ledger.event("r", level="debug", size=1000)):
            assert client.deliver(ledger, [record]) == {0: FULL}
        filler = ledger.events_of("r", 30, level="error", size=100)
        assert FULL in client.deliver(ledger, filler).values()
        assert client.deliver(ledger, [ledger.end("r", output="x" * 1000)]) == {0: FULL}
        assert daemon.balanced()["shed"] == 40
        assert daemon.status()["intake"]["refused"]["spool_full"] >= 4
        daemon.kill()  # a full queue stands a crash as well
    daemon.start()
    assert daemon.balanced()["shed"] == 40
    world.platform.up()
    daemon.drained()
    assert {levels[number] for number in _missing(world, "r")} == {"debug", "info"}
    with Frames(daemon) as client:
        assert client.deliver(ledger, [ledger.end("r")]) == {}


def test_a_frame_of_every_level_sheds_before_anything_else_is_refused(world, daemon):
    """Promise 6: in a full queue, warnings and errors are refused only once no debug or info event of a closed commit is left."""
    ledger = world.ledger
    accepted = dict.fromkeys(("debug", "info", "warn", "error"), 0)
    with Frames(daemon) as client:
        for seq in range(1, 41):
            records = [r for level in accepted for r in ledger.events_of("r", 5, level=level, size=1000)]
            client.send({"seq": seq, "records": records})
            refused = {one["index"] for one in client.receive().get("rejected", ())}
            for index, record in enumerate(records):
                accepted[record["level"]] += index not in refused
            ledger.took([record for index, record in enumerate(records) if index not in refused])
    books = daemon.balanced()
    assert books["shed"] >= accepted["debug"] + accepted["info"] - 10  # those of the last frames may stand
    assert books["queued_bytes"] <= books["max_bytes"]
    assert accepted["warn"] + accepted["error"] > 2 * (accepted["debug"] + accepted["info"] - books["shed"])
    world.platform.up()
    daemon.drained()


def test_who_asks_for_no_answer_is_not_read_while_the_queue_is_full(world, daemon):
    """Section 1: backpressure reaches a client that wants no answers; nothing of it is dropped, all goes through when there is room."""
    ledger = world.ledger
    with Frames(daemon) as client:
        while not client.deliver(ledger, ledger.events_of("r", 10, level="warn", size=1000)):
            pass
    refused = daemon.status()["intake"]["refused"]
    records = ledger.events_of("r", 2000, level="warn", size=1000)
    sent = []
    sockets = []

    def send():
        with Frames(daemon) as silent:
            silent.socket.settimeout(60)
            sockets.append(silent.socket)
            for record in records:
                silent.send(record)
                sent.append(record)
            silent.half_close()
            assert silent.is_closed()

    sender = threading.Thread(target=send)
    sender.start()
    wait_for(lambda: daemon.status()["intake"]["held"] == 1, 20, lambda: f"{len(sent)} sent")
    wait_for(lambda: select.select([], sockets, [], 0)[1] == [], 20, lambda: f"{len(sent)} sent")
    assert len(sent) < 1500
    assert daemon.status()["intake"]["held"] == 1  # the first of them; what comes behind it is not even read
    books = daemon.balanced()
    assert (books["shed"], books["dead"]) == (0, 0)
    world.platform.up()
    sender.join(40)
    assert not sender.is_alive()
    ledger.took(records)
    daemon.drained()
    assert daemon.status()["intake"]["refused"] == refused


@pytest.fixture(params=["tmpfs", "ext4"])
def disk(world, request):
    """A file system of 96 MiB, of which agentd keeps 16 as its reserve."""
    return mount(world, request.param)


@pytest.mark.parametrize("leave", [0, 20 * 2**20], ids=["nothing free", "little free"])
def test_a_full_disk_refuses_and_recovers(world, disk, leave):
    """Promise 1: on a full disk new records are refused by name, what is there is delivered, and with room again all goes on."""
    daemon = world.daemon(spool={"directory": str(disk / "state"), "max_bytes": "64MiB"})
    daemon.expected = {"disk_full", "commit_failed"}
    ledger = world.ledger
    world.platform.down()
    with Frames(daemon) as client:
        records = [ledger.start("r"), *ledger.events_of("r", 500, level="warn", size=1000)]
        assert client.deliver(ledger, records) == {}
        fill(disk, leave)
        for count, size in ((20, 10_000), (1, 1000)):  # what little is free within the store goes last
            refused = {}
            while not refused:
                refused = client.deliver(ledger, ledger.events_of("r", count, level="warn", size=size))
            assert set(refused.values()) == {FULL}
            wait_for(lambda: daemon.status()["spool"]["full"], 10, daemon.status)
        assert client.deliver(ledger, [ledger.end("r", output="x" * 2000)]) == {0: FULL}
        daemon.balanced()
        world.platform.up()
        delivered = daemon.drained()["delivered"]
        assert delivered == 1 + len(ledger.events["r"])
        assert daemon.status()["spool"]["full"]
        release(disk)
        wait_for(lambda: not daemon.status()["spool"]["full"], 3, daemon.status)  # it looks once a second
        assert client.deliver(ledger, ledger.events_of("r", 100, size=10_000)) == {}
        assert client.deliver(ledger, [ledger.end("r")]) == {}
    assert daemon.entries("disk_recovered")
    assert daemon.drained()["delivered"] == delivered + 101


def test_a_disk_that_fills_up_under_load_loses_nothing_that_was_acknowledged(world, disk):
    """Promise 1: whichever commit the disk's end meets, an acknowledgement stands and a refusal is one; kill -9 on the full disk included."""
    daemon = world.daemon(spool={"directory": str(disk / "state"), "max_bytes": "90MiB"})
    daemon.expected = {"disk_full", "commit_failed"}
    ledger = world.ledger
    world.platform.down()
    refused = 0
    with Frames(daemon) as client:
        assert client.deliver(ledger, [ledger.start("r")]) == {}
        fill(disk, 40 * 2**20)
        for _ in range(300):
            refused += len(client.deliver(ledger, ledger.events_of("r", 20, level="warn", size=10_000)))
            if refused > 200:
                break
        assert refused
    daemon.balanced()
    daemon.kill()
    release(disk)
    daemon.start()
    assert daemon.balanced()["queued"] == 1 + len(ledger.events["r"])
    world.platform.up()
    with Frames(daemon) as client:
        wait_for(lambda: not client.deliver(ledger, [ledger.event("r")]), 20, daemon.status)
        assert client.deliver(ledger, [ledger.end("r")]) == {}


def test_a_start_on_a_full_disk_delivers_what_is_there(world, disk):
    """Promise 1: a daemon that is started on a full disk delivers its queue, and takes records when there is room."""
    daemon = world.daemon(spool={"directory": str(disk / "state"), "max_bytes": "64MiB"})
    daemon.expected = {"disk_full", "commit_failed"}
    ledger = world.ledger
    world.platform.down()
    with Frames(daemon) as client:
        assert client.deliver(ledger, [ledger.start("r"), *ledger.events_of("r", 500, size=1000)]) == {}
    daemon.kill()
    fill(disk, 0)
    daemon.start()
    world.platform.up()
    assert daemon.drained()["delivered"] == 501
    release(disk)
    with Frames(daemon) as client:
        wait_for(lambda: not client.deliver(ledger, ledger.events_of("r", 1)), 20, daemon.status)
        assert client.deliver(ledger, [ledger.end("r")]) == {}
