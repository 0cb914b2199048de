"""A run's end waits until its run has been told what it lost."""

from __future__ import annotations

import pytest

from agentd.testing import answer

ENDS = {
    "run.complete": {},
    "run.fail": {"error_message": "no"},
    "run.cancel": {},
}


@pytest.mark.parametrize("kind", ENDS)
async def test_an_end_waits_for_what_goes_before_it(make_rig, kind):
    """It is neither sealed nor sent, and holds no other lane; when it has its place behind the notice it goes."""
    rig = make_rig()
    rig.outbox.owed.add("run:r")
    for run in ("r", "s"):
        rig.outbox.know("run", run, f"p-{run}")
        rig.put(kind, run_id=run, **ENDS[kind])
    await rig.idle()
    assert len(rig.transport.requests) == 1
    assert rig.transport.requests[0].json()["run_id"] == "p-s"
    assert not rig.outbox.seals("run:r")
    rig.outbox.owed.clear()
    rig.courier.touch({"run:r"})
    await rig.idle()
    assert [sent.json()["run_id"] for sent in rig.transport.requests] == ["p-s", "p-r"]


async def test_what_is_before_the_end_does_not_wait(make_rig):
    """Nobody is asked about events: a busy run is not looked up for each of them."""
    rig = make_rig()
    rig.outbox.owed.add("run:r")
    rig.events(3)
    rig.put("run.complete", run_id="r")
    await rig.idle()
    assert rig.types == [["t0", "t1", "t2"]]
    assert [what for what in rig.outbox.log if what[0] == "tell_first"] == [("tell_first", "run:r")]


async def test_an_end_that_is_sealed_goes_as_it_is(make_rig):
    """It may have reached the platform: its next try is the same again, whatever was lost meanwhile."""
    rig = make_rig(answer(503), answer())
    rig.outbox.know("run", "r", "p-r")
    rig.put("run.complete", run_id="r")
    await rig.idle()
    rig.outbox.owed.add("run:r")
    await rig.advance_until(lambda: len(rig.transport.requests) == 2)
    first, second = rig.transport.requests
    assert first == second
