"""Each message names the path, and what would be right."""

from __future__ import annotations

import json

import pytest

from agentd.errors import RecordError
from agentd.records import KINDS
from agentd.wire import decode_message


def said(text):
    [item] = decode_message(b"[" + text + b"]").items
    assert isinstance(item, RecordError)
    assert len(str(item)) <= 300
    return str(item)


def about(kind="event", **fields):
    base = {"event": {"run_id": "r", "type": "t"}, "run.complete": {"run_id": "r"}, "decision": {"context": "c"}}
    base |= {"task": {"run_id": "r", "task_id": "t", "name": "n", "status": "running"}}
    return said(json.dumps({"kind": kind, **base[kind], **fields}).encode())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"level": "warning"}, "$.level: expected one of debug, info, warn, error, got 'warning'"),
        ({"run_idd": "x"}, "$.run_idd: unknown field of event; did you mean run_id?"),
        ({"nonsense_at_all": 1}, "$.nonsense_at_all: unknown field of event"),
        ({"occurred_at": "yesterday"}, "$.occurred_at: expected an RFC 3339 time with an offset such as 2026-01-31T12:00:00Z"),
        ({"occurred_at": "2026-01-31T12:00:00"}, "$.occurred_at: expected an RFC 3339 time with an offset such as 2026-01-31T12:00:00Z"),
        ({"id": "5"}, "$.id: expected a UUID such as 01890a5d-ac96-774b-bcce-b302099a8057"),
        ({"run_id": ""}, "$.run_id: expected string of length >= 1"),
        ({"type": "x" * 600}, "$.type: expected string of length <= 512"),
        ({"run_id": 5}, "$.run_id: expected string, got integer"),
        ({"to": 5}, "$.to: expected string | array | null, got integer"),
    ],
)  # fmt: skip
def test_an_events_mistakes(fields, message):
    """Path, what is allowed, what was found, and the nearest name, in the words of whoever wrote the record."""
    assert about(**fields).replace('"', "'") == message


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("task", {"status": "done"}, "$.status: expected one of pending, running, completed, failed, skipped, got 'done'"),
        ("decision", {"confidence": 2}, "$.confidence: expected number <= 1.0"),
        ("decision", {"tokens_input": -1}, "$.tokens_input: expected integer >= 0"),
        ("decision", {"constraints": [5]}, "$.constraints[0]: expected string, got integer"),
        ("run.complete", {"usage": {"input_tokens": "7"}}, "$.usage.input_tokens: expected integer | null, got string"),
        ("run.complete", {"usage": {"input_token": 7}}, "$.usage.input_token: unknown field of run.complete; did you mean input_tokens?"),
    ],
)  # fmt: skip
def test_other_mistakes(kind, fields, message):
    """Numbers name their bounds, nested fields their whole path."""
    assert about(kind, **fields).replace('"', "'").startswith(message)


def test_a_missing_field_is_named():
    """What is required is said with its kind."""
    assert said(b'{"kind":"event","type":"t"}') == "$.run_id: required in event"


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        (b'{"kind":"evnt"}', ", got 'evnt'; did you mean event?"),
        (b'{"kind":"run.started"}', ", got 'run.started'; did you mean run.start?"),
        (b"{}", ""),
        (b'{"kind":5}', ""),
    ],
)
def test_an_unknown_kind_is_answered_with_all_of_them(text, rest):
    """All kinds are named, and the nearest one."""
    assert said(text) == f"$.kind: expected one of {', '.join(KINDS)}{rest}"[:300]


@pytest.mark.parametrize("text", [b"5", b"null", b'"x"', b"[]", b"true"])
def test_what_is_no_object_is_said_to_be_none(text):
    """A message that is no record at all says so at the root."""
    assert said(text).startswith("$: expected object, got ")


@pytest.mark.parametrize("name", ["x" * 5000, "`", "` - at `$.x`", "\n", "é" * 500, "\\", '"'])
def test_names_from_outside_are_bounded(name):
    """An error quotes what came from outside, and stays short whatever that is."""
    assert about(**{name: 1}).startswith("$")
