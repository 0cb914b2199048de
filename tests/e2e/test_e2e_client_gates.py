"""Gates from the agent's hands to the platform and back: both clients, the real daemon, and people who take their time."""

import asyncio
import signal
import subprocess
import sys
import threading
import urllib.request
from functools import partial
from urllib.parse import urlencode

import pytest
from harness import AGENT, clean_environment, http_call, wait_for

from agentd import AsyncClient, Client, GateDenied, GateKeyConflict, GateRefused, GateTimeout, gated

pytestmark = pytest.mark.usefixtures("agentd_live")
FACES = ("agentos", "aegis", "ascend", "decidefyi", "decisionos")
LOCAL = {"agentos": AGENT, "aegis": "6f1c9d1e-0000-4000-8000-000000000001", "ascend": "billing-bot"}
HUMAN_INPUT = "/api/ingest/v1/human-input/request"


def outcome(decision):
    return {"decision": decision, "verdict": "SAID", "reason_code": f"RULE_{decision.upper()}", "action": "go_on"}


RULEBOOK = {
    "schema_version": "rulebook_v1",
    "rulebook_id": "discounts",
    "version": "1",
    "input_schema": {"required": ["discount"], "properties": {"discount": {"type": "number"}}},
    "rules": [
        {
            "rule_id": "small",
            "condition": {"field": "discount", "operator": "lte", "value": 10},
            "outcome": outcome("yes"),
        }
    ],
    "default_outcome": outcome("no"),
}


def wish(discount):
    return {"mode": "rulebook", "rulebook": RULEBOOK, "context": {"inputs": {"discount": discount}}}


@pytest.fixture
def daemon(world):
    destinations = {
        f"destinations.{name}": {
            "platform": name,
            "base_url": f"{world.platform.url}/{name}",
            "api_key": {"env": "KEY"},
            **({"agent_id": LOCAL[name]} if name in LOCAL else {}),
        }
        for name in FACES
        if name != "decisionos"
    }
    return world.daemon(intake={"reference_wait": "1s"}, shutdown={"drain_timeout": "1s"}, **destinations)


@pytest.fixture
def client(daemon):
    with Client(socket=daemon.socket) as client:
        yield client


def rows(world, face):
    """What the platform holds, oldest first."""
    return [row for row in reversed(world.platform.runs()) if row["face"] == face]


def posts(world, path):
    return [line for line in world.platform.requests() if line.method == "POST" and line.path == path]


def press(world, face, item_id, verb, **said):
    """A person presses a button of the sandbox's page."""
    url = f"{world.platform.url}/_sandbox/act/{face}/{item_id}/{verb}?{urlencode(said)}"
    with urllib.request.urlopen(urllib.request.Request(url, b"", method="POST"), timeout=10) as answer:
        assert answer.status in {200, 303}


class Person:
    """Whoever sits before AgentOS's page. A question is held back for a moment only, unless `holds` says otherwise."""

    def __init__(self, world):
        self._world = world
        self.holds(0.1)

    def holds(self, seconds):
        """How long the platform keeps a question's connection waiting for a person."""
        self._world.platform.ask(lambda: self._world.platform.sandbox.throw(f"agentos.human_input_poll={seconds}"))

    @property
    def asked(self):
        """Every question that was ever asked, oldest first."""
        return [
            asked for row in rows(self._world, "agentos") for asked in self._world.platform.run(row["id"])["waited_for"]
        ]

    def _is_asked(self):
        return next((asked["id"] for asked in self.asked if asked["status"] == "pending"), None)

    def replies(self, text):
        """As soon as there is a question."""
        press(self._world, "agentos", wait_for(self._is_asked), "answer", input=text)

    def cancels(self):
        """The same, but does not want to."""
        press(self._world, "agentos", wait_for(self._is_asked), "cancel")


@pytest.fixture
def person(world):
    return Person(world)


