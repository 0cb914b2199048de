"""`[identity]`: what is said of where records come from, in which headers and bodies, and what fills the gaps."""

import json

import pytest

from agentd import __version__
from agentd.cli.explain import read
from agentd.cli.rehearsal import rehearse
from agentd.errors import ConfigError
from agentd.exchange import Context
from agentd.gating import Question
from agentd.platforms import aegis, ascend, decisionos
from agentd.sections import Config, Destination, Identity, Secret
from agentd.stamp import MAX_ATTRIBUTES, MAX_CHARS, Stamp, check_identity, completed, runner_of, stamp_of, stamped

WHOLE = Identity("web-3", "billing", "prod", "1.4.2", {"team": "Zürich (2); x"})
MEMBERS = {
    "host": "web-3", "service": "billing", "environment": "prod", "version": "1.4.2", "attributes": {"team": "Zürich (2); x"},
}  # fmt: skip
AGENT = f"agentd/{__version__} (service=billing; version=1.4.2; environment=prod; host=web-3; team=Z%C3%BCrich%20%282%29%3B%20x)"
SEVEN = "00000000-0000-4000-8000-000000000007"


def requests(records, identity=WHOLE, **destinations):
    """What would go out, by the daemon's own code: (headers, body) by path."""
    places = {
        name: Destination(platform, agent_id=SEVEN, api_key=Secret(env="NONE"), base_url="http://127.0.0.1:9")
        for name, platform in destinations.items()
    }
    _, outlooks = rehearse(read(json.dumps(records).encode()), Config(identity=identity, destinations=places))
    return [(one.headers, json.loads(one.body)) for outlook in outlooks.values() for one in outlook.requests]


def question(gate, **request):
    import msgspec

    fields = {name: msgspec.Raw(json.dumps(value).encode()) for name, value in request.items()}
    return Question(gate, "g-1", "g-1", "", None, fields, 0)


def context(stamp):
    return Context(lambda local: local or SEVEN, lambda _kind, local: local, stamp=stamp)


def test_every_request_says_where_it_comes_from():
    """RFC 9110 §10.1.5: a comment behind the product, from which nothing can break out."""
    assert stamp_of(WHOLE).headers == {"user-agent": AGENT}
    for platform, record in (
        ("agentos", {"kind": "run.start", "run_id": "r"}),
        ("decisionos", {"kind": "decision", "context": "c"}),
        ("ascend", {"kind": "heartbeat"}),
    ):
        [(headers, _)] = requests([record], x=platform)
        assert headers["user-agent"] == AGENT


def test_nothing_is_said_where_nothing_is_configured():
    """No identity: the bytes and headers are those of an agentd that knows none."""
    assert stamp_of(Identity()) == Stamp()
    [(headers, body)] = requests([{"kind": "run.start", "run_id": "r", "input": {"a": 1}}], Identity(), x="agentos")
    assert headers["user-agent"] == f"agentd/{__version__}"
    assert body["input"] == {"a": 1}


def test_the_input_of_an_agentos_run_bears_it():
    """As one more member, whatever the input was; events stay as they are."""
    records = [
        {"kind": "run.start", "run_id": "r", "input": {"a": None, "b": 1.50}},
        {"kind": "event", "run_id": "r", "type": "t", "payload": {"x": 1}},
    ]
    (_, start), (_, events) = requests(records, x="agentos")
    assert start["input"] == {"a": None, "b": 1.5, "agentd_identity": MEMBERS}
    assert set(events["events"][0]["payload"]) == {"agentd_id", "x"}
    [(_, start)] = requests([{"kind": "run.start", "run_id": "r"}], x="agentos")
    assert start["input"] == {"agentd_identity": MEMBERS}
    [(_, start)] = requests([{"kind": "run.start", "run_id": "r", "input": [1]}], x="agentos")
    assert start["input"] == {"value": [1], "agentd_identity": MEMBERS}


def test_what_the_agent_says_itself_stays():
    """A member or a runner of the agent's own is not replaced."""
    mine = {"kind": "run.start", "run_id": "r", "input": {"agentd_identity": "mine"}}
    assert requests([mine], x="agentos")[0][1]["input"] == {"agentd_identity": "mine"}
    own = {"kind": "decision", "context": "c", "runner": "langgraph"}
    assert requests([own], x="decisionos")[0][1]["runner"] == "langgraph"


def test_a_decision_without_a_runner_names_the_service():
    """Decision OS's `runner`; a host alone runs nothing."""
    decision = {"kind": "decision", "context": "c"}
    assert requests([decision], x="decisionos")[0][1]["runner"] == "billing/1.4.2"
    assert requests([decision], Identity(service="billing"), x="decisionos")[0][1]["runner"] == "billing"
    assert "runner" not in requests([decision], Identity(host="web-3"), x="decisionos")[0][1]
    assert runner_of({}) is None


