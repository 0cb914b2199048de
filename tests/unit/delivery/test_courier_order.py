"""Promises 2, 3 and 4: order within a lane and parallel between lanes, references, and batches that are sealed once."""

from __future__ import annotations

import hashlib
from uuid import UUID

import pytest

from agentd.delivery.lanes import Hold
from agentd.exchange import Lost
from agentd.outcomes import Cause
from agentd.queued import Death
from agentd.testing import MemoryOutbox, ScriptedTransport, answer

LOST = Lost("no answer in time", sent=True)


def failing(status):
    return answer(status, {"data": None, "error": {"code": "CODE", "message": "words"}})


# -- order and parallelism -------------------------------------------------------------------------------------------------


async def test_a_lane_is_sent_in_order_one_request_at_a_time(make_rig, started):
    """Promise 2: run.start, its events, its task, its events and its end go out one after the other."""
    rig = make_rig(started)
    rig.transport.hold()
    rig.put("run.start", run_id="r")
    rig.put("event", run_id="r", type="one")
    rig.put("task", run_id="r", task_id="t", name="n", status="running")
    rig.put("span", run_id="r", span_id="s", name="two")
    rig.put("run.complete", run_id="r")
    rig.put("event", run_id="r", type="late")
    await rig.flush()
    expected = ["run/start", "events", "tasks", "events", "run/complete", "events"]
    for count in range(1, len(expected) + 1):
        assert rig.paths == expected[:count]
        rig.transport.release(1)
        await rig.idle()
    assert rig.transport.most_under_way == 1
    assert all(sent.json()["run_id"] == "p-1" for sent in rig.transport.requests[1:])
    assert [entry.number for entry in rig.outbox.delivered] == [1, 2, 3, 4, 5, 6]


async def test_lanes_are_sent_in_parallel_up_to_max_in_flight(make_rig):
    """Promise 2: lanes go out side by side, never more at once than `max_in_flight`, and none twice at a time."""
    rig = make_rig(max_in_flight=3)
    rig.transport.hold()
    for name in "abcde":
        rig.events(50, name)
        rig.events(50, name)
    await rig.idle()
    assert (rig.transport.under_way, len(rig.transport.requests)) == (3, 3)
    assert len({sent.json()["run_id"] for sent in rig.transport.requests}) == 3
    rig.transport.release(1)
    await rig.idle()
    assert (rig.transport.under_way, len(rig.transport.requests)) == (3, 4)
    rig.transport.release()
    await rig.idle(100)
    assert rig.outbox.live == 0
    assert rig.transport.most_under_way == 3


async def test_a_lane_that_fails_keeps_its_order(make_rig):
    """Promise 2: what comes later in a lane never overtakes a batch that is tried again."""
    rig = make_rig(failing(503))
    rig.events(50)
    rig.events(50)
    await rig.idle()
    assert len(rig.transport.requests) == 1
    await rig.advance(0.3)
    assert rig.types[1] == rig.types[0]
    assert [entry.number for entry in rig.outbox.delivered] == list(range(1, 101))


async def test_a_batch_goes_at_its_interval(make_rig):
    """Promise 3: what does not fill a batch goes out when its first record is `max_interval` old."""
    rig = make_rig()
    rig.events(3)
    await rig.idle()
    await rig.advance(0.49)
    assert rig.transport.requests == []
    await rig.advance(0.02)
    assert rig.types == [["t0", "t1", "t2"]]


# -- references ------------------------------------------------------------------------------------------------------------


async def test_an_unknown_id_waits_for_its_introducer_and_holds_no_other_lane(make_rig):
    """An id that nothing has introduced waits `reference_wait`, counted from admission, in its own lane alone."""
    rig = make_rig()
    rig.put("task", run_id="unknown", task_id="t", name="n", status="running")
    await rig.idle()
    rig.events(50, "other")
    await rig.advance(1.99)
    assert [sent.json()["run_id"] for sent in rig.transport.requests] == ["p-other"]
    assert rig.outbox.blocked == {"run:unknown"}
    assert "waits for run unknown to be introduced" in rig.courier.status()[1]


async def test_an_unknown_id_is_taken_for_the_platforms_own(make_rig):
    """After `reference_wait` an id that nothing has introduced goes out as it is."""
    rig = make_rig()
    rig.put("task", run_id="their-run", task_id="t", name="n", status="running")
    await rig.advance(2.01)
    assert rig.transport.requests[0].json()["run_id"] == "their-run"
    assert rig.outbox.blocked == set()


