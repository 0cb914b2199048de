"""A hostile agent against a real daemon: bound to one agent by a token and by a rule for its uid, it tries to be somebody else.

Each attempt's answer is asserted, and at the sandbox that the harm was not done. The victim is another user, with an agent of its
own; both go through one daemon, which holds the platforms' only key.
"""

from __future__ import annotations

import contextlib
import ctypes
import gzip
import http.client
import inspect
import json
import os
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import agentos._control
import pytest
from ascend.constants import API_ENDPOINTS
from harness import AGENT, KEY, http_call, wait_for

from agentd.sandbox import Answer

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two other users")

FACES = ("agentos", "aegis", "ascend", "decidefyi", "decisionos")
MALLORY, VICTIM = 65534, 65533  # uids
EVIL_AGENT = "1a0c2a1e-8a7c-4d3f-9a55-2f1f0c6b7a22"
TOKENS = {
    "evil": {"agent_ids": ["mallory"]},
    "evil-ascend": {"agent_ids": ["mallory"], "destinations": ["ascend"]},
    "good": {"agent_ids": ["billing"]},
}
WISH = {"action_type": "data_access", "resource": "invoices"}
SPEND = {"amount": 5, "currency": "USD", "reason": "office supplies"}
SUBMIT, EVENTS = "/ascend/api/v1/actions/submit", "/agentos/api/ingest/v1/events"
ONE_AT_A_TIME = threading.Lock()  # whose user this process is, it is with all its threads
"x".encode("idna")  # loaded now: the users below may not read where it lies


class Eye:
    """A platform's face that remembers the calls as they came, and says what a test has it say."""

    def __init__(self, face):
        self.face = face
        self.calls = []
        self.says = None

    def __getattr__(self, name):
        return getattr(self.face, name)

    @property
    def switches(self):
        return self.face.switches

    @switches.setter
    def switches(self, switches):
        self.face.switches = switches

    def answer(self, call):
        self.calls.append(call)
        return self.face.answer(call) if self.says is None else self.says(call)


class Agent:
    """Somebody who asks: over TCP with a token, or over the Unix socket."""

    def __init__(self, stage, uid, token=None):
        self.stage, self.uid, self.token = stage, uid, token

    def connect(self):
        """A connection whose owner the kernel says is this user."""
        with ONE_AT_A_TIME:
            return self._connect()

    def _connect(self):
        libc = ctypes.CDLL(None)
        if self.token:
            libc.setfsuid(self.uid)
            try:
                return socket.create_connection(("127.0.0.1", self.stage.port), timeout=30)
            finally:
                libc.setfsuid(0)
        link = socket.socket(socket.AF_UNIX)
        link.settimeout(30)
        os.seteuid(self.uid)
        try:
            link.connect(self.stage.daemon.socket)
        finally:
            os.seteuid(0)
        return link

    def __call__(self, method, target, body=None, *, whole=False, **headers):
        """Status and document; with `whole` the headers, too."""
        connection = http.client.HTTPConnection("127.0.0.1", self.stage.port, timeout=30)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.token:
            names.setdefault("Authorization", f"Bearer {secret(self.token)}")
        with self.connect() as connection.sock:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, target, data, names)
            answer = connection.getresponse()
            text = answer.read()
        document = json.loads(text) if text[:1] in (b"{", b"[") else text
        return (answer.status, document, dict(answer.getheaders())) if whole else (answer.status, document)

    def gate(self, gate, request, **fields):
        return self("POST", "/v1/gate", {"gate": gate, "request": request, **fields})

    def records(self, *records):
        """The status, and the first refusal."""
        status, answer = self("POST", "/v1/records", list(records))
        return status, (answer.get("rejected") or [{"error": ""}])[0]["error"]

    def raw(self, data, *, timeout_s=10.0, ends=True):
        """What is answered to these bytes, to the connection's end or a silence; `ends`: that we say no more is known."""
        said = bytearray()
        with self.connect() as link:
            link.settimeout(timeout_s)
            try:
                link.sendall(data)
                if ends:
                    link.shutdown(socket.SHUT_WR)
                while part := link.recv(65536):
                    said += part
            except OSError:  # reset, not connected any more, too slow
                pass
        return bytes(said)


class Stage:
    """One daemon before all five platforms, with a hostile user and a victim."""

    def __init__(self, world, **sections):
        self.world = world
        tokens = []
        for name, rule in TOKENS.items():
            file = world.folder / f"{name}.token"
            file.write_text(secret(name))
            file.chmod(0o600)
            tokens.append({"token": {"file": str(file)}, **rule})
        destination = {
            "api_key": {"env": "KEY"},
            "agent_id": "billing",
            "agents": {"billing": AGENT, "mallory": EVIL_AGENT},
        }
        urls = {face: {"platform": face, "base_url": f"{world.platform.url}/{face}"} for face in FACES}
        peers = [{"uid": MALLORY, "agent_ids": ["mallory"]}]
        self.daemon = world.daemon(
            listen={"http": "127.0.0.1:0", "mode": "0666"},
            security={"tokens": tokens, "peers": peers},
            **{f"destinations.{face}": destination | url for face, url in urls.items()},
            **({"intake": {"reference_wait": "300ms"}} | sections),
        )
        world.folder.chmod(0o711)
        self.port = int(self.daemon.status()["listen"]["http"].rpartition(":")[2])
        world.platform.ask(lambda: setattr(world.platform.sandbox._emulation, "_keys", frozenset({KEY})))
        self.eyes = {name: Eye(face.face) for name, face in world.platform.faces.items()}
        for name, eye in self.eyes.items():
            world.platform.faces[name].face = eye
        self.evil, self.local = Agent(self, MALLORY, "evil"), Agent(self, MALLORY)
        self.good, self.owner = Agent(self, VICTIM, "good"), Agent(self, VICTIM)

    def came(self, face=None):
        """What has reached the platforms, the oldest first."""
        eyes = self.eyes.values() if face is None else [self.eyes[face]]
        return [(call.method, call.path) for eye in eyes for call in eye.calls]

    def victims_run(self, name="victim"):
        """A run of the victim's that the platform knows; the platform's id."""
        assert self.good.records({"kind": "run.start", "run_id": name})[0] == 202
        self.world.ledger.starts.add(name)
        return wait_for(lambda: self.world.platform.run(name))["id"] if self.daemon.drained() else ""

    def unharmed(self, name="victim"):
        """That the run is as its owner left it: running, and empty."""
        self.daemon.drained()
        run = self.world.platform.run(name)
        return (run["status"], run["events"], run["tasks"], run["waited_for"]) == ("running", [], [], [])


