"""Agents that go before the platform has said anything: at their deadline, and when agentd stops."""

import asyncio

import pytest
from gate_kit import HANGS, ME, ScriptedGate, ScriptedWay, elapse, late, opened, says, warped

from agentd.exchange import Request
from agentd.intake import GateRefusal
from agentd.queued import DEAD, KNOWN
from agentd.standin import Asked

PENDING = says("pending", final=False)
FOLLOWED = {"act": ScriptedGate(poll_s=2.0)}
# As AgentOS asks people: the first answer takes minutes, and need not be the last
PATIENT = {"act": ScriptedGate(deadline_s=3600.0, answer_s=285.0, poll_s=1.0, poll_timeout_s=285.0)}


def now():
    return asyncio.get_running_loop().time()


# -- at the deadline -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [late(270, PENDING), late(270, says())])
@warped
async def test_a_long_poll_outlives_the_deadline(first):
    """§4: the agent hears `pending` at its deadline; what the platform says later is recorded, and followed."""
    async with opened(gates=PATIENT, way=ScriptedWay(first, late(30, says()))) as room:
        begun = now()
        heard = await room.ask(deadline=10, run_id="theirs", request={"action_id": "mine"})
        assert (heard["verdict"], heard["proceed"], heard["final"], now() - begun) == ("pending", False, False, 10)
        assert (room.row(heard["gate_id"]).step, room.ref("mine").state) == ("sending", "introduced")
        found = await room.look(heard["gate_id"], 400)
        assert (found["verdict"], found["proceed"], found["final"]) == ("allow", True, True)
        assert (room.way.paths.count("/act"), room.way.sent[0][2], room.ref("mine").state) == (1, 285.0, KNOWN)
        assert [payload["verdict"] for _, payload in room.events] == ["pending", "allow"]
        assert room.notes(heard["gate_id"])[-1] == ("delivered", "allow")


@warped
async def test_who_asks_again_shares_the_long_poll():
    """§4: the same key hears `pending` too, or the answer if it comes."""
    async with opened(gates=PATIENT, way=ScriptedWay(late(200, says()))) as room:
        first = await room.ask(key="k", deadline=10)
        again = await room.ask(key="k", deadline=10)
        assert (again["verdict"], again["repeated"], again["gate_id"]) == ("pending", True, first["gate_id"])
        assert (await room.ask(key="k", deadline=300))["verdict"] == "allow"
        assert room.way.paths == ["/act"]


@warped
async def test_a_long_poll_that_nobody_answers_is_lost_in_the_end():
    """After as long as the platform may take nobody knows what became of it: unavailable, and it may have acted."""
    async with opened(gates=PATIENT, way=ScriptedWay(HANGS)) as room:
        begun = now()
        heard = await room.ask()
        assert (heard["verdict"], heard["final"], now() - begun) == ("unavailable", True, 285)
        assert (await room.look(heard["gate_id"]))["acted"]


@warped
async def test_agents_in_a_hurry_that_wait_for_a_person_do_not_hide_a_dead_platform():
    """Five long polls that bring nothing open the circuit, however short their deadlines were."""
    async with opened(gates=PATIENT, way=ScriptedWay(then=HANGS)) as room:
        for _ in range(5):
            assert (await room.ask(deadline=1))["verdict"] == "pending"
        await elapse(300)
        assert room.keeper.status("cloud")["circuit"] == "open"


@warped
async def test_a_crash_during_a_long_poll_is_a_lost_answer():
    """What the platform would have called it is not known: unavailable, under its key for good."""
    async with opened(gates=PATIENT, way=ScriptedWay(HANGS)) as room:
        gate_id = (await room.ask(key="k", deadline=10))["gate_id"]
        await room.crash()
        again = await room.ask(key="k")
        assert (again["verdict"], again["final"], again["gate_id"]) == ("unavailable", True, gate_id)
        assert "may have acted" in again["reason"]
        assert (room.way.paths, room.ref(gate_id).state) == (["/act"], DEAD)


