"""pyagentos-sdk 0.4.0, unmodified, through agentd: `base_url` and a local token are all that an agent changes."""

from __future__ import annotations

import http.client
import json
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from agentos import (
    AgentOS,
    AgentOSAuthError,
    AgentOSError,
    AgentOSRateLimitError,
    AgentOSTimeoutError,
    AgentOSTransientError,
    AgentOSValidationError,
)
from agentos.langchain import AgentOSCallbackHandler
from harness import AGENT, KEY, http_call
from sdk_world import NARROW, TOKEN, Standing

from agentd.sandbox import Answer

INVOKE = f"/api/v1/agents/{AGENT}/invoke"
HUMAN = "/api/ingest/v1/human-input/request"


class Hosted:
    """What the sandbox has not: hosted agents, questions to people, the control plane's reads. Answers are set by the test."""

    def __init__(self, face):
        self.face = face
        self.answers = {}
        self.asked = []

    def __getattr__(self, name):
        return getattr(self.face, name)

    def answer(self, call):
        for path, answers in self.answers.items():
            if call.path == path:
                self.asked.append((call, json.loads(call.body)))
                answer = answers.pop(0) if len(answers) > 1 else answers[0]
                return answer if isinstance(answer, Answer) else said(*answer)
        return self.face.answer(call)


def said(status, data=None, error=None):
    return Answer(status, json.dumps({"data": data, "error": error}).encode())


def events(*events):
    lines = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    return Answer(200, lines.encode(), "text/event-stream")


@pytest.fixture
def standing(world):
    return Standing(world, "agentos", agents={"billing": AGENT, "sales": "3c0c2a1e-8a7c-4d3f-9a55-2f1f0c6b7a33"})


@pytest.fixture
def hosted(world):
    watched = world.platform.faces["agentos"]
    watched.face = Hosted(watched.face)
    return watched.face


@pytest.fixture
def client(standing):
    made = []

    def make(token=TOKEN, agent="billing", url=None, **options):
        options = {"max_retries": 0, "batch_interval_ms": 20} | options
        made.append(AgentOS(api_key=token, agent_id=agent, base_url=url or standing.url, **options))
        return made[-1]

    yield make
    for one in made:
        one.shutdown()


@pytest.fixture
def aos(client):
    return client()


def gates(standing):
    """The gates on record, the newest first."""
    status, found = http_call(standing.daemon.socket, "GET", "/v1/gates?state=all")
    assert status == 200
    return found


# -- all of it -------------------------------------------------------------------------------------------------------------------


def use_it_all(aos, name):
    """Every call of the SDK's that reports a run."""
    parent = aos.start_run(input={"of": "parent"}, external_run_id=f"{name}-parent")
    run = aos.start_run(
        input={"invoice_id": "INV-1", "nested": {"a": [1, None, 2.5]}},
        trigger_type="webhook",
        external_run_id=f"{name}-run",
        parent_run_id=parent.run_id,
    )
    run.emit("step.completed", {"step": "fetch", "rows": 42, "none": None, "text": "ü \U0001f600"})
    run.emit("step.slow", level="warn")
    run.emit_llm_request("claude", "Summarise", {"temperature": 0})
    run.emit_llm_response("claude", "done", {"input_tokens": 3, "output_tokens": 4})
    run.emit_tool_call("search", {"q": 1})
    run.emit_tool_return("search", {"hits": []})
    run.emit_tool_error("search", "broken")
    outer = run.start_span("classify", kind="step", payload={"a": 1})
    inner = outer.child("gpt", kind="llm")
    inner.end({"input_tokens": 1})
    outer.fail(ValueError("no"), {"b": 2})
    run.start_span("plain").end()
    task = run.start_task("parse", {"file": "x"})
    task.complete({"pages": 3})
    run.start_task("mail").fail("no route")
    run.start_task("later").skip()
    run.complete({"answer": 42}, usage={"input_tokens": 10, "output_tokens": 5, "cache_read_tokens": 1})
    parent.cancel("not needed")
    failed = aos.start_run(external_run_id=f"{name}-failed")
    failed.emit("last.words")
    failed.fail("it broke", {"code": 7})
    with pytest.raises(ZeroDivisionError), aos.start_run(external_run_id=f"{name}-raised"):
        1 / 0  # noqa: B018
    assert (run.dropped_events, run.is_ended, failed.has_pending) == (0, True, False)


