"""The gates of ASCEND and Aegis against the sandbox over real sockets, with every switch on which their sources disagree."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from uuid import UUID

import aiohttp
import msgspec
import pytest
from msgspec import Raw

from agentd import platforms
from agentd.exchange import Attempt, Context, Lost, Sending
from agentd.gating import Question, Word
from agentd.http import Http
from agentd.outcomes import Delivered
from agentd.queued import Entry, Source
from agentd.reach import Reach
from agentd.records import Record, kind_of, lane_of, loss_class
from agentd.sandbox import Sandbox
from agentd.wire import encode

AGENT = "6f1c8f0e-3f0b-4b52-9a34-1f0f6f2f7c11"  # Aegis wants a UUID
ACTION = {
    "agent_name": "Bot", "action_type": "query", "resource": "orders", "tool_name": "sql", "description": "count the orders",
    "parameters": {"q": "select 1"},
}  # fmt: skip
INTENT = {"amount": 12500, "currency": "INR", "reason": "Vendor payment", "merchant_category": "office"}
CONTEXT = Context(lambda local: AGENT if local == "bot" else local, lambda _kind, local: local)


class Asker:
    """Asks one gate of one adapter, as the gate room does: request, headers, answer, ruling."""

    def __init__(self, name, gate, sandbox, http, session):
        self.platform = platforms.load(name)
        self.gate = self.platform.gates[gate]
        self.name, self.sandbox, self.http, self.session = name, sandbox, http, session
        self.gate_id = str(uuid.uuid4())
        self.secret = None
        self.key = "the-key"

    def question(self, request):
        raw = {name: Raw(json.dumps(value).encode()) for name, value in request.items()}
        return Question("gate", self.gate_id, self.gate_id, "bot", None, raw, 0)

    async def send(self, request):
        headers = self.platform.headers(Sending(self.key, self.gate_id, time.time(), request.body, self.secret))
        return await self.http.post(Reach(self.sandbox.url), request, headers, 5.0)

    async def ask(self, request):
        question = self.question(request)
        answer = await self.send(self.gate.ask(question, CONTEXT))
        return self.gate.rule(question, answer, Attempt(time.time()))

    async def follow(self, platform_id):
        question = self.question({})
        answer = await self.send(self.gate.follow(question, platform_id, CONTEXT))
        return self.gate.rule_followed(question, answer, Attempt(time.time()))

    async def follow_to_the_end(self, platform_id):
        async with asyncio.timeout(10):
            while not (found := await self.follow(platform_id)).final:
                await asyncio.sleep(0.02)
        return found

    async def guard(self):
        return self.gate.rule_guard(await self.send(self.gate.guard()), Attempt(time.time()))

    async def person(self, item, verb):
        async with self.session.post(f"{self.sandbox.url}/_sandbox/act/{self.name}/{item}/{verb}") as answer:
            assert answer.status == 200

    async def read(self, path):
        headers = {"Authorization": f"Bearer {self.key}"}
        async with self.session.get(f"{self.sandbox.url}{path}", headers=headers) as answer:
            return await answer.json()

    def runs(self):
        return self.sandbox.state().runs


@pytest.fixture
async def ascend():
    async with Sandbox(["ascend"]) as sandbox, aiohttp.ClientSession() as session, Http() as http:
        yield Asker("ascend", "action", sandbox, http, session)


@pytest.fixture
async def aegis():
    switches = ["aegis.decision_delay=0"]
    async with Sandbox(["aegis"], switches=switches) as sandbox, aiohttp.ClientSession() as session, Http() as http:
        yield Asker("aegis", "intent", sandbox, http, session)


# -- ASCEND ----------------------------------------------------------------------------------------------------------------

DECIDED = {"approved": Word.ALLOW, "denied": Word.DENY}


@pytest.mark.parametrize("id_type", ["int", "string"])
@pytest.mark.parametrize("shape", ["A", "B", "C", "D"])
async def test_every_shape_of_decision(ascend, shape, id_type):
    """Approved and denied at once, in every shape and with ids of either type; the id is the action's on the record."""
    ascend.sandbox.throw(f"ascend.response_shape={shape}")
    ascend.sandbox.throw(f"ascend.id_type={id_type}")
    for decision, word in DECIDED.items():
        ascend.sandbox.throw(f"ascend.decision={decision}")
        found = await ascend.ask(ACTION)
        assert (found.word, found.final) == (word, True)
        assert ascend.sandbox.run(found.platform_id)["status"] == decision
        assert found.reason == f"the sandbox is set to {decision}"