async def test_an_introducer_behind_its_events_is_sent_first(make_rig, started):
    """Records that reach the queue before their run.start wait for it and follow it, in their order."""
    rig = make_rig(started)
    rig.put("event", run_id="r", type="early")
    rig.put("task", run_id="r", task_id="t", name="n", status="running")
    await rig.flush()
    assert rig.transport.requests == []
    rig.put("run.start", run_id="r")
    await rig.flush()
    assert rig.paths == ["run/start", "events", "tasks"]
    assert [sent.json().get("run_id") for sent in rig.transport.requests] == [None, "p-1", "p-1"]
    assert rig.outbox.live == 0


async def test_others_are_sent_only_when_the_learned_id_is_on_disk(rig_class, started):
    """The platform's id is on disk before anything goes out under it: a crash between would lose the name."""
    rig = rig_class(outbox=MemoryOutbox(auto_commit=False), transport=ScriptedTransport(started))
    rig.start()
    rig.put("run.start", run_id="r")
    rig.put("run.complete", run_id="r")
    await rig.idle()
    rig.outbox.commit()  # the seal
    await rig.idle()
    assert rig.paths == ["run/start"]
    await rig.idle()
    assert len(rig.outbox.log) == 2  # settled, but not on disk: nothing else is even sealed
    rig.outbox.commit()
    await rig.idle()
    rig.outbox.commit()
    await rig.idle()
    assert rig.paths == ["run/start", "run/complete"]
    await rig.stop()


async def test_a_child_run_waits_for_its_parent_in_another_lane(make_rig, started):
    """A reference across lanes: the child is sent with the platform's id of its parent as soon as that is known."""
    rig = make_rig(started, answer(200, {"data": {"run_id": "p-2"}}))
    rig.transport.hold()
    rig.put("run.start", run_id="parent")
    rig.put("run.start", run_id="child", parent_run_id="parent")
    await rig.idle()
    assert len(rig.transport.requests) == 1
    rig.transport.release()
    await rig.idle()
    assert rig.transport.requests[1].json()["parent_run_id"] == "p-1"
    assert rig.outbox.live == 0


async def test_a_parent_that_is_introduced_within_the_wait_is_used(make_rig, started):
    """A child that names a parent which nobody knows yet waits for it, and is sent with its name."""
    rig = make_rig(started, answer(200, {"data": {"run_id": "p-2"}}))
    rig.put("run.start", run_id="child", parent_run_id="parent")
    await rig.advance(1.9)
    assert rig.transport.requests == []
    rig.put("run.start", run_id="parent")
    await rig.idle()
    assert [sent.json()["external_run_id"] for sent in rig.transport.requests] == ["parent", "child"]
    assert rig.transport.requests[1].json()["parent_run_id"] == "p-1"
    assert rig.outbox.live == 0


async def test_runs_that_name_one_another_as_parent_go_all_the_same(make_rig, started):
    """After `reference_wait` the run that was started first goes without its parent, and the other with it: no lane waits for ever."""
    rig = make_rig(started, answer(200, {"data": {"run_id": "p-2"}}))
    rig.put("run.start", run_id="a", parent_run_id="b")
    rig.put("run.start", run_id="b", parent_run_id="a")
    await rig.advance(1.9)
    assert rig.transport.requests == []
    await rig.advance_until(lambda: rig.outbox.live == 0, at_most=5)
    sent = [(sent.json()["external_run_id"], sent.json().get("parent_run_id")) for sent in rig.transport.requests]
    assert sent == [("a", None), ("b", "p-1")]


async def test_a_run_that_is_its_own_parent_goes_without(make_rig, started):
    """A run can't be its own parent: it goes without one, and without waiting."""
    rig = make_rig(started)
    rig.put("run.start", run_id="r", parent_run_id="r")
    await rig.idle()
    assert "parent_run_id" not in rig.transport.requests[0].json()
    assert rig.outbox.live == 0


async def test_a_dead_parent_is_left_out(make_rig):
    """An optional reference whose introducer is dead costs the field, not the record."""
    rig = make_rig(failing(409), answer(200, {"data": {"run_id": "p-2"}}))
    rig.put("run.start", run_id="parent")
    await rig.idle()
    rig.put("run.start", run_id="child", parent_run_id="parent")
    await rig.idle()
    assert "parent_run_id" not in rig.transport.requests[1].json()
    assert [entry.number for entry in rig.outbox.delivered] == [2]


