"""Whose name a gate is asked in, and what of another's it may name: by whichever name, in whichever field, before or after."""

import asyncio
import json

import pytest
from gate_kit import ME, OTHER, ScriptedGate, ScriptedWay, late, opened, says, warped

from agentd.exchange import Reference, Request
from agentd.intake import GateRefusal, Grant
from agentd.queued import DEAD, Ref
from agentd.standin import Asked

TABLE = {"billing": "p-billing", "sales": "p-sales", "bot": "p-bot"}
NARROW = Grant(("billing",))
WIDE = Grant(("bot", "b*"))


def room_of(**more):
    return opened(default_agent="bot", agent_of=lambda name: TABLE.get(name or "bot", name), **more)


def naming(kind="run", *, optional=False):
    """A gate whose question names `x`."""
    gate = ScriptedGate()
    gate.needs = (Reference(kind, "x", optional),)
    return {"act": gate}


async def refused(asking):
    with pytest.raises(GateRefusal) as refusal:
        await asking
    return refusal.value.status, refusal.value.code


def asked_by(room):
    return json.loads(room.way.sent[-1][0].body)["agent"]


@pytest.mark.parametrize("grant", [NARROW, WIDE])
@pytest.mark.parametrize("named", ["sales", "p-sales"])
@warped
async def test_an_agent_named_in_the_request_needs_a_grant(grant, named):
    """§1: also where the default agent, which nobody named, would have been granted."""
    async with room_of() as room:
        assert await refused(room.ask(request={"agent_id": named}, grant=grant)) == (403, "forbidden")
        assert (room.way.sent, room.notes()) == ([], [])


@warped
async def test_an_agent_named_in_the_request_asks():
    """By its own name or the platform's for who asks anyway; what is made is that agent's."""
    async with room_of() as room:
        for grant, named, agent in (
            (Grant(), "sales", "p-sales"),
            (WIDE, "billing", "p-billing"),
            (NARROW, "p-billing", "p-billing"),
            (Grant(), "p-bot", "p-bot"),
            (Grant(), None, "p-bot"),
            (Grant(), 7, "p-bot"),
        ):
            heard = await room.ask(request={"agent_id": named}, grant=grant)
            assert asked_by(room) == agent
        assert room.ref((await room.ask(request={"agent_id": "sales"}))["id"]).agent == "sales"
        assert heard["proceed"]


class ReadsWhoAsked(ScriptedGate):
    """Keeps by which ids of agents its followed answers were to be read."""

    def __init__(self):
        super().__init__(poll_s=1.0)
        self.askers = []

    def rule_followed(self, question, answer, attempt):
        self.askers.append(attempt.agent_id)
        return super().rule_followed(question, answer, attempt)


@warped
async def test_a_followed_answer_is_read_knowing_who_asked():
    """By the platform's id of the agent, its own or the destination's: an answer about another agent's thing can be told."""
    gate = ReadsWhoAsked()
    for named, agent in (("sales", "p-sales"), (None, "p-bot")):
        async with room_of(gates={"act": gate}, way=ScriptedWay(says("pending", final=False), says())) as room:
            assert (await room.ask(request={"agent_id": named}, deadline=5))["proceed"]
        assert gate.askers.pop() == agent
    assert gate.askers == []


@warped
async def test_the_run_has_to_be_the_named_agents():
    """§2: neither word beats whose run it is."""
    async with room_of() as room:
        room.run(agent="billing")
        for more in ({"request": {"agent_id": "sales"}}, {"agent_id": "sales"}):
            assert await refused(room.ask(run_id="r", **more)) == (422, "foreign_reference")


@warped
async def test_a_hosted_agent_needs_a_grant():
    """The field names whom to run: a token runs what it may speak for, and asks in its own name."""
    async with room_of(gates={"act": ScriptedGate(asker_field="")}) as room:
        assert await refused(room.ask(request={"agent_id": "sales"}, grant=NARROW)) == (403, "forbidden")
        for grant, named in ((NARROW, "billing"), (NARROW, "p-billing"), (WIDE, "b-2"), (Grant(), "sales")):
            await room.ask(request={"agent_id": named}, grant=grant)
            assert asked_by(room) == ("p-billing" if grant is NARROW else "p-bot")


@pytest.mark.parametrize("name", ["x", "p-run"])
@pytest.mark.parametrize("place", ["beside", "in the request"])
@warped
async def test_anothers_run_is_refused_by_either_name(name, place):
    """§2: the platform's id is no way round whose run it is, nor is a field of the request."""
    gates = naming()
    gates["act"].needs = (Reference("run", name),) if place == "in the request" else ()
    async with room_of(gates=gates) as room:
        room.run("x", agent="billing", uid=OTHER.uid)
        room.named("x")
        more = {"run_id": name} if place == "beside" else {}
        assert await refused(room.ask(agent_id="billing", **more)) == (422, "foreign_reference")
        assert (await room.ask(agent_id="billing", peer=OTHER, **more))["proceed"]


@pytest.mark.parametrize(("kind", "optional"), [("run", True), ("action", False)])
@warped
async def test_a_parent_may_be_another_agents_and_no_other_users(kind, optional):
    """§2: what a question comes from is no speaking in its name."""
    async with room_of(gates=naming(kind, optional=optional)) as room:
        room.spool.refs.put(Ref("cloud", kind, "x", "sales", ME.uid, 1, "known", "p-x"))
        assert (await room.ask(agent_id="billing"))["proceed"]
        assert await refused(room.ask(agent_id="billing", peer=OTHER)) == (422, "foreign_reference")


