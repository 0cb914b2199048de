"""The sandbox as AegisOS Comply over real sockets, as an SDK meets it: submit, poll, decide."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from agentd.errors import UsageError
from agentd.sandbox import AegisSwitches, Sandbox

LEAST = {
    "agentId": "6f1c8f0e-3f0b-4b52-9a34-1f0f6f2f7c11",
    "amount": 12500,
    "currency": "INR",
    "reason": "Vendor payment",
}
LOST = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)


class Platform:
    """A client that speaks to one sandbox as an SDK would."""

    def __init__(self, sandbox, session):
        self.sandbox = sandbox
        self.session = session

    async def ask(self, method, path, body=None, key="aegis_sk_test", **params):
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        url = f"{self.sandbox.url_for('aegis')}{path}"
        async with self.session.request(method, url, json=body, params=params, headers=headers) as answer:
            assert answer.content_type == "application/json"
            return answer.status, await answer.json()

    async def submit(self, **fields):
        status, answer = await self.ask("POST", "/v1/intents", {**LEAST, **fields})
        assert (status, answer["status"]) == (202, "pending")
        return answer["id"]

    async def read(self, intent_id):
        status, answer = await self.ask("GET", f"/v1/intents/{intent_id}")
        assert status == 200
        return answer["status"]

    async def inspect(self, method, path, body=None, **options):
        async with self.session.request(method, f"{self.sandbox.url}/_sandbox{path}", json=body, **options) as answer:
            return answer.status, await (answer.json() if answer.content_type == "application/json" else answer.text())


@pytest.fixture
async def platform():
    async with Sandbox(["aegis"], switches=["aegis.decision_delay=0"]) as sandbox, aiohttp.ClientSession() as session:
        yield Platform(sandbox, session)


async def test_submit_then_poll(platform):
    """The way of the SDK: a POST that is always pending, and a GET that has the decision."""
    intent_id = await platform.submit()
    status, intent = await platform.ask("GET", f"/v1/intents/{intent_id}")
    assert (status, intent["status"], intent["policyDecision"]) == (200, "approved", "allow")
    assert await platform.read(await platform.submit(amount=100_001)) == "denied"


async def test_a_loop_until_it_is_decided():
    """With a delay the first reads are pending: a loop ends with the decision, and its reads are counted."""
    async with (
        Sandbox(["aegis"], switches=["aegis.decision_delay=150ms"]) as sandbox,
        aiohttp.ClientSession() as session,
    ):
        platform = Platform(sandbox, session)
        intent_id = await platform.submit()
        assert await platform.read(intent_id) == "pending"
        async with asyncio.timeout(10):
            while await platform.read(intent_id) == "pending":
                await asyncio.sleep(0.02)
        assert await platform.read(intent_id) == "approved"
        assert sandbox.run(intent_id)["reads"] >= 3


async def test_a_lost_answer_is_a_spend_all_the_same(platform):
    """The ambiguity that agentd has to live with: cut after the commit, sent again by a careless client, spent twice."""
    platform.sandbox.faults.add("cut,count=1")
    with pytest.raises(LOST):
        await platform.submit(metadata={"ours": "1"})
    await platform.submit(metadata={"ours": "1"})
    assert platform.sandbox.state().runs == 2
    platform.sandbox.throw("aegis.list_metadata=true")
    _, found = await platform.ask("GET", "/v1/intents", agentId=LEAST["agentId"], limit=100)
    assert [intent["metadata"] for intent in found["intents"]] == [{"ours": "1"}] * 2


@pytest.mark.parametrize(
    ("fault", "status", "retry_after"), [("status=429,retry_after=2s", 429, "2"), ("status=503", 503, None)]
)
async def test_faults(platform, fault, status, retry_after):
    """429 with Retry-After and 5xx in the envelope; nothing is committed."""
    platform.sandbox.faults.add(fault)
    url = f"{platform.sandbox.url}/v1/intents"
    async with platform.session.post(url, json=LEAST, headers={"Authorization": "Bearer k"}) as answer:
        assert (answer.status, answer.headers.get("Retry-After")) == (status, retry_after)
        assert set((await answer.json())["error"]) == {"code", "message"}
    assert platform.sandbox.state().runs == 0


async def test_keys():
    """Documented: without a key 401; with keys given, only those."""
    async with Sandbox(["aegis"], api_keys=["right"]) as sandbox, aiohttp.ClientSession() as session:
        platform = Platform(sandbox, session)
        for key in ("", "wrong"):
            status, answer = await platform.ask("POST", "/v1/intents", LEAST, key=key)
            assert (status, answer["error"]["code"]) == (401, "unauthorized")
        assert (await platform.ask("POST", "/v1/intents", LEAST, key="right"))[0] == 202


async def test_snake_case_is_refused(platform):
    """The wire is camelCase, in bodies and in queries."""
    body = {**LEAST, "merchant_category": "office"}
    assert (await platform.ask("POST", "/v1/intents", body))[0] == 400
    assert (await platform.ask("GET", "/v1/intents", agent_id=LEAST["agentId"]))[0] == 400


async def test_a_person_approves_by_hand(platform):
    """Parked intents wait; the page has the buttons, a POST presses them, and the next read has the word."""
    await platform.inspect("PUT", "/switches", {"aegis.park": True})
    first, second = await platform.submit(), await platform.submit()
    assert await platform.read(first) == "pending_approval"
    _, page = await platform.inspect("GET", "/")
    assert f'action="/_sandbox/view/aegis/{first}/approve"' in page
    status, answer = await platform.inspect("POST", f"/act/aegis/{first}/approve")
    assert (status, answer["status"]) == (200, "approved")
    status, page = await platform.inspect("POST", f"/view/aegis/{second}/deny")
    assert (status, "denied" in page) == (200, True)
    assert (await platform.read(first), await platform.read(second)) == ("approved", "denied")
    assert (await platform.inspect("POST", f"/act/aegis/{first}/deny"))[0] == 409


@pytest.mark.parametrize(
    "switch", ["aegis.park=true", AegisSwitches(decision_delay=0, park=True)], ids=["as text", "as a struct"]
)
async def test_switches_of_the_constructor(switch):
    """A switch is given as text or as the face's Struct."""
    switches = ["aegis.decision_delay=0", switch]
    async with Sandbox(["aegis"], switches=switches) as sandbox, aiohttp.ClientSession() as session:
        platform = Platform(sandbox, session)
        assert await platform.read(await platform.submit()) == "pending_approval"


