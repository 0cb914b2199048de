"""Gates that are decided later, and gates after a restart."""

import asyncio

import pytest
from gate_kit import (
    CUT,
    DAY_S,
    DOWN,
    HANGS,
    ME,
    GuardedGate,
    ScriptedGate,
    ScriptedWay,
    late,
    opened,
    says,
    warped,
)  # fmt: skip

from agentd.exchange import Reference, Response
from agentd.queued import DEAD, KNOWN

PENDING = says("pending", final=False)
FOLLOWED = {"act": ScriptedGate(poll_s=2.0)}


def now():
    return asyncio.get_running_loop().time()


@warped
async def test_a_decision_within_the_deadline_is_waited_for():
    """§4: where the platform decides later the gate waits for its final word."""
    async with opened(gates=FOLLOWED, way=ScriptedWay(PENDING, PENDING, says("deny"))) as room:
        begun = now()
        heard = await room.ask(deadline=5)
        assert (heard["verdict"], heard["final"], now() - begun) == ("deny", True, pytest.approx(4))
        assert room.way.paths == ["/act", "/act/p-1", "/act/p-1"]


@warped
async def test_at_the_deadline_it_is_pending_and_followed_on():
    """§4: then it answers `pending`, and agentd follows it without its agent."""
    async with opened(gates=FOLLOWED, way=ScriptedWay(then=PENDING)) as room:
        begun = now()
        heard = await room.ask(deadline=5, run_id="theirs")
        assert (heard["verdict"], heard["proceed"], heard["final"], now() - begun) == ("pending", False, False, 5)
        assert (heard["platform_id"], room.ref("p-1").state) == ("p-1", KNOWN)
        room.way.then = says()
        await asyncio.sleep(60)
        found = await room.look(heard["gate_id"])
        assert (found["verdict"], found["proceed"], found["final"]) == ("allow", True, True)
        assert [payload["verdict"] for _, payload in room.events] == ["pending", "allow"]
        assert room.notes(heard["gate_id"])[2:] == [("queued", "pending"), ("delivered", "allow")]


@warped
async def test_the_platforms_id_is_on_disk_before_it_is_asked_for_again():
    """§4, on the record: what it made has a name that survives a crash at any later moment."""
    async with opened(gates=FOLLOWED, way=ScriptedWay(PENDING, then=HANGS)) as room:
        asking = room.begin(request={"action_id": "mine"}, deadline=60)
        await asyncio.sleep(3)
        assert room.way.paths == ["/act", "/act/p-1"]
        asking.cancel()
        room.way.script, room.way.then = [], says()
        await room.crash()
        assert room.ref("mine").platform_id == "p-1"


@warped
async def test_pauses_grow_and_somebody_who_waits_shortens_them():
    """Up to half a minute in the background; `?wait=` has it asked at once, and then often."""
    async with opened(gates=FOLLOWED, way=ScriptedWay(then=PENDING)) as room:
        gate_id = (await room.ask(deadline=1))["gate_id"]
        await asyncio.sleep(600)
        before = len(room.way.sent)
        assert before < 30
        begun = now()
        looking = asyncio.create_task(room.look(gate_id, 30))
        await asyncio.sleep(0.1)
        assert len(room.way.sent) == before + 1
        room.way.then = says()
        assert (await looking)["verdict"] == "allow"
        assert now() - begun == pytest.approx(2)


@warped
async def test_a_wait_ends_in_time():
    """`?wait=` gives the gate as it stands when the time is over."""
    async with opened(gates=FOLLOWED, way=ScriptedWay(then=PENDING)) as room:
        gate_id = (await room.ask(deadline=1))["gate_id"]
        begun = now()
        assert (await room.look(gate_id, 7))["verdict"] == "pending"
        assert now() - begun == pytest.approx(7)


@warped
async def test_what_the_platform_does_not_decide_is_closed():
    """§4: followed for `gate.follow`, also over a restart; then it is `unavailable`, and its key stays so."""
    async with opened(gates=FOLLOWED, way=ScriptedWay(then=PENDING)) as room:
        gate_id = (await room.ask(key="k", deadline=1))["gate_id"]
        await asyncio.sleep(DAY_S / 2)
        await room.crash()
        await asyncio.sleep(DAY_S / 2 + 60)
        found = await room.look(gate_id)
        assert (found["verdict"], found["final"], found["acted"]) == ("unavailable", True, True)
        assert "gate.follow" in found["reason"]
        asked = room.way.paths.count("/act")
        assert (await room.ask(key="k"))["repeated"]
        assert room.way.paths.count("/act") == asked


