"""Runs, tasks and spans: each ends once, by how it was left, and what happens inside knows where it belongs."""

import asyncio
import threading
from types import SimpleNamespace

import msgspec
import pytest

import agentd
from agentd import AsyncClient, Client, Decision, current_run, current_span
from agentd.records import Record

decode = msgspec.json.Decoder(Record).decode


@pytest.fixture
def client():
    return Client(agent_id="billing")


@pytest.fixture
def seen(agentd_recorder):
    """What was emitted; at the end each record is shown to the daemon's own decoder."""
    yield agentd_recorder
    for record in agentd_recorder.records:
        decode(msgspec.json.encode(record))


def kinds(seen):
    return [record["kind"] for record in seen.records]


def test_a_run_begins_and_completes(client, seen):
    """The example of the documentation gives the records of the contract, in order, each with its agent."""
    with client.start_run(input={"invoice_id": "INV-001"}, external_run_id="x-1") as run:
        run.emit("step.completed", {"step": "fetch-data", "rows": 42})
    start, event, end = seen.records
    assert start["kind"] == "run.start"
    assert start["input"] == {"invoice_id": "INV-001"}
    assert (start["trigger_type"], start["external_run_id"]) == ("sdk", "x-1")
    assert "parent_run_id" not in start
    assert (event["type"], event["payload"]) == ("step.completed", {"step": "fetch-data", "rows": 42})
    assert end["kind"] == "run.complete"
    assert {record["run_id"] for record in seen.records} == {run.run_id}
    assert {record["agent_id"] for record in seen.records} == {"billing"}


def test_leaving_by_an_exception_fails_the_run(client, seen):
    """The exception's words and traceback go with the failure, and the exception goes on."""
    with pytest.raises(ValueError, match="boom"), client.start_run():
        raise ValueError("boom")
    end = seen.records[-1]
    assert (end["kind"], end["error_message"]) == ("run.fail", "ValueError: boom")
    assert end["error_detail"]["type"] == "ValueError"
    assert "raise ValueError" in end["error_detail"]["traceback"]


@pytest.mark.parametrize("stop", [asyncio.CancelledError, KeyboardInterrupt, GeneratorExit])
def test_leaving_by_cancellation_cancels_the_run(client, seen, stop):
    """Cancellation, Ctrl-C and a closed generator cancel it."""
    with pytest.raises(stop), client.start_run():
        raise stop
    assert seen.records[-1]["kind"] == "run.cancel"
    assert seen.records[-1]["reason"].endswith(stop.__name__)


@pytest.mark.parametrize(
    ("code", "end"), [(0, "run.complete"), (None, "run.complete"), (3, "run.fail"), ("no", "run.fail")]
)
def test_sys_exit_is_judged_by_its_code(client, seen, code, end):
    """A clean exit completes the run, any other fails it."""
    with pytest.raises(SystemExit), client.start_run():
        raise SystemExit(code)
    assert seen.records[-1]["kind"] == end


async def test_a_cancelled_coroutine_cancels_its_run(client, seen):
    """`async with` ends a run like `with`."""

    async def work():
        async with client.start_run():
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert kinds(seen) == ["run.start", "run.cancel"]


def test_a_run_ends_once(client, seen):
    """The first end counts, whoever else tries."""
    with client.start_run() as run:
        run.complete({"ok": True}, usage=SimpleNamespace(input_tokens=3, output_tokens=4, service_tier="x"))
        run.fail("too late")
    run.cancel()
    ends = seen.records[1:]
    assert [record["kind"] for record in ends] == ["run.complete"]
    assert ends[0]["output"] == {"ok": True}
    assert ends[0]["usage"] == {"input_tokens": 3, "output_tokens": 4}


def test_an_explicit_failure_takes_an_exception_or_words(client, seen):
    """`fail` brings the detail of an exception by itself."""
    client.start_run().fail(KeyError("k"))
    client.start_run().fail("words", {"code": 5})
    client.start_run().cancel("not needed")
    failed, words, cancelled = (record for record in seen.records if record["kind"] != "run.start")
    assert failed["error_detail"]["type"] == "KeyError"
    assert (words["error_message"], words["error_detail"]) == ("words", {"code": 5})
    assert cancelled["reason"] == "not needed"


def test_a_run_inside_a_run_is_its_child(client, seen):
    """The parent is inherited unless the caller says otherwise."""
    with client.start_run() as outer:
        client.start_run()
        client.start_run(parent_run_id=None)
        client.start_run(parent_run_id="p")
    assert [start.get("parent_run_id") for start in seen.of_kind("run.start")] == [None, outer.run_id, None, "p"]


