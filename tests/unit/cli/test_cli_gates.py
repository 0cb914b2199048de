"""`agentd gates`: what is shown of gates, and what resolving says."""

import json

import pytest
from click.testing import CliRunner

from agentd.cli import gates as verb
from agentd.cli import stopped

GATE = {
    "gate_id": "01890a5d-ac96-774b-bcce-b302099a8057", "gate": "intent", "destination": "aegis", "verdict": "unavailable",
    "proceed": False, "id": "mine", "platform_id": None, "reason": "no answer in time", "final": True, "response": None,
    "step": "final", "acted": True, "agent_id": "", "run_id": None, "span_id": None, "uid": 1000, "pid": 42, "key": "k",
    "deadline": 5.0, "tries": 1, "relayed": False, "asked_at": "2026-01-01T00:00:00.000000Z", "decided_at": "2026-01-01T00:00:05.000000Z",
    "resolved_by": None, "note": "", "request": {"amount": 5},
}  # fmt: skip


class Daemon:
    """Answers with what it is given, and remembers what it was asked."""

    def __init__(self, answer):
        self.answer = answer
        self.asked = []

    def get(self, path, **query):
        self.asked.append((path, query))
        return self.answer

    def post(self, path, *, body):
        self.asked.append((path, json.loads(body)))
        return self.answer


@pytest.fixture
def run(monkeypatch):
    def run(answer, *arguments):
        daemon = Daemon(answer)
        monkeypatch.setattr(verb, "daemon", lambda _socket: daemon)
        monkeypatch.setattr(stopped, "daemon", lambda _socket, _timeout_s: daemon)
        done = CliRunner().invoke(verb.gates, list(arguments))
        assert done.exit_code == 0, done.output
        return done.output, daemon.asked

    return run


def test_list_shows_what_has_to_be_known(run):
    """The verdict with what it alone does not say, and the reason below."""
    others = GATE | {"verdict": "pending", "final": False, "step": "pending", "acted": False, "agent_id": "billing"}
    text, asked = run([GATE, others], "list", "--state", "open")
    assert asked == [("/v1/gates", {"state": "open", "limit": 100})]
    lines = text.splitlines()
    assert "unavailable (may have acted)" in lines[1]
    assert lines[2].strip() == "no answer in time"
    assert "billing" in lines[3]
    assert "pending (pending)" in lines[3]


def test_list_without_gates_says_so(run):
    """Not an empty table."""
    assert run([], "list")[0] == "no gates\n"


def test_json_is_one_document(run):
    """As the daemon gave it."""
    assert json.loads(run([GATE], "list", "--json")[0]) == [GATE]
    assert json.loads(run(GATE, "show", "x", "--json")[0]) == GATE


def test_show_has_question_and_answer(run):
    """Ids are quoted on their way; what is not known is left out."""
    text, asked = run(GATE | {"response": {"ok": False}}, "show", "a/b")
    assert asked[0][0] == "/v1/gates/a%2Fb"
    assert '"amount": 5' in text
    assert '"ok": false' in text
    assert "run_id" not in text


def test_resolve_says_what_it_did(run):
    """The verdict, whose it is; and whether its key is free again."""
    resolved = GATE | {"verdict": "allow", "resolved_by": 0}
    text, asked = run(resolved, "resolve", "x", "allow", "--platform-id", "int_1", "--note", "seen")
    assert asked == [("/v1/gates/x/resolve", {"verdict": "allow", "platform_id": "int_1", "note": "seen"})]
    assert text == f"{GATE['gate_id']}: allow (intent at aegis, key k)\n"
    text, asked = run(GATE | {"acted": False}, "resolve", "x", "unavailable")
    assert asked == [("/v1/gates/x/resolve", {"verdict": "unavailable"})]
    assert text.splitlines()[1] == "the same question may be asked again under its key"
