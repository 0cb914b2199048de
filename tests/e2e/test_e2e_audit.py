"""`agentd audit` and `agentd where` over real daemons: under load, stopped, killed; by every sort of id; for whom it is."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import uuid

import pytest
from harness import AGENT, Frames, Producer, audit_disk, deal, http_call, wait_for
from test_e2e_gates import rulebook

FACES = ("agentos", "ascend", "decidefyi", "decisionos")
SANDBOX_AGENT = str(uuid.uuid5(uuid.NAMESPACE_URL, "agentd:sandbox"))  # the one that the emulated workspace has


def four(world, **sections):
    """A daemon with a destination for each face."""
    agents = {"agentos": AGENT, "decisionos": SANDBOX_AGENT, "ascend": "billing-bot"}
    destinations = {
        f"destinations.{name}": {
            "platform": name, "base_url": f"{world.platform.url}/{name}", "api_key": {"env": "KEY"},
            **({"agent_id": agents[name]} if name in agents else {}),
        }
        for name in FACES
    }  # fmt: skip
    return world.daemon(**({"intake": {"reference_wait": "300ms"}} | sections | destinations))


def cli(world, daemon, *arguments, code=0):
    done = world.cli("--config", str(daemon.config), *arguments)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def audited(world, daemon):
    """The audit's document; it balances."""
    return json.loads(cli(world, daemon, "audit", "--json").stdout)


def where(world, daemon, name):
    """The document, which is the same from the command line and over HTTP."""
    status, document = http_call(daemon.socket, "GET", f"/v1/records/{name}")
    assert status == 200, document
    shown = json.loads(cli(world, daemon, "where", name, "--json").stdout)
    assert [record["id"] for record in shown["records"]] == [record["id"] for record in document["records"]]
    return document


def states(document):
    """(kind, destination, state) of each record at each destination."""
    return [
        (record["kind"], place["destination"], place["state"])
        for record in document["records"]
        for place in record["destinations"]
    ]


def hand_in(daemon, *records):
    with Frames(daemon) as client:
        assert client.ask(list(records)) == {"seq": 1, "accepted": len(records)}


def ask(daemon, gate, request, **fields):
    status, answer = http_call(
        daemon.socket, "POST", "/v1/gate", json.dumps({"gate": gate, "request": request, **fields}).encode()
    )
    assert status == 200, answer
    return answer


def files_of(folder):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


# -- the audit ---------------------------------------------------------------------------------------------------------


def test_the_books_balance_under_load(world):
    """Promise 8: at any moment, beside a daemon that takes, sends and settles, what is on disk adds up."""
    daemon = world.daemon(batch={"max_events": 20})
    ledger = world.ledger
    world.platform.faults("status=503,rate=0.1")
    producer = Producer(daemon, ledger, deal(ledger, 6000, 20), frame=50, pause_s=0.05)
    seen = []
    while not producer.done:
        for _ in range(3):
            audit_disk(daemon.state)
        document = audited(world, daemon)
        seen.append(sum(count["admitted"] for count in document["books"]))
        assert document["pid"] == daemon.process.pid
    producer.join()
    assert len(seen) > 2
    assert seen == sorted(seen)
    world.platform.faults()
    assert daemon.drained()["delivered"] == 6040
    assert daemon.kills == 0


