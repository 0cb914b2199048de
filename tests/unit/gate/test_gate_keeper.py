"""The keeper: one question from its asking to its verdict on record."""

import asyncio
import json

import pytest
from gate_kit import (
    CUT,
    DOWN,
    HANGS,
    ME,
    OTHER,
    ROOT,
    GuardedGate,
    ScriptedGate,
    ScriptedWay,
    late,
    opened,
    says,
    warped,
)  # fmt: skip

from agentd.exchange import Reference, Request, Response
from agentd.intake import GateRefusal, Grant
from agentd.queued import DEAD, KNOWN
from agentd.standin import Asked

NEEDS_RUN = (Reference("run", "r"),)


def needing_run(**traits):
    gate = ScriptedGate(**traits)
    gate.needs = NEEDS_RUN
    return {"act": gate}


@warped
async def test_a_verdict_is_the_platforms_word():
    """§4: the answer has the contract's fields, and the platform's own answer whole."""
    async with opened() as room:
        heard = await room.ask()
        assert heard == {
            "gate_id": heard["gate_id"], "gate": "act", "destination": "cloud", "verdict": "allow", "proceed": True,
            "id": heard["gate_id"], "platform_id": "p-1", "reason": "status 200", "final": True,
            "response": {"word": "allow", "id": "p-1"},
        }  # fmt: skip


@pytest.mark.parametrize("word", ["deny", "review"])
@warped
async def test_only_allow_proceeds(word):
    """§4: `proceed` is true for `allow` alone."""
    async with opened(way=ScriptedWay(says(word))) as room:
        heard = await room.ask()
        assert (heard["verdict"], heard["proceed"], heard["final"]) == (word, False, True)


@warped
async def test_the_question_is_on_disk_before_it_leaves():
    """§4, on the record: when the request goes out the disk has it as `sending`, with its journal entries."""
    seen = []

    class Looking(ScriptedWay):
        async def send(self, request, headers, **options):
            gate_id = headers["idempotency-key"]
            seen.append((room.row(gate_id).step.value, room.notes(gate_id)))
            return await super().send(request, headers, **options)

    async with opened(way=Looking()) as room:
        heard = await room.ask()
        assert seen == [("sending", [("queued", "asked"), ("queued", "sending")])]
        assert room.notes(heard["gate_id"])[2:] == [("delivered", "allow")]
        assert room.row(heard["gate_id"]).tries == 1


@warped
async def test_the_verdict_is_on_disk_before_the_agent_hears_it():
    """§4, on the record: whoever hears a verdict finds it on disk, with the names of what was made."""
    async with opened() as room:
        heard = await room.ask()
        store = room.store.crash()  # what a crash would leave at this very moment
        room.store = store
        row = room.row(heard["gate_id"])
        assert (row.word, row.proceed, row.platform_id) == ("allow", True, "p-1")
        await room.crash()
        assert room.ref(heard["gate_id"]).platform_id == "p-1"
        assert room.ref("p-1").platform_id == "p-1"


@warped
async def test_nothing_is_sent_that_can_not_be_recorded():
    """§4: a full disk is `unavailable`, nothing sent, whatever the fail mode."""
    async with opened(open_mode=True) as room:
        room.spool.ledger.disk_full = True
        heard = await room.ask()
        assert (heard["verdict"], heard["proceed"], heard["final"]) == ("unavailable", False, True)
        assert "disk is full" in heard["reason"]
        assert room.way.sent == []
        assert await room.look(heard["gate_id"]) is None


@warped
async def test_many_questions_without_room_are_one_line(caplog):
    """One in ten seconds, with how many there were."""
    async with opened() as room:
        room.spool.ledger.disk_full = True
        for _ in range(50):
            await room.ask()
        await asyncio.sleep(10)
        await room.ask()
        said = [record.getMessage() for record in caplog.records if record.action == "gate_unrecorded"]
        assert (len(said), "(and 49 more since the last line)" in said[1]) == (2, True)


@warped
async def test_agents_without_keys_of_their_own_do_not_fill_the_book():
    """§4: the client library's keys hold their room for ten minutes, not for `gate.remember`."""
    async with opened(index_bytes=20 * 750) as room:
        for number in range(100):
            heard = await room.ask(key=f"client:{number}")
            if number % 10 == 9:
                await asyncio.sleep(601)
                room.keeper.tick()
            assert heard["verdict"] == "allow", heard