@warped
async def test_a_platform_that_is_away_meanwhile_is_asked_on():
    """A lost answer or a 5xx to the question after a decision says nothing of it."""
    down = Response(503, {}, b"")
    async with opened(gates=FOLLOWED, way=ScriptedWay(PENDING, CUT, DOWN, down, says())) as room:
        assert (await room.ask(deadline=60))["verdict"] == "allow"


@pytest.mark.parametrize("word", ["allow", "deny", "pending"])
@warped
async def test_a_decision_on_another_thing_is_none(word):
    """§4: asked for one and answered about another, the gate is still open, keeps its name, and is asked on."""
    another = says(word, platform_id="p-2", final=word != "pending")
    async with opened(gates=FOLLOWED, way=ScriptedWay(PENDING, then=another)) as room:
        heard = await room.ask(deadline=20)
        assert (heard["verdict"], heard["proceed"], heard["final"], heard["platform_id"]) == (
            "pending",
            False,
            False,
            "p-1",
        )
        assert "another thing" in heard["reason"]
        assert (room.ref("p-2"), set(room.way.paths[1:])) == (None, {"/act/p-1"})
        assert room.notes(heard["gate_id"]).count(("queued", "pending")) <= 2  # said once, not with each look
        room.way.then = says("deny")
        assert (await room.look(heard["gate_id"], 30))["verdict"] == "deny"


@warped
async def test_a_decision_that_can_not_be_asked_for_is_pending_at_once():
    """Where the platform has no such call nobody waits for the deadline; a person may still resolve it."""
    async with opened(way=ScriptedWay(then=PENDING)) as room:
        begun = now()
        heard = await room.ask(deadline=60)
        assert (heard["verdict"], now() - begun) == ("pending", pytest.approx(0))
        assert (await room.resolve(heard["gate_id"], "allow"))["proceed"]
        assert (await room.look(heard["gate_id"]))["final"]


@warped
async def test_a_pending_gate_may_be_resolved_by_a_person():
    """Whoever waits hears it, and it is not followed any more."""
    async with opened(gates=FOLLOWED, way=ScriptedWay(then=PENDING)) as room:
        gate_id = (await room.ask(deadline=1))["gate_id"]
        looking = asyncio.create_task(room.look(gate_id, 60))
        await asyncio.sleep(5)
        await room.resolve(gate_id, "deny", note="by phone")
        assert (await looking)["verdict"] == "deny"
        asked = len(room.way.sent)
        await asyncio.sleep(300)
        assert len(room.way.sent) == asked
        await room.crash()
        assert (await room.look(gate_id))["verdict"] == "deny"


@warped
async def test_a_review_that_is_not_final_is_shown_as_what_it_is():
    """The platform's word counts while it lasts, and is replaced by the next."""
    script = ScriptedWay(says("review", final=False), PENDING, says("allow"))
    async with opened(gates=FOLLOWED, way=script) as room:
        heard = await room.ask(deadline=1)
        assert (heard["verdict"], heard["final"], heard["proceed"]) == ("review", False, False)
        assert (await room.look(heard["gate_id"], 30))["verdict"] == "allow"


# -- a restart ---------------------------------------------------------------------------------------------------------


@warped
async def test_what_was_asked_and_not_sent_is_unavailable_after_a_crash():
    """§4: certainly never sent, so its key may be asked again."""
    gate = ScriptedGate()
    gate.needs = (Reference("run", "r"),)
    async with opened(gates={"act": gate}) as room:
        room.run()
        room.begin(key="k", run_id="r", deadline=60)
        await asyncio.sleep(5)
        await room.crash()
        (found,) = await room.keeper.listing("all", 10, ME, admin=False)
        assert (found["verdict"], found["step"], found["acted"]) == ("unavailable", "final", False)
        await room.spool.barrier()
        assert room.notes(found["gate_id"]) == [("queued", "asked"), ("dead", "unavailable")]
        room.named()
        assert (await room.ask(key="k", run_id="r"))["verdict"] == "allow"
        assert room.way.paths == ["/act"]


@warped
async def test_what_was_sent_and_not_answered_may_have_acted_after_a_crash():
    """§4: unavailable until it is resolved; what names it is dead."""
    async with opened(way=ScriptedWay(HANGS)) as room:
        room.begin(key="k", deadline=60)
        await asyncio.sleep(5)
        await room.crash()
        heard = await room.ask(key="k", deadline=60)
        assert (heard["verdict"], heard["repeated"], room.way.paths) == ("unavailable", True, ["/act"])
        assert "may have acted" in heard["reason"]
        assert room.ref(heard["gate_id"]).state == DEAD


