"""The gates of decide.fyi, Decision OS and AgentOS over real sockets: against the sandbox with each of its switches that they meet."""

from __future__ import annotations

import json
import time
import uuid

import pytest
from msgspec import Raw

from agentd import platforms
from agentd.exchange import Attempt, Context, Lost, Request, Sending
from agentd.gating import Question, Word
from agentd.http import Http, Way
from agentd.reach import Reach
from agentd.sandbox import Sandbox

KNOWN_AGENT = str(uuid.uuid5(uuid.NAMESPACE_URL, "agentd:sandbox"))
RULEBOOK = {
    "schema_version": "rulebook_v1", "rulebook_id": "discounts", "version": "1",
    "input_schema": {"required": ["discount"], "properties": {"discount": {"type": "number"}}},
    "rules": [
        {"rule_id": "small", "condition": {"field": "discount", "operator": "lte", "value": 10},
         "outcome": {"decision": "yes", "verdict": "APPROVED", "reason_code": "SMALL", "action": "approve_discount"}},
        {"rule_id": "large", "priority": 5, "condition": {"field": "discount", "operator": "gt", "value": 30},
         "outcome": {"decision": "no", "verdict": "DENIED", "reason_code": "TOO_LARGE", "action": "deny_discount"}},
    ],
    "default_outcome": {"decision": "review", "verdict": "REVIEW", "reason_code": "BETWEEN", "action": "ask_manager"},
}  # fmt: skip


def rulebook(discount=5, **fields):
    return {"mode": "rulebook", "rulebook": RULEBOOK, "context": {"inputs": {"discount": discount}}, **fields}


def question(gate, request, agent="", gate_id="gate-1", run_id=None):
    fields = {name: Raw(json.dumps(value).encode()) for name, value in request.items()}
    return Question(gate, gate_id, gate_id, agent, run_id, fields, int(time.time() * 1e6))


class Asker:
    """Asks one gate over one way out, as the gate room does."""

    def __init__(self, platform, gate, http, url, key="decide_live_a"):
        self.platform = platforms.load(platform)
        self.gate = self.platform.gates[gate]
        self.name = gate
        self.way = Way(http, Reach(url, timeout_s=2.0))
        self.key = key
        self.context = Context(lambda local: local or KNOWN_AGENT, lambda _kind, local: local)

    async def send(self, request, gate_id="gate-1"):
        headers = self.platform.headers(Sending(self.key, gate_id, time.time(), request.body))
        return await self.way.send(request, headers)

    async def ask(self, request, *, agent="", gate_id="gate-1", run_id=None, maybe_taken=False):
        asked = question(self.name, request, agent, gate_id, run_id)
        answer = await self.send(self.gate.ask(asked, self.context), gate_id)
        return self.gate.rule(asked, answer, Attempt(time.time(), maybe_taken))


@pytest.fixture
async def decide():
    async with Sandbox(["decidefyi"]) as sandbox, Http() as http:
        yield Asker("decidefyi", "decide", http, sandbox.url), sandbox


@pytest.fixture
async def decision():
    async with Sandbox(["decisionos"]) as sandbox, Http() as http:
        yield Asker("decisionos", "decision", http, sandbox.url, "dos_test_a"), sandbox


# -- decide.fyi ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", [None, "minimal", "standard", "full"])
@pytest.mark.parametrize(("discount", "word"), [(5, Word.ALLOW), (50, Word.DENY), (20, Word.REVIEW)])
async def test_a_rulebook_decides(decide, discount, word, view):
    """Decide: each verdict in each view, with the id by which receipts are written afterwards."""
    asker, sandbox = decide
    found = await asker.ask(rulebook(discount, response_view=view))
    assert (found.word, found.final) == (word, True)
    assert sandbox.run(found.platform_id)["id"] == found.platform_id


