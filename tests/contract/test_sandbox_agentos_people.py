"""The sandbox as AgentOS where people and hosted agents come in: each rule and switch over real sockets, and its own SDK against it."""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid

import aiohttp
import pytest
from agentos import AgentOS, AgentOSError, AgentOSTimeoutError, AgentOSTransientError

from agentd.sandbox import Sandbox

AGENT = "6f1c8f0e-3f0b-4b52-9a34-1f0f6f2f7c11"
HUMAN_INPUT = "/api/ingest/v1/human-input/request"
INVOKE = f"/api/v1/agents/{AGENT}/invoke"
NOBODY = str(uuid.UUID(int=9))


class Platform:
    """A client that speaks to one sandbox, and a person at its page."""

    def __init__(self, sandbox: Sandbox, session: aiohttp.ClientSession) -> None:
        self.sandbox = sandbox
        self.session = session

    async def send(self, path, body=None, *, key="aos_ws_test", method="POST"):
        """Status, content type and text of one call."""
        headers = {"Authorization": f"Bearer {key}"}
        async with self.session.request(method, self.sandbox.url + path, json=body, headers=headers) as answer:
            return answer.status, answer.content_type, await answer.text()

    async def post(self, path, body=None, **options):
        """Status, and data or the error's code; the envelope is checked."""
        status, _, text = await self.send(path, body, **options)
        answer = json.loads(text)
        assert set(answer) == {"data", "error"}
        return status, answer["data"] if answer["error"] is None else answer["error"]["code"]

    async def start(self, **fields):
        status, data = await self.post("/api/ingest/v1/run/start", {"agent_id": AGENT, **fields})
        assert status == 200
        return data["run_id"]

    async def ask(self, run, **fields):
        return await self.post(HUMAN_INPUT, {"run_id": run, "prompt": "Ship?", **fields})

    async def person(self, item_id, verb, **params):
        url = f"{self.sandbox.url}/_sandbox/act/agentos/{item_id}/{verb}"
        async with self.session.post(url, params=params) as answer:
            return answer.status, await answer.json()

    async def asked(self, run_id, count=1):
        """What a run has waited for, once it is so much."""
        while len(found := self.sandbox.run(run_id)["waited_for"]) < count:
            await asyncio.sleep(0.005)
        return found

    def throw(self, **switches):
        for name, value in switches.items():
            self.sandbox.throw(f"agentos.{name}={value}")

    def details(self):
        return self.sandbox.state().faces["agentos"]["details"]


@pytest.fixture
async def platform():
    async with Sandbox() as sandbox, aiohttp.ClientSession() as session, asyncio.timeout(30):
        yield Platform(sandbox, session)


# -- human input ------------------------------------------------------------------------------------------------------------


async def test_an_answer_ends_the_long_poll(platform):
    """AgentOS: a question is held back until somebody answers, and the answer is there at once; asked again it stays the same."""
    platform.throw(human_input_poll="1h")
    run_id = await platform.start()
    waiting = asyncio.create_task(platform.ask(run_id, context={"amount": 7}))
    (question,) = await platform.asked(run_id)
    assert (question["what"], question["context"], question["status"]) == ("Ship?", {"amount": 7}, "pending")
    status, shown = await platform.person(question["id"], "answer", input="ja & los")
    assert (status, shown["data"]["status"]) == (200, "answered")
    answered = (200, {"input": "ja & los", "request_id": question["id"]})
    assert await waiting == answered
    assert await platform.ask(run_id, context={"amount": 7}, request_id=question["id"]) == answered
    assert platform.sandbox.run(run_id)["waited_for"][0]["posts"] == 2
    assert [line.status for line in platform.sandbox.requests() if line.path == HUMAN_INPUT] == [200, 200]


