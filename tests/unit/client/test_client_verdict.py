"""A verdict proceeds only if it certainly does, and errors say what was asked and why not."""

import json
import pickle

import pytest

from agentd import AgentdError, GateDenied, GateKeyConflict, GateRefused, GateTimeout, Verdict, queued
from agentd.client.verdict import NO_GATE, OWN_KEY, WORDS, read_fault, read_verdict
from agentd.gate import book
from agentd.gating import Word

ANSWER = {
    "gate_id": "g-1",
    "gate": "decide",
    "destination": "fyi",
    "verdict": "allow",
    "proceed": True,
    "id": "d-1",
    "platform_id": "dec_1",
    "reason": "RULE_1",
    "final": True,
    "response": {"verdict": "yes"},
}
VERDICT = Verdict("g-1", "decide", "fyi", "allow", True, "d-1", "dec_1", "RULE_1", {"verdict": "yes"})


def read(**changes):
    answer = {name: value for name, value in {**ANSWER, **changes}.items() if value is not ...}
    return read_verdict(json.dumps(answer).encode())


def test_the_words_are_the_daemons():
    """Client and daemon speak of the same five verdicts; the client alone does not import the daemon's list."""
    assert tuple(word.value for word in Word) == WORDS


def test_what_the_client_makes_up_is_known_to_the_daemon():
    """Both know by what an id begins that no agentd gave."""
    assert queued.NO_GATE == NO_GATE
    assert book.OWN_KEY == OWN_KEY


def test_an_answer_becomes_a_verdict():
    """Every field of the answer has its place."""
    assert read() == VERDICT
    assert read(repeated=True).repeated
    assert read_verdict(json.dumps(ANSWER).encode(), "billing").agent_id == "billing"


@pytest.mark.parametrize(
    ("changes", "proceeds"),
    [
        ({}, True),
        ({"verdict": "deny", "proceed": True}, False),
        ({"verdict": "review", "proceed": True}, False),
        ({"verdict": "pending", "proceed": True}, False),
        ({"verdict": "unavailable", "proceed": True}, False),
        ({"verdict": "unavailable", "proceed": True, "fail_open": True}, True),
        ({"verdict": "unavailable", "proceed": False, "fail_open": True}, False),
        ({"verdict": "deny", "proceed": True, "fail_open": True}, False),
        ({"verdict": "permit", "proceed": True}, False),
        ({"verdict": "permit", "proceed": True, "fail_open": True}, False),
        ({"verdict": "Allow", "proceed": True}, False),
        ({"proceed": False}, False),
        ({"proceed": ...}, False),
        ({"proceed": 1}, False),
        ({"proceed": "true"}, False),
        ({"proceed": None}, False),
    ],
)
def test_only_what_certainly_proceeds_does(changes, proceeds):
    """`allow` that proceeds, or `unavailable` that does by fail_mode alone; a contradiction never."""
    verdict = read(**changes)
    assert verdict.proceed is bool(verdict) is proceeds
    assert verdict.fail_open is (proceeds and changes.get("verdict") == "unavailable") or not proceeds


def test_a_word_of_a_newer_daemon():
    """An unknown word is unavailable, does not proceed, and the reason names it."""
    verdict = read(verdict="allow_once")
    assert verdict.unavailable
    assert "'allow_once'" in verdict.reason
    assert "update" in verdict.reason


@pytest.mark.parametrize(
    "changes", [{"verdict": ...}, {"verdict": 5}, {"id": None}, {"id": ...}, {"gate_id": ...}, {"gate_id": 7}]
)
def test_what_lacks_a_name_or_a_word_is_no_verdict(changes):
    """Without word, gate_id and id there is nothing to go on."""
    assert read(**changes) is None


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"allow"', b"null", b"\xff", b"<html>", b'{"verdict":"\xff"}'])
def test_what_is_no_object_is_no_verdict(body):
    """Whatever else listens there, its answer allows nothing."""
    assert read_verdict(body) is None


@pytest.mark.parametrize("changes", [{"reason": None}, {"gate": 1}, {"platform_id": 5}, {"response": ...}])
def test_a_strange_side_field_costs_only_itself(changes):
    """The rest of the answer still counts."""
    assert read(**changes).proceed


def test_final_unless_it_says_otherwise():
    """`final` left out is taken for true: nobody waits for what will not come."""
    assert read(final=...).final
    assert not read(verdict="pending", final=False).final


def test_require():
    """A verdict that proceeds is handed back; any other raises GateDenied with it."""
    assert VERDICT.require() is VERDICT
    denied = read(verdict="deny", proceed=False, reason="too much")
    with pytest.raises(GateDenied, match="decide of fyi is deny: too much") as caught:
        denied.require()
    assert caught.value.verdict is denied
    assert isinstance(caught.value, PermissionError)
    assert isinstance(caught.value, AgentdError)


def test_what_a_verdict_is_asked():
    """One word each; what proceeds by fail_mode was allowed by nobody."""
    assert [name for name in ("allowed", "denied", "pending", "unavailable") if getattr(VERDICT, name)] == ["allowed"]
    opened = read(verdict="unavailable", fail_open=True)
    assert opened
    assert not opened.allowed


def test_an_error_answer_is_read():
    """Code and message; whatever else a peer writes is quoted."""
    body = json.dumps(
        {"error": {"code": "malformed", "message": "$.request.amount: expected a number above 0"}}
    ).encode()
    refused = GateRefused(422, *read_fault(body))
    assert str(refused) == "agentd refused the gate (malformed): $.request.amount: expected a number above 0"
    assert refused.field == "$.request.amount"
    assert isinstance(refused, ValueError)
    assert GateRefused(403, "forbidden", "no such destination").field == ""
    assert read_fault(b'{"error": "spool full"}') == ("", "spool full")
    assert read_fault(b"<html>") == ("", "<html>")
    assert read_fault(b'{"error": 5}') == ("", "")


@pytest.mark.parametrize(
    "error", [GateDenied(VERDICT), GateTimeout(VERDICT, 5.0), GateKeyConflict(409, "gate_key_conflict", "$.key: used")]
)
def test_errors_travel_between_processes(error):
    """A pool of processes sends exceptions home."""
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert again.__dict__ == error.__dict__
