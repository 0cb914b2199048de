"""Gates end to end: the real daemon, asked over its socket, against platforms that answer, hang, cut the line and go away."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness import AGENT, Frames, http_call, wait_for

FACES = ("agentos", "aegis", "ascend", "decidefyi")
YES = {"decision": "yes", "verdict": "APPROVED", "reason_code": "ALL", "action": "approve_discount"}
SPEND = {"amount": 5, "currency": "USD", "reason": "office supplies"}
INTENTS = "/v1/intents"


def rulebook(**outcome):
    """What decide.fyi is asked: a rulebook of one outcome."""
    rule = {
        "rule_id": "all",
        "condition": {"field": "discount", "operator": "gte", "value": 0},
        "outcome": YES | outcome,
    }
    book = {
        "schema_version": "rulebook_v1", "rulebook_id": "discounts", "version": "1",
        "input_schema": {"required": ["discount"], "properties": {"discount": {"type": "number"}}},
        "rules": [rule], "default_outcome": YES,
    }  # fmt: skip
    context = {"inputs": {"discount": 5}, "target_system": "crm", "requested_action": "approve_discount"}
    return {"mode": "rulebook", "rulebook": book, "context": context}


def four(world, *, start=True, fail_mode="closed", **sections):
    """A daemon with a destination for each face."""
    agents = {"agentos": AGENT, "aegis": AGENT, "ascend": "billing-bot"}
    destinations = {
        f"destinations.{name}": {
            "platform": name, "base_url": f"{world.platform.url}/{name}", "api_key": {"env": "KEY"},
            "fail_mode": fail_mode, **({"agent_id": agents[name]} if name in agents else {}),
        }
        for name in FACES
    }  # fmt: skip
    return world.daemon(start=start, **({"intake": {"reference_wait": "300ms"}} | sections | destinations))


def ask(daemon, gate, request, status=200, **fields):
    found, answer = http_call(
        daemon.socket, "POST", "/v1/gate", json.dumps({"gate": gate, "request": request, **fields}).encode()
    )
    assert found == status, answer
    return answer


def look(daemon, gate_id, wait=0):
    status, found = http_call(daemon.socket, "GET", f"/v1/gates/{gate_id}?wait={wait}")
    assert status == 200, found
    return found


def listed(daemon, state="all"):
    return http_call(daemon.socket, "GET", f"/v1/gates?state={state}")[1]


def under_way(daemon, step):
    """The one gate that has come to this step."""
    return wait_for(
        lambda: next((g for g in listed(daemon, "open") if g["step"] == step), None), what=lambda: listed(daemon)
    )


def posted(world, path=INTENTS):
    """How often the platform was asked to do it."""
    return sum(1 for line in world.platform.requests() if line.method == "POST" and line.path.endswith(path))


def throw(world, *switches):
    for switch in switches:
        world.platform.ask(lambda switch=switch: world.platform.sandbox.throw(switch))


def approve(world, intent_id):
    """A person decides in the sandbox."""
    answer = world.platform.ask(lambda: world.platform.sandbox._emulation.act("aegis", intent_id, "approve"))
    assert answer.status == 200, answer


def cli(world, daemon, *arguments):
    done = world.cli("gates", *arguments, "--socket", daemon.socket)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Asking:
    """A gate that is asked in the background."""

    def __init__(self, *arguments, **fields):
        self._pool = ThreadPoolExecutor(1)
        self._future = self._pool.submit(ask, *arguments, **fields)

    def answer(self):
        try:
            return self._future.result(30)
        finally:
            self._pool.shutdown()

    def lost(self):
        """The daemon was killed meanwhile."""
        with pytest.raises(OSError):
            self.answer()


def test_every_verdict(world):
    """§4: allow, deny, review, pending, unavailable; `proceed` with the first alone."""
    daemon = four(world)
    throw(world, "aegis.decision_delay=50ms")
    heard = [
        ask(daemon, "decide", rulebook()),
        ask(daemon, "action", {"action_type": "data_access", "resource": "invoices"}),
        ask(daemon, "intent", SPEND),
        ask(daemon, "intent", SPEND | {"amount": 500_000}),
        ask(daemon, "decide", {"question": "May I?"}),
    ]
    throw(world, "aegis.decision_delay=1h")
    heard.append(ask(daemon, "intent", SPEND, deadline=0.7))
    world.platform.faults("status=401,path=/v1/intents,count=1")
    heard.append(ask(daemon, "intent", SPEND))
    words = ["allow", "allow", "allow", "deny", "review", "pending", "unavailable"]
    assert [h["verdict"] for h in heard] == words
    assert [h["proceed"] for h in heard] == [word == "allow" for word in words]
    assert [h["final"] for h in heard] == [word != "pending" for word in words]
    gates = daemon.books("aegis")["gates"]
    assert {
        "open": 1,
        "allow": 1,
        "deny": 1,
        "pending": 1,
        "unavailable": 1,
        "circuit": "closed",
    }.items() <= gates.items()
    metrics = http_call(daemon.socket, "GET", "/metrics")[1].decode()
    assert 'agentd_gates_total{destination="aegis",gate="intent",verdict="deny"} 1.0' in metrics
    assert 'agentd_gate_seconds_count{destination="decidefyi",gate="decide"} 2.0' in metrics


def test_bad_questions_are_refused_with_the_reason(world):
    """§4: 422 names the field, 409 the key; nothing of it is on record or at the platform."""
    daemon = four(world)
    for fields, code, words in (
        ({"gate": "intent", "request": {"amount": 5}}, "malformed", "$.request.currency"),
        ({"gate": "intent", "request": SPEND, "dead": 1}, "malformed", "$.dead: unknown field"),
        ({"gate": "nod", "request": {}}, "unrouted", "$.gate"),
        ({"gate": "intent", "request": SPEND, "to": "nowhere"}, "unrouted", "$.to"),
    ):
        error = ask(daemon, status=422, **fields)["error"]
        assert (error["code"], words in error["message"]) == (code, True), error
    ask(daemon, "intent", SPEND, key="k")
    assert ask(daemon, "intent", SPEND | {"amount": 6}, status=409, key="k")["error"]["code"] == "gate_key_conflict"
    assert (len(listed(daemon)), posted(world)) == (1, 1)


def test_fifty_callers_under_one_key_act_once(world):
    """§4: callers at the same time share one; later ones get the recorded verdict, also from the next daemon."""
    daemon = four(world)
    throw(world, "aegis.decision_delay=200ms")
    with ThreadPoolExecutor(50) as pool:
        heard = [
            each.result(30) for each in [pool.submit(ask, daemon, "intent", SPEND, key="order-7") for _ in range(50)]
        ]
    assert {h["gate_id"] for h in heard} == {heard[0]["gate_id"]}
    assert all(h["proceed"] for h in heard)
    assert sum("repeated" not in h for h in heard) == 1
    daemon.kill()
    daemon.start()
    again = ask(daemon, "intent", SPEND, key="order-7")
    assert (again["verdict"], again["repeated"], posted(world)) == ("allow", True, 1)


def test_killed_before_it_was_sent_it_was_never_sent(world):
    """§4: a gate waits for its run; killed there it is `unavailable`, has not acted, and may be asked again under its key."""
    daemon = four(world)
    world.platform.faults("status=503,face=agentos")
    with Frames(daemon) as client:
        client.deliver(world.ledger, [world.ledger.start("r")])
    question = {"prompt": "May I?"}
    asking = Asking(daemon, "human_input", question, run_id="r", key="k", deadline=30)
    gate_id = under_way(daemon, "asked")["gate_id"]
    daemon.kill()
    asking.lost()
    daemon.start()
    found = look(daemon, gate_id)
    assert (found["verdict"], found["final"], found["acted"]) == ("unavailable", True, False)
    assert not any("human-input" in line.path for line in world.platform.requests())
    world.platform.faults()
    again = Asking(daemon, "human_input", question, run_id="r", key="k", deadline=3)
    wait_for(
        lambda: any("human-input" in line.path for line in world.platform.requests()) or look(daemon, gate_id)["tries"]
    )
    assert again.answer()["gate_id"] == gate_id
    daemon.expected |= {"quarantine"}


@pytest.mark.parametrize("fault", ["hang,path=/v1/intents", "latency=30s,path=/v1/intents"])
def test_killed_after_it_was_sent_nobody_knows(world, fault):
    """§4: `unavailable` until `agentd gates resolve`; the key sends no second one, whether the first had acted or not."""
    daemon = four(world)
    world.platform.faults(fault)
    asking = Asking(daemon, "intent", SPEND, key="k", deadline=30)
    gate_id = under_way(daemon, "sending")["gate_id"]
    wait_for(lambda: world.platform.runs() or "hang" in fault)
    daemon.kill()
    asking.lost()
    world.platform.faults()
    daemon.start()
    again = ask(daemon, "intent", SPEND, key="k")
    assert (again["verdict"], again["proceed"], again["repeated"]) == ("unavailable", False, True)
    assert "may have acted" in cli(world, daemon, "list")
    assert "allow" in cli(world, daemon, "resolve", gate_id, "allow", "--platform-id", "int_1", "--note", "seen there")
    daemon.kill()
    daemon.start()
    again = ask(daemon, "intent", SPEND, key="k")
    assert (again["verdict"], again["proceed"], again["platform_id"]) == ("allow", True, "int_1")
    assert "seen there" in cli(world, daemon, "show", gate_id)
    assert len(world.platform.runs()) == (0 if "hang" in fault else 1)


def test_a_lost_answer_is_never_repeated_where_it_could_act_twice(world):
    """§4: the platform took it and the line was cut: one intent there, `unavailable` here, also under fail_mode "open"."""
    daemon = four(world, fail_mode="open")
    world.platform.faults("cut,path=/v1/intents,count=1")
    heard = ask(daemon, "intent", SPEND, key="k")
    assert (heard["verdict"], heard["proceed"]) == ("unavailable", False)
    assert ask(daemon, "intent", SPEND, key="k")["repeated"]
    assert len(world.platform.runs()) == 1


def test_pending_is_followed_over_a_restart_until_a_person_approves(world):
    """§4: without its agent; `?wait=` hears the decision as it comes."""
    daemon = four(world)
    throw(world, "aegis.decision_delay=1h")
    heard = ask(daemon, "intent", SPEND, deadline=0.7, key="k")
    assert (heard["verdict"], heard["final"]) == ("pending", False)
    daemon.kill()
    daemon.start()
    assert look(daemon, heard["gate_id"])["verdict"] == "pending"
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(look, daemon, heard["gate_id"], 20)
        approve(world, heard["platform_id"])
        found = waiting.result(30)
    assert (found["verdict"], found["proceed"], found["final"]) == ("allow", True, True)
    assert ask(daemon, "intent", SPEND, key="k")["proceed"]
    assert posted(world) == 1


def test_the_deadline_holds(world):
    """§4: an answer that does not come is `unavailable` when the deadline is over."""
    daemon = four(world)
    world.platform.faults("hang,path=/v1/intents")
    begun = time.monotonic()
    heard = ask(daemon, "intent", SPEND, deadline=0.5)
    assert (heard["verdict"], heard["final"]) == ("unavailable", True)
    assert 0.4 < time.monotonic() - begun < 3


def test_a_platform_that_is_away(world):
    """§4: fail_mode "open" covers what can't be reached, intents never; after five the circuit is open; then it closes."""
    daemon = four(world, fail_mode="open", retry={"initial": "200ms", "max": "500ms"})
    world.platform.down()
    heard = [ask(daemon, "action", {"action_type": "data_access", "resource": "invoices"}) for _ in range(5)]
    assert {(h["verdict"], h["proceed"], h["fail_open"]) for h in heard} == {("unavailable", True, True)}
    assert daemon.books("ascend")["gates"]["circuit"] == "open"
    intent = ask(daemon, "intent", SPEND)
    assert (intent["verdict"], intent["proceed"], "fail_open" in intent) == ("unavailable", False, False)
    world.platform.up()
    wait_for(
        lambda: ask(daemon, "action", {"action_type": "data_access", "resource": "invoices"})["verdict"] == "allow"
    )
    assert daemon.books("ascend")["gates"]["circuit"] == "closed"