@warped
async def test_a_question_that_finds_no_room_is_not_sent():
    """§4: the same where the disk turns out to be full at the commit."""
    async with opened(open_mode=True) as room:
        room.store.full = 1
        heard = await room.ask(key="k")
        assert (heard["verdict"], heard["proceed"]) == ("unavailable", False)
        assert room.way.sent == []
        room.spool.ledger.disk_full = False
        assert (await room.ask(key="k"))["verdict"] == "allow"  # it left nothing behind under its key


@warped
async def test_a_verdict_that_finds_no_room_is_not_acted_upon():
    """§4: an `allow` that can't be recorded is `unavailable`; it is on record as soon as there is room, and then counts."""
    async with opened(way=ScriptedWay(late(1, says()))) as room:
        asking = room.begin(key="k")
        await asyncio.sleep(0.5)
        room.store.full = 3
        heard = await asking
        assert (heard["verdict"], heard["proceed"], heard["final"]) == ("unavailable", False, False)
        assert "could not be recorded" in heard["reason"]
        await asyncio.sleep(5)
        again = await room.ask(key="k")
        assert (again["verdict"], again["proceed"], again["repeated"]) == ("allow", True, True)
        assert len(room.way.sent) == 1


@warped
async def test_a_lost_answer_is_unavailable_and_is_not_repeated():
    """§4: what could act twice is sent once; the verdict says that nobody knows."""
    async with opened(way=ScriptedWay(CUT), open_mode=True) as room:
        heard = await room.ask()
        assert (heard["verdict"], heard["proceed"], len(room.way.sent)) == ("unavailable", False, 1)
        assert (await room.look(heard["gate_id"]))["acted"]
        assert room.ref(heard["gate_id"]).state == DEAD


@warped
async def test_a_lost_answer_is_asked_for_again_where_the_key_protects():
    """§4: the same bytes under the same key, as long as there is time."""
    async with opened(gates={"act": ScriptedGate(repeat=True)}, way=ScriptedWay(CUT, CUT)) as room:
        assert (await room.ask())["verdict"] == "allow"
        bodies = {(request.body, headers["idempotency-key"]) for request, headers, _ in room.way.sent}
        assert (len(room.way.sent), len(bodies)) == (3, 1)


@warped
async def test_repeats_end_with_the_deadline():
    """§4: within its deadline, and then `unavailable`: one of them may have acted."""
    async with opened(gates={"act": ScriptedGate(repeat=True)}, way=ScriptedWay(CUT, then=HANGS)) as room:
        begun = asyncio.get_running_loop().time()
        heard = await room.ask(deadline=3)
        assert asyncio.get_running_loop().time() - begun == pytest.approx(3, abs=0.01)
        assert (heard["verdict"], (await room.look(heard["gate_id"]))["acted"]) == ("unavailable", True)


@warped
async def test_a_try_that_may_have_acted_is_not_undone_by_a_later_one():
    """§4: after a lost answer a 429 says nothing about the first try."""
    script = ScriptedWay(CUT, then=says("unavailable", 429, None))
    async with opened(gates={"act": ScriptedGate(repeat=True)}, way=script, open_mode=True) as room:
        heard = await room.ask()
        assert (heard["proceed"], (await room.look(heard["gate_id"]))["acted"]) == (False, True)


@warped
async def test_a_rate_limit_is_waited_for_within_the_deadline():
    """A 429 with a time is asked again after it, one that would take longer than the deadline is `unavailable` at once."""
    limited = says("unavailable", 429, None, again_s=2)
    async with opened(way=ScriptedWay(limited)) as room:
        assert (await room.ask(deadline=5))["verdict"] == "allow"
        room.way.script = [limited]
        begun = asyncio.get_running_loop().time()
        heard = await room.ask(deadline=1)
        assert (heard["verdict"], asyncio.get_running_loop().time() - begun) == (
            "unavailable",
            pytest.approx(0, abs=0.1),
        )


