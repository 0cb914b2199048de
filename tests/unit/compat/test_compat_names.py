"""Local ids as the platform knows them, and whether they are the caller's to name."""

from __future__ import annotations

import asyncio
import json

import msgspec
import pytest
from msgspec import Raw

from agentd.compat.names import Agents, Asker, Names, Refused, body_of, locals_of
from agentd.intake import Grant, Peer
from agentd.queued import DEAD, KNOWN, Ref
from agentd.standin import Called, Does, Door, Why

DOOR = Door("POST", "/x/{run_id}", Does.READ)
KINDS = {"run_id": "run", "parent": "run", "agent_id": "agent"}


class Refs:
    """References as the spool has them, and who waits for one."""

    def __init__(self):
        self.known = {}
        self.changed = asyncio.Event()
        self.waits = asyncio.Event()

    def add(self, local_id, platform_id=None, *, uid=1000, agent="billing", state=None):
        state = state or (KNOWN if platform_id else "introduced")
        self.known["run", local_id] = Ref("dest", "run", local_id, agent, uid, 1, state, platform_id)
        self.changed.set()

    def get(self, destination, kind, local_id):
        assert destination == "dest"
        return self.known.get((kind, local_id))

    def named(self, destination, kind, platform_id):
        assert destination == "dest"
        return [ref for (of, _), ref in self.known.items() if (of, ref.platform_id) == (kind, platform_id)]

    async def wait_for_names(self):
        self.changed.clear()
        self.waits.set()
        await self.changed.wait()


@pytest.fixture
def refs():
    return Refs()


@pytest.fixture
def names(refs):
    table = {"billing": "p-billing"}
    agents = Agents(lambda local: table.get(local, local), "billing", locals_of(table))
    return Names("dest", KINDS, refs, refs.wait_for_names, agents)


def asker(*, uid=1000, agents=None, trusted=False):
    return Asker(Peer(uid, uid, 1), Grant(agents), trusted)


def call(run_id="r", query=(), body=b"{}"):
    members = msgspec.json.decode(body, type=dict[str, Raw])
    return Called(DOOR, {"run_id": run_id}, list(query), {}, body, members, 0)


async def test_local_ids_are_replaced_wherever_they_stand(names, refs):
    """In the path, the query and the body; all else stays as it was written."""
    refs.add("r", "P-1")
    refs.add("q", "P-2")
    body = b'{"parent": "q", "note": {"b":1,  "a":[2]}, "agent_id": "billing"}'
    got = await names.translate(call("r", [("run_id", "q"), ("x", "r")], body), asker(), 0)
    assert (got.segments, got.query) == ({"run_id": "P-1"}, [("run_id", "P-2"), ("x", "r")])
    assert body_of(got) == b'{"parent":"P-2","note":{"b":1,  "a":[2]},"agent_id":"p-billing"}'


async def test_unknown_ids_are_the_platforms_own(names):
    """What agentd has never heard of passes as it is."""
    got = await names.translate(call("p-77", body=b'{"parent":"p-78"}'), asker(), 0)
    assert (got.segments["run_id"], json.loads(body_of(got))) == ("p-77", {"parent": "p-78"})


@pytest.mark.parametrize("who", [asker(uid=1001), asker(agents=("sales",)), asker(agents=("b?",))])
async def test_anothers_id_is_not_found(names, refs, who):
    """Another user's run and another agent's are as if they did not exist."""
    refs.add("r", "P-1")
    for called in (call("r"), call("x", body=b'{"parent":"r"}'), call("x", [("run_id", "r")])):
        with pytest.raises(Refused, match="there is no run 'r'") as refused:
            await names.translate(called, who, 0)
        assert refused.value.why is Why.NOT_FOUND


@pytest.mark.parametrize("who", [asker(uid=0, trusted=True), asker(agents=("bill*",)), asker(agents=("billing",))])
async def test_those_who_may_name_it_do(names, refs, who):
    """An admin's reach and a grant that covers the agent."""
    refs.add("r", "P-1")
    assert (await names.translate(call("r"), who, 0)).segments["run_id"] == "P-1"


async def test_a_run_of_the_destinations_own_agent_is_that_agents(names, refs):
    """A run that was begun without naming an agent belongs to the destination's default."""
    refs.add("r", "P-1", agent="")
    assert (await names.translate(call("r"), asker(agents=("billing",)), 0)).segments["run_id"] == "P-1"
    with pytest.raises(Refused):
        await names.translate(call("r"), asker(agents=("sales",)), 0)