def secret(name):
    return f"{name}-0123456789-local"


@pytest.fixture
def stage(world):
    return Stage(world)


def control_writes():
    """The methods of AgentOS's control plane that its SDK calls writes."""
    found = []

    def note(method, _body, *, read_only, **_):
        found.append((method, read_only))

    for each in vars(agentos._control).values():
        if inspect.isclass(each) and "self._call" in inspect.getsource(each):
            for name, method in inspect.getmembers(each(note), inspect.ismethod):
                if not name.startswith("_"):
                    needed = [p.name for p in inspect.signature(method).parameters.values() if p.default is p.empty]
                    method(**dict.fromkeys(needed, "x"))
    assert len(found) == 56
    return [name for name, read_only in found if not read_only]


ORDERS = {  # of ascend-ai-sdk's endpoints those that order something: method, and how often its name stands there
    "register_agent": "POST", "deregister_agent": "DELETE", "agent_update": "PUT", "webhooks_configure": "POST",
    "webhooks_update": "PUT", "webhooks_delete": "DELETE", "webhooks_test": "POST", "webhooks_list": "GET",
    "supply_chain_components": "POST", "mcp_servers": "POST", "mcp_server_detail": "DELETE", "mcp_server_activate": "POST",
    "mcp_server_deactivate": "POST", "mcp_scan": "POST", "mcp_scan_network": "POST", "kill_switch_trigger": "POST",
    "kill_switch_release": "POST", "topology_register": "POST", "topology_mcp_register": "POST", "cascade_kill": "POST",
}  # fmt: skip


def orders(action, intent):
    """What only a person or an operator may do: (method, target, body, status)."""
    for name, method in ORDERS.items():
        path = API_ENDPOINTS[name].replace("{agent_id}", "mallory").replace("{", "").replace("}", "")
        yield method, f"/ascend{path}", {"agent_id": "mallory", "reason": "because I can"}, 403
    for path in (f"/api/v1/actions/{action}/approve", f"/api/v1/actions/{action}/reject"):
        yield "POST", f"/ascend{path}", {}, 403
    for verb in ("approve", "deny"):
        yield "POST", f"/ascend/api/governance/workflows/{action}/{verb}", {}, 403
    yield "POST", "/ascend/api/webhooks", {"url": "https://evil.example"}, 403
    for method in control_writes():
        yield "POST", f"/agentos/api/v1/rpc/{method}", {"approval_id": "a", "decision": "approved"}, 403
    yield "POST", "/agentos/api/v1/rpc/api_keys_list", {}, 403
    yield "POST", "/agentos/api/v1/rpc/a_method_of_tomorrow", {}, 403
    yield "POST", "/agentos/api/v1/approvals/a/decide", {"decision": "approve"}, 403
    yield "POST", "/agentos/api/v1/runs/r/reply", {"request_id": "q", "response": "yes"}, 403
    yield "POST", "/agentos/api/v1/runs/r/human-input", {"response": "yes"}, 403
    for method, path in (
        ("POST", f"/{intent}/approve"),
        ("PUT", f"/{intent}"),
        ("PATCH", f"/{intent}"),
        ("DELETE", f"/{intent}"),
    ):
        yield method, f"/aegis/v1/intents{path}", {"status": "approved"}, 403
    for path in (f"/approvals/{intent}", f"/approvals/{intent}/respond", "/agents", "/api-keys", "/webhooks"):
        yield "POST", f"/aegis/v1{path}", {"decision": "approve"}, 403
    yield "POST", "/decisionos/api/public/v1/policies", {}, 403
    yield "POST", "/decidefyi/api/decision/policy-bundles", {}, 403
    yield "POST", "/agentos/_sandbox/act/ascend/x/approve", None, 403


# -- orders ------------------------------------------------------------------------------------------------------------


def test_nobody_approves_his_own_action(world, stage):
    """Approvals, kill switch, agents, keys, webhooks: refused on either way in, and nothing of it reaches a platform."""
    for switch in ("ascend.decision=pending", "aegis.decision_delay=1h"):
        world.platform.ask(lambda switch=switch: world.platform.sandbox.throw(switch))
    action = stage.evil.gate("action", WISH, deadline=0.5)[1]
    intent = stage.evil.gate("intent", SPEND, deadline=0.5)[1]
    assert (action["verdict"], intent["verdict"]) == ("pending", "pending")
    done = [  # by their local and the platforms' names
        (method, target, status, agent(method, target, body)[0])
        for name in ("id", "platform_id")
        for method, target, body, status in orders(action[name], intent[name])
        for agent in (stage.evil, stage.local)
    ]
    assert [each for each in done if each[2] != each[3]] == []
    assert len(done) > 250
    beside = {"POST /api/v1/actions/submit", "GET /api/sdk/kill-switch/status", "POST /v1/intents"}
    seen = {f"{method} {path}" for method, path in stage.came() if method != "GET" or "kill" in path}
    assert seen == beside
    for gate in (action, intent):
        for agent in (stage.evil, stage.local, Agent(stage, 0, "evil")):
            target = f"/v1/gates/{gate['gate_id']}/resolve"
            assert agent("POST", target, {"verdict": "allow", "platform_id": "x"})[0] == 403
        assert stage.evil("GET", f"/v1/gates/{gate['gate_id']}")[1]["verdict"] == "pending"
    switch = world.platform.faces["ascend"].face.face._agents.kill_switch
    states = {row["face"]: row["status"] for row in world.platform.runs()}
    assert (switch.blocked, states) == (False, {"ascend": "pending", "aegis": "pending"})