def test_later_records_name_what_a_gate_made(world):
    """§4: by the gate's own id; what no platform knows is dead, cause `gate_unavailable`."""
    daemon = four(world)
    good = ask(daemon, "action", {"action_type": "data_access", "resource": "invoices", "action_id": "mine"})
    world.platform.faults("status=401,face=ascend,count=1")
    bad = ask(daemon, "action", {"action_type": "data_access", "resource": "invoices"})
    assert (good["id"], good["proceed"], bad["verdict"]) == ("mine", True, "unavailable")
    done = [{"kind": "action.completed", "action_id": each["id"], "result": {"rows": 3}} for each in (good, bad)]
    with Frames(daemon) as client:
        client.ask(done)
    letters = wait_for(daemon.dead_letters)
    assert [(letter["cause"], letter["record"]["action_id"]) for letter in letters] == [("gate_unavailable", bad["id"])]
    wait_for(lambda: daemon.books("ascend")["delivered"] == 1)
    assert any(good["platform_id"] in line.path for line in world.platform.requests())


def test_the_verdict_is_an_event_of_the_run(world):
    """§4: `gate.<name>`, in order with the run's own events."""
    daemon = four(world)
    with Frames(daemon) as client:
        client.deliver(world.ledger, [world.ledger.start("r"), world.ledger.event("r")])
        heard = ask(daemon, "action", {"action_type": "data_access", "resource": "invoices"}, run_id="r")
        client.deliver(world.ledger, [world.ledger.event("r"), world.ledger.end("r")])
    assert heard["proceed"]
    wait_for(lambda: (world.platform.run("r") or {}).get("status") == "completed")
    events = [e for e in world.platform.run("r")["events"] if e["type"] == "gate.action"]
    assert [(e["level"], e["payload"]["verdict"], e["payload"]["gate_id"]) for e in events] == [
        ("warn", "allow", heard["gate_id"])
    ]


