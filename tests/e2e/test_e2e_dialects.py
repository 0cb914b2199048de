"""One socket, three dialects: what an agent says in any of them is exactly what the platform holds. And what is said twice is held once."""

import json
import shutil
import subprocess
import uuid

import pytest
from harness import Frames, Lines, http_call

from agentd import Client

TASK = "5f0c4f3e-6f0e-4a63-a1a8-2a2f0d3c9b10"
RECORDS = [
    {"kind": "run.start", "run_id": "good", "input": {"invoice": "INV-001"}, "trigger_type": "manual"},
    {"kind": "event", "run_id": "good", "type": "step.begun", "level": "debug", "payload": {"rows": 42}},
    {"kind": "event", "run_id": "good", "type": "grüße", "level": "warn", "payload": {"text": "naïve ☃"}},
    {
        "kind": "span",
        "run_id": "good",
        "span_id": "s1",
        "name": "classify",
        "span_kind": "step",
        "parent_span_id": "s0",
        "started_at": "2026-01-02T03:04:05Z",
        "ended_at": "2026-01-02T03:04:06.500000Z",
        "duration_ms": 1500,
        "payload": {"deep": [1, {"two": 2.5}]},
    },
    {"kind": "task", "run_id": "good", "task_id": TASK, "name": "parse", "status": "running", "input": {"page": 1}},
    {"kind": "task", "run_id": "good", "task_id": TASK, "name": "parse", "status": "completed", "output": ["a"]},
    {"kind": "run.complete", "run_id": "good", "output": {"done": True}, "usage": {"input_tokens": 12}},
    {"kind": "run.start", "run_id": "bad"},
    {"kind": "event", "run_id": "bad", "type": "tool.failed", "level": "error", "payload": {"tool": "sh"}},
    {"kind": "run.fail", "run_id": "bad", "error_message": "no disk", "error_detail": {"errno": 28}},
    {"kind": "run.start", "run_id": "off", "parent_run_id": "good"},
    {"kind": "run.cancel", "run_id": "off", "reason": "nobody wants it"},
]


def by_lines(daemon):
    """As `nc -UN` does it: write, close the writing half, read to the end."""
    with Lines(daemon) as connection:
        connection.raw(b"".join(json.dumps(record).encode() + b"\n" for record in RECORDS))
        connection.half_close()
        assert connection.receive() is None


def by_frames(daemon):
    with Frames(daemon) as connection:
        assert connection.ask(RECORDS) == {"seq": 1, "accepted": len(RECORDS)}


def by_http(daemon):
    """With curl where there is one."""
    body = json.dumps(RECORDS).encode()
    curl = shutil.which("curl")
    if curl is None:
        status, answer = http_call(daemon.socket, "POST", "/v1/records", body)
    else:
        place = ["--unix-socket", daemon.socket, "http://localhost/v1/records"]
        command = [curl, "-sS", "-w", "\n%{http_code}", "--data-binary", "@-", *place]
        done = subprocess.run(command, input=body, capture_output=True, check=True, timeout=20)
        text, _, code = done.stdout.rpartition(b"\n")
        status, answer = int(code), json.loads(text)
    assert (status, answer) == (202, {"accepted": len(RECORDS), "rejected": []})


@pytest.mark.parametrize("say", [by_lines, by_frames, by_http])
def test_what_is_said_in_a_dialect_is_what_the_platform_holds(world, say):
    """Section 1: a run in lines, frames or HTTP arrives with every field as it was said, and nothing else."""
    daemon = world.daemon()
    say(daemon)
    assert daemon.drained()["delivered"] == len(RECORDS)
    good, bad, off = (world.platform.run(name) for name in ("good", "bad", "off"))
    assert {row["external_run_id"] for row in world.platform.runs()} == {"good", "bad", "off"}
    assert (good["status"], good["input"], good["trigger_type"]) == ("completed", {"invoice": "INV-001"}, "manual")
    assert (good["output"], good["tokens"], good["terminals"]) == ({"done": True}, {"input_tokens": 12}, ["complete"])
    first, second, span = good["events"]
    assert (first["type"], first["level"], _payload(first)) == ("step.begun", "debug", {"rows": 42})
    assert (second["type"], second["level"], _payload(second)) == ("grüße", "warn", {"text": "naïve ☃"})
    for field in ("span_id", "parent_span_id", "started_at", "ended_at", "duration_ms"):
        assert span[field] == RECORDS[3][field]
    assert (span["type"], span["kind"], _payload(span)) == ("classify", "step", {"deep": [1, {"two": 2.5}]})
    (task,) = good["tasks"]
    assert task == {
        "id": TASK, "name": "parse", "status": "completed", "posts": 2, "input": {"page": 1}, "output": ["a"],
    }  # fmt: skip
    assert (bad["status"], bad["error_message"], bad["error_detail"]) == ("failed", "no disk", {"errno": 28})
    assert [(event["type"], event["level"]) for event in bad["events"]] == [("tool.failed", "error")]
    assert (off["status"], off["reason"], off["events"]) == ("cancelled", "nobody wants it", [])
    assert off["parent_run_id"] == good["run_id"]


