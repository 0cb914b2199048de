"""`agentd emit`: from words to a record, and from lines to messages."""

from __future__ import annotations

import io

import pytest

from agentd.cli.emit import batches, build, send_lines
from agentd.errors import UsageError


class FakeDaemon:
    """Takes every record but those whose type is `bad`."""

    def __init__(self):
        self.bodies = []

    def ask(self, method, target, body):
        import json

        from agentd.cli.ask import Answer

        assert (method, target) == ("POST", "/v1/records")
        self.bodies.append(body)
        records = json.loads(body)
        rejected = [{"index": i, "error": "$.type: bad"} for i, r in enumerate(records) if r.get("type") == "bad"]
        return Answer(202, {"accepted": len(records) - len(rejected), "rejected": rejected})


@pytest.mark.parametrize(
    ("pairs", "fields"),
    [
        (["payload.rows=42"], {"payload": {"rows": 42}}),
        (["payload.step=fetch"], {"payload": {"step": "fetch"}}),
        (["payload.ok=true", "payload.none=null"], {"payload": {"ok": True, "none": None}}),
        (["payload.text=two words, a=b"], {"payload": {"text": "two words, a=b"}}),
        (['payload={"a": [1]}'], {"payload": {"a": [1]}}),
        (['payload:={"a": 1}', "payload.b=2"], {"payload": {"a": 1, "b": 2}}),
        (["payload.a.b.c=1", "payload.a.d=2"], {"payload": {"a": {"b": {"c": 1}, "d": 2}}}),
        (["payload.zip=01234"], {"payload": {"zip": "01234"}}),
        (['payload.version:="1.10"'], {"payload": {"version": "1.10"}}),
        (["payload.empty="], {"payload": {"empty": ""}}),
        (["payload.nan=NaN"], {"payload": {"nan": "NaN"}}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_values_are_json_where_they_are_json(pairs, fields):
    """A value that parses as JSON is JSON, anything else is text; dots nest; := insists."""
    assert build("event", ["run_id=r", "type=t", *pairs]) == {"kind": "event", "run_id": "r", "type": "t"} | fields


def test_text_fields_stay_text():
    """`run_id=42` names the run "42"; a field that holds only text is never turned into a number."""
    record = build("run.fail", ["run_id=42", "error_message=404", "agent_id=true"])
    assert record == {"kind": "run.fail", "run_id": "42", "error_message": "404", "agent_id": "true"}


def test_to_takes_one_name_or_several():
    """`to=a` is a name, `to=["a","b"]` are two."""
    assert build("heartbeat", ["to=a"])["to"] == "a"
    assert build("heartbeat", ['to=["a","b"]'])["to"] == ["a", "b"]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["type"], "expected key=value"),
        (["=1"], "expected key=value"),
        (["payload..a=1"], "expected key=value"),
        (["payload:={"], "not JSON"),
        (["payload=5", "payload.a=1"], "payload is a value already"),
        (["type=a", "type=b"], "type is given twice"),
        (["kind=event"], "the kind is the first word"),
    ],
)
def test_words_that_make_no_record_are_usage_errors(pairs, message):
    """What can't be read is refused before anything is sent."""
    with pytest.raises(UsageError, match=message):
        build("event", pairs)


def test_a_run_kind_without_run_says_what_is_missing():
    """All missing fields are named at once."""
    with pytest.raises(UsageError, match="event needs run_id=… and type=…"):
        build("event", ["payload.a=1"])
    with pytest.raises(UsageError, match=r"run\.start needs run_id=…"):
        build("run.start", [])


def test_a_slip_in_the_kind_names_the_nearest():
    """`evnt` is no kind; `event` is."""
    with pytest.raises(UsageError, match="did you mean event"):
        build("evnt", [])
    with pytest.raises(UsageError, match=r"known: run\.start"):
        build("qqq", [])


def test_a_kind_that_only_a_newer_daemon_knows_is_left_to_the_daemon():
    """The command line does not stand in the way of a daemon that knows more."""
    assert build("memory.written", ["x=1"]) == {"kind": "memory.written", "x": 1}


def test_lines_are_numbered_and_empty_ones_left_out():
    """Refusals name the line as an editor would count it."""
    assert list(batches(io.BytesIO(b"a\n\n \nb"))) == [[(1, b"a")], [(4, b"b")]]
    assert list(batches(io.BytesIO(b""))) == []


def test_what_a_pipe_brings_goes_out_at_once():
    """A line is sent when it is complete, not when a buffer is full."""

    chunks = [b'{"a"', b":1}\n", b"{}\n{}\n", b""]

    class Pipe:
        def read1(self, _):
            return chunks.pop(0)

    assert list(batches(Pipe())) == [[], [(1, b'{"a":1}')], [(2, b"{}"), (3, b"{}")]]


def test_an_endless_line_is_refused(monkeypatch):
    """A file that is no NDJSON does not fill the memory."""
    monkeypatch.setattr("agentd.cli.emit._MAX_LINE_BYTES", 10)
    with pytest.raises(UsageError, match="line 2: longer"):
        list(batches(io.BytesIO(b"a\n" + b"x" * 11)))


def test_one_bad_line_costs_only_itself():
    """Lines that are no JSON and records that the daemon refuses are named by line; the others are taken."""
    asked = FakeDaemon()
    taken = send_lines(asked, io.BytesIO(b'{"type":"a"}\nnot json\n\n{"type":"bad"}\n{"type":"b"}\n'))
    assert taken.accepted == 2
    assert [(refused["line"], refused["error"][:9]) for refused in taken.rejected] == [
        (2, "not JSON:"),
        (4, "$.type: b"),
    ]
    assert asked.bodies == [b'[{"type":"a"},{"type":"bad"},{"type":"b"}]']


def test_what_was_taken_as_json():
    """The document of --json leaves `rejected` out when there is nothing in it, as the daemon does."""
    assert send_lines(FakeDaemon(), io.BytesIO(b"")).document() == {"accepted": 0}