async def test_pending_when_the_poll_is_over(platform):
    """AgentOS: 202 and the request's id when nobody has answered yet; asked again it is the same question, which can be answered."""
    platform.throw(human_input_poll=0)
    run_id = await platform.start()
    status, pending = await platform.ask(run_id)
    assert (status, set(pending), pending["status"]) == (202, {"request_id", "status"}, "pending")
    begin = time.perf_counter()
    platform.throw(human_input_poll="200ms")
    assert await platform.ask(run_id, request_id=pending["request_id"]) == (202, pending)
    assert time.perf_counter() - begin >= 0.19
    assert (await platform.person(run_id, "answer"))[0] == 200
    assert await platform.ask(run_id, request_id=pending["request_id"]) == (
        200,
        {"input": "yes", "request_id": pending["request_id"]},
    )
    assert platform.details()["questions"] == {"answered": 1}


async def test_every_post_without_an_id_is_a_question(platform):
    """AgentOS: nothing dedupes the first POST: two are two questions, and each has its own answer."""
    platform.throw(human_input_poll=0)
    run_id = await platform.start()
    first, second = [(await platform.ask(run_id))[1]["request_id"] for _ in range(2)]
    assert first != second
    await platform.person(run_id, "answer", input="to the oldest")
    await platform.person(second, "answer", input="to the other")
    answers = [(await platform.ask(run_id, request_id=each))[1]["input"] for each in (first, second)]
    assert answers == ["to the oldest", "to the other"]
    assert (await platform.person(run_id, "answer"))[0] == 404
    assert (await platform.person(first, "cancel"))[0] == 409


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": ""}, {"prompt": None}, {"timeout_seconds": 0}, {"timeout_seconds": "60"}, {"timeout_seconds": None}, {"context": None},
        {"context": []}, {"request_id": None}, {"request_id": ""}, {"run_id": None},
    ],
)  # fmt: skip
async def test_wrong_questions(platform, fields):
    """AgentOS: a prompt, whole seconds, an object as context, and no nulls: 400 VALIDATION_ERROR, and nobody is asked."""
    assert await platform.ask(await platform.start(), **fields) == (400, "VALIDATION_ERROR")
    assert platform.details()["questions"] == {}


async def test_questions_of_other_runs(platform):
    """AgentOS: an unknown run or request is 404, also a request of another run; what is asked again is the same question."""
    platform.throw(human_input_poll=0)
    one, two = await platform.start(), await platform.start()
    request_id = (await platform.ask(one))[1]["request_id"]
    assert await platform.ask(NOBODY) == (404, "NOT_FOUND")
    assert await platform.ask(one, request_id=NOBODY) == (404, "NOT_FOUND")
    assert await platform.ask(two, request_id=request_id) == (404, "NOT_FOUND")
    for other in ({"prompt": "Stop?"}, {"context": {}}):
        assert await platform.ask(one, request_id=request_id, **other) == (400, "VALIDATION_ERROR")


async def test_nobody_in_time(platform):
    """AgentOS: 408 TIMEOUT when its seconds are over, even in the middle of a poll, and for good."""
    platform.throw(human_input_poll="1h")
    run_id = await platform.start()
    assert await platform.ask(run_id, timeout_seconds=1) == (408, "TIMEOUT")
    (question,) = await platform.asked(run_id)
    assert (await platform.person(question["id"], "answer"))[0] == 409
    assert await platform.ask(run_id, timeout_seconds=1, request_id=question["id"]) == (408, "TIMEOUT")


@pytest.mark.parametrize("how", ["person", "run"])
async def test_cancelled(platform, how):
    """AgentOS: 409 CONFLICT for a question that somebody cancels, or with whose run it is cancelled."""
    platform.throw(human_input_poll="1h")
    run_id = await platform.start()
    waiting = asyncio.create_task(platform.ask(run_id))
    (question,) = await platform.asked(run_id)
    if how == "person":
        await platform.person(question["id"], "cancel")
    else:
        await platform.post("/api/ingest/v1/run/cancel", {"run_id": run_id})
        assert await platform.ask(run_id) == (409, "CONFLICT")
    assert await waiting == (409, "CONFLICT")
    assert platform.details()["questions"] == {"cancelled": 1}


