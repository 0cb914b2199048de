"""Gates over a reload: what is under way stays answerable, whatever becomes of its destination in the configuration."""

import asyncio

from gate_kit import HANGS, ME, PlainPlatform, ScriptedGate, ScriptedWay, elapse, late, opened, says, warped

from agentd.delivery.backoff import Backoff
from agentd.gate.breaker import Breaker
from agentd.gate.desk import Desk
from agentd.intake import GateRefusal
from agentd.intake.admit import Limits

PENDING = says("pending", final=False)
FOLLOWED = {"act": ScriptedGate(poll_s=2.0)}


def desk(room, way=None, key="secret", identity="scripted", **more):
    breaker = Breaker(Backoff(1.0, 60.0))
    return Desk("cloud", PlainPlatform(), room.gates, way or room.way, breaker, key, identity=identity, **more)


def follow(room, *desks, follow_s=86_400.0):
    room.keeper.follow(desks, Limits(2**20, 64), {0}, reference_wait_s=2.0, remember_s=86_400.0, follow_s=follow_s)


async def refused(room):
    try:
        await room.ask()
    except GateRefusal as refusal:
        return refusal.status, str(refusal)
    raise AssertionError("it was taken")


@warped
async def test_what_is_followed_goes_on_under_the_new_key():
    """A pending gate whose key is rotated: the next look at it goes with the new key, over the new way."""
    async with opened(gates=FOLLOWED, way=ScriptedWay(then=PENDING)) as room:
        heard = await room.ask(deadline=5)
        assert heard["verdict"] == "pending"
        fresh = ScriptedWay(then=says())
        follow(room, desk(room, fresh, key="fresh"))
        found = await room.look(heard["gate_id"], 100)
        assert found["verdict"] == "allow"
        assert [headers["authorization"] for _, headers, _ in fresh.sent] == ["fresh"]


@warped
async def test_gates_at_a_removed_destination_stay_answerable():
    """No new question goes there; who waits, or asks for the gate by its id, hears what the platform says."""
    async with opened(gates=FOLLOWED, way=ScriptedWay(late(3, PENDING), PENDING, late(2, says()))) as room:
        asking = room.begin(deadline=60)
        await elapse(1)
        follow(room)
        assert "no destination has a gate" in (await refused(room))[1]
        heard = await asking
        assert (heard["verdict"], heard["final"]) == ("allow", True)
        assert (await room.look(heard["gate_id"]))["verdict"] == "allow"
        assert room.keeper.desks == {}


@warped
async def test_a_destination_that_is_back_has_its_gates_again():
    """Removed and put back under the same name and identity: the desk is the one that its gates have, with the key of now."""
    async with opened(gates=FOLLOWED, way=ScriptedWay(then=PENDING)) as room:
        heard = await room.ask(deadline=5)
        before = room.keeper.desks["cloud"]
        follow(room)
        fresh = ScriptedWay(then=says())
        follow(room, desk(room, fresh, key="fresh"))
        assert room.keeper.desks["cloud"] is before
        assert before.counts["act", "pending"] == 1
        assert (await room.look(heard["gate_id"], 100))["verdict"] == "allow"


@warped
async def test_what_a_start_found_homeless_is_followed_when_its_destination_comes():
    """Pending at a destination that was not configured at the start: a reload that brings it back follows the gate on."""
    async with opened(gates=FOLLOWED, way=ScriptedWay(then=PENDING)) as room:
        heard = await room.ask(deadline=5)
        await room.kill()
        ways, room.ways = room.ways, {}
        await room.open()
        assert (await room.look(heard["gate_id"], 10))["verdict"] == "pending"
        room.ways = ways
        follow(room, desk(room, ScriptedWay(then=says())))
        assert (await room.look(heard["gate_id"], 100))["verdict"] == "allow"


@warped
async def test_another_account_under_the_name_answers_nothing_of_the_old_one():
    """The same name at another platform or account: new questions go there, what is under way stays with the old desk."""
    old = ScriptedWay(PENDING, then=late(5, says("deny")))
    async with opened(gates=FOLLOWED, way=old) as room:
        heard = await room.ask(deadline=1)
        new = ScriptedWay(then=says("review"))
        follow(room, desk(room, new, identity="another"))
        assert (await room.ask())["verdict"] == "review"
        assert (await room.look(heard["gate_id"], 100))["verdict"] == "deny"
        assert new.paths == ["/act"]


@warped
async def test_a_shorter_follow_counts_for_what_is_pending():
    """gate.follow is looked at as it is now."""
    async with opened(gates=FOLLOWED, way=ScriptedWay(then=PENDING)) as room:
        heard = await room.ask(deadline=5)
        follow(room, desk(room), follow_s=30.0)
        await elapse(120)
        found = await room.look(heard["gate_id"])
        assert (found["verdict"], found["final"]) == ("unavailable", True)


@warped
async def test_an_open_circuit_stays_open_over_a_reload():
    """What was learned of the platform is not forgotten for another timeout or key."""
    async with opened(way=ScriptedWay(then=HANGS)) as room:
        for _ in range(5):
            await room.ask()
        assert room.keeper.status("cloud")["circuit"] == "open"
        follow(room, desk(room, key="fresh", open_mode=True))
        assert room.keeper.status("cloud")["circuit"] == "open"
        heard = await room.ask(peer=ME)
        assert (heard["verdict"], heard["proceed"]) == ("unavailable", True)  # fail_mode = "open" is in force now
        await asyncio.sleep(0)