def test_a_stopped_folder_is_audited_and_stays_as_it_is(world):
    """Promises 8 and 9: records that wait, dead ones, a gate: all of it adds up, and reading changes no byte."""
    daemon = four(world)
    ledger = world.ledger
    with Frames(daemon) as client:
        client.deliver(ledger, ledger.whole_run("done", 10))
    world.platform.refuse("poison", 422)
    hand_in(daemon, {"kind": "event", "run_id": "done", "type": "poison"})
    ask(daemon, "decide", rulebook())
    wait_for(daemon.dead_letters)
    daemon.drained()
    world.platform.down()
    with Frames(daemon) as client:
        client.deliver(ledger, ledger.whole_run("waits", 10))
    assert daemon.stop() == 0
    before = files_of(daemon.state)
    done = cli(world, daemon, "audit")
    assert done.stdout.splitlines()[-1] == "the books balance"
    document = audited(world, daemon)
    books = {(count["destination"], count["kind"]): count for count in document["books"]}
    events = books["agentos", "event"]
    assert (events["queued"], events["delivered"], events["dead"]) == (10, 10, 1)
    assert sum(document["causes"]["agentos"]["dead"].values()) == 1
    assert (document["pid"], document["gates"]) == (None, 1)
    for verb, code in ((("status",), 1), (("where", "waits"), 0), (("gates", "list"), 0), (("queue", "list"), 0)):
        assert "which a stopped one left" in cli(world, daemon, *verb, code=code).stderr
    assert files_of(daemon.state) == before
    world.platform.up()
    world.platform.forgive()
    daemon.start()


@pytest.mark.parametrize("round_", range(3))
def test_a_killed_folder_is_audited_as_it_was_left(world, round_):
    """Promise 8: after kill -9 in the middle of a load the disk adds up before any recovery, and its files are as they were."""
    daemon = world.daemon(batch={"max_events": 20})
    ledger = world.ledger
    producer = Producer(daemon, ledger, deal(ledger, 3000, 10), frame=30, pause_s=0.005)
    wait_for(lambda: producer.acked > 10 + 15 * round_)
    daemon.kill()
    before = files_of(daemon.state)
    document = audited(world, daemon)
    assert sum(count["admitted"] for count in document["books"]) > 0
    cli(world, daemon, "where", "run-1")
    assert files_of(daemon.state) == before
    daemon.start()
    producer.join()
    daemon.drained()


def test_a_folder_that_was_tampered_with_is_found_out(world):
    """Promise 9: somebody takes an entry out of the journal, and the audit says which rows are missing."""
    daemon = world.daemon()
    ledger = world.ledger
    with Frames(daemon) as client:
        for name in ("a", "b", "c"):
            client.deliver(ledger, ledger.whole_run(name, 1))
    daemon.drained()
    assert daemon.stop() == 0
    import sqlite3

    with sqlite3.connect(daemon.state / "spool" / "cache.db") as database:
        rows = database.execute("SELECT rowid, * FROM Cache WHERE key >= ? AND key < ?", (5 << 48, 6 << 48)).fetchall()
        database.execute("DELETE FROM Cache WHERE rowid = ?", (rows[1][0],))
    database.close()
    done = cli(world, daemon, "audit", code=1)
    assert "error: journal row 3: 1 rows before it are missing: entries" in done.stdout
    assert done.stdout.splitlines()[-1] == "the books do NOT balance"
    with sqlite3.connect(daemon.state / "spool" / "cache.db") as database:
        marks = ", ".join("?" * (len(rows[1]) - 1))
        database.execute(f"INSERT INTO Cache VALUES ({marks})", rows[1][1:])
    database.close()
    assert cli(world, daemon, "audit").stdout.splitlines()[-1] == "the books balance"


# -- where -------------------------------------------------------------------------------------------------------------