def test_sigterm_lets_a_gate_finish_and_says_what_is_certain_of_the_rest(world):
    """Promise 7: answers that come within `drain_timeout` are heard; then the daemon ends with 0 and nothing hangs."""
    daemon = four(world, shutdown={"drain_timeout": "2s"})
    throw(world, "aegis.decision_delay=0s")
    world.platform.faults("latency=700ms,path=/v1/intents", "hang,face=decidefyi,path=/api/decide")
    slow, hung = Asking(daemon, "intent", SPEND), Asking(daemon, "decide", rulebook(), deadline=60, key="k")
    wait_for(lambda: len([g for g in listed(daemon, "open") if g["step"] == "sending"]) == 2)
    assert daemon.stop(15) == 0
    assert slow.answer()["verdict"] in {"allow", "pending"}
    answer = hung.answer()
    assert (answer["verdict"], answer["proceed"]) == ("unavailable", False)
    world.platform.faults()
    daemon.start()
    assert ask(daemon, "decide", rulebook(), key="k")["repeated"]


def test_sigterm_does_not_wait_for_people(world):
    """Promise 7: who waits for what is pending hears so at once, and the next start follows it."""
    daemon = four(world, shutdown={"drain_timeout": "25s"})
    throw(world, "aegis.decision_delay=1h")
    asking = Asking(daemon, "intent", SPEND, deadline=60)
    gate_id = under_way(daemon, "pending")["gate_id"]
    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look, daemon, gate_id, 60)
        wait_for(lambda: daemon.status()["intake"]["connections"] == 3, what=daemon.status)  # the two and this one
        begun = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - begun < 5
        heard, seen = asking.answer(), looking.result(30)
    assert (heard["verdict"], heard["final"], heard["gate_id"]) == ("pending", False, gate_id)
    assert (seen["verdict"], seen["final"]) == ("pending", False)
    daemon.start()
    approve(world, heard["platform_id"])
    assert look(daemon, gate_id, 20)["verdict"] == "allow"
    assert posted(world) == 1


