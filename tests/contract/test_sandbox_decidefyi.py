"""The sandbox as decide.fyi, over real sockets: each rule of the platform and each switch, as a client meets them."""

from __future__ import annotations

import json

import aiohttp
import pytest

from agentd.sandbox import Sandbox

LOST = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)
LIFECYCLE = {
    "execution": ({"execution_status": "executed"}, "execution", "execution_receipt_id", "exec_"),
    "outcome": ({"outcome_status": "succeeded"}, "outcome", "outcome_id", "out_"),
    "crm-sync": ({"sync_status": "written", "field_mapping": {"a": "b"}}, "crm_sync", "sync_id", "sync_"),
}
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


def request(discount=5, **fields):
    context = {"inputs": {"discount": discount}, "target_system": "crm", "requested_action": "approve_discount"}
    return {"mode": "rulebook", "rulebook": RULEBOOK, "context": context, **fields}


class Platform:
    """A client that speaks to one sandbox as an SDK would."""

    def __init__(self, sandbox: Sandbox, session: aiohttp.ClientSession) -> None:
        self.sandbox = sandbox
        self.session = session

    async def call(self, method, path, body=None, *, raw=None, key=None, headers=None):
        """Status, headers and decoded body of one call."""
        headers = {"x-api-key": "decide_live_a"} | (headers or {}) | ({"x-idempotency-key": key} if key else {})
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        async with self.session.request(method, self.sandbox.url + path, data=data, headers=headers) as answer:
            return answer.status, answer.headers, await answer.json()

    async def post(self, path, body=None, **more):
        return await self.call("POST", path, body, **more)

    async def ok(self, path, body=None, *, method="POST", **more):
        status, _, answer = await self.call(method, path, body, **more)
        assert status == 200, answer
        return answer

    async def refused(self, path, body=None, *, method="POST", **more):
        """Status and code of a refusal, its envelope checked."""
        status, _, answer = await self.call(method, path, body, **more)
        assert {"c", "v", "error", "message", "request_id"} <= set(answer)
        assert answer["c"] == "unclear"
        return status, answer["error"]

    async def decide(self, body=None, **more):
        return await self.ok("/api/decide", body or request(), **more)

    async def path(self, what):
        return f"/api/decision/{(await self.decide())['decision_id']}/{what}"


@pytest.fixture
async def platform():
    async with Sandbox(["decidefyi"]) as sandbox, aiohttp.ClientSession() as session:
        yield Platform(sandbox, session)


# -- keys ------------------------------------------------------------------------------------------------------------------


async def test_keys(platform):
    """Decide: `x-api-key`, else a bearer token; without either 401 with its challenge, and nothing is done."""
    status, headers, body = await platform.post("/api/decide", request(), headers={"x-api-key": ""})
    assert (status, body["error"], body["v"]) == (401, "DECIDE_API_UNAUTHORIZED", "unauthorized")
    assert headers["WWW-Authenticate"] == 'Bearer realm="decide-api"'
    assert platform.sandbox.state().runs == 0
    assert await platform.decide(headers={"x-api-key": "", "Authorization": "Bearer decide_live_b"})
    async with Sandbox(["decidefyi"], api_keys=["right"]) as sandbox:
        strict = Platform(sandbox, platform.session)
        both = {"x-api-key": "wrong", "Authorization": "Bearer right"}
        assert (await strict.refused("/api/decide", request(), headers=both))[0] == 401


@pytest.mark.parametrize("what", [*LIFECYCLE, "verify", "packet", "replay", ""])
async def test_a_decision_belongs_to_its_key(platform, what):
    """Decide: another key's decision is as unknown as one that never was: 404, for every call."""
    path = (await platform.path(what)).rstrip("/")
    method = "POST" if what == "replay" else "GET"
    other = {"x-api-key": "decide_live_b"}
    assert (await platform.call(method, path))[0] == 200
    assert await platform.refused(path, method=method, headers=other) == (404, "DECISION_NOT_FOUND")
    unknown = path.replace("dec_", "dec_0")
    assert await platform.refused(unknown, method=method) == (404, "DECISION_NOT_FOUND")


