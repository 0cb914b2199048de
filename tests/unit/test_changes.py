"""What a new configuration changes: a plan, or the reasons why there is none."""

from __future__ import annotations

import json
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.changes import FOLLOWS, Kept, Plan, Setup, as_document, changes
from agentd.errors import ConfigError
from agentd.proxies import Proxy
from agentd.reach import Reach
from agentd.sections import (
    Batch,
    Config,
    Destination,
    Duration,
    Listen,
    Log,
    Runs,
    Secret,
    Security,
    SpoolConfig,
    TokenRule,
)

A, B = Destination("agentos", "https://a.example"), Destination("agentos", "https://b.example")


def setup(sections=None, tokens=(), keys=None, **destinations):
    """A setup whose destinations have the key `k`, but for those that `keys` names."""
    config = Config(destinations=destinations, **(sections or {}))
    sites = {
        name: SimpleNamespace(
            destination=one, identity=f"{one.base_url} {one.agents}", api_key=(keys or {}).get(name, "k"),
            signing_secret=None, reach=None,
        )
        for name, one in destinations.items()
    }  # fmt: skip
    return Setup(config, sites, tokens)


def with_(destination, **fields):
    return msgspec.structs.replace(destination, **fields)


def kept(records=0, of=A):
    return Kept(f"{of.base_url} {of.agents}", records)


def refusal(old, new, queues=None):
    with pytest.raises(ConfigError) as caught:
        changes(old, new, queues or {})
    return str(caught.value)


def test_the_same_changes_nothing():
    """Whoever has nothing new said of him is not disturbed."""
    plan = changes(setup(a=A), setup(a=A), {"a": kept(5)})
    assert not plan
    assert str(plan) == "nothing changed"


def test_destinations_come_and_go():
    """What is added and removed is named, with what its queue has kept."""
    plan = changes(setup(a=A), setup(b=B), {"a": kept(3), "b": kept(2, B)})
    assert (plan.added, plan.removed, plan.changed) == ({"b": 2}, {"a": 3}, {})
    assert str(plan) == "b added with 2 records kept; a removed, 3 records kept"


@pytest.mark.parametrize(
    ("fields", "keys"),
    [
        ({"max_in_flight": 2}, ("max_in_flight",)),
        ({"timeout": Duration(3), "fail_mode": "open"}, ("timeout", "fail_mode")),
        ({"batch": Batch(max_events=7)}, ("batch",)),
        ({"api_key": Secret(env="OTHER")}, ("api_key",)),
        ({"options": {"x": "y"}}, ("options",)),
    ],
)
def test_a_changed_destination_says_which_keys(fields, keys):
    """Only the destination whose section is another is changed, and the answer says in what."""
    plan = changes(setup(a=A, b=B), setup(a=with_(A, **fields), b=B), {"a": kept(9), "b": kept(9, B)})
    assert plan.changed == {"a": keys}


def test_a_rotated_key_is_a_change_wherever_it_lies():
    """The place of a key is the same, its content another: that is what rotation is. No secret is in the plan."""
    plan = changes(setup(a=A), setup(a=A, keys={"a": "hunter2"}), {"a": kept(9)})
    assert plan.changed == {"a": ("api_key",)}
    assert "hunter2" not in repr((plan, setup(a=A, keys={"a": "hunter2"})))


def test_a_proxy_that_is_another_in_the_same_place_is_a_change():
    """A rotated password, or another variable: the words of the configuration are the same, the way out is not."""
    old, new = setup(a=A), setup(a=A)
    old.sites["a"].reach = Reach(A.base_url, proxy=Proxy("http://p:1", "proxy", "Basic b25l"))
    new.sites["a"].reach = Reach(A.base_url, proxy=Proxy("http://p:1", "proxy", "Basic dHdv"))
    assert changes(old, new, {}).changed == {"a": ("proxy",)}
    assert not changes(old, old, {})


def test_common_batch_limits_change_those_that_have_none_of_their_own():
    """[batch] is for whoever has no section of his own."""
    own = with_(B, batch=Batch(max_events=9))
    new = setup({"batch": Batch(max_events=3)}, a=A, b=own)
    plan = changes(setup(a=A, b=own), new, {})
    assert (plan.changed, plan.settings, plan.is_common) == ({"a": ("batch",)}, ("batch.max_events",), True)


