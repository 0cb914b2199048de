"""The sandbox as AgentOS, over real sockets: each rule of the platform, each switch and each fault, as a client meets them."""

from __future__ import annotations

import asyncio
import email.utils
import gzip
import hashlib
import json
import time
import uuid

import aiohttp
import pytest

from agentd.errors import UsageError
from agentd.sandbox import AgentosSwitches, Fault, Sandbox

AGENT = "6f1c8f0e-3f0b-4b52-9a34-1f0f6f2f7c11"
BASE = "/api/ingest/v1"
LOST = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)


class Platform:
    """A client that speaks to one sandbox as an SDK would."""

    def __init__(self, sandbox: Sandbox, session: aiohttp.ClientSession) -> None:
        self.sandbox = sandbox
        self.session = session

    async def post(self, path, body=None, *, raw=None, headers=None):
        """Status, headers and decoded body of one call."""
        data = json.dumps(body).encode() if raw is None else raw
        headers = {"Authorization": "Bearer aos_agent_test", "Content-Type": "application/json"} | (headers or {})
        async with self.session.post(f"{self.sandbox.url}{BASE}{path}", data=data, headers=headers) as answer:
            text = await answer.text()
            is_json = answer.content_type == "application/json"
            return answer.status, answer.headers, json.loads(text) if is_json else text

    async def ok(self, path, body):
        """The data of a call that must succeed, its envelope checked."""
        status, _, answer = await self.post(path, body)
        assert (status, answer["error"]) == (200, None), answer
        return answer["data"]

    async def refused(self, path, body, **kwargs):
        """Status and code of a call that must be refused, its envelope checked."""
        status, _, answer = await self.post(path, body, **kwargs)
        assert set(answer) == {"data", "error"}
        assert answer["data"] is None
        assert set(answer["error"]) == {"code", "message"}
        return status, answer["error"]["code"]

    async def start(self, **fields):
        return (await self.ok("/run/start", {"agent_id": AGENT, **fields}))["run_id"]

    async def events(self, run_id, *types):
        return await self.ok("/events", {"run_id": run_id, "events": [event(name) for name in types]})

    async def inspect(self, method, path, body=None):
        async with self.session.request(method, f"{self.sandbox.url}/_sandbox{path}", json=body) as answer:
            return answer.status, await answer.json()

    def types(self, run_id):
        return [stored["type"] for stored in self.sandbox.run(run_id)["events"]]


def event(name, **fields):
    return {"type": name, "level": "info", "payload": {}, "occurred_at": "2026-01-01T00:00:00Z"} | fields


def task(**fields):
    return {"id": str(uuid.UUID(int=1)), "name": "parse", "status": "running", "input": {}} | fields


@pytest.fixture
async def platform():
    async with Sandbox() as sandbox, aiohttp.ClientSession() as session:
        yield Platform(sandbox, session)


# -- authentication and envelope ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic abc", "aos_agent_test"])
async def test_missing_key(platform, header):
    """AgentOS: a call without a bearer key is 401 UNAUTHENTICATED, and nothing is done."""
    headers = {"Authorization": header}
    assert await platform.refused("/run/start", {"agent_id": AGENT}, headers=headers) == (401, "UNAUTHENTICATED")
    assert platform.sandbox.state().runs == 0


async def test_known_keys_only():
    """With keys given, the sandbox takes those and refuses every other with 401."""
    async with Sandbox(api_keys=["right"]) as sandbox, aiohttp.ClientSession() as session:
        platform = Platform(sandbox, session)
        wrong, right = {"Authorization": "Bearer wrong"}, {"Authorization": "bearer right"}
        assert await platform.refused("/run/start", {"agent_id": AGENT}, headers=wrong) == (401, "UNAUTHENTICATED")
        assert (await platform.post("/run/start", {"agent_id": AGENT}, headers=right))[0] == 200


async def test_unknown_endpoints(platform):
    """AgentOS: what is not emulated answers 404 NOT_FOUND; a call is always a POST."""
    assert await platform.refused("/human-input", {}) == (404, "NOT_FOUND")
    assert await platform.refused("/nosuch", {}) == (404, "NOT_FOUND")
    headers = {"Authorization": "Bearer k"}
    async with platform.session.get(f"{platform.sandbox.url}{BASE}/events", headers=headers) as answer:
        assert answer.status == 405


