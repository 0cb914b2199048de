"""`@gated`: asks before it acts, acts only if it may, tells how it went, and hands results and errors on as they are."""

import asyncio
import inspect
import logging
import threading

import pytest

from agentd import AsyncClient, Client, GateDenied, GateKeyConflict, gated
from agentd.client import gated as gated_module


@pytest.fixture(autouse=True)
def answers(agentd_recorder):
    agentd_recorder.answer("*", "allow", id="id-1", destination="d")
    return agentd_recorder


@pytest.fixture
def client():
    return Client(agent_id="billing")


def reports(recorder):
    return [(record["kind"], record) for record in recorder.records]


def test_a_function_that_may_act(client, answers):
    """The request comes from fixed fields and from functions of the arguments; the action is reported as completed."""

    @gated(
        "action",
        lambda invoice, amount: {"parameters": {"invoice": invoice, "amount": amount}},
        client=client,
        key=lambda invoice, amount: f"refund-{invoice}",
        action_type="transaction",
        resource="stripe",
        resource_id=lambda invoice, amount: invoice,
    )
    def refund(invoice, amount):
        """Give money back."""
        return [invoice, amount]

    assert refund("INV-1", amount=7) == ["INV-1", 7]
    (asked,) = answers.gates
    assert (asked.name, asked.key, asked.agent_id) == ("action", "refund-INV-1", "billing")
    assert asked.request == {
        "action_type": "transaction",
        "resource": "stripe",
        "resource_id": "INV-1",
        "parameters": {"invoice": "INV-1", "amount": 7},
    }
    ((kind, report),) = reports(answers)
    assert (kind, report["action_id"], report["to"], report["agent_id"]) == ("action.completed", "id-1", "d", "billing")
    assert report["duration_ms"] >= 0
    assert "result" not in report, "what a function returns is nobody's business unless `result` says so"
    assert (refund.__name__, refund.__doc__) == ("refund", "Give money back.")


@pytest.mark.parametrize("word", ["deny", "review", "pending", "unavailable"])
def test_a_function_that_may_not_act(client, answers, word):
    """Any other word: it is not called, GateDenied is raised, nothing is reported."""
    answers.answer("action", word)
    done = []

    @gated("action", client=client)
    def act():
        done.append(1)

    with pytest.raises(GateDenied) as caught:
        act()
    assert caught.value.verdict.verdict == word
    assert done == answers.records == []


def test_what_proceeds_by_fail_mode_acts(client, answers):
    """The operator chose it, and it is reported like any other."""
    answers.answer("action", "unavailable", fail_open=True)

    @gated("action", client=client)
    def act():
        return 1

    assert act() == 1
    assert [kind for kind, _ in reports(answers)] == ["action.completed"]


def test_an_exception_is_reported_and_goes_on_unchanged(client, answers):
    """The same object, with its own cause and no context of ours."""
    error = ValueError("boom")

    @gated("action", client=client)
    def act():
        raise error

    with pytest.raises(ValueError, match="boom") as caught:
        act()
    assert caught.value is error
    assert error.__context__ is None
    ((kind, report),) = reports(answers)
    assert (kind, report["error"]) == ("action.failed", "ValueError: boom")


@pytest.mark.parametrize(
    ("leave", "kind"),
    [
        (KeyboardInterrupt(), "action.failed"),
        (asyncio.CancelledError(), "action.failed"),
        (SystemExit(1), "action.failed"),
        (SystemExit(0), "action.completed"),
    ],
)
def test_however_it_is_left(client, answers, leave, kind):
    """Cancelled and interrupted is failed; a process that ends well has done its act."""

    @gated("action", client=client)
    def act():
        raise leave

    with pytest.raises(type(leave)):
        act()
    assert [kind for kind, _ in reports(answers)] == [kind]


def test_a_decision_is_reported_by_its_two_receipts(client, answers):
    """`decide`: an execution and an outcome, done and failed."""

    @gated("decide", {"mode": "rulebook"}, client=client, result=lambda value: {"rows": value})
    def act(n):
        return 10 // n

    assert act(5) == 2
    with pytest.raises(ZeroDivisionError):
        act(0)
    done, came, failed, lost = [report for _, report in reports(answers)]
    assert (done["kind"], done["execution_status"], done["execution_result"]) == ("execution", "executed", {"rows": 2})
    assert (came["kind"], came["outcome_status"], came["action_executed"]) == ("outcome", "succeeded", True)
    assert came["observed_metrics"]["duration_ms"] >= 0
    assert (failed["execution_status"], failed["execution_result"]["error"][:17]) == ("failed", "ZeroDivisionError")
    assert (lost["outcome_status"], lost["action_executed"]) == ("failed", False)
    assert {report["decision_id"] for _, report in reports(answers)} == {"id-1"}