# -- rulebooks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("discount", "verdict", "rule", "reason"),
    [(5, "yes", "small", "SMALL"), (50, "no", "large", "TOO_LARGE"), (20, "review", None, "BETWEEN")],
)
async def test_a_rulebook_decides(platform, discount, verdict, rule, reason):
    """Decide: a rulebook is evaluated; the record says outcome, rule, hashes and signature, and that it binds."""
    status, headers, record = await platform.post("/api/decide", request(discount))
    assert (status, record["verdict"], record["c"]) == (200, verdict, verdict)
    assert (record["matched_rule_id"], record["reason_code"]) == (rule, reason)
    assert record["decision_record_version"] == "decision_record_v1"
    assert record["decision_id"].startswith("dec_")
    assert headers["x-decision-id"] == record["decision_id"]
    assert headers["x-decision-receipt-signature"] == record["receipt_signature"]
    assert record["runtime_binding"]["binding_mode"] == "direct_declarative_rulebook"
    assert "decision_contract" not in record


@pytest.mark.parametrize(
    ("inputs", "missing", "invalid"), [({}, ["discount"], []), ({"discount": "5"}, [], ["discount"])]
)
async def test_inputs_that_do_not_meet_the_schema(platform, inputs, missing, invalid):
    """Decide: 200 with needs_input and a review, without `c` and `v`, and no decision is made."""
    answer = await platform.decide(request() | {"context": {"inputs": inputs}}, key="k")
    assert (answer["status"], answer["verdict"], answer["reason_code"]) == (
        "needs_input",
        "review",
        "INPUT_SCHEMA_FAILED",
    )
    assert (answer["missing_fields"], answer["invalid_fields"]) == (missing, invalid)
    assert not {"c", "v", "decision_id"} & set(answer)
    assert platform.sandbox.state().runs == 0
    assert (await platform.decide(key="k"))["verdict"] == "yes"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"verdict": "yes"}, "RULEBOOK_OUTPUT_MATERIAL_FORBIDDEN"),
        ({"context": {"inputs": {"a": [{"record_hash": 1}]}}}, "RULEBOOK_OUTPUT_MATERIAL_FORBIDDEN"),
        ({"rulebook": {}}, "RULEBOOK_INVALID"), ({"rulebook": None}, "RULEBOOK_INVALID"), ({"context": {}}, "RULEBOOK_INVALID"),
        ({"binding_mode": "customer_executable_rulebook"}, "RULEBOOK_BINDING_MODE_UNSUPPORTED"),
        ({"binding_mode": "trusted_adapter_facts_then_declarative_rulebook"}, "RULEBOOK_BINDING_MODE_CONFLICT"),
        ({"adapter": {}}, "TRUSTED_ADAPTER_INPUT_CONFLICT"), ({"adapter": {}, "context": {}}, "TRUSTED_ADAPTER_INVALID"),
    ],
)  # fmt: skip
async def test_what_is_wrong_with_a_rulebook_request(platform, fields, code):
    """Decide: 422 with its own code for each contradiction, and no decision."""
    assert await platform.refused("/api/decide", request() | fields) == (422, code)
    assert platform.sandbox.state().runs == 0


async def test_refusals_say_where(platform):
    """Decide: forbidden fields and a rulebook's errors are listed by their place."""
    _, _, body = await platform.post("/api/decide", request() | {"context": {"inputs": {"a": {"action": 1}}}})
    assert body["forbidden_fields"] == ["context.inputs.a.action"]
    _, _, body = await platform.post("/api/decide", request() | {"rulebook": RULEBOOK | {"version": ""}})
    assert [(each["field"], each["code"]) for each in body["errors"]] == [("rulebook.version", "invalid_value")]


async def test_facts_of_a_trusted_adapter(platform):
    """Decide: an adapter's facts take the place of the inputs."""
    adapter = {"adapter_id": "a", "version": "1", "manifest_hash": "h", "input": {"discount": 50}}
    record = await platform.decide(request() | {"context": {}, "adapter": adapter})
    assert record["verdict"] == "no"
    assert record["runtime_binding"]["binding_mode"] == "trusted_adapter_facts_then_declarative_rulebook"
    forbidden = adapter | {"input": {"discount": 5, "verdict": "yes"}}
    refusal = await platform.refused("/api/decide", request() | {"context": {}, "adapter": forbidden})
    assert refusal == (422, "RULEBOOK_OUTPUT_MATERIAL_FORBIDDEN")