@warped
async def test_a_run_that_another_begins_after_it_was_named_is_not_used():
    """A question waits for a run that nobody knows; it becomes somebody else's: nothing is sent."""
    async with room_of(gates=naming()) as room:
        asking = room.begin(agent_id="billing", deadline=10)
        await asyncio.sleep(1)
        room.run("x", agent="billing", uid=OTHER.uid)
        room.named("x")
        heard = await asking
        assert (heard["verdict"], heard["final"], room.way.sent) == ("unavailable", True, [])
        assert "belongs to another" in heard["reason"]


@warped
async def test_what_another_asked_is_no_answer():
    """A platform that knows repeats by the client's key answers with another's decision: unavailable, and none of its words."""
    async with room_of(open_mode=True) as room:
        first = await room.ask(agent_id="billing", peer=OTHER)
        assert (first["verdict"], first["platform_id"]) == ("allow", "p-1")
        heard = await room.ask(agent_id="billing", request={"action_id": "mine"})
        assert (heard["verdict"], heard["proceed"], heard["response"], heard["platform_id"]) == (
            "unavailable",
            False,
            None,
            None,
        )
        assert (room.ref("mine").state, room.ref("p-1").uid) == (DEAD, OTHER.uid)
        asked = Asked("billing", None, {})
        passed = await room.keeper.pass_on("cloud", "act", asked, Request("/own", b""), ME)
        assert (passed.answer.sent, b"p-1" in repr(passed.answer).encode()) == (True, False)


@warped
async def test_a_gate_is_shown_within_the_grant():
    """§5: one uid may hold several tokens, each for its agents and destinations."""
    ways = {"cloud": ScriptedWay(), "other": ScriptedWay(then=late(1, says(platform_id="p-2")))}
    async with opened(ways=ways, default_agent="bot") as room:
        ids = [(await room.ask(to="cloud", **agent))["gate_id"] for agent in ({"agent_id": "billing"}, {})]
        ids.append((await room.ask(to="other", agent_id="billing"))["gate_id"])
        for grant, shown in (
            (NARROW, {ids[0], ids[2]}),
            (Grant(("bot",)), {ids[1]}),
            (Grant(None, frozenset({"other"})), {ids[2]}),
            (Grant(), set(ids)),
        ):
            listed = await room.keeper.listing("all", 10, ME, admin=False, grant=grant)
            looked = [gate for gate in ids if await room.keeper.look(gate, 0, ME, admin=False, grant=grant)]
            assert {gate["gate_id"] for gate in listed} == set(looked) == shown


def two_platforms(**more):
    """A run is known at one, and the other is asked."""
    return room_of(ways={"cloud": ScriptedWay(), "obs": ScriptedWay()}, **more)


def run_at(room, destination, agent, uid=ME.uid):
    room.spool.refs.put(Ref(destination, "run", "r", agent, uid, 1, "known", "p-run"))


@warped
async def test_a_run_is_anothers_wherever_the_verdicts_event_would_go():
    """§2: not only where the question goes; and the agent whose it is has a name, also where it is the destination's own."""
    async with two_platforms() as room:
        run_at(room, "obs", "")
        with pytest.raises(GateRefusal, match=r"\$\.run_id: belongs to agent 'bot' at obs") as refusal:
            await room.ask(to="cloud", run_id="r", agent_id="billing")
        assert (refusal.value.code, room.way.sent, room.notes()) == ("foreign_reference", [], [])
        assert await refused(room.ask(to="cloud", run_id="r", peer=OTHER)) == (422, "foreign_reference")
        for agent in ({}, {"agent_id": "bot"}):
            assert (await room.ask(to="cloud", run_id="r", **agent))["proceed"]


@warped
async def test_whose_run_it_is_asks_wherever_it_is_known():
    """§2: a question without an agent is its run's, as a record without one is."""
    async with two_platforms() as room:
        run_at(room, "obs", "billing")
        await room.ask(to="cloud", run_id="r")
        assert asked_by(room) == "p-billing"


@pytest.mark.parametrize("named", [{}, {"agent_id": "billing"}])
@warped
async def test_whose_run_it_is_is_told_to_nobody_who_may_not_speak_for_its_agent(named):
    """A token that is bound to other agents hears what a stranger hears."""
    told = []
    for uid in (ME.uid, OTHER.uid):
        async with two_platforms() as room:
            run_at(room, "cloud", "sales", uid)
            with pytest.raises(GateRefusal) as refusal:
                await room.ask(to="cloud", run_id="r", grant=NARROW, **named)
            told.append((refusal.value.status, refusal.value.code, str(refusal.value)))
    assert told == [(422, "foreign_reference", "$.run_id: belongs to another user")] * 2


@warped
async def test_a_run_that_bears_the_same_name_where_no_event_goes_is_of_no_concern():
    """Two platforms may know different things by one name."""
    async with two_platforms(takes_events=lambda _agent: False) as room:
        run_at(room, "obs", "sales")
        for agent in ({}, {"agent_id": "billing"}):
            assert (await room.ask(to="cloud", run_id="r", **agent))["proceed"]