@pytest.mark.parametrize(
    ("way", "said"), [("answer", (200, "go on")), ("timeout", (408, "TIMEOUT")), ("cancel", (409, "CONFLICT"))]
)
async def test_people_by_switch(platform, way, said):
    """A switch stands in for the person: an answer with its text, a timeout or a cancellation, at once."""
    platform.throw(human_input=way, human_input_answer="go on", human_input_poll="1h")
    status, data = await platform.ask(await platform.start())
    assert (status, data["input"] if status == 200 else data) == said


async def test_a_client_that_goes_while_it_waits(platform):
    """The question stays on the person's screen, and the ledger says that nobody heard an answer."""
    platform.throw(human_input_poll="1h")
    run_id = await platform.start()
    waiting = asyncio.create_task(platform.ask(run_id))
    (question,) = await platform.asked(run_id)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    while not [line for line in platform.sandbox.requests() if (line.path, line.status) == (HUMAN_INPUT, 0)]:
        await asyncio.sleep(0.005)
    await platform.person(question["id"], "answer")
    assert (await platform.ask(run_id, request_id=question["id"]))[0] == 200


async def test_faults_on_a_question(platform):
    """A cut loses the answer of a question that was asked; an injected status asks nobody."""
    platform.throw(human_input_poll="1h")
    run_id = await platform.start()
    platform.sandbox.faults.add(f"cut,count=1,path={HUMAN_INPUT}")
    with pytest.raises(aiohttp.ClientConnectionError):
        await platform.ask(run_id)
    assert platform.details()["questions"] == {"pending": 1}
    platform.sandbox.faults.add("status=503,count=1")
    assert await platform.ask(run_id) == (503, "INTERNAL_ERROR")
    assert platform.details()["questions"] == {"pending": 1}
    assert [line.status for line in platform.sandbox.requests(2)] == [503, 202]


async def test_stopping_ends_the_polls():
    """A sandbox that stops answers what it held: pending."""
    async with aiohttp.ClientSession() as session, asyncio.timeout(30):
        sandbox = Sandbox(switches=["agentos.human_input_poll=1h"])
        await sandbox.start()
        platform = Platform(sandbox, session)
        run_id = await platform.start()
        waiting = asyncio.create_task(platform.ask(run_id))
        await platform.asked(run_id)
        await sandbox.stop()
        assert (await waiting)[0] == 202


# -- the page ---------------------------------------------------------------------------------------------------------------


async def test_a_person_at_the_page(platform):
    """The overview leads to the run, whose page has a field for the answer and is not refreshed while it has; then it shows what was said."""
    platform.throw(human_input_poll=0)
    run_id = await platform.start()
    request_id = (await platform.ask(run_id, context={"<b>": "<i>"}))[1]["request_id"]
    (row,) = platform.sandbox.runs()
    assert (row["waits_for"], row["verbs"], row["with_text"]) == ("question: Ship?", ["answer", "cancel"], ["answer"])
    page = f"/_sandbox/view/agentos/{run_id}"
    _, _, overview = await platform.send("/_sandbox/", method="GET")
    assert f'<a href="{page}">answer…</a>' in overview
    assert "http-equiv" in overview
    _, _, text = await platform.send(page, method="GET")
    assert re.search(rf'action="{page}/answer"><input name="input" required', text)
    assert re.search(rf'action="{page}/cancel"><button>', text)
    assert "http-equiv" not in text
    assert "&lt;i&gt;" in text
    url = f"{platform.sandbox.url}{page}/answer"
    async with platform.session.post(url, data={"input": "<go> & on"}) as shown:
        assert (shown.status, shown.history[0].status) == (200, 303)
        assert "&lt;go&gt;" in await shown.text()
    assert (await platform.ask(run_id, context={"<b>": "<i>"}, request_id=request_id))[1]["input"] == "<go> & on"
    assert platform.sandbox.run(request_id)["id"] == run_id


async def test_input_that_nobody_takes(platform):
    """A body without an input is refused, and so is a text for a platform that takes none."""
    platform.throw(human_input_poll=0)
    run_id = await platform.start()
    await platform.ask(run_id)
    url = f"{platform.sandbox.url}/_sandbox/act/agentos/{run_id}/answer"
    async with platform.session.post(url, json={"input": "x"}) as answer:
        assert answer.status == 400
    assert platform.sandbox.runs()[0]["verbs"] == ["answer", "cancel"]
    async with (
        Sandbox(["aegis"]) as other,
        platform.session.post(f"{other.url}/_sandbox/act/aegis/i/deny?input=x") as answer,
    ):
        assert answer.status == 400


