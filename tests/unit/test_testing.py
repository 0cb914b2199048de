"""The public fakes keep the promises of what they stand for."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from agentd.delivery.ports import Outbox
from agentd.exchange import Lost, Request, Transport
from agentd.outcomes import Cause, Learned
from agentd.queued import DEAD, INTRODUCED, KNOWN, Death, Seal
from agentd.records import Record
from agentd.testing import FakeClock, MemoryOutbox, ScriptedTransport, answer

decode_record = msgspec.json.Decoder(Record).decode
START = decode_record(b'{"kind":"run.start","run_id":"r"}')
EVENT = decode_record(b'{"kind":"event","run_id":"r","type":"t"}')
END = decode_record(b'{"kind":"run.complete","run_id":"r"}')


def sealed(*entries, key="k"):
    first, last = entries[0], entries[-1]
    return Seal(0, "cloud", first.lane, first.number, last.number, len(entries), (), key, 1, b"", "events")


def test_both_clocks_advance_together():
    """Time moves when it is told, monotonic seconds and wall microseconds alike; setting the wall moves that alone."""
    clock = FakeClock(10.0, 1_000_000)
    clock.advance(0.25)
    assert (clock(), clock.now_us()) == (10.25, 1_250_000)
    clock.set_wall(-1.0)
    assert (clock(), clock.now_us()) == (10.25, 250_000)
    with pytest.raises(ValueError, match="does not go back"):
        clock.advance(-1)


async def test_a_script_is_followed_then_the_rest():
    """Requests get the answers of the script in order, then `then`; an exception is raised; all requests are kept."""
    transport = ScriptedTransport(
        answer(503), Lost("x", sent=True), ValueError("defect"), then=lambda sent: answer(200, sent.json())
    )
    way: Transport = transport
    request = Request("/p", b'{"a":1}', {"own": "1"})
    assert (await way.send(request, {"h": "2"})).status == 503
    assert await way.send(request, {}) == Lost("x", sent=True)
    with pytest.raises(ValueError, match="defect"):
        await way.send(request, {})
    assert (await way.send(request, {})).body == b'{"a":1}'
    assert transport.requests[0] == ("/p", b'{"a":1}', {"h": "2", "own": "1"})
    assert (len(transport.requests), transport.under_way) == (4, 0)


async def test_an_answer_can_be_held():
    """Held requests stay under way until they are released, the oldest first; a cancelled one is under way no more."""
    transport = ScriptedTransport()
    transport.hold()
    tasks = [asyncio.create_task(transport.send(Request("/", b""), {})) for _ in range(3)]
    await asyncio.sleep(0)
    assert (transport.held, transport.under_way, transport.most_under_way) == (3, 3, 3)
    transport.release(1)
    assert (await tasks[0]).status == 200
    tasks[2].cancel()
    await asyncio.wait([tasks[2]])
    assert transport.under_way == 1
    tasks[1].cancel()
    await asyncio.wait([tasks[1]])


async def test_an_outbox_keeps_order_and_ends_each_record_once():
    """Records wait in number order within their lane until they are settled or buried."""
    outbox = MemoryOutbox()
    port: Outbox = outbox
    first, second, third = outbox.put(START), outbox.put(EVENT), outbox.put(END)
    assert (port.live, port.highest, list(port.peek("run:r"))) == (3, 3, [first, second, third])
    assert port.find("run:r", 2) is second
    seal = sealed(first)
    await port.seal(seal)
    assert (port.sealed_lanes(), port.seals("run:r"), port.members(seal)) == (("run:r",), (seal,), [first])
    await port.settle(seal, [first], [Learned("run", "r", "p")])
    assert (port.sealed_lanes(), outbox.delivered) == ((), [first])
    assert (port.reference("run", "r").state, port.reference("run", "r").platform_id) == (KNOWN, "p")
    await port.bury(None, [third], Death(Cause.REJECTED, "no"))
    assert port.reference("run", "r").ended
    assert (outbox.causes(), port.live) == ({Cause.REJECTED: 1}, 1)


async def test_a_dead_introducer_is_a_dead_reference():
    """Burying a run.start makes its reference dead, so that others know."""
    outbox = MemoryOutbox()
    await outbox.bury(None, [outbox.put(START)], Death(Cause.REJECTED, "no"))
    assert outbox.reference("run", "r").state == DEAD


async def test_a_dead_decision_takes_no_other_reference_along():
    """A decision's lane may be its run's: the reference that dies is the one that the record itself introduced."""
    outbox = MemoryOutbox()
    outbox.put(START)
    kept, buried = (outbox.put(decode_record(b'{"kind":"decision","context":"c","run_id":"r","decision_id":"%s"}' % name))
                    for name in (b"kept", b"buried"))  # fmt: skip
    await outbox.bury(None, [buried], Death(Cause.REJECTED, "no"))
    states = [outbox.reference(*key).state for key in (("run", "r"), ("decision", "kept"), ("decision", "buried"))]
    assert (kept.lane, states) == ("run:r", [INTRODUCED, INTRODUCED, DEAD])


async def test_stale_records_end_unsent():
    """What a newer record replaces leaves the queue, and a copy remembers it."""
    outbox = MemoryOutbox()
    port: Outbox = outbox
    old, new = (outbox.put(decode_record(b'{"kind":"heartbeat"}')) for _ in range(2))
    await port.discard_stale([old])
    assert (list(port.peek("heartbeat:")), outbox.stale, outbox.delivered, outbox.dead) == ([new], [old], [], [])
    assert outbox.reopen().stale == [old]


async def test_a_split_puts_the_parts_in_order():
    """The parts take the place of the whole, the first to be sent first."""
    outbox = MemoryOutbox()
    entries = [outbox.put(EVENT) for _ in range(4)]
    whole = sealed(*entries)
    await outbox.seal(whole)
    parts = [sealed(*entries[2:], key="b"), sealed(*entries[:2], key="a")]
    await outbox.split(whole, parts)
    assert [seal.key for seal in outbox.seals("run:r")] == ["a", "b"]


async def test_changes_can_wait_for_a_commit():
    """Without auto-commit a change is done when `commit` says so, as with a disk."""
    outbox = MemoryOutbox(auto_commit=False)
    future = outbox.seal(sealed(outbox.put(EVENT)))
    assert not future.done()
    outbox.commit()
    assert future.done()


async def test_reopened_seals_count_as_tried():
    """After a crash nobody knows what was sent: every seal may have been tried. The copy shares nothing with the old one."""
    outbox = MemoryOutbox()
    entry = outbox.put(EVENT)
    seal = sealed(entry)
    await outbox.seal(seal)
    other = outbox.reopen()
    assert other.seals("run:r")[0].tried
    assert not seal.tried
    await other.settle(other.seals("run:r")[0], [entry], ())
    assert (outbox.live, other.live) == (1, 0)


def test_room_for_the_dead_can_be_bounded():
    """`dead_limit` is the dead letters' room in bytes."""
    assert MemoryOutbox().dead_room(10**9)
    assert MemoryOutbox(dead_limit=10).dead_room(10)
    assert not MemoryOutbox(dead_limit=10).dead_room(11)


def test_reprs_tell_how_things_stand():
    """A failing test shows what its fakes hold."""
    outbox = MemoryOutbox()
    outbox.put(EVENT)
    assert repr(outbox) == "<MemoryOutbox cloud 1 queued, 0 delivered, 0 dead>"
    assert repr(ScriptedTransport()) == "<ScriptedTransport 0 requests, 0 under way>"
    assert repr(FakeClock(1.5)) == "<FakeClock 1.500000 s>"
