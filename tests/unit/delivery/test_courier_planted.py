"""Records that named an id before anybody had introduced it, when it comes to be another's."""

import msgspec
import pytest

from agentd.outcomes import Cause
from agentd.queued import KNOWN, Ref
from agentd.testing import answer
from agentd.wire import decode_record


def record(kind, **fields):
    return decode_record(msgspec.json.encode({"kind": kind, **fields}))


def begin(rig, *, uid, agent="", number=99):
    """A run of that user is begun, and the platform has named it."""
    rig.outbox._refs["run", "r"] = Ref("cloud", "run", "r", agent, uid, number, KNOWN, "p-r", lane="run:r")


@pytest.mark.parametrize(
    ("uid", "agent", "named", "is_own"),
    [
        (0, "", "", True),
        (0, "billing", "", True),
        (0, "billing", "billing", True),
        (0, "billing", "sales", False),
        (7, "", "", False),
    ],
)
async def test_what_was_planted_is_dead(make_rig, uid, agent, named, is_own):
    """§2: an event and an end that wait under a name which another's run gets are not of that run: cause `foreign_reference`."""
    rig = make_rig(then=answer(200, {"data": {"run_id": "p-r"}}))
    for planted in (record("event", run_id="r", type="t"), record("run.fail", run_id="r", error_message="x")):
        rig.courier.touch({rig.outbox.put(planted, agent=named, now_us=rig.clock.now_us()).lane})
    begin(rig, uid=uid, agent=agent)
    await rig.advance_until(lambda: rig.outbox.live == 0)
    causes = [death.cause for _, death in rig.outbox.dead]
    assert (causes, len(rig.transport.requests)) == (([], 2) if is_own else ([Cause.FOREIGN_REFERENCE] * 2, 0))


async def test_what_came_after_the_introducer_was_checked_at_admission(make_rig):
    """Root may speak for all: what admission let in is not judged again."""
    rig = make_rig(then=answer(200, {"data": {"run_id": "p-r"}}))
    begin(rig, uid=7, number=0)
    rig.put("event", run_id="r", type="t")
    await rig.advance_until(lambda: rig.outbox.live == 0)
    assert (rig.outbox.dead, len(rig.transport.requests)) == ([], 1)
