"""Whose a record is and where it goes: ids per destination, agents that are inferred, and what a peer may do."""

from __future__ import annotations

import json

import pytest

from agentd.intake import Grant, Peer
from agentd.intake.routing import Route
from agentd.outcomes import Cause

ME = Peer(1000, 1000, 7)
OTHER = Peer(1001, 1001, 8)
KINDS = frozenset({"run.start", "event", "execution"})
INTRODUCES = frozenset({"run.start"})
X = Route("x", KINDS, INTRODUCES)
Y = Route("y", KINDS, INTRODUCES)


def record(kind="event", run="r", **fields):
    ids = {"execution": {"decision_id": run, "execution_status": "done"}}.get(kind, {"run_id": run})
    more = {"type": "t"} if kind == "event" else {}
    return json.dumps({"kind": kind, **ids, **more, **fields}).encode()


def judged(outcome):
    """Destination → agent where it was taken, else the reason."""
    if outcome.rejected:
        return outcome.rejected[0].error
    return {name: entry.agent for name, [entry] in outcome.copies.items()}


# -- ids belong to destination, kind and id --------------------------------------------------------------------------------


def test_an_id_of_a_destination_that_does_not_take_the_record_is_no_concern(make_intake):
    """A decision of agent a at a ledger that takes no executions leaves agent b free to name its own by that id elsewhere."""
    intake = make_intake(Route("ledger", frozenset({"decision"}), frozenset({"decision"})), X)
    intake.shelf.own("decision", "d", agent="a", destination="ledger")
    assert judged(intake.admit(record("execution", "d", agent_id="b"))) == {"x": "b"}
    assert judged(intake.admit(record("execution", "d"))) == {"x": ""}


def test_an_id_of_another_agent_is_refused_where_the_record_goes(make_intake):
    """The same id introduced at one of two destinations by another agent: refused there by name, taken by the other."""
    intake = make_intake(X, Y)
    intake.shelf.own("run", "r", agent="a", destination="x")
    assert judged(intake.admit(record(agent_id="b"))) == "$.run_id: belongs to agent 'a' at x"
    assert judged(intake.admit(record(agent_id="b", to="y"))) == {"y": "b"}
    assert judged(intake.admit(record(agent_id="b", to="x"))) == "$.run_id: belongs to agent 'a'"
    assert judged(intake.admit(record(agent_id="a"))) == {"x": "a", "y": "a"}


def test_two_platforms_may_know_two_things_by_one_id(make_intake):
    """Introduced at both by different agents: each agent's records go where it is at home, as the agents' tables say."""
    intake = make_intake(Route("x", KINDS, INTRODUCES, agents=("a",)), Route("y", KINDS, INTRODUCES, agents=("b",)))
    for agent, name in (("a", "x"), ("b", "y")):
        assert judged(intake.admit(record("run.start", agent_id=agent))) == {name: agent}
        assert judged(intake.admit(record(agent_id=agent))) == {name: agent}
        assert judged(intake.admit(record(to=name))) == {name: agent}
    assert judged(intake.admit(record())) == "$.run_id: is agent 'a''s at x and agent 'b''s at y: say which by agent_id"
    assert intake.admission.refused == {Cause.FOREIGN_REFERENCE.value: 1}


def test_another_users_id_counts_where_the_record_goes(make_intake):
    """A stranger's run at a destination that the record does not go to is none of its business, nor of its inference."""
    intake = make_intake(X, Y)
    intake.shelf.own("run", "r", agent="theirs", uid=OTHER.uid, destination="x")
    assert judged(intake.admit(record())) == "$.run_id: belongs to another user at x"
    assert judged(intake.admit(record(to="y"))) == {"y": ""}
    assert (
        judged(intake.admit(record("run.start", "child", parent_run_id="r")))
        == "$.parent_run_id: belongs to another user"
    )
    assert judged(intake.admit(record("run.start", "child", parent_run_id="r", to="y"))) == {"y": ""}


# -- inference -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", [None, "x", "y", ["x", "y"]])
def test_an_unnamed_record_is_the_same_agents_however_narrow(make_intake, to):
    """What is sent again to a full destination alone is for the agent that it was for as a whole, known there or not."""
    intake = make_intake(X, Y)
    intake.shelf.own("run", "r", agent="a", destination="x")
    found = judged(intake.admit(record(**({"to": to} if to else {}))))
    assert set(found.values()) == {"a"}


