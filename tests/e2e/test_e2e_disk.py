"""Real small disks that somebody else fills: what is shed and refused, what goes on, and what comes back without a restart."""

import os
from collections import Counter

import pytest
from disk_kit import MIB, Greedy, fill, free_bytes, mount, release
from harness import KEY, Frames, http_call, wait_for

FULL = "spool full"
BOTH = pytest.mark.parametrize("kind", ["tmpfs", "ext4"])


def on(world, place, **sections):
    """A daemon with its state there, whose platform is down."""
    daemon = world.daemon(spool={"directory": str(place / "state"), "max_bytes": "90MiB"}, **sections)
    daemon.expected = {"disk_full", "commit_failed"}
    world.platform.down()
    return daemon


def is_full(daemon):
    return daemon.status()["spool"]["full"]


def files(place):
    return {path.name: path.stat().st_size for path in (place / "state" / "spool").iterdir()}


def missing(world, run):
    """Accepted and not at the platform."""
    found = {event["payload"]["n"] for event in world.platform.run(run)["events"] if "n" in event["payload"]}
    return world.ledger.events[run] - found


@BOTH
def test_a_neighbour_who_takes_every_byte_stops_no_delivery(world, kind):
    """Promise 1: with no byte free, and none left of what is given back, queues drain: seals, splits, dead letters, journal and deletes go on; what that frees takes new records."""
    place = mount(world, kind, 128)
    daemon = on(world, place)
    ledger = world.ledger
    world.platform.refuse("poison", 422)
    runs = [f"r{number}" for number in range(200)]
    with Frames(daemon) as client:
        assert client.deliver(ledger, [ledger.start(run) for run in runs]) == {}
        for turn in range(
            8
        ):  # each segment holds something of many runs, so that none is free before all of those are sent
            for first in range(0, len(runs), 10):
                poison = {"poison": 1} if turn == 3 and first < 50 else {}
                events = [ledger.event(run, level="warn", size=10_000, **poison) for run in runs[first : first + 10]]
                assert client.deliver(ledger, events) == {}
        assert client.deliver(ledger, [ledger.end(run) for run in runs]) == {}
        with Greedy(place):
            wait_for(lambda: is_full(daemon), 5, daemon.status)
            world.platform.up()
            books = daemon.drained()
            assert (books["delivered"], books["dead"], books["causes"]["dead"]) == (1950, 50, {"rejected": 50})
            assert free_bytes(place) < 64 * 1024
            assert is_full(daemon)
            grown = files(place)
            assert client.deliver(ledger, ledger.whole_run("later", 50, level="warn", size=10_000)) == {}
            daemon.drained()
            assert files(place) == grown
            daemon.kill()  # and a crash costs nothing of what was acknowledged, if there is room for the start
        release(place)
    daemon.start()
    assert daemon.balanced()["dead"] == 50
    with Frames(daemon) as client:
        assert client.deliver(ledger, ledger.whole_run("last", 5)) == {}


@BOTH
def test_a_full_disk_sheds_in_the_same_order_as_a_full_queue(world, kind):
    """Promise 6: what has to be kept takes the place of older debug, then of info; it is refused once none is left, and what was taken is lost to nobody."""
    place = mount(world, kind, 128)
    daemon = on(world, place)
    ledger = world.ledger
    levels = {}

    def push(client, level, count, size=10_000):
        records = ledger.events_of("r", count, level=level, size=size)
        levels.update({record["payload"]["n"]: level for record in records})
        return client.deliver(ledger, records)

    with Frames(daemon) as client:
        assert client.deliver(ledger, [ledger.start("r")]) == {}
        for level in ("info", "debug", "warn"):
            for _ in range(16):
                assert push(client, level, 50) == {}
        fill(place)
        wait_for(lambda: is_full(daemon), 5, daemon.status)
        daemon.balanced()
        order = []
        while set(push(client, "warn", 20).values()) != {FULL}:
            shed = daemon.balanced()["shed"]
            order += [shed] if shed not in order else []
        assert order[0] == 0 or order[0] < 800  # room that there was, or only some of the debug events
        books = daemon.balanced()
        assert books["causes"]["shed"] == {"queue_full": 1600}
        assert books["admitted"] == books["queued"] + books["shed"]
        assert free_bytes(place) < MIB
        world.platform.up()
        daemon.drained()
        gone = Counter(levels[number] for number in missing(world, "r"))
        assert gone == {"debug": 800, "info": 800}
        assert len(ledger.events["r"]) > 16 * 150 + 400  # most of what was shed made room for what is kept
        assert client.deliver(ledger, [ledger.end("r")]) == {}
        release(place)
        wait_for(lambda: not is_full(daemon), 3, daemon.status)