def waiting_for_a_person(world, daemon, **fields):
    """The answer to a question that the platform holds back for half a minute, and the gate."""
    throw(world, "agentos.human_input_poll=30")
    with Frames(daemon) as client:
        client.deliver(world.ledger, [world.ledger.start("r")])
    heard = ask(daemon, "human_input", {"prompt": "May I?"}, run_id="r", **fields)
    return heard, look(daemon, heard["gate_id"])


def reply(world, text):
    """A person answers in the sandbox."""
    (asked,) = world.platform.run("r")["waited_for"]
    answer = world.platform.ask(lambda: world.platform.sandbox._emulation.act("agentos", asked["id"], "answer", text))
    assert answer.status == 200, answer


def test_a_long_poll_outlives_the_agents_deadline(world):
    """§4: `pending` at the deadline; the person's answer comes on the same connection and is recorded."""
    daemon = four(world)
    heard, seen = waiting_for_a_person(world, daemon, deadline=1)
    assert (heard["verdict"], heard["proceed"], heard["final"], seen["step"]) == ("pending", False, False, "sending")
    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look, daemon, heard["gate_id"], 20)
        reply(world, "go on")
        found = looking.result(30)
    assert (found["verdict"], found["proceed"], found["response"]["data"]["input"]) == ("allow", True, "go on")
    (asked,) = world.platform.run("r")["waited_for"]
    assert asked["posts"] == 1