def test_where_by_every_sort_of_id(world):
    """Promise 9: by the client's id, agentd's own, the platform's, a run, a decision, an action, a gate, a key, a receipt."""
    daemon = four(world)
    ledger = world.ledger
    record_id, run = str(uuid.uuid4()), "invoice/7"
    with Frames(daemon) as client:
        begun = ledger.start(run, id=record_id, occurred_at="2026-01-02T03:04:05Z")
        client.deliver(ledger, [begun, *ledger.events_of(run, 3)])
    # a decision with its snapshot, and gates whose answers later records name
    decision = {
        "kind": "decision",
        "context": "refund?",
        "decision_id": "mine",
        "run_id": run,
        "agent_id": SANDBOX_AGENT,
    }
    snapshot = {"kind": "snapshot", "decision_id": "mine", "snapshot": {"prompt": "…"}, "agent_id": SANDBOX_AGENT}
    hand_in(daemon, decision, snapshot)
    decided = ask(daemon, "decide", rulebook(), key="pay-7", run_id=run)
    wish = {"agent_name": "Billing", "action_type": "query", "resource": "invoices"}
    submitted = ask(daemon, "action", wish)
    hand_in(
        daemon,
        {"kind": "execution", "decision_id": decided["id"], "execution_status": "executed"},
        {"kind": "action.completed", "action_id": submitted["id"], "result": {"rows": 1}},
    )
    for name in FACES:
        daemon.drained(destination=name)

    began = where(world, daemon, record_id)
    (place,) = began["records"][0]["destinations"]
    assert states(began) == [("run.start", "agentos", "delivered")]
    facts = began["records"][0]
    assert (facts["run"], facts["occurred_at"], facts["uid"]) == (run, "2026-01-02T03:04:05.000000Z", os.getuid())
    body = json.dumps(begun | {"trigger_type": None}).encode()
    assert facts["sha256"] != hashlib.sha256(body).hexdigest()  # of the record as it is stored, not as it was sent
    assert (place["key"], place["tries"]) == (record_id, 1)

    quoted = run.replace("/", "%2F")
    by_run = json.loads(cli(world, daemon, "where", run, "--json").stdout)
    assert http_call(daemon.socket, "GET", f"/v1/records/{quoted}")[1]["is"] == by_run["is"] == ["run"]
    assert ("run.start", "agentos", "delivered") in states(by_run)
    assert ("decision", "decisionos", "delivered") in states(by_run)
    (reference,) = by_run["references"]
    assert reference["platform_id"] == place["platform_id"] == world.platform.run(run)["id"]
    assert where(world, daemon, place["platform_id"])["is"] == ["run by the platform's id"]

    made = where(world, daemon, "mine")
    assert states(made) == [("decision", "decisionos", "delivered"), ("snapshot", "decisionos", "delivered")]
    assert made["is"] == ["decision"]
    platform_id, snapshot_id = (record["destinations"][0]["platform_id"] for record in made["records"])
    assert where(world, daemon, platform_id)["is"] == ["decision by the platform's id"]
    assert [kind for kind, *_ in states(where(world, daemon, snapshot_id))] == ["snapshot"]
    own = made["records"][0]["id"]  # agentd's
    assert states(where(world, daemon, own)) == [("decision", "decisionos", "delivered")]

    for name in (decided["gate_id"], "pay-7", decided["id"], decided["platform_id"]):
        found = where(world, daemon, name)
        assert [gate["gate_id"] for gate in found["gates"]] == [decided["gate_id"]], name
        assert ("gate.decide", "decidefyi", "answered") in states(found), name
    found = where(world, daemon, decided["id"])
    assert ("execution", "decidefyi", "delivered") in states(found)
    (execution,) = [record for record in found["records"] if record["kind"] == "execution"]
    receipt = execution["destinations"][0]["platform_id"]
    assert receipt.startswith("exec_")
    assert states(where(world, daemon, receipt)) == [("execution", "decidefyi", "delivered")]
    assert ("action.completed", "ascend", "delivered") in states(where(world, daemon, submitted["id"]))
    assert ("action.completed", "ascend", "delivered") in states(where(world, daemon, submitted["platform_id"]))

    with Frames(daemon) as client:
        client.deliver(ledger, [ledger.end(run)])
    daemon.drained()