@BOTH
def test_a_full_disk_sheds_debug_first(world, kind):
    """Promise 6: not one info event goes while there is a debug event to go, in whichever queue."""
    place = mount(world, kind, 128)
    daemon = on(world, place)
    ledger = world.ledger
    with Frames(daemon) as client:
        assert client.deliver(ledger, [ledger.start("d"), ledger.start("i")]) == {}
        for run, level in (("i", "info"), ("d", "debug")):
            for _ in range(20):
                assert client.deliver(ledger, ledger.events_of(run, 50, level=level, size=10_000)) == {}
        fill(place)
        wait_for(lambda: is_full(daemon), 5, daemon.status)
        while not daemon.balanced()["shed"]:
            refused = client.deliver(ledger, ledger.events_of("d", 20, level="warn", size=10_000))
            assert set(refused.values()) <= {FULL}
        shed = daemon.balanced()["shed"]
        assert shed < 1000
        world.platform.up()
        daemon.drained()
        assert (len(missing(world, "d")), missing(world, "i")) == (shed, set())
        release(place)
        wait_for(lambda: not is_full(daemon), 3, daemon.status)
        assert client.deliver(ledger, [ledger.end("d"), ledger.end("i")]) == {}


@BOTH
def test_a_replay_finds_no_room_on_a_full_disk(world, kind):
    """Promise 8: nothing is shed for it, letters and books stay as they are; with room in the spool it goes through, full disk or not."""
    place = mount(world, kind, 128)
    daemon = on(world, place)
    ledger = world.ledger
    world.platform.up()
    world.platform.refuse("poison", 422)
    with Frames(daemon) as client:
        records = [ledger.start("r"), *ledger.events_of("r", 20, level="warn", size=10_000, poison=1)]
        assert client.deliver(ledger, records) == {}
        assert daemon.drained()["dead"] == 20
        world.platform.down()
        world.platform.forgive()
        assert client.deliver(ledger, [ledger.start("d")]) == {}
        for _ in range(20):
            assert client.deliver(ledger, ledger.events_of("d", 50, level="debug", size=10_000)) == {}
        fill(place)
        wait_for(lambda: is_full(daemon), 5, daemon.status)
        refused = {}
        while not refused:
            refused = client.deliver(ledger, ledger.events_of("d", 5, level="warn", size=10_000))
        shed = daemon.balanced()["shed"]
        assert replay(daemon) == {"replayed": 0, "left": {"spool_full": 20}}
        books = daemon.balanced()
        assert (books["dead"], books["shed"]) == (20, shed)
        world.platform.up()
        daemon.drained()
        assert is_full(daemon)
        assert replay(daemon) == {"replayed": 20, "left": {}}
        assert daemon.drained()["dead"] == 0
        assert client.deliver(ledger, [ledger.end("r"), ledger.end("d")]) == {}
        release(place)
        wait_for(lambda: not is_full(daemon), 3, daemon.status)


def replay(daemon):
    """All dead letters, and what came of it."""
    status, answer = http_call(daemon.socket, "POST", "/v1/dead-letters/replay", b'{"all": true}')
    assert status == 200
    return answer


@BOTH
@pytest.mark.parametrize("ballast", [True, False], ids=["with its reserve", "without"])
def test_a_start_after_a_stop_on_a_full_disk(world, kind, ballast):
    """Promise 1: it begins with its reserve; without that it says what it takes, and harms nothing. Then it delivers what is there."""
    place = mount(world, kind, 128)
    daemon = on(world, place)
    ledger = world.ledger
    with Frames(daemon) as client:
        records = [ledger.start("r"), *ledger.events_of("r", 1000, level="warn", size=1000)]
        assert client.deliver(ledger, records) == {}
    assert daemon.stop() == 0
    if not ballast:
        (place / "state" / "ballast").unlink()
    fill(place)
    if not ballast:
        started = world.cli("--config", str(daemon.config), "run", KEY=KEY)
        assert (started.returncode, started.stdout) == (1, "")
        assert "the disk is full, and a start takes about 1.0 MiB of it" in started.stderr
        with (place / "filler").open("rb+") as file:
            file.truncate(file.seek(0, os.SEEK_END) - 2 * MIB)
    daemon.start()
    world.platform.up()
    assert daemon.drained()["delivered"] == 1001
    release(place)
    wait_for(lambda: not is_full(daemon), 3, daemon.status)
    with Frames(daemon) as client:
        assert client.deliver(ledger, [ledger.end("r")]) == {}


@BOTH
def test_a_disk_without_inodes_stops_nothing(world, kind):
    """All that agentd writes while it runs, it writes into files that it has."""
    place = mount(world, kind, 128, inodes=64)
    daemon = on(world, place)
    ledger = world.ledger
    with Frames(daemon) as client:
        assert client.deliver(ledger, ledger.whole_run("before", 20)) == {}
        taken = take_inodes(place)
        world.platform.up()
        assert client.deliver(ledger, ledger.whole_run("after", 200, size=10_000)) == {}
        assert daemon.drained()["delivered"] == 224
    for path in taken:
        path.unlink()


def take_inodes(folder):
    """All that are left."""
    taken = []
    for number in range(1000):
        path = folder / f"inode-{number}"
        try:
            path.touch()
        except OSError:
            break
        taken.append(path)
    assert len(taken) < 1000
    return taken