@pytest.mark.parametrize("id_type", ["int", "string"])
@pytest.mark.parametrize("shape", ["A", "B", "C", "D"])
@pytest.mark.parametrize(("verb", "word"), [("approve", Word.ALLOW), ("deny", Word.DENY)])
async def test_a_person_decides_later(ascend, shape, id_type, verb, word):
    """Pending stays open, read after read, until a person has decided; then that is the last word."""
    ascend.sandbox.throw(f"ascend.response_shape={shape}")
    ascend.sandbox.throw(f"ascend.id_type={id_type}")
    first = await ascend.ask(ACTION | {"require_approval": True})
    assert (first.word, first.final) == (Word.PENDING, False)
    second = await ascend.follow(first.platform_id)
    assert (second.word, second.final) == (Word.PENDING, False)
    await ascend.person(first.platform_id, verb)
    last = await ascend.follow(first.platform_id)
    assert (last.word, last.final, last.platform_id) == (word, True, first.platform_id)


@pytest.mark.parametrize(("delayed", "word"), [("approved", Word.ALLOW), ("denied", Word.DENY)])
@pytest.mark.parametrize("shape", ["A", "B", "C", "D"])
async def test_a_decision_that_takes_its_time(ascend, shape, delayed, word):
    """`processing` is not final: the gate is followed until the platform has decided by itself."""
    for switch in (
        f"response_shape={shape}",
        "decision=pending",
        "decision_delay=100ms",
        f"delayed_decision={delayed}",
    ):
        ascend.sandbox.throw(f"ascend.{switch}")
    first = await ascend.ask(ACTION)
    assert (first.word, first.final) == (Word.PENDING, False)
    assert (await ascend.follow_to_the_end(first.platform_id)).word is word


@pytest.mark.parametrize("required", ["doc", "minimal", "server"])
async def test_the_union_is_taken_by_every_server(ascend, required):
    """Whichever fields a server demands, a request that has them all is understood; details stand where the SDK has them."""
    ascend.sandbox.throw(f"ascend.required_fields={required}")
    found = await ascend.ask(ACTION)
    assert found.word is Word.ALLOW
    sent = ascend.sandbox.run(found.platform_id)["sent"]
    assert sent["agent_id"] == AGENT
    assert sent["context"] == {"agentd_gate_id": ascend.gate_id}
    assert sent["action_details"] == {"q": "select 1", "tool_name": "sql", "description": "count the orders"}


@pytest.mark.parametrize(("required", "missing"), [("doc", "resource"), ("server", "description, tool_name")])
@pytest.mark.parametrize("envelope", ["enveloped", "flat", "fastapi"])
async def test_what_a_server_misses_is_said(ascend, required, missing, envelope):
    """A refusal of fields reaches whoever asked in the platform's words, and nothing was made."""
    ascend.sandbox.throw(f"ascend.required_fields={required}")
    ascend.sandbox.throw(f"ascend.error_envelope={envelope}")
    found = await ascend.ask({"action_type": "query"})
    assert (found.word, found.acted) == (Word.UNAVAILABLE, False)
    assert f"Missing required fields: {missing}" in found.reason
    assert ascend.runs() == 0


async def test_a_denial_in_a_403(ascend):
    """Switch governance_403: a denial comes as 403 without an id, and is a denial."""
    ascend.sandbox.throw("ascend.governance_403=on")
    found = await ascend.ask(ACTION | {"risk_indicators": {"pii_involved": True, "external_transfer": True}})
    assert (found.word, found.final, found.platform_id) == (Word.DENY, True, None)
    assert found.reason == "Governance policy violation: personal data must stay inside"


async def test_an_unregistered_agent(ascend):
    """Switch unregistered: the other 403 is about permission, and no decision."""
    ascend.sandbox.throw("ascend.unregistered=refuse")
    found = await ascend.ask(ACTION)
    assert (found.word, found.acted, found.reason) == (
        Word.UNAVAILABLE, False, "403 INSUFFICIENT_PERMISSIONS: Agent must be registered first",
    )  # fmt: skip


async def test_the_kill_switch(ascend):
    """Off, thrown by a person, released."""
    assert await ascend.guard() is None
    async with ascend.session.post(
        f"{ascend.sandbox.url}/api/billing/kill-switch/org/trigger",
        json={"reason": "incident 4711"}, headers={"X-API-Key": "the-key"},
    ) as answer:  # fmt: skip
        assert answer.status == 200
    found = await ascend.guard()
    assert (found.word, found.acted, found.reason) == (Word.DENY, False, "kill switch: incident 4711")
    await ascend.person("kill-switch", "release")
    assert await ascend.guard() is None


