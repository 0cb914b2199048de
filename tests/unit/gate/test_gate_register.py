"""Where a gate is found: its flow while there is one, whichever that is."""

from gate_kit import opened, warped

from agentd.gate.flow import Flow


@warped
async def test_the_end_of_an_earlier_flow_leaves_the_one_that_has_begun_meanwhile():
    """A new try goes under the id of the one before, whose task may come to its end only then."""
    async with opened() as room:
        await room.ask(key="k")
        register, desk, common = room.keeper._register, room.keeper.desks["cloud"], room.keeper._common
        (stored,) = register.own("all", None, admin=True)
        row = await register.load(stored)
        earlier, later = Flow(row, desk, common), Flow(row, desk, common)
        register.flows[row.gate_id] = later
        register.ended(earlier)
        assert register.flows == {row.gate_id: later}
        register.ended(later)
        assert register.flows == {}
