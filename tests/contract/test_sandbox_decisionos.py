"""The sandbox as Decision OS, over real sockets: each rule of the platform and each switch, as a client meets them."""

from __future__ import annotations

import hashlib
import json
import time
from datetime import UTC, datetime

import aiohttp
import pytest

from agentd.sandbox import Sandbox
from agentd.sandbox.decisionos import DecisionosSwitches

BASE = "/api/public/v1"
LOST = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)
CHOICE = {"agentId": "a", "context": "Refund?", "options": ["yes", "no"], "chosenOptionKey": "yes"}


class Platform:
    """A client that speaks to one sandbox as an SDK would."""

    def __init__(self, sandbox: Sandbox, session: aiohttp.ClientSession) -> None:
        self.sandbox = sandbox
        self.session = session

    async def ask(self, method, path, body=None, *, data=None, key="dos_test_k"):
        """Status and decoded body of one call."""
        data = json.dumps(body).encode() if body is not None else data
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        url = path if path.startswith("http") else f"{self.sandbox.url}{BASE}{path}"
        async with self.session.request(method, url, data=data, headers=headers) as answer:
            assert answer.content_type == "application/json"
            return answer.status, await answer.json()

    async def ok(self, path, body):
        """The data of a write that must succeed, its envelope checked."""
        status, answer = await self.ask("POST", path, body)
        assert (status, list(answer)) == (200, ["data"]), answer
        return answer["data"]

    async def read(self, path):
        """The data of a read that must succeed."""
        status, answer = await self.ask("GET", path)
        assert (status, list(answer)) == (200, ["data"]), answer
        return answer["data"]

    async def refused(self, method, path, body=None, **kwargs):
        """Status and text of a call that must be refused, its envelope checked."""
        status, answer = await self.ask(method, path, body, **kwargs)
        assert list(answer) == ["error"], answer
        return status, answer["error"]

    async def decide(self, **fields):
        return await self.ok("/decisions", CHOICE | fields)

    async def snap(self, decision_id, **fields):
        return await self.ok("/snapshots", {"agentId": "a", "decisionId": decision_id, "snapshot": {"p": 1}} | fields)


@pytest.fixture
async def platform():
    switches = [DecisionosSwitches(agents="a, b")]
    async with Sandbox(["decisionos"], switches=switches) as sandbox, aiohttp.ClientSession() as session:
        yield Platform(sandbox, session)


# -- writes -------------------------------------------------------------------------------------------------------------------


async def test_a_decision_is_logged_and_sealed(platform):
    """Decision OS answers with id, status, content hash, place in the chain and a receipt; no evaluation unless asked."""
    first, second = await platform.decide(), await platform.decide()
    assert set(first) == {"id", "status", "contentHash", "chainIndex", "receipt"}
    assert first["id"].startswith("dec_")
    assert first["status"] == "logged"
    assert (first["chainIndex"], second["chainIndex"]) == (1, 2)
    assert len(first["contentHash"]) == 64
    assert set(first["receipt"]) == {"sig", "path", "url"}


async def test_a_snapshot_belongs_to_its_decision(platform):
    """A snapshot is taken under the server's decision id, and shown with its decision."""
    decision_id = (await platform.decide())["id"]
    snapshot_id = (await platform.snap(decision_id))["id"]
    assert snapshot_id.startswith("snap_")
    assert [one["id"] for one in platform.sandbox.run(decision_id)["events"]] == [snapshot_id]


async def test_an_unknown_agent_is_refused_unless_it_may_be_made(platform):
    """404 for an agent that the workspace has not, in both calls; `createAgentIfMissing` makes it, under its name."""
    decision_id = (await platform.decide())["id"]
    other = {"agentId": "new"}
    assert (await platform.refused("POST", "/decisions", CHOICE | other))[0] == 404
    status, text = await platform.refused("POST", "/snapshots", {"decisionId": decision_id, "snapshot": {}} | other)
    assert (status, text) == (404, "Agent new not found in this workspace")
    await platform.decide(createAgentIfMissing=True, agentName="Newcomer", **other)
    await platform.decide(**other)
    await platform.snap(decision_id, **other)
    assert (await platform.read("/agents/new"))["name"] == "Newcomer"