async def test_with_a_dead_introducer_the_others_are_dead(make_rig):
    """Records whose introducer is refused for good go to the dead letters with it; other runs go on."""
    rig = make_rig(failing(400))
    rig.put("run.start", run_id="r")
    rig.put("event", run_id="r", type="t")
    rig.put("run.complete", run_id="r")
    rig.events(50, "other")
    await rig.flush()
    await rig.idle(100)
    assert rig.outbox.causes() == {Cause.REJECTED: 1, Cause.INTRODUCER_DEAD: 2}
    assert len(rig.outbox.delivered) == 50
    rig.put("event", run_id="r", type="later")
    await rig.flush()
    assert rig.outbox.causes()[Cause.INTRODUCER_DEAD] == 3
    assert rig.outbox.live == 0


async def test_a_learned_id_walks_over_no_lanes(make_rig, started):
    """With 50,000 lanes in a backoff, an id that is learned releases the lanes that waited for references and looks at no other."""
    rig = make_rig(started, answer(200, {"data": {"run_id": "p-2"}}))
    lanes = rig.courier.lanes
    for number in range(50_000):
        lanes.hold(lanes.get(f"run:{number}"), Hold.BACKOFF, 1e9)
    lanes._lanes = NoWalk(lanes._lanes)
    rig.transport.hold()
    rig.put("run.start", run_id="parent")
    rig.put("run.start", run_id="child", parent_run_id="parent")
    await rig.idle()
    assert lanes.get("run:child").hold is Hold.REFERENCE
    rig.transport.release()
    await rig.idle()
    assert rig.outbox.live == 0
    assert rig.transport.requests[1].json()["parent_run_id"] == "p-1"


class NoWalk(dict):
    """Lanes may be looked up, and not walked over."""

    def __iter__(self):
        raise AssertionError("all lanes are walked over")

    keys = values = items = __iter__


# -- seals -----------------------------------------------------------------------------------------------------------------


async def test_a_batch_is_on_disk_as_a_seal_before_its_first_try(rig_class):
    """Promise 4: nothing is sent before its seal is on disk."""
    rig = rig_class(outbox=MemoryOutbox(auto_commit=False))
    rig.start()
    rig.events(50)
    await rig.idle()
    [seal] = rig.outbox.seals("run:r")
    assert rig.transport.requests == []
    rig.outbox.commit()
    await rig.idle()
    [sent] = rig.transport.requests
    assert seal.sha256 == hashlib.sha256(sent.body).digest()
    assert seal.key == sent.headers["idempotency-key"]
    assert (seal.first, seal.last, seal.count, seal.call, seal.encoder) == (1, 50, 50, "events", 1)
    await rig.stop()


async def test_every_retry_is_the_same_bytes_with_the_same_key(make_rig):
    """Promise 4: whatever the failure, what is tried again is the same, though more has been queued since."""
    rig = make_rig(
        failing(503), LOST, failing(429), failing(401), failing(403), answer(200, b"<html>"), Lost("x", sent=False)
    )
    rig.events(3)
    await rig.flush()
    rig.events(4)
    await rig.advance_until(lambda: len(rig.outbox.delivered) >= 3)
    tries = rig.transport.requests[:8]
    assert len({(sent.path, sent.body, tuple(sorted(sent.headers.items()))) for sent in tries}) == 1
    assert rig.types[0] == ["t0", "t1", "t2"]


async def test_after_a_restart_a_sealed_batch_goes_first_as_it_was(rig_class):
    """Promise 4: a crash regroups nothing: the sealed batch goes first, same bytes, same key, whatever the limits are now."""
    rig = rig_class()
    rig.transport.hold()
    rig.start()
    rig.events(3)
    await rig.flush()
    rig.events(4)
    await rig.stop()
    after = rig_class(outbox=rig.outbox.reopen(), max_events=2, max_request_events=2)
    after.start()
    await after.idle()
    assert after.transport.requests[0] == rig.transport.requests[0]
    after.courier.touch({"run:r"})
    await after.flush()
    assert [len(types) for types in after.types] == [3, 2, 2]
    assert [entry.number for entry in after.outbox.delivered] == [1, 2, 3, 4, 5, 6, 7]
    await after.stop()


async def test_a_repeat_that_the_platform_has_already_is_delivered(rig_class):
    """Promise 4: a conflict that answers our own repeat after a crash is a success, not a dead letter."""
    rig = rig_class()
    rig.transport.hold()
    rig.start()
    rig.outbox.know("run", "r", "p-r")
    rig.put("run.complete", run_id="r")
    await rig.idle()
    await rig.stop()
    after = rig_class(outbox=rig.outbox.reopen(), transport=ScriptedTransport(failing(409)))
    after.start()
    await after.idle()
    assert (len(after.outbox.delivered), after.outbox.dead) == (1, [])
    await after.stop()