APPROVE = "/ascend/api/v1/actions/act_1/approve"
SPELLINGS = (
    "/ascend/api/v1/actions/act_1/approve/", "//ascend/api/v1/actions/act_1/approve", "/ascend//api/v1/actions/act_1/approve",
    "/ascend/api/v1/actions/act_1//approve", "/ascend/./api/v1/actions/act_1/approve", "/ASCEND/api/v1/actions/act_1/approve",
    "/ascend/API/V1/ACTIONS/act_1/APPROVE", "/ascend/api/v1/actions/act_1/Approve", "/ascend/api/v1/actions/act_1/%61pprove",
    "/ascend/api/v1/actions/act_1/%2561pprove", "/ascend/api/v1/actions/act_1%2fapprove", "/ascend/api/v1/actions/act_1%2Fapprove",
    "/ascend/api/v1/actions/act_1%252fapprove", "/ascend/api/v1/actions/submit/../act_1/approve",
    "/ascend/api/v1/actions/submit/%2e%2e/act_1/approve", "/ascend/api/v1/actions/submit/.%2e/act_1/approve",
    "/ascend/api/v1/actions/submit/..%2fact_1/approve", "/ascend/api/v1/actions/submit/..;/act_1/approve",
    "/ascend/api/v1/actions/act_1/approve;x=1", "/ascend/api/v1/actions;/act_1/approve", "/ascend/api/v1/actions/act_1\\approve",
    "/ascend/api/v1/actions/act_1%5capprove", "/ascend/api/v1/actions/act_1/approve%00", "/ascend/api/v1/actions/act_1/approve%20",
    "/ascend/api/v1/actions/act_1/approve#x", "/ascend/api/v1/actions/act_1/approve?x=1", "/ascend/api/v1/actions/act_1/approve%3fx",
    "/ascend/api/v1/actions/act_1%0d%0aX:%20y/approve", "/v1/../ascend/api/v1/actions/act_1/approve",
    "/%61scend/api/v1/actions/act_1/approve", "/ascend%2fapi/v1/actions/act_1/approve", "/ascend/../decisionos/v1/x", "/ascend",
    "/agentos/../ascend/api/v1/actions/act_1/approve", "/ascend/%ff/approve", "/ascend/api/v1/actions/\uff0e\uff0e/approve",
    "http://127.0.0.1/ascend/api/v1/actions/act_1/approve", "http://user:pw@127.0.0.1/ascend/api/v1/actions/act_1/approve",
    "http://evil.example/ascend/api/v1/actions/act_1/approve", "user@127.0.0.1:80", "127.0.0.1:443", "*", "ascend/api/v1/actions",
    "/user:pw@ascend/api/v1/actions/act_1/approve", "/ascend/@127.0.0.1/api/v1/actions/act_1/approve",
)  # fmt: skip


@pytest.mark.parametrize("method", ["POST", "PUT", "CONNECT", "approve", "post"])
def test_no_spelling_of_a_path_opens_it(stage, method):
    """Case, slashes, dots, semicolons, escapes once and twice, NUL, absolute forms, CONNECT: 4xx, and no platform hears of it."""
    for spelling in (APPROVE, *SPELLINGS):
        for agent in (stage.evil, stage.local):
            head = f"{method} {spelling} HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {secret('evil')}\r\nContent-Length: 2\r\n\r\n{{}}"
            said = agent.raw(head.encode())
            assert set(statuses(said)) <= {400, 403, 404, 405}, (spelling, said[:200])
    assert stage.came() == []


@pytest.mark.parametrize(
    "name", ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override", "X-Original-URL", "X-Rewrite-URL"]
)
def test_no_header_turns_a_read_into_an_order(stage, name):
    """What would make a server see another method or path does not go on, nor does anything else that is not on the list."""
    target = "/ascend/api/v1/actions?limit=3"
    word = "/api/v1/actions/act_1/approve" if name.endswith("URL") else "DELETE"
    headers = {
        name: word,
        "Cookie": "a=b",
        "X-Forwarded-For": "1.2.3.4",
        "Connection": "keep-alive, x-api-key",
        "Upgrade": "h2c",
    }
    assert stage.evil("GET", target, **headers)[0] == 200
    assert stage.evil("POST", APPROVE, {"_method": "GET"}, **{name: "GET"})[0] == 403
    [call] = stage.eyes["ascend"].calls
    assert (call.method, call.path) == ("GET", "/api/v1/actions")
    gone = {name.lower(), "cookie", "x-forwarded-for", "upgrade"}
    assert gone.isdisjoint(each.lower() for each in call.headers)
    assert call.headers["X-API-Key"] == KEY


def statuses(said):
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d+) ", said)]


SECOND = b"POST /v1/flush HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
HEAD = b"POST /v1/records HTTP/1.1\r\nHost: localhost\r\nX-API-Key: %s\r\n" % secret("evil").encode()
SMUGGLED = (
    b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    b"Content-Length: 0\r\nContent-Length: 99\r\n\r\n",
    b"Content-Length: 0, 99\r\n\r\n",
    b"Content-Length: +0\r\n\r\n",
    b"Content-Length: -1\r\n\r\n",
    b"Content-Length : 0\r\n\r\n",
    b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
    b"X: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    b"X: a\rContent-Length: 9\r\n\r\n",
    b"X\0: a\r\n\r\n",
)


