"""Lanes and references: a run that can't be sent holds up no other, and records wait for the id that they need."""

import json
import urllib.request
import uuid

import pytest
from harness import AGENT, KEY, Frames, Producer, wait_for

START = "/api/ingest/v1/run/start"
EVENTS = "/api/ingest/v1/events"


@pytest.mark.timeout(90)
def test_a_blocked_run_holds_up_no_other_and_stays_on_disk(world):
    """Promise 2: a run whose start fails for ever, with 60 MB behind it, holds up no other run, however small the memory."""
    daemon = world.daemon(memory={"budget": "16MiB"})
    ledger = world.ledger
    world.platform.refuse('"external_run_id":"blocked"', 500)
    blocked = [ledger.start("blocked"), *ledger.events_of("blocked", 6000, size=10_000)]
    Producer(daemon, ledger, blocked, frame=50).join()
    healthy = [f"healthy-{number}" for number in range(200)]
    Producer(daemon, ledger, [record for run in healthy for record in ledger.whole_run(run, 5)]).join()
    wait_for(lambda: daemon.books()["delivered"] == 200 * 7, 30, daemon.books)
    books = daemon.balanced()
    assert books["queued"] == 6001
    assert books["queued_bytes"] > 60_000_000
    assert books["state"] == "ok"
    assert {row["status"] for row in world.platform.runs()} == {"completed"}
    world.platform.forgive()
    assert daemon.drained()["delivered"] == 6001 + 200 * 7
    with Frames(daemon) as client:
        assert client.deliver(ledger, [ledger.end("blocked")]) == {}
    daemon.drained()
    assert daemon.stop() == 0
    print(f"peak RSS {daemon.peak_kib / 1024:.0f} MiB")  # noqa: T201 - a figure to look at with -s
    assert daemon.peak_kib < 250 * 1024


def _answers(world, path):
    """Statuses of a path's answers, and how often they came."""
    return {int(status): count for status, count in world.platform.state().requests.get(path, {}).items()}


def test_events_wait_for_the_start_of_their_run(world):
    """Section 2: events that come before their run.start, by another connection, wait for it and are sent after it."""
    daemon = world.daemon(intake={"reference_wait": "20s"}, batch={"max_interval": "50ms"})
    ledger = world.ledger
    with Frames(daemon) as early, Frames(daemon) as late:
        assert early.deliver(ledger, ledger.events_of("r", 20)) == {}
        wait_for(lambda: "introduced" in (daemon.books()["reason"] or ""), 10, daemon.books)
        assert late.deliver(ledger, ledger.whole_run("other", 5)) == {}
        wait_for(lambda: world.platform.run("other"), 10)  # nobody else waits
        assert world.platform.run("r") is None
        assert late.deliver(ledger, [ledger.start("r")]) == {}
        assert early.deliver(ledger, [*ledger.events_of("r", 5), ledger.end("r")]) == {}
    daemon.drained(10)
    assert set(_answers(world, EVENTS)) == {200}


def test_an_id_that_nobody_introduced_is_the_platforms_own(world):
    """Section 2: after reference_wait an unknown run id goes out as it is; where the platform knows it, it is taken."""
    daemon = world.daemon(intake={"reference_wait": "300ms"})
    ledger = world.ledger
    body = json.dumps({"agent_id": AGENT}).encode()
    request = urllib.request.Request(world.platform.url + START, body, {"Authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        platforms_own = json.load(answer)["data"]["run_id"]
    nobodys = str(uuid.uuid4())
    with Frames(daemon) as client:
        assert client.deliver(ledger, [*ledger.events_of(platforms_own, 10), ledger.end(platforms_own)]) == {}
        assert client.deliver(ledger, ledger.events_of(nobodys, 3)) == {}
    books = daemon.drained()
    assert (books["delivered"], books["dead"]) == (11, 3)
    assert _answers(world, EVENTS)[404] >= 1
    letters = daemon.dead_letters()
    assert {(letter["status"], letter["cause"]) for letter in letters} == {(404, "rejected")}
    assert {letter["record"]["run_id"] for letter in letters} == {nobodys}


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_client_made_ids_outlive_the_daemon(world, how):
    """Section 2: a run that was started before a restart is completed after it under the platform's id."""
    daemon = world.daemon()
    ledger = world.ledger
    with Frames(daemon) as client:
        assert client.deliver(ledger, [ledger.start("r"), *ledger.events_of("r", 3)]) == {}
    daemon.drained()
    getattr(daemon, how)()
    daemon.start()
    with Frames(daemon) as client:
        assert client.deliver(ledger, [*ledger.events_of("r", 3), ledger.end("r")]) == {}
    assert daemon.drained()["delivered"] == 8
    assert len(world.platform.runs()) == 1
    assert _answers(world, START) == {200: 1}


def test_a_run_whose_start_is_refused_dies_with_it(world):
    """Section 2: records whose introducer is refused for good are dead with it, and no other run is."""
    daemon = world.daemon()
    ledger = world.ledger
    with Frames(daemon) as client:
        lost = [ledger.start("lost", agent_id="no-uuid"), *ledger.events_of("lost", 20), ledger.end("lost")]
        assert client.deliver(ledger, lost) == {}
        assert client.deliver(ledger, ledger.whole_run("good", 20)) == {}
        books = daemon.drained()
        assert (books["delivered"], books["dead"]) == (22, 22)
        assert books["causes"]["dead"] == {"rejected": 1, "introducer_dead": 21}
        start = next(letter for letter in daemon.dead_letters() if letter["kind"] == "run.start")
        assert (start["status"], start["cause"]) == (400, "rejected")
        assert "agent_id" in start["answer"]
        daemon.kill()  # a crash does not bring it back
    daemon.start()
    with Frames(daemon) as client:
        assert client.deliver(ledger, ledger.events_of("lost", 2)) == {}
    assert daemon.drained()["causes"]["dead"] == {"rejected": 1, "introducer_dead": 23}
    assert _answers(world, EVENTS) == {200: 1}


def test_another_agents_run_is_not_to_be_used(world):
    """Section 2: a reference belongs to the agent that introduced it; another agent's use of it is refused."""
    daemon = world.daemon()
    ledger = world.ledger
    mine, other = str(uuid.uuid4()), str(uuid.uuid4())
    with Frames(daemon) as client:
        assert client.deliver(ledger, [ledger.start("r", agent_id=mine), ledger.event("r") | {"agent_id": mine}]) == {}
        refused = client.deliver(ledger, [ledger.event("r") | {"agent_id": other}, ledger.event("r")])
        assert list(refused) == [0]
        assert "belongs to agent" in refused[0]
    assert daemon.drained()["delivered"] == 3