@warped
async def test_a_gate_waits_for_its_run_to_be_known():
    """§4: it never overtakes its run's start, and names the run as the platform does."""
    async with opened(gates=needing_run()) as room:
        room.run()
        asking = room.begin(run_id="r", deadline=5)
        await asyncio.sleep(4)
        assert room.way.sent == []
        (gate,) = await room.keeper.listing("open", 10, ME, admin=False)
        assert (gate["step"], room.notes(gate["gate_id"])) == ("asked", [("queued", "asked")])
        room.named()
        assert (await asking)["verdict"] == "allow"
        assert json.loads(room.way.sent[0][0].body)["run"] == "p-run"
        assert room.notes(gate["gate_id"]) == [("queued", "asked"), ("queued", "sending"), ("delivered", "allow")]


@warped
async def test_a_run_that_stays_unknown_is_unavailable_at_the_deadline():
    """§4: within its deadline; nothing was sent."""
    async with opened(gates=needing_run(), open_mode=True) as room:
        room.run()
        begun = asyncio.get_running_loop().time()
        heard = await room.ask(run_id="r", deadline=5)
        assert asyncio.get_running_loop().time() - begun == pytest.approx(5, abs=0.01)
        assert (heard["verdict"], heard["proceed"], room.way.sent) == ("unavailable", False, [])
        assert not (await room.look(heard["gate_id"]))["acted"]


@warped
async def test_a_run_that_can_not_begin_because_the_platform_is_away_is_no_connection():
    """§4: under fail_mode "open" the agent of a run may go on too when the platform can't be reached."""
    async with opened(gates=needing_run(), open_mode=True) as room:
        room.run()
        room.way.unreachable = True
        heard = await room.ask(run_id="r", deadline=5)
        assert (heard["verdict"], heard["proceed"], heard["fail_open"]) == ("unavailable", True, True)


@warped
async def test_a_run_that_was_refused_is_unavailable_at_once():
    """§4: what its run needs will never be known."""
    async with opened(gates=needing_run(), open_mode=True) as room:
        room.run(state=DEAD)
        heard = await room.ask(run_id="r")
        assert (heard["verdict"], heard["proceed"], room.way.sent) == ("unavailable", False, [])


@warped
async def test_a_run_that_nobody_introduced_is_the_platforms_own():
    """§2: after `intake.reference_wait` an unknown id is taken as it is."""
    async with opened(gates=needing_run()) as room:
        begun = asyncio.get_running_loop().time()
        assert (await room.ask(run_id="theirs"))["verdict"] == "allow"
        assert asyncio.get_running_loop().time() - begun == pytest.approx(2, abs=0.01)
        assert json.loads(room.way.sent[0][0].body)["run"] == "theirs"


@warped
async def test_a_thrown_kill_switch_denies():
    """§4: the switch is read first, and nothing else is sent."""
    async with opened(gates={"act": GuardedGate()}, way=ScriptedWay(says("deny")), open_mode=True) as room:
        heard = await room.ask()
        assert (heard["verdict"], heard["proceed"], room.way.paths) == ("deny", False, ["/switch"])


@warped
async def test_a_kill_switch_that_can_not_be_read_is_unavailable():
    """§4: an answer lost there never proceeds; no connection at all is covered by the fail mode."""
    for answer, proceeds in ((CUT, False), (DOWN, True)):
        async with opened(gates={"act": GuardedGate()}, way=ScriptedWay(answer), open_mode=True) as room:
            heard = await room.ask()
            assert (heard["verdict"], heard["proceed"], room.way.paths) == ("unavailable", proceeds, ["/switch"])


@warped
async def test_the_same_key_asks_once():
    """§4: the recorded verdict, `repeated`, also after a crash; order of members and white space don't count."""
    async with opened() as room:
        first = await room.ask(key="k", request={"a": 1, "b": 2})
        again = await room.ask(key="k", request={"b": 2, "a": 1})
        assert again == first | {"repeated": True}
        await room.crash()
        assert await room.ask(key="k", request={"a": 1, "b": 2}) == first | {"repeated": True}
        assert len(room.way.sent) == 1