async def test_a_snapshot_of_an_unknown_decision_is_refused(platform):
    """404 for a decision that the workspace has not; a client-made id is none."""
    status, text = await platform.refused("POST", "/snapshots", {"agentId": "a", "decisionId": "mine", "snapshot": {}})
    assert (status, text) == (404, "Decision mine not found in this workspace")
    assert platform.sandbox.state().events == 0


async def test_camel_case_only_and_the_two_forms_of_tool_calls(platform):
    """snake_case is refused; `toolCalls` is an array in a decision and an object in a snapshot."""
    decision_id = (await platform.decide(toolCalls=[{"name": "x"}]))["id"]
    await platform.snap(decision_id, toolCalls={"x": 1})
    snapshot = {"agentId": "a", "decisionId": decision_id, "snapshot": {}}
    for path, body in (
        ("/decisions", CHOICE | {"toolCalls": {"x": 1}}),
        ("/decisions", CHOICE | {"run_id": "r"}),
        ("/decisions", {"agent_id": "a", "context": "c"}),
        ("/decisions", CHOICE | {"runId": None}),
        ("/snapshots", snapshot | {"toolCalls": []}),
        ("/snapshots", snapshot | {"captured_at": "2026-01-01T00:00:00Z"}),
    ):
        assert (await platform.refused("POST", path, body))[0] == 400
    assert (platform.sandbox.state().runs, platform.sandbox.state().events) == (1, 1)


async def test_what_is_chosen_is_an_option(platform):
    """`chosenOptionKey` is one of the options where there are some; no source says that the server looks: a switch."""
    assert (await platform.refused("POST", "/decisions", CHOICE | {"chosenOptionKey": "maybe"}))[0] == 400
    await platform.ok("/decisions", {"agentId": "a", "context": "c", "chosenOptionKey": "maybe"})
    await platform.decide(options=[{"key": "k"}], chosenOptionKey="k")
    without_choice = {name: value for name, value in CHOICE.items() if name != "chosenOptionKey"}
    await platform.ok("/decisions", without_choice)
    platform.sandbox.throw("decisionos.chosen_must_be_option=false")
    await platform.decide(chosenOptionKey="maybe")


# -- requestId ------------------------------------------------------------------------------------------------------------------


async def test_a_repeat_is_answered_with_the_original(platform):
    """The same `requestId` and content make one decision, however often they come and in whatever order the keys stand."""
    first = await platform.decide(requestId="q")
    assert await platform.decide(requestId="q") == first
    status, answer = await platform.ask("POST", "/decisions", dict(reversed((CHOICE | {"requestId": "q"}).items())))
    assert (status, answer["data"]) == (200, first)
    snapshot = await platform.snap(first["id"], requestId="s")
    assert await platform.snap(first["id"], requestId="s") == snapshot
    state = platform.sandbox.state()
    assert (state.runs, state.events, state.duplicates) == (1, 1, 3)
    assert platform.sandbox.run("q")["requests"] == 3


async def test_without_a_request_id_each_request_is_a_decision(platform):
    """What has no `requestId` is logged again: the ledger can't know better."""
    assert (await platform.decide())["id"] != (await platform.decide())["id"]


async def test_other_content_under_a_known_request_id(platform):
    """No source says what happens then: 409, or the original, as the switch says; nothing new is logged either way."""
    first = await platform.decide(requestId="q")
    assert (await platform.refused("POST", "/decisions", CHOICE | {"requestId": "q", "context": "x"}))[0] == 409
    platform.sandbox.throw("decisionos.request_id_conflict=original")
    assert await platform.decide(requestId="q", context="x") == first
    assert platform.sandbox.state().runs == 1


