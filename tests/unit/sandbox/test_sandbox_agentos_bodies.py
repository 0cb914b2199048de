"""AgentOS's bodies: what its schema takes and what it refuses."""

from __future__ import annotations

import json

import pytest

from agentd.sandbox._agentos_bodies import (
    CancelBody,
    CompleteBody,
    FailBody,
    Refused,
    StartBody,
    TaskBody,
    free_json,
    plain,
    read_body,
    read_events,
)

AGENT = "6f1c8f0e-3f0b-4b52-9a34-1f0f6f2f7c11"
FULL_EVENT = {
    "type": "step",
    "level": "warn",
    "payload": {"agentd_id": "a1", "deep": {"null_inside": None}},
    "occurred_at": "2026-01-01T00:00:00.123Z",
    "span_id": "s",
    "parent_span_id": "p",
    "kind": "tool",
    "started_at": "2026-01-01T00:00:00+00:00",
    "ended_at": "2026-01-01T00:00:01+00:00",
    "duration_ms": 1000,
}


def batch(*events):
    return json.dumps({"run_id": "r", "events": events}).encode()


def test_whole_and_smallest_event():
    """AgentOS: only `type` is required; every documented field is taken; a null inside a payload is no matter."""
    assert read_events(batch(FULL_EVENT, {"type": "t"})) == ("r", 2, [b"a1"])


@pytest.mark.parametrize("field", FULL_EVENT)
def test_null_is_refused(field):
    """AgentOS: optional fields may be left out, never null; one null refuses the whole batch."""
    with pytest.raises(Refused, match=rf"events\[1\]\.{field}") as refused:
        read_events(batch(FULL_EVENT, FULL_EVENT | {field: None}, FULL_EVENT))
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("type", ""),
        ("type", 7),
        ("level", "warning"),
        ("payload", []),
        ("payload", "text"),
        ("payload", 3),
        ("occurred_at", "yesterday"),
        ("occurred_at", "2026-01-01"),
        ("occurred_at", 1767225600),
        ("span_id", 5),
        ("kind", True),
        ("started_at", "soon"),
        ("ended_at", "later"),
        ("duration_ms", 1.5),
        ("duration_ms", "1000"),
        ("duration_ms", -1),
    ],
)
def test_wrong_types_are_refused(field, wrong):
    """AgentOS: level is one of debug, info, warn, error; a payload is an object; times are ISO; duration is an integer."""
    with pytest.raises(Refused, match=field):
        read_events(batch(FULL_EVENT | {field: wrong}))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"events": []}',
        b'{"run_id": "r"}',
        b'{"run_id": null, "events": []}',
        b'{"run_id": "r", "events": null}',
        b'{"run_id": "r", "events": {}}',
        b'{"run_id": "r", "events": [null]}',
        b'{"run_id": "r", "events": [{"type": "t", "payload": {"x": nope}}]}',
        b'{"run_id": "r", "events": [{"type": "t", "payload": {"x": NaN}}]}',
        b'{"run_id": "r", "events": [{"type": "t", "payload": {"x": "\xff"}}]}',
        b'{"run_id": "r", "events": [{"type": "t", "payload": ' + b"[" * 100_000,
    ],
)
def test_malformed_batches_are_refused(body):
    """AgentOS: what is no JSON, no UTF-8 or no batch is a validation error, and never a crash."""
    with pytest.raises(Refused) as refused:
        read_events(body)
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("payload", "ids"),
    [
        ('{"agentd_id":"x"}', [b"x"]),
        ('  {  "agentd_id" :\n "x", "a": 1}', [b"x"]),
        ('{"a": 1, "agentd_id": "x"}', []),
        ('{"agentd_id": 7}', []),
        ("{}", []),
    ],
)
def test_record_ids(payload, ids):
    """A record's id is seen when it is the payload's first key."""
    assert read_events(b'{"run_id":"r","events":[{"type":"t","payload":%s}]}' % payload.encode())[2] == ids


def start(**changes):
    return json.dumps({"agent_id": AGENT} | changes).encode()


def test_start():
    """AgentOS: a start needs an agent's UUID; trigger type is sdk unless it says otherwise."""
    assert read_body(start(), StartBody).trigger_type == "sdk"
    full = start(trigger_type="webhook", input={}, external_run_id="e", parent_run_id="p")
    assert read_body(full, StartBody).external_run_id == "e"


@pytest.mark.parametrize(
    "changes",
    [
        {"agent_id": "billing"},
        {"agent_id": AGENT + "\n"},
        {"agent_id": AGENT.replace("-", "")},
        {"agent_id": None},
        {"trigger_type": "cron"},
        {"trigger_type": None},
        {"input": None},
        {"input": []},
        {"external_run_id": None},
        {"external_run_id": 5},
        {"parent_run_id": None},
    ],
)
def test_wrong_start(changes):
    """AgentOS: agent_id is a UUID, trigger_type one of four, input an object, and nothing is null."""
    with pytest.raises(Refused, match=next(iter(changes))):
        read_body(start(**changes), StartBody)


TASK = {"id": AGENT, "name": "parse", "status": "running"}


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "task-1"},
        {"id": None},
        {"name": None},
        {"name": ""},
        {"status": "done"},
        {"status": "cancelled"},
        {"error_message": None},
    ],
)
def test_wrong_task(changes):
    """AgentOS: a task has a client-made UUID, a name and one of five statuses."""
    with pytest.raises(Refused, match=next(iter(changes))):
        read_body(json.dumps({"run_id": "r", "task": TASK | changes}).encode(), TaskBody)


def test_lengths_at_the_limit():
    """AgentOS: an error message has at most 4000 characters, a cancellation's reason 1000."""
    for shape, field, most in ((FailBody, "error_message", 4000), (CancelBody, "reason", 1000)):
        assert read_body(json.dumps({"run_id": "r", field: "ü" * most}).encode(), shape)
        with pytest.raises(Refused, match=field):
            read_body(json.dumps({"run_id": "r", field: "x" * (most + 1)}).encode(), shape)


@pytest.mark.parametrize(
    ("shape", "fields"),
    [
        (FailBody, {}),
        (FailBody, {"error_message": None}),
        (FailBody, {"error_message": "m", "error_detail": None}),
        (FailBody, {"error_message": "m", "error_detail": "text"}),
        (CancelBody, {"reason": None}),
        (CompleteBody, {"input_tokens": 1.5}),
        (CompleteBody, {"output_tokens": "7"}),
        (CompleteBody, {"cache_read_tokens": None}),
        (CompleteBody, {"cache_creation_tokens": -1}),
    ],
)
def test_wrong_ends(shape, fields):
    """AgentOS: a failure needs its message, token counts are integers, nothing is null."""
    with pytest.raises(Refused):
        read_body(json.dumps({"run_id": "r"} | fields).encode(), shape)


def test_free_json_may_be_anything_but_null():
    """AgentOS: an output or a task's input may be any JSON but null."""
    body = read_body(b'{"run_id": "r", "output": [1, null]}', CompleteBody)
    assert plain(free_json(body.output, "output")) == [1, None]
    assert free_json(read_body(b'{"run_id": "r"}', CompleteBody).output, "output") is None
    with pytest.raises(Refused, match=r"\$\.output"):
        free_json(read_body(b'{"run_id": "r", "output": null }', CompleteBody).output, "output")


def test_plain_reads_what_was_taken():
    """What passed the schema can be shown, a number beyond a double included."""
    assert plain(None) is None
    assert plain(b'{"x": 1e999}') == {"x": float("inf")}
