"""Request bodies of the HTTP dialect: what is one document, what is lines, and what is neither."""

from __future__ import annotations

import json

import pytest

from agentd.errors import RecordError, WireError
from agentd.intake.routes import parse_body

EVENT = json.dumps({"kind": "event", "run_id": "r", "type": "t"}).encode()
PRETTY = json.dumps([json.loads(EVENT)] * 2, indent=2).encode()


@pytest.mark.parametrize(
    ("body", "content_type", "count"),
    [
        (EVENT, "application/json", 1),
        (b"[" + EVENT + b"," + EVENT + b"]", "application/json", 2),
        (b"[]", "application/json", 0),
        (PRETTY, "application/json", 2),
        (PRETTY, "text/plain", 2),
        (b"\n\n" + EVENT + b"\n", "text/plain", 1),
        (EVENT + b"\n" + EVENT, "application/json", 2),
        (EVENT + b"\r\n\r\n" + EVENT + b"\r\n", "text/plain", 2),
        (EVENT, "application/x-ndjson", 1),
        (EVENT + b"\n" + EVENT, "application/jsonl", 2),
        (b'{"seq":1,"records":[' + EVENT + b"]}\n" + EVENT, "application/x-ndjson", 2),
        (b"", "application/x-ndjson", 0),
    ],
)
def test_records_are_found(body, content_type, count):
    """One record, an array, an envelope, or one document a line, by content type or by the look of the first line."""
    message = parse_body(body, content_type)
    assert len(message.items) == count
    assert not any(isinstance(item, RecordError) for item in message.items)


def test_seq_of_an_envelope_is_kept():
    """The seq of the one envelope that is the whole body comes back; lines have none."""
    assert parse_body(b'{"seq":7,"records":[]}', "application/json").seq == 7
    assert parse_body(b'{"seq":7,"records":[]}\n', "application/x-ndjson").seq is None


def test_bad_line_is_an_error_in_its_place():
    """In lines, what is no JSON, a hello, or a wrong envelope costs itself alone."""
    body = b"\n".join([EVENT, b"{", b'{"hello":1}', b'{"seq":1}', EVENT])
    items = parse_body(body, "application/x-ndjson").items
    assert [isinstance(item, RecordError) for item in items] == [False, True, True, True, False]


@pytest.mark.parametrize("body", [b"", b" \n ", b"{", b"nonsense\n" + EVENT, b'{"hello":1}', b"1\n["])
def test_body_of_which_nothing_can_be_read_is_an_error(body):
    """Where not one document can be read the whole body is refused."""
    with pytest.raises(WireError):
        parse_body(body, "application/json")