async def test_the_scope_of_a_request_id(platform):
    """A snapshot may have its decision's `requestId`, unless the switch makes it one for the whole workspace."""
    first = await platform.decide(requestId="q")
    await platform.snap(first["id"], requestId="q")
    platform.sandbox.reset()
    platform.sandbox.throw("decisionos.request_id_scope=workspace")
    first = await platform.decide(requestId="q")
    snapshot = {"agentId": "a", "decisionId": first["id"], "snapshot": {}, "requestId": "q"}
    for conflict in ("409", "original"):
        platform.sandbox.throw(f"decisionos.request_id_conflict={conflict}")
        assert (await platform.refused("POST", "/snapshots", snapshot))[0] == 409


async def test_the_words_and_statuses_that_differ(platform):
    """Status word, status codes and envelopes on which sources differ or are silent, each by its switch."""
    for switch in (
        "status_word=draft",
        "created_status=201",
        "replayed_status=200",
        "envelope=bare",
        "error_field=message",
    ):
        platform.sandbox.throw(f"decisionos.{switch}")
    status, answer = await platform.ask("POST", "/decisions", CHOICE | {"requestId": "q"})
    assert (status, answer["status"]) == (201, "draft")
    assert (await platform.ask("POST", "/decisions", CHOICE | {"requestId": "q"})) == (200, answer)
    platform.sandbox.throw("decisionos.replayed_status=409")
    status, answer = await platform.ask("POST", "/decisions", CHOICE | {"requestId": "q"})
    assert (status, list(answer)) == (409, ["message"])
    platform.sandbox.throw("decisionos.invalid_status=422")
    assert (await platform.ask("POST", "/decisions", {}))[0] == 422


# -- evaluation and quota -------------------------------------------------------------------------------------------------------------


async def test_an_evaluation_comes_with_the_answer(platform):
    """`runPolicyEval` brings `policyEval`; a no comes inside a success, and a repeat brings the same one."""
    found = await platform.decide(runPolicyEval=True, requestId="q")
    assert found["policyEval"]["ok"] is True
    assert set(found["policyEval"]) == {"ok", "replayId", "policyVersionId", "diff"}
    platform.sandbox.throw("decisionos.policy_eval_ok=false")
    assert await platform.decide(runPolicyEval=True, requestId="q") == found
    refused = (await platform.decide(runPolicyEval=True, policyVersionId="pv_7"))["policyEval"]
    assert (refused["ok"], refused["policyVersionId"], refused["diff"]) == (False, "pv_7", {"changed": True})
    assert refused["error"]
    assert "policyEval" not in await platform.decide(runPolicyEval=False)
    assert (await platform.read("/workspace/usage"))["usage"]["policy_eval_count"] == 2


async def test_a_used_up_quota(platform):
    """402 for a decision above the month's quota; snapshots and repeats still pass, and the reset may be told."""
    platform.sandbox.throw("decisionos.monthly_decisions=2")
    first = await platform.decide(requestId="q")
    await platform.decide()
    assert (await platform.refused("POST", "/decisions", CHOICE | {"agentId": "x", "createAgentIfMissing": True}))[
        0
    ] == 402
    assert (await platform.ask("GET", "/agents/x"))[0] == 404  # what is refused has changed nothing
    await platform.snap(first["id"])
    assert await platform.decide(requestId="q") == first
    platform.sandbox.throw("decisionos.reset_at_in_402=true")
    status, answer = await platform.ask("POST", "/decisions", CHOICE)
    assert (status, set(answer)) == (402, {"error", "resetAt"})
    usage = await platform.read("/workspace/usage")
    assert usage["resetAt"] == answer["resetAt"]
    reset_at = datetime.fromisoformat(answer["resetAt"])
    assert reset_at > datetime.now(UTC)
    assert (reset_at.day, reset_at.hour) == (1, 0)
    assert usage["usage"] == {"decision_count": 2, "snapshot_count": 1, "replay_count": 0, "policy_eval_count": 0}
    assert usage["period"] == datetime.now(UTC).strftime("%Y-%m")


# -- reads ----------------------------------------------------------------------------------------------------------------------------


