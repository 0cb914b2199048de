"""The loopback listener of a real daemon: local tokens, whose records these are, and what nobody over TCP may do."""

import ctypes
import http.client
import json
import os
import socket
from pathlib import Path

import pytest
from harness import AGENT, Frames, http_call

FACES = ("agentos", "decisionos")
BILLING, BOTH, SPARE = "billing-" * 4, "both-" * 8, "spare-" * 8
NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's connection")


def guarded(world, **sections):
    """A daemon with a loopback listener and three tokens in files of their own."""
    rules = {
        "billing": (BILLING, {"agent_ids": ["billing"]}),
        "both": (BOTH, {"agent_ids": ["billing", "support-*"]}),
        "spare": (SPARE, {"destinations": ["spare"]}),
    }
    tokens = []
    for name, (token, rule) in rules.items():
        path = world.folder / f"{name}.token"
        path.write_text(f"{token}\n")
        path.chmod(0o600)
        tokens.append({"token": {"file": str(path)}, **rule})
    sections = {
        "listen": {"http": "127.0.0.1:0", "socket": str(world.folder / "d.sock")},
        "security": {"tokens": tokens},
        "destination": {"agents": {"billing": AGENT, "support-*": AGENT, AGENT: AGENT}},
        "destinations.spare": {"platform": "decisionos", "base_url": world.platform.url, "api_key": {"env": "KEY"}},
        **sections,
    }
    return world.daemon(**sections)


def port_of(daemon):
    return int(daemon.status()["listen"]["http"].removeprefix("http://127.0.0.1:"))


def call(daemon, method, target, body=None, *, token=None, uid=None, **headers):
    """One request over TCP; with `uid` it is made on that user's connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port_of(daemon), timeout=30)
    if token:
        headers["Authorization"] = f"Bearer {token}"
    try:
        setfsuid(uid)
        connection.connect()
        setfsuid(os.geteuid())
        connection.request(method, target, body if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        data = answer.read()
    finally:
        setfsuid(os.geteuid())
        connection.close()
    return answer.status, json.loads(data) if data[:1] in (b"{", b"[") else data


def setfsuid(uid):
    """Whose the sockets are that this thread makes from now on (setfsuid(2))."""
    if uid is not None:
        ctypes.CDLL(None).setfsuid(uid)


def errors_of(answer):
    return [item["error"] for item in answer["rejected"]]


def test_records_come_by_token(world):
    """Section 1: what an SDK hands in over TCP arrives, for the agent that its token is bound to, without naming it."""
    daemon = guarded(world)
    records = world.ledger.whole_run("r", 5)
    status, answer = call(daemon, "POST", "/v1/records", records, token=BILLING)
    assert (status, answer) == (202, {"accepted": len(records), "rejected": []})
    world.ledger.took(records)
    named = [record | {"agent_id": "support-1"} for record in world.ledger.whole_run("s", 2)]
    assert call(daemon, "POST", "/v1/records", named, token=BOTH)[0] == 202
    world.ledger.took(named)
    daemon.drained()
    assert {run["agent_id"] for run in world.platform.runs()} == {AGENT}


def test_a_token_speaks_for_its_agents_only(world):
    """Another agent's name, and none where there are several, are refused by name; neighbours are taken."""
    daemon = guarded(world)
    foreign = world.ledger.start("f", agent_id="ops")
    own = world.ledger.start("o", agent_id="billing")
    for token in (BILLING, BOTH):
        status, answer = call(daemon, "POST", "/v1/records", [foreign], token=token)
        assert status == 422
        assert "'ops' is not among the agents that you may speak for (billing" in errors_of(answer)[0]
    status, answer = call(daemon, "POST", "/v1/records", [world.ledger.start("u"), own], token=BOTH)
    assert (status, answer["accepted"]) == (202, 1)
    assert "$.agent_id: required here" in errors_of(answer)[0]
    world.ledger.took([own])
    intruder = {"kind": "event", "run_id": "o", "type": "t", "agent_id": "support-1"}
    status, answer = call(daemon, "POST", "/v1/records", [intruder], token=BOTH)
    assert (status, errors_of(answer)) == (422, ["$.run_id: belongs to agent 'billing'"])


def test_a_token_reaches_its_destinations_only(world):
    """A token that is bound to one destination gets nothing to another, whether it names it or not."""
    daemon = guarded(world)
    status, answer = call(daemon, "POST", "/v1/records", [world.ledger.start("x", to="agentos")], token=SPARE)
    assert status == 422
    assert "destination 'agentos' is not among those that you may use (spare)" in errors_of(answer)[0]
    status, answer = call(daemon, "POST", "/v1/records", [world.ledger.start("x")], token=SPARE)
    assert status == 422
    assert "no destination that you may use (spare) takes run.start" in errors_of(answer)[0]
    assert daemon.books()["admitted"] == 0


def test_health_and_metrics_need_no_token_and_all_else_does(world):
    """A scraper gets its numbers; everybody else is told the same, with a wrong token or none."""
    daemon = guarded(world)
    assert call(daemon, "GET", "/healthz") == (200, {"status": "ok"})
    status, text = call(daemon, "GET", "/metrics")
    assert (status, b"agentd_" in text) == (200, True)
    refusals = [
        call(daemon, "GET", target, token=token)
        for target in ("/readyz", "/v1/status", "/v1/records", "/agentos/api/v1/runs", "/x")
        for token in (None, "wrong")
    ]
    assert {status for status, _ in refusals} == {401}
    assert call(daemon, "GET", "/readyz", token=SPARE)[0] == 200


