"""Inspection and pages, without sockets."""

from __future__ import annotations

import json
import re

import msgspec
import pytest

from agentd.sandbox import Call, Emulation
from agentd.sandbox.faults import PASS
from agentd.sandbox.inspection import inspect
from agentd.sandbox.pages import run_page

AGENT = "6f1c8f0e-3f0b-4b52-9a34-1f0f6f2f7c11"
EVIL = "<script>alert('x')</script>\"&"


def ask(emulation, method, path, query="", body=b""):
    answer = inspect(emulation, method, f"/_sandbox{path}", query, body)
    return answer.status, msgspec.json.decode(answer.body)


def send(emulation, path, body, **headers):
    face, relative = emulation.route(f"/api/ingest/v1{path}")
    headers = {"Authorization": "Bearer k"} | {name.replace("_", "-"): value for name, value in headers.items()}
    answer = emulation.answer(face, Call("POST", relative, headers, json.dumps(body).encode(), now=1.0), PASS)
    return answer.status, msgspec.json.decode(answer.body)["data"]


@pytest.fixture
def emulation():
    return Emulation(wall=lambda: 1.0)


def test_run_by_external_id_with_odd_characters(emulation):
    """A run is found by either id, whatever characters the client's id has."""
    _, data = send(emulation, "/run/start", {"agent_id": AGENT, "external_run_id": "a/b ü?"})
    for key in ("a%2Fb%20%C3%BC%3F", data["run_id"]):
        status, run = ask(emulation, "GET", f"/runs/{key}")
        assert (status, run["external_run_id"], run["face"]) == (200, "a/b ü?", "agentos")
    assert ask(emulation, "GET", "/runs/nosuch")[0] == 404


def test_pages_of_events(emulation):
    """Limit and offset cut a run's events across batches; sequence numbers stay those of arrival."""
    _, data = send(emulation, "/run/start", {"agent_id": AGENT})
    for size in (3, 1, 4):
        send(emulation, "/events", {"run_id": data["run_id"], "events": [{"type": "t"}] * size})
    assert ask(emulation, "GET", f"/runs/{data['run_id']}")[1]["event_count"] == 8
    for offset in range(10):
        for limit in range(10):
            run = ask(emulation, "GET", f"/runs/{data['run_id']}", f"limit={limit}&offset={offset}")[1]
            expected = list(range(1, 9))[offset : offset + limit]
            assert [event["sequence_number"] for event in run["events"]] == expected


def test_runs_newest_first(emulation):
    """Runs are listed newest first, with limit and offset."""
    for number in range(5):
        send(emulation, "/run/start", {"agent_id": AGENT, "external_run_id": f"run-{number}"})
    _, rows = ask(emulation, "GET", "/runs", "limit=2&offset=1")
    assert [row["external_run_id"] for row in rows] == ["run-3", "run-2"]
    assert len(ask(emulation, "GET", "/runs")[1]) == 5
    assert len(ask(emulation, "GET", "/runs", "offset=4")[1]) == 1


@pytest.mark.parametrize(
    ("request_line", "body", "status"),
    [
        ("GET /nosuch", b"", 404),
        ("POST /state", b"", 404),
        ("GET /reset", b"", 404),
        ("GET /runs?limit=-1", b"", 400),
        ("GET /requests?limit=x", b"", 400),
        ("GET /requests?limit=" + "9" * 5000, b"", 400),
        ("PUT /faults", b"{", 400),
        ("PUT /faults", b"[3]", 400),
        ("PUT /faults", b'{"status": 1000}', 400),
        ("PUT /switches", b"[]", 400),
        ("PUT /switches", b'{"agentos.nosuch": 1}', 400),
    ],
)
def test_wrong_inspections(emulation, request_line, body, status):
    """A wrong request to the sandbox itself gets an error with a code and a message."""
    method, _, target = request_line.partition(" ")
    path, _, query = target.partition("?")
    got, answer = ask(emulation, method, path, query, body)
    assert got == status
    assert set(answer["error"]) == {"code", "message"}


def test_faults_by_http(emulation):
    """PUT replaces the faults, POST adds, GET lists, DELETE lifts them; objects and texts alike."""
    assert ask(emulation, "PUT", "/faults", body=b'{"status": 503, "rate": 0.5}')[0] == 200
    _, faults = ask(emulation, "POST", "/faults", body=b'["cut,count=1", {"latency": "5ms"}]')
    assert [fault["live"] for fault in faults] == [True, True, True]
    assert faults[0] == {"status": 503, "rate": 0.5, "fired": 0, "live": True}
    assert ask(emulation, "PUT", "/faults", body=b'"hang"')[1] == [{"hang": True, "fired": 0, "live": True}]
    assert ask(emulation, "DELETE", "/faults")[1] == []
    assert ask(emulation, "GET", "/faults")[1] == []


