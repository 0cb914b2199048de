"""Redaction by the real daemon: no planted secret is ever on its disk, in its log or at a platform, by whatever way it came."""

from __future__ import annotations

import json
import sys
import uuid
from pathlib import Path

import pytest
from harness import AGENT, Frames, Lines, http_call, wait_for

sys.path.insert(0, str(Path(__file__).parents[1] / "unit/redact"))

import corpus

FACES = ("agentos", "decisionos", "ascend")
DECIDER = str(uuid.uuid5(uuid.NAMESPACE_URL, "agentd:sandbox"))
PLANTED = corpus.planted(23, 2)
ASCEND = {"agent_id": "billing-bot", "platform": "ascend", "api_key": {"env": "KEY"}}


def daemon_of(world, **sections):
    """Three destinations: runs, decisions, gates."""
    url = world.platform.url
    return world.daemon(**{
        "destination": {"base_url": f"{url}/agentos"},
        "destinations.decisionos": {"platform": "decisionos", "base_url": f"{url}/decisionos", "agent_id": DECIDER, "api_key": {"env": "KEY"}},
        "destinations.ascend": ASCEND | {"base_url": f"{url}/ascend"},
    } | sections)  # fmt: skip


def needles(secrets):
    """In whatever way they may have been written."""
    forms = {
        form for secret in secrets for form in (secret, json.dumps(secret)[1:-1], json.dumps(json.dumps(secret))[2:-2])
    }
    return sorted(form.encode() for form in forms)


def leaks(folder: Path, secrets):
    """Files of the folder that hold one of the secrets."""
    wanted = needles(secrets)
    found = []
    for path in sorted(one for one in folder.rglob("*") if one.is_file()):
        data = path.read_bytes()
        found += [(path.name, needle) for needle in wanted if needle in data]
    return found


def post(daemon, target, body, status=None):
    answered, answer = http_call(
        daemon.socket, "POST", target, body if isinstance(body, bytes) else json.dumps(body).encode()
    )
    assert status is None or answered == status, answer
    return answer


def send_all(world, daemon):
    """Every planted secret, by frames, lines and HTTP; those who sent them hear that all was taken."""
    ledger = world.ledger
    with Frames(daemon) as client:
        assert client.deliver(ledger, [ledger.start("frames", input=PLANTED[0].payload)]) == {}
        records = [ledger.event("frames", planted=case.payload) for case in PLANTED]
        for first in range(0, len(records), 100):
            assert client.deliver(ledger, records[first : first + 100]) == {}
        assert (
            client.deliver(ledger, [ledger.end("frames", "run.fail", error_message=f"it used {PLANTED[0].secret}")])
            == {}
        )
    with Lines(daemon) as client:
        assert client.deliver(ledger, ledger.whole_run("lines", 0)) == {}
    over_http = [
        ledger.start("http"),
        *(ledger.event("http", planted=case.payload) for case in PLANTED[::5]),
        ledger.end("http"),
    ]
    assert post(daemon, "/v1/records", over_http, 202)["accepted"] == len(over_http)
    ledger.took(over_http)


@pytest.mark.parametrize("sync", ["full"])
def test_no_planted_secret_is_ever_on_disk(world, sync):
    """Records of every kind and dialect, SDK bodies, gates with their answers, evidence of what is refused, logs: with the platform away, after kill -9, delivered."""
    daemon = daemon_of(world, spool={"sync": sync}, log={"level": "debug"})
    secrets = {case.secret for case in PLANTED}
    key = next(case.secret for case in PLANTED if case.rule == "anthropic-key")
    world.platform.down()
    send_all(world, daemon)
    decision = {
        "kind": "decision",
        "context": f"use {key}",
        "decision_id": "d1",
        "options": [{"api_key": "hunter2-options"}],
        "chosen": "a",
    }
    assert post(daemon, "/v1/records", decision, 202)["accepted"] == 1
    # what is no record: unknown fields, a wrong type, a half
    refused = [
        {"kind": "decision", "context": "x", "client_secret": "hunter2-unknown"},
        {"kind": "task", "run_id": "frames", "task_id": "t", "name": "n", "status": key},
    ]
    assert post(daemon, "/v1/records", refused, 422)["rejected"]
    with Lines(daemon) as client:
        client.raw(b'{"kind":"decision","context":"%b","password":"hunter2-half\n' % key.encode())
        assert "error" in client.receive()
    # an SDK's own body
    sdk = {"agent_id": AGENT, "input": {"password": "hunter2-sdk", "text": key}, "external_run_id": "sdk-1"}
    run_id = post(daemon, "/agentos/api/ingest/v1/run/start", sdk, 200)["data"]["run_id"]
    for secret in ("hunter2-sdk1", "hunter2-sdk1", "hunter2-sdk2"):  # the second is the first again, the third is not
        body = {"run_id": run_id, "events": [{"type": "t", "payload": {"password": secret}}]}
        assert post(daemon, "/agentos/api/ingest/v1/events", body, 200)
    # a gate, whose question the platform hears as it was asked
    gate = post(daemon, "/v1/gate", {"gate": "action", "deadline": 0.3, "key": "k1", "request": {
        "action_type": "transaction", "resource": "stripe", "parameters": {"amount": 1, "password": "hunter2-gate", "note": key}}}, 200)  # fmt: skip
    assert gate["verdict"] == "unavailable"
    secrets |= {f"hunter2-{word}" for word in ("options", "unknown", "half", "sdk", "sdk1", "sdk2", "gate")}
    assert post(daemon, "/v1/flush?until=stored", b"", 200)["flushed"]
    hits = daemon.status()["redaction"]["hits"]
    assert {case.rule for case in PLANTED} <= set(hits)
    metrics = http_call(daemon.socket, "GET", "/metrics")[1]
    text = metrics if isinstance(metrics, str) else metrics.decode()
    assert 'agentd_redactions_total{rule="jwt"}' in text
    daemon.kill()
    assert leaks(daemon.state, secrets) == []
    assert leaks(daemon.log.parent, secrets) == []
    world.platform.up()
    daemon.start()
    daemon.drained()
    daemon.drained(destination="decisionos")
    assert leaks(daemon.state, secrets) == []
    assert [event["payload"]["password"] for event in world.platform.run("sdk-1")["events"]] == [
        "[redacted:password]"
    ] * 2
    # what reached the platform, and what is known of it
    told = json.dumps(world.platform.run("frames"))
    assert not any(secret in told for secret in secrets)
    assert "[redacted:anthropic-key]" in told
    shown = world.cli("--config", str(daemon.config), "where", "d1")
    assert "redacted: anthropic-key 1, api_key 1" in shown.stdout, shown.stdout
    letters = json.dumps(daemon.dead_letters())
    assert not any(secret in letters for secret in secrets)
    assert "[redacted:secret]" in letters


