"""Five platforms behind one socket: every kind of record reaches the platform that knows it, and none holds up another."""

import hashlib
import json
import time
import urllib.request
import uuid
from collections import Counter

import pytest
from harness import AGENT, KEY, Frames, Lines, Platform, Producer, wait_for

FACES = ("agentos", "aegis", "ascend", "decidefyi", "decisionos")
QUEUES = ("agentos", "ascend", "decidefyi", "decisionos")  # aegis takes gates only
SANDBOX_AGENT = str(uuid.uuid5(uuid.NAMESPACE_URL, "agentd:sandbox"))  # the one that the emulated workspace has
APPROVED = {"decision": "yes", "verdict": "APPROVED", "reason_code": "ALL", "action": "approve_discount"}
RULEBOOK = {
    "schema_version": "rulebook_v1",
    "rulebook_id": "discounts",
    "version": "1",
    "input_schema": {"required": ["discount"], "properties": {"discount": {"type": "number"}}},
    "rules": [
        {"rule_id": "all", "condition": {"field": "discount", "operator": "gte", "value": 0}, "outcome": APPROVED},
    ],
    "default_outcome": APPROVED,
}


def five(world, decisionos=None, **sections):
    """A daemon with a destination for each platform; `decisionos` says more about that one."""
    agents = {"agentos": AGENT, "decisionos": SANDBOX_AGENT, "ascend": "billing-bot"}
    destinations = {
        f"destinations.{name}": {
            "platform": name,
            "base_url": f"{world.platform.url}/{name}",
            "api_key": {"env": "KEY"},
            **({"agent_id": agents[name]} if name in agents else {}),
        }
        for name in FACES
    }
    destinations["destinations.decisionos"] |= decisionos or {}
    return world.daemon(**({"intake": {"reference_wait": "300ms"}} | sections | destinations))