async def test_a_server_without_a_kill_switch(ascend, aegis):
    """404: there is none to read. A server that fails leaves it unread."""
    ascend.sandbox.faults.add("status=503,count=1")
    found = await ascend.guard()
    assert (found.word, found.acted) == (Word.UNAVAILABLE, False)
    ascend.sandbox = aegis.sandbox
    assert await ascend.guard() is None


@pytest.mark.parametrize("envelope", ["enveloped", "flat", "fastapi"])
@pytest.mark.parametrize(("status", "acted"), [(400, False), (401, False), (403, False), (404, False), (422, False), (500, True), (503, True)])  # fmt: skip
async def test_failures_in_every_envelope(ascend, envelope, status, acted):
    """A failure is no decision in any envelope, its words reach the reason, and a read that fails decides nothing."""
    ascend.sandbox.throw(f"ascend.error_envelope={envelope}")
    ascend.sandbox.faults.add(f"status={status}")
    found = await ascend.ask(ACTION)
    assert (found.word, found.acted) == (Word.UNAVAILABLE, acted)
    assert "injected by the sandbox" in found.reason
    later = await ascend.follow("act_1")
    assert (later.word, later.final) == (Word.PENDING, False)


@pytest.mark.parametrize("headers", ["both", "reset"])
async def test_a_rate_limit(ascend, headers):
    """Beyond the limit nothing is made, and the wait is at most the window."""
    ascend.sandbox.throw(f"ascend.rate_headers={headers}")
    ascend.sandbox.throw("ascend.per_minute=1")
    while (found := await ascend.ask(ACTION)).word is Word.ALLOW:  # the window may turn between two calls
        pass
    assert (found.word, found.acted) == (Word.UNAVAILABLE, False)
    assert 0 <= found.again_s <= 61


@pytest.mark.parametrize("shape", ["object", "array"])
async def test_a_lost_answer_is_found_by_the_askings_id(ascend, shape):
    """Cut after the commit: it may have acted, and did; the list of actions shows whose it was."""
    ascend.sandbox.throw(f"ascend.list_shape={shape}")
    ascend.sandbox.faults.add("cut,count=1")
    found = await ascend.ask(ACTION)
    assert (found.word, found.acted, found.platform_id) == (Word.UNAVAILABLE, True, None)
    listed = await ascend.read("/api/v1/actions")
    rows = listed if shape == "array" else listed["actions"]
    assert [action["context"]["agentd_gate_id"] for action in rows] == [ascend.gate_id]


@pytest.mark.parametrize(("id_type", "route"), [("string", "sdk"), ("int", "sdk"), ("int", "server")])
async def test_the_id_is_one_that_a_completion_can_name(ascend, id_type, route):
    """What the gate learned is what completions need, by either route; the action before it can be named as parent."""
    ascend.sandbox.throw(f"ascend.id_type={id_type}")
    ascend.sandbox.throw(f"ascend.completion_routes={route}")
    found = await ascend.ask(ACTION)
    record = msgspec.json.decode(b'{"kind":"action.completed","action_id":"a"}', type=Record)
    entry = Entry(
        1, UUID(int=1).bytes, lane_of(record, "bot"), kind_of(record), loss_class(record), Source("bot", 0, 0, "test"), 0, encode(record)
    )  # fmt: skip
    known = Context(lambda local: local, lambda _kind, _local: found.platform_id, options={"completion_route": route})
    call = ascend.platform.calls["action.completed"]
    answer = await ascend.send(ascend.platform.encode(call, [entry], known))
    assert ascend.platform.classify(call, [entry], answer, Attempt(0.0)) == Delivered()
    assert ascend.sandbox.run(found.platform_id)["completions"] == 1
    child = await ascend.ask(ACTION | {"parent_action_id": found.platform_id})
    parent = ascend.sandbox.run(child.platform_id)["sent"]["parent_action_id"]
    assert parent == (int(found.platform_id) if id_type == "int" else found.platform_id)


async def test_what_never_left_has_not_acted(ascend):
    """Nobody listens: certainly nothing was made."""
    answer = await ascend.http.post(Reach("http://127.0.0.1:9"), ascend.gate.guard(), {}, 5.0)
    assert isinstance(answer, Lost)
    found = ascend.gate.rule(ascend.question(ACTION), answer, Attempt(0.0))
    assert (found.word, found.acted) == (Word.UNAVAILABLE, False)


