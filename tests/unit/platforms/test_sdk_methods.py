"""What agentd does with each public method of the three SDKs. A method that a later version adds fails here until it has its word.

Each method is called for real, against a wire that writes down what it would send, and each request has to come in by the door
that the table says.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import warnings
from contextlib import suppress
from types import SimpleNamespace

import agentos
import agentos._control
import decision_os
import httpx
import pytest
import requests
from ascend import AscendClient, AuthorizedAgent
from sdk_kit import called, find_door

from agentd.platforms import load
from agentd.standin import Does

BASE = "http://127.0.0.1:1"
READ, GATE, LOCAL = "read", "gate", "local"  # local: sends nothing


def words(**methods):
    return {name: word for word, names in methods.items() for name in names.split()}


ASCEND = words(
    read="""ack_command check_approval evaluate_policy get_action_details get_action_status get_agent get_agent_status
        get_cve_sync_status get_mcp_health get_mcp_server get_orchestration_session get_orchestration_session_risk
        get_orchestration_stats get_output_filter_config get_output_findings get_output_findings_for_action
        get_pending_commands get_resource_classification get_supply_chain_alerts get_supply_chain_impact
        get_supply_chain_stats list_actions list_mcp_servers list_supply_chain_components query_audit_log scan_output
        start_kill_switch_polling test_connection wait_for_approval wait_for_decision""",
    gate="evaluate_action evaluate_actions evaluate_mcp_action submit_action",
    record="heartbeat log_action_completed log_action_failed send_heartbeat start_heartbeat",
    admin="""activate_mcp_server cascade_kill configure_webhook deactivate_mcp_server delete_mcp_server delete_webhook
        deregister link_model_to_agent list_webhooks register register_agent register_mcp_server register_mcp_topology
        register_supply_chain_component register_topology release_kill_switch scan_mcp_network test_webhook
        trigger_kill_switch update_webhook""",
    local="close is_blocked stop_heartbeat stop_kill_switch_polling",
)
ASCEND_AGENT = words(
    gate="check_permission execute_if_authorized request_authorization",
    local="get_recent_actions",  # in 2.7.1 it hands `list_actions` a parameter that this has not
)
AGENTOS = words(record="start_run", gate="invoke invoke_stream", admin="reply", local="close flush shutdown")
RUN = words(
    record="""cancel complete emit emit_llm_request emit_llm_response emit_tool_call emit_tool_error emit_tool_return fail
        record_span start_task""",
    gate="request_human_input",
    local="flush start_span",
)
TASK = words(record="complete fail skip")
SPAN = words(record="end fail", local="child")
CONTROL = {
    "Agents": words(read="get list", admin="create delete set_status update"),
    "Alerts": words(read="list", admin="create delete update"),
    "ApiKeys": words(admin="create list revoke"),
    "Approvals": words(read="list", admin="decide"),
    "Conversations": words(read="get list", admin="delete"),
    "Evals": words(read="get_run list_cases", admin="create_case delete_case run_case"),
    "Fleet": words(read="health"),
    "Folders": words(read="list", admin="create delete"),
    "Integrations": words(read="list"),
    "Marketplace": words(read="list_templates", admin="install"),
    "Members": words(read="list", admin="invite remove"),
    "Notifications": words(read="list", admin="mark_read"),
    "Reports": words(read="get list", admin="delete generate"),
    "Resources": words(read="list", admin="create delete"),
    "Runs": words(read="events get list", admin="cancel invoke"),
    "Schedules": words(read="get", admin="delete upsert"),
    "Tools": words(read="list_builtin list_composio list_workspace", admin="create delete"),
    "Workspaces": words(read="list"),
}
DECISION_OS = words(
    read="get_agent get_decision get_workspace_usage list_agents list_decisions",
    record="capture_snapshot log_decision",
    local="close",
)

# What answers to parameters that take no mere text
VALUES = {
    "actions": [{"action_type": "query", "resource": "r"}], "mcp_server_ids": [1], "events": ["action.denied"],
    "url": "https://example.com/hook", "execute_fn": lambda: None, "error": "it went wrong", "snapshot": {},
    "duration_ms": 1, "input_schema": {}, "orchestrator_id": "a", "agent_id": "billing",
}  # fmt: skip
ANSWER = {  # in which each SDK finds what it looks for, so that none stops half way
    "action_id": "1", "status": "approved", "decision": "approved", "success": True, "error": None,
    "data": {"run_id": "r", "id": "d", "status": "completed", "input": "yes", "request_id": "q", "contentHash": "h"},
}  # fmt: skip


class Wire:
    """Writes down what would go out, and answers it."""

    def __init__(self):
        self.sent = []

    def requests(self, method, url, json=None, **_):
        self.note(method, url, json)
        answer = requests.Response()
        answer.status_code, answer._content = 200, text(ANSWER)
        return answer

    def httpx(self, request):
        self.note(request.method, str(request.url), json.loads(request.content or b"null"))
        return httpx.Response(200, content=text(ANSWER))

    def note(self, method, url, body):
        self.sent.append((method, url.removeprefix(BASE).partition("?")[0], body))


def text(value):
    return json.dumps(value).encode()


@pytest.fixture
def wire():
    return Wire()


@pytest.fixture
def ascend(wire):
    with AscendClient(api_key="k", agent_id="billing", agent_name="B", api_url=BASE) as client:
        client._session.request = wire.requests
        yield client


@pytest.fixture
def aos(wire):
    with httpx.Client(transport=httpx.MockTransport(wire.httpx)) as http:
        yield agentos.AgentOS(api_key="k", agent_id="a", base_url=BASE, batch_interval_ms=3_600_000, http_client=http)


@pytest.fixture
def dos(wire):
    with decision_os.DecisionOS(api_key="k", agent_id="a", base_url=BASE) as client:
        client.close()
        client._http = httpx.Client(transport=httpx.MockTransport(wire.httpx))
        yield client


def public(class_):
    """The names of its public methods, inherited ones included."""
    return {name for name, _ in inspect.getmembers(class_, inspect.isroutine) if not name.startswith("_")}


def value_for(name, hint):
    if name in VALUES:
        return VALUES[name]
    hint = str(hint)
    if "int" in hint:
        return 1
    return {} if "ict" in hint else ["x"] if "ist" in hint else "a text of some length"


def call(method, **more):
    """Call it with whatever it demands; what it makes of the answer is not the question here."""
    needed = {
        parameter.name: value_for(parameter.name, parameter.annotation)
        for parameter in inspect.signature(method).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in {parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL}
    }
    with warnings.catch_warnings(), suppress(Exception):
        warnings.simplefilter("ignore")  # of methods that the SDK has given up
        told = method(**(needed | more))
        if inspect.isgenerator(told):
            list(told)


def done(platform, wire):
    """The words for all that went out, one each."""
    found = set()
    for method, path, body in wire.sent:
        stand_in = load(platform).stand_in
        assert find_door(stand_in, method, path) is not None, f"no door for {method} {path}"
        came = called(stand_in, method, path, body)
        asks = came.door.does in {Does.GATE, Does.RECORD} and stand_in.asks(came)
        found.add(GATE if asks else READ if came.door.does is Does.GATE else came.door.does.value)
    return found or {LOCAL}


@pytest.mark.parametrize(
    ("class_", "table"),
    [
        (AscendClient, ASCEND), (AuthorizedAgent, ASCEND_AGENT), (agentos.AgentOS, AGENTOS), (agentos.Run, RUN),
        (agentos.Task, TASK), (agentos.Span, SPAN), (decision_os.DecisionOS, DECISION_OS),
        (decision_os.AsyncDecisionOS, DECISION_OS),
        *((getattr(agentos._control, name), table) for name, table in CONTROL.items()),
    ],
    ids=lambda value: value.__name__ if inspect.isclass(value) else "",
)  # fmt: skip
def test_every_public_method_has_its_word(class_, table):
    """None is missing, and none is there that the SDK has not."""
    assert public(class_) == set(table)


def test_every_namespace_of_the_control_plane_has_its_table(aos):
    """What hangs on the client is what the tables are about."""
    namespaces = {type(value).__name__ for name, value in vars(aos).items() if not name.startswith("_")}
    assert namespaces - {"str", "int", "float", "bool", "NoneType"} == set(CONTROL)


@pytest.mark.parametrize(("name", "word"), sorted(ASCEND.items()))
def test_ascend(ascend, wire, name, word):
    """Each method of AscendClient comes in by the door that the table says."""
    call(getattr(ascend, name), **({"action_type": "query", "resource": "r"} if name == "submit_action" else {}))
    ascend.close()
    assert done("ascend", wire) == {word}


@pytest.mark.parametrize(("name", "word"), sorted(ASCEND_AGENT.items()))
def test_ascend_s_agent(ascend, wire, name, word):
    """So does what is built upon it."""
    call(getattr(AuthorizedAgent("billing", "B", ascend), name))
    assert done("ascend", wire) == {word}


@pytest.mark.parametrize(("name", "word"), sorted(AGENTOS.items()))
def test_agentos(aos, wire, name, word):
    """Each method of the client itself; a reply is a person's, with a question's id or without."""
    call(getattr(aos, name))
    if name == "reply":
        call(aos.reply, request_id="q")
        assert len(wire.sent) == 2
    assert done("agentos", wire) == {word}


@pytest.mark.parametrize(
    ("kind", "name", "word"),
    [(kind, *row) for kind, table in (("run", RUN), ("task", TASK), ("span", SPAN)) for row in sorted(table.items())],
)
def test_a_run_of_agentos(aos, wire, kind, name, word):
    """Runs, tasks and spans, with what they leave in the queue."""
    run = aos.start_run()
    parts = {"run": lambda: run, "task": lambda: run.start_task("t"), "span": lambda: run.start_span("s")}
    part = parts[kind]()
    wire.sent.clear()
    call(getattr(part, name))
    run.flush()
    assert done("agentos", wire) == {word}


def test_the_second_call_of_a_question_is_a_read(aos, wire):
    """Its SDK asks again under the id that it was given, as often as it takes; that is no question of its own."""
    pending = {"data": {"status": "pending", "request_id": "q"}, "error": None}
    answers = iter([pending, pending, ANSWER])
    aos._transport._http = SimpleNamespace(
        build_request=httpx.Client().build_request,
        send=lambda request, **_: (wire.httpx(request), httpx.Response(200, json=next(answers)))[1],
    )
    agentos.Run(run_id="r", client=aos).request_human_input("May I?")
    first, *later = wire.sent
    assert len(later) == 2
    for sent, words_ in (([first], {GATE}), (later, {READ})):
        wire.sent = sent
        assert done("agentos", wire) == words_


@pytest.mark.parametrize(
    ("namespace", "name", "word"), [(space, *row) for space, table in CONTROL.items() for row in sorted(table.items())]
)
def test_agentos_control_plane(aos, wire, namespace, name, word):
    """Of the control plane what reads passes, but for keys; all else is the admin's."""
    space = next(value for value in vars(aos).values() if type(value).__name__ == namespace)
    call(getattr(space, name))
    assert done("agentos", wire) == {word}