def test_llm_and_tool_calls_have_the_platforms_keys(client, seen):
    """Model and tool calls are events with the payload keys that AgentOS gives them."""
    with client.start_run() as run:
        run.emit_llm_request("m", "Summarise", temperature=0.1)
        run.emit_llm_response("m", "Done", usage={"prompt_tokens": 5, "output_tokens": 6})
        run.emit_tool_called("t", {"q": 1})
        client.emit_tool_returned("t", [1])
        client.emit_tool_failed("t", ValueError("bad"))
    found = [(event["type"], event.get("level", "info"), event["payload"]) for event in seen.events()]
    assert found == [
        ("llm.request", "info", {"model": "m", "prompt": "Summarise", "temperature": 0.1}),
        ("llm.response", "info", {"model": "m", "response": "Done", "input_tokens": 5, "output_tokens": 6}),
        ("tool.called", "info", {"tool": "t", "input": {"q": 1}}),
        ("tool.returned", "info", {"tool": "t", "output": [1]}),
        ("tool.failed", "error", {"tool": "t", "error": "ValueError: bad"}),
    ]


def test_a_task_says_running_and_how_it_ended(client, seen):
    """Completed, failed by its exception, or skipped; each once, under one id."""
    with client.start_run() as run:
        with run.start_task("parse-pdf", {"pages": 3}) as task:
            task.complete({"text": "x"})
        with pytest.raises(ValueError, match="boom"), run.start_task("broken"):
            raise ValueError("boom")
        run.start_task("unneeded").skip()
    tasks = seen.of_kind("task")
    assert [task["status"] for task in tasks] == ["running", "completed", "running", "failed", "running", "skipped"]
    assert tasks[0]["task_id"] == tasks[1]["task_id"] != tasks[2]["task_id"]
    assert (tasks[0]["input"], tasks[1]["output"], tasks[3]["error_message"]) == (
        {"pages": 3},
        {"text": "x"},
        "ValueError: boom",
    )


def test_spans_nest_and_are_sent_at_their_end(client, seen):
    """A child is sent before its parent and names it; the end's payload lies over the start's."""
    with client.start_run() as run, run.start_span("outer", kind="agent", payload={"a": 1, "b": 1}) as outer:
        with run.start_span("inner", level="debug") as inner:
            assert current_span() is inner
        outer.end({"b": 2})
    first, second = seen.of_kind("span")
    assert (first["name"], first["parent_span_id"], first["level"]) == ("inner", outer.span_id, "debug")
    assert "parent_span_id" not in second
    assert (second["span_kind"], second["payload"]) == ("agent", {"a": 1, "b": 2})
    assert second["duration_ms"] >= 0
    assert second["started_at"] <= second["ended_at"]


def test_a_span_that_fails_says_so(client, seen):
    """Leaving by an exception makes the level `error` and adds the error to the payload."""
    with pytest.raises(ValueError, match="boom"), client.start_run() as run, run.start_span("s", payload=[1]):
        raise ValueError("boom")
    span = seen.of_kind("span")[0]
    assert (span["level"], span["payload"]) == ("error", {"value": [1], "error": "ValueError: boom"})


def test_a_spans_payload_is_that_of_its_start(client, seen):
    """Later changes to a payload are not seen, though it is sent at the end."""
    payload = {"n": 1}
    with client.start_run() as run, run.start_span("s", payload=payload):
        payload["n"] = 2
    assert seen.of_kind("span")[0]["payload"] == {"n": 1}


def test_open_spans_end_with_their_run(client, seen):
    """Innermost first, before the run's own end."""
    with client.start_run() as run, run.start_span("outer"):
        run.start_span("inner")
        run.complete()
    assert kinds(seen) == ["run.start", "span", "span", "run.complete"]
    assert [span["name"] for span in seen.of_kind("span")] == ["inner", "outer"]


def test_decisions_and_snapshots_inherit_run_and_span(client, seen):
    """What is decided inside a span names it, unless the caller names another."""
    with client.start_run() as run, run.start_span("s") as span:
        decision = client.log_decision(
            "Route ticket", options=["eng", "billing"], chosen="eng", confidence=0.91, model="m"
        )
        client.capture_snapshot(decision, {"prompt": "…"}, eval_pass=True)
        client.log_decision("other", run_id=None, span_id="mine", decision_id="d-1")
    outside = client.log_decision("outside")
    first, second, third = seen.decisions
    snapshot = seen.of_kind("snapshot")[0]
    assert decision == Decision(first["decision_id"], run.run_id, span.span_id)
    assert (first["run_id"], first["span_id"], first["options"]) == (run.run_id, span.span_id, ["eng", "billing"])
    assert (snapshot["decision_id"], snapshot["run_id"], snapshot["span_id"]) == (
        first["decision_id"],
        run.run_id,
        span.span_id,
    )
    assert "captured_at" in snapshot
    assert ("run_id" not in second, second["span_id"], second["decision_id"]) == (True, "mine", "d-1")
    assert "run_id" not in third
    assert outside.run_id is None