def what_came(world, name):
    """What the platform holds of it, without what differs from run to run."""
    seen, ids = [], {}
    for which in ("parent", "run", "failed", "raised"):
        run = world.platform.run(f"{name}-{which}")
        ids[run["id"]] = which
        for event in run["events"]:
            event["payload"].pop("agentd_id", None)
            for key in ("span_id", "parent_span_id"):
                if key in event:
                    event[key] = ids.setdefault(event[key], f"span {len(ids)}")
            assert ("started_at" in event) == (event["occurred_at"] == event.get("started_at"))
            for key in ("received_at", "occurred_at", "started_at", "ended_at", "duration_ms"):
                event.pop(key, None)
        for task in run["tasks"]:
            assert uuid.UUID(task.pop("id"))
        end = run.get("end") or {}
        (end.get("error_detail") or {}).pop("traceback", None)
        facts = {key: run[key] for key in ("status", "agent_id", "trigger_type", "input", "tokens")}
        seen.append([facts, ids.get(run["parent_run_id"]), run["events"], run["tasks"], end])
    return seen


def test_the_platform_gets_what_the_sdk_would_have_sent_itself(world, standing, client):
    """Runs, events, spans, tasks and ends: the same through agentd as without it, but for `agentd_id`."""
    use_it_all(client(KEY, AGENT, f"{world.platform.url}/agentos"), "direct")
    use_it_all(client(), "through")
    standing.drained()
    direct, through = what_came(world, "direct"), what_came(world, "through")
    assert through == direct
    assert [facts["status"] for facts, *_ in through] == ["cancelled", "completed", "failed", "failed"]
    assert len(through[1][2]) == 10


def test_over_the_unix_socket(world, standing):
    """The SDK takes an HTTP client of one's own, and so needs neither port nor token."""
    transport = httpx.HTTPTransport(uds=standing.daemon.socket)
    with AgentOS(
        api_key="unused",
        agent_id="billing",
        base_url="http://agentd/agentos",
        http_client=httpx.Client(transport=transport),
    ) as aos:
        run = aos.start_run(external_run_id="over-unix")
        run.emit("a")
        run.complete()
    standing.drained()
    assert world.platform.run("over-unix")["status"] == "completed"


def test_many_at_once(world, standing, aos):
    """Runs of several threads, each with its events in their order."""

    def one(number):
        with aos.start_run(external_run_id=f"run-{number}") as run:
            for step in range(60):
                run.emit("step", {"at": step})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(12)))
    standing.drained()
    for number in range(12):
        run = world.platform.run(f"run-{number}")
        assert [event["payload"]["at"] for event in run["events"]] == list(range(60))
        assert run["status"] == "completed"


# -- when something is down --------------------------------------------------------------------------------------------------------


def test_telemetry_works_with_the_platform_down(world, standing, aos):
    """A whole run while nobody answers; it is delivered when somebody does."""
    world.platform.down()
    with aos.start_run(external_run_id="dark") as run:
        run.emit("a")
        run.start_task("t").complete()
    assert run.is_ended
    world.platform.up()
    standing.drained()
    found = world.platform.run("dark")
    assert (found["status"], len(found["events"]), len(found["tasks"])) == ("completed", 1, 1)


def test_a_run_outlives_the_daemon(world, standing, client):
    """kill -9 between start and end, with the platform down: the same run goes on, and a repeated start finds it."""
    world.platform.down()
    aos = client(max_retries=5)
    run = aos.start_run(external_run_id="survivor", input={"n": 1})
    run.emit("before")
    run.flush()
    standing.daemon.kill()
    standing.daemon.start()
    run.emit("after")
    again = client().start_run(external_run_id="survivor", input={"n": 1})
    assert again.run_id == run.run_id
    run.complete()
    world.platform.up()
    standing.drained()
    found = world.platform.run("survivor")
    assert ([event["type"] for event in found["events"]], found["status"]) == (["before", "after"], "completed")
    assert len(world.platform.runs()) == 1