async def test_a_late_introducer_neither_changes_nor_stops_a_sealed_batch(make_rig, started):
    """Promise 4: events sealed under the platform's own id are repeated as sealed, though their run.start comes after all."""
    rig = make_rig(failing(503), answer(), started)
    rig.put("event", run_id="r", type="t")
    await rig.advance(2.01)
    assert rig.paths == ["events"]
    rig.put("run.start", run_id="r")
    await rig.advance(1)
    await rig.idle()
    assert rig.paths == ["events", "events", "run/start"]
    assert rig.transport.requests[0] == rig.transport.requests[1]
    assert rig.outbox.live == 0


async def test_a_parent_that_gets_a_name_later_does_not_change_a_sealed_child(make_rig, started, caplog):
    """Promise 4: a child sealed while its parent was nobody's keeps its bytes when the parent is introduced after all."""
    rig = make_rig(failing(503), started, answer(200, {"data": {"run_id": "p-2"}}))
    rig.put("run.start", run_id="child", parent_run_id="parent")
    await rig.advance(2.01)
    rig.put("run.start", run_id="parent")
    await rig.idle()
    await rig.advance(1)
    children = [sent for sent in rig.transport.requests if sent.json()["external_run_id"] == "child"]
    assert len(children) == 2
    assert children[0] == children[1]
    assert "other bytes" not in caplog.text


async def repeated(rig_class, *, first, then, put, script=()):
    """What was sent for one batch before and after a restart with other settings."""
    rig = rig_class(transport=ScriptedTransport(failing(503)), **first)
    rig.start()
    put(rig)
    await rig.flush()
    await rig.stop()
    after = rig_class(outbox=rig.outbox.reopen(), transport=ScriptedTransport(*script), **then)
    after.start()
    await after.idle()
    await after.stop()
    assert after.outbox.live == 0
    return rig.transport.requests[0], after.transport.requests[0]


@pytest.mark.parametrize("inject_id", [True, False])
async def test_another_inject_id_does_not_change_a_sealed_batch(rig_class, inject_id, caplog):
    """Promise 4: whatever `inject_id` says by now, a batch that was sealed is repeated as it was."""
    before, after = await repeated(
        rig_class, first={"inject_id": inject_id}, then={"inject_id": not inject_id}, put=lambda rig: rig.events(3)
    )
    assert (b"agentd_id" in before.body) is inject_id
    assert before == after
    assert "other bytes" not in caplog.text


async def test_a_change_of_inject_id_and_a_late_introducer_at_once(rig_class, caplog):
    """Promise 4: events sealed under the platform's own id keep their bytes though the id has a name and the setting changed."""

    def put(rig):
        rig.put("event", run_id="r", type="t")
        rig.clock.advance(2.01)

    rig = rig_class(transport=ScriptedTransport(failing(503)))
    rig.start()
    put(rig)
    await rig.flush()
    await rig.stop()
    outbox = rig.outbox.reopen()
    outbox.know("run", "r", "p-r")
    after = rig_class(outbox=outbox, inject_id=False)
    after.start()
    await after.idle()
    await after.stop()
    assert after.transport.requests == rig.transport.requests
    assert "other bytes" not in caplog.text


@pytest.mark.parametrize("agent", ["agent-2", ""])
async def test_another_agent_id_does_not_change_a_sealed_start(rig_class, started, agent):
    """Promise 4: a start that was sealed for one agent is repeated for it, though the destination names another, or none."""
    before, after = await repeated(
        rig_class,
        first={},
        then={"agent_of": lambda local: local or agent},
        put=lambda rig: rig.put("run.start", run_id="r"),
        script=[started],
    )
    assert before.json()["agent_id"] == "agent-1"
    assert before == after


async def test_a_sealed_end_is_repeated_though_its_run_has_died(make_rig):
    """Promise 4: an end sealed under the platform's own id is repeated as sealed, also if a later run.start of that name is dead."""
    rig = make_rig(failing(503), failing(409))
    rig.put("run.complete", run_id="r")
    await rig.advance(2.01)
    assert rig.paths == ["run/complete"]
    start = rig.put("run.start", run_id="r")
    await rig.outbox.bury(None, [start], Death(Cause.REJECTED, "400"))
    await rig.advance(1)
    assert rig.transport.requests[0] == rig.transport.requests[1]
    assert [(entry.kind, death.reason) for entry, death in rig.outbox.dead] == [("run.start", "400")]
    assert rig.outbox.live == 0