async def test_switches_by_http(platform):
    """PUT throws them, durations with their unit; a wrong one throws none."""
    _, switches = await platform.inspect("PUT", "/switches", {"aegis.decision_delay": "2s", "aegis.deny_above": 10})
    assert (switches["aegis"]["decision_delay"], switches["aegis"]["deny_above"]) == (2.0, 10.0)
    assert (await platform.inspect("PUT", "/switches", {"aegis.park": True, "aegis.decision_delay": "soon"}))[0] == 400
    assert platform.sandbox.switches() == switches
    with pytest.raises(UsageError, match="list_shape"):
        platform.sandbox.throw("aegis.list_shape=tuple")


async def test_inspection_by_http(platform):
    """State, rows and one intent as JSON, its page as HTML."""
    intent_id = await platform.submit(merchant="<b>")
    await platform.read(intent_id)
    _, state = await platform.inspect("GET", "/state")
    assert state["faces"]["aegis"]["details"] == {"intents_by_status": {"approved": 1}, "reads": 1}
    _, rows = await platform.inspect("GET", "/runs")
    assert [(row["face"], row["id"], row["status"]) for row in rows] == [("aegis", intent_id, "approved")]
    _, shown = await platform.inspect("GET", f"/runs/{intent_id}")
    assert shown["sent"]["merchant"] == "<b>"
    _, page = await platform.inspect("GET", f"/view/aegis/{intent_id}")
    assert "&lt;b&gt;" in page
    assert "<b>12" not in page