async def test_below_its_own_name(platform):
    """Every platform is also reachable below its own name, so that several can share a sandbox."""
    url = f"{platform.sandbox.url_for('agentos')}{BASE}/run/start"
    async with platform.session.post(url, json={"agent_id": AGENT}, headers={"Authorization": "Bearer k"}) as answer:
        assert answer.status == 200
    with pytest.raises(KeyError):
        platform.sandbox.url_for("nosuch")


# -- run.start ------------------------------------------------------------------------------------------------------------------


async def test_start_dedupes_on_the_external_id(platform):
    """AgentOS: the same external_run_id gives the same run; without one every start is a new run."""
    first = await platform.start(external_run_id="job-1", input={"a": 1})
    assert await platform.start(external_run_id="job-1", input={"a": 1}) == first
    assert await platform.start(external_run_id="job-2") != first
    assert await platform.start() != await platform.start()
    assert platform.sandbox.run("job-1")["run_id"] == first
    assert platform.sandbox.run("job-1")["starts"] == 2
    assert platform.sandbox.state().runs == 4


async def test_start_again_by_another_agent_is_counted(platform):
    """No source says what a reused external_run_id of another agent means: same run, and the state counts it."""
    run_id = await platform.start(external_run_id="job-1")
    other = {"agent_id": str(uuid.UUID(int=7)), "external_run_id": "job-1"}
    assert (await platform.ok("/run/start", other))["run_id"] == run_id
    assert platform.sandbox.state().faces["agentos"]["details"]["start_conflicts"] == 1


async def test_start_keeps_what_was_sent(platform):
    """AgentOS: agent, trigger type, input and parent belong to the run, whose id is a UUID of the server's making."""
    parent = await platform.start()
    child = await platform.start(external_run_id="c", trigger_type="webhook", input={"x": [1]}, parent_run_id=parent)
    run = platform.sandbox.run(child)
    assert str(uuid.UUID(child)) == child
    assert (run["agent_id"], run["trigger_type"], run["input"]) == (AGENT, "webhook", {"x": [1]})
    assert (run["parent_run_id"], run["status"], run["events"], run["tasks"]) == (parent, "running", [], [])


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"agent_id": "billing"},
        {"agent_id": AGENT, "trigger_type": "cron"},
        {"agent_id": AGENT, "input": []},
        {"agent_id": AGENT, "external_run_id": None},
        [],
    ],
)
async def test_wrong_start(platform, body):
    """AgentOS: an agent_id that is no UUID, an unknown trigger type, a null: 400 VALIDATION_ERROR, and no run."""
    assert await platform.refused("/run/start", body) == (400, "VALIDATION_ERROR")
    assert platform.sandbox.state().runs == 0


# -- events -------------------------------------------------------------------------------------------------------------------------


async def test_sequence_numbers_by_arrival(platform):
    """AgentOS: events are numbered per run in order of receipt, whatever their own times say."""
    one, two = await platform.start(), await platform.start()
    await platform.events(one, "a", "b")
    await platform.events(two, "x")
    await platform.ok("/events", {"run_id": one, "events": [event("c", occurred_at="1999-01-01T00:00:00Z")]})
    stored = platform.sandbox.run(one)["events"]
    assert [(each["sequence_number"], each["type"]) for each in stored] == [(1, "a"), (2, "b"), (3, "c")]
    assert platform.sandbox.run(two)["events"][0]["sequence_number"] == 1


async def test_events_are_stored_as_sent(platform):
    """AgentOS: span fields and payload are kept; level and payload left out are info and an empty object."""
    run_id = await platform.start()
    sent = event("step", level="warn", payload={"ü": [None, 1.5]}, span_id="s", kind="tool", duration_ms=3)
    await platform.ok("/events", {"run_id": run_id, "events": [sent, {"type": "bare"}]})
    first, second = platform.sandbox.run(run_id)["events"]
    assert {name: first[name] for name in sent} == sent
    assert (second["level"], second["payload"]) == ("info", {})


