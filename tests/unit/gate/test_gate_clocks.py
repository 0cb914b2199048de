"""Gates while somebody sets the wall clock: intervals are those of the monotonic one (deadline, following, remembering, repeats)."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from pathlib import Path

import pytest
from gate_kit import DAY_S, EPOCH_S, HANGS, ME, Room, ScriptedGate, ScriptedWay, says, warped

from agentd.exchange import Request
from agentd.gate.owed import KEPT_S
from agentd.standin import Asked

YEAR_S = 366 * DAY_S
JUMPS = pytest.mark.parametrize("jump_s", [YEAR_S, -YEAR_S, 1000 - EPOCH_S, 73 * YEAR_S])
PENDING = says("pending", final=False)
FOLLOWED = {"act": ScriptedGate(poll_s=2.0)}
TICK_S = 31.0
SPAN_S = 3600.0  # gate.follow and gate.remember


class SetRoom(Room):
    """Its wall clock can be set."""

    shift_s = 0.0

    def wall_us(self):
        return super().wall_us() + round(self.shift_s * 1e6)

    async def pass_time(self, seconds):
        """With the housekeeping of every minute."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while loop.time() < until:
            await asyncio.sleep(min(600.0, until - loop.time()))
            self.keeper.tick()

    async def crash_and_set(self, jump_s):
        await self.kill()
        self.shift_s += jump_s
        self.store = self.store.crash()
        return await self.open()


@contextlib.asynccontextmanager
async def opened(**settings):
    with tempfile.TemporaryDirectory() as folder:
        room = await SetRoom(Path(folder) / "state", follow_s=SPAN_S, remember_s=SPAN_S, **settings).open()
        try:
            yield room
        finally:
            await room.kill()


@JUMPS
@warped
async def test_a_pending_gate_is_followed_for_its_hour(jump_s):
    """§4: an hour of time that goes by, asked before the jump or after it, and also when it is taken back."""
    async with opened(gates=FOLLOWED, way=ScriptedWay(then=PENDING)) as room:
        before = (await room.ask(deadline=1))["gate_id"]
        room.shift_s = jump_s
        after = (await room.ask(deadline=1))["gate_id"]
        await room.pass_time(SPAN_S / 2)
        room.shift_s = 0.0
        await room.pass_time(SPAN_S / 2 - 60)
        for gate_id in (before, after):
            assert (await room.look(gate_id))["verdict"] == "pending"
        await room.pass_time(120)
        for gate_id in (before, after):
            found = await room.look(gate_id)
            assert (found["verdict"], found["final"]) == ("unavailable", True)
            assert "gate.follow" in found["reason"]


@JUMPS
@warped
async def test_a_key_is_remembered_for_its_hour(jump_s):
    """§4: asked twice, acts once, for `gate.remember`, and no longer."""
    async with opened() as room:
        assert "repeated" not in await room.ask(key="before")
        room.shift_s = jump_s
        assert "repeated" not in await room.ask(key="after")
        await room.pass_time(SPAN_S - 60)
        for key in ("before", "after"):
            assert (await room.ask(key=key))["repeated"]
        room.shift_s = 0.0
        await room.pass_time(60 + TICK_S)
        assert len(room.way.sent) == 2
        for key in ("before", "after"):
            assert "repeated" not in await room.ask(key=key)
        assert len(room.way.sent) == 4


@JUMPS
@warped
async def test_a_deadline_holds(jump_s):
    """§4: five seconds are five seconds."""
    async with opened(way=ScriptedWay(HANGS)) as room:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        asking = room.begin(deadline=5)
        await asyncio.sleep(1)
        room.shift_s = jump_s
        assert (await asking)["verdict"] == "unavailable"
        assert 5 <= loop.time() - begun < 7


@pytest.mark.parametrize(("jump_s", "at_most_s"), [(-YEAR_S, SPAN_S), (1000 - EPOCH_S, SPAN_S), (YEAR_S, 0.0)])
@warped
async def test_over_a_restart_what_is_due_is_due_and_nothing_waits_for_a_year(jump_s, at_most_s):
    """§4: a clock that was put back gives an hour from the start; put ahead, the hour is over: nobody can know better."""
    async with opened(gates=FOLLOWED, way=ScriptedWay(says(), then=PENDING)) as room:
        await room.ask(key="k")
        gate_id = (await room.ask(deadline=1))["gate_id"]
        await room.crash_and_set(jump_s)
        if at_most_s:
            assert (await room.look(gate_id))["verdict"] == "pending"
            assert (await room.ask(key="k"))["repeated"]
        await room.pass_time(at_most_s + TICK_S)
        assert (await room.look(gate_id))["verdict"] == "unavailable"
        room.way.then = says()
        assert "repeated" not in await room.ask(key="k")


@JUMPS
@warped
async def test_what_an_sdk_is_owed_is_owed_for_ten_minutes(jump_s):
    """§5: its repeat after a crash is known, whatever became of the clock since the start; eleven minutes later it is another."""
    asked = Asked("", None, {"what": b'"x"'})

    def pass_on(room, owed):
        request = Request("/own", b"raw")
        return room.keeper.pass_on("cloud", "act", asked, request, ME, deadline_s=4.0, owed=owed)

    async with opened(way=ScriptedWay(HANGS, HANGS)) as room:
        asking = [asyncio.create_task(pass_on(room, owed)) for owed in (b"a" * 32, b"b" * 32)]
        await asyncio.sleep(1)
        for task in asking:
            task.cancel()
        await room.crash_and_set(0.0)
        await room.pass_time(60)
        room.shift_s = jump_s
        assert (await pass_on(room, b"a" * 32)).from_record
        await room.pass_time(KEPT_S)
        assert not (await pass_on(room, b"b" * 32)).from_record