def test_killed_during_a_long_poll_nobody_knows(world):
    """§4: the question may be on somebody's screen, and its name is not known: unavailable, and not asked again."""
    daemon = four(world)
    heard, _ = waiting_for_a_person(world, daemon, deadline=1, key="k")
    daemon.kill()
    daemon.start()
    again = ask(daemon, "human_input", {"prompt": "May I?"}, run_id="r", key="k")
    assert (again["verdict"], again["final"], again["repeated"]) == ("unavailable", True, True)
    assert (look(daemon, heard["gate_id"])["acted"], len(world.platform.run("r")["waited_for"])) == (True, 1)


def test_others_see_nothing_of_a_gate(world):
    """§5: unknown ids are 404; only admins resolve, and only what has no last word."""
    daemon = four(world)
    heard = ask(daemon, "decide", rulebook())
    assert http_call(daemon.socket, "GET", "/v1/gates/nonesuch")[0] == 404
    body = b'{"verdict": "deny"}'
    assert http_call(daemon.socket, "POST", "/v1/gates/nonesuch/resolve", body)[0] == 404
    status, answer = http_call(daemon.socket, "POST", f"/v1/gates/{heard['gate_id']}/resolve", body)
    assert (status, answer["error"]["code"]) == (409, "resolved")
    gate = f"/v1/gates/{heard['gate_id']}"
    for bad in (
        "/v1/gates?state=some",
        "/v1/gates?bogus=1",
        "/v1/gates?limit=%D9%A3",
        f"{gate}?wate=1",
        f"{gate}?wait=%D9%A3",
    ):
        status, answer = http_call(daemon.socket, "GET", bad)
        assert (status, answer["error"]["code"]) == (400, "bad_request")
    assert "request" not in listed(daemon)[0]
    assert json.loads(cli(world, daemon, "show", heard["gate_id"], "--json"))["request"] == rulebook()