def test_a_batch_that_comes_twice_is_stored_once(world, standing, aos):
    """The SDK repeats what it got no answer for, also to a daemon that was started again."""
    run = aos.start_run(external_run_id="twice")
    body = {"run_id": run.run_id, "events": [{"type": "a", "level": "info", "payload": {"n": 1}}]}

    def send():
        headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}
        return httpx.post(f"{standing.url}/api/ingest/v1/events", json=body, headers=headers).json()

    assert send() == send() == {"data": {"accepted": 1}, "error": None}
    standing.daemon.kill()
    standing.daemon.start()
    assert send() == {"data": {"accepted": 1}, "error": None}
    run.complete()
    standing.drained()
    assert len(world.platform.run("twice")["events"]) == 1


def test_members_that_agentd_does_not_know_are_carried_through(world, standing, aos):
    """What a newer SDK says of an event reaches the platform as it was said."""
    run = aos.start_run(external_run_id="newer")
    run._enqueue(
        {"type": "a", "level": "info", "payload": {}, "occurred_at": "2026-01-01T00:00:00Z", "colour": {"r": 1}}
    )
    run._enqueue({"type": "b", "level": "info", "payload": {}, "kind": "step", "parent_span_id": "p"})
    run.complete()
    standing.drained()
    first, second = world.platform.run("newer")["events"]
    assert (first["colour"], second["kind"], second["parent_span_id"]) == ({"r": 1}, "step", "p")


# -- errors are the SDK's own ------------------------------------------------------------------------------------------------------


def code_of(call, kind=AgentOSError):
    with pytest.raises(AgentOSError) as error:
        call()
    assert type(error.value) is kind, error.value
    return error.value.code, error.value.status


def test_errors_are_the_sdks_own(standing, client, aos):
    """Each as its exception, with a code and a sentence that says what is wrong."""
    assert code_of(lambda: client("wrong").start_run(), AgentOSAuthError) == ("UNAUTHENTICATED", 401)
    assert code_of(lambda: client(KEY).start_run(), AgentOSAuthError) == ("UNAUTHENTICATED", 401)
    assert code_of(lambda: client(NARROW, "sales").start_run()) == ("FORBIDDEN", 403)
    assert code_of(lambda: client(agent="nobody's").start_run(), AgentOSValidationError) == ("VALIDATION_ERROR", 400)
    assert code_of(lambda: aos.start_run(trigger_type="odd"), AgentOSValidationError) == ("VALIDATION_ERROR", 400)
    nowhere = client(url=standing.url.replace("/agentos", "/elsewhere"))
    assert code_of(nowhere.start_run)[1] == 404
    standing.daemon.stop()
    assert code_of(aos.start_run, AgentOSTransientError) == ("NETWORK_ERROR", None)
    standing.daemon.start()


def test_a_bad_event_refuses_its_batch(standing, client):
    """As at AgentOS: the SDK drops the batch, counts it, and says why; the run goes on."""
    heard = []
    aos = client(on_error=heard.append)
    run = aos.start_run(external_run_id="with-a-bad-one")
    run._enqueue({"type": "a", "level": "loud", "payload": {}})
    run.flush()
    assert (run.dropped_events, type(heard[0])) == (1, AgentOSValidationError)
    assert "$.events[0].level: expected one of debug, info, warn, error" in str(heard[0])
    run.emit("b")
    run.complete()
    standing.drained()


def test_another_agents_run_is_not_found(world, standing, client, aos):
    """A token for one agent reads, writes, ends and asks nothing of another's run, and hears nothing of it."""
    theirs = aos.start_run(agent_id="sales", external_run_id="of-sales")
    narrow = client(NARROW)
    run = narrow.start_run(external_run_id="own")
    own, run.run_id = run.run_id, theirs.run_id
    for call in (
        run.complete,
        lambda: run.start_task("x"),
        lambda: run.request_human_input("sure?"),
        lambda: narrow.runs.get(run_id=theirs.run_id),
        lambda: narrow.invoke(parent_run_id=theirs.run_id),
    ):
        assert code_of(call) == ("NOT_FOUND", 404)
    run.run_id = own
    run.complete()
    theirs.complete()
    standing.drained()
    assert world.platform.run("of-sales")["status"] == "completed"
    assert gates(standing) == []