@warped
async def test_who_was_let_go_by_the_fail_mode_stays_let_go():
    """§4: a fail_open verdict is on record like any other: repeated, also when the platform is back and over a crash."""
    async with opened(way=ScriptedWay(DOWN, then=says("deny")), open_mode=True) as room:
        first = await room.ask(key="pay-1")
        assert (first["verdict"], first["proceed"], first["fail_open"]) == ("unavailable", True, True)
        for _ in range(2):
            assert await room.ask(key="pay-1") == first | {"repeated": True}
            await room.crash()
        (note,) = [n for n in room.journal(first["gate_id"]) if n.cause == "unavailable"]
        assert (note.proceed, note.fail_open, len(room.way.sent)) == (True, True, 1)
        await room.resolve(first["gate_id"], "unavailable")
        assert (await room.ask(key="pay-1"))["verdict"] == "deny"
        (note,) = [n for n in room.journal(first["gate_id"]) if n.cause == "deny"]
        assert (note.proceed, note.fail_open) == (False, False)


@warped
async def test_an_event_tells_of_what_is_on_disk():
    """§4, on the record: a verdict that finds no room is no event before it does."""
    async with opened(way=ScriptedWay(late(1, says()), CUT)) as room:
        steps = []
        room.keeper._announce_event = lambda gate, _: steps.append(room.row(gate.gate_id).step.value)
        asking = room.begin(run_id="theirs")
        await asyncio.sleep(0.5)
        room.store.full = 10**6
        assert not (await asking)["proceed"]
        assert (steps, room.keeper.status("cloud")["allow"]) == ([], 0)
        room.store.full = 0
        await asyncio.sleep(10)
        assert (steps, room.keeper.status("cloud")["allow"]) == (["final"], 1)


@warped
async def test_a_resolution_that_finds_no_room_is_no_event():
    """It was not recorded, and whoever resolved hears so."""
    async with opened(way=ScriptedWay(CUT)) as room:
        gate_id = (await room.ask(run_id="theirs"))["gate_id"]
        room.store.full = 1
        with pytest.raises(GateRefusal, match="disk is full"):
            await room.resolve(gate_id, "allow")
        assert [payload["verdict"] for _, payload in room.events] == ["unavailable"]
        room.spool.ledger.disk_full = False
        await room.resolve(gate_id, "allow")
        assert [payload["verdict"] for _, payload in room.events] == ["unavailable", "allow"]


@warped
async def test_callers_at_the_same_time_share_one_asking():
    """§4: fifty callers under one key, one request."""
    async with opened(way=ScriptedWay(late(1, says()))) as room:
        heard = await asyncio.gather(*(room.ask(key="k") for _ in range(50)))
        assert (len(room.way.sent), {h["gate_id"] for h in heard}) == (1, {heard[0]["gate_id"]})
        assert [h.get("repeated", False) for h in heard].count(False) == 1
        assert all(h["proceed"] for h in heard)


@pytest.mark.parametrize("other", [{"request": {"what": "y"}}, {"run_id": "q"}, {"agent_id": "another"}])
@warped
async def test_another_question_under_the_key_is_refused(other):
    """§4: gate_key_conflict."""
    async with opened() as room:
        await room.ask(key="k")
        with pytest.raises(GateRefusal, match=r"\$\.key") as refusal:
            await room.ask(key="k", **other)
        assert (refusal.value.status, refusal.value.code) == (409, "gate_key_conflict")


@warped
async def test_keys_of_two_users_are_two_keys():
    """§4: a key belongs to the uid that made it; the platform sees two keys as well."""
    async with opened() as room:
        mine, theirs = await room.ask(key="k"), await room.ask(key="k", peer=OTHER)
        assert mine["gate_id"] != theirs["gate_id"]
        assert len({headers["idempotency-key"] for _, headers, _ in room.way.sent}) == 2