def test_requests_are_not_smuggled(stage):
    """Lengths that contradict one another end the connection: the second request within is nobody's, least of all an admin's."""
    for agent in (stage.evil, stage.local):
        for more in SMUGGLED:
            heard = statuses(agent.raw(HEAD + more + SECOND))
            assert heard[:1] == [400], (more, heard)
            assert set(heard) <= {400, 401, 403}, (more, heard)
    whole = HEAD + b"Content-Length: 2\r\n\r\n[]"
    assert statuses(stage.evil.raw(whole + SECOND, timeout_s=1, ends=False)) == [
        202,
        401,
    ]  # a token counts for its own request alone
    for head in (
        b"Upgrade: h2c\r\nConnection: Upgrade",
        b"Upgrade: websocket\r\nConnection: Upgrade",
        b"Expect: 200-maybe",
    ):
        said = stage.evil.raw(HEAD + head + b"\r\nContent-Length: 2\r\n\r\n[]")
        assert b"101 Switching" not in said
        assert said.split()[1] in {b"202", b"400", b"417"}, said
    assert stage.came() == []


def test_requests_that_overrun(stage):
    """100,000 headers, one of a MiB, a target of a MiB, a body that says it is 10 GB, a bomb, JSON as deep as it is long."""
    many = b"".join(b"X-%d: 1\r\n" % number for number in range(100_000))
    for more in (many, b"X: " + b"a" * 2**20 + b"\r\n"):
        for target in (b"/v1/records", SUBMIT.encode()):
            said = stage.evil.raw(HEAD.replace(b"/v1/records", target) + more + b"Content-Length: 0\r\n\r\n")
            assert not said or said.split()[1] == b"400", said[:200]
    assert stage.evil.raw(b"GET /" + b"a" * 2**20 + b" HTTP/1.1\r\n\r\n").split()[1:2] in ([], [b"400"], [b"414"])
    deep = b"[" * 200_000
    nested = b'{"action_type":"x","context":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}"
    bomb = gzip.compress(b" " * 2**26)
    for target in ("/v1/records", "/v1/gate", SUBMIT, EVENTS):
        assert stage.evil.raw(
            HEAD.replace(b"/v1/records", target.encode()) + b"Content-Length: 10000000000\r\n\r\n[", timeout_s=3
        ).split()[1] == b"413"  # fmt: skip
        assert stage.evil("POST", target, deep)[0] in {400, 422}
        assert stage.evil("POST", target, nested)[0] in {400, 422}
        assert stage.evil("POST", target, bomb, Content_Encoding="gzip")[0] in {400, 413}
        assert stage.evil("POST", target, b"\xff\xfe{}")[0] in {400, 422}
    assert stage.came("ascend") == stage.came("agentos") == []
    assert stage.good("GET", "/readyz")[0] == 200


# -- names -------------------------------------------------------------------------------------------------------------

TWICE = b'{"gate":"action","agent_id":"mallory","agent_id":"billing","request":{"action_type":"x"}}'
TWICE_WITHIN = b'{"gate":"action","request":{"action_type":"x","agent_id":"mallory","agent_id":"billing"}}'
ESCAPED = b'{"gate":"action","request":{"action_type":"x","agent\\u005fid":"billing"}}'
SDK_TWICE = b'{"action_type":"x","agent_id":"mallory","agent_id":"billing"}'
OTHERS = ("billing", AGENT)  # by the host's name and by the platform's


@pytest.mark.parametrize("way", ["evil", "local"])
def test_nobody_speaks_for_another_agent(stage, way):
    """Wherever an agent can be named, by either of its names: refused, and no platform hears of it."""
    agent = getattr(stage, way)
    for other in OTHERS:
        heard = [
            agent.gate(gate, request, agent_id=other)[0] for gate, request in (("action", WISH), ("intent", SPEND))
        ]
        heard += [
            agent.gate(gate, request | {"agent_id": other})[0]
            for gate, request in (("action", WISH), ("intent", SPEND), ("decision", {"context": "x"}), ("invoke", {}))
        ]
        for target, body in (
            (SUBMIT, WISH | {"agent_id": other}), ("/aegis/v1/intents", SPEND | {"agentId": other}),
            ("/decisionos/api/public/v1/decisions", {"context": "x", "agentId": other, "runPolicyEval": True}),
            ("/decisionos/api/public/v1/decisions", {"context": "x", "agentId": other}),
            ("/agentos/api/ingest/v1/run/start", {"agent_id": other}), (f"/agentos/api/v1/agents/{other}/invoke", {"input": {}}),
            ("/agentos/api/v1/rpc/agents_get", {"agent_id": other}), ("/ascend/api/agents/health/heartbeat", {"agent_id": other}),
            ("/ascend/api/governance/policies/evaluate-realtime", WISH | {"agent_id": other}),
            (f"/ascend/api/registry/agents/{other}/commands/c/ack", {}),
        ):  # fmt: skip
            heard.append(agent("POST", target, body)[0])
        heard.append(
            agent("POST", "/ascend/api/agents/health/heartbeat/batch", [{"agent_id": "mallory"}, {"agent_id": other}])[
                0
            ]
        )
        for target in (
            f"/ascend/api/v1/actions?agent_id={other}", f"/ascend/api/v1/actions?agent_id=mallory&agent_id={other}",
            f"/ascend/api/agents/health/{other}", f"/ascend/api/registry/agents/{other}/commands",
            f"/aegis/v1/intents?agentId={other}", f"/decisionos/api/public/v1/agents/{other}",
        ):  # fmt: skip
            heard.append(agent("GET", target)[0])
        assert set(heard) == {403}, heard
        for record in (
            {"kind": "run.start", "run_id": "x"}, {"kind": "decision", "context": "x"}, {"kind": "heartbeat"},
            {"kind": "event", "run_id": "x", "type": "t"}, {"kind": "action.completed", "action_id": "a"},
        ):  # fmt: skip
            status, error = agent.records(record | {"agent_id": other})
            assert (status, "is not among the agents that you may speak for (mallory)" in error) == (422, True)
    for body in (TWICE, TWICE_WITHIN, ESCAPED):
        assert agent("POST", "/v1/gate", body)[0] == 403
    for more in ({}, {"Content_Type": "text/plain"}, {"Content_Type": "application/x-www-form-urlencoded"}):
        assert agent("POST", SUBMIT, SDK_TWICE, **more)[0] == 403
    assert stage.came() == []