async def test_views(platform):
    """Decide: a smaller view shows less of the same record; body and headers ask for it, and it is no part of the payload."""
    full = await platform.decide(key="k")
    standard = await platform.decide(key="k", headers={"Prefer": "return=standard"})
    minimal = await platform.decide(request(response_view="minimal"), key="k")
    assert set(minimal) < set(standard) < set(full)
    assert minimal == {name: full[name] for name in minimal}
    assert await platform.decide(key="k", headers={"x-decision-response-view": "minimal"}) == minimal
    assert (await platform.refused("/api/decide", request(response_view="all")))[0] == 400


async def test_signing_is_required(platform):
    """Decide: without a signing key a rulebook decides nothing: 503, which only an operator can cure."""
    platform.sandbox.throw("decidefyi.signing=off")
    assert await platform.refused("/api/decide", request()) == (503, "RULEBOOK_ATTESTATION_SIGNATURE_REQUIRED")


# -- advice ----------------------------------------------------------------------------------------------------------------


async def test_advice_binds_nobody(platform):
    """Decide: the AI-assisted modes give advice and say so, whatever the view."""
    for view in ("minimal", "full"):
        answer = await platform.decide({"question": "Ship today?", "response_view": view})
        assert (answer["c"], answer["verdict"]) == ("yes", "yes")
        assert answer["decision_contract"] == {
            "authority": "advisory_only", "production_verdict": False, "production_binding_required": True,
        }  # fmt: skip
    platform.sandbox.throw("decidefyi.advice=no")
    assert (await platform.decide({"question": "Ship today?", "mode": "runtime"}))["verdict"] == "no"
    answer = await platform.decide({"question": "Which colour?", "options": ["red", "blue"]})
    assert (answer["c"], answer["verdict"]) == ("red", "review")


@pytest.mark.parametrize(
    ("body", "c", "v"),
    [
        ({"question": "ab"}, "unclear", "Ask a question"), ({}, "unclear", "Ask a question"),
        ({"question": "Which?", "options": ["a"]}, "unclear", "Need 2-8 options"),
        ({"question": "Should I take this medicine or see a doctor?"}, "filtered", None),
    ],
)  # fmt: skip
async def test_questions_without_an_answer(platform, body, c, v):
    """Decide: unclear and filtered questions are 200 without a decision."""
    answer = await platform.ok("/api/decide", body)
    assert answer["c"] == c
    assert v in {None, answer["v"]}
    assert "decision_id" not in answer


@pytest.mark.parametrize(
    ("ai", "status", "code"),
    [
        ("timeout", 200, "DECIDE_AI_PROVIDER_TIMEOUT"), ("invalid_response", 200, "DECIDE_AI_PROVIDER_INVALID_RESPONSE"),
        ("rate_limited", 200, "DECIDE_AI_PROVIDER_RATE_LIMITED"), ("rejected", 200, "DECIDE_AI_PROVIDER_REJECTED"),
        ("unavailable", 200, "DECIDE_AI_PROVIDER_UNAVAILABLE"), ("disabled", 503, "DECIDE_AI_DISABLED_ZERO_COST"),
        ("misconfigured", 503, "DECIDE_AI_CONFIGURATION_INVALID"), ("budget_exhausted", 429, "DECIDE_AI_BUDGET_EXHAUSTED"),
        ("budget_unavailable", 503, "DECIDE_AI_BUDGET_UNAVAILABLE"),
    ],
)  # fmt: skip
async def test_a_provider_that_fails(platform, ai, status, code):
    """Decide: a failing AI provider is a degraded 200, a missing one an error; rulebooks don't need it."""
    platform.sandbox.throw(f"decidefyi.ai={ai}")
    got, _, answer = await platform.post("/api/decide", {"question": "Ship today?"})
    assert (got, answer["error"]) == (status, code)
    assert status != 200 or (answer["status"], type(answer["retryable"])) == ("degraded", bool)
    assert (await platform.decide())["verdict"] == "yes"


# -- idempotency -------------------------------------------------------------------------------------------------------------


async def test_a_key_makes_a_decision_repeatable(platform):
    """Decide: same key and same canonical payload give the original; a changed payload is 409; another API key is another ledger."""
    first = await platform.decide(key="k")
    assert first["idempotency_key"] == "k"
    shuffled = json.dumps(dict(reversed(request().items())), indent=1).encode()
    assert await platform.ok("/api/decide", raw=shuffled, key="k") == first
    assert await platform.refused("/api/decide", request(6), key="k") == (409, "DECIDE_API_IDEMPOTENCY_CONFLICT")
    assert (await platform.decide(key="k", headers={"x-api-key": "b"}))["decision_id"] != first["decision_id"]
    assert platform.sandbox.state().runs == 2