@pytest.mark.parametrize(
    "bad",
    [
        event("bad", span_id=None),
        event("bad", level="warning"),
        event("bad", payload=None),
        event("bad", payload=["not", "an", "object"]),
        event("bad", occurred_at="now"),
        {"level": "info"},
        "text",
    ],
)
async def test_one_bad_event_refuses_the_whole_batch(platform, bad):
    """AgentOS: one null, one unknown level, one payload that is no object refuses the whole batch; nothing is stored."""
    run_id = await platform.start()
    body = {"run_id": run_id, "events": [event("good"), bad, event("good")]}
    assert await platform.refused("/events", body) == (400, "VALIDATION_ERROR")
    assert platform.sandbox.state().events == 0
    await platform.events(run_id, "next")
    assert platform.sandbox.run(run_id)["events"][0]["sequence_number"] == 1


async def test_a_refused_batch_leaves_no_id_behind(platform):
    """A batch refused whole and sent again in halves is no duplicate."""
    run_id = await platform.start()
    good = event("good", payload={"agentd_id": "id-1"})
    await platform.refused("/events", {"run_id": run_id, "events": [good, event("bad", kind=None)]})
    await platform.ok("/events", {"run_id": run_id, "events": [good]})
    assert platform.sandbox.state().duplicates == 0


async def test_a_repeated_batch_is_stored_twice(platform):
    """AgentOS: events have no id, so a repeated batch is stored twice; agentd_id in the payload tells."""
    run_id = await platform.start()
    body = {"run_id": run_id, "events": [event("e", payload={"agentd_id": f"id-{n}"}) for n in range(2)]}
    await platform.ok("/events", body)
    await platform.ok("/events", body)
    await platform.ok("/events", {"run_id": run_id, "events": body["events"][:1]})
    state = platform.sandbox.state()
    assert (state.events, state.duplicates) == (5, 3)
    details = state.faces["agentos"]["details"]
    assert (details["distinct_ids"], details["duplicate_ids"]) == (2, ["id-0", "id-1"])


@pytest.mark.parametrize("path", ["/events", "/tasks", "/run/complete", "/run/fail", "/run/cancel"])
async def test_unknown_run(platform, path):
    """AgentOS: every call about a run that was never started is 404 NOT_FOUND."""
    body = {"run_id": str(uuid.UUID(int=9)), "events": [], "task": task(), "error_message": "m"}
    assert await platform.refused(path, body) == (404, "NOT_FOUND")


async def test_the_client_s_own_id_is_no_run_id(platform):
    """AgentOS: calls name the run by the server's id, not by external_run_id."""
    await platform.start(external_run_id="job-1")
    assert await platform.refused("/events", {"run_id": "job-1", "events": []}) == (404, "NOT_FOUND")


async def test_compressed_bodies_are_read(platform):
    """A gzipped body is read like any other."""
    run_id = await platform.start()
    raw = gzip.compress(json.dumps({"run_id": run_id, "events": [event("e")]}).encode())
    assert (await platform.post("/events", raw=raw, headers={"Content-Encoding": "gzip"}))[0] == 200
    assert platform.types(run_id) == ["e"]


# -- tasks ------------------------------------------------------------------------------------------------------------------------------


async def test_task_is_created_and_updated(platform):
    """AgentOS: a task is created and updated by the id that the client made; an update may be repeated."""
    run_id = await platform.start()
    await platform.ok("/tasks", {"run_id": run_id, "task": task(input={"file": "a"})})
    update = {"id": task()["id"], "name": "parse", "status": "completed", "output": {"pages": 3}}
    for _ in range(2):
        await platform.ok("/tasks", {"run_id": run_id, "task": update})
    (stored,) = platform.sandbox.run(run_id)["tasks"]
    assert stored == update | {"input": {"file": "a"}, "posts": 3}


async def test_pending_task_starts_running(platform):
    """AgentOS: a pending task that goes on to running is updated, not created again."""
    run_id = await platform.start()
    platform.sandbox.throw("agentos.duplicate_task=409")
    await platform.ok("/tasks", {"run_id": run_id, "task": task(status="pending")})
    running = {name: value for name, value in task().items() if name != "input"}
    await platform.ok("/tasks", {"run_id": run_id, "task": running})
    assert platform.sandbox.run(run_id)["tasks"][0]["status"] == "running"


