"""What pyagentos-sdk 0.4.0 says, as records, gates and reads; and what it hears."""

from __future__ import annotations

import json
import re
from pathlib import Path

import agentos._control
import pytest
from sdk_kit import answer, called, find_door, handed, make_id, shown

from agentd.errors import RecordError
from agentd.exchange import Lost, Response
from agentd.platforms import load
from agentd.platforms._agentos_sdk import STAND_IN
from agentd.standin import Does, Why

INGEST = "/api/ingest/v1"
EVENTS = f"{INGEST}/events"
EVENT = {"type": "step", "level": "info", "payload": {"a": 1}, "occurred_at": "2026-01-01T00:00:00.123456Z"}
SPAN = {
    "type": "classify", "level": "error", "payload": {}, "occurred_at": "2026-01-01T00:00:00Z", "span_id": "s",
    "started_at": "2026-01-01T00:00:00Z", "ended_at": "2026-01-01T00:00:01Z", "duration_ms": 1000,
    "parent_span_id": "p", "kind": "llm",
}  # fmt: skip


def take(path, body):
    records, given = handed(STAND_IN, "POST", f"{INGEST}/{path}", body)
    return [shown(record) for record in records], given


def refused(path, body):
    with pytest.raises(RecordError) as error:
        take(path, body)
    return str(error.value)


# -- doors ---------------------------------------------------------------------------------------------------------------


def methods():
    """Of the SDK's control plane, by its own word on whether they only read."""
    source = Path(agentos._control.__file__).read_text()
    found = re.findall(r'self\._call\(\s*"(\w+)",.*?read_only=(True|False)', source, re.DOTALL)
    return {name: word == "True" for name, word in found}


def test_the_control_planes_reads_are_those_that_the_sdk_calls_reads():
    """Of its 56 methods those that only read pass, but for the keys'; all others are the admin's, known or not."""
    assert len(methods()) == 56
    for name, reads in methods().items():
        door, _ = find_door(STAND_IN, "POST", f"/api/v1/rpc/{name}")
        assert door.does is (Does.READ if reads and name != "api_keys_list" else Does.ADMIN), name
    assert find_door(STAND_IN, "POST", "/api/v1/rpc/from_a_later_version")[0].does is Does.ADMIN


@pytest.mark.parametrize(
    ("path", "does"),
    [
        (f"{INGEST}/run/start", Does.RECORD),
        (EVENTS, Does.RECORD),
        (f"{INGEST}/tasks", Does.RECORD),
        (f"{INGEST}/run/complete", Does.RECORD),
        (f"{INGEST}/run/fail", Does.RECORD),
        (f"{INGEST}/run/cancel", Does.RECORD),
        (f"{INGEST}/human-input/request", Does.GATE),
        ("/api/v1/agents/a/invoke", Does.GATE),
        ("/api/v1/approvals/a/decide", Does.ADMIN),
        ("/api/v1/runs/r/reply", Does.ADMIN),
        ("/api/v1/runs/r/human-input", Does.ADMIN),
    ],
)
def test_each_call_of_the_sdk_has_its_door(path, does):
    """Every path that client.py and run.py name."""
    assert find_door(STAND_IN, "POST", path)[0].does is does


def test_a_question_that_has_its_id_is_only_asked_for_its_answer():
    """The SDK's second call and those after it."""
    path = f"{INGEST}/human-input/request"
    asks = [
        STAND_IN.asks(called(STAND_IN, "POST", path, {"run_id": "r", "prompt": "p"} | more))
        for more in ({}, {"request_id": None}, {"request_id": "q"})
    ]
    assert asks == ["human_input", "human_input", None]
    assert STAND_IN.asks(called(STAND_IN, "POST", "/api/v1/agents/a/invoke", {})) == "invoke"


@pytest.mark.parametrize("value", ["", " ", "\u00a0\n", 0, 7, True, False, [], ["q"], {}, {"id": "q"}])
def test_what_is_no_id_asks_anew(value):
    """Whatever a platform may take for a `request_id` left out is a gate, on the record, and never a read."""
    body = {"run_id": "r", "prompt": "p", "request_id": value}
    assert STAND_IN.asks(called(STAND_IN, "POST", f"{INGEST}/human-input/request", body)) == "human_input"