@warped
async def test_after_a_lost_answer_the_key_stays_unavailable_until_it_is_resolved():
    """§4: also after `gate.remember`, and after a restart."""
    async with opened(way=ScriptedWay(CUT)) as room:
        first = await room.ask(key="k")
        await asyncio.sleep(3 * 86_400)
        room.keeper.tick()
        await room.crash()
        again = await room.ask(key="k")
        assert (again["verdict"], again["repeated"], len(room.way.sent)) == ("unavailable", True, 1)
        resolved = await room.resolve(first["gate_id"], "allow", platform_id="p-9", note="seen in the console")
        assert (resolved["verdict"], resolved["proceed"], resolved["resolved_by"]) == ("allow", True, 0)
        again = await room.ask(key="k")
        assert (again["proceed"], again["platform_id"], len(room.way.sent)) == (True, "p-9", 1)
        assert (room.ref(first["gate_id"]).state, room.ref("p-9").state) == (KNOWN, KNOWN)


@warped
async def test_resolved_as_unavailable_the_key_may_be_asked_again():
    """§4: a person says that nothing was made of it."""
    async with opened(way=ScriptedWay(CUT)) as room:
        first = await room.ask(key="k")
        await room.resolve(first["gate_id"], "unavailable")
        again = await room.ask(key="k")
        assert (again["verdict"], again["gate_id"], len(room.way.sent)) == ("allow", first["gate_id"], 2)


@pytest.mark.parametrize("answer", [DOWN, says("unavailable", 429, None), says("unavailable", 401, None)])
@warped
async def test_what_certainly_never_acted_may_be_asked_again_under_its_key(answer):
    """A key exists so that nothing acts twice; what acted not at all is a new try, under the same id and the same key."""
    async with opened(way=ScriptedWay(answer)) as room:
        first = await room.ask(key="k")
        assert first["verdict"] == "unavailable"
        again = await room.ask(key="k")
        assert (again["verdict"], again["gate_id"], "repeated" in again) == ("allow", first["gate_id"], False)
        assert len({headers["idempotency-key"] for _, headers, _ in room.way.sent}) == 1
        assert room.ref(first["gate_id"]).state == KNOWN


@warped
async def test_an_agent_that_hangs_up_stops_nothing():
    """§4: the verdict is recorded all the same."""
    async with opened(way=ScriptedWay(late(1, says()))) as room:
        asking = room.begin(key="k")
        await asyncio.sleep(0.5)
        asking.cancel()
        await asyncio.sleep(1)
        assert (await room.ask(key="k"))["repeated"]
        assert len(room.way.sent) == 1


@warped
async def test_no_answer_by_the_deadline_is_unavailable():
    """§4: the agent hears it at the deadline."""
    async with opened(way=ScriptedWay(HANGS), open_mode=True) as room:
        begun = asyncio.get_running_loop().time()
        heard = await room.ask(deadline=2)
        assert asyncio.get_running_loop().time() - begun == pytest.approx(2, abs=0.01)
        assert (heard["verdict"], heard["proceed"], heard["final"]) == ("unavailable", False, True)
        assert room.way.sent[0][2] == pytest.approx(2)


@warped
async def test_the_agents_own_name_is_a_reference():
    """§4: `id` is the client's own where it gave one, and later records can name it."""
    async with opened() as room:
        heard = await room.ask(request={"action_id": "mine", "what": "x"})
        assert (heard["id"], room.ref("mine").platform_id) == ("mine", "p-1")
        with pytest.raises(GateRefusal, match=r"\$\.request\.action_id: 'mine' is the name of an earlier action"):
            await room.ask(request={"action_id": "mine", "what": "y"})
        with pytest.raises(GateRefusal, match="belongs to another user"):
            await room.ask(request={"action_id": "mine", "what": "y"}, peer=OTHER)


@warped
async def test_foreign_runs_are_refused():
    """§2: another user's run, another agent's run."""
    async with opened(default_agent="bot") as room:
        room.run(uid=1001)
        room.run("q", agent="billing")
        for run, more in (("r", {}), ("q", {"agent_id": "other"})):
            with pytest.raises(GateRefusal) as refusal:
                await room.ask(run_id=run, **more)
            assert (refusal.value.status, refusal.value.code) == (422, "foreign_reference")
        await room.ask(run_id="r", peer=ROOT)
        await room.ask(run_id="q")
        assert json.loads(room.way.sent[-1][0].body)["agent"] == "billing"  # whose run it is asks


