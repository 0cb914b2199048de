"""Asked any number of times under one key, with crashes and full disks between any two steps: it acts once, and the record is right.

The model counts requests that may have acted: those that left, unless the platform certainly made nothing of them. There is
at most one, and one more for each time that a person has said that nothing came of the last.
"""

import asyncio
import contextlib

import pytest
from gate_kit import CUT, DOWN, HANGS, ROOT, ScriptedGate, ScriptedWay, elapse, late, opened, says, warped
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agentd.gating import Word
from agentd.intake import GateRefusal
from agentd.spool.gaterows import Step

HARMLESS = (DOWN, says("unavailable", 429, None), says("unavailable", 401, None))
DEADLINE_S = 4.0
answers = st.sampled_from(
    [
        says("allow"),
        says("deny"),
        says("review"),
        says("pending", final=False),
        says("unavailable", 500, None),
        CUT,
        HANGS,
        late(2, says("allow")),
        late(2, CUT),
        late(3, says("pending", final=False)),
        *HARMLESS,
    ]
)
operations = st.one_of(
    st.tuples(st.just("ask"), st.integers(1, 3)),
    st.tuples(
        st.just("turns"), st.integers(1, 40)
    ),  # of the event loop: how far things are when the next thing happens
    st.tuples(st.just("wait"), st.sampled_from([0.5, 1.5, 5.0, 100.0])),
    st.tuples(st.just("crash"), st.none()),
    st.tuples(st.just("full"), st.integers(1, 3)),
    st.tuples(st.just("resolve"), st.sampled_from(["allow", "unavailable"])),
    st.tuples(st.just("close"), st.none()),
)


class Watching(ScriptedWay):
    """Looks at the disk whenever something leaves, and counts what may have acted."""

    def __init__(self, script):
        super().__init__(*script, then=says("allow"))
        self.room = None
        self.acted = 0

    async def send(self, request, headers, **options):
        if request.method == "POST":
            row = self.room.row(self.room.gate_id())
            assert row is not None, "it left before it was on disk"
            assert row.step is Step.SENDING
            answer = self.script[0] if self.script else self.then
            self.acted += answer not in HARMLESS
        return await super().send(request, headers, **options)


class Model:
    def __init__(self, room):
        self.room = room
        self.callers = []
        self.allowed = 1  # requests that may act
        self.heard = []

    def collect(self):
        """What agents have heard; nobody is left waiting for longer than the deadline and a moment."""
        for task in [task for task in self.callers if task.done()]:
            self.callers.remove(task)
            with contextlib.suppress(GateRefusal):
                self.heard.append(task.result())

    async def ask(self, count):
        self.callers += [self.room.begin(key="k", deadline=DEADLINE_S) for _ in range(count)]

    async def turns(self, count):
        for _ in range(count):
            await asyncio.sleep(0)

    async def wait(self, seconds):
        await elapse(seconds)
        if seconds > DEADLINE_S + 1:
            self.collect()
            assert self.callers == []

    async def crash(self, _):
        self.collect()
        for task in self.callers:
            task.cancel()
        await asyncio.gather(*self.callers, return_exceptions=True)
        self.callers = []
        await self.room.crash()

    async def close(self, _):
        """SIGTERM, and a new start."""
        await self.room.keeper.close()
        await self.turns(5)
        self.collect()
        assert self.callers == []
        await self.room.spool.barrier()
        await self.room.crash()

    async def full(self, count):
        self.room.store.full = count

    async def resolve(self, verdict):
        with contextlib.suppress(GateRefusal):
            gate_id = self.room.gate_id()
            found = None if gate_id is None else await self.room.resolve(gate_id, verdict)
            if found is not None:
                self.heard.clear()  # a person's word replaces what was heard before
                self.allowed = self.room.way.acted + (not found["acted"])

    def check(self):
        self.collect()
        assert self.room.way.acted <= self.allowed
        for heard in self.heard:
            assert heard["verdict"] == "allow" or not heard["proceed"]

    async def settle(self):
        """Room on disk, everything that is under way at its end, and another start."""
        self.room.store.full = 0
        self.room.spool.check_disk()
        await elapse(2 * DEADLINE_S)
        await self.room.spool.barrier()
        self.check()
        await self.crash(None)
        await self.room.spool.barrier()

    async def last_word(self):
        """Who asks now hears what is on record; journal, reference and row agree."""
        self.room.way.script, self.room.way.then = [], says("allow")
        again = await self.room.ask(key="k", deadline=DEADLINE_S)
        self.check()
        row = self.room.row(again["gate_id"])
        assert (again["verdict"], again["proceed"]) == (row.word, row.proceed)
        assert self.room.notes(row.gate_id)[-1][1] == row.word
        ref = self.room.ref(row.local_id)
        assert (ref.state, ref.platform_id) == (("known", row.platform_id) if row.platform_id else ("dead", None))
        for heard in self.heard:
            if heard["final"] and (heard["verdict"] != Word.UNAVAILABLE):
                assert heard["verdict"] == again["verdict"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(answers, max_size=6), st.lists(operations, max_size=14))
@example([HANGS], [("ask", 2), ("turns", 12), ("crash", None), ("ask", 1), ("wait", 5.0)])
@example([late(2, says("allow"))], [("ask", 1), ("wait", 0.5), ("full", 2), ("wait", 1.5), ("crash", None), ("ask", 1)])
@example([DOWN, CUT], [("ask", 1), ("wait", 5.0), ("ask", 3), ("wait", 5.0), ("resolve", "unavailable"), ("ask", 1)])
def test_a_key_acts_once_and_the_record_is_right(script, steps):
    """§4: asked twice, acts once, also through crashes and full disks; what an agent heard is what the record says."""
    run_through(script, steps)


@warped
async def run_through(script, steps):
    way = Watching(script)
    async with opened(gates={"act": ScriptedGate(poll_s=2.0)}, way=way) as room:
        way.room = room
        room.gate_id = lambda: next(
            (stored.brief.gate_id for stored in room.keeper._register.own("all", ROOT, admin=True)), None
        )
        model = Model(room)
        for name, argument in steps:
            await getattr(model, name)(argument)
            model.check()
        await model.settle()
        await model.last_word()


def test_the_model_notices_a_request_too_many():
    """The model itself: a platform that is asked again after a lost answer is found out."""

    class Forgetful(ScriptedGate):
        def rule(self, question, answer, attempt):
            ruling = super().rule(question, answer, attempt)
            return type(ruling)(ruling.word, ruling.reason, ruling.platform_id, ruling.final, acted=False)

    @warped
    async def run():
        way = Watching([CUT])
        async with opened(gates={"act": Forgetful()}, way=way) as room:
            way.room = room
            room.gate_id = lambda: next(s.brief.gate_id for s in room.keeper._register.own("all", ROOT, admin=True))
            model = Model(room)
            for _ in range(2):
                await model.ask(1)
                await model.wait(2 * DEADLINE_S)
            model.check()

    with pytest.raises(AssertionError):
        run()