@warped
async def test_a_question_under_way_is_not_resolved_by_a_person():
    """The platform's answer is still to come."""
    async with opened(gates=PATIENT, way=ScriptedWay(late(200, says()))) as room:
        gate_id = (await room.ask(deadline=10))["gate_id"]
        with pytest.raises(GateRefusal, match="under way"):
            await room.resolve(gate_id, "allow")


@warped
async def test_an_sdk_that_asks_people_has_its_own_time_limit():
    """What waits for it is the SDK: at the end of its time the answer is lost, and says so."""
    async with opened(gates=PATIENT, way=ScriptedWay(HANGS)) as room:
        begun = now()
        own = Request("/own", b"")
        passed = await room.keeper.pass_on("cloud", "act", Asked("", None, {}), own, ME, deadline_s=20)
        assert (passed.answer.sent, passed.verdict["verdict"], now() - begun) == (True, "unavailable", 20)


# -- when agentd stops -----------------------------------------------------------------------------------------------------


@warped
async def test_who_waits_for_what_is_pending_hears_so_when_agentd_stops():
    """§3.7: it is on disk and the next start follows it; nothing is waited for, by askers, lookers and who comes later."""
    async with opened(gates=FOLLOWED, way=ScriptedWay(then=PENDING)) as room:
        asking = room.begin(deadline=3600, key="k", run_id="theirs")
        await elapse(5)
        (gate,) = await room.keeper.listing("open", 10, ME, admin=False)
        looking = asyncio.create_task(room.look(gate["gate_id"], 3600))
        await elapse(5)
        begun = now()
        room.keeper.drain()
        heard, seen = await asking, await looking
        assert (heard["verdict"], heard["proceed"], heard["final"], seen["verdict"]) == (
            "pending",
            False,
            False,
            "pending",
        )
        assert (await room.look(gate["gate_id"], 3600))["verdict"] == "pending"
        assert (now() - begun, room.keeper.under_way) == (0, 0)
        assert [payload["verdict"] for _, payload in room.events] == ["pending"]
        await room.keeper.close()
        room.way.then = says()
        await room.crash()
        assert (await room.look(gate["gate_id"], 60))["verdict"] == "allow"


@warped
async def test_a_question_under_way_is_waited_for_when_agentd_stops():
    """§3.7: by the agent or for the record alone; what is pending then is answered at once."""
    script = ScriptedWay(late(5, PENDING), late(7, says()), then=PENDING)
    async with opened(gates=FOLLOWED, way=script) as room:
        staying, leaving = room.begin(deadline=600), room.begin(deadline=600)
        await elapse(1)
        leaving.cancel()
        room.keeper.drain()
        assert room.keeper.under_way == 2
        begun = now()
        assert (await staying)["verdict"] == "pending"
        assert (now() - begun, room.keeper.under_way) == (4, 1)
        await elapse(2.1)
        assert room.keeper.under_way == 0
        (gate,) = await room.keeper.listing("final", 10, ME, admin=False)
        assert gate["verdict"] == "allow"


@pytest.mark.parametrize(("full", "final"), [(0, True), (10**6, False)])
@warped
async def test_what_was_cut_off_is_final_when_it_is_on_disk(full, final):
    """§4, on the record: who waits hears a last word that a crash can't take back, or that there is none; and not too late."""
    async with opened(way=ScriptedWay(then=HANGS)) as room:
        heard = []

        async def asking():
            verdict = await room.ask(deadline=60, run_id="theirs")
            heard.append((verdict["verdict"], verdict["final"], room.row(verdict["gate_id"]).step == "final"))

        askers = [asyncio.create_task(asking()) for _ in range(20)]
        await elapse(1)
        room.store.full = full
        begun = now()
        await room.keeper.close()
        await asyncio.gather(*askers)
        assert heard == [("unavailable", final, final)] * 20
        assert (len(room.events), now() - begun <= 2) == (20 * final, True)


@warped
async def test_a_verdict_that_finds_no_room_is_not_waited_for_when_agentd_stops():
    """A full disk does not hold up the end."""
    async with opened(way=ScriptedWay(late(1, says()))) as room:
        asking = room.begin()
        await elapse(0.5)
        room.store.full = 10**6
        await asking
        room.keeper.drain()
        assert room.keeper.under_way == 0