@pytest.mark.parametrize("what", LIFECYCLE)
async def test_a_key_makes_a_receipt_repeatable(platform, what):
    """Decide: the same receipt for the same key and payload, 409 for another payload, another decision or operation."""
    body, place, _, _ = LIFECYCLE[what]
    path = await platform.path(what)
    first = await platform.ok(path, body, key="k")
    assert await platform.ok(path, body, key="k") == first
    word = f"DECIDE_{place.upper()}_IDEMPOTENCY_CONFLICT"
    assert await platform.refused(path, body | {"external_ref": "x"}, key="k") == (409, word)
    assert await platform.refused(await platform.path(what), body, key="k") == (409, word)
    assert await platform.refused("/api/decide", request(), key="k") == (409, "DECIDE_API_IDEMPOTENCY_CONFLICT")
    assert platform.sandbox.state().events == 1


async def test_an_answer_lost_after_commit(platform):
    """A receipt whose answer was lost is there, and the repeat gets it without a second one; in flight it waits by 409."""
    path = await platform.path("execution")
    platform.sandbox.throw("decidefyi.inflight_409=on")
    platform.sandbox.throw("decidefyi.inflight_s=60")
    platform.sandbox.faults.add("cut,count=1")
    with pytest.raises(LOST):
        await platform.post(path, {"execution_status": "executed"}, key="k")
    status, headers, body = await platform.post(path, {"execution_status": "executed"}, key="k")
    assert (status, body["status"], headers["x-idempotency-status"]) == (409, "in_progress", "in_progress")
    platform.sandbox.throw("decidefyi.inflight_409=off")
    assert (await platform.ok(path, {"execution_status": "executed"}, key="k"))["execution_receipt_id"]
    assert platform.sandbox.state().events == 1


# -- receipts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", LIFECYCLE)
@pytest.mark.parametrize("wrapping", ["bare", "wrapped"])
async def test_receipts_bare_and_wrapped(platform, what, wrapping):
    """Decide, sources disagree, hence a switch: receipts at the top or under their name; a crm-sync always under its name."""
    platform.sandbox.throw(f"decidefyi.receipt_wrapping={wrapping}")
    body, place, name, prefix = LIFECYCLE[what]
    answer = await platform.ok(await platform.path(what), body)
    wrapped = wrapping == "wrapped" or what == "crm-sync"
    assert (place in answer) is wrapped
    assert (answer[place] if wrapped else answer)[name].startswith(prefix)


async def test_receipt_status(platform):
    """Decide, unknown, hence a switch: a new receipt is 200 or 201."""
    platform.sandbox.throw("decidefyi.receipt_status=201")
    path = await platform.path("outcome")
    assert (await platform.post(path, {"outcome_status": "succeeded"}))[0] == 201


async def test_an_execution_says_whether_it_was_what_was_decided(platform):
    """Decide: the binding sent along, or the fields that say the same, are held against the decision's."""
    record = await platform.decide()
    path = f"/api/decision/{record['decision_id']}/execution"
    for fields, match in [
        ({"action_binding": record["action_binding"]}, True), ({"action_binding": {}}, False), ({}, False),
        ({"target_system": "crm", "action_taken": "approve_discount"}, True), ({"target_system": "erp"}, False),
    ]:  # fmt: skip
        answer = await platform.ok(path, {"execution_status": "executed", **fields})
        assert answer["action_binding_match"] is match


@pytest.mark.parametrize(
    ("what", "body"),
    [
        ("execution", {}), ("execution", {"execution_status": ""}), ("execution", {"execution_status": None}),
        ("execution", {"execution_status": "executed", "executor": "me"}), ("outcome", {"execution_status": "executed"}),
        ("execution", {"execution_status": "executed", "mutation": {}}), ("outcome", {"outcome_status": "s", "observed_metrics": {"a": "b"}}),
        ("outcome", {"outcome_status": "s", "evidence_refs": {}}), ("crm-sync", {"field_mapping": []}), ("crm-sync", []),
    ],
)  # fmt: skip
async def test_wrong_receipts(platform, what, body):
    """Decide: a missing status, a null, a documented field of another type is 400, and nothing is stored."""
    assert (await platform.refused(await platform.path(what), body))[0] == 400
    assert platform.sandbox.state().events == 0