def test_receipts_actions_and_heartbeats(client, seen):
    """Each of the other calls makes the record of its name."""
    client.record_execution("d", execution_status="executed", action_taken="approve")
    client.record_outcome(Decision("d"), outcome_status="succeeded", observed_metrics={"n": 1})
    client.record_crm_sync("d", sync_status="written", crm_object_id="x" * 300)
    client.complete_action("a", {"ok": 1}, duration_ms=12.7)
    client.fail_action("a", ValueError("boom"))
    client.fail_action("a", None)
    client.heartbeat("ok", {"cpu": 1})
    assert kinds(seen) == [
        "execution",
        "outcome",
        "crm_sync",
        "action.completed",
        "action.failed",
        "action.failed",
        "heartbeat",
    ]
    assert seen.records[4]["error"]["message"] == "boom"


def test_context_belongs_to_its_thread_and_task(client, seen):
    """Two runs at the same time do not see each other, and a task or span carries its run into a thread."""
    found = []
    with client.start_run() as run:

        def work():
            found.append(current_run())
            with run.start_task("t"):
                found.append(current_run())
            found.append(current_run())

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert current_run() is run
    assert found == [None, run, None]
    assert current_run() is None


async def test_runs_of_concurrent_coroutines_stay_apart(seen):
    """Context variables hold across awaits."""
    client = AsyncClient()

    async def work():
        async with client.start_run() as run, run.start_span("s"):
            await asyncio.sleep(0)
            assert (await client.log_decision("x")).run_id == run.run_id

    await asyncio.gather(work(), work(), work())
    assert len({decision["span_id"] for decision in seen.decisions}) == 3


def test_leaving_in_another_context_does_not_raise(client, seen):
    """A generator that is finished elsewhere ends its run all the same."""
    import contextvars

    run = client.start_run()
    contextvars.copy_context().run(run.__enter__)
    contextvars.copy_context().run(run.__exit__, None, None, None)
    assert kinds(seen) == ["run.start", "run.complete"]


class Hostile:
    def __repr__(self):
        raise RuntimeError("no")

    __str__ = __hash__ = __bool__ = __eq__ = __repr__


@pytest.mark.parametrize("bad", [Hostile(), [], {}, b"\xff", "\ud800", object(), 5, float("nan"), "x" * 100_000])
def test_no_telemetry_call_raises_whatever_it_is_given(client, agentd_recorder, bad):
    """Telemetry never raises, with any value in any place."""
    with client.start_run(bad, trigger_type=bad, external_run_id=bad, occurred_at=bad) as run:
        run.emit(bad, bad, level=bad, occurred_at=bad)
        run.emit_llm_response(bad, bad, usage=bad)
        run.emit_tool_failed(bad, bad)
        run.start_task(bad, bad).fail(bad)
        run.start_span(bad, kind=bad, payload=bad, level=bad).fail(bad, bad)
        decision = client.log_decision(
            bad, options=bad, chosen=bad, confidence=bad, constraints=bad, to=bad, decision_id=bad
        )
        client.capture_snapshot(decision, bad, eval_pass=bad, captured_at=bad)
        client.record_outcome(bad, outcome_status=bad)
        client.fail_action(bad, bad, duration_ms=bad)
        client.heartbeat(bad, bad)
        run.complete(bad, usage=bad)
        run.fail(bad, bad)
    client.start_run(run_id=bad).cancel(bad)
    for record in agentd_recorder.records:
        msgspec.json.encode(record).decode()


def test_the_package_exports_its_public_names():
    """Each public name can be had from `agentd` itself, and a wrong one is told as usual."""
    for name in agentd.__all__:
        assert getattr(agentd, name) is not None
        assert name in dir(agentd)
    with pytest.raises(AttributeError, match="no attribute 'Clint'"):
        _ = agentd.Clint


async def test_a_client_that_does_nothing_has_every_method(agentd_recorder):
    """No-op mode: the same objects, no error, nothing counted."""
    client = Client(disabled=True)
    assert client.disabled
    assert client.log_decision("x", wait=1.0).decision_id
    assert client.flush(until="delivered")
    assert client.flush().reason == "this client is disabled"
    client.emit("outside of a run")
    assert (client.dropped, client.stats().emitted) == (0, 0)
    client.close()
    async with AsyncClient(disabled=True) as other:
        assert (await other.log_decision("x", wait=1.0)).decision_id
        assert await other.flush(until="delivered")
    with pytest.raises(ValueError, match="until must be"):
        client.flush(until="tomorrow")
    with pytest.raises(ValueError, match="max_record_bytes"):
        Client(max_record_bytes=1)