def call(world, path, body=None):
    """What an agent asks of a platform itself: a decision, leave for an action, a look at the ledger."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"X-API-Key": KEY, "Authorization": f"Bearer {KEY}"}
    with urllib.request.urlopen(urllib.request.Request(world.platform.url + path, data, headers), timeout=10) as answer:
        return json.load(answer)


def decided(world):
    """A decision that decide.fyi made, by its id."""
    context = {"inputs": {"discount": 5}, "target_system": "crm", "requested_action": "approve_discount"}
    return call(world, "/decidefyi/api/decide", {"mode": "rulebook", "rulebook": RULEBOOK, "context": context})[
        "decision_id"
    ]


def submitted(world):
    """An action that was submitted to ASCEND, by its id."""
    wish = {"agent_id": "billing-bot", "agent_name": "Billing", "action_type": "query", "resource": "invoices"}
    return call(world, "/ascend/api/v1/actions/submit", wish)["action_id"]


def hand_in(daemon, records, dialect=Frames):
    """All of them are acknowledged."""
    with dialect(daemon) as client:
        assert client.ask(records) == {"seq": 1, "accepted": len(records)}


def decision(context, **fields):
    return {"kind": "decision", "id": str(uuid.uuid4()), "context": context, **fields}


def sent_to(world):
    """Per platform, what agentd asked of it: the last part of each path, and how often."""
    found = {name: Counter() for name in FACES}
    for line in world.platform.requests():
        if line.idempotency_key:  # what the tests ask themselves has none
            found[line.face][line.path.rpartition("/")[2]] += 1
    return {name: dict(paths) for name, paths in found.items()}


def ledger_of(world, face="decisionos", platform=None):
    """The decisions that Decision OS holds, in the order of its chain, each as it was sent."""
    platform = platform or world.platform
    rows = [row["id"] for row in platform.runs() if row["face"] == face]
    found = [platform.run(row) for row in rows]
    return sorted(found, key=lambda one: one["chain_index"])


def all_drained(daemon):
    return {name: daemon.drained(destination=name) for name in FACES}


def test_every_kind_reaches_its_platform_and_no_other(world):
    """Section 2: a record goes to the platforms that know its kind, and to no other; each destination has books of its own."""
    daemon = five(world)
    ledger = world.ledger
    decision_id, done, failed = decided(world), submitted(world), submitted(world)
    with Frames(daemon) as client:
        task = {"kind": "task", "run_id": "r", "task_id": str(uuid.uuid4()), "name": "parse", "status": "completed"}
        span = {"kind": "span", "run_id": "r", "span_id": "s", "name": "classify", "duration_ms": 3}
        run = [ledger.start("r"), *ledger.events_of("r", 3), span, task, ledger.end("r")]
        assert client.deliver(ledger, run) == {}
    hand_in(
        daemon,
        [
            decision("Route the ticket", decision_id="d-in", run_id="r", options=["eng", "billing"], chosen="eng"),
            {"kind": "snapshot", "decision_id": "d-in", "snapshot": {"prompt": "…"}},
            decision("Greet", decision_id="d-out"),
            {"kind": "execution", "decision_id": decision_id, "execution_status": "executed"},
            {"kind": "outcome", "decision_id": decision_id, "outcome_status": "succeeded"},
            {"kind": "crm_sync", "decision_id": decision_id, "sync_status": "written", "field_mapping": {"a": "b"}},
            {"kind": "action.completed", "action_id": done, "result": {"rows": 3}, "duration_ms": 7},
            {"kind": "action.failed", "action_id": failed, "error": "no such table"},
            {"kind": "heartbeat", "status": "healthy", "metrics": {"error_rate": 0.1}},
        ],
    )
    books = all_drained(daemon)
    assert {name: of["delivered"] for name, of in books.items()} == {
        "agentos": 7, "decisionos": 3, "decidefyi": 3, "ascend": 3, "aegis": 0
    }  # fmt: skip
    assert all(of["admitted"] == of["delivered"] for of in books.values())
    asked = sent_to(world)
    assert set(asked.pop("agentos")) == {"start", "events", "tasks", "complete"}
    assert asked == {
        "decisionos": {"decisions": 2, "snapshots": 1},
        "decidefyi": {"execution": 1, "outcome": 1, "crm-sync": 1},
        "ascend": {"complete": 1, "fail": 1, "heartbeat": 1},
        "aegis": {},
    }
    assert {event["what"] for event in world.platform.run(done)["events"]} >= {"completed"}
    assert {event["what"] for event in world.platform.run(failed)["events"]} >= {"failed"}
    assert world.platform.run("agent:billing-bot")["heartbeats"] == 1
    assert world.platform.run(decision_id)["event_count"] == 3


def test_what_explain_says_is_what_is_sent(world):
    """`agentd explain` on the daemon's own configuration says the very bytes, paths and keys that the daemon then sends."""
    daemon = five(world, batch={"max_events": 2})
    at, decision_id, action_id = "2026-01-31T12:00:00Z", decided(world), submitted(world)
    records = [
        world.ledger.start("r", input={"a": [1, 2.50, "é"]}),
        *(record | {"occurred_at": at} for record in world.ledger.events_of("r", 5)),
        world.ledger.end("r"),
        decision("Route", decision_id="d", run_id="r", options=["eng", "billing"], chosen="eng", confidence=0.9),
        {"kind": "snapshot", "decision_id": "d", "snapshot": {"b": 1, "a": 2}, "captured_at": at},
        {"kind": "execution", "decision_id": decision_id, "execution_status": "executed", "executed_at": at},
        {"kind": "action.completed", "action_id": action_id, "result": {"rows": 3}, "occurred_at": at},
    ]
    records = [{"id": str(uuid.uuid4())} | record for record in records]
    (world.folder / "records.json").write_text(
        json.dumps(records, separators=(",", ":"))
    )  # free JSON stays as it is sent
    done = world.cli("--config", str(daemon.config), "explain", "--json", str(world.folder / "records.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert not any(line.idempotency_key for line in world.platform.requests())
    with Frames(daemon) as client:
        assert client.deliver(world.ledger, records) == {}
    all_drained(daemon)
    real = {"<run r>": world.platform.run("r")["id"], "<decision d>": ledger_of(world)[0]["id"]}
    said = []
    for name, outlook in json.loads(done.stdout)["destinations"].items():
        for request in outlook["requests"]:
            body = request["body"]
            for placeholder, platforms_own in real.items():
                body = body.replace(placeholder, platforms_own)
            headers = request["headers"]
            key = headers.get("x-idempotency-key") or headers["idempotency-key"]
            key = json.loads(body).get("requestId", key)
            path = request["url"].removeprefix(f"{world.platform.url}/{name}")
            said.append((name, path, key, hashlib.sha256(body.encode()).hexdigest()))
    lines = [line for line in world.platform.requests() if line.idempotency_key]
    assert sorted(said) == sorted((line.face, line.path, line.idempotency_key, line.sha256) for line in lines)
    assert len(said) == 9


@pytest.mark.parametrize("run_id", [None, "r"])
def test_a_snapshot_finds_its_decision(world, run_id):
    """Section 2: a snapshot under the client's own id for a decision carries the platform's, whichever of them came first."""
    daemon = five(world, intake={"reference_wait": "30s"})
    made = decision("Route", decision_id="mine", **({} if run_id is None else {"run_id": run_id}))
    snapshot = {"kind": "snapshot", "decision_id": "mine", "snapshot": {"response": "eng"}}
    world.platform.faults("latency=300ms,face=decisionos,count=1")
    with Lines(daemon) as early, Frames(daemon) as late:
        assert early.ask([snapshot])["accepted"] == 1
        assert late.ask([made])["accepted"] == 1
        assert early.ask([snapshot])["accepted"] == 1  # its decision's answer is still under way
    assert daemon.drained(destination="decisionos")["delivered"] == 3
    (logged,) = ledger_of(world)
    assert logged["id"].startswith("dec_")
    assert [event["decisionId"] for event in logged["events"]] == [logged["id"]] * 2
    assert world.platform.state().faces["decisionos"]["details"]["unknown_decisions"] == 0
    assert logged["sent"].get("runId") == run_id  # a label, and never replaced


def test_a_snapshot_finds_its_decision_after_a_crash(world):
    """Section 2: the platform's id for a decision is known after a kill -9, also to another connection."""
    daemon = five(world)
    hand_in(daemon, [decision("Route", decision_id="mine")])
    daemon.drained(destination="decisionos")
    daemon.kill()
    daemon.start()
    hand_in(daemon, [{"kind": "snapshot", "decision_id": "mine", "snapshot": {"response": "eng"}}], Lines)
    daemon.drained(destination="decisionos")
    (logged,) = ledger_of(world)
    assert [event["decisionId"] for event in logged["events"]] == [logged["id"]]


def test_a_decision_that_is_refused_takes_its_snapshot_along(world):
    """Section 2: the snapshot of a decision that Decision OS refuses for good is dead with it; another agent's are not."""
    daemon = five(world, {"agents": {"known": SANDBOX_AGENT, "stranger": "nobody"}})
    hand_in(
        daemon,
        [
            decision("Lost", decision_id="lost", agent_id="stranger"),
            {"kind": "snapshot", "decision_id": "lost", "snapshot": {}},
            decision("Kept", decision_id="kept", agent_id="known"),
            {"kind": "snapshot", "decision_id": "kept", "snapshot": {}},
        ],
    )
    books = daemon.drained(destination="decisionos")
    assert (books["delivered"], books["causes"]["dead"]) == (2, {"rejected": 1, "introducer_dead": 1})
    assert [one["sent"]["context"] for one in ledger_of(world)] == ["Kept"]


def test_only_the_newest_heartbeat_outlives_an_outage(world):
    """Section 2: while the platform is down the newest heartbeat of each agent is kept, the older are shed and counted."""
    daemon = five(world)
    world.platform.faults("down,face=ascend")
    for number in range(10):
        hand_in(daemon, [{"kind": "heartbeat", "agent_id": "a", "metrics": {"requests_count": number}}])
        time.sleep(0.03)
    hand_in(daemon, [{"kind": "heartbeat", "agent_id": "b", "metrics": {"requests_count": 99}}])
    wait_for(lambda: daemon.books("ascend")["queued"] == 2, 10, lambda: daemon.books("ascend"))
    world.platform.faults()
    books = daemon.drained(destination="ascend")
    assert (books["delivered"], books["shed"], books["dead"]) == (2, 9, 0)
    a, b = world.platform.run("agent:a"), world.platform.run("agent:b")
    assert (a["heartbeats"], a["metrics"]["requests_count"]) == (1, 9)
    assert (b["heartbeats"], b["metrics"]["requests_count"]) == (1, 99)


def _day(world, number):
    """What an agent owes to four platforms in a moment: two records for each of them."""
    run = f"run-{number}"
    decision_id, action_id = world.decisions[number % len(world.decisions)], world.actions[number % len(world.actions)]
    return [
        world.ledger.start(run),
        world.ledger.event(run),
        decision(f"{number:03} first", run_id=run),
        decision(f"{number:03} second"),
        {"kind": "execution", "decision_id": decision_id, "execution_status": f"{number:03} executed"},
        {"kind": "outcome", "decision_id": decision_id, "outcome_status": f"{number:03} succeeded"},
        {"kind": "action.completed", "action_id": action_id, "result": {"n": number, "step": 1}},
        {"kind": "action.completed", "action_id": action_id, "result": {"n": number, "step": 2}},
    ]


@pytest.mark.parametrize("fault", ["down", "status=503"])
@pytest.mark.parametrize("absent", QUEUES)
def test_a_platform_that_is_away_holds_up_no_other(world, absent, fault):
    """Promise 2: with one platform away the others get everything; back again it gets all that waited, in order."""
    daemon = five(world)
    world.decisions = [decided(world) for _ in range(3)]
    world.actions = [submitted(world) for _ in range(3)]
    world.platform.faults(f"{fault},face={absent}")
    records = [record for number in range(30) for record in _day(world, number)]
    with Frames(daemon) as client:
        assert client.deliver(world.ledger, records) == {}
    for name in set(QUEUES) - {absent}:
        books = daemon.drained(destination=name)
        assert (books["delivered"], books["state"]) == (60, "ok")
    books = daemon.balanced(absent)
    assert (books["queued"], books["dead"], books["delivered"]) == (60, 0, 0)
    wait_for(lambda: daemon.books(absent)["reason"], 10, lambda: daemon.books(absent))
    world.platform.faults()
    assert daemon.drained(destination=absent)["delivered"] == 60
    _assert_in_order(world)
    assert [world.platform.state().faces[name]["duplicates"] for name in ("agentos", "decidefyi", "decisionos")] == [
        0
    ] * 3
    world.doubles = True  # this test tells ASCEND many ends of one action, to see their order
    assert {of["dead"] for of in daemon.status()["destinations"].values()} == {0}


def _assert_in_order(world):
    outside = [one["sent"]["context"] for one in ledger_of(world) if "runId" not in one["sent"]]
    assert outside == [f"{number:03} second" for number in range(30)]
    for decision_id in world.decisions:
        statuses = [_status_of(event) for event in world.platform.run(decision_id)["events"]]
        assert statuses == sorted(statuses)
        assert len(statuses) == 20
    for action_id in world.actions:
        log = [event["said"]["result"] for event in world.platform.run(action_id)["events"] if "said" in event]
        assert log == sorted(log, key=lambda result: (result["n"], result["step"]))
        assert len(log) == 20


def _status_of(event):
    sent = event["sent"]
    return sent.get("execution_status") or sent.get("outcome_status")


@pytest.mark.timeout(120)
def test_no_decision_is_logged_twice(world):
    """Promises 1 and 4: through kill -9 and answers that are cut off, each decision stands in the ledger once and in order.

    The ledger is a chain and never forgets, so that a duplicate could not be taken back. A repeat is the same bytes under the
    same requestId, and the platform recognises it.
    """
    daemon = five(world, shutdown={"drain_timeout": "300ms"})
    world.platform.faults("cut,face=decisionos,rate=0.25", "latency=5ms..30ms,face=decisionos")
    runs = [None, "a", "b", "c"]
    records = [
        decision(f"{number:03}", decision_id=f"d-{number}", **({"run_id": run} if run else {}))
        for number in range(240)
        for run in [runs[number % len(runs)]]
    ]
    producer = Producer(daemon, world.ledger, records, frame=5, pause_s=0.03)
    for _ in range(3):
        before = len(ledger_of(world))
        wait_for(lambda before=before: len(ledger_of(world)) >= before + 20, 30, lambda: daemon.books("decisionos"))
        daemon.kill()
        daemon.start()
    producer.join()
    wait_for(lambda: world.platform.state().faults.get("cut", 0) >= 20, 30)
    world.platform.faults("latency=1ms..5ms,face=decisionos")
    hand_in(daemon, [{"kind": "snapshot", "decision_id": f"d-{n}", "snapshot": {"n": n}} for n in range(240)])
    books = daemon.drained(destination="decisionos")
    assert (books["queued"], books["dead"]) == (0, 0)
    logged = ledger_of(world)
    assert Counter(one["sent"]["requestId"] for one in logged) == Counter(record["id"] for record in records)
    for run in runs:
        contexts = [one["sent"]["context"] for one in logged if one["sent"].get("runId") == run]
        assert contexts == sorted(contexts)
    assert all([event["snapshot"]["n"] for event in one["events"]] == [int(one["sent"]["context"])] for one in logged)
    verified = call(world, "/decisionos/api/public/v1/ledger/verify")["data"]
    assert (verified["ok"], verified["decisions"]["checked"]) == (True, 240)
    repeats = world.platform.repeats(2)
    assert repeats
    assert all(repeat.same_body for repeat in repeats.values())


def test_receipts_and_completions_survive_a_kill(world):
    """Promise 4: receipts whose answers are cut off are written once, since the key is the same; completions are not lost."""
    daemon = five(world)
    world.decisions = [decided(world) for _ in range(3)]
    world.actions = [submitted(world) for _ in range(3)]
    for face in ("decidefyi", "ascend"):
        world.platform.ask(
            lambda face=face: world.platform.sandbox.faults.add(
                f"cut,face={face},rate=0.4", f"latency=20ms,face={face}"
            )
        )
    records = [record for number in range(30) for record in _day(world, number)]
    with Frames(daemon) as client:
        assert client.deliver(world.ledger, records) == {}
    wait_for(lambda: daemon.books("decidefyi")["delivered"] >= 10, 20, lambda: daemon.books("decidefyi"))
    daemon.kill()
    daemon.start()
    wait_for(lambda: world.platform.state().faults.get("cut", 0) >= 5, 20)
    world.platform.faults()
    for name in QUEUES:
        books = daemon.drained(destination=name)
        assert (books["dead"], books["shed"]) == (0, 0)
    for decision_id in world.decisions:
        statuses = [_status_of(event) for event in world.platform.run(decision_id)["events"]]
        assert len(statuses) == len(set(statuses)) == 20
        assert statuses == sorted(statuses)
    for action_id in world.actions:
        said = {json.dumps(e["said"]["result"]) for e in world.platform.run(action_id)["events"] if "said" in e}
        assert len(said) == 20


# -- two destinations of one platform ------------------------------------------------------------------------------------


def two(world, other, east, west, *, start=True):
    """A daemon with two destinations for Decision OS, each an account of its own."""
    common = {"platform": "decisionos", "api_key": {"env": "KEY"}, "agent_id": SANDBOX_AGENT}
    return world.daemon(
        start=start,
        **{
            "destinations.east": common | {"base_url": f"{world.platform.url}/decisionos"} | east,
            "destinations.west": common | {"base_url": f"{other.url}/decisionos"} | west,
        },
    )


@pytest.fixture
def other(world):
    """Another account at the same platforms."""
    platform = Platform(FACES)
    world.on_exit(platform.close)
    return platform


def _contexts(world, platform):
    return [one["sent"]["context"] for one in ledger_of(world, platform=platform)]


def test_two_of_one_platform_that_overlap_are_an_error(world, other):
    """Section 2: two destinations of one platform that take the same records are a configuration error that names both."""
    daemon = two(world, other, {}, {}, start=False)
    shown = world.cli("--config", str(daemon.config), "run", KEY=KEY)
    assert shown.returncode == 78
    assert "[destinations.east] and [destinations.west] are both decisionos" in shown.stderr


def test_agents_split_two_of_one_platform(world, other):
    """Section 2: tables of agents say whose records go to which of two destinations, and under which id."""
    daemon = two(world, other, {"agents": {"east-*": SANDBOX_AGENT}}, {"agents": {"west-*": SANDBOX_AGENT}})
    with Frames(daemon) as client:
        answer = client.ask([decision(name, agent_id=name) for name in ("east-1", "west-1", "east-2", "north-1")])
    assert [one["index"] for one in answer["rejected"]] == [3]
    assert "no destination takes decision of agent 'north-1'" in answer["rejected"][0]["error"]
    assert daemon.drained(destination="east")["delivered"] == 2
    assert daemon.drained(destination="west")["delivered"] == 1
    assert sorted(_contexts(world, world.platform)) == ["east-1", "east-2"]  # two agents, two lanes
    assert _contexts(world, other) == ["west-1"]
    assert {one["sent"]["agentId"] for one in ledger_of(world)} == {SANDBOX_AGENT}


def test_a_copy_goes_to_both_and_each_knows_its_own_id(world, other):
    """Section 2: with `copy` both get the record, each on its own queue, and a snapshot carries each one's id for the decision."""
    daemon = two(world, other, {}, {"copy": True})
    other.faults("down,face=decisionos")
    hand_in(
        daemon,
        [decision("Both", decision_id="d"), {"kind": "snapshot", "decision_id": "d", "snapshot": {"a": 1}}],
    )
    assert daemon.drained(destination="east")["delivered"] == 2
    assert daemon.balanced("west")["queued"] == 2
    other.faults()
    assert daemon.drained(destination="west")["delivered"] == 2
    (east,), (west,) = ledger_of(world), ledger_of(world, platform=other)
    assert east["id"] != west["id"]
    assert east["sent"] == west["sent"]
    assert [event["decisionId"] for event in east["events"]] == [east["id"]]
    assert [event["decisionId"] for event in west["events"]] == [west["id"]]


def test_to_picks_destinations(world, other):
    """Section 2: `to` names the destinations of a record among those that take it; a wrong name is refused with the right ones."""
    daemon = two(world, other, {}, {"copy": True})
    with Frames(daemon) as client:
        answer = client.ask(
            [
                decision("East", to="east"),
                decision("West", to=["west"]),
                decision("All", to=["west", "east"]),
                decision("None", to="north"),
                decision("Wrong", to="agentos"),
            ]
        )
    errors = {one["index"]: one["error"] for one in answer["rejected"]}
    assert "no destination 'north'; configured: agentos, east, west" in errors[3]
    assert "agentos does not take decision" in errors[4]
    daemon.drained(destination="east")
    daemon.drained(destination="west")
    assert _contexts(world, world.platform) == ["East", "All"]
    assert _contexts(world, other) == ["West", "All"]