async def test_signed_submissions_are_taken(ascend):
    """Switch signature: a submission is signed like everything else."""
    ascend.sandbox.throw("ascend.signature=require")
    ascend.secret = "sandbox"
    assert (await ascend.ask(ACTION)).word is Word.ALLOW
    ascend.secret = "other"
    assert (await ascend.ask(ACTION)).acted is False


async def test_an_unknown_action_stays_open(ascend):
    """A platform that does not know the action (any more) has said no last word."""
    found = await ascend.follow("../x?y")
    assert (found.word, found.final) == (Word.PENDING, False)
    assert "Action ../x?y not found" in found.reason


# -- Aegis -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("amount", "word"), [(12500, Word.ALLOW), (0.01, Word.ALLOW), (100_001, Word.DENY)])
async def test_an_intent_is_decided_later(aegis, amount, word):
    """The POST is pending, always; the read has the decision."""
    first = await aegis.ask(INTENT | {"amount": amount, "metadata": {"po": 7}})
    assert (first.word, first.final) == (Word.PENDING, False)
    last = await aegis.follow(first.platform_id)
    assert (last.word, last.final, last.platform_id) == (word, True, first.platform_id)
    sent = aegis.sandbox.run(first.platform_id)["sent"]
    assert sent["metadata"] == {"agentd_gate_id": aegis.gate_id, "po": 7}
    assert (sent["agentId"], sent["merchantCategory"], sent["amount"]) == (AGENT, "office", amount)


async def test_an_intent_that_takes_its_time(aegis):
    """Switch decision_delay: pending until it isn't."""
    aegis.sandbox.throw("aegis.decision_delay=100ms")
    first = await aegis.ask(INTENT)
    assert (await aegis.follow(first.platform_id)).word is Word.PENDING
    assert (await aegis.follow_to_the_end(first.platform_id)).word is Word.ALLOW


@pytest.mark.parametrize(("verb", "word"), [("approve", Word.ALLOW), ("deny", Word.DENY)])
async def test_a_parked_intent(aegis, verb, word):
    """Switch park: a review that ends nothing, until a person has decided."""
    aegis.sandbox.throw("aegis.park=true")
    first = await aegis.ask(INTENT)
    parked = await aegis.follow(first.platform_id)
    assert (parked.word, parked.final) == (Word.PENDING, False)
    await aegis.person(first.platform_id, verb)
    last = await aegis.follow(first.platform_id)
    assert (last.word, last.final) == (word, True)


@pytest.mark.parametrize("shape", ["object", "array"])
async def test_a_lost_spend_is_found_by_the_askings_id(aegis, shape):
    """Cut after the commit: it may have acted, and did; a list that shows metadata shows whose it was."""
    aegis.sandbox.faults.add("cut,count=1")
    found = await aegis.ask(INTENT)
    assert (found.word, found.acted, found.platform_id) == (Word.UNAVAILABLE, True, None)
    aegis.sandbox.throw("aegis.list_metadata=true")
    aegis.sandbox.throw(f"aegis.list_shape={shape}")
    listed = await aegis.read("/v1/intents")
    rows = listed if shape == "array" else listed["intents"]
    assert [row["metadata"] for row in rows] == [{"agentd_gate_id": aegis.gate_id}]


async def test_an_agent_that_aegis_does_not_take(aegis):
    """What only the platform can know is refused in its words, and nothing was spent."""
    question = aegis.question(INTENT)
    request = aegis.gate.ask(question, Context(lambda _local: "no-uuid", lambda _kind, local: local))
    found = aegis.gate.rule(question, await aegis.send(request), Attempt(0.0))
    assert (found.word, found.acted) == (Word.UNAVAILABLE, False)
    assert "$.agentId" in found.reason
    assert aegis.runs() == 0


@pytest.mark.parametrize(
    ("status", "acted"), [(400, False), (401, False), (403, False), (429, False), (500, True), (503, True)]
)
async def test_failures_of_aegis(aegis, status, acted):
    """A failure is no decision; a read that fails decides nothing."""
    aegis.sandbox.faults.add(f"status={status}")
    found = await aegis.ask(INTENT)
    assert (found.word, found.acted, found.final) == (Word.UNAVAILABLE, acted, True)
    later = await aegis.follow("int_1")
    assert (later.word, later.final) == (Word.PENDING, False)


async def test_an_odd_id_reaches_no_other_path(aegis):
    """An id with a slash and dots stays one segment: the platform knows no such intent."""
    found = await aegis.follow("../intents")
    assert (found.word, found.final) == (Word.PENDING, False)
    assert "no such intent" in found.reason