@warped
async def test_where_a_question_goes_has_to_be_clear():
    """§4: several destinations with that gate, none, an unknown one: refused, and the names are said."""
    async with opened(ways={"cloud": ScriptedWay(), "other": ScriptedWay()}) as room:
        for fields, words in (
            ({}, r"\$\.to: required .* cloud, other"),
            ({"to": "nowhere"}, r"\$\.to: no destination 'nowhere'"),
            ({"gate": "nod"}, r"\$\.gate: no destination has a gate 'nod' \(there are: act\)"),
        ):
            with pytest.raises(GateRefusal, match=words) as refusal:
                await room.ask(**fields)
            assert (refusal.value.status, refusal.value.code) == (422, "unrouted")
        assert (await room.ask(to="other"))["destination"] == "other"


@warped
async def test_grants_narrow_agents_and_destinations():
    """§1: what a token may not do is forbidden; where its grant leaves one destination that one is meant."""
    async with opened(ways={"cloud": ScriptedWay(), "other": ScriptedWay()}) as room:
        only = Grant(agent_ids=("billing",), destinations=frozenset({"other"}))
        assert (await room.ask(grant=only))["destination"] == "other"
        assert json.loads(room.ways["other"].sent[0][0].body)["agent"] == "billing"
        for fields in ({"to": "cloud"}, {"agent_id": "sales"}):
            with pytest.raises(GateRefusal) as refusal:
                await room.ask(grant=only, **fields)
            assert (refusal.value.status, refusal.value.code) == (403, "forbidden")


@warped
async def test_what_the_adapter_can_not_express_is_malformed():
    """§4: 422 that names the field; nothing is on record."""
    async with opened() as room:
        with pytest.raises(GateRefusal, match=r"\$\.request\.what: unfit"):
            await room.ask(request={"what": "unfit"})
        assert room.notes() == []


@warped
async def test_the_verdict_is_an_event_of_its_run():
    """§4: payload as in the contract, queued for the run."""
    async with opened() as room:
        room.run(state=KNOWN, platform_id="p-run")
        heard = await room.ask(run_id="r")
        ((run, payload),) = room.events
        assert (run, payload["gate_id"], payload["verdict"], payload["proceed"]) == (
            "r",
            heard["gate_id"],
            "allow",
            True,
        )
        assert {"gate", "destination", "id", "platform_id", "reason", "deadline", "waited_ms"} <= payload.keys()
        await room.ask()
        assert len(room.events) == 1


@warped
async def test_contents_are_for_the_uid_that_asked_and_admins():
    """§5: to others the gate does not exist."""
    async with opened() as room:
        gate_id = (await room.ask())["gate_id"]
        assert await room.look(gate_id, viewer=OTHER) is None
        assert (await room.look(gate_id, viewer=OTHER, admin=True))["verdict"] == "allow"
        assert await room.keeper.listing("all", 10, OTHER, admin=False) == []
        assert len(await room.keeper.listing("final", 10, ROOT, admin=True)) == 1


@warped
async def test_a_listing_leaves_out_what_may_be_large():
    """A thousand gates of a megabyte each are not one answer; `look` shows each whole."""
    async with opened() as room:
        gate_id = (await room.ask())["gate_id"]
        (listed,) = await room.keeper.listing("all", 10, ME, admin=False)
        whole = await room.look(gate_id)
        assert whole.keys() - listed.keys() == {"request", "response"}
        assert listed.items() <= whole.items()


@warped
async def test_what_is_open_was_not_decided_yet():
    """Its time of decision is that of its last word."""
    async with opened(way=ScriptedWay(says("pending", final=False))) as room:
        gate_id = (await room.ask())["gate_id"]
        assert (await room.look(gate_id))["decided_at"] is None
        assert (await room.resolve(gate_id, "allow"))["decided_at"]


@warped
async def test_a_gate_with_its_last_word_is_not_resolved():
    """A person's word does not replace the platform's, but it may be corrected."""
    async with opened(way=ScriptedWay(says(), CUT)) as room:
        with pytest.raises(GateRefusal, match="has said allow"):
            await room.resolve((await room.ask())["gate_id"], "deny")
        gate_id = (await room.ask())["gate_id"]
        await room.resolve(gate_id, "allow")
        assert (await room.resolve(gate_id, "deny"))["verdict"] == "deny"
        assert await room.resolve("nonesuch", "deny") is None