async def test_asked_again_under_the_same_key_it_is_the_same_decision(decide):
    """Decide: the same bytes under the same key act once, also when the first answer was lost; other content is a conflict."""
    asker, sandbox = decide
    sandbox.faults.add("cut,count=1")
    lost = await asker.ask(rulebook())
    assert (lost.word, lost.acted) == (Word.UNAVAILABLE, True)
    first = await asker.ask(rulebook(), maybe_taken=True)
    assert (await asker.ask(rulebook())).platform_id == first.platform_id
    assert sandbox.state().runs == 1
    other = await asker.ask(rulebook(6))
    assert (other.word, other.acted, other.platform_id) == (Word.UNAVAILABLE, True, None)
    assert "IDEMPOTENCY_CONFLICT" in other.reason
    assert (await asker.ask(rulebook(6), gate_id="gate-2")).word is Word.ALLOW


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (rulebook() | {"context": {"inputs": {}}}, "missing_fields discount"), ({"question": "ab"}, "Ask a question"),
        ({"question": "Which?", "options": ["a"]}, "2-8 options"), ({"question": "Should I take this medicine?"}, "filtered"),
        ({"question": "Ship today?"}, "advisory"), ({"question": "Ship today?", "mode": "runtime"}, "advisory"),
    ],
)  # fmt: skip
async def test_200_without_a_verdict_that_binds(decide, request_, said):
    """Decide: what needs input, is unclear, filtered or only advice is a final review that says so."""
    found = await decide[0].ask(request_)
    assert (found.word, found.final) == (Word.REVIEW, True)
    assert said in found.reason


@pytest.mark.parametrize(("advice", "word"), [("yes", Word.REVIEW), ("no", Word.DENY), ("review", Word.REVIEW)])
async def test_advice(decide, advice, word):
    """Decide: advice can stop an agent and never lets it go on."""
    asker, sandbox = decide
    sandbox.throw(f"decidefyi.advice={advice}")
    assert (await asker.ask({"question": "Ship today?"})).word is word


@pytest.mark.parametrize(
    ("ai", "word", "acted", "again"),
    [
        ("timeout", Word.REVIEW, True, False), ("invalid_response", Word.REVIEW, True, False), ("rate_limited", Word.REVIEW, True, False),
        ("rejected", Word.REVIEW, True, False), ("unavailable", Word.REVIEW, True, False), ("disabled", Word.UNAVAILABLE, False, False),
        ("misconfigured", Word.UNAVAILABLE, False, False), ("budget_exhausted", Word.UNAVAILABLE, False, False),
        ("budget_unavailable", Word.UNAVAILABLE, True, True),
    ],
)  # fmt: skip
async def test_a_provider_that_fails(decide, ai, word, acted, again):
    """Decide: a degraded answer is a review, a missing provider gives no verdict; rulebooks don't need one."""
    asker, sandbox = decide
    sandbox.throw(f"decidefyi.ai={ai}")
    found = await asker.ask({"question": "Ship today?"})
    assert (found.word, found.acted, found.again_s is not None) == (word, acted, again)
    assert (await asker.ask(rulebook(), gate_id="gate-2")).word is Word.ALLOW


@pytest.mark.parametrize("unit", ["ms", "s"])
@pytest.mark.parametrize("form", ["gateway", "runtime"])
async def test_the_minute_and_the_month(decide, unit, form):
    """Decide: 429 of the minute says when to ask again, that of the month does not; both made nothing."""
    asker, sandbox = decide
    for switch in (f"reset_unit={unit}", f"rate_limit_form={form}", "rate_limit=1"):
        sandbox.throw(f"decidefyi.{switch}")
    assert (await asker.ask(rulebook())).word is Word.ALLOW
    found = await asker.ask(rulebook(), gate_id="gate-2")
    assert (found.word, found.acted) == (Word.UNAVAILABLE, False)
    assert 0 < found.again_s <= 60
    sandbox.throw("decidefyi.rate_limit=none")
    sandbox.throw("decidefyi.monthly_cap=1")
    capped = await asker.ask(rulebook(), gate_id="gate-3")
    assert (capped.word, capped.acted, capped.again_s) == (Word.UNAVAILABLE, False, None)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (rulebook(rulebook={}), "rulebook.schema_version"), (rulebook(verdict="yes"), "verdict"),
        (rulebook(binding_mode="customer_executable_rulebook"), "BINDING_MODE_UNSUPPORTED"), ({"mode": "x"}, "mode must be"),
    ],
)  # fmt: skip
async def test_what_decide_refuses(decide, request_, said):
    """Decide: a refused request made nothing, and the reason says what was wrong with it."""
    found = await decide[0].ask(request_)
    assert (found.word, found.acted) == (Word.UNAVAILABLE, False)
    assert said in found.reason


