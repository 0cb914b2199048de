"""The body of `POST /v1/gate`: what is taken, and in which words the rest is refused."""

import json

import pytest

from agentd.gate.asking import MAX_DEADLINE_S, digest_of, read_asking, read_resolution
from agentd.intake import GateRefusal
from agentd.intake.admit import Limits

LIMITS = Limits(max_record_bytes=100, max_depth=4)


def read(**fields):
    return read_asking(json.dumps({"gate": "act", "request": {"a": None}} | fields).encode(), LIMITS)


def refused(body):
    with pytest.raises(GateRefusal) as refusal:
        read_asking(body, LIMITS)
    assert (refusal.value.status, refusal.value.code) == (422, "malformed")
    return str(refusal.value)


def test_a_question_is_read():
    """All fields; nulls of the request stay."""
    asking = read(to="cloud", deadline=MAX_DEADLINE_S, key="k" * 300, agent_id="a", run_id="r", span_id="s")
    assert (asking.gate, asking.to, asking.deadline, asking.run_id) == ("act", "cloud", 86_400.0, "r")
    assert {name: bytes(raw) for name, raw in asking.fields.items()} == {"a": b"null"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"deadline": 0}, "$.deadline"),
        ({"deadline": MAX_DEADLINE_S + 1}, "$.deadline"),
        ({"deadline": "5"}, "$.deadline"),
        ({"key": ""}, "$.key"),
        ({"key": "k" * 301}, "$.key"),
        ({"to": ["a", "b"]}, "$.to"),
        ({"agent_id": ""}, "$.agent_id"),
        ({"gate": 5}, "$.gate"),
        ({"request": []}, "$.request: expected an object"),
        ({"request": None}, "$.request: expected an object"),
        ({"request": {"a": "x" * 100}}, "above intake.max_record_bytes (100)"),
        ({"request": {"a": [[[[]]]]}}, "deeper than intake.max_depth (4)"),
        ({"deadlin": 5}, "$.deadlin: unknown field"),
    ],
)
def test_a_wrong_field_is_named(fields, words):
    """422 with the path and what would be right."""
    assert words in refused(json.dumps({"gate": "act", "request": {}} | fields).encode())


def test_limits_are_kept_to_the_byte():
    """At the limit it is taken."""
    assert read(request={"a": [[[]]]})
    text = "x" * (100 - len('{"a": ""}'))
    assert read(request={"a": text})
    assert "101 bytes" in refused(json.dumps({"gate": "act", "request": {"a": text + "x"}}).encode())


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'{"gate": "act"}', b'{"request": {}}', b'\xff{"gate": "act", "request": {}}',
        b'{"gate": "act", "request": {"a": "\xff"}}', b'{"gate": "act", "request": {"a": "\\ud800"}}',
        b'{"gate": "act", "request": {"a": NaN}}', b'{"gate": "act", "request": {"a": 1e999}}',
        b'{"gate": "act", "request": {"a": ' + b"[" * 5000 + b"]" * 5000 + b"}}",
    ],
)  # fmt: skip
def test_what_is_no_question_is_refused(body):
    """To its innermost value it has to be JSON: what stays raw is not looked at again before it is sent."""
    assert refused(body)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b'{"a": 1e999}', "$.request.a: a number out of range"),
        (b'{"a": {"b": [1, -1e999]}}', "$.request.a.b[1]: a number out of range"),
        (b'{"a": NaN}', "$.request.a: a number out of range, or none"),
        (b'{"a": "\\ud800"}', "$.request.a: a text with half of a surrogate pair"),
        (b'{"a": ["x", "\\udc00 b"]}', "$.request.a[1]: a text with half of a surrogate pair"),
        (b'{"a": {"\\ud800": 1}}', "$.request.a: the name '\\ud800' has half of a surrogate pair"),
    ],
)
def test_what_is_no_value_is_named(value, words):
    """Python writes such things, and no other parser takes them: the field is named, not only a byte."""
    message = refused(b'{"gate": "act", "request": ' + value + b"}")
    assert message.startswith(words)
    assert message.encode()
    with pytest.raises(GateRefusal, match=r"\$\.note: a text with half"):
        read_resolution(b'{"verdict": "allow", "note": "\\ud800"}')


def test_the_digest_is_of_what_is_asked():
    """Order of members and white space don't count; every value, gate, destination, agent and run do."""
    same = digest_of("act", "cloud", "a", "r", b'{"a": 1, "b": {"c": 2, "d": 3}}')
    assert digest_of("act", "cloud", "a", "r", b'{"b":{"d":3,"c":2},"a":1}') == same
    others = {
        digest_of("acts", "cloud", "a", "r", b'{"a":1,"b":{"c":2,"d":3}}'),
        digest_of("act", "other", "a", "r", b'{"a":1,"b":{"c":2,"d":3}}'),
        digest_of("act", "cloud", "b", "r", b'{"a":1,"b":{"c":2,"d":3}}'),
        digest_of("act", "cloud", "a", None, b'{"a":1,"b":{"c":2,"d":3}}'),
        digest_of("act", "cloud", "a", "r", b'{"a":1,"b":{"c":2,"d":4}}'),
        digest_of("act", "cloud", "a", "r", b'{"a":1,"b":{"c":2,"d":3},"e":null}'),
        digest_of("act", "cloud", "a", "r", b'{"a":[2,1]}'),
        digest_of("act", "cloud", "a", "r", b'{"a":[1,2]}'),
    }
    assert len(others) == 8
    assert same not in others


def test_a_resolution_is_read():
    """Four words; `pending` is none that a person would record."""
    assert read_resolution(b'{"verdict": "allow", "platform_id": "p", "note": "n"}').platform_id == "p"
    for body in (b'{"verdict": "pending"}', b'{"verdict": "yes"}'):
        with pytest.raises(GateRefusal, match=r"\$\.verdict: expected allow, deny, review or unavailable"):
            read_resolution(body)
    with pytest.raises(GateRefusal, match=r"\$\.why: unknown field"):
        read_resolution(b'{"verdict": "allow", "why": "x"}')