def test_an_agent_that_the_destination_does_not_take_is_not_inferred(make_intake):
    """An id at another destination says nothing where its agent is not taken: then it is the default one, as for any new id."""
    intake = make_intake(X, Route("y", KINDS, INTRODUCES, agents=("b",), default_agent="b"))
    intake.shelf.own("run", "r", agent="a", destination="x")
    assert judged(intake.admit(record())) == {"x": "a"}
    assert judged(intake.admit(record(to="y"))) == {"y": ""}


def test_the_default_agent_has_two_names(make_intake):
    """Started without a name at one destination and by name at the other, it is one agent where that is the default."""
    intake = make_intake(Route("x", KINDS, INTRODUCES, default_agent="a"), Y)
    intake.shelf.own("run", "r", agent="", destination="x")
    intake.shelf.own("run", "r", agent="a", destination="y")
    assert judged(intake.admit(record())) == {"x": "a", "y": "a"}
    assert judged(intake.admit(record(agent_id="a"))) == {"x": "a", "y": "a"}
    assert judged(intake.admit(record(agent_id="b"))) == "$.run_id: belongs to agent '' at x"


def test_a_default_agent_does_not_take_over_a_run(make_intake):
    """A run of an agent that its destination takes no more is not continued as the default agent's."""
    intake = make_intake(Route("x", KINDS, INTRODUCES, agents=("d",), default_agent="d"))
    intake.shelf.own("run", "r", agent="gone", destination="x")
    assert judged(intake.admit(record())) == "$.run_id: belongs to agent 'gone'"


# -- grants ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allowed", "agent", "expected"),
    [
        (("a",), "a", {"x": "a", "y": "a"}),
        (("a",), None, {"x": "a", "y": "a"}),
        (("a", "b-*"), "b-7", {"x": "b-7", "y": "b-7"}),
        (("a",), "b", "$.agent_id: 'b' is not among the agents that you may speak for (a)"),
        (("a", "b-*"), "b", "$.agent_id: 'b' is not among the agents that you may speak for (a, b-*)"),
        ((), "a", "$.agent_id: 'a' is not among the agents that you may speak for (none)"),
        (("d", "e"), None, {"x": "", "y": ""}),
        (("e",), "d", "$.agent_id: 'd' is not among the agents that you may speak for (e)"),
        (("*",), None, {"x": "", "y": ""}),
        (("a", "b"), None, "$.agent_id: required here: agent 'd' of x is not among the agents that you may speak for (a, b)"),
        (("d*",), None, {"x": "", "y": ""}),
    ],
)  # fmt: skip
def test_a_peer_speaks_for_its_agents_alone(make_intake, allowed, agent, expected):
    """Named, the only one that it may be, or each destination's default where that is allowed: nothing slips through."""
    routes = [Route(name, KINDS, INTRODUCES, default_agent="d") for name in "xy"]
    intake = make_intake(*routes, grant=Grant(allowed))
    assert judged(intake.admit(record(**({"agent_id": agent} if agent else {})))) == expected
    refused = {} if isinstance(expected, dict) else {Cause.FORBIDDEN_AGENT.value: 1}
    assert intake.admission.refused == refused


def test_a_destination_without_a_default_agent_needs_a_name(make_intake):
    """Where the platform itself would choose the agent, a bound peer has to say which."""
    intake = make_intake(X, grant=Grant(("a", "b")))
    assert judged(intake.admit(record())) == (
        "$.agent_id: required here: that of x is not among the agents that you may speak for (a, b)"
    )


@pytest.mark.parametrize("allowed", [("a",), ("a", "c"), ("a*",), ()])
@pytest.mark.parametrize("named", [None, "a"])
def test_whose_a_run_is_is_told_to_nobody_who_may_not_speak_for_its_agent(make_intake, allowed, named):
    """Another agent's run is refused to a peer that is bound to others in the words that a stranger hears, whose it is in none."""
    more = {"agent_id": named} if named else {}
    told = []
    for uid in (ME.uid, OTHER.uid):  # of the same user, and of another
        intake = make_intake(Route("x", KINDS, INTRODUCES, default_agent="a"), grant=Grant(allowed))
        intake.shelf.own("run", "r", agent="secret", uid=uid, destination="x")
        told.append((judged(intake.admit(record(**more))), intake.admission.refused))
    assert told[0] == told[1]
    assert "secret" not in told[0][0]
    if allowed:
        assert told[0] == ("$.run_id: belongs to another user", {Cause.FOREIGN_REFERENCE.value: 1})