@pytest.mark.parametrize(("way", "status", "stored"), [("same", 200, 1), ("409", 409, 1), ("duplicate", 200, 2)])
async def test_second_creation_of_a_task(platform, way, status, stored):
    """AgentOS, unknown, hence a switch: a second creation under one id is answered the same, refused, or stored twice."""
    platform.sandbox.throw(f"agentos.duplicate_task={way}")
    run_id = await platform.start()
    body = {"run_id": run_id, "task": task()}
    await platform.ok("/tasks", body)
    got, _, answer = await platform.post("/tasks", body)
    assert (got, (answer["error"] or {}).get("code")) == (status, "CONFLICT" if status == 409 else None)
    assert len(platform.sandbox.run(run_id)["tasks"]) == stored


async def test_second_creation_changes_no_finished_task(platform):
    """A creation repeated after the task's end does not set it running again."""
    run_id = await platform.start()
    for fields in ({}, {"status": "failed", "error_message": "m"}, {}):
        await platform.ok("/tasks", {"run_id": run_id, "task": task(**fields)})
    (stored,) = platform.sandbox.run(run_id)["tasks"]
    assert (stored["status"], stored["error_message"]) == ("failed", "m")


async def test_update_of_a_task_never_created(platform):
    """AgentOS, unknown, hence a switch: an update of a task never created makes it, or is 404."""
    run_id = await platform.start()
    done = {"run_id": run_id, "task": task(status="completed")}
    platform.sandbox.throw("agentos.missing_task=404")
    assert await platform.refused("/tasks", done) == (404, "NOT_FOUND")
    platform.sandbox.throw("agentos.missing_task=create")
    await platform.ok("/tasks", done)
    assert len(platform.sandbox.run(run_id)["tasks"]) == 1


@pytest.mark.parametrize("bad", [{"id": "t1"}, {"status": "done"}, {"input": None}, {"output": None}, {"name": None}])
async def test_wrong_task(platform, bad):
    """AgentOS: a task id that is no UUID, an unknown status or a null is 400, and no task."""
    run_id = await platform.start()
    body = {"run_id": run_id, "task": task(**bad)}
    assert await platform.refused("/tasks", body) == (400, "VALIDATION_ERROR")
    assert platform.sandbox.run(run_id)["tasks"] == []


# -- ends -----------------------------------------------------------------------------------------------------------------------------------


async def test_complete(platform):
    """AgentOS: completion takes an output and four flat token counts."""
    run_id = await platform.start()
    tokens = {"input_tokens": 1, "output_tokens": 2, "cache_read_tokens": 3, "cache_creation_tokens": 4}
    await platform.ok("/run/complete", {"run_id": run_id, "output": {"summary": "s"}, **tokens})
    run = platform.sandbox.run(run_id)
    assert (run["status"], run["output"], run["tokens"]) == ("completed", {"summary": "s"}, tokens)


async def test_fail_and_cancel(platform):
    """AgentOS: a failure has a message and may have details, a cancellation may have a reason."""
    failed, cancelled = await platform.start(), await platform.start()
    await platform.ok("/run/fail", {"run_id": failed, "error_message": "m", "error_detail": {"line": 1}})
    await platform.ok("/run/cancel", {"run_id": cancelled, "reason": "r"})
    run = platform.sandbox.run(failed)
    assert (run["status"], run["error_message"], run["error_detail"]) == ("failed", "m", {"line": 1})
    run = platform.sandbox.run(cancelled)
    assert (run["status"], run["reason"]) == ("cancelled", "r")


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/run/fail", {}),
        ("/run/fail", {"error_message": "x" * 4001}),
        ("/run/cancel", {"reason": "x" * 1001}),
        ("/run/cancel", {"reason": None}),
        ("/run/complete", {"output": None}),
        ("/run/complete", {"input_tokens": "7"}),
    ],
)
async def test_wrong_ends(platform, path, fields):
    """AgentOS: a missing or too long message, too long a reason, a null or a token count in quotes ends no run."""
    run_id = await platform.start()
    assert await platform.refused(path, {"run_id": run_id, **fields}) == (400, "VALIDATION_ERROR")
    assert platform.sandbox.run(run_id)["status"] == "running"