# -- runs ----------------------------------------------------------------------------------------------------------------


def test_a_start_gives_the_run_a_local_id():
    """Made from the SDK's own key and the agent, so that the same start gives the same run."""
    body = {
        "agent_id": "billing",
        "trigger_type": "sdk",
        "input": {"n": 1},
        "external_run_id": "e",
        "parent_run_id": "p",
    }
    (record,), given = take("run/start", body)
    made = make_id("run e of billing")
    assert record == {"kind": "run.start", "run_id": made, **body}
    assert answer(given.reply) == {"data": {"run_id": made}, "error": None}
    assert given.key == "run e of billing"


def test_a_start_without_a_key_is_this_calls_own():
    """What the SDK never leaves out, another client may."""
    (record,), given = take("run/start", {"agent_id": "a"})
    assert (record, given.key) == ({"kind": "run.start", "run_id": make_id(""), "agent_id": "a"}, "")


def test_members_without_a_field_are_carried_through():
    """As `extra`, from where the adapter puts them back."""
    (record,), _ = take("run/start", {"agent_id": "a", "tags": ["x"], "nothing": None})
    assert record["extra"] == {"tags": ["x"]}
    (record,), _ = take("run/cancel", {"run_id": "r", "reason": "why", "by": {"a": 1}})
    assert (record["reason"], record["extra"]) == ("why", {"by": {"a": 1}})


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("run/start", {}, "$.agent_id: required"),
        (
            "run/start",
            {"agent_id": "a", "trigger_type": "odd"},
            "$.trigger_type: expected one of manual, scheduled, webhook, sdk",
        ),
        ("run/start", {"agent_id": "a", "input": [1]}, "$.input: expected an object"),
        ("run/start", {"agent_id": 7}, "$.agent_id: expected a string"),
        ("events", {"events": []}, "$.run_id: required"),
        ("events", {"run_id": "r"}, "$.events: expected an array"),
        ("events", {"run_id": "r", "events": {}}, "$.events: expected an array"),
        ("events", {"run_id": "r", "events": [EVENT, 7]}, "$.events[1]: expected an object"),
        ("events", {"run_id": "r", "events": [{"level": "info"}]}, "$.events[0].type: required"),
        (
            "events",
            {"run_id": "r", "events": [EVENT | {"level": "warning"}]},
            "$.events[0].level: expected one of debug",
        ),
        ("events", {"run_id": "r", "events": [EVENT | {"payload": "x"}]}, "$.events[0].payload: expected an object"),
        (
            "events",
            {"run_id": "r", "events": [EVENT | {"occurred_at": "noon"}]},
            "$.events[0].occurred_at: expected an ISO",
        ),
        ("events", {"run_id": "r", "events": [SPAN | {"duration_ms": -1}]}, "$.events[0].duration_ms: "),
        ("tasks", {"run_id": "r"}, "$.task: required"),
        ("tasks", {"run_id": "r", "task": {"name": "n", "status": "running"}}, "$.task.id: required"),
        (
            "tasks",
            {"run_id": "r", "task": {"id": "t", "name": "n", "status": "odd"}},
            "$.task.status: expected one of pending",
        ),
        ("run/complete", {"run_id": "r", "input_tokens": -1}, "$.input_tokens: "),
        ("run/fail", {"run_id": "r"}, "$.error_message: required"),
        ("run/fail", {"run_id": "r", "error_message": "e", "error_detail": "d"}, "$.error_detail: expected an object"),
        ("run/cancel", {}, "$.run_id: required"),
    ],
)
def test_what_is_wrong_is_named_in_the_sdks_words(path, body, said):
    """The member, and what would be right."""
    assert refused(path, body).startswith(said)


def test_every_end():
    """Usage stands at the top of AgentOS's call and in an object of its own in a record."""
    body = {"run_id": "r", "output": {"a": 1}, "input_tokens": 1, "cache_read_tokens": 2, "cost": 3}
    (record,), given = take("run/complete", body)
    usage = {"input_tokens": 1, "cache_read_tokens": 2}
    assert record == {"kind": "run.complete", "run_id": "r", "output": {"a": 1}, "usage": usage, "extra": {"cost": 3}}
    assert answer(given.reply)["data"] == {"run_id": "r", "status": "completed"}
    (record,), given = take("run/fail", {"run_id": "r", "error_message": "e", "error_detail": {"t": 1}})
    assert record == {"kind": "run.fail", "run_id": "r", "error_message": "e", "error_detail": {"t": 1}}
    assert answer(given.reply)["data"]["status"] == "failed"
    (record,), given = take("run/cancel", {"run_id": "r"})
    assert (record, answer(given.reply)["data"]["status"]) == ({"kind": "run.cancel", "run_id": "r"}, "cancelled")