def test_several_owners_are_named_to_who_may_speak_for_them(make_intake):
    """Where an id is two agents', the question which of them tells of none but those that the peer may be."""
    intake = make_intake(X, Y, grant=Grant(("a", "b")))
    intake.shelf.own("run", "r", agent="a", destination="x")
    intake.shelf.own("run", "r", agent="b", destination="y")
    assert judged(intake.admit(record())) == "$.run_id: is agent 'a''s at x and agent 'b''s at y: say which by agent_id"
    narrow = make_intake(X, Y, grant=Grant(("a",)))
    narrow.shelf.own("run", "r", agent="a", destination="x")
    narrow.shelf.own("run", "r", agent="b", destination="y")
    assert judged(narrow.admit(record())) == "$.run_id: belongs to another user at y"


@pytest.mark.parametrize(
    ("allowed", "to", "expected"),
    [
        ({"x"}, None, {"x": ""}),
        ({"x"}, "x", {"x": ""}),
        ({"x"}, ["x", "y"], "$.to: destination 'y' is not among those that you may use (x)"),
        ({"x"}, "z", "$.to: destination 'z' is not among those that you may use (x)"),
        ({"z"}, None, "$.to: no destination that you may use (z) takes event of agent ''"),
        (set(), None, "$.to: no destination that you may use (none) takes event of agent ''"),
    ],
)
def test_a_peer_uses_its_destinations_alone(make_intake, allowed, to, expected):
    """Others are left out where none is named, and refused by name where they are."""
    intake = make_intake(X, Y, grant=Grant(None, frozenset(allowed)))
    assert judged(intake.admit(record(**({"to": to} if to else {})))) == expected
    refused = {} if isinstance(expected, dict) else {Cause.FORBIDDEN_DESTINATION.value: 1}
    assert intake.admission.refused == refused


def test_a_destination_that_is_not_allowed_tells_nothing(make_intake):
    """What an id is called where the peer may not go is no source of its agent."""
    intake = make_intake(X, Y, grant=Grant(None, frozenset({"x"})))
    intake.shelf.own("run", "r", agent="a", destination="y")
    assert judged(intake.admit(record())) == {"x": ""}


def test_who_is_trusted_is_so_on_the_unix_socket_alone(make_intake):
    """Root's uid over TCP is any process's that holds a token: it uses its own references and nobody else's."""
    intake = make_intake(X)
    intake.shelf.own("run", "r", agent="a", uid=ME.uid, destination="x")
    assert judged(intake.admit(record(), Peer(0, 0, 9))) == {"x": "a"}
    assert judged(intake.admit(record(), Peer(0, -1, 0, token=0))) == "$.run_id: belongs to another user"
    assert judged(intake.admit(record(), Peer(ME.uid, -1, 0, token=0))) == {"x": "a"}


@pytest.mark.parametrize(
    ("allowed", "right"), [(None, True), (("a",), True), (("*",), True), (("b",), False), (("b", "c"), False)]
)
def test_what_nobody_introduced_belongs_to_who_may_speak_for_its_agent(make_intake, allowed, right):
    """Uid -1 says nothing: over TCP a run of an unknown user is its agent's, and so whoever's who holds a token for that."""
    intake = make_intake(X, grant=Grant(allowed))
    nobody = Peer(-1, -1, 0, token=1)
    intake.shelf.own("run", "r", agent="a", uid=-1, destination="x")
    assert isinstance(judged(intake.admit(record(), nobody)), dict) == right
    child = record("run.start", "child", parent_run_id="r", agent_id="b" if allowed and "b" in allowed else "a")
    assert isinstance(judged(intake.admit(child, nobody)), dict) == right
    assert judged(intake.admit(record(agent_id="a"), ME)) != {"x": "a"}
    intake.shelf.own("run", "s", agent="a", uid=ME.uid, destination="x")
    assert isinstance(judged(intake.admit(record(run="s"), nobody)), str)