async def test_receipts_are_listed(platform):
    """Decide: GET lists the receipts of one sort, newest first, up to `limit`."""
    path = await platform.path("execution")
    ids = [(await platform.ok(path, {"execution_status": s}))["execution_receipt_id"] for s in ("blocked", "executed")]
    listed = await platform.ok(path, method="GET")
    assert [each["execution_receipt_id"] for each in listed["executions"]] == ids[::-1]
    assert len((await platform.ok(f"{path}?limit=1", method="GET"))["executions"]) == 1
    for wrong in ("0", "101", "x", "-1"):
        assert (await platform.refused(f"{path}?limit={wrong}", method="GET"))[0] == 400


# -- reads -------------------------------------------------------------------------------------------------------------------


async def test_reads_of_one_decision(platform):
    """Decide: the stored record, its verification, its packet, replay and what-if agree with what was decided."""
    record = await platform.decide()
    path = f"/api/decision/{record['decision_id']}"
    assert await platform.ok(path, method="GET") == record
    for method in ("GET", "POST"):
        assert (await platform.ok(f"{path}/verify", method=method))["valid"] is True
    packet = await platform.ok(f"{path}/packet?include_input=true", method="GET")
    assert (packet["packet"]["record"], packet["packet"]["input"]) == (record, request())
    assert (await platform.ok("/api/decision/packet/verify", packet))["valid"] is True
    assert (await platform.ok(f"{path}/replay"))["replay_mode"] == "historical"
    assert (await platform.ok(f"{path}/replay", {"replay_mode": "current"}))["match"] is True
    assert (await platform.refused(f"{path}/replay", {"replay_mode": []}))[0] == 400
    diff = await platform.ok(f"{path}/diff", {"inputs": {"discount": 50}})
    assert diff["diff"]["verdict"] == {"before": "yes", "after": "no"}
    what_if = await platform.ok(f"{path}/counterfactuals", {"cases": [{"discount": 20}]})
    assert what_if["counterfactuals"][0]["verdict"] == "review"
    advisory = (await platform.decide({"question": "Ship today?"}))["decision_id"]
    assert (await platform.ok(f"/api/decision/{advisory}/verify", method="GET"))["valid"] is True
    assert (await platform.refused(f"/api/decision/{advisory}/replay"))[0] == 422


async def test_verification_finds_a_change(platform):
    """Decide: a record with one field changed, or another input, is not valid."""
    record = await platform.decide()
    good = {"record": record, "input": request(), "public_key": record["receipt_public_key_fingerprint"]}
    assert (await platform.ok("/api/decision/verify", good))["valid"] is True
    for change in ({"record": record | {"verdict": "no"}}, {"input": request(6)}, {"public_key": "x"}, {"record": {}}):
        assert (await platform.ok("/api/decision/verify", good | change))["valid"] is False


async def test_registries(platform):
    """Decide: rulebooks by hash or by name, keys, bundles, chains and policies; what is not there is 404."""
    record = await platform.decide()
    base, known = "/api/decision", record["rulebook"]
    for query in (f"hash={known['hash']}", "rulebook_id=discounts&version=1"):
        assert (await platform.ok(f"{base}/rulebooks?{query}", method="GET"))["rulebook"] == RULEBOOK
    assert (await platform.refused(f"{base}/rulebooks", method="GET"))[0] == 400
    assert (await platform.refused(f"{base}/rulebooks?hash=x", method="GET"))[0] == 404
    assert (await platform.ok(f"{base}/receipt-keys", method="GET"))["receipt_keys"][0]["key_id"] == record[
        "receipt_key_id"
    ]
    assert len((await platform.ok(f"{base}/policy-bundles", method="GET"))["policy_bundles"]) == 1
    assert await platform.ok(f"{base}/policy-patterns", method="GET")
    assert len((await platform.ok(f"{base}/chains/discounts?limit=5", method="GET"))["links"]) == 1
    for question in ("effectiveness", "confidence", "anomalies", "benchmarks"):
        assert (await platform.ok(f"{base}/policies/discounts/{question}", method="GET"))["sample"] == 1
    assert (await platform.refused(f"{base}/policies/discounts/nosuch", method="GET"))[0] == 404


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/decide", 405), ("PUT", "/api/decision/dec_1/execution", 405), ("POST", "/api/decision/status", 405),
        ("GET", "/api/decision/verify", 405), ("POST", "/api/decision/dec_1", 405), ("GET", "/api/decision/dec_1/replay", 405),
        ("GET", "/api/decision/dec_1/nosuch", 404), ("GET", "/api/decision/a/b/c/d", 404), ("GET", "/nosuch", 404),
        ("POST", "/api/decision/dec%2F1/execution", 404),
    ],
)  # fmt: skip
async def test_wrong_addresses(platform, method, path, status):
    """Decide: a wrong method is 405, a wrong path or id 404; both in the envelope."""
    assert (await platform.refused(path, {}, method=method))[0] == status


