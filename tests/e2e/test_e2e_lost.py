"""Runs that lose records to a full queue are told so at the platform, before their end, and with the true number."""

import random
from collections import defaultdict

import pytest
from harness import AGENT, Frames, wait_for

TELLING = 15.0  # seconds: a tick, a batch, and a slow machine


def notices(world, run):
    """What the platform holds of agentd's notices: payload by record id, so that a repeat counts once."""
    found = world.platform.run(run) or {"events": []}
    return {
        event["payload"]["agentd_id"]: (event["level"], event["payload"])
        for event in found["events"]
        if event["type"] == "agentd.lost"
    }


def missing(world, run):
    """How many acknowledged events of a run are not at the platform."""
    found = world.platform.run(run) or {"events": []}
    there = {event["payload"]["n"] for event in found["events"] if "n" in event["payload"]}
    return len(world.ledger.events[run] - there)


def told(world, run):
    return sum(payload["records"] for _, payload in notices(world, run).values())


def all_told(world):
    runs = world.ledger.runs
    return all(told(world, run) == missing(world, run) for run in runs)


def check(world, daemon, *, but=()):
    """Every gap has its notice, of the right size, and no other run has one; all were taken before their run's end."""
    wait_for(
        lambda: all_told(world), TELLING, lambda: {r: (told(world, r), missing(world, r)) for r in world.ledger.runs}
    )
    books = daemon.drained()
    runs = world.ledger.runs
    assert sum(told(world, run) for run in runs) == sum(missing(world, run) for run in runs) == books["shed"]
    assert books["dead"] == 0  # one that came after its run's end would be
    assert {run for run in runs if notices(world, run)} == {run for run in runs if missing(world, run)} - set(but)
    for run in runs:
        for level, payload in notices(world, run).values():
            assert (level, payload["cause"]) == ("warn", "queue_full")
            assert sum(payload["kinds"].values()) == sum(payload["levels"].values()) == payload["records"] > 0
            assert payload["first_at"] <= payload["last_at"]


@pytest.fixture
def daemon(world):
    """A queue of 300 KiB and a platform that is down."""
    daemon = world.daemon(destination={"max_bytes": "300KiB"})
    world.platform.down()
    return daemon


def flood(client, ledger, runs, events, level="debug", size=1000, part=20):
    for start in range(0, events, part):
        records = [
            ledger.event(runs[number % len(runs)], level=level, size=size) for number in range(start, start + part)
        ]
        refused = client.deliver(ledger, records)
        assert set(refused.values()) <= {"spool full"}


def test_each_run_with_a_gap_is_told_once_when_the_platform_is_back(world, daemon):
    """Promise 8: runs that go on, that ended in the outage, and that end after it, each with the true number; others hear nothing."""
    ledger = world.ledger
    runs = [f"r{number}" for number in range(8)]
    with Frames(daemon) as client:
        assert client.deliver(ledger, [ledger.start(run) for run in (*runs, "quiet")]) == {}
        assert client.deliver(ledger, ledger.events_of("quiet", 5, level="warn")) == {}
        flood(client, ledger, runs, 200)
        assert daemon.balanced()["shed"] == 0
        for run in runs[:3]:  # they lose more after their end is in the queue, where it then has to wait
            assert client.deliver(ledger, [ledger.end(run)]) == {}
        flood(client, ledger, runs[3:], 400)
        for run in runs[3:5]:  # their gap is known by now
            assert client.deliver(ledger, [ledger.end(run)]) == {}
        assert daemon.balanced()["shed"] > 200
        world.platform.up()
        check(world, daemon)
        for run in (*runs[:3], *runs[5:]):
            assert len(notices(world, run)) == 1
        daemon.log.read_text()
        assert client.deliver(ledger, [ledger.end(run) for run in (*runs[5:], "quiet")]) == {}
    check(world, daemon)
    found = world.platform.run("r7")
    assert found["status"] == "completed"
    assert found["agent_id"] == AGENT


def test_a_gap_outlives_kill_9(world, daemon):
    """Promise 8: whatever commit the end of the daemon meets, each gap is told once, and the numbers are those of the books."""
    ledger = world.ledger
    chance = random.Random(7)
    runs = [f"r{number}" for number in range(6)]
    with Frames(daemon) as client:
        assert client.deliver(ledger, [ledger.start(run) for run in runs]) == {}
    ended = []
    for _ in range(3):
        with Frames(daemon) as client:
            flood(client, ledger, [run for run in runs if run not in ended], 200)
            ended.append(runs[len(ended)])
            assert client.deliver(ledger, [ledger.end(ended[-1])]) == {}
            records = [
                ledger.event(run, level="debug", size=1000) for run in runs[4:] for _ in range(chance.randrange(40))
            ]
            client.send({"seq": 1000, "records": records})
            ledger.maybe(records)
        daemon.kill()
        daemon.start()
        daemon.balanced()
    world.platform.up()
    wait_for(lambda: daemon.books()["delivered"] > 3, TELLING, daemon.books)
    daemon.kill()
    daemon.start()
    unsure = defaultdict(set)
    for run, number in ledger.unsure:
        unsure[run].add(number)
    wait_for(lambda: daemon.drained()["queued"] == 0, TELLING, daemon.books)
    for run in runs[:4]:
        wait_for(
            lambda run=run: told(world, run) == missing(world, run), TELLING, lambda run=run: (run, notices(world, run))
        )
    books = daemon.drained()
    assert books["dead"] == 0
    wait_for(lambda: sum(told(world, run) for run in runs) == daemon.books()["shed"], TELLING, daemon.books)
    for run in runs[4:]:  # of what nobody knows whether it was taken, some was shed
        lost = missing(world, run)
        assert lost <= told(world, run) <= lost + len(unsure[run])
    with Frames(daemon) as client:
        assert client.deliver(ledger, [ledger.end(run) for run in runs if run not in ended]) == {}
    assert daemon.drained()["dead"] == 0
