"""Looking into the queue of the real daemon, running, stopped and killed; and dropping one, running and stopped."""

import hashlib
import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from harness import AGENT, Frames, clean_environment, http_call, wait_for

from agentd.spool import journal
from agentd.spool.look import look
from agentd.spool.tables import Table

FACES = ("agentos", "decisionos")
NOBODY = 65534
LEDGER_AGENT = str(uuid.uuid5(uuid.NAMESPACE_URL, "agentd:sandbox"))  # the one that the emulated ledger knows


def _queue(world, daemon, *arguments, code=0):
    """`agentd queue … --json`: its document, and what it said on standard error."""
    done = world.cli("--config", str(daemon.config), "queue", *arguments, "--json")
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if done.stdout else None, done.stderr


def _lanes(world, daemon, *arguments):
    document, _ = _queue(world, daemon, "list", *arguments)
    return {(lane["destination"], lane["lane"]): lane for lane in document}


def _files(state):
    """The state folder's bytes. SQLite's shared memory is none of its contents."""
    return {
        str(path.relative_to(state)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(state.rglob("*"))
        if path.is_file() and path.name != "cache.db-shm"
    }


def _notes(folder, **facts):
    """What the journal of a stopped daemon's folder says that agrees with these facts."""
    with look(folder, 0) as found:
        rows = [value for _, value in found.store.rows(Table.JOURNAL)]
    notes = [note for value in rows for note in journal.decode(value)]
    return [note for note in notes if all(getattr(note, name) == value for name, value in facts.items())]


@pytest.fixture
def troubled(world):
    """One destination is well but for two of its lanes, its mirror can't be reached, and one refuses our key."""
    url = world.platform.url
    daemon = world.daemon(
        start=False,
        listen={"socket": str(world.folder / "d.sock"), "mode": "0666"},
        memory={"budget": "16MiB"},
        intake={"reference_wait": "10m"},
        retry={"initial": "20ms", "max": "2s"},
        destination={"base_url": f"{url}/agentos"},
        **{
            "destinations.mirror": {
                "platform": "agentos", "base_url": "http://127.0.0.1:1", "agent_id": AGENT, "api_key": {"env": "KEY"},
                "copy": True,
            },
            "destinations.decisionos": {
                "platform": "decisionos", "base_url": f"{url}/decisionos", "agent_id": LEDGER_AGENT, "api_key": {"env": "KEY"},
            },
        },
    )  # fmt: skip
    daemon.configure(**{"destinations.agentos": {**daemon._sections["destinations.agentos"], "copy": True}})
    daemon.expected = {"paused"}
    world.folder.chmod(0o711)
    return daemon.start()


def _trouble(world, daemon):
    """Four runs: `done` is delivered, `blocked` got a 503 and is to rest, `early` has 3 MB and no start, `fine` goes on."""
    ledger = world.ledger
    world.platform.faults(
        "status=401,face=decisionos", "status=503,retry_after=300s,path=/api/ingest/v1/run/start,count=1"
    )
    with Frames(daemon) as client:
        assert client.deliver(ledger, [ledger.start("blocked"), *ledger.events_of("blocked", 5)]) == {}
        wait_for(lambda: daemon.books()["retries"] == 1, 10, daemon.books)
        for part in range(10):
            assert client.deliver(ledger, ledger.events_of("early", 30, size=10_000)) == {}, part
        assert client.deliver(ledger, ledger.whole_run("done", 20)) == {}
        decisions = [
            {"kind": "decision", "context": f"decision {number}", "decision_id": f"d-{number}"} for number in range(4)
        ]
        assert client.ask(decisions)["accepted"] == 4
    wait_for(lambda: daemon.books()["delivered"] == 22, 10, daemon.status)
    wait_for(lambda: daemon.books("decisionos")["state"] == "paused", 10, daemon.status)
    wait_for(lambda: daemon.books("mirror")["state"] == "waiting", 10, daemon.status)
    wait_for(lambda: _parked(daemon) == 1, 10, daemon.status)


def _parked(daemon):
    return http_call(daemon.socket, "GET", "/v1/queue")[1]["destinations"]["agentos"]["lanes"]["parked"]


def _figures(world, daemon):
    """`queue stats` of the running daemon."""
    wait_for(lambda: daemon.books()["delivered_per_s"] is not None, 10, daemon.books)
    stats, said = _queue(world, daemon, "stats")
    assert (stats["running"], said) == (True, "")
    fine, mirror, ledger = (stats["destinations"][name] for name in ("agentos", "mirror", "decisionos"))
    assert (fine["state"], fine["queued"], fine["kinds"]) == ("ok", 306, {"event": 305, "run.start": 1})
    assert fine["lanes"] == {"known": 2, "waits": {"backoff": 1, "reference": 1}, "parked": 1}
    assert fine["bytes"] > 3_000_000
    assert fine["window_bytes"] < fine["bytes"]
    assert (mirror["state"], mirror["queued"], mirror["drain"]) == ("waiting", 328, "not draining")
    assert "no connection" in mirror["reason"]
    assert (ledger["state"], ledger["kinds"]) == ("paused", {"decision": 4})
    assert "401" in ledger["reason"]
    assert ledger["sealed"] == 1
    assert stats["total"]["queued"] == 306 + 328 + 4
    assert fine["delivered_per_s"] is not None
    status = daemon.books("mirror")
    assert (status["drain"], status["eta_s"]) == ("not draining", None)


def _why_lanes_wait(world, daemon):
    """`queue list` of the running daemon."""
    lanes = _lanes(world, daemon)
    early, blocked = lanes["agentos", "run:early"], lanes["agentos", "run:blocked"]
    assert (early["records"], early["waits"]["for"], early["parked"]) == (300, "reference", True)
    assert "run early to be introduced" in early["waits"]["reason"]
    assert (blocked["records"], blocked["waits"]["for"], blocked["waits"]["failures"]) == (6, "backoff", 1)
    assert 200 < blocked["waits"]["next_try_in_s"] < 331
    assert blocked["sealed"] == 1
    assert {lanes["mirror", f"run:{run}"]["waits"]["for"] for run in ("blocked", "done")} == {"destination"}
    assert lanes["decisionos", f"agent:{LEDGER_AGENT}"]["waits"]["reason"].startswith("paused: 401")
    assert set(_lanes(world, daemon, "--run", "early")) == {("agentos", "run:early"), ("mirror", "run:early")}
    assert set(_lanes(world, daemon, "--kind", "decision")) == {("decisionos", f"agent:{LEDGER_AGENT}")}
    assert _lanes(world, daemon, "--older", "1h") == {}
    [largest], _ = _queue(world, daemon, "list", "--sort", "bytes", "--limit", "1", "--destination", "agentos")
    assert largest["lane"] == "run:early"
    return lanes


def _contents(world, daemon):
    """`queue peek` and `queue receipts`, of a running daemon or of one that is not."""
    peeked, _ = _queue(world, daemon, "peek", "--destination", "agentos", "-n", "2")
    assert [(found["kind"], found["record"]["run_id"]) for found in peeked] == [
        ("run.start", "blocked"),
        ("event", "blocked"),
    ]
    raw = world.cli("--config", str(daemon.config), "queue", "peek", "--run", "early", "-n", "1", "--raw")
    assert json.loads(raw.stdout)["payload"]["n"] == 0
    receipts, _ = _queue(world, daemon, "receipts", "--run", "done")
    end, start = receipts
    assert (end["kind"], start["kind"], start["tries"]) == ("run.complete", "run.start", 1)
    assert start["platform_id"] == world.platform.run("done")["id"]
    assert start["key"] == start["id"]
    return peeked, receipts


def test_what_waits_and_why(world, troubled):
    """Section 6: queue stats, list, peek and receipts on a running daemon, the same on a killed and a stopped one, which they leave alone."""
    daemon = troubled
    _trouble(world, daemon)
    _figures(world, daemon)
    lanes = _why_lanes_wait(world, daemon)
    contents = _contents(world, daemon)
    _what_others_see(world, daemon)

    daemon.kill()
    before = _files(daemon.state)
    rest = _lanes(world, daemon)
    told = ("records", "bytes", "kinds", "loss", "newest")  # the mirror's lanes may have been sealed since
    assert {name: [lane[fact] for fact in told] for name, lane in rest.items()} == {
        name: [lane[fact] for fact in told] for name, lane in lanes.items()
    }
    assert rest["agentos", "run:early"]["waits"]["for"] == "reference"
    assert rest["agentos", "run:blocked"]["waits"]["for"] == "seal"
    assert rest["mirror", "run:done"]["waits"]["for"] in ("seal", "daemon")
    again = _contents(world, daemon)
    assert [found["record"] for found in again[0]] == [found["record"] for found in contents[0]]
    assert again[1] == contents[1]
    stats, said = _queue(world, daemon, "stats")
    assert said == f"agentd: no daemon at {daemon.socket}: reading {daemon.state}, which a stopped one left\n"
    assert (stats["running"], stats["total"]["queued"]) == (False, 306 + 328 + 4)
    assert {name: there["state"] for name, there in stats["destinations"].items()} == dict.fromkeys(
        ("agentos", "mirror", "decisionos"), "stopped"
    )
    assert _files(daemon.state) == before

    _, said = _queue(world, daemon, "list", "--destination", "nowhere", code=1)
    assert "there is no queue 'nowhere'; there are agentos, decisionos, mirror" in said
    _move_the_mirror(world, daemon)
    world.platform.faults()
    daemon.start()
    with Frames(daemon) as client:
        assert client.deliver(world.ledger, [world.ledger.start("early"), world.ledger.end("early")]) == {}
        assert client.deliver(world.ledger, [world.ledger.end("blocked")]) == {}


def _as_nobody(path):
    """What the daemon answers to another user; a process of its own, since a uid that is given up does not come back."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            views = {
                view: http_call(path, "GET", f"/v1/queue?view={view}")
                for view in ("stats", "lanes", "records", "receipts")
            }
            body = json.dumps({"destination": "mirror", "reason": "I want to"}).encode()
            os.write(write, json.dumps({**views, "drop": http_call(path, "POST", "/v1/queue/drop", body)}).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answers:
        seen = json.load(answers)
    os.waitpid(child, 0)
    return seen


def _what_others_see(world, daemon):
    """Counts, and nothing by which a run, an agent or a record of another's could be told; nothing is dropped."""
    if os.geteuid() != 0:
        return
    seen = _as_nobody(daemon.socket)
    assert seen["drop"][0] == 403
    status, lanes = seen["lanes"]
    assert (status, lanes["lanes"], lanes["matched"]["records"]) == (200, [], 0)
    assert lanes["destinations"]["mirror"]["queued"] == 328
    status, records = seen["records"]
    assert (status, len(records["records"])) == (200, 100)
    assert all("record" not in found and "lane" not in found for found in records["records"])
    assert seen["receipts"] == [200, {"receipts": [], "complete": True, "damaged_rows": 0}]
    assert seen["stats"][1]["destinations"]["agentos"]["queued"] == 306


def _move_the_mirror(world, daemon):
    """A start is refused because records wait for the old place; the queue is dropped, and the start goes through."""
    moved = {**daemon._sections["destinations.mirror"], "base_url": f"{world.platform.url}/agentos"}
    daemon.configure(**{"destinations.mirror": {**moved, "accept": ["task"]}})
    refused = world.cli("--config", str(daemon.config), "run", KEY="aos_agent_end_to_end")
    assert refused.returncode == 78
    assert "'agentd queue drop mirror --reason TEXT'" in refused.stderr
    done = world.cli("--config", str(daemon.config), "queue", "drop", "mirror", "--reason", "it has moved")
    assert (done.returncode, "--yes" in done.stderr) == (2, True)
    dropped, _ = _queue(world, daemon, "drop", "mirror", "--reason", "it has moved", "--yes")
    kinds = {"event": 325, "run.complete": 1, "run.start": 2}
    assert (dropped["dropped"], dropped["kinds"]) == (328, kinds)
    gone = _notes(daemon.state, state="purged", destination="mirror")
    assert {(note.by, note.reason, note.cause) for note in gone} == {(os.getuid(), "it has moved", "dropped")}
    assert sum(note.count for note in gone if note.kind == "event") == 325
    assert len({note.record_id for note in gone if note.record_id}) == 3
    before = _files(daemon.state)
    stats, _ = _queue(world, daemon, "stats")
    assert stats["total"]["queued"] == 306 + 4
    assert ("mirror", "run:done") not in _lanes(world, daemon)
    assert _files(daemon.state) == before  # closed in order: there is no log beside the database, and none is made


def test_dropping_while_it_is_sent(world):
    """Section 6: what is under way when a queue is dropped is delivered, the rest is purged; the books balance, and what the
    dropped records would have introduced holds nothing up."""
    daemon = world.daemon(
        destination={"base_url": f"{world.platform.url}/agentos", "max_in_flight": 1}, batch={"max_events": 5}
    )
    ledger = world.ledger
    with Frames(daemon) as client:
        assert client.deliver(ledger, [ledger.start("r"), *ledger.events_of("r", 5)]) == {}
        daemon.drained()
        world.platform.faults("latency=1s,count=1")
        assert client.deliver(ledger, ledger.events_of("r", 5)) == {}
        wait_for(lambda: daemon.books()["in_flight"] == 1, 10, daemon.books)
        lost = [
            {"kind": "run.start", "run_id": "lost"},
            *({"kind": "event", "run_id": "lost", "type": "t"} for _ in range(20)),
        ]
        assert client.ask(lost)["accepted"] == 21
        dropped, _ = _queue(world, daemon, "drop", "agentos", "--reason", "a test", "--yes")
        assert (dropped["dropped"], dropped["kinds"]) == (21, {"event": 20, "run.start": 1})
        books = daemon.drained()
        assert (books["delivered"], books["causes"]) == (11, {"purged": {"dropped": 21}})
        assert world.platform.run("lost") is None
        assert client.ask([{"kind": "event", "run_id": "lost", "type": "t"}])["accepted"] == 1
        assert daemon.drained()["causes"]["dead"] == {"introducer_dead": 1}
        assert client.deliver(ledger, [*ledger.events_of("r", 5), ledger.end("r")]) == {}
        assert daemon.drained()["delivered"] == 17
        nothing, _ = _queue(world, daemon, "drop", "agentos", "--reason", "again", "--yes")
        assert nothing["dropped"] == 0
        daemon.kill()
    daemon.start()
    books = daemon.balanced()
    assert (books["delivered"], books["purged"], books["dead"], books["queued"]) == (17, 21, 1, 0)


def test_a_drop_that_is_killed_leaves_whole_books(world):
    """Promise 8: kill -9 in the middle of dropping, wherever it hits; what is left is the front of the queue, and goes on as it was."""
    daemon = world.daemon(start=False, spool={"directory": str(world.folder / "d.state")})
    daemon.configure(
        **{"destinations.agentos": {**daemon._sections["destinations.agentos"], "base_url": "http://127.0.0.1:1"}}
    )
    daemon.start()
    with Frames(daemon) as client:
        for part in range(40):
            tasks = [
                {
                    "kind": "task",
                    "run_id": f"r{part}",
                    "task_id": f"t{number}",
                    "name": "n",
                    "status": "pending",
                    "input": "x" * 5000,
                }
                for number in range(200)
            ]
            start = {"kind": "run.start", "run_id": f"r{part}"}
            assert client.ask([start, *tasks])["accepted"] == 201
    status, _ = http_call(daemon.socket, "POST", "/v1/flush?until=stored")
    assert status == 200
    body = json.dumps({"destination": "agentos", "reason": "a test"}).encode()
    dropping = subprocess.Popen(
        [sys.executable, "-c", _POST, str(Path(__file__).parent), daemon.socket, body.decode()],
        env=clean_environment(world.folder), stderr=subprocess.DEVNULL,
    )  # fmt: skip
    commits = daemon.status()["spool"]["commits"]
    wait_for(lambda: daemon.books()["purged"] > 500, 20, daemon.books)
    daemon.kill()
    dropping.wait(20)
    daemon.start()
    books = daemon.balanced()
    assert books["queued"] + books["purged"] == books["admitted"] == 40 * 201
    assert daemon.status()["spool"]["commits"] > commits
    lanes = _lanes(world, daemon)
    left = [f"run:r{part}" for part in range(40) if ("agentos", f"run:r{part}") in lanes]
    assert left == [f"run:r{part}" for part in range(len(left))]  # the newest went first
    dropped, _ = _queue(world, daemon, "drop", "agentos", "--reason", "the rest", "--yes")
    assert dropped["dropped"] == books["queued"]
    assert daemon.balanced()["purged"] == 40 * 201


_POST = """
import sys
sys.path.insert(0, sys.argv[1])
from harness import http_call
http_call(sys.argv[2], "POST", "/v1/queue/drop", sys.argv[3].encode())
"""