# -- hosted agents ----------------------------------------------------------------------------------------------------------


async def test_an_invoke_is_a_run(platform):
    """AgentOS: 200 with run, output, duration and session; each POST is a run of its own, and all are shown."""
    body = {
        "input": {"q": 1}, "prompt_variables": {"TONE": "formal"}, "parent_run_id": "p", "start_session": True, "external_user_id": "u",
        "test": True,
    }  # fmt: skip
    status, data = await platform.post(INVOKE, body, key="aos_agent_a")
    assert (status, set(data)) == (200, {"run_id", "output", "duration_ms", "session_id"})
    assert data["output"]["input"] == {"q": 1}
    run = platform.sandbox.run(data["run_id"])
    assert (run["status"], run["agent_id"], run["parent_run_id"], run["session_id"]) == (
        "completed",
        AGENT,
        "p",
        data["session_id"],
    )
    asked = {"prompt_variables": {"TONE": "formal"}, "start_session": True, "external_user_id": "u", "test": True}
    assert (run["hosted"], run["output"], run["verbs"]) == (asked, data["output"], [])
    assert (await platform.post(INVOKE, body))[1]["run_id"] != data["run_id"]
    assert (platform.sandbox.state().runs, platform.details()["hosted_runs"]) == (2, 2)


@pytest.mark.parametrize(
    "fields",
    [
        {"input": []}, {"input": None}, {"prompt_variables": {"A": 1}}, {"parent_run_id": None}, {"history": [{"role": "user"}]},
        {"history": [{"role": "robot", "content": ""}]}, {"test": "yes"}, {"stream": None}, {"external_user_id": 7}, {"start_session": 1},
        {"session_id": "s", "start_session": True}, {"session_id": "s", "history": []}, {"start_session": True, "history": []},
    ],
)  # fmt: skip
async def test_wrong_invokes(platform, fields):
    """AgentOS: wrong types, nulls, and more than one way to have a conversation are 400, in JSON even of a stream; nothing runs."""
    for stream in ({}, {"stream": True}):
        assert await platform.post(INVOKE, stream | fields) == (400, "VALIDATION_ERROR")
    assert platform.sandbox.state().runs == 0


async def test_agents_and_sessions(platform):
    """An id that is no UUID is no agent; a session has to have been started, unless the switch takes any."""
    assert await platform.post("/api/v1/agents/bot%207/invoke", {}) == (404, "NOT_FOUND")
    assert await platform.post(INVOKE, {}, method="GET") == (405, "METHOD_NOT_ALLOWED")
    assert await platform.post(INVOKE, {"session_id": "mine"}) == (404, "NOT_FOUND")
    assert (await platform.post(INVOKE, {"start_session": False}))[1]["session_id"] is None
    session_id = (await platform.post(INVOKE, {"start_session": True}))[1]["session_id"]
    again = {"session_id": session_id, "start_session": False}
    assert (await platform.post(INVOKE, again))[1]["session_id"] == session_id
    platform.throw(unknown_session="accept")
    assert (await platform.post(INVOKE, {"session_id": "mine"}))[1]["session_id"] == "mine"


@pytest.mark.parametrize(
    ("verb", "rejected", "status"),
    [("approve", "fail", "completed"), ("reject", "fail", "failed"), ("reject", "complete", "completed")],
)
async def test_a_person_approves(platform, verb, rejected, status):
    """AgentOS: 202 with the approval's id; approved the run goes on, rejected it fails, or its agent hears of it: two sources, a switch."""
    platform.throw(invoke="awaiting_approval", rejected=rejected)
    code, data = await platform.post(INVOKE, {"input": {"q": 1}})
    assert (code, set(data)) == (202, {"run_id", "awaiting_approval", "duration_ms", "session_id"})
    (row,) = platform.sandbox.runs()
    assert (row["status"], row["waits_for"], row["verbs"]) == ("running", "approval: send_email", ["approve", "reject"])
    assert (await platform.person(data["awaiting_approval"]["approval_id"], verb))[0] == 200
    run = platform.sandbox.run(data["run_id"])
    assert (run["status"], run["verbs"], run["waits_for"]) == (status, [], None)
    assert ("output" in run) == (status == "completed")