def test_where_telemetry_is(world):
    """Events leave no entry when they are delivered: found while they wait or are dead; after that it is said that they came."""
    daemon = world.daemon()
    ledger = world.ledger
    with Frames(daemon) as client:
        client.deliver(ledger, [ledger.start("r")])
        daemon.drained()
        world.platform.down()
        event = ledger.event("r") | {"id": str(uuid.uuid4())}
        client.deliver(ledger, [event])
    found = wait_for(
        lambda: (shown := where(world, daemon, event["id"]))["records"][0]["destinations"][0]["key"] and shown
    )
    (place,) = found["records"][0]["destinations"]
    assert (found["records"][0]["kind"], place["state"], place["batch"]) == ("event", "queued", 1)
    assert (place["waits"]["for"], "no connection" in place["waits"]["reason"]) == ("destination", True)
    assert states(where(world, daemon, place["key"])) == [("event", "agentos", "queued")]  # the key of its batch
    world.platform.up()
    daemon.drained()
    found = where(world, daemon, event["id"])
    assert (found["records"][0]["destinations"], found["records"][0]["uid"]) == ([], os.getuid())
    assert "it was taken, and is neither queued nor dead any more" in found["records"][0]["note"]
    wait_for(lambda: where(world, daemon, "r")["references"][0]["delivered"] == 2)  # on disk within a second
    done = cli(world, daemon, "where", str(uuid.uuid4()), code=1)
    assert "events and spans leave no entry of their own when they are delivered" in done.stderr


def test_where_holds_up_nobody(world):
    """Questions are read on a thread and a connection of their own: records are taken and sent meanwhile."""
    daemon = world.daemon(batch={"max_events": 20})
    ledger = world.ledger
    producer = Producer(daemon, ledger, deal(ledger, 3000, 10), frame=30, pause_s=0.002)
    stop = threading.Event()
    answers = []

    def curious():
        while not stop.is_set():
            status, _ = http_call(daemon.socket, "GET", "/v1/records/run-3")
            answers.append(status)

    threads = [threading.Thread(target=curious) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        producer.join()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert set(answers) <= {200, 404, 503}
    assert 200 in answers
    daemon.drained()


_ASK_AS = """
import http.client, json, os, socket, sys, uuid
path, names, uid = sys.argv[1], sys.argv[2:], 4711
os.setgid(uid); os.setuid(uid)
def call(method, target, body=None):
    link = socket.socket(socket.AF_UNIX); link.connect(path)
    connection = http.client.HTTPConnection("localhost"); connection.sock = link
    connection.request(method, target, body)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())
own = str(uuid.uuid4())
sent = call("POST", "/v1/records", json.dumps({"kind": "run.start", "id": own, "run_id": "theirs"}))
print(json.dumps([sent[0], own, [call("GET", f"/v1/records/{name}") for name in (own, "theirs", *names)]]))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_user_sees_its_own_records_alone(world):
    """Another uid's question about our records is answered as if there were none; admins see everybody's."""
    world.folder.chmod(0o711)
    daemon = world.daemon(listen={"socket": str(world.folder / "d.sock"), "mode": "0666"})
    ledger = world.ledger
    record_id = str(uuid.uuid4())
    with Frames(daemon) as client:
        client.deliver(ledger, [ledger.start("ours", id=record_id), ledger.end("ours")])
    daemon.drained()
    platform_id = world.platform.run("ours")["id"]
    done = subprocess.run(
        [sys.executable, "-c", _ASK_AS, daemon.socket, record_id, "ours", platform_id],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    status, own, answers = json.loads(done.stdout)
    assert status == 202
    assert [answer[0] for answer in answers] == [200, 200, 404, 404, 404]
    assert answers[0][1]["records"][0]["uid"] == 4711
    daemon.drained()
    for name in (own, "theirs", record_id):
        assert where(world, daemon, name)["records"], name
    ledger.took([{"kind": "run.start", "run_id": "theirs"}])


def test_a_daemon_ends_while_somebody_asks(world):
    """Promise 7: a question that is under way holds up no SIGTERM."""
    daemon = world.daemon()
    ledger = world.ledger
    with Frames(daemon) as client:
        client.deliver(ledger, ledger.whole_run("r", 50))
    daemon.drained()
    asking = [
        subprocess.Popen(
            [sys.executable, "-m", "agentd", "--config", str(daemon.config), "where", "r"],
            cwd=world.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        for _ in range(3)
    ]  # fmt: skip
    daemon.signal(signal.SIGTERM)
    assert daemon.wait(10) == 0
    for each in asking:
        assert each.wait(20) in (0, 1)
