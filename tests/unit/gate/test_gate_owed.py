"""An SDK's question that a crash has cut off from its answer: its repeat is answered from the record, and nothing else is."""

import asyncio

import pytest
from gate_kit import CUT, DOWN, HANGS, ME, ScriptedGate, ScriptedWay, late, opened, says, warped

from agentd.exchange import Lost, Reference, Request, Response
from agentd.gate.owed import KEPT_S
from agentd.standin import Asked

OWED = b"d" * 32
PENDING = says("pending", 202, final=False)
FOLLOWED = {"act": ScriptedGate(poll_s=2.0)}


def pass_on(room, owed=OWED, *, run_id=None, deadline_s=4.0):
    asked = Asked("", run_id, {"what": b'"x"'})
    return room.keeper.pass_on("cloud", "act", asked, Request("/own", b"raw"), ME, deadline_s=deadline_s, owed=owed)


async def cut_off(room, *, after_s=1.0, **named):
    """An SDK asks; agentd is killed."""
    asking = asyncio.create_task(pass_on(room, **named))
    await asyncio.sleep(after_s)
    asking.cancel()
    await room.crash()


def asked(room):
    return room.way.paths.count("/own")


@warped
async def test_what_was_sent_and_not_answered_is_not_sent_again():
    """§5: the repeat hears that nobody knows, once; the next of the same bytes is another question."""
    async with opened(way=ScriptedWay(HANGS)) as room:
        await cut_off(room)
        passed = await pass_on(room)
        assert isinstance(passed.answer, Lost)
        assert (passed.answer.sent, passed.from_record, passed.verdict["verdict"]) == (True, True, "unavailable")
        assert "may have acted" in passed.reason
        assert asked(room) == 1
        another = await pass_on(room)
        assert (another.verdict["verdict"], another.from_record, asked(room)) == ("allow", False, 2)


@warped
async def test_two_that_had_asked_the_same_have_asked_twice():
    """Each is joined by one repeat, the older one first."""
    async with opened(way=ScriptedWay(HANGS, HANGS)) as room:
        first = asyncio.create_task(pass_on(room))
        await asyncio.sleep(1)
        await cut_off(room)
        first.cancel()
        older, younger = await pass_on(room), await pass_on(room)
        assert older.gate.asked_us < younger.gate.asked_us
        assert (older.from_record, younger.from_record, asked(room)) == (True, True, 2)


@pytest.mark.parametrize(("owed", "later_s"), [(b"other", 0), (b"", 0), (OWED, KEPT_S)])
@warped
async def test_other_bytes_and_later_ones_are_new_questions(owed, later_s):
    """§5: a repeat is the same bytes of the same caller within ten minutes."""
    async with opened(way=ScriptedWay(HANGS)) as room:
        await cut_off(room)
        await asyncio.sleep(later_s)
        assert not (await pass_on(room, owed)).from_record
        assert asked(room) == 2


@warped
async def test_what_was_not_sent_is_a_new_try():
    """Cut off while it waited for its run: nothing can have come of it."""
    gate = ScriptedGate()
    gate.needs = (Reference("run", "r"),)
    async with opened(gates={"act": gate}) as room:
        room.run()
        await cut_off(room, run_id="r", deadline_s=60)
        room.named()
        assert not (await pass_on(room, run_id="r")).from_record
        assert asked(room) == 1


@pytest.mark.parametrize("answer", [DOWN, says("unavailable", 429, None)])
@warped
async def test_what_was_turned_away_is_a_new_try(answer):
    """The answer was on its way when agentd was killed; nothing was made."""
    async with opened(way=ScriptedWay(answer)) as room:
        await pass_on(room)
        await room.crash()
        assert not (await pass_on(room)).from_record


@warped
async def test_what_is_pending_is_answered_with_the_current_word():
    """The platform's first answer while there is no other, its last word where there is one; in time."""
    for later, word, status in ((PENDING, "pending", 202), (says("deny"), "deny", 200)):
        async with opened(gates=FOLLOWED, way=ScriptedWay(PENDING, late(10, PENDING))) as room:
            await cut_off(room)
            room.way.script, room.way.then = [], later
            begun = asyncio.get_running_loop().time()
            passed = await pass_on(room)
            assert asyncio.get_running_loop().time() - begun <= 4
            assert (passed.verdict["verdict"], passed.answer.status, asked(room)) == (word, status, 1)
            assert passed.answer.body == later.body