async def test_second_end_is_answered_like_the_first(platform):
    """AgentOS by its SDK: a repeated end is safe; the first one stands. The sandbox remembers every one."""
    run_id = await platform.start()
    first = await platform.ok("/run/complete", {"run_id": run_id, "output": 1})
    assert await platform.ok("/run/complete", {"run_id": run_id, "output": 2}) == first
    assert await platform.ok("/run/fail", {"run_id": run_id, "error_message": "m"}) == first
    run = platform.sandbox.run(run_id)
    assert (run["status"], run["output"], run["terminals"]) == ("completed", 1, ["complete", "complete", "fail"])
    assert platform.sandbox.state().faces["agentos"]["details"]["second_terminals"] == 2


async def test_second_end_refused(platform):
    """AgentOS by its documentation: a run is closed exactly once; with the switch a second end is 409 CONFLICT."""
    platform.sandbox.throw("agentos.second_terminal=409")
    run_id = await platform.start()
    await platform.ok("/run/complete", {"run_id": run_id})
    assert await platform.refused("/run/complete", {"run_id": run_id}) == (409, "CONFLICT")
    assert platform.sandbox.run(run_id)["terminals"] == ["complete"]


async def test_late_events_accepted(platform):
    """AgentOS, unknown, hence a switch: events and tasks of an ended run are taken, and counted as late …"""
    run_id = await platform.start()
    await platform.ok("/run/complete", {"run_id": run_id})
    await platform.events(run_id, "late", "late")
    await platform.ok("/tasks", {"run_id": run_id, "task": task()})
    assert platform.types(run_id) == ["late", "late"]
    assert platform.sandbox.state().faces["agentos"]["details"]["late_events"] == 2


async def test_late_events_refused():
    """… or refused with 409 CONFLICT, which the constructor can choose as well."""
    async with Sandbox(switches=[AgentosSwitches(late_events="409")]) as sandbox, aiohttp.ClientSession() as session:
        platform = Platform(sandbox, session)
        run_id = await platform.start()
        await platform.ok("/run/complete", {"run_id": run_id})
        late = {"run_id": run_id, "events": [event("late")]}
        assert await platform.refused("/events", late) == (409, "CONFLICT")
        assert await platform.refused("/tasks", {"run_id": run_id, "task": task()}) == (409, "CONFLICT")
        assert platform.types(run_id) == []


# -- limits -------------------------------------------------------------------------------------------------------------------------------


async def test_batch_limit(platform):
    """AgentOS names no batch limit; with the switch one event too many is 400, and exactly as many are taken."""
    run_id = await platform.start()
    await platform.events(run_id, *["e"] * 500)
    platform.sandbox.throw("agentos.max_events=50")
    await platform.events(run_id, *["e"] * 50)
    body = {"run_id": run_id, "events": [event("e")] * 51}
    assert await platform.refused("/events", body) == (400, "VALIDATION_ERROR")
    assert platform.sandbox.state().events == 550


async def test_body_limit(platform):
    """AgentOS names no size limit; with the switch one byte too many is 413, and exactly as many are taken."""
    run_id = await platform.start()
    raw = json.dumps({"run_id": run_id, "events": [event("e", payload={"x": "y" * 300_000})]}).encode()
    platform.sandbox.throw(f"agentos.max_body_bytes={len(raw) - 1}")
    assert await platform.refused("/events", None, raw=raw) == (413, "PAYLOAD_TOO_LARGE")
    platform.sandbox.throw(f"agentos.max_body_bytes={len(raw)}")
    assert (await platform.post("/events", raw=raw))[0] == 200
    assert platform.sandbox.state().events == 1


async def test_hard_body_limit(platform, monkeypatch):
    """What no platform would read to its end is 413 before it was read."""
    monkeypatch.setattr("agentd.sandbox.server._HARD_BODY_LIMIT", 1000)
    assert await platform.refused("/events", None, raw=b"x" * 1001) == (413, "PAYLOAD_TOO_LARGE")
    assert platform.sandbox.requests()[0].sha256 == ""


