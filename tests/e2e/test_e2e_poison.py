"""Promise 5, counted at the platform: what a bad record costs, and what a platform that refuses everything costs."""

from __future__ import annotations

import math
import uuid

import pytest
from harness import AGENT, Frames, wait_for

FACES = ("agentos", "decisionos")
EVENTS = "/api/ingest/v1/events"
AT_MOST = 2 * math.log2(50) + 2


def told(world, daemon, *groups):
    """Acknowledged, and noted."""
    with Frames(daemon) as client:
        for records in groups:
            for start in range(0, len(records), 500):
                assert client.deliver(world.ledger, records[start : start + 500]) == {}


def asked(world, path=EVENTS):
    return sum(line.path == path for line in world.platform.requests())


def test_one_bad_record_of_fifty_costs_itself_and_thirteen_requests(world):
    """At the first place, in the middle, at the last: it alone is dead, its neighbours arrive in order, each time within the bound."""
    daemon = world.daemon()
    ledger = world.ledger
    world.platform.refuse('"bad":true', 400)
    told(world, daemon, [ledger.start("r")])
    for place in (0, 24, 49):
        before = asked(world)
        batch = [ledger.event("r", **({"bad": True} if number == place else {})) for number in range(50)]
        told(world, daemon, batch)
        daemon.drained()
        assert asked(world) - before <= AT_MOST
    books = daemon.balanced()
    assert (books["delivered"], books["causes"]["dead"]) == (1 + 147, {"rejected": 3})
    assert sorted(letter["record"]["payload"]["n"] for letter in daemon.dead_letters()) == [0, 74, 149]
    assert {letter["status"] for letter in daemon.dead_letters()} == {400}


def test_hundreds_of_bad_ones_in_a_row_do_not_stop_the_lane(world):
    """Each is dead with the platform's answer; what is good before and behind them arrives, nothing pauses. A thousand: test_courier_poison."""
    daemon = world.daemon(batch={"max_interval": "50ms"})
    ledger = world.ledger
    world.platform.refuse('"bad":true', 422)
    bad = [ledger.event("r", bad=True) for _ in range(400)]
    told(
        world, daemon, [ledger.start("r"), *ledger.events_of("r", 5)], bad, ledger.events_of("r", 5), [ledger.end("r")]
    )
    books = daemon.drained(60)
    assert (books["delivered"], books["causes"]["dead"]) == (12, {"rejected": 400})
    assert books["state"] == "ok"
    assert not daemon.entries("paused")


@pytest.mark.parametrize("runs", [1, 2])
def test_refusals_from_fewer_than_three_lanes_are_the_lanes_own(world, runs):
    """With one run or two nobody can tell a bad agent from a bad platform: it goes on, and all that is refused can be read and replayed."""
    daemon = world.daemon(batch={"max_interval": "50ms"})
    ledger = world.ledger
    names = [f"r{number}" for number in range(runs)]
    told(world, daemon, [ledger.start(name) for name in names])
    daemon.drained()
    world.platform.faults(f"status=400,path={EVENTS}")
    told(world, daemon, *(ledger.events_of(name, 150) for name in names))
    books = daemon.drained(30)
    assert (books["dead"], books["state"]) == (150 * runs, "ok")
    world.platform.faults()
    told(world, daemon, *([*ledger.events_of(name, 5), ledger.end(name)] for name in names))
    assert daemon.drained()["dead"] == 150 * runs