def test_nobody_approves_his_own_action_through_us(standing, hosted, aos):
    """Approvals, keys, agents, replies and whatever writes the control plane: 403, and the platform never hears of it."""
    before = len(standing.world.platform.requests())
    for call in (
        lambda: aos.approvals.decide(approval_id="a", decision="approved"),
        lambda: aos.agents.delete(agent_id="a"),
        lambda: aos.agents.set_status(agent_id="a", status="paused"),
        lambda: aos.api_keys.create(agent_id="a", name="n"),
        lambda: aos.api_keys.list(agent_id="a"),
        lambda: aos.runs.cancel(run_id="r"),
        lambda: aos.runs.invoke(agent_id="a"),
        lambda: aos.reply("r", "yes"),
        lambda: aos.reply("r", "yes", request_id="q"),
    ):
        assert code_of(call) == ("FORBIDDEN", 403)
    assert len(standing.world.platform.requests()) == before


@pytest.mark.parametrize(
    "target",
    [
        "/agentos/api/v1/rpc/../rpc/approvals_decide",
        "/agentos/api/v1/rpc/%2e%2e/rpc/approvals_decide",
        "/agentos/api/v1/rpc/runs_get%2f..%2fapprovals_decide",
        "/agentos//api/v1/rpc/approvals_decide",
        "http://127.0.0.1:1/agentos/api/v1/rpc/approvals_decide",
        "/agentos/api/v1/rpc/approvals_decide\\..\\runs_get",
    ],
)
def test_no_path_climbs(standing, target):
    """Over loopback as it comes from the wire: turned away, and the platform is not asked."""
    connection = http.client.HTTPConnection("127.0.0.1", standing.port, timeout=10)
    connection.putrequest("POST", target, skip_host=False)
    connection.putheader("Authorization", f"Bearer {TOKEN}")
    connection.putheader("Content-Length", "2")
    connection.endheaders(b"{}")
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    assert answer.status in {400, 403, 404}, body  # 403: a Host that is none of ours
    assert json.loads(body)["error"]
    assert standing.world.platform.requests() == []


# -- gates -------------------------------------------------------------------------------------------------------------------------


def test_a_question_to_a_person(standing, hosted, aos):
    """The long poll passes, the second call is no new gate, and what was asked and answered is on record."""
    hosted.answers[HUMAN] = [
        (202, {"request_id": "q-1", "status": "pending"}),
        (202, {"request_id": "q-1", "status": "pending"}),
        (200, {"request_id": "q-1", "input": "yes, go on"}),
    ]
    run = aos.start_run(external_run_id="asking")
    answer = run.request_human_input("Send it?", context={"amount": 7}, timeout_seconds=60)
    assert answer == {"input": "yes, go on", "request_id": "q-1"}
    run.complete()
    standing.drained()
    platforms_run = standing.world.platform.run("asking")["id"]
    sent = [body for _, body in hosted.asked]
    assert sent[0] == {"run_id": platforms_run, "prompt": "Send it?", "timeout_seconds": 60, "context": {"amount": 7}}
    assert len(sent) > 1
    assert all(body["request_id"] == "q-1" and body["run_id"] == platforms_run for body in sent[1:])
    (gate,) = gates(standing)
    assert (gate["gate"], gate["destination"]) == ("human_input", "agentos")


@pytest.mark.parametrize(
    ("answer", "kind", "code"),
    [
        ((408, None, {"code": "TIMEOUT", "message": "nobody"}), AgentOSTimeoutError, "TIMEOUT"),
        ((409, None, {"code": "CONFLICT", "message": "cancelled"}), AgentOSError, "CONFLICT"),
        ((429, None, {"code": "RATE_LIMITED", "message": "slow"}), AgentOSRateLimitError, "RATE_LIMITED"),
    ],
)
def test_a_question_that_is_not_answered(standing, hosted, aos, answer, kind, code):
    """The platform's own word, and its SDK's own exception; on record it is no leave."""
    hosted.answers[HUMAN] = [answer]
    run = aos.start_run(external_run_id="asking")
    standing.world.doubles = True
    assert code_of(lambda: run.request_human_input("?"), kind)[0] == code
    (gate,) = gates(standing)
    assert gate["verdict"] in {"deny", "unavailable"}
    assert not gate["proceed"]
    run.complete()
    hosted.answers[HUMAN] = [(200, {"request_id": "q", "input": "x"})]
    standing.world.platform.faces["agentos"].taken |= {gate["gate_id"]}