@warped
async def test_a_word_that_was_not_heard_is_heard_after_the_restart():
    """Recorded, and agentd killed before the SDK had it: the platform's answer with its status."""
    answer = Response(201, {"x-own": "1"}, b'{"word": "deny", "id": "p-7"}')
    async with opened(way=ScriptedWay(answer)) as room:
        await pass_on(room)
        await room.crash()
        passed = await pass_on(room)
        assert (passed.answer.status, passed.answer.body, asked(room)) == (201, answer.body, 1)
        assert passed.answer.headers == {"content-type": "application/json"}


@pytest.mark.parametrize("answer", [says(), PENDING, CUT])
@warped
async def test_what_was_heard_is_over(answer):
    """The same bytes after that are another question; what is pending goes on."""
    async with opened(gates=FOLLOWED, way=ScriptedWay(answer, then=late(1, PENDING))) as room:
        passed = await pass_on(room)
        room.keeper.told(passed.gate)
        await room.spool.barrier()
        assert room.row(passed.gate.gate_id).owed == b""
        gate_id, step = passed.gate.gate_id, passed.gate.step
        await room.crash()
        assert (await pass_on(room)).gate.gate_id != gate_id
        assert (asked(room), room.row(gate_id).step) == (2, step)


@warped
async def test_the_answer_from_the_record_is_heard_once_too():
    """Told after a restart, it is over as well; the one after it is another question, also after the next crash."""
    async with opened(way=ScriptedWay(HANGS)) as room:
        await cut_off(room)
        room.keeper.told((await pass_on(room)).gate)
        await room.spool.barrier()
        await room.crash()
        assert not (await pass_on(room)).from_record


def hear_after(room, passed, is_meant):
    """The SDK hears its answer right after a row that is meant has been handed to the disk."""
    save = room.keeper._shelf.save

    def saving(gate, *more):
        if is_meant(gate):
            asyncio.get_running_loop().call_soon(room.keeper.told, passed.gate)
        return save(gate, *more)

    room.keeper._shelf.save = saving


@pytest.mark.parametrize("before", [True, False])
@warped
async def test_what_was_heard_does_not_undo_what_is_recorded_meanwhile(before):
    """The last word comes just after or just before it: it stays, and is owed to nobody."""
    async with opened(gates=FOLLOWED, way=ScriptedWay(PENDING, says("deny"))) as room:
        passed = await pass_on(room)
        flow = room.keeper._register.flow(passed.gate.gate_id)
        conclude = flow.conclude

        async def concluding(outcome):
            room.keeper.told(passed.gate)
            await conclude(outcome)

        if before:
            flow.conclude = concluding
        else:
            hear_after(room, passed, lambda gate: gate.step == "final" and gate.owed)
        await asyncio.sleep(3)
        row = room.row(passed.gate.gate_id)
        assert (row.step, row.word, row.owed) == ("final", "deny", b"")


@pytest.mark.parametrize("answer", [CUT, PENDING])
@warped
async def test_a_person_who_resolves_is_not_undone_by_who_hears(answer):
    """A person's word is not written over, and the platform's answer from before it is not given any more."""
    async with opened(way=ScriptedWay(answer)) as room:
        passed = await pass_on(room)
        hear_after(room, passed, lambda gate: gate.resolved_by is not None and gate.owed)
        await room.resolve(passed.gate.gate_id, "deny")
        room.keeper.told(passed.gate)
        await room.spool.barrier()
        assert room.row(passed.gate.gate_id).word == "deny"
        await room.crash()
        again = await pass_on(room)
        assert (again.from_record, again.answer, again.verdict["verdict"]) == (
            True,
            Lost("resolved by uid 0", sent=True),
            "deny",
        )


@warped
async def test_where_there_is_no_room_it_stays_owed():
    """Whether it was heard is no reason to fail."""
    async with opened() as room:
        passed = await pass_on(room)
        room.store.full = 1
        room.keeper.told(passed.gate)
        await asyncio.sleep(5)
        assert room.keeper._register.book.get(passed.gate.gate_id).brief.owed == OWED
        await room.crash()
        assert (await pass_on(room)).from_record