async def test_a_decision_is_read_as_it_was_sent(platform):
    """GET of one decision: what was sent with what the platform added; another id is 404."""
    logged = await platform.decide(requestId="q", runId="r")
    found = await platform.read(f"/decisions/{logged['id']}")
    assert found.items() >= (CHOICE | logged | {"requestId": "q", "runId": "r"}).items()
    assert found["decisionType"] == "action_selection"
    assert datetime.fromisoformat(found["createdAt"]).timestamp() == pytest.approx(time.time(), abs=60)
    assert (await platform.refused("GET", "/decisions/dec_x"))[0] == 404


async def test_decisions_are_listed_in_pages(platform):
    """Newest first, 25 a page unless told otherwise, with a cursor until there is no more; by agent and by status."""
    ids = [(await platform.decide(agentId="ab"[number % 2]))["id"] for number in range(30)][::-1]
    page = await platform.read("/decisions")
    assert [one["id"] for one in page["items"]] == ids[:25]
    rest = await platform.read(f"/decisions?cursor={page['nextCursor']}")
    assert ([one["id"] for one in rest["items"]], rest["nextCursor"]) == (ids[25:], None)
    assert (await platform.read("/decisions?limit=30"))["nextCursor"] is None
    seen, cursor = [], ""
    while cursor is not None:
        page = await platform.read(f"/decisions?agentId=a&limit=4{cursor and '&cursor=' + cursor}")
        seen += [one["id"] for one in page["items"]]
        cursor = page["nextCursor"]
    assert seen == ids[1::2]
    assert len((await platform.read("/decisions?status=logged&limit=100"))["items"]) == 30
    assert (await platform.read("/decisions?status=draft"))["items"] == []


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "limit=-1", "limit=9999999999", "cursor=dec_x"])
async def test_wrong_pages(platform, query):
    """A page has 1 to 100 decisions, and a cursor comes from a page."""
    assert (await platform.refused("GET", f"/decisions?{query}"))[0] == 400


async def test_agents(platform):
    """The agents that there are, those made on the way included; by name, and one by one."""
    await platform.decide(agentId="new", createAgentIfMissing=True, agentName="Newcomer")
    assert [one["id"] for one in (await platform.read("/agents"))["items"]] == ["a", "b", "new"]
    (found,) = (await platform.read("/agents?name=Newcomer"))["items"]
    assert found == await platform.read("/agents/new")
    assert set(found) == {"id", "name", "environment", "description", "created_at"}
    assert (await platform.refused("GET", "/agents/nosuch"))[0] == 404
    platform.sandbox.throw("decisionos.agents=*")
    await platform.decide(agentId="anybody")