@warped
async def test_what_is_pending_is_followed_after_a_crash():
    """§4: also after a restart and without its agent."""
    async with opened(gates=FOLLOWED, way=ScriptedWay(then=PENDING)) as room:
        gate_id = (await room.ask(deadline=1))["gate_id"]
        await room.crash()
        room.way.then = says("deny")
        assert (await room.look(gate_id, 60))["verdict"] == "deny"
        assert room.way.paths.count("/act") == 1


@warped
async def test_another_platform_under_the_same_name_is_not_asked_about_the_old_ones_gates():
    """What one platform made means nothing to another: closed, for a person to resolve."""
    async with opened(gates=FOLLOWED, way=ScriptedWay(then=PENDING)) as room:
        gate_id = (await room.ask(deadline=1))["gate_id"]
        asked = len(room.way.sent)
        room.identity = "scripted elsewhere"
        await room.crash()
        await asyncio.sleep(120)
        found = await room.look(gate_id)
        assert (found["verdict"], found["acted"], len(room.way.sent)) == ("unavailable", True, asked)


@warped
async def test_a_destination_that_is_taken_out_keeps_its_gates():
    """They are followed on when it is back."""
    async with opened(gates=FOLLOWED, way=ScriptedWay(then=PENDING)) as room:
        gate_id = (await room.ask(deadline=1))["gate_id"]
        way, room.ways = room.ways, {"other": ScriptedWay()}
        await room.crash()
        assert (await room.look(gate_id))["verdict"] == "pending"
        room.ways = way
        room.way.then = says()
        await room.crash()
        assert (await room.look(gate_id, 60))["verdict"] == "allow"


@warped
async def test_a_destination_that_stays_out_ends_its_gates():
    """§4: after `gate.follow` nobody knows: unavailable, may have acted; its key stays so, and later it is forgotten."""
    async with opened(gates=FOLLOWED, way=ScriptedWay(then=PENDING)) as room:
        keyed, loose = await room.ask(deadline=1, key="k"), await room.ask(deadline=1)
        room.ways = {"other": ScriptedWay()}
        await asyncio.sleep(DAY_S / 2)
        await room.crash()
        room.keeper.tick()
        assert (await room.look(keyed["gate_id"]))["verdict"] == "pending"
        await asyncio.sleep(DAY_S / 2)
        room.keeper.tick()
        found = await room.look(keyed["gate_id"])
        assert (found["verdict"], found["final"], found["acted"]) == ("unavailable", True, True)
        assert found["platform_id"] == "p-1"
        assert "left the configuration" in found["reason"]
        await asyncio.sleep(DAY_S + 60)
        room.keeper.tick()
        assert [gate["gate_id"] for gate in await room.keeper.listing("all", 9, ME, admin=False)] == [keyed["gate_id"]]
        await room.spool.barrier()
        assert room.row(loose["gate_id"]) is None


@warped
async def test_a_person_may_resolve_what_has_no_destination():
    """Their word is not replaced when the time is over."""
    async with opened(gates=FOLLOWED, way=ScriptedWay(then=PENDING)) as room:
        gate_id = (await room.ask(deadline=1))["gate_id"]
        room.ways = {"other": ScriptedWay()}
        await room.crash()
        await room.resolve(gate_id, "deny")
        await asyncio.sleep(DAY_S)
        room.keeper.tick()
        assert (await room.look(gate_id))["verdict"] == "deny"


@warped
async def test_a_guarded_gate_that_was_cut_off_before_its_question_is_unsent():
    """The kill switch is read before the question leaves: a crash there has made nothing."""
    async with opened(gates={"act": GuardedGate()}, way=ScriptedWay(late(30, says()))) as room:
        room.begin(key="k", deadline=60)
        await asyncio.sleep(5)
        await room.crash()
        room.way.then = says()
        assert (await room.ask(key="k"))["verdict"] == "allow"


@warped
async def test_a_start_works_on_a_full_disk():
    """What a crash cut off is ruled upon in memory, and on disk as soon as there is room."""
    async with opened(way=ScriptedWay(HANGS)) as room:
        room.begin(deadline=60)
        await asyncio.sleep(5)
        await room.kill()
        room.store = room.store.crash()
        room.store.full = 3
        await room.open()
        (found,) = await room.keeper.listing("all", 10, ME, admin=False)
        gate_id = found["gate_id"]
        assert found["step"] == "final"
        heard = await room.look(gate_id)
        assert (heard["verdict"], heard["final"], room.row(gate_id).step) == ("unavailable", True, "sending")
        await asyncio.sleep(10)
        assert room.row(gate_id).step == "final"