@pytest.mark.parametrize(("switch", "acted"), [("signing=off", False), ("store=down", True)])
async def test_what_an_operator_has_to_see_to(decide, switch, acted):
    """Decide: without a signing key certainly nothing was decided, without its store perhaps."""
    asker, sandbox = decide
    sandbox.throw(f"decidefyi.{switch}")
    found = await asker.ask(rulebook())
    assert (found.word, found.acted) == (Word.UNAVAILABLE, acted)


# -- Decision OS -----------------------------------------------------------------------------------------------------------

ASKED = {
    "context": "Refund?",
    "options": ["yes", "no"],
    "chosen": "yes",
    "confidence": 0.9,
    "decision_id": "mine",
    "cost_usd": None,
}


@pytest.mark.parametrize("envelope", ["data", "bare"])
@pytest.mark.parametrize("created", ["200", "201"])
@pytest.mark.parametrize("status_word", ["logged", "draft"])
async def test_a_decision_that_its_policy_agrees_with(decision, envelope, created, status_word):
    """Decision OS: one logged and evaluated decision, in whichever envelope, status and word; asked twice it is the same."""
    asker, sandbox = decision
    for switch in (f"envelope={envelope}", f"created_status={created}", f"status_word={status_word}"):
        sandbox.throw(f"decisionos.{switch}")
    found = await asker.ask(ASKED, run_id="r1")
    assert (found.word, found.final) == (Word.ALLOW, True)
    assert (await asker.ask(ASKED, run_id="r1")).platform_id == found.platform_id
    stored = sandbox.run("gate-1")
    assert (sandbox.state().runs, stored["id"]) == (1, found.platform_id)
    assert (stored["sent"]["chosenOptionKey"], stored["sent"]["runId"]) == ("yes", "r1")


async def test_a_decision_that_its_policy_is_against(decision):
    """Decision OS: the sandbox says `ok: false` with an error and a change: nothing to go on with, and no plain denial."""
    asker, sandbox = decision
    sandbox.throw("decisionos.policy_eval_ok=false")
    found = await asker.ask(ASKED)
    assert (found.word, found.final) == (Word.REVIEW, True)
    assert "policyEval error" in found.reason


@pytest.mark.parametrize(("replayed", "word"), [("200", Word.ALLOW), ("201", Word.ALLOW), ("409", Word.UNAVAILABLE)])
async def test_a_repeat_after_a_lost_answer(decision, replayed, word):
    """Decision OS: the repeat gets the first decision, or a 409, after which something may have been made."""
    asker, sandbox = decision
    sandbox.throw(f"decisionos.replayed_status={replayed}")
    sandbox.faults.add("cut,count=1")
    assert (await asker.ask(ASKED)).acted
    found = await asker.ask(ASKED, maybe_taken=True)
    assert (found.word, found.acted, sandbox.state().runs) == (word, True, 1)


@pytest.mark.parametrize(("conflict", "word"), [("409", Word.UNAVAILABLE), ("original", Word.ALLOW)])
async def test_other_content_under_a_request_id(decision, conflict, word):
    """Decision OS: a client's request_id that was used before gives a 409 or the original, as the platform has it."""
    asker, sandbox = decision
    sandbox.throw(f"decisionos.request_id_conflict={conflict}")
    await asker.ask(ASKED | {"request_id": "q"})
    found = await asker.ask(ASKED | {"request_id": "q", "chosen": "no"}, gate_id="gate-2")
    assert (found.word, found.acted, sandbox.state().runs) == (word, True, 1)


@pytest.mark.parametrize("field", ["error", "message"])
@pytest.mark.parametrize("invalid", ["400", "422"])
async def test_what_decision_os_refuses(decision, field, invalid):
    """Decision OS: an invalid decision, an unknown agent and a used up quota made nothing, and the reason says it."""
    asker, sandbox = decision
    for switch in (f"error_field={field}", f"invalid_status={invalid}", "monthly_decisions=1"):
        sandbox.throw(f"decisionos.{switch}")
    for request, agent, said in (
        (ASKED | {"chosen": "maybe"}, "", "none of the options"), (ASKED, "stranger", "agent 'stranger'"), (ASKED, "", None),
        (ASKED | {"context": "Other?"}, "", "used up"),
    ):  # fmt: skip
        found = await asker.ask(request, agent=agent, gate_id=f"gate-{said}")
        assert (found.word, found.acted) == ((Word.ALLOW, True) if said is None else (Word.UNAVAILABLE, False))
        assert said is None or said in found.reason
    created = await asker.ask(ASKED | {"create_agent_if_missing": True}, agent="stranger", gate_id="gate-x")
    assert created.word is Word.UNAVAILABLE  # the quota stands