@warped
async def test_a_closed_keeper_says_what_is_certain():
    """Promise 7 for gates: on SIGTERM whoever waits hears the truth, and it is on record."""
    async with opened(gates=needing_run() | {"plain": ScriptedGate()}, way=ScriptedWay(then=HANGS)) as room:
        room.run()
        waiting, sent = room.begin(run_id="r"), room.begin("plain")
        await asyncio.sleep(1)
        await room.keeper.close()
        unsent, unknown = await waiting, await sent
        assert "before anything was sent" in unsent["reason"]
        assert "it may have acted" in unknown["reason"]
        with pytest.raises(GateRefusal, match="stopping"):
            await room.ask()
        await room.spool.barrier()
        assert [room.row(h["gate_id"]).acted for h in (unsent, unknown)] == [False, True]


@warped
async def test_a_defect_of_the_adapter_is_unavailable():
    """A gate whose adapter falls over its answer may have acted; one that falls over its question has not."""

    class Defective(ScriptedGate):
        def rule(self, question, answer, attempt):
            raise ZeroDivisionError("oops")

    async with opened(gates={"act": Defective()}, open_mode=True) as room:
        heard = await room.ask()
        assert (heard["verdict"], heard["proceed"]) == ("unavailable", False)
        assert "defect" in heard["reason"]
        assert (await room.look(heard["gate_id"]))["acted"]


@warped
async def test_an_sdks_own_request_is_on_the_same_record():
    """§5: its bytes go out as they are, never twice, and the platform's answer comes back as it came."""
    answer = Response(201, {"x-own": "1"}, b'{"word": "deny", "id": "p-7"}')
    async with opened(gates={"act": ScriptedGate(repeat=True)}, way=ScriptedWay(answer, CUT)) as room:
        asked = Asked("", None, {"what": b'"x"'})
        passed = await room.keeper.pass_on("cloud", "act", asked, Request("/own?x=1", b"raw bytes"), ME)
        assert (passed.answer, passed.verdict["verdict"]) == (answer, "deny")
        assert (room.way.sent[0][0].path, room.way.sent[0][0].body) == ("/own?x=1", b"raw bytes")
        assert room.ref("p-7").state == KNOWN
        lost = await room.keeper.pass_on("cloud", "act", asked, Request("/own", b""), ME)
        assert (lost.answer, len(room.way.sent)) == (CUT, 2)
        room.spool.ledger.disk_full = True
        assert (await room.keeper.pass_on("cloud", "act", asked, Request("/own", b""), ME)).answer is None


@warped
async def test_a_new_try_under_a_key_is_shared_like_the_first():
    """§4: the end of the earlier try's task does not hide the one that has begun meanwhile."""
    limited = says("unavailable", 429, None)
    async with opened(way=ScriptedWay(limited, then=late(1, says()))) as room:
        await room.ask(key="k")
        first = room.begin(key="k")
        await asyncio.sleep(0.5)
        second = await room.ask(key="k")
        assert (await first)["gate_id"] == second["gate_id"]
        assert len(room.way.sent) == 2


@warped
async def test_who_asks_while_somebody_resolves_hears_the_resolution():
    """§4: a person's word and a new try don't cross: nothing is sent of what has just been allowed."""
    async with opened(way=ScriptedWay(CUT)) as room:
        gate_id = (await room.ask(key="k"))["gate_id"]
        await room.resolve(gate_id, "unavailable")
        resolving = asyncio.create_task(room.resolve(gate_id, "allow"))
        await asyncio.sleep(0)
        asking = room.begin(key="k")
        assert (await resolving)["proceed"]
        heard = await asking
        assert (heard["verdict"], heard["repeated"], len(room.way.sent)) == ("allow", True, 1)


@warped
async def test_two_people_do_not_resolve_at_once():
    """The second hears that somebody else is at it."""
    async with opened(way=ScriptedWay(CUT)) as room:
        gate_id = (await room.ask())["gate_id"]
        first, second = await asyncio.gather(
            room.resolve(gate_id, "allow"), room.resolve(gate_id, "deny"), return_exceptions=True
        )
        assert first["verdict"] == "allow"
        assert (second.status, second.code) == (409, "under_way")