# -- faults ---------------------------------------------------------------------------------------------------------------------------------


async def test_injected_status(platform):
    """A fault's status comes in the platform's envelope with the platform's code, and nothing is committed."""
    platform.sandbox.faults.add("status=503,count=1", Fault(status=502, count=1))
    assert await platform.refused("/run/start", {"agent_id": AGENT}) == (503, "INTERNAL_ERROR")
    assert await platform.refused("/run/start", {"agent_id": AGENT}) == (502, "BAD_GATEWAY")
    assert platform.sandbox.state().runs == 0
    await platform.start()
    assert [(line.status, line.fault) for line in platform.sandbox.requests()] == [
        (200, ""),
        (502, "status=502"),
        (503, "status=503"),
    ]


async def test_injected_body(platform):
    """A fault may speak as a proxy does, in HTML and not in the platform's envelope."""
    platform.sandbox.faults.add("status=502,body=<h1>Bad Gateway</h1>")
    status, headers, text = await platform.post("/run/start", {"agent_id": AGENT})
    assert (status, headers["Content-Type"], text) == (502, "text/html; charset=utf-8", "<h1>Bad Gateway</h1>")


async def test_injected_rate_is_repeatable():
    """A tenth of the answers fails, and the same tenth in the next run with the same seed."""

    async def statuses(seed):
        async with Sandbox(seed=seed) as sandbox, aiohttp.ClientSession() as session:
            platform = Platform(sandbox, session)
            sandbox.faults.add("status=503,rate=0.1")
            return [(await platform.post("/run/start", {"agent_id": AGENT}))[0] for _ in range(100)]

    first = await statuses(5)
    assert await statuses(5) == first
    assert 1 <= first.count(503) <= 30


async def test_retry_after(platform):
    """AgentOS: 429 RATE_LIMITED comes with Retry-After in seconds or as an HTTP date."""
    platform.sandbox.faults.add("retry_after=7,count=1", "status=429,retry_after=30,retry_after_as=date")
    status, headers, answer = await platform.post("/run/start", {})
    assert (status, answer["error"]["code"], headers["Retry-After"]) == (429, "RATE_LIMITED", "7")
    _, headers, _ = await platform.post("/run/start", {})
    date = email.utils.parsedate_to_datetime(headers["Retry-After"])
    assert 20 < date.timestamp() - time.time() < 40


async def test_latency(platform):
    """A late answer belongs to a request that was committed at once."""
    platform.sandbox.faults.add("latency=200ms,path=/api/ingest/v1/run/start")
    begin = time.perf_counter()
    await platform.start()
    assert time.perf_counter() - begin >= 0.19
    platform.sandbox.faults.replace("latency=1h")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await platform.start(external_run_id="impatient")
    assert platform.sandbox.run("impatient")["starts"] == 1


async def test_cut_loses_the_answer_after_the_commit(platform):
    """An answer lost after the commit: the run exists, its events are stored, and only the client doesn't know."""
    platform.sandbox.faults.add("cut,count=1")
    with pytest.raises(LOST):
        await platform.start(external_run_id="job-1")
    run_id = platform.sandbox.run("job-1")["run_id"]
    assert await platform.start(external_run_id="job-1") == run_id
    platform.sandbox.faults.replace("cut,count=1,path=/api/ingest/v1/events")
    with pytest.raises(LOST):
        await platform.events(run_id, "a", "b")
    assert platform.types(run_id) == ["a", "b"]
    assert platform.sandbox.state().faults == {"cut": 2}
    assert platform.sandbox.requests()[0].fault == "cut"
    assert platform.sandbox.requests()[0].status == 200


async def test_hang_commits_nothing(platform):
    """A call that hangs gets no answer and is not committed; inspection goes on, and stopping ends it."""
    platform.sandbox.faults.add("hang")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await platform.start()
    state = platform.sandbox.state()
    assert (state.runs, state.faults) == (0, {"hang": 1})
    assert state.requests == {f"{BASE}/run/start": {"0": 1}}
    hanging = asyncio.ensure_future(platform.start())
    while platform.sandbox.state().faults != {"hang": 2}:
        await asyncio.sleep(0)
    begin = time.perf_counter()
    await platform.sandbox.stop()
    assert time.perf_counter() - begin < 0.5  # well within the grace given to answers under way
    with pytest.raises(LOST):
        await hanging