# -- AgentOS ---------------------------------------------------------------------------------------------------------------


class Workspace:
    """AgentOS with people and hosted agents, and a run on whose behalf they are asked."""

    def __init__(self, sandbox, http):
        self.sandbox = sandbox
        self.http = http

    def asker(self, gate):
        return Asker("agentos", gate, self.http, self.sandbox.url, "aos_agent_a")

    async def start(self):
        headers = {"Authorization": "Bearer aos_agent_a", "Content-Type": "application/json"}
        request = Request("/api/ingest/v1/run/start", json.dumps({"agent_id": KNOWN_AGENT}).encode())
        answer = await Way(self.http, Reach(self.sandbox.url, timeout_s=2.0)).send(request, headers)
        return json.loads(answer.body)["data"]["run_id"]

    def throw(self, **switches):
        for name, value in switches.items():
            self.sandbox.throw(f"agentos.{name}={value}")


@pytest.fixture
async def workspace():
    async with Sandbox(["agentos"]) as sandbox, Http() as http:
        yield Workspace(sandbox, http)


async def followed(asker, asked, platform_id):
    """One poll of a question that is known."""
    request = asker.gate.follow(asked, platform_id, asker.context)
    return asker.gate.rule_followed(asked, await asker.send(request), Attempt(time.time()))


@pytest.mark.parametrize(
    ("verb", "word", "said"),
    [("answer", Word.ALLOW, "a person replied"), ("cancel", Word.DENY, "CONFLICT")],
)
async def test_a_person_is_asked_until_there_is_a_reply(workspace, verb, word, said):
    """AgentOS: pending, and asked for again with the same body and the request's id, until somebody replies or cancels."""
    workspace.throw(human_input_poll=0)
    asker, run_id = workspace.asker("human_input"), await workspace.start()
    asked = question("human_input", {"prompt": "Ship?", "context": {"ü": 1}}, run_id=run_id)
    found = asker.gate.rule(asked, await asker.send(asker.gate.ask(asked, asker.context)), Attempt(time.time()))
    request_id = found.platform_id
    assert (found.word, found.final) == (Word.PENDING, False)
    again = await followed(asker, asked, request_id)
    assert (again.word, again.final, again.platform_id) == (Word.PENDING, False, request_id)
    workspace.sandbox.act("agentos", request_id, verb)
    found = await followed(asker, asked, request_id)
    assert (found.word, found.final) == (word, True)
    assert said in found.reason
    (stored,) = workspace.sandbox.run(run_id)["waited_for"]
    assert (stored["id"], stored["posts"], stored["context"]) == (request_id, 3, {"ü": 1})


@pytest.mark.parametrize(
    ("way", "word", "said"),
    [("answer", Word.ALLOW, ""), ("timeout", Word.DENY, "TIMEOUT"), ("cancel", Word.DENY, "CONFLICT")],
)
async def test_a_person_who_is_quick(workspace, way, word, said):
    """AgentOS: an answer within the first poll lets the agent go on; nobody in time and a cancellation do not."""
    workspace.throw(human_input=way)
    found = await workspace.asker("human_input").ask({"prompt": "Ship?"}, run_id=await workspace.start())
    assert (found.word, found.final) == (word, True)
    assert said in found.reason


@pytest.mark.parametrize("run", ["unknown", "ended"])
async def test_a_question_for_no_run(workspace, run):
    """AgentOS: a run that it doesn't know asks nobody; that of a run which is cancelled is cancelled."""
    run_id = "r"
    if run == "ended":
        run_id = await workspace.start()
        body = json.dumps({"run_id": run_id}).encode()
        await workspace.asker("human_input").send(Request("/api/ingest/v1/run/cancel", body))
    found = await workspace.asker("human_input").ask({"prompt": "Ship?"}, run_id=run_id)
    expected = (Word.UNAVAILABLE, False) if run == "unknown" else (Word.DENY, True)
    assert (found.word, found.acted) == expected
    assert workspace.sandbox.state().faces["agentos"]["details"]["questions"] == {}