def test_a_snapshot_stays_as_it_is():
    """Evidence is the agent's own, to the byte."""
    records = [
        {"kind": "decision", "decision_id": "d", "context": "c"},
        {"kind": "snapshot", "decision_id": "d", "snapshot": {"prompt": "p"}},
    ]
    assert requests(records, x="decisionos")[1][1]["snapshot"] == {"prompt": "p"}
    assert "runner" not in requests(records, x="decisionos")[1][1]


def test_ascend_hears_the_environment_as_from_its_sdk():
    """`X-Environment`, fit for a header whatever it is called."""
    assert requests([{"kind": "heartbeat"}], x="ascend")[0][0]["x-environment"] == "prod"
    odd = Identity(environment="prüf stand")
    assert requests([{"kind": "heartbeat"}], odd, x="ascend")[0][0]["x-environment"] == "pr%C3%BCf%20stand"
    assert "x-environment" not in requests([{"kind": "heartbeat"}], Identity(service="s"), x="ascend")[0][0]


def test_gates_with_free_members_bear_it():
    """Beside the gate's id: Aegis's `metadata`, ASCEND's `context`; Decision OS's key may meet another identity, and its body has none."""
    asked = question("intent", amount=1, currency="EUR", reason="r", metadata={"own": 1})
    body = json.loads(aegis.PLATFORM.gates["intent"].ask(asked, context(MEMBERS)).body)
    assert body["metadata"] == {"agentd_gate_id": "g-1", "agentd_identity": MEMBERS, "own": 1}
    body = json.loads(aegis.PLATFORM.gates["intent"].ask(asked, context({})).body)
    assert body["metadata"] == {"agentd_gate_id": "g-1", "own": 1}
    asked = question("action", action_type="query", resource="db", context={"user_request": "u"})
    body = json.loads(ascend.PLATFORM.gates["action"].ask(asked, context(MEMBERS)).body)
    assert body["context"] == {"agentd_gate_id": "g-1", "agentd_identity": MEMBERS, "user_request": "u"}
    asked = question("decision", context="c")
    body = json.loads(decisionos.PLATFORM.gates["decision"].ask(asked, context(MEMBERS)).body)
    assert "runner" not in body


@pytest.mark.parametrize(
    ("given", "env", "expected"),
    [
        (Identity(), {}, Identity()),  # the host alone is no identity
        (Identity(host="h"), {}, Identity(host="h")),
        (Identity(service="s"), {}, Identity(host="here", service="s")),
        (Identity(attributes={"a": "b"}), {}, Identity(host="here", attributes={"a": "b"})),
        (Identity(), {"OTEL_SERVICE_NAME": "o"}, Identity(host="here", service="o")),
        (Identity(service="s"), {"OTEL_SERVICE_NAME": "o"}, Identity(host="here", service="s")),
        (
            Identity(),
            {
                "OTEL_SERVICE_NAME": "wins",
                "OTEL_RESOURCE_ATTRIBUTES": "service.name=loses, service.version=2%2C1,x,deployment.environment=old,k8s.pod.name=p,",
            },
            Identity(host="here", service="wins", version="2,1", environment="old"),
        ),
        (
            Identity(),
            {"OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=old,deployment.environment.name=new"},
            Identity(host="here", environment="new"),
        ),
        (Identity(), {"OTEL_RESOURCE_ATTRIBUTES": "service.name=a%0Ab"}, Identity()),  # no line of a header
        (Identity(), {"OTEL_RESOURCE_ATTRIBUTES": f"service.name={'x' * (MAX_CHARS + 1)}"}, Identity()),
    ],
)
def test_what_fills_the_gaps(given, env, expected):
    """OpenTelemetry's variables where the configuration is silent, and the host's name once anything is said; other attributes stay at home."""
    assert completed(given, env, "here") == expected


@pytest.mark.parametrize(
    ("identity", "message"),
    [
        (Identity(service="a\nb"), "service: expected at most 255 characters in one line"),
        (Identity(host="x" * (MAX_CHARS + 1)), "host: expected at most 255"),
        (Identity(attributes={"k": "\x1b[31m"}), "attributes.k: expected at most 255"),
        (Identity(attributes={"": "v"}), "attributes: '' is no name"),
        (Identity(attributes={str(n): "v" for n in range(MAX_ATTRIBUTES + 1)}), "attributes: 33, 32 are the most"),
    ],
)
def test_what_cannot_be_shown_in_a_line_is_refused(identity, message):
    """Each is named, with what would be right."""
    with pytest.raises(ConfigError, match=r"x.toml: \[identity\] ") as caught:
        check_identity(identity, "x.toml")
    assert message in str(caught.value)
    check_identity(Identity("h" * MAX_CHARS, attributes={str(n): "" for n in range(MAX_ATTRIBUTES)}), "x.toml")


def test_a_member_of_the_same_name_wins():
    """`stamped` never replaces what is there."""
    assert stamped({"agentd_identity": 1}, {"service": "s"}) == {"agentd_identity": 1}
    assert stamped({"a": 1}, {}) == {"a": 1}