def test_what_goes_out_names_the_agent_once(stage):
    """Unnamed it is the grant's one, not the destination's; a name that comes twice goes out once; a form stays no form."""
    once = b'{"action_type":"data_access","resource":"x","agent_id":"billing","agent_id":"mallory","agent_name":"M","description":"&agent_id=billing&"}'
    assert stage.evil("POST", SUBMIT, once, Content_Type="application/x-www-form-urlencoded; charset=utf-7")[0] == 200
    assert stage.evil("POST", "/v1/gate", b'{"gate":"action","request":' + once + b"}")[1]["proceed"]
    assert stage.evil.gate("action", WISH)[1]["proceed"]
    for call in [call for call in stage.eyes["ascend"].calls if call.method == "POST"]:
        assert json.loads(call.body)["agent_id"] == EVIL_AGENT
        assert (call.body.count(b'"agent_id"'), call.headers["Content-Type"]) == (1, "application/json")
    assert stage.local.records({"kind": "run.start", "run_id": "unnamed"})[0] == 202
    assert stage.evil.records({"kind": "decision", "context": "x", "extra": {"agentId": AGENT}})[0] in {202, 422}
    stage.daemon.drained()
    assert stage.world.platform.run("unnamed")["agent_id"] == EVIL_AGENT
    stage.daemon.drained(destination="decisionos")
    decisions = [json.loads(call.body) for call in stage.eyes["decisionos"].calls if call.method == "POST"]
    assert {body["agentId"] for body in decisions} <= {EVIL_AGENT}
    stage.world.ledger.starts.add("unnamed")


def test_a_token_stays_at_its_destination(stage):
    """By `to`, by the path and by the gate alone: what is for one destination reaches no other."""
    bound = Agent(stage, MALLORY, "evil-ascend")
    assert bound.records({"kind": "run.start", "run_id": "x", "to": "agentos"}) == (
        422, "$.to: destination 'agentos' is not among those that you may use (ascend)",
    )  # fmt: skip
    assert bound.records({"kind": "run.start", "run_id": "x", "to": ["ascend", "agentos"]})[0] == 422
    assert bound.records({"kind": "run.start", "run_id": "x"})[0] == 422
    heard = [
        bound.gate("intent", SPEND)[0], bound.gate("decide", {"question": "?"}, to="decidefyi")[0],
        bound("GET", "/aegis/v1/intents")[0], bound("POST", "/agentos/api/ingest/v1/run/start", {"agent_id": "mallory"})[0],
        bound("POST", "/decidefyi/api/decide", {"question": "?"})[0], bound("GET", "/decisionos/api/public/v1/decisions")[0],
    ]  # fmt: skip
    assert set(heard) == {403}
    assert stage.came() == []
    assert bound.gate("action", WISH)[1]["proceed"]


# -- what is another's -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["evil", "local"])
def test_anothers_run_is_out_of_reach(stage, way):
    """By its own id and by the platform's, in records, gates and SDK calls; and nobody is told by what name the platform has it."""
    agent = getattr(stage, way)
    platform_id = stage.victims_run()
    before = len(stage.came())
    shown = agent("GET", "/v1/runs/victim")[1]["destinations"]["agentos"]
    assert (shown["platform_id"], shown["state"]) == (None, "known")
    assert stage.good("GET", "/v1/runs/victim")[1]["destinations"]["agentos"]["platform_id"] == platform_id
    for name in ("victim", platform_id):
        for record in (
            {"kind": "event", "type": "evil"}, {"kind": "run.fail", "error_message": "evil"}, {"kind": "run.cancel"},
            {"kind": "task", "task_id": "8b5f0d4c-2b8e-4c5b-9d84-26f6f9f4a9c1", "name": "t", "status": "failed"},
            {"kind": "span", "span_id": "s", "name": "n"}, {"kind": "run.complete"},
        ):  # fmt: skip
            assert agent.records(record | {"run_id": name}) == (422, "$.run_id: belongs to another user")
        assert agent.records({"kind": "run.start", "run_id": "child", "parent_run_id": name}) == (
            422, "$.parent_run_id: belongs to another user",
        )  # fmt: skip
        for gate, request, more in (
            ("human_input", {"prompt": "x"}, {"run_id": name}), ("human_input", {"prompt": "x", "run_id": name}, {}),
            ("action", WISH, {"run_id": name, "to": "ascend"}) if name == "nobody" else ("invoke", {"parent_run_id": name}, {}),
        ):  # fmt: skip
            status, answer = agent.gate(gate, request, deadline=2, **more)
            assert (status, answer["error"]["code"]) == (422, "foreign_reference"), answer
        for target, body in (
            (EVENTS, {"events": [{"type": "evil"}]}), ("/agentos/api/ingest/v1/run/fail", {"error_message": "evil"}),
            ("/agentos/api/ingest/v1/human-input/request", {"prompt": "x"}), ("/agentos/api/v1/rpc/runs_get", {}),
            ("/agentos/api/v1/rpc/runs_get_events", {}),
        ):  # fmt: skip
            assert agent("POST", target, body | {"run_id": name})[0] == 404
        assert agent("POST", "/agentos/api/v1/agents/mallory/invoke", {"parent_run_id": name})[0] == 404
    assert stage.unharmed()
    assert len(stage.came()) == before