def test_a_code_for_each_call_is_a_pause_all_the_same(world):
    """400 for events and 422 for tasks, from three runs and more: a pause that says so, the queue is kept, and it heals by itself."""
    daemon = world.daemon(batch={"max_events": 5, "max_interval": "50ms"})
    daemon.expected = {"paused"}
    ledger = world.ledger
    runs = [f"r{number}" for number in range(4)]
    told(world, daemon, [ledger.start(run) for run in runs])
    daemon.drained()
    world.platform.refuse('"type":"tool.returned"', 400)
    world.platform.refuse('"step"', 422)
    for number in range(60):
        for run in runs:
            task_id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{run}/{number}"))
            task = {"kind": "task", "run_id": run, "task_id": task_id, "name": "step", "status": "running"}
            told(world, daemon, [*ledger.events_of(run, 5), task])
    wait_for(lambda: daemon.books()["state"] == "paused", 30, daemon.books)
    assert "refuses everything: 4" in daemon.books()["reason"]
    paused = daemon.balanced()
    assert paused["dead"] <= 200
    assert paused["queued"] >= 4 * 60 * 6 - 200
    seen = asked(world)
    wait_for(lambda: asked(world) >= seen + 2, 10)  # two more probes
    assert daemon.balanced()["dead"] == paused["dead"]
    world.platform.forgive()
    told(world, daemon, [ledger.end(run) for run in runs])
    books = daemon.drained(30)
    assert (books["dead"], books["state"]) == (paused["dead"], "ok")


def test_one_destination_that_refuses_everything_is_no_affair_of_the_other(world):
    """Promise 2: its own pause with its own reason; the other never waits, and both are complete in the end."""
    decisions = {
        "platform": "decisionos", "base_url": f"{world.platform.url}/decisionos", "api_key": {"env": "KEY"},
        "agent_id": AGENT,
    }  # fmt: skip
    world.platform.ask(lambda: world.platform.sandbox.throw("decisionos.agents=*"))
    daemon = world.daemon(**{"destinations.decisionos": decisions})
    daemon.expected = {"paused"}
    ledger = world.ledger
    world.platform.faults("status=400,face=decisionos")
    runs = [f"r{number}" for number in range(5)]
    told(world, daemon, [ledger.start(run) for run in runs])
    for number in range(60):
        decided = [{"kind": "decision", "run_id": run, "context": f"{run} {number}"} for run in runs]
        with Frames(daemon) as client:
            assert client.ask(decided)["accepted"] == 5
        told(world, daemon, [ledger.event(run) for run in runs])
    wait_for(lambda: daemon.books("decisionos")["state"] == "paused", 20, lambda: daemon.books("decisionos"))
    told(world, daemon, [ledger.end(run) for run in runs])
    assert daemon.drained()["delivered"] == 5 + 300 + 5
    assert daemon.books()["state"] == "ok"
    kept = daemon.balanced("decisionos")
    assert (kept["dead"], kept["queued"]) == (99, 201)
    assert "refuses everything: 400" in kept["reason"]
    world.platform.faults()
    assert daemon.drained(30, "decisionos")["delivered"] == 201


def test_all_of_it_at_once_over_a_crash(world):
    """Bad ones, large ones, passing failures and cut lines in several runs, kill -9 between: each record comes to its own end."""
    daemon = world.daemon(batch={"max_interval": "50ms", "max_events": 20})
    ledger = world.ledger
    world.platform.refuse('"bad":true', 400)
    world.platform.ask(lambda: world.platform.sandbox.throw("agentos.max_body_bytes=8000"))
    world.platform.faults("status=503,rate=0.1", "cut,rate=0.05")
    runs = [f"r{number}" for number in range(6)]
    told(world, daemon, [ledger.start(run) for run in runs])
    for part in range(2):
        for run in runs:
            records = [
                ledger.event(run, size=100, **({"bad": True} if number in (3, 4, 17) else {})) for number in range(40)
            ]
            records[20] = ledger.event(run, size=9000)
            told(world, daemon, records)
        if part == 0:
            wait_for(lambda: daemon.books()["dead"] >= 3, 20, daemon.books)
            daemon.kill()
            daemon.start()
    told(world, daemon, [ledger.end(run) for run in runs])
    books = daemon.drained(40)
    assert books["causes"]["dead"] == {"rejected": 6 * 2 * 3, "too_large": 6 * 2}
    world.platform.faults()
