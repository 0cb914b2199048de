"""Records that name what a gate made: they wait for its verdict, and die with it."""

from agentd.outcomes import Cause
from agentd.queued import DEAD, INTRODUCED, Ref
from agentd.testing import answer


def gate_ref(rig, state, lane="gate:01890a5d-ac96-774b-bcce-b302099a8057"):
    rig.outbox._refs["decision", "d"] = Ref("cloud", "decision", "d", "", 0, 0, state, lane=lane)


async def receipts(make_rig, **options):
    """A destination whose records refer to decisions."""
    from agentd import platforms

    return make_rig(then=answer(200, {"decision_id": "p-d"}), platform=platforms.load("decidefyi"), **options)


async def test_a_record_waits_for_a_gate_under_way(make_rig):
    """§4: what the gate makes has no name yet: nothing is sent, and nothing is lost."""
    rig = await receipts(make_rig)
    gate_ref(rig, INTRODUCED)
    rig.put("execution", decision_id="d", execution_status="executed", action_taken="x")
    await rig.advance(30)
    assert (rig.transport.requests, rig.outbox.live) == ([], 1)
    rig.outbox.know("decision", "d", "p-d")
    await rig.advance_until(lambda: rig.transport.requests)
    assert "p-d" in rig.transport.requests[0].path + rig.transport.requests[0].body.decode()


async def test_a_record_whose_gate_no_platform_knows_is_dead(make_rig):
    """§4: cause `gate_unavailable`; where a record had introduced it, `introducer_dead`."""
    for lane, cause in (
        ("gate:01890a5d-ac96-774b-bcce-b302099a8057", Cause.GATE_UNAVAILABLE),
        ("run:r", Cause.INTRODUCER_DEAD),
    ):
        rig = await receipts(make_rig)
        gate_ref(rig, DEAD, lane)
        rig.put("execution", decision_id="d", execution_status="executed", action_taken="x")
        await rig.advance_until(lambda rig=rig: rig.outbox.live == 0)
        ((_, death),) = rig.outbox.dead
        assert (death.cause, rig.transport.requests) == (cause, [])
        assert "decision d" in death.reason