def test_a_question_is_known_again_and_its_secret_is_not(world):
    """A gate's record holds no secret, and answers whoever asks the same again, also after kill -9."""
    daemon = daemon_of(world)
    request = {
        "action_type": "transaction",
        "resource": "stripe",
        "parameters": {"amount": 1, "password": "hunter2-gate"},
    }
    heard = post(daemon, "/v1/gate", {"gate": "action", "key": "k1", "request": request}, 200)
    assert heard["final"]
    again = post(daemon, "/v1/gate", {"gate": "action", "key": "k1", "request": request}, 200)
    assert again["repeated"]
    daemon.kill()
    assert leaks(daemon.state, {"hunter2-gate"}) == []
    daemon.start()
    assert post(daemon, "/v1/gate", {"gate": "action", "key": "k1", "request": request}, 200)["repeated"]
    seen = http_call(daemon.socket, "GET", f"/v1/gates/{heard['gate_id']}")[1]
    assert seen["request"]["parameters"]["password"] == "[redacted:password]"


def test_a_reload_brings_other_rules(world):
    """From the reload on, records go by the new rules; what was stored stays as it was."""
    daemon = daemon_of(world)
    ledger = world.ledger
    with Frames(daemon) as client:
        assert client.deliver(ledger, [ledger.start("r"), ledger.event("r", badge="B-1")]) == {}
        before = daemon.status()["redaction"]["version"]
        daemon.configure(redact={"keys": ["default", "badge"], "patterns": ["default", "!jwt", "staff=EMP-[0-9]{6}"]})
        assert post(daemon, "/-/reload", b"")
        wait_for(lambda: daemon.status()["redaction"]["version"] != before)
        assert client.deliver(ledger, [ledger.event("r", badge="B-2", t="by EMP-123456"), ledger.end("r")]) == {}
    daemon.drained()
    payloads = [event["payload"] for event in world.platform.run("r")["events"]]
    assert [(one["badge"], one.get("t")) for one in payloads] == [
        ("B-1", None),
        ("[redacted:badge]", "by [redacted:staff]"),
    ]


def test_wrong_rules_do_not_start(world):
    """A catastrophic expression is named by `check` and stops the start with exit code 78."""
    daemon = world.daemon(start=False, redact={"patterns": ["default", "x=(a+)+$"]})
    done = world.cli("--config", str(daemon.config), "check", KEY="x")
    assert done.returncode == 78
    assert (
        "[redact] patterns: 'x=(a+)+$': may take for ever over some texts: a repeat stands within a repeat"
        in done.stderr + done.stdout
    )


def test_check_and_explain_show_the_rules(world):
    """`check` lists what is in force; `explain` says which rules would hit, and shows what would be sent."""
    daemon = world.daemon(start=False)
    done = world.cli("--config", str(daemon.config), "check", KEY="x")
    assert "[redact]: mode mask" in done.stdout
    assert "anthropic-key" in done.stdout
    file = world.folder / "one.ndjson"
    file.write_text(
        json.dumps(
            {"kind": "event", "run_id": "r", "type": "t", "payload": {"password": "hunter2", "x": PLANTED[0].secret}}
        )
    )
    shown = world.cli("--config", str(daemon.config), "explain", str(file), KEY="x")
    assert "(redacted: openai-key 1, password 1)" in shown.stdout
    assert "hunter2" not in shown.stdout