async def test_down_by_fault_leaves_inspection_reachable(platform):
    """While a fault says down, ingest connections are reset unread, and the sandbox itself still answers over HTTP."""
    assert (await platform.inspect("PUT", "/faults", "down"))[0] == 200
    for _ in range(3):
        with pytest.raises(LOST):
            await platform.post("/run/start", {"agent_id": AGENT}, headers={"Idempotency-Key": "k"})
    status, state = await platform.inspect("GET", "/state")
    assert (status, state["runs"], state["faults"]) == (200, 0, {"down": 3})
    assert platform.sandbox.repeats() == {}
    await platform.inspect("DELETE", "/faults")
    await platform.start()


async def test_down_and_up_in_code(platform):
    """down() closes the port: connections under way are reset, new ones refused; up() listens on the same port again."""
    run_id = await platform.start()
    url = platform.sandbox.url
    platform.sandbox.faults.add("hang,count=1")
    hanging = asyncio.ensure_future(platform.events(run_id, "lost"))
    while not platform.sandbox.state().faults:
        await asyncio.sleep(0)
    await platform.sandbox.down()
    with pytest.raises(LOST):
        await hanging
    for _ in range(2):
        with pytest.raises(aiohttp.ClientConnectorError):
            await platform.events(run_id, "refused")
    assert "down" in repr(platform.sandbox)
    await platform.sandbox.down()
    await platform.sandbox.up()
    await platform.sandbox.up()
    assert platform.sandbox.url == url
    await platform.events(run_id, "after")
    assert platform.types(run_id) == ["after"]


async def test_connections_of_one_client_survive_a_lapsed_fault(platform):
    """After a refusal the connection is usable, so a client needs no new one."""
    platform.sandbox.faults.add("status=500,count=2")
    for expected in (500, 500, 200):
        assert (await platform.post("/run/start", {"agent_id": AGENT}))[0] == expected


# -- inspection over HTTP ---------------------------------------------------------------------------------------------------------------------


async def test_state_and_runs(platform):
    """Totals, rows and a run's events are the same over HTTP and in code."""
    run_id = await platform.start(external_run_id="job/1")
    await platform.events(run_id, "a", "b", "c")
    _, state = await platform.inspect("GET", "/state")
    assert (state["runs"], state["events"]) == (1, 3)
    assert state["requests"] == {f"{BASE}/events": {"200": 1}, f"{BASE}/run/start": {"200": 1}}
    assert (await platform.inspect("GET", "/runs"))[1] == platform.sandbox.runs()
    _, run = await platform.inspect("GET", f"/runs/{run_id}?offset=1&limit=1")
    assert [stored["type"] for stored in run["events"]] == ["b"]
    assert (await platform.inspect("GET", f"/runs/{run_id}"))[1] == platform.sandbox.run("job/1")
    with pytest.raises(KeyError):
        platform.sandbox.run("nosuch")


async def test_requests_and_repeats(platform):
    """The ledger has path, status, key and digest; repeats say whether a key always came with the same bytes."""
    raw = json.dumps({"agent_id": AGENT}).encode()
    for body, key in ((raw, "same"), (raw, "same"), (raw, "other"), (raw + b" ", "other")):
        await platform.post("/run/start", raw=body, headers={"Idempotency-Key": key})
    platform.sandbox.faults.add("status=503,count=1")
    await platform.post("/run/start", raw=raw, headers={"Idempotency-Key": "same"})
    repeats = platform.sandbox.repeats()
    assert (repeats["same"].count, repeats["same"].same_body) == (3, True)
    assert (repeats["other"].count, repeats["other"].same_body) == (2, False)
    assert repeats["same"].sha256 == hashlib.sha256(raw).hexdigest()
    _, listed = await platform.inspect("GET", "/repeats?min=3")
    assert listed == {"same": {"count": 3, "same_body": True, "sha256": hashlib.sha256(raw).hexdigest()}}
    _, (line,) = await platform.inspect("GET", "/requests?limit=1")
    assert (line["path"], line["status"], line["idempotency_key"]) == (f"{BASE}/run/start", 503, "same")
    assert (line["sha256"], line["fault"]) == (hashlib.sha256(raw).hexdigest(), "status=503")