def test_nobody_over_tcp_is_an_admin(world):
    """Not even root, whom the kernel names: flush is for the Unix socket, and other users' pages get nothing at all."""
    daemon = guarded(world)
    for token in (BILLING, SPARE):
        status, answer = call(daemon, "POST", "/v1/flush", token=token)
        assert (status, answer["error"]["code"]) == (403, "forbidden")
    assert http_call(daemon.socket, "POST", "/v1/flush")[0] == 200
    assert call(daemon, "GET", "/v1/status", token=SPARE, Origin="https://evil.example")[0] == 403
    assert call(daemon, "GET", "/v1/status", token=SPARE, Host="evil.example")[0] == 403


@needs_root
def test_a_run_is_its_users_on_either_way_in(world):
    """Begun over TCP by one user: over the Unix socket it is that user's, over TCP it is no other user's, root included."""
    daemon = guarded(world, listen={"http": "127.0.0.1:0", "mode": "0666"})
    world.folder.chmod(0o711)
    start = world.ledger.start("r")
    assert call(daemon, "POST", "/v1/records", [start], token=BILLING, uid=NOBODY)[0] == 202
    world.ledger.took([start])
    os.seteuid(NOBODY)
    try:
        own = Frames(daemon)
    finally:
        os.seteuid(0)
    with own:
        assert own.deliver(world.ledger, [world.ledger.event("r")]) == {}
    for uid in (NOBODY - 1, 0):
        event = {"kind": "event", "run_id": "r", "type": "t"}
        status, answer = call(daemon, "POST", "/v1/records", [event], token=BILLING, uid=uid)
        assert (status, errors_of(answer)) == (422, ["$.run_id: belongs to another user"])
    event = world.ledger.event("r")
    assert call(daemon, "POST", "/v1/records", [event], token=BILLING, uid=NOBODY)[0] == 202
    world.ledger.took([event])


@needs_root
def test_a_uid_with_a_rule_speaks_for_its_agents(world):
    """`[[security.peers]]` narrows a user of the Unix socket to its agents; who has no rule may speak for all."""
    peers = [{"uid": NOBODY, "agent_ids": ["billing"]}]
    daemon = world.daemon(
        listen={"mode": "0666"},
        security={"peers": peers},
        destination={"agents": {"billing": AGENT, "ops": AGENT}},
    )
    world.folder.chmod(0o711)
    os.seteuid(NOBODY)
    try:
        bound = Frames(daemon)
    finally:
        os.seteuid(0)
    with bound, Frames(daemon) as free:
        refused = bound.ask([world.ledger.start("x", agent_id="ops")])["rejected"]
        assert "'ops' is not among the agents that you may speak for (billing)" in refused[0]["error"]
        assert bound.deliver(world.ledger, [world.ledger.start("a")]) == {}
        assert free.deliver(world.ledger, [world.ledger.start("b", agent_id="ops")]) == {}


def test_a_second_daemon_on_the_port_does_no_harm(world):
    """It exits 1 with one sentence that names the port; the first goes on, and the second's socket is gone."""
    daemon = guarded(world)
    second = world.daemon("e", start=False)
    token = {"token": {"file": str(world.folder / "spare.token")}}
    second.configure(listen={"http": f"127.0.0.1:{port_of(daemon)}"}, security={"tokens": [token]})
    second.spawn()
    assert second.wait() == 1
    text = second.log.read_text()
    assert "Traceback" not in text
    assert f"[listen] http: 127.0.0.1:{port_of(daemon)}: another program is listening here" in text
    second.log.unlink()
    assert not Path(second.socket).exists()
    records = world.ledger.whole_run("r", 2)
    assert call(daemon, "POST", "/v1/records", records, token=BILLING)[0] == 202
    world.ledger.took(records)
    assert world.cli("--config", str(daemon.config), "check", KEY="k").returncode == 0


def test_the_log_says_where_it_listens_and_no_token(world):
    """The real port is in the log and the status; a token is in neither, nor in what `config` and `check` print."""
    daemon = guarded(world)
    call(daemon, "POST", "/v1/records", [{"kind": "nonsense"}], token=BILLING)
    call(daemon, "GET", "/v1/status", token="wrong-" * 5)
    [line] = daemon.entries("started")
    assert f"http://127.0.0.1:{port_of(daemon)}" in line["message"]
    shown = daemon.log.read_text() + json.dumps(daemon.status())
    for verb in (["config"], ["check", "--json"]):
        shown += world.cli("--config", str(daemon.config), *verb, KEY="k").stdout
    assert not [token for token in (BILLING, BOTH, SPARE, "wrong-") if token in shown]


def test_a_listener_without_a_token_does_not_start(world):
    """Exit code 78 and a sentence that says what to write, from `run` and `check` alike."""
    daemon = world.daemon(start=False, listen={"http": "127.0.0.1:0"})
    for verb in ("run", "check"):
        done = world.cli("--config", str(daemon.config), verb, KEY="k")
        assert done.returncode == 78
        assert "[[security.tokens]]" in done.stderr + done.stdout


def test_a_slow_peer_holds_up_nobody(world):
    """Half a request that stays half: others are served meanwhile."""
    daemon = guarded(world)
    with socket.create_connection(("127.0.0.1", port_of(daemon))) as slow:
        slow.sendall(b"POST /v1/records HTTP/1.1\r\nHost: localhost\r\nX-API-Key: " + BILLING.encode())
        assert call(daemon, "GET", "/readyz", token=BILLING)[0] == 200
        with Frames(daemon) as client:
            records = [record | {"agent_id": "billing"} for record in world.ledger.whole_run("r", 1)]
            assert client.deliver(world.ledger, records) == {}