# -- storage, limits -----------------------------------------------------------------------------------------------------------


async def test_storage_down(platform):
    """Decide: with storage down everything is a retryable 503, nothing is written, no list is partial; status says it."""
    path = await platform.path("execution")
    platform.sandbox.throw("decidefyi.store=down")
    for method, where, body in [
        ("POST", path, {"execution_status": "executed"}),
        ("GET", path, None),
        ("POST", "/api/decide", request()),
    ]:
        status, headers, answer = await platform.call(method, where, body, key="k")
        assert (status, answer["retryable"], headers["Retry-After"]) == (503, True, "1")
    assert (await platform.ok("/api/decision/status", method="GET"))["ledger"] == "down"
    platform.sandbox.throw("decidefyi.store=up")
    assert (await platform.ok("/api/decision/status", method="GET"))["ok"] is True
    assert (platform.sandbox.state().runs, platform.sandbox.state().events) == (1, 0)


async def test_two_sorts_of_429(platform):
    """Decide: the minute and the month are told apart by code, word and reset."""
    path = await platform.path("execution")
    platform.sandbox.throw("decidefyi.monthly_cap=0")
    status, headers, body = await platform.post(path, {"execution_status": "executed"})
    assert (status, body["error"], headers["X-Usage-Monthly-Remaining"]) == (
        429,
        "DECIDE_API_MONTHLY_CAP_EXCEEDED",
        "0",
    )
    assert int(headers["X-RateLimit-Reset"]) > 10**12
    platform.sandbox.throw("decidefyi.monthly_cap=none")
    platform.sandbox.throw("decidefyi.rate_limit=1")
    platform.sandbox.throw("decidefyi.reset_unit=s")
    answers = [await platform.post(path, {"execution_status": "executed"}) for _ in range(3)]
    status, headers, body = answers[-1]
    assert (status, body["error"], body["v"]) == (429, "DECIDE_API_RATE_LIMITED", "rate_limited")
    assert 1 <= body["retry_after"] <= 60
    assert int(headers["X-RateLimit-Reset"]) < 10**11


async def test_sizes(platform):
    """Decide: a prompt that is too large is 413 with its code; the limit of a body is a switch."""
    platform.sandbox.throw("decidefyi.max_prompt_bytes=10")
    body = {"question": "x" * 11}
    assert await platform.refused("/api/decide", body) == (413, "DECIDE_AI_PROMPT_TOO_LARGE")
    platform.sandbox.throw("decidefyi.max_body_bytes=10")
    assert (await platform.refused("/api/decide", request()))[0] == 413


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, "DECIDE_API_INVALID_REQUEST"), (403, "DECIDE_API_UNAUTHORIZED"), (404, "NOT_FOUND"), (429, "DECIDE_API_RATE_LIMITED"),
     (500, "DECIDE_INTERNAL_ERROR"), (503, "DECIDE_STORE_UNAVAILABLE")],
)  # fmt: skip
async def test_injected_faults_speak_in_the_envelope(platform, status, code):
    """A fault with a status answers as decide.fyi would, and nothing is done."""
    platform.sandbox.faults.add(f"status={status},count=1")
    assert await platform.refused("/api/decide", request()) == (status, code)
    assert platform.sandbox.state().runs == 0


async def test_below_its_own_name_and_by_its_prefixes():
    """Beside other platforms its paths are still its own, with and without its name before them."""
    async with Sandbox(["agentos", "decidefyi"]) as sandbox, aiohttp.ClientSession() as session:
        platform = Platform(sandbox, session)
        record = await platform.decide()
        assert await platform.ok("/decidefyi/api/decision/" + record["decision_id"], method="GET") == record
        async with session.get(f"{sandbox.url}/_sandbox/runs") as answer:
            assert [(row["face"], row["id"]) for row in await answer.json()] == [("decidefyi", record["decision_id"])]
