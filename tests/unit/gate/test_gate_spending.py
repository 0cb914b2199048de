"""A destination's rate: gates count against it, and nothing keeps them back."""

from gate_kit import GuardedGate, ScriptedWay, elapse, opened, says, warped

from agentd.delivery.throttle import Throttle


@warped
async def test_a_gate_is_charged_and_never_held_back():
    """A hundred questions at once against a limit of one a minute: all are asked at once, and records wait for what they took."""
    async with opened(way=ScriptedWay(then=says())) as room:
        throttle = Throttle(1, 1 / 60, room.keeper._common.clock)
        room.keeper.desks["cloud"].spend = throttle.charge
        begun = room.keeper._common.clock()
        for _ in range(100):
            assert (await room.ask())["verdict"] == "allow"
        now = room.keeper._common.clock()
        assert len(room.way.sent) == 100
        assert now - begun < 1
        first = throttle.begin()
        first.asked = True
        assert throttle.ready_at(now) - now > 100
        assert throttle.ready_at(now) - now <= 4 * 60  # and they have their share all the same


@warped
async def test_every_request_of_a_gate_is_charged():
    """Reading the kill switch is a request too."""
    async with opened(gates={"act": GuardedGate()}, way=ScriptedWay(then=says())) as room:
        charged = []
        room.keeper.desks["cloud"].spend = lambda: charged.append(1)
        await room.ask()
        await elapse(1)
        assert len(charged) == len(room.way.sent) > 0