def test_a_hosted_agent(standing, hosted, aos):
    """Finished, and paused for an approval or for input: what came back is typed by the SDK and on record."""
    hosted.answers[INVOKE] = [
        (200, {"run_id": "R1", "output": {"summary": "x" * 100_000}, "duration_ms": 9, "session_id": "s"}),
        (202, {"run_id": "R2", "awaiting_approval": {"approval_id": "A"}}),
        (202, {"run_id": "R3", "awaiting_input": {"request_id": "Q", "question": "Which?", "options": ["a"]}}),
    ]
    run = aos.start_run(external_run_id="parent")
    first = aos.invoke({"q": 1}, parent_run_id=run.run_id, start_session=True, external_user_id="u")
    second, third = aos.invoke({"q": 2}), aos.invoke({"q": 3})
    assert [one.status for one in (first, second, third)] == ["completed", "awaiting_approval", "awaiting_input"]
    assert (len(first.output["summary"]), second.approval_id, third.input_request.question) == (100_000, "A", "Which?")
    run.complete()
    standing.drained()
    sent = hosted.asked[0][1]
    assert sent["parent_run_id"] == standing.world.platform.run("parent")["id"]
    assert (sent["input"], sent["start_session"], sent["external_user_id"]) == ({"q": 1}, True, "u")
    verdicts = [(gate["verdict"], gate["proceed"], gate["platform_id"]) for gate in reversed(gates(standing))]
    assert verdicts == [("allow", True, "R1"), ("pending", False, "R2"), ("pending", False, "R3")]
    events = [event["type"] for event in standing.world.platform.run("parent")["events"]]
    assert events == ["gate.invoke"]


def test_a_stream(standing, hosted, aos):
    """Events as the hosted agent works, an error as the SDK's exception; each stream's end is on record."""
    start = {"type": "start", "run_id": "R"}
    hosted.answers[INVOKE] = [
        events(
            start, {"type": "chunk", "text": "ü"}, {"type": "newer"}, {"type": "done", "run_id": "R", "duration_ms": 1}
        ),
        events(start, {"type": "awaiting_approval", "run_id": "R", "approval_id": "A"}),
        events(start, {"type": "error", "code": "PROVIDER_ERROR", "message": "no"}),
        events(start),
    ]
    assert [event["type"] for event in aos.invoke_stream({"q": 1})] == ["start", "chunk", "done"]
    assert [event["type"] for event in aos.invoke_stream({"q": 2})] == ["start", "awaiting_approval"]
    with pytest.raises(AgentOSError) as error:
        list(aos.invoke_stream({"q": 3}))
    assert error.value.code == "PROVIDER_ERROR"
    assert [event["type"] for event in aos.invoke_stream({"q": 4})] == ["start"]
    assert all(body["stream"] is True for _, body in hosted.asked)
    verdicts = [(gate["verdict"], gate["proceed"]) for gate in reversed(gates(standing))]
    assert verdicts == [("allow", True), ("pending", False), ("unavailable", False), ("unavailable", False)]


def test_an_answer_that_is_lost_is_asked_for_once(standing, hosted, client):
    """It may be running: neither agentd nor the SDK sends it again, and no host code takes the error for a transient one."""
    hosted.answers[INVOKE] = [(200, {"run_id": "R", "output": 1})]
    standing.world.platform.faults("cut,path=/api/v1/agents")
    aos = client(max_retries=5)
    assert code_of(lambda: aos.invoke({"q": 1})) == ("OUTCOME_UNKNOWN", 424)
    assert len(hosted.asked) == 1
    (gate,) = gates(standing)
    assert (gate["verdict"], gate["proceed"], gate["acted"]) == ("unavailable", False, True)
    standing.world.platform.faults()
    standing.world.platform.faces["agentos"].taken |= {gate["gate_id"]}


