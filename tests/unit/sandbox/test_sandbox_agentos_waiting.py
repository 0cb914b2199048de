"""What waits for a person at the sandbox's AgentOS, in time that the test tells: no sockets."""

from __future__ import annotations

import json

import msgspec
import pytest

from agentd.errors import UsageError
from agentd.sandbox import AgentosSwitches, Call, Emulation
from agentd.sandbox.faults import PASS
from agentd.sandbox.switches import with_switch

AGENT = "6f1c8f0e-3f0b-4b52-9a34-1f0f6f2f7c11"
DAY_S = 24 * 3600.0


class Rig:
    """A sandbox without a server, asked at times of the test's choice."""

    def __init__(self):
        self.emulation = Emulation(["agentos", "aegis"])
        self.face = self.emulation.faces["agentos"]

    def send(self, path, body, now):
        call = Call("POST", path, {"Authorization": "Bearer k"}, json.dumps(body).encode(), now=now)
        return self.emulation.answer(self.face, call, PASS)

    def data(self, path, body, now):
        return msgspec.json.decode(self.send(path, body, now).body)["data"]

    def start(self, now=0.0):
        return self.data("/api/ingest/v1/run/start", {"agent_id": AGENT}, now)["run_id"]

    def ask(self, run_id, now, **fields):
        return self.send("/api/ingest/v1/human-input/request", {"run_id": run_id, "prompt": "?", **fields}, now)

    def invoke(self, now=0.0):
        return self.data(f"/api/v1/agents/{AGENT}/invoke", {}, now)


@pytest.fixture
def rig():
    return Rig()


def test_a_question_is_held_for_its_poll_or_its_time(rig):
    """Held until the poll is over or its seconds are, whichever comes first; then it is pending, or was not answered in time."""
    rig.emulation.throw("agentos.human_input_poll=270")
    run_id = rig.start()
    held = rig.ask(run_id, 1000.0).held
    assert held.until == 1270.0
    assert held.look(1269.9).held.until == 1270.0
    pending = held.look(1270.0)
    assert (pending.status, pending.held) == (202, None)
    held = rig.ask(run_id, 1300.0, timeout_seconds=60).held
    assert (held.until, held.look(1359.9).status) == (1360.0, 202)
    assert (held.look(1360.0).status, held.look(1360.0).held) == (408, None)


def test_a_held_answer_is_written_down_when_it_is_said(rig):
    """The ledger tells what the client heard, and that is not known while an answer is held."""
    run_id = rig.start()
    answer = rig.ask(run_id, 1.0)
    assert [line.path for line in rig.emulation.requests()] == ["/api/ingest/v1/run/start"]
    rig.emulation.act("agentos", run_id, "answer", "x")
    assert msgspec.json.decode(answer.held.look(2.0).body)["data"]["input"] == "x"
    rig.emulation.throw("agentos.human_input_poll=0")
    assert rig.ask(run_id, 3.0).held is None
    assert [line.status for line in rig.emulation.requests()] == [202, 200]


def test_nobody_decides_for_a_day(rig):
    """AgentOS: an approval that nobody decides within 24 hours is rejected, and not before; its run fails."""
    rig.emulation.throw("agentos.invoke=awaiting_approval")
    run_id = rig.invoke(1000.0)["run_id"]
    rig.start(1000.0 + DAY_S - 0.1)
    assert rig.emulation.run(run_id)["status"] == "running"
    rig.start(1000.0 + DAY_S)
    run = rig.emulation.run(run_id)
    assert (run["status"], run["waits_for"], run["error_message"]) == (
        "failed",
        None,
        "send_email was rejected: nobody decided in time",
    )
    assert rig.emulation.act("agentos", run["waited_for"][0]["id"], "approve").status == 409


def test_a_poll_of_one_question_leaves_what_else_is_late_to_its_run(rig):
    """An approval that expires while a question is held still brings its run to an end."""
    rig.emulation.throw("agentos.invoke=awaiting_approval")
    paused = rig.invoke(0.0)["run_id"]
    held = rig.ask(rig.start(), DAY_S - 1, timeout_seconds=10).held
    assert held.look(DAY_S + 20).status == 408
    rig.start(DAY_S + 21)
    assert rig.emulation.run(paused)["status"] == "failed"


def test_how_long_a_hosted_run_took(rig):
    """The duration is from the invoke to the person's word."""
    rig.emulation.throw("agentos.invoke=awaiting_input")
    paused = rig.invoke(5.0)
    assert paused["duration_ms"] == 0
    reply = rig.data(f"/api/v1/runs/{paused['run_id']}/human-input", {"response": "go"}, 7.5)
    assert reply["duration_ms"] == 2500


def test_reset_forgets_what_waits(rig):
    """After a reset there is neither run nor question; a poll that was held then ends as it stood."""
    run_id = rig.start()
    held = rig.ask(run_id, 1.0).held
    rig.emulation.reset()
    assert rig.emulation.act("agentos", run_id, "answer").status == 404
    assert held.look(100.0).status == 202
    assert rig.ask(run_id, 2.0).status == 404


def test_words_for_a_platform_that_takes_none(rig):
    """A text that nobody would hear is refused, not dropped."""
    with pytest.raises(UsageError, match="aegis takes no input"):
        rig.emulation.act("aegis", "int_1", "deny", "because")


def test_switches_of_people():
    """The poll takes a unit and may be none at all; an answer has a text."""
    assert with_switch(AgentosSwitches(), "human_input_poll", "250ms").human_input_poll == 0.25
    assert with_switch(AgentosSwitches(), "human_input_poll", "270").human_input_poll == 270.0
    assert with_switch(AgentosSwitches(), "human_input_poll", 0).human_input_poll == 0.0
    for name, value in (("human_input_poll", "-1"), ("human_input_answer", ""), ("invoke", "later")):
        with pytest.raises(UsageError):
            with_switch(AgentosSwitches(), name, value)
