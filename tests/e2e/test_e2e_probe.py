"""The probe port of the real daemon: from the start's beginning to the end's, while it drains, and while a part of it hangs."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import uuid
from pathlib import Path

import pytest
from harness import AGENT, Frames, http_call, wait_for
from promtool_kit import promtool

ROOT = Path(__file__).parents[2]
WORDS = re.compile(r"\bagentd_[a-z_]+")


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def probe(port, target, method="GET"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=15)
    try:
        connection.request(method, target)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def reason(port, target):
    status, body = probe(port, target)
    return status, json.loads(body).get("reason", "")


def stir(daemon):
    """Something to commit that is no record; nobody waits for the answer, which may not come."""
    with Frames(daemon) as client:
        client.send({"hello": 1, "stream": str(uuid.uuid4()), "lost": {"closed:event": 1}})


@pytest.fixture
def port():
    return free_port()


def test_kubelet_and_prometheus_are_answered_and_nobody_else(world, port):
    """Health, readiness and metrics by GET and HEAD; whatever else the socket answers is 404 here, and a drain is 503."""
    daemon, ledger = world.daemon(listen={"probe": f"127.0.0.1:{port}"}, shutdown={"drain_timeout": "5s"}), world.ledger
    with Frames(daemon) as client:
        assert client.deliver(ledger, [ledger.start("r"), *ledger.events_of("r", 20)]) == {}
    assert [probe(port, target) for target in ("/healthz", "/readyz")] == [(200, '{"status": "ok"}')] * 2
    assert probe(port, "/healthz", "HEAD") == (200, "")
    for target in (
        "/v1/status",
        "/v1/records",
        "/v1/queue",
        "/v1/dead-letters",
        "/-/reload",
        "/agentos/api/v1/runs",
        "/",
    ):
        assert probe(port, target)[0] == 404
    assert probe(port, "/metrics", "POST")[0] == 405
    assert not [line for line in daemon.entries() if "/v1/" in line["message"]]
    with Frames(daemon) as client:
        assert client.deliver(ledger, [ledger.end("r")]) == {}
    wait_for(lambda: daemon.status()["destinations"]["agentos"]["queued"] == 0, 15)
    world.platform.faults("hang")
    with Frames(daemon) as client:
        assert client.deliver(ledger, [ledger.start("slow")]) == {}
    wait_for(lambda: daemon.status()["destinations"]["agentos"]["in_flight"] == 1, 10)
    daemon.signal(signal.SIGTERM)
    assert wait_for(lambda: (found := reason(port, "/readyz"))[0] == 503 and found, 5) == (503, "draining")
    assert probe(port, "/healthz")[0] == 200
    assert probe(port, "/metrics")[0] == 200
    assert daemon.wait() == 0
    world.platform.faults()
    daemon.start()
    with Frames(daemon) as client:
        assert client.deliver(ledger, [ledger.end("slow")]) == {}


def test_metrics_hold_what_alerts_and_dashboard_ask_for(world, port):
    """The real exposition passes promtool's lint, tells of no run, agent or record, and has every series that is asked for."""
    daemon, ledger = world.daemon(listen={"probe": f"127.0.0.1:{port}"}), world.ledger
    with Frames(daemon) as client:
        assert (
            client.deliver(ledger, [ledger.start("r-secret"), *ledger.events_of("r-secret", 5), ledger.end("r-secret")])
            == {}
        )
    wait_for(lambda: daemon.status()["destinations"]["agentos"]["queued"] == 0, 15)
    text = probe(port, "/metrics")[1]
    assert promtool("check", "metrics", stdin=text) == ""
    assert "r-secret" not in text
    assert AGENT not in text
    names = set(re.findall(r"^(agentd_\w+?)(?:\{| )", text, re.MULTILINE)) | set(
        re.findall(r"^# TYPE (agentd_\w+)", text, re.MULTILINE)
    )
    histograms = {name + end for name in names for end in ("_bucket", "_sum", "_count")}
    for file in ("agentd-alerts.yml", "agentd-dashboard.json"):
        lines = (ROOT / "config" / file).read_text().splitlines()
        asked = {name for line in lines for name in WORDS.findall(line.partition("#")[0])}
        assert asked - names - histograms == set(), file
    for line in (
        "agentd_books_balanced 1.0",
        "agentd_reload_successful 1.0",
        'agentd_destination_state{destination="agentos",state="ok"} 1.0',
    ):
        assert line in text
    for name, least in (
        ("ack_seconds_count", 1),
        ("commit_seconds_count", 1),
        ('delivery_seconds_count{destination="agentos"}', 7),
    ):
        assert float(re.search(rf"^agentd_{re.escape(name)} (\S+)$", text, re.MULTILINE)[1]) >= least, name
    assert http_call(daemon.socket, "GET", "/metrics")[0] == 200


def test_a_socket_that_was_taken_away_is_not_ready(world, port):
    """Somebody cleaned up /run: the daemon lives, and nobody can connect any more."""
    daemon = world.daemon(listen={"probe": f"127.0.0.1:{port}"})
    Path(daemon.socket).rename(daemon.socket + ".away")
    assert reason(port, "/readyz") == (503, f"the socket {daemon.socket} is gone")
    Path(daemon.socket).touch()
    assert reason(port, "/readyz") == (503, f"something else is at the socket's place {daemon.socket}")
    assert probe(port, "/healthz")[0] == 200
    Path(daemon.socket + ".away").rename(daemon.socket)
    assert probe(port, "/readyz")[0] == 200


@pytest.mark.slow
def test_what_hangs_is_told_while_it_hangs(world):
    """One daemon's storage thread hangs in a commit, another's event loop: both say so on their probe ports after 30 s, and which it is."""
    ports, daemons = {}, {}
    for name, point in (("storage", "commit.begun"), ("loop", "commit.gathered")):
        ports[name] = free_port()
        daemon = daemons[name] = world.daemon(name, start=False, listen={"probe": f"127.0.0.1:{ports[name]}"})
        daemon.environment = {"AGENTD_HANG_AT": point}
        daemon.spawn()
        wait_for(lambda name=name: probe(ports[name], "/healthz")[0] == 200, 15)
        wait_for(lambda daemon=daemon: Path(daemon.socket).exists() and daemon.entries("started"), 15)
        stir(daemon)
    _, storage = wait_for(lambda: (found := reason(ports["storage"], "/healthz"))[0] == 503 and found, 40)
    _, loop = wait_for(lambda: (found := reason(ports["loop"], "/healthz"))[0] == 503 and found, 10)
    assert re.fullmatch(r"the storage thread has ended nothing for 3\d s", storage)
    assert re.fullmatch(r"the event loop has not gone round for \d\d s", loop)
    assert probe(ports["loop"], "/metrics")[0] == 503
    for daemon in daemons.values():
        daemon.kill()
        daemon.environment = {}
        daemon.start()
