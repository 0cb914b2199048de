"""When the circuit keeps the desk's questions back, and who may go on behind it."""

import asyncio
import itertools

from gate_kit import DOWN, HANGS, GuardedGate, ScriptedGate, ScriptedWay, elapse, late, opened, says, warped

from agentd.exchange import Reference, Response

BROKEN = Response(503, {}, b'{"word": "unavailable", "id": null}')
ERROR = Response(500, {}, b'{"word": "unavailable", "id": null}')


@warped
async def test_a_circuit_opens_and_closes():
    """Five without an answer in a row: nothing is sent until a probe goes out; the first answer closes it."""
    async with opened(way=ScriptedWay(then=DOWN), open_mode=True) as room:
        for _ in range(5):
            await room.ask()
        heard = await room.ask()
        assert (heard["proceed"], heard["reason"][:12], len(room.way.sent)) == (True, "circuit open", 5)
        assert room.keeper.status("cloud")["circuit"] == "open"
        room.way.then = says("unavailable", 401, None)  # it is there again, and doesn't like our key
        await elapse(10)
        assert (await room.ask())["proceed"] is False
        assert room.keeper.status("cloud")["circuit"] == "closed"


@warped
async def test_agents_in_a_hurry_do_not_open_the_circuit_for_others():
    """An answer that was given less time than the gate's own deadline says nothing of the platform."""
    async with opened(way=ScriptedWay(then=late(1, says()))) as room:
        for _ in range(8):
            assert (await room.ask(deadline=0.5))["verdict"] == "unavailable"
        assert (await room.ask())["verdict"] == "allow"


@warped
async def test_a_platform_that_hangs_opens_the_circuit():
    """Five answers that did not come within the default deadline; what recording took of it makes nobody hurried."""
    async with opened(gates={"act": ScriptedGate(), "other": GuardedGate()}, way=ScriptedWay(then=HANGS)) as room:
        loop, hairs = asyncio.get_running_loop(), itertools.count()
        room.keeper._common.clock = lambda: loop.time() + next(hairs) * 1e-6
        for _ in range(5):
            assert room.keeper.status("cloud")["circuit"] == "closed"
            await room.ask("act")
        assert room.keeper.status("cloud")["circuit"] == "open"


@warped
async def test_a_gate_that_spent_its_deadline_waiting_is_in_a_hurry():
    """What is left when its run is known says nothing of the platform."""
    gate = ScriptedGate()
    gate.needs = (Reference("run", "r"),)
    async with opened(gates={"act": gate}, way=ScriptedWay(then=HANGS)) as room:
        for _ in range(6):
            room.run()
            asking = room.begin(run_id="r")
            await elapse(4)
            room.named()
            assert (await asking)["verdict"] == "unavailable"
        assert room.keeper.status("cloud")["circuit"] == "closed"


@warped
async def test_an_unreadable_kill_switch_withholds_behind_its_circuit_too():
    """§4: never for a kill switch: asks 1 to 5 don't proceed, and neither does the one that finds the circuit open."""
    async with opened(gates={"act": GuardedGate()}, way=ScriptedWay(then=BROKEN), open_mode=True) as room:
        heard = [await room.ask() for _ in range(7)]
        assert [h["proceed"] for h in heard] == [False] * 7
        assert (heard[-1]["reason"][:12], len(room.way.sent)) == ("circuit open", 5)
        room.way.then = DOWN
        await elapse(60)
        assert (await room.ask())["proceed"]  # a probe that finds nobody is no connection
        assert not (await room.ask())["proceed"]


@warped
async def test_a_long_poll_is_no_lasting_probe():
    """Who waits for a person after an outage does not keep everybody else away from a platform that is well."""
    gates = {"act": ScriptedGate(), "ask": ScriptedGate(deadline_s=3600.0, answer_s=285.0, poll_s=1.0)}
    async with opened(gates=gates, way=ScriptedWay(then=ERROR)) as room:
        for _ in range(5):
            await room.ask("act")
        await elapse(60)
        room.way.script, room.way.then = [late(200, says())], says()
        polling = room.begin("ask")
        await elapse(1)
        assert "circuit open" in (await room.ask("act"))["reason"]
        await elapse(5)
        assert (await room.ask("act"))["verdict"] == "allow"
        assert room.keeper.status("cloud")["circuit"] == "closed"
        assert (await polling)["verdict"] == "allow"