def test_gates_with_the_platform_down(world, standing, client):
    """Nothing was sent, which the SDK hears as an error of its own at once; a run that is not known there yet is waited for."""
    aos = client(max_retries=5)
    run = aos.start_run(external_run_id="early")
    standing.drained()
    world.platform.down()
    assert code_of(lambda: aos.invoke({"q": 1}), AgentOSTransientError) == ("UNAVAILABLE", 503)
    assert code_of(lambda: run.request_human_input("?"), AgentOSTransientError) == ("UNAVAILABLE", 503)
    assert code_of(lambda: client().runs.get(run_id=run.run_id), AgentOSTransientError) == ("UNAVAILABLE", 503)
    assert {gate["verdict"] for gate in gates(standing)} == {"unavailable"}
    world.platform.up()
    run.complete()


def test_a_question_waits_for_its_run_to_begin_there(world, standing, hosted, aos):
    """A gate never overtakes its run's start."""
    hosted.answers[HUMAN] = [(200, {"request_id": "q", "input": "ok"})]
    world.platform.down()
    run = aos.start_run(external_run_id="late")
    up = threading.Timer(0.5, world.platform.up)
    up.start()
    assert run.request_human_input("?")["input"] == "ok"
    up.join()
    assert hosted.asked[0][1]["run_id"] == world.platform.run("late")["id"]
    run.complete()


# -- reads -------------------------------------------------------------------------------------------------------------------------


def test_reads_pass_with_local_ids_translated(world, standing, hosted, aos):
    """The control plane's reads come back as the platform gave them; ids of ours are the platform's on their way."""
    hosted.answers["/api/v1/rpc/runs_get"] = [(200, {"run": {"status": "running"}})]
    hosted.answers["/api/v1/rpc/runs_list"] = [(200, {"runs": [1, 2]})]
    hosted.answers["/api/v1/rpc/agents_get"] = [(404, None, {"code": "NOT_FOUND", "message": "no agent"})]
    run = aos.start_run(external_run_id="read")
    assert aos.runs.get(run_id=run.run_id) == {"run": {"status": "running"}}
    assert aos.runs.list(limit=2, workspace="w") == {"runs": [1, 2]}
    assert code_of(lambda: aos.agents.get(agent_id="billing")) == ("NOT_FOUND", 404)
    run.complete()
    standing.drained()
    bodies = [body for _, body in hosted.asked]
    assert bodies == [
        {"run_id": world.platform.run("read")["id"]},
        {"limit": 2, "workspace": "w"},
        {"agent_id": AGENT},
    ]
    for call, _ in hosted.asked:
        assert call.headers["Authorization"] == f"Bearer {KEY}"
        assert TOKEN not in str(dict(call.headers))


# -- LangChain ---------------------------------------------------------------------------------------------------------------------


def test_langchain_through_the_sdks_handler(world, standing, aos):
    """A chain with a prompt, a model and a tool, recorded by the SDK's callback handler as a tree of spans."""
    from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
    from langchain_core.messages import AIMessage
    from langchain_core.prompts import ChatPromptTemplate
    from langchain_core.runnables import RunnableLambda
    from langchain_core.tools import tool

    @tool
    def lookup(word: str) -> str:
        """Look a word up."""
        return word.upper()

    model = GenericFakeChatModel(messages=iter([AIMessage(content="invoice", usage_metadata=_usage(7, 2))]))
    chain = (
        ChatPromptTemplate.from_messages([("system", "Classify."), ("human", "{text}")])
        | model
        | RunnableLambda(lambda message: lookup.invoke(message.content))
    )
    with aos.start_run(external_run_id="chain") as run:
        assert chain.invoke({"text": "a bill"}, config={"callbacks": [AgentOSCallbackHandler(run)]}) == "INVOICE"
        failing = RunnableLambda(lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            failing.invoke({}, config={"callbacks": [AgentOSCallbackHandler(run)]})
    standing.drained()
    spans = world.platform.run("chain")["events"]
    kinds = [span["kind"] for span in spans]
    assert kinds.count("llm") == kinds.count("tool") == 1
    llm = next(span for span in spans if span["kind"] == "llm")
    assert (llm["payload"]["response"], llm["payload"]["input_tokens"]) == ("invoice", 7)
    ids = {span["span_id"] for span in spans}
    assert all(span.get("parent_span_id") in {None, *ids} for span in spans)
    assert [span["level"] for span in spans].count("error") == 1


def _usage(given, made):
    return {"input_tokens": given, "output_tokens": made, "total_tokens": given + made}