@pytest.mark.parametrize("gate", ["intent", "invoke", "human_input", "decision", "my_own"])
def test_other_gates_have_nothing_to_report(client, answers, gate):
    """Their platforms take no report of what was done."""

    @gated(gate, client=client)
    def act():
        return 1

    assert act() == 1
    assert answers.records == []


def test_a_result_that_fails_costs_only_itself(client, answers, caplog):
    """A report never masks the act: its value is returned and it is reported without the result."""

    @gated("action", client=client, result=lambda value: 1 / 0)
    def act():
        return "value"

    with caplog.at_level(logging.ERROR, "agentd"):
        assert act() == "value"
    assert "`result` failed" in caplog.text
    assert [kind for kind, _ in reports(answers)] == ["action.completed"]


async def test_async_functions(answers):
    """The same for async functions, whichever kind of client; they stay coroutine functions, and run side by side."""
    for client in (AsyncClient(), Client()):
        meeting = asyncio.Barrier(2)

        @gated("action", client=client, action_type=lambda n: f"type-{n}")
        async def act(n, meeting=meeting):
            await meeting.wait()
            return n

        assert inspect.iscoroutinefunction(act)
        assert await asyncio.gather(act(1), act(2)) == [1, 2]
    assert [asked.request["action_type"] for asked in answers.gates] == ["type-1", "type-2"] * 2
    assert [kind for kind, _ in reports(answers)] == ["action.completed"] * 4


async def test_a_cancelled_async_function_has_failed(answers):
    """The platform must not take it for done."""
    begun = asyncio.Event()

    @gated("action", client=AsyncClient())
    async def act():
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(act())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [kind for kind, _ in reports(answers)] == ["action.failed"]


def test_methods(client, answers):
    """A method's request sees `self`."""

    class Desk:
        limit = 5

        @gated("action", client=client, parameters=lambda self, n: {"n": n, "limit": self.limit})
        def act(self, n):
            return n * self.limit

    assert Desk().act(2) == 10
    assert answers.gates[0].request == {"parameters": {"n": 2, "limit": 5}}


def test_the_same_key_asks_once(client, answers):
    """Asked again under its key the recorded verdict comes, and another request under it is a conflict."""

    @gated("action", lambda n, note: {"n": n, "note": note}, client=client, key=lambda n, note: f"k-{n}")
    def act(n, note):
        return note

    assert act(1, "a") == act(1, "a") == "a"
    assert [asked.verdict.repeated for asked in answers.gates] == [False, True]
    with pytest.raises(GateKeyConflict):
        act(1, "b")


def test_the_run_of_the_context(client, answers):
    """Inside a run the gate is the run's, and speaks for its agent, even without a client of its own."""

    @gated("decide")
    def act():
        return 1

    with client.start_run(run_id="r-1") as run:
        act()
    assert (answers.gates[0].run_id, answers.gates[0].agent_id) == ("r-1", "billing")
    assert run.agent_id == "billing"
    execution = next(record for record in answers.records if record["kind"] == "execution")
    assert execution["agent_id"] == "billing"


def test_the_client_without_one(answers, monkeypatch):
    """Functions that were given none share a client, made at the first call; a function may give one, late."""
    monkeypatch.setattr(gated_module, "_defaults", {})

    @gated("a")
    def one():
        return 1

    @gated("b")
    def two():
        return 2

    assert gated_module._defaults == {}
    assert (one(), two()) == (1, 2)
    (default,) = gated_module._defaults.values()
    assert isinstance(default, Client)

    @gated("c", client=lambda: Client(agent_id="late"))
    def three():
        return 3

    assert three() == 3
    assert answers.gates[-1].agent_id == "late"


def test_options_of_the_gate(client, answers):
    """Destination, deadline and agent go with each asking."""

    @gated("action", client=client, to="ascend_eu", deadline=2.5, agent_id="me")
    def act():
        return 1

    act()
    asked = answers.gates[0]
    assert (asked.to, asked.deadline, asked.agent_id) == ("ascend_eu", 2.5, "me")


def test_what_can_not_be_gated():
    """A generator acts when it is read, and one key for all calls would ask once: both are said at the decoration."""
    with pytest.raises(TypeError, match="generator"):

        @gated("action")
        def numbers():
            yield 1

    with pytest.raises(TypeError, match="generator"):

        @gated("action")
        async def later():
            yield 1

    with pytest.raises(TypeError, match="key must be a function"):
        gated("action", key="always the same")


def test_a_request_that_is_none(client):
    """Said before anybody is asked."""

    @gated("action", lambda: ["no", "mapping"], client=client)
    def act():
        return 1

    with pytest.raises(TypeError, match="mapping of fields, not list"):
        act()


def test_threads_act_side_by_side(client, answers):
    """A gate holds no lock while the function runs."""
    meeting = threading.Barrier(4, timeout=10)

    @gated("action", client=client)
    def act():
        meeting.wait()

    threads = [threading.Thread(target=act) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [kind for kind, _ in reports(answers)] == ["action.completed"] * 4