def test_switches_by_http_all_or_none(emulation):
    """PUT throws switches, dotted or nested; if one is wrong, none is thrown."""
    _, switches = ask(emulation, "PUT", "/switches", body=b'{"agentos.late_events": 409, "agentos": {"max_events": 5}}')
    assert (switches["agentos"]["late_events"], switches["agentos"]["max_events"]) == ("409", 5)
    wrong = b'{"agentos.late_events": "accept", "agentos.second_terminal": "perhaps"}'
    assert ask(emulation, "PUT", "/switches", body=wrong)[0] == 400
    assert ask(emulation, "GET", "/switches")[1] == switches


def test_reset_forgets_data_and_keeps_levers(emulation):
    """Reset forgets runs, requests, keys and ids, gives faults their counts back, and leaves switches alone."""
    _, data = send(emulation, "/run/start", {"agent_id": AGENT, "external_run_id": "e"}, Idempotency_Key="k")
    event = {"type": "t", "payload": {"agentd_id": "x"}}
    send(emulation, "/events", {"run_id": data["run_id"], "events": [event, event]})
    emulation.faults.add("cut,count=1")
    assert [emulation.faults.decide("agentos", "/").ending for _ in range(2)] == ["cut", ""]
    emulation.throw("agentos.late_events=409")
    assert (emulation.state().runs, emulation.state().events, emulation.state().duplicates) == (1, 2, 1)
    _, state = ask(emulation, "POST", "/reset")
    assert (state["runs"], state["events"], state["duplicates"], state["requests"]) == (0, 0, 0, {})
    assert emulation.repeats() == {}
    assert emulation.requests() == []
    assert ask(emulation, "GET", "/runs/e")[0] == 404
    assert emulation.faults.listing() == [{"cut": True, "count": 1, "fired": 0, "live": True}]
    assert emulation.switches()["agentos"]["late_events"] == "409"


def test_pages_escape_what_agents_wrote(emulation):
    """Nothing that an agent or a client sends becomes markup, on either page, in any field."""
    body = {"agent_id": AGENT, "external_run_id": EVIL, "input": {EVIL: EVIL}, "parent_run_id": EVIL}
    _, data = send(emulation, "/run/start", body, Idempotency_Key=EVIL)
    event = {"type": EVIL, "payload": {EVIL: EVIL}, "kind": EVIL, EVIL: EVIL}
    task = {"id": AGENT, "name": EVIL, "status": "failed", "error_message": EVIL, "input": EVIL, "output": [EVIL]}
    send(emulation, "/events", {"run_id": data["run_id"], "events": [event]})
    send(emulation, "/tasks", {"run_id": data["run_id"], "task": task})
    send(emulation, "/run/fail", {"run_id": data["run_id"], "error_message": EVIL, "error_detail": {EVIL: EVIL}})
    send(emulation, "/" + EVIL, {})
    emulation.faults.add(f"status=500,path={EVIL}")
    for path in ("/", f"/view/agentos/{data['run_id']}"):
        answer = inspect(emulation, "GET", f"/_sandbox{path}", "", b"")
        page = answer.body.decode()
        assert answer.content_type.startswith("text/html")
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "&lt;script&gt;" in page
        assert "<script" not in page
        assert not re.search(r'(src|href)="(?!/_sandbox/|\?offset=)', page)


def test_overview_lists_runs_requests_and_levers(emulation):
    """The page shows the runs with links, the ledger with keys and faults, and what is set."""
    _, data = send(emulation, "/run/start", {"agent_id": AGENT, "external_run_id": "job-1"}, Idempotency_Key="key-1")
    page = inspect(emulation, "GET", "/_sandbox/", "", b"").body.decode()
    for text in (f'href="/_sandbox/view/agentos/{data["run_id"]}"', "job-1", "key-1", "running", "agentos.late_events"):
        assert text in page
    assert 'http-equiv="refresh"' in page
    assert "color-scheme: light dark" in page


def test_run_page_of_many_events():
    """A long run is shown in parts, with links to the neighbours."""
    run = {"id": "r", "face": "agentos", "event_count": 250, "events": [{"sequence_number": 101}], "tasks": []}
    page = run_page(run, offset=100, limit=100)
    assert 'href="?offset=0"' in page
    assert 'href="?offset=200"' in page
    assert "Events 101 to 200 of 250" in page
    assert "later events" not in run_page(run, offset=200, limit=100)
    assert "Events 0 to 0 of 0" in run_page({"id": "r", "event_count": 0}, offset=0, limit=100)