# -- events ----------------------------------------------------------------------------------------------------------------


def test_a_batch_is_events_and_spans():
    """What has a span's id is a span; its name is the event's type."""
    (event, span), given = take("events", {"run_id": "r", "events": [EVENT, SPAN]})
    assert event == {
        "kind": "event",
        "run_id": "r",
        "type": "step",
        "payload": {"a": 1},
        "occurred_at": EVENT["occurred_at"],
    }
    wanted = {name: value for name, value in SPAN.items() if name not in {"type", "kind", "occurred_at"}}
    assert span == wanted | {"kind": "span", "run_id": "r", "name": "classify", "span_kind": "llm"}
    assert answer(given.reply) == {"data": {"accepted": 2}, "error": None}


@pytest.mark.parametrize(
    "event",
    [
        SPAN | {"occurred_at": "2026-01-01T00:00:07Z"},
        {name: value for name, value in SPAN.items() if name != "span_id"},
        EVENT | {"colour": "red", "kind": "step"},
    ],
)
def test_what_is_no_whole_span_keeps_all_its_members(event):
    """As an event, with what an event has no field for in `extra`."""
    (record,), _ = take("events", {"run_id": "r", "events": [event]})
    known = {"type", "level", "payload", "occurred_at"}
    assert record["kind"] == "event"
    assert record["extra"] == {name: value for name, value in event.items() if name not in known}


def test_nulls_and_times_without_an_offset_cost_no_batch():
    """At AgentOS one null refuses all 50 events; here it is as if it had been left out."""
    event = {"type": "a", "payload": None, "level": None, "occurred_at": "2026-01-01T00:00:00", "span_id": None}
    (record,), _ = take("events", {"run_id": "r", "events": [event]})
    assert record == {"kind": "event", "run_id": "r", "type": "a", "occurred_at": "2026-01-01T00:00:00Z"}


def test_what_can_not_be_carried_through_is_said():
    """Batches are regrouped: what stands beside the events has no place any more."""
    _, given = take("events", {"run_id": "r", "events": [], "sdk": "x", "batch": 7})
    assert list(given.left_out) == ["batch", "sdk"]


def test_a_task():
    """Created and updated under the SDK's own id."""
    task = {"id": "t", "name": "parse", "status": "running", "input": {"f": 1}, "priority": 3}
    (record,), given = take("tasks", {"run_id": "r", "task": task})
    assert record == {
        "kind": "task", "run_id": "r", "task_id": "t", "name": "parse", "status": "running", "input": {"f": 1},
        "extra": {"priority": 3},
    }  # fmt: skip
    assert answer(given.reply)["data"] == {"task_id": "t"}
    (record,), _ = take(
        "tasks", {"run_id": "r", "task": {"id": "t", "name": "n", "status": "failed", "error_message": "e"}}
    )
    assert (record["status"], record["error_message"]) == ("failed", "e")


# -- gates -----------------------------------------------------------------------------------------------------------------


def asked(path, body):
    return STAND_IN.asked(called(STAND_IN, "POST", path, body))


def test_what_a_gate_asks_for_the_record():
    """A question is its run's; an invoke that of its parent run's agent, else of the agent that it names."""
    question = asked(f"{INGEST}/human-input/request", {"run_id": "r", "prompt": "p", "context": None})
    assert (question.agent, question.run_id, set(question.request)) == ("", "r", {"run_id", "prompt"})
    invoke = asked("/api/v1/agents/hosted/invoke", {"input": {"q": 1}})
    assert (invoke.agent, invoke.run_id, bytes(invoke.request["agent_id"])) == ("hosted", None, b'"hosted"')
    invoke = asked("/api/v1/agents/hosted/invoke", {"parent_run_id": "r"})
    assert (invoke.agent, invoke.run_id) == ("", "r")