def test_what_can_not_follow_is_refused_by_its_name():
    """A socket, a state folder, a way of syncing: nothing is changed, and all of them are named."""
    old = setup(a=A)
    new = setup({"listen": Listen(socket="/x"), "spool": SpoolConfig(sync="normal"), "log": Log("debug")}, a=A, b=B)
    assert refusal(old, new) == "not reloaded: [listen] socket needs a restart; [spool] sync needs a restart"


def test_every_key_that_nobody_has_thought_of_needs_a_restart():
    """What follows is a list; everything else is refused rather than ignored."""
    sections = {key.partition(".")[0] for key in FOLLOWS}
    assert sections <= set(Config.__struct_fields__)
    for key in FOLLOWS:
        section, _, name = key.partition(".")
        assert not name or name in getattr(Config(), section).__struct_fields__


@pytest.mark.parametrize("fields", [{"base_url": "https://c.example"}, {"agents": {"x": "y"}}])
def test_a_moved_destination_with_records_is_refused_with_the_way_out(fields):
    """Its records were taken for another platform or account: the reason says how many, and what can be done."""
    text = refusal(setup(a=A), setup(a=with_(A, **fields)), {"a": kept(4)})
    assert "[destinations.a] platform, base_url or agents changed while 4 records wait" in text
    assert "agentd queue drop a" in text


def test_a_moved_destination_without_records_is_another_one():
    """Where nothing waits the queue changes hands."""
    plan = changes(setup(a=A), setup(a=with_(A, base_url="https://c.example")), {"a": kept(0)})
    assert (plan.changed, plan.moved) == ({"a": ("base_url",)}, ("a",))


def test_one_that_comes_back_as_another_is_refused_while_its_old_records_wait():
    """A removed destination's queue belongs to what it was: the same name somewhere else gets nothing of it."""
    assert "taken for https://a.example" in refusal(
        setup(b=B), setup(b=B, a=with_(A, base_url="https://c.example")), {"a": kept(1)}
    )


def test_rotated_tokens_are_a_change():
    """Local tokens are read again as well."""
    security = {"security": Security(tokens=[TokenRule(Secret(env="T"))])}
    plan = changes(setup(security, ["t" * 16], a=A), setup(security, ["u" * 16], a=A), {})
    assert plan.settings == ("security.tokens",)
    assert "uuuu" not in repr(setup(security, ["u" * 16], a=A))


def test_a_plan_as_a_document():
    """What the endpoint answers."""
    document = as_document(Plan({"a": 1}, {"b": 0}, {"c": ("timeout",)}, (), ("log.level",)))
    assert json.loads(json.dumps(document)) == {
        "added": {"a": 1}, "removed": {"b": 0}, "changed": {"c": ["timeout"]}, "moved": [], "settings": ["log.level"],
    }  # fmt: skip


_destinations = st.dictionaries(
    st.sampled_from("abcd"),
    st.builds(
        Destination, st.just("agentos"), st.sampled_from(["https://a.example", "https://b.example"]),
        max_in_flight=st.integers(1, 3), timeout=st.sampled_from([Duration(1), Duration(2)]),
    ),
)  # fmt: skip


@given(
    _destinations, _destinations, st.dictionaries(st.sampled_from("abcd"), st.integers(0, 2)), st.sampled_from([1, 2])
)
def test_a_plan_is_complete_or_there_is_none(before, after, queued, keep):
    """Each destination is in just one of unchanged, changed, added and removed; with records it never changes hands."""
    new = {"runs": Runs(keep=Duration(keep))}
    queues = {name: kept(queued.get(name, 0), one) for name, one in before.items()}
    moved = {name for name, one in after.items() if name in before and one.base_url != before[name].base_url}
    try:
        plan = changes(setup({"runs": Runs(keep=Duration(1))}, **before), setup(new, **after), queues)
    except ConfigError:
        assert any(queued.get(name) for name in moved)
        return
    assert not any(queued.get(name) for name in moved)
    assert set(plan.moved) == moved <= set(plan.changed)
    assert set(plan.added) == set(after) - set(before)
    assert set(plan.removed) == set(before) - set(after)
    assert set(plan.changed) == {name for name in set(before) & set(after) if before[name] != after[name]}
    assert plan.settings == (("runs.keep",) if keep != 1 else ())