@pytest.mark.parametrize(("name", "word"), sorted(DECISION_OS.items()))
def test_decision_os(dos, wire, name, word):
    """Each method, and the asynchronous one sends the same."""
    call(getattr(dos, name))
    assert done("decisionos", wire) == {word}
    sent = [request[:2] for request in wire.sent]
    wire.sent.clear()
    asyncio.run(_call_async(wire, name))
    assert [request[:2] for request in wire.sent] == sent


async def _call_async(wire, name):
    async with decision_os.AsyncDecisionOS(api_key="k", agent_id="a", base_url=BASE) as client:
        await client._http.aclose()
        client._http = httpx.AsyncClient(transport=httpx.MockTransport(wire.httpx))
        method = getattr(client, name)
        waiting = []
        call(lambda **more: waiting.append(method(**more)), **_needed(method))
        with suppress(Exception):
            await waiting[0]


def _needed(method):
    parameters = inspect.signature(method).parameters.values()
    return {one.name: value_for(one.name, one.annotation) for one in parameters if one.default is one.empty}


def test_a_decision_to_be_evaluated_is_a_gate(dos, wire):
    """The one method of Decision OS that may wait for leave."""
    call(dos.log_decision, run_policy_eval=True)
    assert done("decisionos", wire) == {GATE}


def test_an_mcp_tool_call_may_go_the_old_way(ascend, wire):
    """As an action: a gate as well."""
    call(ascend.evaluate_mcp_action, use_mcp_endpoint=False)
    assert done("ascend", wire) == {GATE}
