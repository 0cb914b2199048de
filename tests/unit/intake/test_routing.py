"""Which destinations take a record, and what is said when none does."""

from __future__ import annotations

import pytest

from agentd.errors import RecordError
from agentd.intake.routing import Route, Table

RUNS = frozenset({"run.start", "event"})
ALL = Route("all", RUNS)
TEAM = Route("team", RUNS, agents=("billing", "support-*"))
LEDGER = Route("ledger", frozenset({"decision"}))
TABLE = Table([ALL, TEAM, LEDGER])


def names(kind, agent="", to=None, table=TABLE):
    return [route.name for route in table.route(kind, agent, to)]


def test_a_record_goes_to_every_destination_that_takes_it():
    """Kind and agent decide; each destination gets a copy of its own."""
    assert names("event", "billing") == ["all", "team"]
    assert names("event", "support-7") == ["all", "team"]
    assert names("event", "other") == ["all"]
    assert names("event") == ["all"]
    assert names("decision", "billing") == ["ledger"]


@pytest.mark.parametrize("agent", ["Billing", "support", "xbilling", "billing "])
def test_agents_match_exactly_or_by_glob(agent):
    """Names are compared as they are written; a glob has to match the whole name."""
    assert names("event", agent) == ["all"]


def test_a_record_without_an_agent_is_its_destinations_default():
    """The default agent of a destination is what its table is asked for."""
    table = Table([Route("team", RUNS, agents=("billing",), default_agent="billing")])
    assert names("event", table=table) == ["team"]


@pytest.mark.parametrize(
    ("to", "expected"),
    [("team", ["team"]), (["team"], ["team"]), (["all", "team"], ["all", "team"]), (["team", "team"], ["team"])],
)
def test_a_record_may_name_its_destinations(to, expected):
    """`to` chooses among those that would take it, once each."""
    assert names("event", "billing", to) == expected


@pytest.mark.parametrize(
    ("kind", "agent", "to", "message"),
    [
        ("event", "", "nonesuch", "$.to: no destination 'nonesuch'; configured: all, ledger, team"),
        ("event", "", ["all", "nonesuch"], "$.to: no destination 'nonesuch'; configured: all, ledger, team"),
        ("event", "", "ledger", "$.to: ledger does not take event"),
        ("event", "other", ["all", "team"], "$.to: team does not take event of agent 'other'"),
        ("event", "", [], "$.to: names no destination"),
        ("task", "", None, "$.kind: no destination takes task (configured: all, ledger, team)"),
    ],
)  # fmt: skip
def test_what_nobody_takes_is_refused_with_the_reason(kind, agent, to, message):
    """Kind, agent or name: the sentence says which of them it was."""
    with pytest.raises(RecordError) as caught:
        TABLE.route(kind, agent, to)
    assert str(caught.value) == message


def test_agents_that_nobody_takes():
    """An agent that no table names is said by its name."""
    with pytest.raises(RecordError, match=r"^\$.agent_id: no destination takes event of agent 'other'$"):
        Table([TEAM]).route("event", "other", None)


def test_without_destinations():
    """A daemon without destinations says so."""
    with pytest.raises(RecordError, match="no destination is configured"):
        Table([]).route("event", "", None)
    with pytest.raises(RecordError, match="configured: none"):
        Table([]).route("event", "", "x")


def test_answers_are_remembered_within_bounds():
    """Agent names come from outside: what is remembered of them is bounded."""
    table = Table([ALL])
    for number in range(Table._REMEMBERED + 10):
        table.route("event", f"agent-{number}", None)
    assert len(table._known) <= Table._REMEMBERED


def test_who_would_take_it():
    """Whether a destination takes a kind of an agent, by its own name for it or by default."""
    assert TABLE.takes("team", "event", "billing")
    assert not TABLE.takes("team", "event", "other")
    assert not TABLE.takes("team", "decision", "billing")
    assert not TABLE.takes("nonesuch", "event", "billing")