async def test_an_agent_has_to_be_ones_own(names):
    """The agent that a call names is one that the caller may speak for."""
    with pytest.raises(Refused, match="agent_id: 'billing' is not among your agents") as refused:
        await names.translate(call(body=b'{"agent_id":"billing"}'), asker(agents=("sales",)), 0)
    assert refused.value.why is Why.FORBIDDEN


async def test_an_agent_may_be_named_by_the_platforms_id(names):
    """An SDK that is set up for the platform has that one: it is the same agent, with the same rights."""
    body = b'{"agent_id":"p-billing"}'
    assert body_of(await names.translate(call(body=body), asker(agents=("billing",)), 0)) == body
    with pytest.raises(Refused, match="agent_id: 'billing' is not among your agents"):
        await names.translate(call(body=body), asker(agents=("sales",)), 0)


@pytest.mark.parametrize(
    ("table", "found"),
    [
        (None, {}),
        ({"a": "P"}, {"P": "a"}),
        ({"a": "P", "b": "P"}, {}),
        ({"a": "b", "b": "c"}, {"c": "b"}),
        ({"a*": "P", "b": "Q"}, {"Q": "b"}),
    ],
)
def test_an_id_that_says_not_which_agent_stays_an_id(table, found):
    """Two agents of one id, a glob, and an id that is another agent's name tell nothing."""
    assert locals_of(table) == found


@pytest.mark.parametrize("who", [asker(uid=1001), asker(agents=("sales",))])
async def test_anothers_run_is_not_found_under_the_platforms_id_either(names, refs, who):
    """Whoever has learned it from a list of runs gets no further."""
    refs.add("r", "P-1")
    for called in (call("P-1"), call("x", body=b'{"parent":"P-1"}')):
        with pytest.raises(Refused, match="there is no run 'P-1'"):
            await names.translate(called, who, 0)
    assert (await names.translate(call("P-1"), asker(), 0)).segments["run_id"] == "P-1"


async def test_of_two_who_began_one_run_each_may_name_it(names, refs):
    """Two agents with one external id: the platform made one run of it."""
    refs.add("r", "P-1", agent="sales")
    refs.add("q", "P-1")
    assert (await names.translate(call("P-1"), asker(agents=("billing",)), 0)).segments["run_id"] == "P-1"


async def test_an_id_is_waited_for_until_the_platform_names_it(names, refs):
    """A run whose start is on its way."""
    refs.add("r")
    task = asyncio.create_task(names.translate(call("r"), asker(), 30))
    await refs.waits.wait()
    refs.add("r", "P-1")
    assert (await task).segments["run_id"] == "P-1"


async def test_an_id_that_dies_meanwhile_is_not_found(names, refs):
    """Its start was refused for good while somebody waited."""
    refs.add("r")
    task = asyncio.create_task(names.translate(call("r"), asker(), 30))
    await refs.waits.wait()
    refs.add("r", state=DEAD)
    with pytest.raises(Refused, match="was not taken by the platform"):
        await task


@pytest.mark.parametrize("late", [Why.NOT_FOUND, Why.UNREACHABLE])
async def test_the_wait_has_an_end(names, refs, late):
    """With the platform down it says what is missing, in the word that the caller of `translate` wants."""
    refs.add("r")
    with pytest.raises(Refused, match="run 'r' is not delivered to the platform yet") as refused:
        await names.translate(call("r"), asker(), 0, late)
    assert refused.value.why is late


async def test_of_two_members_of_one_name_one_goes_out(names, refs):
    """Nobody reads another id than the one that was looked at."""
    refs.add("r", "P-1")
    got = await names.translate(call("r", body=b'{"parent":"stranger","parent":"r"}'), asker(), 0)
    assert body_of(got) == b'{"parent":"P-1"}'


async def test_no_body_stays_none(names):
    """A GET goes out without one."""
    assert body_of(await names.translate(Called(DOOR, {"run_id": "x"}, [], {}, b"", {}, 0), asker(), 0)) == b""


async def test_a_member_that_is_no_text_is_the_platforms_to_refuse(names):
    """A number where an id should be."""
    assert body_of(await names.translate(call(body=b'{"parent":7}'), asker(), 0)) == b'{"parent":7}'