def test_anothers_actions_and_decisions_are_out_of_reach(stage):
    """Completions, snapshots, receipts, parents and reads, by the local id and by the platform's."""
    action = stage.good.gate("action", WISH | {"action_id": "theirs"})[1]
    decision = stage.good.gate("decision", {"context": "x", "decision_id": "theirs", "create_agent_if_missing": True})[
        1
    ]
    assert action["proceed"]
    assert decision["platform_id"]
    before = len(stage.came())
    for agent in (stage.evil, stage.local):
        for name in ("theirs", action["platform_id"]):
            assert (
                agent.records({"kind": "action.completed", "action_id": name})[1]
                == "$.action_id: belongs to another user"
            )
            assert agent.gate("action", WISH | {"parent_action_id": name})[0] == 422
            assert agent.gate("action", WISH | {"action_id": name})[0] == 422
            assert agent("POST", SUBMIT, WISH | {"agent_id": "mallory", "parent_action_id": name})[0] == 404
            assert agent("POST", f"/ascend/api/agent-action/{name}/complete", {})[0] == 404
            assert agent("GET", f"/ascend/api/v1/actions/{name}/status")[0] == 404
        for name in ("theirs", decision["platform_id"]):
            snapshot = {"kind": "snapshot", "decision_id": name, "snapshot": {}}
            assert agent.records(snapshot)[1] == "$.decision_id: belongs to another user"
            body = {"decisionId": name, "snapshot": {"a": 1}}
            assert agent("POST", "/decisionos/api/public/v1/snapshots", body)[0] == 404
            assert agent("GET", f"/decisionos/api/public/v1/decisions/{name}")[0] == 404
    assert len(stage.came()) == before
    assert [row["completions"] for row in stage.world.platform.runs() if row["face"] == "ascend"] == [0]


def test_a_guessed_key_gets_nothing(stage):
    """AgentOS knows runs by `external_run_id` and gives the victim's to who repeats it; Decision OS by `requestId`."""
    platform_id = stage.victims_run()
    thief = [
        {"kind": "run.start", "run_id": "mine", "external_run_id": "victim"},
        {"kind": "event", "run_id": "mine", "type": "evil"},
        {"kind": "run.fail", "run_id": "mine", "error_message": "evil"},
    ]
    assert stage.evil.records(*thief)[0] == 202
    stage.daemon.drained()
    assert stage.evil.records({"kind": "event", "run_id": platform_id, "type": "evil"})[0] == 422
    assert stage.evil("POST", EVENTS, {"run_id": platform_id, "events": [{"type": "evil"}]})[0] == 404
    assert {letter["cause"] for letter in stage.daemon.dead_letters()} == {"introducer_dead"}
    assert stage.unharmed()
    question = {"context": "x", "create_agent_if_missing": True}
    theirs = stage.good.gate("decision", question | {"request_id": "known"})[1]
    stage.eyes["decisionos"].says = lambda _call: Answer(200, json.dumps(theirs["response"]).encode())
    mine = stage.evil.gate("decision", question)[1]
    assert (theirs["verdict"], mine["verdict"], mine["response"]) == ("allow", "unavailable", None)
    body = {"agentId": "mallory", "context": "x", "runPolicyEval": True}
    status, answer = stage.evil("POST", "/decisionos/api/public/v1/decisions", body)
    assert (status, theirs["platform_id"] in str(answer)) == (424, False)


def test_a_planted_record_gets_into_no_run(world):
    """Sent before the run exists, under the id that it will have: it waits, and dies when the run is another's."""
    stage = Stage(world, intake={"reference_wait": "10s"})
    planted = [
        {"kind": "event", "run_id": "victim", "type": "evil"},
        {"kind": "run.fail", "run_id": "victim", "error_message": "e"},
    ]
    assert stage.evil.records(*planted)[0] == 202
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(stage.local.gate, "human_input", {"prompt": "evil"}, run_id="victim", deadline=9)
        wait_for(lambda: stage.local("GET", "/v1/gates")[1])
        stage.victims_run()
        heard = asking.result(30)[1]
    assert (heard["verdict"], "belongs to another" in heard["reason"]) == ("unavailable", True), heard
    assert stage.unharmed()
    assert [letter["cause"] for letter in stage.daemon.dead_letters()] == ["foreign_reference"] * 2


def test_anothers_gates_do_not_exist(stage):
    """By id, in the list, under their key; also for another token of the same uid."""
    theirs = stage.good.gate("action", WISH, key="order-7")[1]
    same_uid = Agent(stage, VICTIM, "evil")
    for agent in (stage.evil, stage.local, same_uid):
        assert agent("GET", f"/v1/gates/{theirs['gate_id']}?wait=1")[0] == 404
        assert agent("GET", "/v1/gates?state=all")[1] == []
    for agent in (stage.evil, stage.local):
        mine = agent.gate("action", WISH, key="order-7")[1]
        assert (mine["gate_id"] != theirs["gate_id"], mine["platform_id"] != theirs["platform_id"]) == (True, True)
    assert same_uid.gate("action", WISH, key="order-7")[0] == 409
    for agent in (stage.good, stage.owner):
        assert [gate["gate_id"] for gate in agent("GET", "/v1/gates")[1]] == [theirs["gate_id"]]


def test_anothers_answer_from_a_person_is_out_of_reach(stage):
    """A question's `request_id` in one's own run asks for nobody else's answer."""
    stage.victims_run()
    stage.world.platform.ask(lambda: stage.world.platform.sandbox.throw("agentos.human_input_poll=100ms"))
    theirs = stage.good.gate("human_input", {"prompt": "?"}, run_id="victim", deadline=1)[1]
    assert theirs["verdict"] == "pending"
    assert stage.evil.records({"kind": "run.start", "run_id": "mine"})[0] == 202
    body = {"run_id": "mine", "prompt": "?", "request_id": theirs["platform_id"]}
    assert stage.evil("POST", "/agentos/api/ingest/v1/human-input/request", body)[0] == 404
    stage.world.ledger.starts.add("mine")