@pytest.mark.parametrize("body", [{"run_id": "r"}, {"prompt": "p"}, {"run_id": "", "prompt": "p"}])
def test_a_question_says_who_asks_what(body):
    """Otherwise nothing is on record and nothing is sent."""
    with pytest.raises(RecordError, match="required"):
        asked(f"{INGEST}/human-input/request", body)


def stream(*events, end="\n\n"):
    return "\n\n".join(f"data: {json.dumps(event)}" for event in events).encode() + end.encode()


START = {"type": "start", "run_id": "R"}


@pytest.mark.parametrize(
    ("body", "status", "data"),
    [
        (stream(START, {"type": "done", "run_id": "R"}), 200, {"run_id": "R"}),
        (stream(START, {"type": "done", "run_id": "R"}, end=""), 200, {"run_id": "R"}),
        (b'ut off"}\n\n' + stream({"type": "done", "run_id": "R"}), 200, {"run_id": "R"}),
        (stream({"type": "done", "run_id": "R"}, {"type": "newer"}), 200, {"run_id": "R"}),
        (b'data: {"type":"done",\r\ndata: "run_id":"R"}\r\n\r\n', 200, {"run_id": "R"}),
        (
            stream(START, {"type": "awaiting_approval", "run_id": "R", "approval_id": "A"}),
            202,
            {"awaiting_approval": {"approval_id": "A"}},
        ),
        (
            stream(START, {"type": "awaiting_input", "run_id": "R", "request_id": "Q", "question": "?"}),
            202,
            {"awaiting_input": {"request_id": "Q", "question": "?"}},
        ),
    ],
)
def test_a_stream_is_ruled_on_by_its_last_event(body, status, data):
    """As the answer that the same invoke gives in one piece, so that the gate's own rules apply."""
    whole = STAND_IN.whole(Response(200, {}, body))
    assert whole.status == status
    assert data.items() <= json.loads(whole.body)["data"].items()
    word = {200: "allow", 202: "pending"}[status]
    assert load("agentos").gates["invoke"].rule(None, whole, None).word == word


def test_a_stream_that_ends_in_an_error_is_no_leave():
    """It comes after HTTP 200; what it says is the platform's."""
    body = stream(START, {"type": "error", "code": "PROVIDER_ERROR", "message": "no"})
    whole = STAND_IN.whole(Response(200, {}, body))
    assert (whole.status, json.loads(whole.body)["error"]["code"]) == (500, "PROVIDER_ERROR")


@pytest.mark.parametrize(
    "body", [b"", stream(START), stream(START, {"type": "chunk", "text": "x"}), b"data: {}\n\n", b"data: [\n\n"]
)
def test_a_stream_without_its_last_event_is_a_lost_answer(body):
    """What was begun may have acted."""
    assert STAND_IN.whole(Response(200, {}, body)) == Lost("the stream ended without its last event", sent=True)


# -- refusals ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("why", "status", "kind"),
    [
        (Why.MALFORMED, 400, "AgentOSValidationError"),
        (Why.UNAUTHENTICATED, 401, "AgentOSAuthError"),
        (Why.FORBIDDEN, 403, "AgentOSError"),
        (Why.NOT_FOUND, 404, "AgentOSError"),
        (Why.TOO_LARGE, 413, "AgentOSError"),
        (Why.SPOOL_FULL, 429, "AgentOSRateLimitError"),
        (Why.UNREACHABLE, 503, "AgentOSTransientError"),
        (Why.NO_ANSWER, 504, "AgentOSTransientError"),
        (Why.OUTCOME_UNKNOWN, 424, "AgentOSError"),
        (Why.INTERNAL, 500, "AgentOSTransientError"),
    ],
)
def test_a_refusal_is_the_sdks_own_exception(why, status, kind):
    """Which of them it repeats follows from that: room and what was not sent, never what may have acted."""
    import httpx
    from agentos._transport import _to_error

    reply = STAND_IN.refusal(why, "in words")
    error = _to_error(httpx.Response(reply.status, content=reply.body))
    assert (reply.status, type(error).__name__, str(error)) == (status, kind, "in words")
    assert error.code != "TIMEOUT"  # which a question takes for "nobody replied"