def test_decide_act_and_tell(world, client):
    """A decision is asked for, its execution and outcome are delivered under the platform's own id, a no is a no."""
    with client.start_run(run_id="r"):
        verdict = client.decide(**wish(5))
        assert verdict.require().allowed
        assert verdict.platform_id.startswith("dec_")
        assert verdict.response["reason_code"] == "RULE_YES"
        client.record_execution(verdict, execution_status="executed", action_taken="go_on")
        client.record_outcome(verdict.id, outcome_status="succeeded")
        denied = client.decide(**wish(50))
        assert denied.denied
        with pytest.raises(GateDenied, match="RULE_NO"):
            denied.require()
    assert client.flush(15, until="delivered").ok
    paths = {line.path for line in world.platform.requests() if line.face == "decidefyi"}
    decision = f"/api/decision/{verdict.platform_id}"
    assert paths == {"/api/decide", f"{decision}/execution", f"{decision}/outcome"}
    events = world.platform.run("r")["events"]
    assert [event["payload"]["verdict"] for event in events if event["type"] == "gate.decide"] == ["allow", "deny"]


def test_an_action_and_its_end(world, client):
    """execute_if_authorized and the decorator: allowed, done, completed; failed is failed; denied is not done."""

    @gated("action", action_type="query", resource=lambda table: table, client=client)
    def read(table):
        return [table]

    assert read("invoices") == ["invoices"]
    with pytest.raises(ZeroDivisionError):
        client.execute_if_authorized("query", "db", lambda: 1 // 0)
    risks = {"pii_involved": True, "external_transfer": True}
    with pytest.raises(GateDenied, match="personal data"):
        client.execute_if_authorized("query", "db", lambda: 1, risk_indicators=risks)
    assert client.flush(15, until="delivered").ok
    done, failed, _denied = rows(world, "ascend")
    paths = [line.path for line in world.platform.requests() if line.path.startswith("/api/agent-action/")]
    ends = [f"/api/agent-action/{done['id']}/complete", f"/api/agent-action/{failed['id']}/fail"]
    assert sorted(paths) == sorted(ends)


def test_a_person_approves_an_action_while_the_agent_waits(world, client):
    """evaluate_action waits for the decision; what nobody decides in time is pending and can be waited for later."""
    found = {}
    thread = threading.Thread(
        target=lambda: found.update(v=client.evaluate_action("query", "db", require_approval=True, timeout=30))
    )
    thread.start()
    (row,) = wait_for(lambda: rows(world, "ascend"))
    press(world, "ascend", row["id"], "approve")
    thread.join(30)
    assert found["v"].allowed
    early = client.evaluate_action("query", "db", require_approval=True, timeout=0.3)
    assert (early.pending, early.final, early.proceed) == (True, False, False)
    with pytest.raises(GateTimeout):
        client.wait_for_decision(early, timeout=0.2)
    press(world, "ascend", rows(world, "ascend")[1]["id"], "deny")
    assert client.wait_for_decision(early.gate_id, timeout=30).denied


def test_leave_to_spend(world, client):
    """An intent that is parked for a person is read back as approved; nothing is asked twice."""
    world.platform.ask(lambda: world.platform.sandbox.throw("aegis.park=true"))
    world.platform.ask(lambda: world.platform.sandbox.throw("aegis.decision_delay=0"))
    asked = client.submit_intent(12500, "INR", "invoice 7", merchant="AWS", deadline=1)
    assert not asked.final
    assert not asked.proceed
    (row,) = rows(world, "aegis")
    press(world, "aegis", row["id"], "approve")
    verdict = client.wait_for_decision(asked, timeout=30)
    assert verdict.proceed
    assert verdict.id == asked.id
    assert len(posts(world, "/v1/intents")) == 1


def test_a_report_upon_a_verdict_that_no_agentd_gave(world, daemon, client, tmp_path):
    """§4: dead, cause `gate_unavailable`, by the verdict and by its id; the platform never hears an id that we made up."""
    lonely = Client(socket=str(tmp_path / "none"))
    asked, decided = lonely.evaluate_action("query", "db"), lonely.decide(**wish(5))
    lonely.close(0)
    assert (asked.verdict, decided.verdict) == ("unavailable", "unavailable")
    client.fail_action(asked, "not allowed")
    client.record_execution(decided.id, execution_status="executed", action_taken="went on all the same")
    assert client.flush(15)
    letters = wait_for(lambda: len(found := daemon.dead_letters()) == 2 and found)
    assert {letter["cause"] for letter in letters} == {"gate_unavailable"}
    assert [line.path for line in world.platform.requests() if line.face in {"ascend", "decidefyi"}] == []


async def test_the_async_client(world, daemon, person):
    """Many gates at once on one loop, in a run that has only just begun; the decorator; a person who replies."""
    async with AsyncClient(socket=daemon.socket) as client:

        @gated("decide", wish, client=client, key=lambda discount: f"d-{discount}")
        async def give(discount):
            await asyncio.sleep(0)
            return discount

        async with client.start_run(run_id="r"):
            answer = asyncio.create_task(client.request_human_input("Go?", context={"n": 1}, timeout=30))
            verdicts = await asyncio.gather(*(client.gate("decide", wish(n)) for n in range(20)))
            assert [verdict.allowed for verdict in verdicts] == [n <= 10 for n in range(20)]
            assert await asyncio.gather(*(give(n) for n in range(5))) == [0, 1, 2, 3, 4]
            assert (await client.gate("decide", wish(3), key="d-3")).repeated
            await asyncio.to_thread(person.replies, "go")
            assert await answer == "go"
        assert (await client.flush(15, until="delivered")).ok
    assert len(posts(world, "/api/decide")) == 25, "the same key acts once"
    (asked,) = person.asked
    assert (asked["run_id"], asked["what"], asked["context"]) == (world.platform.run("r")["id"], "Go?", {"n": 1})


@pytest.mark.parametrize("seconds", [0.1, 30])
def test_nobody_answers_in_time(daemon, client, person, seconds):
    """A TimeoutError, whether the platform holds the question back or is asked again: its own word comes before the deadline."""
    person.holds(seconds)
    with client.start_run():
        for _ in range(2):
            with pytest.raises(GateTimeout) as caught:
                client.request_human_input("Go?", timeout=1)
            assert (caught.value.verdict.verdict, caught.value.verdict.final) == ("deny", True)
    assert [asked["status"] for asked in person.asked] == ["timeout", "timeout"]
    assert gates_of(daemon, "unavailable") == []


@pytest.mark.slow
def test_a_platform_that_says_nothing_at_all_is_no_answer_in_time(world, client):
    """A TimeoutError too: it has the question, and whoever waits for it longer may still hear of it."""
    world.platform.faults(f"hang,path={HUMAN_INPUT}")
    with client.start_run(), pytest.raises(GateTimeout) as caught:
        client.request_human_input("Go?", timeout=0.3)
    assert (caught.value.verdict.verdict, caught.value.verdict.final) == ("pending", False)
    world.platform.faults()


def test_a_question_that_is_cancelled(client, person):
    """Cancelled is a PermissionError; a question without a run is refused by name."""
    with client.start_run():
        thread = threading.Thread(target=person.cancels)
        thread.start()
        with pytest.raises(PermissionError, match="cancelled"):
            client.request_human_input("Go?", timeout=30)
        thread.join()
    with pytest.raises(GateRefused) as caught:
        client.request_human_input("Go?")
    assert caught.value.field == "$.request.run_id"


@pytest.mark.parametrize("way", ["kill", "stop"])
def test_the_daemon_goes_while_a_person_thinks(daemon, client, person, way):
    """kill -9 and an orderly restart: the agent goes on waiting, the person is asked once, and the answer arrives."""
    heard = []
    with client.start_run() as run:
        ask = partial(client.request_human_input, "Go?", timeout=60, run_id=run.run_id)
        agent = threading.Thread(target=lambda: heard.append(ask()))
        agent.start()
        wait_for(lambda: [gate for gate in gates_of(daemon, "pending") if gate["step"] == "pending"])
        getattr(daemon, way)()
        daemon.start()
        person.replies("go")
        agent.join(40)
    assert heard == ["go"]
    assert len(person.asked) == 1


def gates_of(daemon, word):
    """What is on record with this verdict."""
    status, gates = http_call(daemon.socket, "GET", "/v1/gates")
    assert status == 200
    return [gate for gate in gates if gate["verdict"] == word]


WAITER = """
import sys
from agentd import Client
client = Client()
with client.start_run():
    print("asking", flush=True)
    client.request_human_input("Go?", timeout=600)
"""


@pytest.mark.parametrize("seconds", [0.1, 30])
def test_an_agent_that_is_killed_while_it_waits(world, daemon, client, person, seconds):
    """agentd waits on without its agent; another process of the same user hears the answer by its gate_id."""
    person.holds(seconds)
    environment = clean_environment(world.folder, AGENTD_SOCKET=daemon.socket)
    with subprocess.Popen([sys.executable, "-c", WAITER], env=environment, stdout=subprocess.PIPE) as agent:
        assert agent.stdout.readline() == b"asking\n"
        (gate,) = wait_for(lambda: person.asked and gates_of(daemon, "pending"))
        agent.send_signal(signal.SIGKILL)
    person.replies("too late for you")
    verdict = client.wait(gate["gate_id"], timeout=30)
    assert verdict.allowed
    assert verdict.response["data"]["input"] == "too late for you"
    assert len(person.asked) == 1


FORK = """
import os, sys, threading
from agentd import Client
client = Client()
wish = {wish}
with client.start_run(run_id="r"):
    assert client.gate("decide", wish)
    child = os.fork()
    ids = []
    def work():
        for _ in range(5):
            verdict = client.gate("decide", wish)
            client.record_execution(verdict.require(), execution_status="executed")
            ids.append(verdict.id)
    threads = [threading.Thread(target=work) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(set(ids)) == 20, ids
    if child == 0:
        sys.exit(0 if client.flush(15) else 1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert client.flush(15, until="delivered")
sys.exit(code)
"""


def test_threads_and_forked_children(world, daemon):
    """Gates of four threads in each of two processes: every verdict is its own, every execution is delivered."""
    done = world.python(FORK.format(wish=repr(wish(5))), AGENTD_SOCKET=daemon.socket)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(posts(world, "/api/decide")) == 41
    executed = [line.path for line in world.platform.requests() if line.path.endswith("/execution")]
    wait_for(lambda: len(set(executed)) == 40, what=lambda: len(executed))


def test_one_key_acts_once(world, daemon, client):
    """The same key from two threads and after a restart: one action at the platform; another request is a conflict."""
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(client.evaluate_action("query", "db", key="k"))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    daemon.kill()
    daemon.start()
    found.append(client.evaluate_action("query", "db", key="k"))
    assert all(found)
    assert len({verdict.id for verdict in found}) == 1
    assert sum(verdict.repeated for verdict in found) == 4
    with pytest.raises(GateKeyConflict):
        client.evaluate_action("query", "another", key="k")
    assert len(rows(world, "ascend")) == 1


def test_without_daemon_and_without_platform(world, daemon, client):
    """No platform: unavailable on record, and its gate is named. No daemon: unavailable, with the cure."""
    world.platform.down()
    away = client.decide(**wish(5))
    assert (away.verdict, away.proceed) == ("unavailable", False)
    assert away.gate_id
    world.platform.up()
    wait_for(lambda: client.decide(**wish(5)).allowed)
    daemon.stop()
    gone = client.decide(**wish(5))
    assert (gone.verdict, gone.proceed, gone.gate_id) == ("unavailable", False, "")
    assert "agentd run" in gone.reason
    daemon.start()
    assert client.decide(**wish(5))