@pytest.mark.parametrize(
    ("way", "word", "acted"),
    [
        ("complete", Word.ALLOW, True), ("awaiting_approval", Word.PENDING, True), ("awaiting_input", Word.PENDING, True),
        ("fail", Word.UNAVAILABLE, True),
    ],
)  # fmt: skip
async def test_a_hosted_agent_is_run(workspace, way, word, acted):
    """AgentOS: a run that is complete is an allow, one that has paused is open, and a failure may have done something."""
    workspace.throw(invoke=way)
    request = {"input": {"q": 1}, "prompt_variables": {"A": "b"}, "start_session": True, "test": True}
    found = await workspace.asker("invoke").ask(request)
    (row,) = workspace.sandbox.runs()
    assert (found.word, found.acted) == (word, acted)
    assert found.platform_id == (None if way == "fail" else row["id"])
    run = workspace.sandbox.run(row["id"])
    assert (run["agent_id"], run["input"]) == (KNOWN_AGENT, {"q": 1})
    assert run["hosted"] == {"prompt_variables": {"A": "b"}, "start_session": True, "test": True}


@pytest.mark.parametrize(
    ("request_", "said"), [({"agent_id": "bot 7"}, "no agent bot 7"), ({"session_id": "s"}, "no session s")]
)
async def test_an_agent_or_a_session_that_is_not_there(workspace, request_, said):
    """AgentOS: nothing ran, and the reason says what there is not."""
    found = await workspace.asker("invoke").ask(request_)
    assert (found.word, found.acted, workspace.sandbox.state().runs) == (Word.UNAVAILABLE, False, 0)
    assert said in found.reason


# -- all of them -----------------------------------------------------------------------------------------------------------

LEAST = {
    ("decidefyi", "decide"): rulebook(), ("decisionos", "decision"): ASKED, ("agentos", "human_input"): {"prompt": "Ship?", "run_id": "r"},
    ("agentos", "invoke"): {"input": {"q": 1}},
}  # fmt: skip


@pytest.mark.parametrize(("platform", "gate"), LEAST)
@pytest.mark.parametrize(
    ("fault", "acted", "again"),
    [
        ("cut", True, False), ("hang", True, False), ("down", True, False), ("status=500", True, False), ("status=503", True, False),
        ("status=401", False, False), ("status=403", False, False), ("retry_after=2s", False, True), ("retry_after=2s,retry_after_as=date", False, True),
        ("status=502,body=<html>", True, False), ("status=200,body=<html>", True, False),
    ],
)  # fmt: skip
async def test_faults_on_the_way(platform, gate, fault, acted, again):
    """Each gate: whatever goes wrong on the way is no allow, and tells whether something may have been made and when to ask again."""
    async with Sandbox([platform]) as sandbox, Http() as http:
        sandbox.faults.add(fault)
        asker = Asker(platform, gate, http, sandbox.url)
        asker.way = Way(http, Reach(sandbox.url, timeout_s=0.3))
        found = await asker.ask(LEAST[platform, gate])
        again = again or (fault.startswith("status=5") and asker.gate.traits.repeat)  # its key makes a repeat safe
        expected = Word.REVIEW if fault.startswith("status=200") else Word.UNAVAILABLE
        assert (found.word, found.final, found.acted, found.again_s is not None) == (expected, True, acted, again)
        assert not again or 0 < found.again_s <= 3


@pytest.mark.parametrize(("platform", "gate"), LEAST)
async def test_a_platform_that_cannot_be_reached(platform, gate):
    """Each gate: without a connection nothing was sent, and nothing made."""
    async with Sandbox([platform]) as sandbox, Http() as http:
        await sandbox.down()
        asker = Asker(platform, gate, http, sandbox.url)
        asked = question(gate, LEAST[platform, gate])
        answer = await asker.send(asker.gate.ask(asked, asker.context))
        assert isinstance(answer, Lost)
        assert (asker.gate.rule(asked, answer, Attempt(0.0)).acted, answer.sent) == (False, False)
        await sandbox.up()