async def test_the_ledger_can_be_verified_from_outside(platform):
    """Whoever computes the seals again from the receipts finds the chain that the ledger tells; a change is found."""
    logged = [await platform.decide(context=f"ü {number}") for number in range(3)]
    found = await platform.read("/ledger/verify")
    assert (found["ok"], found["decisions"]["ok"], found["outcomes"]["checked"]) == (True, True, 0)
    previous = None
    for one, link in zip(logged, found["decisions"]["transcript"], strict=True):
        _, receipt = await platform.ask("GET", one["receipt"]["url"])
        text = json.dumps(receipt["canonical_payload"], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        computed = hashlib.sha256(text.encode()).hexdigest()
        assert receipt["verified"] is True
        assert computed == receipt["content_hash"] == one["contentHash"] == link["content_hash"]
        assert link == {"chain_index": one["chainIndex"], "content_hash": computed, "prev_hash": previous}
        previous = computed
    platform.sandbox.throw("decisionos.tampered_link=2")
    found = await platform.read("/ledger/verify")
    assert (found["ok"], found["decisions"]["errors"]) == (False, 1)
    assert found["decisions"]["error_details"][0]["reason"] == "content_hash_mismatch"
    assert (await platform.ask("GET", logged[1]["receipt"]["url"]))[1]["verified"] is False


async def test_a_receipt_is_a_capability_link(platform):
    """The link alone opens the receipt, without a key; with another signature there is nothing, and no other read opens."""
    receipt = (await platform.decide())["receipt"]
    assert receipt["url"] == platform.sandbox.url + receipt["path"]
    assert (await platform.ask("GET", receipt["url"], key=""))[0] == 200
    assert (await platform.refused("GET", receipt["url"][:-1] + "x"))[0] == 404
    assert (await platform.refused("GET", receipt["url"].partition("?")[0]))[0] == 404
    for path in ("/decisions", "/ledger/verify", "/workspace/usage", "/agents"):
        assert (await platform.refused("GET", path, key=""))[0] == 401
    assert (await platform.refused("POST", receipt["url"], key=""))[0] == 401


# -- refusals and faults ----------------------------------------------------------------------------------------------------------------


async def test_keys():
    """Every call but a receipt needs a Bearer key, and one of the right ones where they are named."""
    async with Sandbox(["decisionos"], api_keys=["dos_live_x"]) as sandbox, aiohttp.ClientSession() as session:
        platform = Platform(sandbox, session)
        for key in ("", "dos_live_y"):
            assert (await platform.refused("POST", "/decisions", CHOICE, key=key))[0] == 401
        assert (await platform.ask("GET", "/agents", key="dos_live_x"))[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nosuch", 404), ("POST", "/outcomes", 404), ("GET", "/decisions/", 404), ("GET", "/decisions/a/b", 404),
        ("DELETE", "/decisions", 405), ("PUT", "/decisions/dec_1", 405), ("GET", "/snapshots", 405), ("POST", "/agents", 405),
    ],
)  # fmt: skip
async def test_no_such_call(platform, method, path, status):
    """What is not documented is 404, a wrong method 405, in the platform's envelope."""
    assert (await platform.refused(method, path))[0] == status


async def test_body_limit(platform):
    """Decision OS names no size limit; with the switch one byte too many is 413, and exactly as many are taken."""
    data = json.dumps(CHOICE).encode()
    platform.sandbox.throw(f"decisionos.max_body_bytes={len(data) - 1}")
    assert (await platform.refused("POST", "/decisions", data=data))[0] == 413
    platform.sandbox.throw(f"decisionos.max_body_bytes={len(data)}")
    assert (await platform.ask("POST", "/decisions", data=data))[0] == 200


@pytest.mark.parametrize("status", [401, 402, 403, 429, 500, 503])
async def test_injected_status(platform, status):
    """A fault speaks in the platform's envelope, and nothing is committed."""
    platform.sandbox.faults.add(f"status={status},count=1")
    assert (await platform.refused("POST", "/decisions", CHOICE))[0] == status
    assert platform.sandbox.state().runs == 0


async def test_an_answer_lost_after_the_commit(platform):
    """The decision is in the ledger and only the client doesn't know: the repeat is answered with it."""
    platform.sandbox.faults.add("cut,count=1")
    with pytest.raises(LOST):
        await platform.decide(requestId="q")
    (row,) = platform.sandbox.runs()
    assert (await platform.decide(requestId="q"))["id"] == row["id"]
    assert platform.sandbox.state().runs == 1
    assert platform.sandbox.repeats()["q"].same_body


async def test_switches_and_inspection_by_http(platform):
    """Switches are thrown over HTTP too; rows, one decision and its page are there; there is nothing to approve."""
    inspect = f"{platform.sandbox.url}/_sandbox"
    async with platform.session.put(f"{inspect}/switches", json={"decisionos.status_word": "draft"}) as answer:
        assert (await answer.json())["decisionos"]["status_word"] == "draft"
    logged = await platform.decide(requestId="job/1")
    await platform.snap(logged["id"])
    assert logged["status"] == "draft"
    async with platform.session.get(f"{inspect}/runs/job%2F1") as answer:
        assert (await answer.json())["id"] == logged["id"]
    async with platform.session.get(f"{inspect}/view/decisionos/{logged['id']}") as answer:
        page = await answer.text()
        assert (answer.status, answer.content_type) == (200, "text/html")
        assert logged["contentHash"] in page
    async with platform.session.post(f"{inspect}/act/decisionos/{logged['id']}/approve") as answer:
        assert answer.status == 404