async def test_switches_and_reset_by_http(platform):
    """Switches are thrown over HTTP too; reset forgets what was received and leaves them."""
    run_id = await platform.start()
    await platform.ok("/run/complete", {"run_id": run_id})
    _, switches = await platform.inspect("PUT", "/switches", {"agentos.late_events": "409"})
    assert switches["agentos"]["late_events"] == "409"
    assert await platform.refused("/events", {"run_id": run_id, "events": []}) == (409, "CONFLICT")
    _, state = await platform.inspect("POST", "/reset")
    assert (state["runs"], state["requests"]) == (0, {})
    assert platform.sandbox.switches()["agentos"]["late_events"] == "409"


async def test_page(platform):
    """The page answers with and without a slash, as HTML, and escapes what an agent wrote."""
    await platform.start(external_run_id="<script>alert(1)</script>")
    for path in ("/_sandbox", "/_sandbox/"):
        async with platform.session.get(platform.sandbox.url + path) as answer:
            page = await answer.text()
            assert (answer.status, answer.content_type) == (200, "text/html")
        assert "&lt;script&gt;alert(1)" in page
        assert "<script" not in page


async def test_inspection_needs_no_key_and_is_not_in_the_books(platform):
    """Looking changes nothing: inspection appears neither in the ledger nor in the totals."""
    await platform.inspect("GET", "/state")
    await platform.inspect("GET", "/nosuch")
    assert platform.sandbox.requests() == []


# -- the sandbox itself ---------------------------------------------------------------------------------------------------------------------


async def test_start_stop_and_start_again():
    """State survives a stop; a second start takes the same port; stopping twice does no harm."""
    sandbox = Sandbox()
    assert "not started" in repr(sandbox)
    await sandbox.stop()
    await sandbox.start()
    url = sandbox.url
    async with aiohttp.ClientSession() as session:
        await Platform(sandbox, session).start(external_run_id="job-1")
    await sandbox.stop()
    await sandbox.stop()
    await sandbox.start()
    assert (sandbox.url, sandbox.run("job-1")["starts"]) == (url, 1)
    await sandbox.down()
    await sandbox.stop()


async def test_taken_port():
    """Starting on a port that is taken fails at once and leaves nothing open."""
    async with Sandbox() as sandbox:
        with pytest.raises(OSError, match="in use"):
            await Sandbox(port=sandbox.port).start()


async def test_unknown_face():
    """A platform that the sandbox has not is refused when it is made, by name."""
    with pytest.raises(UsageError, match="no platform 'nosuch'"):
        Sandbox(faces=("nosuch",))


async def test_a_client_that_goes_in_the_middle_of_its_body_leaves_nothing(platform, caplog):
    """A body that never came to its end is no request: nothing is stored or counted, and nothing is logged."""
    _, writer = await asyncio.open_connection("127.0.0.1", platform.sandbox.port)
    head = f"POST {BASE}/run/start HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer k\r\nContent-Length: 100\r\n\r\n"
    writer.write(head.encode() + b'{"agent_id"')
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    await platform.start()  # a round trip later the server has seen the end of the other
    assert platform.sandbox.state().runs == 1
    assert len(platform.sandbox.requests()) == 1
    assert caplog.records == []


async def test_many_events_of_many_clients(platform):
    """Sixteen clients at once, 50 events a batch: every event is there, each run in its client's order."""

    async def send(number):
        run_id = await platform.start(external_run_id=f"run-{number}")
        for batch in range(10):
            await platform.events(run_id, *(f"{batch * 50 + index}" for index in range(50)))

    await asyncio.gather(*(send(number) for number in range(16)))
    assert platform.sandbox.state().events == 16 * 500
    for number in range(16):
        assert platform.types(f"run-{number}") == [str(index) for index in range(500)]
