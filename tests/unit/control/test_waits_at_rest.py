"""What a lane of a stopped daemon's queue waits for, as far as the disk says it. Pure."""

from types import SimpleNamespace

import pytest

from agentd.control.queue_documents import waits_at_rest
from agentd.delivery.waits import Waits, Why
from agentd.queued import DEAD, GATE_LANE, INTRODUCED, KNOWN, Ref, Seal
from agentd.spool.refs import Refs
from agentd.spool.seals import Seals


def waits(lane, kind, *refs, seals=()):
    ledger = SimpleNamespace(refs=Refs(), seals=Seals())
    ledger.seals.add(seals, 1)
    for ref in refs:
        ledger.refs.put(ref)
    return waits_at_rest(ledger, "cloud", lane, kind)


def ref(state, kind="run", local_id="r", lane="run:r"):
    return Ref("cloud", kind, local_id, "billing", 1000, 1, state, lane=lane)


def test_a_sealed_batch_comes_first():
    """It may have been sent, and goes again as it was, whatever else is known."""
    seal = Seal(1, "cloud", "run:r", 3, 9, 7, (), "key", 1, b"", "events")
    assert waits("run:r", "event", ref(DEAD), seals=[seal]).why is Why.SEAL
    assert "a batch of 7 " in waits("run:r", "event", seals=[seal]).reason


@pytest.mark.parametrize(
    ("lane", "kind", "refs"),
    [
        ("run:r", "run.start", []),
        ("run:r", "event", [ref(INTRODUCED)]),
        ("run:r", "event", [ref(KNOWN)]),
        ("run:r", "decision", []),
        ("heartbeat:a", "heartbeat", []),
        ("agent:a", "decision", []),
    ],
)
def test_what_nothing_else_keeps_back_waits_for_the_daemon(lane, kind, refs):
    """Its introducer is known, or before it in its own lane, or it needs none."""
    assert waits(lane, kind, *refs) == Waits(Why.DAEMON)


@pytest.mark.parametrize(
    ("lane", "kind", "refs", "reason"),
    [
        ("run:r", "event", [], "nothing has introduced run r: taken as the platform's own after a while"),
        ("run:r", "event", [ref(DEAD)], "run r was refused for good: what names it will be dead"),
        (
            "decision:d",
            "snapshot",
            [ref(INTRODUCED, "decision", "d", "run:r")],
            "waits for decision d, which run:r introduces",
        ),
        (
            "action:a",
            "action.completed",
            [ref(DEAD, "action", "a", GATE_LANE + "g")],
            "action a names a gate that no platform knows: what names it will be dead",
        ),
        (
            "action:no-gate:1",
            "action.failed",
            [],
            "action no-gate:1 names a gate that no platform knows: what names it will be dead",
        ),
    ],
)
def test_a_lane_waits_for_the_id_that_it_names(lane, kind, refs, reason):
    """Not introduced yet, introduced in another lane, or dead: each in its own words, as the dead letter will have them."""
    assert waits(lane, kind, *refs) == Waits(Why.REFERENCE, reason)