async def test_a_record_alone_has_its_own_id_as_key(make_rig, started):
    """Promise 4: one record's key is its id, so that a replay keeps it; several have a digest that none of them has."""
    rig = make_rig(started)
    record_id = UUID("01890a5d-ac96-774b-bcce-b302099a8057")
    rig.put("run.start", run_id="r", id=str(record_id))
    rig.events(50, "other")
    await rig.idle()
    keys = [sent.headers["idempotency-key"] for sent in rig.transport.requests]
    assert keys[0] == str(record_id)
    assert len(keys[1]) == 32


async def test_a_seal_names_what_it_leaves_out(make_rig, started):
    """A batch of records that are no neighbours in the queue names the numbers between that are not its own."""
    rig = make_rig(then=failing(503))
    rig.outbox.know("run", "r", "p")
    for _ in range(2):
        rig.put("event", run_id="r", type="mine")
        rig.put("event", run_id="other", type="not mine")
    await rig.flush()
    [seal] = rig.outbox.seals("run:r")
    assert (seal.first, seal.last, seal.count) == (1, 3, 2)
    assert len(rig.outbox.members(seal)) == 2


@pytest.mark.parametrize("shed", [10, 50])
async def test_what_was_shed_before_it_was_sealed_is_not_sent(make_rig, shed):
    """Promise 8: a record that a full queue shed in the moment before its batch was sealed ends once, as shed."""
    rig = make_rig()
    entries = rig.events(50)
    rig.courier._step()
    rig.outbox.entries["run:r"] = entries[shed:]
    await rig.idle()
    await rig.flush()
    assert rig.outbox.delivered == entries[shed:]
    assert len(rig.transport.requests) == (shed < 50)


# -- flush, drain, end -----------------------------------------------------------------------------------------------------


async def test_a_flush_sends_what_is_queued_now(make_rig):
    """Promise 7: a flush does not wait for batches to fill or for backoffs to end."""
    rig = make_rig(failing(503))
    rig.events(2, "a")
    rig.events(3, "b")
    await rig.flush()
    assert len(rig.transport.requests) == 2
    await rig.flush()
    assert rig.outbox.live == 0
    rig.events(1, "c")
    await rig.idle()
    assert rig.outbox.live == 1


@pytest.mark.parametrize(
    ("said", "left_s", "moving"),
    [
        (answer(), 0.0, True),
        (Lost("x", sent=False), 0.2, False), (Lost("x", sent=False), 0.25, True),
        (answer(429, b"", retry_after="2"), 1.9, False), (answer(429, b"", retry_after="2"), 2.6, True),
        (failing(401), 1e6, False),
    ],
)  # fmt: skip
async def test_a_drain_knows_when_waiting_is_of_no_use(make_rig, said, left_s, moving):
    """Promise 7: at the end nobody waits for a destination that takes nothing before the drain's own end."""
    rig = make_rig(said)
    rig.events(50)
    await rig.idle()
    assert rig.courier.moving(rig.clock() + left_s) is moving


async def test_a_drain_does_not_wait_for_a_destination_that_is_away(make_rig):
    """Promise 7: after some waits in a row nobody believes in the next one, however near it is."""
    rig = make_rig(then=Lost("x", sent=False))
    rig.events(50)
    await rig.idle()
    assert rig.courier.moving(rig.clock() + 60)
    await rig.advance_until(lambda: len(rig.transport.requests) == 4, step_s=0.25)
    assert not rig.courier.moving(rig.clock() + 60)


async def test_a_cancelled_courier_takes_its_requests_with_it(make_rig):
    """Promise 7: at the end nothing is left running, and what was under way stays queued and sealed."""
    rig = make_rig()
    rig.transport.hold()
    rig.events(50, "a")
    rig.events(50, "b")
    await rig.idle()
    assert rig.transport.under_way == 2
    await rig.stop()
    assert rig.transport.under_way == 0
    assert rig.outbox.live == 100
    assert len(rig.outbox.sealed_lanes()) == 2


async def test_a_sealed_batch_of_which_nothing_is_left_is_retired(rig_class):
    """A seal whose records have all ended otherwise is taken off, and its lane goes on."""
    rig = rig_class()
    rig.transport.hold()
    rig.start()
    entries = rig.events(2)
    await rig.flush()
    await rig.stop()
    outbox = rig.outbox.reopen()
    outbox.entries.clear()
    after = rig_class(outbox=outbox)
    after.start()
    await after.idle()
    assert after.transport.requests == []
    assert after.outbox.sealed_lanes() == ()
    assert entries
    await after.stop()


async def test_idle_lanes_are_forgotten(make_rig):
    """Memory does not grow with the runs that were ever delivered."""
    rig = make_rig()
    for number in range(200):
        rig.events(50, f"run-{number}")
    await rig.until(lambda: rig.outbox.live == 0)
    await rig.idle()
    assert len(rig.courier.lanes) == 0