def _payload(event):
    uuid.UUID(event["payload"]["agentd_id"])
    return {key: value for key, value in event["payload"].items() if key != "agentd_id"}


@pytest.mark.usefixtures("agentd_live")
def test_what_the_client_library_says_is_what_the_platform_holds(world):
    """Section 8: runs, tasks and spans of the client library arrive, ended by how their blocks were left."""
    daemon = world.daemon()
    with Client(agent_id="8f7b2c1d-3e4f-4a5b-8c6d-7e8f9a0b1c2d", socket=daemon.socket) as client:
        with client.start_run(input={"invoice": "INV-001"}, run_id="good") as run:
            run.emit("step.completed", {"rows": 42})
            run.emit_llm_request("some-model", "Summarise this")
            with run.start_task("parse", task_id=TASK) as task:
                task.complete({"pages": 3})
            with run.start_span("classify", kind="step"):
                run.emit("inside", level="debug")
            run.complete({"ok": True}, usage={"input_tokens": 3, "output_tokens": 4})
        with pytest.raises(ZeroDivisionError), client.start_run(run_id="bad") as run:
            run.emit(str(1 / 0))
        with pytest.raises(KeyboardInterrupt), client.start_run(run_id="off"):
            raise KeyboardInterrupt
        result = client.flush(10, until="delivered")
        assert result.ok, result
        assert daemon.books()["queued"] == 0  # without a wait: that is what the flush has promised
        assert (client.dropped, client.stats().accepted) == (0, client.stats().emitted)
    assert daemon.drained()["delivered"] == client.stats().emitted
    good, bad, off = (world.platform.run(name) for name in ("good", "bad", "off"))
    assert [event["type"] for event in good["events"]] == ["step.completed", "llm.request", "inside", "classify"]
    assert _payload(good["events"][1]) == {"model": "some-model", "prompt": "Summarise this"}
    assert (good["status"], good["output"]) == ("completed", {"ok": True})
    assert good["tokens"] == {"input_tokens": 3, "output_tokens": 4}
    assert good["agent_id"] == "8f7b2c1d-3e4f-4a5b-8c6d-7e8f9a0b1c2d"
    assert [(task["status"], task["output"]) for task in good["tasks"]] == [("completed", {"pages": 3})]
    assert (bad["status"], bad["error_message"]) == ("failed", "ZeroDivisionError: division by zero")
    assert off["status"] == "cancelled"
    assert len(world.platform.runs()) == 3


def test_the_same_record_id_is_stored_once(world):
    """Section 1: the same id with the same content is accepted again and stored once, also after a restart; other content is refused."""
    daemon = world.daemon()
    ledger = world.ledger
    event = ledger.event("r") | {"id": str(uuid.uuid4())}
    other = event | {"level": "error"}
    with Lines(daemon) as client:
        assert client.deliver(ledger, [ledger.start("r"), event, event]) == {}
        assert client.deliver(ledger, [event]) == {}
        refused = client.ask([other, event])["rejected"]
        assert [item["index"] for item in refused] == [0]
        assert "was used for other content" in refused[0]["error"]
    for restart in (daemon.stop, daemon.kill):
        restart()
        daemon.start()
        with Lines(daemon) as client:
            assert client.deliver(ledger, [event]) == {}
            assert client.ask([other])["rejected"][0]["index"] == 0
    assert daemon.drained()["admitted"] == 2
    assert world.platform.state().events == 1


def test_a_refused_record_uses_up_no_id(world):
    """Small print of section 5: after a refusal the corrected record may bear the same id."""
    daemon = world.daemon()
    ledger = world.ledger
    event = ledger.event("r") | {"id": str(uuid.uuid4())}
    with Lines(daemon) as client:
        assert list(client.deliver(ledger, [ledger.start("r"), event | {"to": "nobody"}])) == [1]
        assert client.deliver(ledger, [event]) == {}
    assert daemon.drained()["delivered"] == 2


def test_an_envelope_of_a_stream_is_answered_again_after_kill_9(world):
    """Section 1: within a stream a repeated seq gets its kept outcome, refusals included, and stores nothing twice, over kill -9 too."""
    daemon = world.daemon()
    ledger = world.ledger
    stream = str(uuid.uuid4())
    records = [*ledger.events_of("r", 5), {"kind": "event", "run_id": "r", "type": "x", "level": "loud"}]
    envelope = {"seq": 1, "records": [ledger.start("r"), *records]}
    with Frames(daemon) as client:
        assert client.hello(stream)["last_seq"] == 0
        client.send(envelope)
        answer = client.receive()
        assert answer["accepted"] == 6
        assert [item["index"] for item in answer["rejected"]] == [6]
        ledger.took([ledger.start("r"), *records[:5]])
    daemon.kill()
    daemon.start()
    with Frames(daemon) as client:
        assert client.hello(stream)["last_seq"] == 1
        client.send(envelope)
        assert client.receive() == answer
    with Frames(daemon) as client:  # another stream's first envelope is none of this one's
        client.hello(str(uuid.uuid4()))
        assert client.deliver(ledger, ledger.events_of("r", 1)) == {}
    assert daemon.drained()["admitted"] == 7
