"""Gates of both clients against a scripted daemon on a real Unix socket: what they ask, and what they make of any answer."""

import asyncio
import gc
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import warnings
from decimal import Decimal
from pathlib import Path

import pytest

from agentd import AsyncClient, Client, GateDenied, GateKeyConflict, GateRefused, GateTimeout, Verdict, gated
from agentd.client import gates as gate_rules
from agentd.wire import hello_answer

HANG = "hang"  # read the question and never answer
CUT = "cut"  # read the question and hang up


def verdict(asked, word="allow", **more):
    base = {"gate_id": "g-1", "gate": asked.get("gate", ""), "destination": "d", "verdict": word, "id": "id-1"}
    return 200, {
        **base,
        "proceed": word == "allow",
        "platform_id": "p-1",
        "reason": "r",
        "final": word != "pending",
        "response": None,
        **more,
    }


class Daemon:
    """Speaks frames (it accepts everything) and HTTP as told: `script(method, target, body)` → (status, JSON or bytes)."""

    def __init__(self, path):
        self.path = str(path)
        self.script = lambda method, target, body: verdict(body)
        self.asked, self.records, self.left = [], [], 0
        self.changed = threading.Condition()
        self._open = set()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen(256)
        self._threads = [threading.Thread(target=self._listen)]
        self._threads[0].start()

    def _listen(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._open.add(connection)
            self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
            self._threads[-1].start()

    def _serve(self, connection):
        with connection, connection.makefile("rb") as stream:
            try:
                first = stream.peek(1)[:1]
                if first == b"\0":
                    self._frames(connection, stream)
                elif first:
                    self._http(connection, stream)
            except OSError:
                pass
            finally:
                with self.changed:
                    self._open.discard(connection)
                    self.changed.notify_all()

    def _frames(self, connection, stream):
        while head := stream.read(4):
            message = json.loads(stream.read(int.from_bytes(head, "big")))
            answer = hello_answer("0.1.0", 2**24 - 1, 0)
            if "hello" not in message:
                answer = {"seq": message["seq"], "accepted": len(message["records"])}
                with self.changed:
                    self.records += message["records"]
                    self.changed.notify_all()
            data = json.dumps(answer).encode()
            connection.sendall(len(data).to_bytes(4, "big") + data)

    def _http(self, connection, stream):
        method, target, _ = stream.readline().decode().split(" ", 2)
        fields = {}
        while (line := stream.readline().strip()) != b"":
            name, _, value = line.partition(b":")
            fields[name.lower()] = value.strip()
        body = json.loads(stream.read(int(fields[b"content-length"])) or b"{}")
        with self.changed:
            self.asked.append((method, target, body))
            self.changed.notify_all()
        answer = self.script(method, target, body)
        if answer == HANG:
            stream.read(1)  # until the client goes away
            with self.changed:
                self.left += 1
                self.changed.notify_all()
        elif answer != CUT:
            status, content = answer
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            connection.sendall(b"HTTP/1.1 %d x\r\nContent-Length: %d\r\n\r\n%b" % (status, len(data), data))

    @property
    def bodies(self):
        return [body for _, _, body in self.asked]

    def wait(self, condition, timeout=10):
        with self.changed:
            assert self.changed.wait_for(condition, timeout), self.asked

    def close(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        for thread in self._threads:
            thread.join(10)
        Path(self.path).unlink()


@pytest.fixture(autouse=True)
def _live(agentd_live, monkeypatch):
    for name in ("AGENTD_DISABLED", "AGENTD_REQUIRED", "AGENTD_SOCKET"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "agentd.sock"


@pytest.fixture
def daemon(path):
    daemon = Daemon(path)
    yield daemon
    daemon.close()


@pytest.fixture
def make(path):
    made = []

    def make(kind=Client, **options):
        client = kind(socket=str(path), exit_timeout=0.1, **options)
        made.append(client)
        return client

    yield make
    for client in made:
        Client.close(client, 0)


@pytest.fixture
def client(make):
    return make()


@pytest.fixture(params=[Client, AsyncClient])
def call(request, make):
    """A gate of either client, called to its end: `call("gate", "decide", {…})`."""
    client = make(request.param)

    def call(method, *args, **kwargs):
        made = getattr(client, method)(*args, **kwargs)
        return asyncio.run(made) if request.param is AsyncClient else made

    call.client = client
    return call


# -- what is asked ---------------------------------------------------------------------------------------------------------


def test_a_gate_on_the_wire(daemon, call):
    """The body of POST /v1/gate as the contract has it, and the answer as a verdict."""
    found = call("gate", "decide", {"mode": "rulebook", "n": None}, to="fyi", deadline=2, key="k", agent_id="a")
    assert daemon.asked == [
        (
            "POST",
            "/v1/gate",
            {
                "gate": "decide",
                "deadline": pytest.approx(2.0, abs=0.1),
                "key": "k",
                "to": "fyi",
                "agent_id": "a",
                "request": {"mode": "rulebook", "n": None},
            },
        )
    ]
    assert found == Verdict("g-1", "decide", "d", "allow", True, "id-1", "p-1", "r", agent_id="a")


def test_run_span_and_agent_come_from_the_context(daemon, make):
    """A gate inside a run belongs to it, to its span and to its agent, unless the caller says otherwise."""
    client = make(agent_id="billing")
    with client.start_run(run_id="r-1", agent_id="night-shift") as run, run.start_span("s", span_id="s-1"):
        client.gate("x", {})
        client.gate("x", {}, run_id=None)
        client.gate("x", {}, run_id="other", agent_id="me")
        client.gate("x", {}, span_id=None)
    client.gate("x", {})
    with make().start_run(run_id="r-2"):
        client.gate("x", {})
    names = ("run_id", "span_id", "agent_id")
    assert [tuple(body.get(name) for name in names) for body in daemon.bodies] == [
        ("r-1", "s-1", "night-shift"),
        (None, None, "billing"),
        ("other", None, "me"),
        ("r-1", None, "night-shift"),
        (None, None, "billing"),
        ("r-2", None, None),
    ]


@pytest.mark.parametrize(
    ("method", "args", "kwargs", "gate", "request_", "deadline"),
    [
        ("decide", ("May I?",), {"options": ["a", "b"]}, "decide", {"question": "May I?", "options": ["a", "b"]}, 5),
        (
            "decide",
            (),
            {"mode": "rulebook", "rulebook": {}, "context": {"inputs": {"n": 1}}, "decision_id": "d", "deadline": 9},
            "decide",
            {"mode": "rulebook", "rulebook": {}, "context": {"inputs": {"n": 1}}, "decision_id": "d"},
            9,
        ),
        (
            "evaluate_action",
            ("transaction", "stripe"),
            {"parameters": {"amount": 1}, "resource_id": "R", "to": "asc"},
            "action",
            {"action_type": "transaction", "resource": "stripe", "parameters": {"amount": 1}, "resource_id": "R"},
            60,
        ),
        (
            "evaluate_action",
            ("query", "db"),
            {"wait_for_decision": False},
            "action",
            {"action_type": "query", "resource": "db"},
            5,
        ),
        (
            "evaluate_action",
            ("query", "db"),
            {"timeout": 7},
            "action",
            {"action_type": "query", "resource": "db"},
            7,
        ),
        (
            "submit_intent",
            (12500, "INR", "invoice 7"),
            {"merchant": "AWS", "metadata": {"po": 1}, "confidence": 0.9},
            "intent",
            {
                "amount": 12500,
                "currency": "INR",
                "reason": "invoice 7",
                "merchant": "AWS",
                "metadata": {"po": 1},
                "confidence": 0.9,
            },
            5,
        ),
        (
            "invoke",
            ("researcher", {"topic": "tea"}),
            {"start_session": True},
            "invoke",
            {"agent_id": "researcher", "input": {"topic": "tea"}, "parent_run_id": "r-1", "start_session": True},
            60,
        ),
        ("invoke", (), {"parent_run_id": "p"}, "invoke", {"parent_run_id": "p"}, 60),
        (
            "evaluate_decision",
            ("Route it",),
            {"options": ["a"], "chosen": "a", "confidence": 0.5, "decision_id": "d", "model": "m"},
            "decision",
            {
                "context": "Route it",
                "options": ["a"],
                "chosen": "a",
                "confidence": 0.5,
                "span_id": "s-1",
                "decision_id": "d",
                "model": "m",
            },
            5,
        ),
    ],
)
def test_each_platform_in_its_own_words(daemon, call, method, args, kwargs, gate, request_, deadline):
    """The readable methods ask the gate with the fields of the platform's Python SDK; what is left out is not sent."""
    with call.client.start_run(run_id="r-1") as run, run.start_span("s", span_id="s-1"):
        assert call(method, *args, key="k", **kwargs)
    (body,) = daemon.bodies
    assert body["gate"] == gate
    assert body["request"] == request_
    assert body["deadline"] == pytest.approx(deadline, abs=0.5)
    assert (body["key"], body["run_id"], body["span_id"]) == ("k", "r-1", "s-1")
    assert body.get("to") == kwargs.get("to")


@pytest.mark.parametrize(
    ("method", "args", "option", "hint"),
    [
        ("gate", ("decide", {}), {"dedline": 5}, r"'dedline'; did you mean 'deadline'\?"),
        ("gate", ("decide", {}), {"kee": "refund-17"}, r"'kee'; did you mean 'key'\?"),
        ("gate", ("decide", {}), {"timeout": 5}, r"'timeout'; did you mean 'deadline'\?"),
        ("gate", ("decide", {}), {"wait": True}, "'wait'; known: agent_id, deadline, key, run_id, span_id, to"),
        ("request_human_input", ("Go?",), {"kee": "q"}, r"'kee'; did you mean 'key'\?"),
        ("request_human_input", ("Go?",), {"deadline": 5}, r"'deadline'; did you mean 'timeout'\?"),
        ("evaluate_action", ("a", "r"), {"deadline": 5}, r"'deadline'; did you mean 'timeout'\?"),
        ("execute_if_authorized", ("a", "r", print), {"deadline": 5}, r"'deadline'; did you mean 'timeout'\?"),
    ],
)
def test_an_option_that_there_is_not(daemon, call, method, args, option, hint):
    """A slip in a deadline or a key is a TypeError with the nearest name, at the call, and nobody is asked."""
    with pytest.raises(TypeError, match=rf"takes no option {hint}"):
        call(method, *args, **option)
    assert daemon.asked == []


def test_what_may_be_the_platforms_is_left_to_the_daemon(daemon, call):
    """A field that the client does not know goes along: a newer platform may."""
    assert call("decide", "May I?", brand_new=1)
    assert daemon.bodies[0]["request"] == {"question": "May I?", "brand_new": 1}


@pytest.mark.parametrize(
    ("method", "args", "option", "error", "words"),
    [
        ("gate", ("x", {}), {"deadline": "soon"}, TypeError, "the deadline must be a number of seconds, got 'soon'"),
        ("gate", (5, {}), {}, TypeError, "the name must be a text"),
        ("evaluate_action", ("a", "r"), {"timeout": "soon"}, TypeError, "the timeout must be a number of seconds"),
        ("evaluate_action", ("a", "r"), {"timeout": 0}, ValueError, "the timeout must be seconds above 0"),
        ("request_human_input", ("?",), {"timeout": "soon"}, TypeError, "the timeout must be a number of seconds"),
        ("request_human_input", ("?",), {"timeout": float("inf")}, ValueError, "the timeout must be seconds above 0"),
        ("wait", ("g",), {"timeout": "soon"}, TypeError, "the timeout must be a number of seconds"),
        ("wait", ("g",), {"timeout": float("nan")}, ValueError, "the timeout must be a number of seconds"),
        ("wait", (5,), {}, TypeError, "the gate_id must be a text"),
        ("wait", ("",), {}, ValueError, "the gate_id must be a text"),
        ("wait_for_decision", ("\ud800",), {}, ValueError, "the gate_id must be Unicode"),
    ],
)
def test_an_argument_that_can_not_be_meant(daemon, call, method, args, option, error, words):
    """The error names the argument by the name that the call has for it; nobody is asked."""
    with pytest.raises(error, match=words):
        call(method, *args, **option)
    assert daemon.asked == []


def test_money_is_a_decimal(daemon, call):
    """An intent's amount goes as a number with the same digits; what is free JSON has them as text."""
    sent = []
    encoded = gate_rules.request

    def request(method, target, body=b""):
        sent.append(body)
        return encoded(method, target, body)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate_rules, "request", request)
        assert call("submit_intent", Decimal("12.50"), "EUR", "r", metadata={"tax": Decimal("2.50")})
    assert b'"amount":12.50,' in sent[0]
    assert daemon.bodies[0]["request"]["metadata"] == {"tax": "2.50"}
    with pytest.raises(ValueError, match="the amount must be a finite number, got NaN"):
        call("submit_intent", Decimal("nan"), "EUR", "r")


def test_payloads_are_those_of_the_call(daemon, make):
    """Any Python value is encoded when the gate is called; later changes are not seen."""
    asked = {"when": {3}, "bad": float("nan"), "path": Path("x"), "rows": [1]}

    async def later():
        pending = make(AsyncClient).gate("x", asked)
        asked["rows"].append(2)
        await pending

    asyncio.run(later())
    assert daemon.bodies[0]["request"] == {"when": [3], "bad": "NaN", "path": "x", "rows": [1]}


def test_the_runs_start_is_sent_before_the_gate_waits_for_it(daemon, client, monkeypatch):
    """The daemon waits for run.start within the deadline: it must not lie in the client's buffer meanwhile."""
    monkeypatch.setattr("agentd.client.link.GATHER_S", 30.0)

    def script(method, target, body):
        daemon.wait(lambda: any(record["kind"] == "run.start" for record in daemon.records))
        return verdict(body)

    daemon.script = script
    with client.start_run():
        assert client.gate("x", {}, deadline=20)


# -- what comes back -------------------------------------------------------------------------------------------------------


def test_without_a_daemon(call, path):
    """Unavailable at once, never raised, with the cure; AGENTD_REQUIRED has no say in it."""
    began = time.monotonic()
    found = call("gate", "decide", {}, deadline=30)
    assert time.monotonic() - began < 5
    assert (found.verdict, found.proceed, found.gate, found.final) == ("unavailable", False, "decide", True)
    assert str(path) in found.reason
    assert "agentd run" in found.reason
    with pytest.raises(GateDenied):
        found.require()


def test_a_daemon_that_listens_no_more(path, call):
    """A socket that nobody listens on is no daemon."""
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    assert "refused" in call("gate", "x", {}).reason


def test_a_restart_in_the_middle_is_asked_again(daemon, call):
    """The connection breaks after the question: the same key brings the recorded verdict."""
    daemon.script = lambda method, target, body: CUT if len(daemon.asked) < 3 else verdict(body, repeated=True)
    found = call("gate", "action", {"a": 1})
    assert found
    assert not found.repeated
    assert len({body["key"] for body in daemon.bodies}) == 1
    assert len(daemon.asked) == 3


def test_an_answer_that_stays_lost(daemon, call):
    """Until the deadline it is asked for again; then it is unavailable, and the reason says what may have happened."""
    daemon.script = lambda method, target, body: CUT
    found = call("gate", "action", {}, deadline=0.3)
    assert (found.verdict, found.proceed) == ("unavailable", False)
    assert "may have been asked" in found.reason


def test_a_daemon_that_hangs(daemon, call, monkeypatch):
    """Deadline and grace bound the wait."""
    monkeypatch.setattr(gate_rules, "GRACE_S", 0.1)
    daemon.script = lambda method, target, body: HANG
    began = time.monotonic()
    found = call("gate", "action", {}, deadline=0.1)
    assert time.monotonic() - began < 5
    assert "no answer within" in found.reason
    assert not found
    daemon.wait(lambda: daemon.left == 1)


@pytest.mark.parametrize(
    "answer", [(200, b"[]"), (200, b"\xff"), (503, {"error": {"code": "x", "message": "no room"}})]
)
def test_answers_that_are_none(daemon, call, answer):
    """Nonsense and a daemon that can't are unavailable."""
    daemon.script = lambda method, target, body: answer
    assert call("gate", "x", {}).unavailable


@pytest.mark.parametrize(("status", "kind"), [(422, GateRefused), (403, GateRefused), (409, GateKeyConflict)])
def test_refusals_raise(daemon, call, status, kind):
    """What the agent's author has to correct is raised, with the daemon's words."""
    daemon.script = lambda method, target, body: (status, {"error": {"code": "c", "message": "$.request.n: no"}})
    with pytest.raises(kind, match=r"\$\.request\.n: no"):
        call("gate", "x", {}, key="k")


def test_waiting_for_a_decision(daemon, call):
    """By verdict or by id, across a restart of the daemon, until the last word; what is final already asks nobody."""
    answers = iter([verdict({}, "pending"), CUT, verdict({}, "allow"), verdict({}, "deny")])
    daemon.script = lambda method, target, body: next(answers)
    pending = call("submit_intent", 1, "EUR", "r", deadline=0.2)
    assert pending.pending
    found = call("wait_for_decision", pending, timeout=30)
    assert found.allowed
    assert call("wait_for_decision", found) is found
    assert call("wait", "g-1", timeout=30).denied
    assert [method for method, _, _ in daemon.asked] == ["POST", "GET", "GET", "GET"]
    assert re.fullmatch(r"/v1/gates/g-1\?wait=\d+\.\d{3}", daemon.asked[-1][1])


def test_a_decision_that_does_not_come(daemon, call):
    """wait_for_decision raises a TimeoutError with the verdict; `wait` tells how it stands."""
    daemon.script = lambda method, target, body: verdict(body, "pending")
    with pytest.raises(GateTimeout) as caught:
        call("wait_for_decision", "g-1", timeout=0.05)
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.verdict.pending
    assert call("wait", "g-1", timeout=0).pending


def test_a_person_is_asked(daemon, call):
    """The answer is the text; nobody in time is a TimeoutError, cancelled a PermissionError."""
    daemon.script = lambda method, target, body: verdict(body, response={"data": {"input": "go", "request_id": "q"}})
    assert call("request_human_input", "Go?", context={"n": 1}, timeout=7.4, run_id="r") == "go"
    body = daemon.bodies[0]
    assert body["request"] == {"prompt": "Go?", "context": {"n": 1}, "timeout_seconds": 7}
    assert body["deadline"] == pytest.approx(12.4, abs=0.5), "the platform's word that nobody replied comes in time"
    daemon.script = lambda method, target, body: verdict(body, "pending")
    with pytest.raises(TimeoutError):
        call("request_human_input", "Go?", timeout=0.2)
    daemon.script = lambda method, target, body: verdict(body, "deny", response={"error": {"code": "CONFLICT"}})
    with pytest.raises(PermissionError):
        call("request_human_input", "Go?", timeout=1)


def test_later_records_name_the_gate(daemon, client):
    """A verdict stands for its id, its destination and its agent in every record that names it."""
    daemon.script = lambda method, target, body: verdict(body, destination="fyi", id="local-7")
    decided = client.gate("decide", {}, agent_id="a")
    client.record_execution(decided, execution_status="executed")
    client.record_outcome(decided, outcome_status="succeeded", to="elsewhere", agent_id="b")
    client.record_crm_sync(decided, sync_status="written")
    client.capture_snapshot(decided, {"p": 1})
    client.complete_action(decided, {"ok": True})
    client.fail_action(decided, "no")
    assert client.flush()
    names = [record.get("decision_id") or record.get("action_id") for record in daemon.records]
    assert names == ["local-7"] * 6
    assert [(record["to"], record["agent_id"]) for record in daemon.records] == [("fyi", "a"), ("elsewhere", "b")] + [
        ("fyi", "a")
    ] * 4


def test_after_close_gates_still_ask(daemon, client):
    """A gate needs nothing of the channel that `close` ended."""
    client.close()
    assert client.gate("x", {})


# -- acting upon it --------------------------------------------------------------------------------------------------------


def reports(daemon, client):
    assert Client.flush(client) if isinstance(client, Client) else asyncio.run(client.flush())
    return [record for record in daemon.records if record["kind"].startswith("action.")]


def test_execute_if_authorized(daemon, call):
    """Asks, acts, reports with the duration; the result is reported as far as the caller says."""
    assert call("execute_if_authorized", "query", "db", lambda: [1, 2], result=len, timeout=3) == [1, 2]
    (report,) = reports(daemon, call.client)
    assert (report["kind"], report["action_id"], report["result"]) == ("action.completed", "id-1", 2)
    assert report["duration_ms"] >= 0
    assert daemon.bodies[0]["deadline"] == pytest.approx(3, abs=0.5)


def test_execute_if_authorized_that_fails(daemon, call):
    """What the act raises is reported and raised again, the same object."""
    error = KeyError("k")

    def act():
        raise error

    with pytest.raises(KeyError) as caught:
        call("execute_if_authorized", "query", "db", act)
    assert caught.value is error
    (report,) = reports(daemon, call.client)
    assert (report["kind"], report["error"]) == ("action.failed", "KeyError: 'k'")


def test_execute_if_authorized_that_is_denied(daemon, call):
    """Nothing is done and nothing is reported."""
    daemon.script = lambda method, target, body: verdict(body, "deny")
    done = []
    with pytest.raises(GateDenied):
        call("execute_if_authorized", "query", "db", lambda: done.append(1))
    assert done == reports(daemon, call.client) == []


async def test_execute_if_authorized_awaits_what_it_is_given(daemon, make):
    """An async act is awaited; a cancelled one has failed."""
    async with make(AsyncClient) as client:
        assert await client.execute_if_authorized("query", "db", lambda: asyncio.sleep(0, "done")) == "done"
        begun = asyncio.Event()

        async def act():
            begun.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(client.execute_if_authorized("query", "db", act))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    kinds = [(record["kind"], record.get("error")) for record in daemon.records]
    assert kinds == [("action.completed", None), ("action.failed", "asyncio.exceptions.CancelledError")]


def test_the_decorator_asks_a_real_daemon(daemon, client):
    """`gated` goes the same way, for plain and for async functions of one client."""

    @gated("action", action_type="query", resource="db", client=client)
    def plain(n):
        return n + 1

    @gated("decide", lambda n: {"context": {"inputs": {"n": n}}}, client=client)
    async def waiting(n):
        return n + 1

    assert plain(1) == 2
    assert asyncio.run(waiting(2)) == 3
    client.flush()
    assert [body["gate"] for body in daemon.bodies] == ["action", "decide"]
    assert [record["kind"] for record in daemon.records] == ["action.completed", "execution", "outcome"]


# -- asyncio ---------------------------------------------------------------------------------------------------------------


async def test_gates_take_no_thread(daemon, make):
    """A hundred gates that last wait on the loop alone."""
    client = make(AsyncClient)
    gate = threading.Event()

    def script(method, target, body):
        gate.wait(20)
        return verdict(body)

    daemon.script = script
    before = {thread for thread in threading.enumerate() if thread not in daemon._threads}
    tasks = [asyncio.create_task(client.gate("x", {"n": n})) for n in range(100)]
    while len(daemon.asked) < 100:
        await asyncio.sleep(0.005)
    after = {thread for thread in threading.enumerate() if thread not in daemon._threads}
    gate.set()
    assert all(await asyncio.gather(*tasks))
    assert after == before


async def test_a_cancelled_gate_lets_go(daemon, make):
    """Cancelling closes the connection at once; `wait_for` and `timeout` are cancellations too."""
    client = make(AsyncClient)
    daemon.script = lambda method, target, body: HANG
    task = asyncio.create_task(client.gate("human_input", {}, deadline=3600))
    while not daemon.asked:
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.gate("x", {}, deadline=3600), 0.05)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await client.wait("g", timeout=3600)
    await asyncio.to_thread(daemon.wait, lambda: daemon.left == 3)


async def test_a_gate_that_is_not_awaited(daemon, make):
    """It can't be taken for its result: testing it raises, reading from it raises, forgetting it warns."""
    client = make(AsyncClient)
    pending = client.gate("x", {})
    with pytest.raises(TypeError, match="if await client"):
        assert pending
    with pytest.raises(AttributeError, match="await it first"):
        _ = pending.proceed
    assert repr(pending) == "<AsyncClient.gate(…), to be awaited>"
    assert await pending
    with pytest.raises(RuntimeError, match="already awaited"):
        await pending
    assert len(daemon.asked) == 1


@pytest.mark.parametrize(
    ("method", "args"),
    [("gate", ("x", {})), ("request_human_input", ("?",)), ("execute_if_authorized", ("a", "b", print))],
)
def test_a_forgotten_gate_warns_like_a_coroutine(make, method, args):
    """RuntimeWarning by the name of the method, once."""
    client = make(AsyncClient)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        getattr(client, method)(*args)
        gc.collect()
    assert [str(warning.message).split("\n")[0] for warning in caught] == [
        f"coroutine 'AsyncClient.{method}' was never awaited"
    ]


async def test_what_asyncio_does_with_coroutines(daemon, make):
    """create_task, gather, wait_for, TaskGroup, shield, and a debugger's look at the task."""
    client = make(AsyncClient)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(client.gate("x", {}))
    assert task.result()
    found = await asyncio.gather(client.gate("x", {}), asyncio.wait_for(client.gate("x", {}), 5))
    assert all(found)
    assert await asyncio.shield(client.gate("x", {}))
    pending = client.gate("x", {})
    assert asyncio.iscoroutine(pending)
    assert pending.cr_frame is not None
    task = asyncio.create_task(pending)
    assert "gate" in repr(task)
    task.get_stack()
    await task
    closed = client.gate("x", {})
    closed.close()
    with pytest.raises(RuntimeError, match=r"closed|reuse"):
        await closed


# -- threads, processes, no daemon wanted ----------------------------------------------------------------------------------


def test_gates_from_many_threads(daemon, client):
    """Each call has a connection of its own: answers are never mixed up."""
    daemon.script = lambda method, target, body: verdict(body, id=f"id-{body['request']['n']}")
    found = {}

    def work(first):
        for n in range(first, first + 25):
            found[n] = client.gate("x", {"n": n}).id

    threads = [threading.Thread(target=work, args=(first,)) for first in range(0, 200, 25)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: f"id-{n}" for n in range(200)}


def run_child(code, path, **env):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AGENTD_")}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**clean, "AGENTD_SOCKET": str(path), **env},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


FORK = """
import os, sys
from agentd import Client, gated
client = Client()
@gated("action", action_type="a", resource="r", client=client)
def act():
    child = os.fork()
    if child == 0:
        ok = client.gate("x", {"who": "child"}).proceed and client.flush().ok
        return 0 if ok else 1
    ok = client.gate("x", {"who": "parent"}).proceed
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) or (not ok)
with client.start_run():
    code = act()
sys.exit(code)
"""


def test_after_a_fork_both_sides_ask(daemon, path):
    """Parent and child each ask for themselves; the act that was forked is reported by the parent alone."""
    done = run_child(FORK, path)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(body["request"].get("who", "") for body in daemon.bodies) == ["", "child", "parent"]
    assert [record["kind"] for record in daemon.records].count("action.completed") == 1


NOOP = """
import asyncio, sys, threading
from agentd import AsyncClient, Client, GateDenied, gated
loop = asyncio.new_event_loop()
events = []
sys.addaudithook(lambda name, args: events.append((name, args)) if name.startswith(("socket.", "open", "os.", "subprocess")) else None)
client, other = Client(**{options}), AsyncClient(**{options})
ran = []
@gated("action", client=client, action_type="a", resource="r")
def act():
    ran.append(1)
def heard(make):
    try:
        return make()
    except GateDenied as denied:
        return denied.verdict
with client.start_run():
    verdict = client.gate("decide", {{"n": object()}}, key="k")
    again = loop.run_until_complete(other.gate("decide", {{}}))
    waited = client.wait(verdict.gate_id or "g", 1)
    text = heard(lambda: client.request_human_input("?"))
    heard(act)
client.close()
assert threading.enumerate() == [threading.main_thread()], threading.enumerate()
assert not events, events
loop.close()
print(verdict.verdict, verdict.proceed, verdict.disabled, again.verdict, waited.verdict, bool(verdict.id), text == "", len(ran))
print(verdict.reason)
"""


@pytest.mark.parametrize(
    ("options", "env", "words"),
    [
        ({"disabled": True}, {}, "allow True True allow allow True True 1"),
        ({}, {"AGENTD_DISABLED": "allow"}, "allow True True allow allow True True 1"),
        ({}, {"AGENTD_DISABLED": "1"}, "unavailable False True unavailable unavailable True False 0"),
        ({"disabled": True}, {"AGENTD_DISABLED": "1"}, "allow True True allow allow True True 1"),
    ],
)
def test_a_client_that_is_turned_off(daemon, path, options, env, words):
    """In code and by the written-out `allow` every gate allows; a stray AGENTD_DISABLED=1 lets nothing pass. Nothing is touched."""
    done = run_child(NOOP.format(options=options), path, **env)
    assert done.stderr == ""
    first, reason = done.stdout.strip().split("\n")
    assert first == words
    assert ("AGENTD_DISABLED=allow" in reason) is ("unavailable" in words)
    assert daemon.asked == daemon.records == []


def test_a_plain_gate_loads_no_network_library(daemon, path):
    """Neither http.client nor asyncio nor any of the daemon's rooms is loaded for a gate of `Client`."""
    code = (
        "import sys; from agentd import Client, Verdict; c = Client(); assert c.gate('x', {}); assert c.wait('g')\n"
        "print(*sorted(m for m in sys.modules if m.split('.')[0] in ('agentd', 'asyncio', 'http', 'ssl', 'email', 'aiohttp')))"
    )
    done = run_child(code, path)
    assert done.stderr == ""
    allowed = {"agentd", *(f"agentd.{name}" for name in ("errors", "paths", "wire", "records", "explain"))}
    rest = set(done.stdout.split()) - allowed
    assert all(name.startswith("agentd.client") for name in rest), rest