@pytest.mark.parametrize("over", ["http", "rpc"])
async def test_approvals_by_program(platform, over):
    """AgentOS: the approvals are listed and decided, over RPC in words of its own; decided twice is a conflict."""
    platform.throw(invoke="awaiting_approval")
    ids = [(await platform.post(INVOKE, {}))[1]["awaiting_approval"]["approval_id"] for _ in range(2)]

    async def decide(approval_id, word):
        if over == "http":
            return await platform.post(f"/api/v1/approvals/{approval_id}/decide", {"decision": word})
        words = {"approve": "approved", "reject": "rejected"}
        body = {"approval_id": approval_id, "decision": words.get(word, word), "decision_note": "no"}
        return await platform.post("/api/v1/rpc/approvals_decide", body)

    path, method, body = (
        ("/api/v1/approvals", "GET", None) if over == "http" else ("/api/v1/rpc/approvals_list", "POST", {})
    )
    _, listed = await platform.post(path, body, method=method)
    assert [each["id"] for each in listed] == ids[::-1]
    status, decided = await decide(ids[0], "reject")
    assert (status, decided["status"]) == (200, "rejected")
    assert await decide(ids[0], "approve") == (409, "CONFLICT")
    assert await decide(NOBODY, "approve") == (404, "NOT_FOUND")
    assert await decide(ids[1], "perhaps") == (400, "VALIDATION_ERROR")
    assert [row["status"] for row in platform.sandbox.runs()] == ["running", "failed"]


@pytest.mark.parametrize("path", ["reply", "human-input"])
async def test_a_reply_to_a_hosted_run(platform, path):
    """AgentOS: a run that paused for input goes on with its reply; the id in /reply keeps it from answering anything else."""
    platform.throw(invoke="awaiting_input")
    status, data = await platform.post(INVOKE, {})
    question = data["awaiting_input"]
    assert (status, set(question)) == (202, {"request_id", "question", "context", "options"})
    url = f"/api/v1/runs/{data['run_id']}/{path}"
    named = {"request_id": question["request_id"]} if path == "reply" else {}
    if named:
        assert await platform.post(url, {"response": "go"}) == (400, "VALIDATION_ERROR")
        assert await platform.post(url, {"response": "go", "request_id": NOBODY}) == (409, "CONFLICT")
    assert await platform.post(url, named) == (400, "VALIDATION_ERROR")
    assert await platform.post(url, {"response": "go", **named}, key="aos_agent_a") == (403, "FORBIDDEN")
    status, done = await platform.post(url, {"response": "go", **named})
    assert (status, done["run_id"], done["output"]["reply"]) == (200, data["run_id"], "go")
    assert await platform.post(url, {"response": "go", **named}) == (409, "CONFLICT")
    assert await platform.post(f"/api/v1/runs/{NOBODY}/{path}", {"response": "go", **named}) == (404, "NOT_FOUND")


async def test_a_question_that_a_person_cancels_ends_its_hosted_run(platform):
    """A hosted run whose question is cancelled is cancelled; a question of its own code's is none that it has paused for."""
    platform.throw(invoke="awaiting_input", human_input_poll=0)
    run_id = (await platform.post(INVOKE, {}))[1]["run_id"]
    request_id = (await platform.ask(run_id))[1]["request_id"]
    await platform.person(request_id, "cancel")
    assert platform.sandbox.run(run_id)["status"] == "running"
    await platform.person(run_id, "cancel")
    assert platform.sandbox.run(run_id)["status"] == "cancelled"


