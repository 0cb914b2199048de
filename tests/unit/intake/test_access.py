"""Who may do what: tokens, uids, and what a grant lets an agent's records say."""

from __future__ import annotations

import hmac
from types import SimpleNamespace

import pytest

from agentd.errors import Forbidden
from agentd.intake import NO_TOKEN, Grant, Peer
from agentd.intake import access as module
from agentd.intake.access import Access
from agentd.sections import PeerRule, Secret, Security, TokenRule

SECRET = Secret(env="T")
BILLING, SUPPORT = "b" * 32, "s" * 32
LOCAL = Peer(1001, 1001, 7)


@pytest.fixture
def access():
    rules = [TokenRule(SECRET, ["billing"], ["cloud"]), TokenRule(SECRET)]
    peers = [PeerRule(1001, ["billing", "support-*"]), PeerRule(0, ["ops"])]
    return Access(Security(tokens=rules, peers=peers), [BILLING, SUPPORT])


# Tokens


def test_a_token_is_found_by_its_place(access):
    """Which of the tokens it is, by the order of the configuration."""
    assert (access.token_of([BILLING]), access.token_of([SUPPORT])) == (0, 1)


@pytest.mark.parametrize(
    "shown", [[], [""], ["b" * 31], ["b" * 33], ["B" * 32], ["ü" * 32], ["\udcff" * 32], [BILLING + "\0"]]
)
def test_what_is_no_token_is_none(access, shown):
    """A token is the whole of it and nothing else, whatever characters are shown."""
    assert access.token_of(shown) is None


def test_one_right_token_among_several_headers_is_enough(access):
    """An SDK that sends the platform's form of key and ours is let in; of two tokens of ours the first counts."""
    assert access.token_of(["a platform's key", SUPPORT]) == 1
    assert access.token_of([SUPPORT, BILLING]) == 1


def test_every_token_is_compared_whichever_it_is(access, monkeypatch):
    """The time that a comparison takes says nothing: as many constant-time comparisons for a right token as for a wrong one."""
    compared = []

    def compare(one, other):
        compared.append((len(one), len(other)))
        return hmac.compare_digest(one, other)

    monkeypatch.setattr(module, "hmac", SimpleNamespace(compare_digest=compare))
    for shown in (BILLING, SUPPORT, "x"):
        compared.clear()
        access.token_of([shown])
        assert compared == [(32, 32), (32, 32)]


def test_tokens_are_nowhere_to_be_seen(access):
    """Neither `repr` nor the object's inside holds a token."""
    assert repr(access) == "<Access 2 tokens, 2 uids with a rule>"
    assert BILLING not in repr(vars(access))


# Who is granted what


def test_a_token_grants_its_agents_and_destinations(access):
    """Over TCP the token's rule counts, and no uid's: not even root's own."""
    assert access.grant(Peer(0, -1, 0, token=0)) == Grant(("billing",), frozenset({"cloud"}))
    assert access.grant(Peer(1001, -1, 0, token=1)) == Grant()


@pytest.mark.parametrize("token", [2, 99, NO_TOKEN])
def test_who_shows_no_token_of_ours_may_do_nothing(access, token):
    """A peer over TCP whose token no rule covers is granted neither agents nor destinations."""
    grant = access.grant(Peer(0, -1, 0, token=token))
    assert not grant.allows_agent("billing")
    assert not grant.allows_agent("")
    assert not grant.allows_destination("cloud")


def test_without_tokens_nobody_over_tcp_may_do_anything():
    """The default lets everybody on the Unix socket do all, and nobody in over TCP."""
    access = Access()
    assert access.grant(LOCAL) == Grant()
    assert access.token_of([""]) is None
    assert not access.grant(Peer(0, -1, 0, token=0)).allows_agent("x")


def test_a_uid_with_a_rule_speaks_for_its_agents(access):
    """`[[security.peers]]` narrows a uid on the Unix socket, root too where it is listed; the others may do all."""
    assert access.grant(LOCAL) == Grant(("billing", "support-*"))
    assert access.grant(Peer(0, 0, 1)) == Grant(("ops",))
    assert access.grant(Peer(1002, 1002, 1)) == Grant()


# What a grant allows


@pytest.mark.parametrize(
    ("agents", "name", "right"),
    [
        (None, "anyone", True),
        (None, "", True),
        (("billing",), "billing", True),
        (("billing",), "Billing", False),
        (("billing",), "billing2", False),
        (("billing",), "", False),
        (("support-*",), "support-1", True),
        (("support-*",), "support", False),
        (("a", "b?"), "b1", True),
        (("*",), "", True),
        ((), "billing", False),
    ],
)
def test_agents_are_names_or_globs(agents, name, right):
    """An agent is allowed if a name or glob of the grant is its name, case and all."""
    assert Grant(agents).allows_agent(name) is right


def test_destinations_are_names():
    """None is all of them, a set is what is in it."""
    assert Grant().allows_destination("x")
    grant = Grant(None, frozenset({"cloud"}))
    assert grant.allows_destination("cloud")
    assert not grant.allows_destination("clou*")
    grant.check_destination("cloud")
    with pytest.raises(Forbidden, match=r"destination 'other' is not among those that you may use \(cloud\)"):
        grant.check_destination("other")


@pytest.mark.parametrize(
    ("agents", "named", "agent"),
    [
        (None, None, ""),
        (None, "x", "x"),
        (("billing",), None, "billing"),
        (("billing",), "", "billing"),
        (("billing",), "billing", "billing"),
        (("a", "b-*"), "b-1", "b-1"),
        (("*",), None, ""),
    ],
)
def test_an_unnamed_record_speaks_for_the_only_agent_there_is(agents, named, agent):
    """Who is bound to one agent, by name, need not name it; who may speak for all leaves the choice to the destination."""
    assert Grant(agents).agent_for(named) == agent


@pytest.mark.parametrize(
    ("agents", "named", "message"),
    [
        (("billing",), "support", r"'support' is not among the agents that you may speak for \(billing\)"),
        (("a", "b-*"), "c", r"\(a, b-\*\)"),
        (("a", "b"), None, r"required here, .*\(a, b\)"),
        (("b-*",), None, r"required here, .*\(b-\*\)"),
        ((), None, r"\(none\)"),
    ],
)
def test_whom_one_may_not_speak_for_is_refused_with_who_is_allowed(agents, named, message):
    """A foreign agent, and none where there are several, are refused, and the message names field and choice."""
    with pytest.raises(Forbidden, match=message) as caught:
        Grant(agents).agent_for(named)
    assert str(caught.value).startswith("$.agent_id: ")


def test_a_name_from_outside_is_cut_in_messages():
    """What a peer sends never makes a message of any length."""
    with pytest.raises(Forbidden) as caught:
        Grant(("a",)).agent_for("x" * 10_000)
    assert len(str(caught.value)) < 500