def test_dead_letters_show_contents_to_their_sender_alone(stage):
    """What the victim wrote is in no dead letter that another sees."""
    stage.world.platform.ask(lambda: stage.world.platform.faces["agentos"].refusals.append((b"private", 400)))
    stage.victims_run()
    assert stage.good.records({"kind": "event", "run_id": "victim", "type": "t", "payload": {"private": 1}})[0] == 202
    wait_for(stage.daemon.dead_letters)
    for agent in (stage.evil, stage.local, Agent(stage, VICTIM, "evil"), Agent(stage, VICTIM, "evil-ascend")):
        for target in ("/v1/dead-letters", "/v1/dead-letters?run=victim"):
            for letter in agent("GET", target)[1]:
                assert {"record", "answer", "id", "lane"}.isdisjoint(letter)
    assert stage.good("GET", "/v1/dead-letters")[1][0]["record"]["payload"] == {"private": 1}


# -- the key -----------------------------------------------------------------------------------------------------------


def test_the_platforms_key_is_nowhere(stage):
    """A platform that echoes its requests, in bodies, headers and errors, hands the key to nobody; no log and no status has it."""

    def echo(status):
        def say(call):
            text = json.dumps(
                {"error": f"bad key {KEY}", "headers": dict(call.headers), "data": {"run_id": KEY, "id": KEY}}
            )
            return Answer(status, text.encode(), headers={"X-Request-Id": KEY, "Retry-After": KEY})

        return say

    seen = []
    for status in (200, 400, 401, 500):
        for eye in stage.eyes.values():
            eye.says = echo(status)
        for agent in (stage.evil, stage.local):
            seen += [
                agent("GET", "/ascend/api/v1/actions", whole=True), agent("GET", "/aegis/v1/intents", whole=True),
                agent("POST", SUBMIT, WISH | {"agent_id": "mallory"}, whole=True),
                agent("POST", "/decidefyi/api/decide", {"question": "?"}, whole=True),
                agent("POST", "/agentos/api/v1/rpc/agents_get", {"agent_id": "mallory"}, whole=True),
                agent.gate("action", WISH), agent.gate("intent", SPEND), agent.gate("decide", {"question": "?"}),
            ]  # fmt: skip
    stage.evil.records({"kind": "run.start", "run_id": "r"}, {"kind": "decision", "context": "c"})
    wait_for(lambda: "paused" in str(stage.daemon.status()) or stage.daemon.books()["retries"])
    for agent in (stage.evil, stage.local):
        seen += [
            agent("GET", target) for target in ("/v1/status", "/metrics", "/v1/gates", "/v1/dead-letters", "/v1/runs/r")
        ]
    seen += [
        http_call(stage.daemon.socket, "GET", target) for target in ("/v1/gates", "/v1/dead-letters", "/v1/status")
    ]
    seen.append(stage.daemon.log.read_text())
    assert len(seen) == 78
    assert not [each for each in seen if KEY in str(each)]
    assert any("***" in str(each) for each in seen)
    assert any(eye.calls for eye in stage.eyes.values())
    for eye in stage.eyes.values():
        assert all(
            call.headers.get("X-API-Key", call.headers.get("Authorization", "")).endswith(KEY) for call in eye.calls
        )
        eye.says = None


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(stage, status):
    """A platform that leads elsewhere: neither we nor an SDK go there, and so neither does the key."""
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.setblocking(False)
        where = f"http://127.0.0.1:{trap.getsockname()[1]}/steal"
        for eye in stage.eyes.values():
            eye.says = lambda _call: Answer(status, b"", headers={"Location": where})
        heard = [
            stage.evil("GET", "/aegis/v1/intents", whole=True), stage.evil("POST", SUBMIT, WISH | {"agent_id": "mallory"}, whole=True),
            stage.evil("POST", "/decidefyi/api/decide", {"question": "?"}, whole=True),
        ]  # fmt: skip
        assert [each[0] for each in heard if not 400 <= each[0] < 600] == []
        assert not any("Location" in headers for *_, headers in heard)
        assert {
            stage.evil.gate(gate, request)[1]["verdict"] for gate, request in (("intent", SPEND), ("action", WISH))
        } == {"unavailable"}
        assert stage.evil.records({"kind": "run.start", "run_id": "r"})[0] == 202
        wait_for(lambda: stage.daemon.books()["state"] == "paused")
        stage.daemon.expected |= {"paused"}
        with pytest.raises(BlockingIOError):
            trap.accept()
    for eye in stage.eyes.values():
        eye.says = None
    stage.world.ledger.starts.add("r")


# -- the door ----------------------------------------------------------------------------------------------------------