async def test_a_hosted_run_that_fails(platform):
    """AgentOS: a failure of the provider's is a 502 whose run is there, and in a stream an error after the 200."""
    platform.throw(invoke="fail")
    assert await platform.post(INVOKE, {}) == (502, "BAD_GATEWAY")
    assert platform.sandbox.runs()[0]["status"] == "failed"
    status, _, text = await platform.send(INVOKE, {"stream": True})
    assert (status, json.loads(text.split("data: ")[-1])["code"]) == (200, "PROVIDER_ERROR")


@pytest.mark.parametrize(
    ("way", "types"),
    [
        ("complete", ["start", "chunk", "tool", "tool", "chunk", "done"]), ("awaiting_approval", ["start", "chunk", "tool", "awaiting_approval"]),
        ("awaiting_input", ["start", "chunk", "awaiting_input"]), ("fail", ["start", "chunk", "tool", "tool", "error"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("end", ["blank_line", "bare"])
async def test_streams(platform, way, types, end):
    """AgentOS: server-sent events of JSON; the last one may lack its blank line."""
    platform.throw(invoke=way, stream_end=end)
    status, content_type, text = await platform.send(INVOKE, {"stream": True})
    assert (status, content_type, text.endswith("}\n\n")) == (200, "text/event-stream", end == "blank_line")
    events = [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n") if line]
    assert [event["type"] for event in events] == types
    assert events[0]["run_id"] == platform.sandbox.runs()[0]["id"]


# -- the control plane ------------------------------------------------------------------------------------------------------


async def test_reads_of_runs(platform):
    """AgentOS: runs are listed, 20 unless it is said, by agent and status; one is read with its output, and its events in sequence."""
    for _ in range(25):
        await platform.post(INVOKE, {})
    run_id = await platform.start(external_run_id="mine")
    await platform.post("/api/ingest/v1/events", {"run_id": run_id, "events": [{"type": "a"}, {"type": "b"}]})
    _, listed = await platform.post("/api/v1/rpc/runs_list", {})
    assert (len(listed), listed[0]["id"]) == (20, run_id)
    assert len((await platform.post("/api/v1/rpc/runs_list", {"limit": 30, "status": "completed"}))[1]) == 25
    assert (await platform.post("/api/v1/rpc/runs_list", {"agent_id": NOBODY}))[1] == []
    _, run = await platform.post("/api/v1/rpc/runs_get", {"run_id": listed[1]["id"], "workspace": "w"})
    assert (run["status"], run["output"]["input"]) == ("completed", {})
    _, events = await platform.post("/api/v1/rpc/runs_get_events", {"run_id": run_id, "limit": 1})
    assert [(event["sequence_number"], event["type"]) for event in events] == [(1, "a")]


@pytest.mark.parametrize(
    ("method", "body", "key", "refused"),
    [
        ("runs_get", {"run_id": NOBODY}, "aos_ws_a", (404, "NOT_FOUND")), ("runs_get", {}, "aos_ws_a", (400, "VALIDATION_ERROR")),
        ("runs_list", {"limit": 0}, "aos_ws_a", (400, "VALIDATION_ERROR")), ("runs_list", {"status": "paused"}, "aos_ws_a", (400, "VALIDATION_ERROR")),
        ("agents_delete", {}, "aos_ws_a", (404, "NOT_FOUND")), ("runs_list", {}, "aos_agent_a", (403, "FORBIDDEN")),
        ("runs_list", {}, "aos_user_a", (400, "VALIDATION_ERROR")), ("runs_list", {"workspace": "w"}, "aos_user_a", (200, [])),
    ],
)  # fmt: skip
async def test_what_the_control_plane_refuses(platform, method, body, key, refused):
    """AgentOS: an agent's key has no control plane, a person's names its workspace; what is not emulated is 404."""
    assert await platform.post(f"/api/v1/rpc/{method}", body, key=key) == refused


# -- its own SDK ------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def sdk(platform):
    """The client of pyagentos-sdk, with a workspace's key; it blocks, so that it is called on a thread."""
    client = AgentOS(api_key="aos_ws_a", agent_id=AGENT, base_url=platform.sandbox.url, max_retries=0)
    yield client
    await asyncio.to_thread(client.shutdown)


async def test_the_sdk_asks_a_person(platform, sdk):
    """pyagentos-sdk: pending several times, asked for again under the same id, and answered in the end."""
    platform.throw(human_input_poll="20ms")
    run = await asyncio.to_thread(sdk.start_run)
    waiting = asyncio.create_task(asyncio.to_thread(run.request_human_input, "Ship?", context={"n": 1}))
    while (await platform.asked(run.run_id))[0]["posts"] < 3:
        await asyncio.sleep(0.005)
    (question,) = await platform.asked(run.run_id)
    platform.sandbox.act("agentos", question["id"], "answer", "go on")
    assert await waiting == {"input": "go on", "request_id": question["id"]}


async def test_the_sdk_hears_of_a_timeout_and_a_cancellation(platform, sdk):
    """pyagentos-sdk: its own exceptions for nobody in time and for a question that is cancelled, also with its run."""
    run = await asyncio.to_thread(sdk.start_run)
    with pytest.raises(AgentOSTimeoutError):
        await asyncio.to_thread(run.request_human_input, "Ship?", timeout_seconds=1)
    waiting = asyncio.create_task(asyncio.to_thread(run.request_human_input, "Ship?"))
    await platform.asked(run.run_id, count=2)
    await asyncio.to_thread(run.cancel, "enough")
    with pytest.raises(AgentOSError) as error:
        await waiting
    assert (error.value.code, error.value.status) == ("CONFLICT", 409)


async def test_the_sdk_invokes(platform, sdk):
    """pyagentos-sdk: a complete run, one that waits for an approval, one that it replies to, and one that fails."""
    done = await asyncio.to_thread(sdk.invoke, {"q": 1}, start_session=True, prompt_variables={"A": "b"}, test=True)
    assert (done.status, done.output["input"]) == ("completed", {"q": 1})
    again = await asyncio.to_thread(sdk.invoke, {"q": 2}, session_id=done.session_id)
    assert (again.session_id, again.run_id == done.run_id) == (done.session_id, False)
    platform.throw(invoke="awaiting_approval")
    paused = await asyncio.to_thread(sdk.invoke)
    assert (paused.status, paused.output) == ("awaiting_approval", None)
    await asyncio.to_thread(sdk.approvals.decide, approval_id=paused.approval_id, decision="approved")
    assert (await asyncio.to_thread(sdk.runs.get, run_id=paused.run_id))["status"] == "completed"
    platform.throw(invoke="awaiting_input")
    asking = await asyncio.to_thread(sdk.invoke)
    assert (asking.status, asking.input_request.options) == ("awaiting_input", ["yes", "no"])
    replied = await asyncio.to_thread(sdk.reply, asking.run_id, "yes", request_id=asking.input_request.request_id)
    assert (replied.status, replied.run_id, replied.output["reply"]) == ("completed", asking.run_id, "yes")
    platform.throw(invoke="fail")
    with pytest.raises(AgentOSTransientError) as error:
        await asyncio.to_thread(sdk.invoke)
    assert error.value.status == 502


@pytest.mark.parametrize("end", ["blank_line", "bare"])
async def test_the_sdk_streams(platform, sdk, end):
    """pyagentos-sdk: it knows every event of the stream, and raises for the error that comes after the 200."""
    platform.throw(stream_end=end)
    events = await asyncio.to_thread(lambda: list(sdk.invoke_stream({"q": 1})))
    assert [event["type"] for event in events] == ["start", "chunk", "tool", "tool", "chunk", "done"]
    assert events[-1]["run_id"] == events[0]["run_id"] == platform.sandbox.runs()[0]["id"]
    platform.throw(invoke="awaiting_input")
    asking = (await asyncio.to_thread(lambda: list(sdk.invoke_stream())))[-1]
    assert (asking["type"], asking["question"]) == ("awaiting_input", "Go on?")
    platform.throw(invoke="fail")
    with pytest.raises(AgentOSError) as error:
        await asyncio.to_thread(lambda: list(sdk.invoke_stream()))
    assert error.value.code == "PROVIDER_ERROR"