def test_nobody_comes_in_without_a_token(stage):
    """In the query, in a cookie, of another daemon, in part, as Basic, of a platform: 401, and a form of a web page is as good."""
    token = secret("evil")
    no_token = Agent(stage, 0, "evil")
    for headers in (
        {"Authorization": ""}, {"Authorization": f"Basic {token}"}, {"Authorization": token}, {"Authorization": f"Bearer {token[:-1]}"},
        {"Authorization": f"Bearer {token}x"}, {"Authorization": f"Bearer {token.upper()}"}, {"Authorization": f"Bearer {KEY}"},
        {"Authorization": f"Bearer {token},{token}"}, {"Authorization": "x", "Cookie": f"token={token}"},
        {"Authorization": "Bearer " + "of-another-daemon-0123456789"}, {"Authorization": "x", "X-API-Key": f'"{token}"'},
        {"Authorization": "x", "Content_Type": "text/plain"}, {"Authorization": "x", "X-Forwarded-For": "127.0.0.1", "X-Uid": "0"},
    ):  # fmt: skip
        for method, target in (
            ("POST", f"/v1/records?token={token}&api_key={token}&access_token={token}"), ("POST", "/v1/gate"), ("GET", "/v1/gates"),
            ("GET", f"/ascend/api/v1/actions?api_key={token}&token={token}"), ("GET", "/v1/status"), ("POST", SUBMIT),
        ):  # fmt: skip
            assert no_token(method, target, {"kind": "run.start", "run_id": "x"}, **headers)[0] == 401, (
                headers,
                target,
            )
    for headers in (
        {"Host": "evil.example"}, {"Host": "evil.example:4319"}, {"Host": "127.0.0.1.evil.example"}, {"Origin": "https://evil.example"},
        {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}, {"Host": "localhost@evil.example"},
    ):  # fmt: skip
        for target in ("/v1/records", "/v1/status", "/healthz", "/metrics", "/ascend/api/v1/actions", SUBMIT):
            assert (
                stage.evil("POST" if target in {SUBMIT, "/v1/records"} else "GET", target, b"{}", **headers)[0] == 403
            )
    assert stage.came() == []
    assert secret("evil") not in stage.daemon.log.read_text()


def test_nobody_is_an_admin_over_tcp(stage):
    """Not with root's uid on the connection: flush, reload, replay, purge, resolve and others' contents are refused."""
    theirs = stage.good.gate("action", WISH)[1]
    root = Agent(stage, 0, "evil")
    for agent in (root, stage.evil, stage.local):
        heard = [
            agent("POST", "/v1/flush")[0],
            agent("POST", f"/v1/gates/{theirs['gate_id']}/resolve", {"verdict": "deny"})[0],
        ]
        everything = {"replay": {"all": True, "force": True}, "purge": {"all": True, "reason": "because I can"}}
        heard += [agent("POST", f"/v1/dead-letters/{verb}", body)[0] for verb, body in everything.items()]
        heard += [agent("POST", "/-/reload")[0], agent("GET", f"/v1/gates/{theirs['gate_id']}")[0]]
        assert set(heard) <= {403, 404}, heard
        assert heard[:4] == [403] * 4
        assert agent("GET", "/v1/gates")[1] == []
    victim = stage.victims_run()
    for name in ("victim", victim):
        assert (
            root.records({"kind": "run.fail", "run_id": name, "error_message": "e"})[1]
            == "$.run_id: belongs to another user"
        )
    assert stage.unharmed()


# -- storms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["tcp", "unix", "both"])
def test_held_connections_lock_nobody_out(world, way):
    """Half open and silent, as many as there are places: the victim comes in on either way, and root sees the status."""
    stage = Stage(world, intake={"max_connections": 128, "frame_timeout": "20s", "reference_wait": "300ms"})
    agents = {"tcp": [stage.evil], "unix": [stage.local], "both": [stage.local, stage.evil]}[way]
    held = [agent.connect() for agent in agents for _ in range(150)]
    try:
        for number, link in enumerate(held):
            with contextlib.suppress(ConnectionError):  # it was turned away
                link.sendall([b"", b"GET / HT"][number % 2])
        wait_for(lambda: stage.daemon.status()["intake"]["connections"] > 100)
        for agent in (stage.good, stage.owner):
            assert agent("GET", "/readyz")[0] == 200
            assert agent("POST", "/v1/records", [{"kind": "run.start", "run_id": f"r-{agent.token}"}])[0] == 202
            world.ledger.starts.add(f"r-{agent.token}")
    finally:
        for link in held:
            link.close()


def test_a_storm_of_gates_stops_nobody_else(stage):
    """A thousand at once that wait a day, each under a key of 300 characters, at a platform that hangs; and then the room is full."""
    stage.world.platform.faults("hang,face=ascend,path=/api/v1/actions/submit")
    held = [stage.evil.connect() for _ in range(1000)]
    try:
        for number, link in enumerate(held):
            wish = WISH | {"description": "x" * (2**20 - 2**12 if number % 25 == 0 else 10)}
            asking = {"gate": "action", "deadline": 86_400, "key": f"{number:0300d}", "request": wish}
            body = json.dumps(asking).encode()
            link.sendall(HEAD.replace(b"records", b"gate") + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        wait_for(lambda: stage.daemon.books("ascend")["gates"]["open"] > 900, 60, lambda: stage.daemon.books("ascend"))
        assert stage.daemon.books("ascend")["gates"]["unavailable"] > 0  # what found no room was not sent
        begun = time.monotonic()
        assert stage.victims_run()
        large = WISH | {"description": "x" * 500_000}
        assert stage.good.gate("action", large, deadline=0.5)[1]["reason"] == "no answer in time"  # it had room
        assert stage.good.gate("decide", {"question": "?"})[1]["verdict"] == "review"
        assert time.monotonic() - begun < 10
        assert stage.unharmed()
    finally:
        for link in held:
            link.close()
    stage.daemon.expected |= {"gate_unrecorded"}


def test_a_slow_loris_holds_up_nobody(world):
    """A head and a body that come byte by byte end at `intake.frame_timeout`; others are served all the while."""
    stage = Stage(world, intake={"frame_timeout": "1s", "reference_wait": "300ms"})
    heads = [
        HEAD,
        HEAD + b"Content-Length: 100\r\n\r\n",
        HEAD.replace(b"/v1/records", SUBMIT.encode()) + b"Content-Length: 9\r\n\r\n",
    ]
    links = [stage.evil.connect() for _ in heads]
    try:
        for link, head in zip(links, heads, strict=True):
            link.sendall(head)
        begun = time.monotonic()
        while time.monotonic() - begun < 0.9:
            assert stage.good("GET", "/readyz")[0] == 200
            for link in links:
                with contextlib.suppress(ConnectionError):
                    link.send(b"x")
        for link in links:
            assert statuses(link.recv(4096))[0] in {400, 408}
    finally:
        for link in links:
            link.close()
