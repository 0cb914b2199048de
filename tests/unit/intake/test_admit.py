"""Admission: what is taken, for whom, and what leaves no trace."""

from __future__ import annotations

import json
from uuid import UUID

import msgspec
import pytest

from agentd.intake import Peer
from agentd.intake.routing import Route
from agentd.outcomes import Cause
from agentd.records import TIME_FIELDS, TYPES, LossClass
from agentd.wire import decode_message

ME = Peer(1000, 1000, 7)
OTHER = Peer(1001, 1001, 8)
ROOT = Peer(0, 0, 9)
ID = "01890a5d-ac96-774b-bcce-b302099a8057"
RUNS = frozenset({"run.start", "event", "decision", "snapshot"})


def event(run="r", **fields):
    return json.dumps({"kind": "event", "run_id": run, "type": "t", **fields}).encode()


def start(run="r", **fields):
    return json.dumps({"kind": "run.start", "run_id": run, **fields}).encode()


def array(*records):
    return b"[" + b",".join(records) + b"]"


def reasons(outcome):
    return [(rejected.index, rejected.error) for rejected in outcome.rejected]


def test_a_record_is_numbered_and_put_into_its_lane(intake):
    """What is stored says where it came from, when, in which lane and under which id, and is what was understood."""
    outcome = intake.admit(event(agent_id="billing", level="debug", payload={"a": 1}))
    [entry] = outcome.copies["one"]
    assert (outcome.accepted, outcome.rejected) == (1, [])
    assert (entry.number, entry.lane, entry.kind, entry.loss) == (1, "run:r", "event", LossClass.DEBUG)
    assert (entry.agent, entry.source.uid, entry.source.pid, entry.source.origin) == ("billing", 1000, 7, "frames")
    assert entry.admitted_us == intake.clock.now_us()
    assert len(entry.record_id) == 16
    assert json.loads(entry.body) == {
        "kind": "event", "run_id": "r", "type": "t", "agent_id": "billing", "level": "debug", "payload": {"a": 1},
    }  # fmt: skip


def test_each_destination_gets_a_copy_of_its_own(make_intake):
    """A record goes to every destination that takes it, numbered in each of their queues, under one id."""
    intake = make_intake(
        Route("one", RUNS), Route("two", RUNS, default_agent="d", ordering="agent"), Route("three", frozenset({"task"}))
    )
    intake.shelf.number("two")
    outcome = intake.admit(b'{"kind":"decision","context":"c","run_id":"r"}')
    assert {name: (entries[0].number, entries[0].lane) for name, entries in outcome.copies.items()} == {
        "one": (1, "run:r"), "two": (2, "agent:d"),
    }  # fmt: skip
    assert len({entries[0].record_id for entries in outcome.copies.values()}) == 1
    assert outcome.accepted == 1


@pytest.mark.parametrize(("size", "right"), [(199, True), (200, True), (201, False)])
def test_a_record_has_a_largest_size(make_intake, size, right):
    """`intake.max_record_bytes` at limit − 1, limit and limit + 1, of the record as it is stored."""
    intake = make_intake(max_record_bytes=200)
    spare = size - len(event(payload="").replace(b" ", b""))
    outcome = intake.admit(event(payload="x" * spare).replace(b" ", b""))
    assert outcome.accepted == right
    assert right or reasons(outcome) == [(0, "$: 201 bytes, above intake.max_record_bytes (200)")]


@pytest.mark.parametrize(("levels", "right"), [(9, True), (10, True), (11, False)])
def test_a_record_has_a_greatest_depth(make_intake, levels, right):
    """`intake.max_depth` at limit − 1, limit and limit + 1; the record itself is one level."""
    intake = make_intake(max_depth=10)
    payload = b"[" * (levels - 1) + b"]" * (levels - 1)
    outcome = intake.admit(b'{"kind":"event","run_id":"r","type":"t","payload":' + payload + b"}")
    assert outcome.accepted == right
    assert right or reasons(outcome) == [(0, "$: nested deeper than intake.max_depth (10)")]


def test_one_bad_record_never_costs_its_neighbours(intake):
    """Each refusal has its place and its reason and is counted by cause; the others are taken."""
    outcome = intake.admit(b"[" + b",".join([event(), b'{"kind":"event"}', event(to="nonesuch"), event()]) + b"]")
    assert outcome.accepted == 2
    assert [index for index, _ in reasons(outcome)] == [1, 2]
    assert intake.admission.refused == {"invalid": 1, "unrouted": 1}
    assert intake.admission.accepted == 2


# -- ids -------------------------------------------------------------------------------------------------------------------


def test_a_repeat_is_accepted_and_stored_once(intake):
    """Clients without a stream have the id: the same one again is accepted, and there is one copy."""
    assert intake.admit(event(id=ID)).copies["one"][0].record_id == UUID(ID).bytes
    again = intake.admit(event(id=ID))
    assert (again.accepted, again.copies, again.repeats) == (1, {}, [(1000, UUID(ID).bytes)])


def test_a_repeat_within_one_message_is_stored_once(intake):
    """The same holds within an array."""
    outcome = intake.admit(b"[" + event(id=ID) + b"," + event(id=ID) + b"]")
    assert (outcome.accepted, len(outcome.copies["one"])) == (2, 1)


def test_the_same_id_with_other_content_is_refused(intake):
    """An id that was used for something else is a mistake that its author has to hear of."""
    intake.admit(event(id=ID))
    assert reasons(intake.admit(event(id=ID, level="warn"))) == [(0, f"$.id: {ID} was used for other content")]
    assert intake.admission.refused == {"id_conflict": 1}


def test_ids_are_one_users_own(intake):
    """Ids are compared within one peer uid: another user's use of the same one is another record."""
    intake.admit(event(id=ID))
    assert len(intake.admit(event("other", id=ID), OTHER).copies["one"]) == 1


@pytest.mark.parametrize("why", ["unrouted", "full", "foreign", "large"])
def test_a_refused_record_uses_up_no_id(make_intake, why):
    """After a refusal the same id may come again, with other content too; nothing of it is left behind."""
    intake = make_intake(max_record_bytes=300)
    if why == "full":
        intake.shelf.room = 0
    intake.shelf.own("run", "foreign", uid=OTHER.uid)
    fields = {"unrouted": {"to": "nonesuch"}, "foreign": {"run": "foreign"}, "large": {"payload": "x" * 300}}.get(
        why, {}
    )
    outcome = intake.admit(event(id=ID, **fields))
    assert (outcome.accepted, len(outcome.rejected), outcome.copies, outcome.seen) == (0, 1, {}, [])
    assert len(intake.window) == 0
    assert intake.shelf.numbers == {}
    intake.shelf.room = 10**9
    assert intake.admit(event(id=ID, level="warn")).accepted == 1


# -- references ------------------------------------------------------------------------------------------------------------


def test_a_start_introduces_its_run_where_it_goes(make_intake):
    """A reference belongs to destination, kind and id, and to the agent and user that introduced it."""
    intake = make_intake(Route("one", RUNS, frozenset({"run.start"})), Route("two", RUNS))
    outcome = intake.admit(start(agent_id="billing"))
    [ref] = outcome.introduced
    assert (ref.destination, ref.kind, ref.local_id, ref.agent, ref.uid, ref.number) == (
        "one",
        "run",
        "r",
        "billing",
        1000,
        1,
    )
    assert intake.admit(start(agent_id="billing", input={})).introduced == []


def test_records_of_a_run_are_its_agents(make_intake):
    """A record that names no agent is for the agent that introduced its run, and routed as that agent's."""
    intake = make_intake(Route("one", RUNS, frozenset({"run.start"}), agents=("billing",)), Route("two", RUNS))
    intake.admit(start(agent_id="billing"))
    outcome = intake.admit(event())
    assert set(outcome.copies) == {"one", "two"}
    assert outcome.copies["one"][0].agent == "billing"


@pytest.mark.parametrize(
    ("peer", "agent", "error"),
    [
        (ME, None, None), (ME, "billing", None), (ME, "support", "$.run_id: belongs to agent 'billing'"), (OTHER, None, "$.run_id: belongs to another user"),
        (OTHER, "billing", "$.run_id: belongs to another user"), (ROOT, None, None), (ROOT, "support", "$.run_id: belongs to another user"),
    ],
)  # fmt: skip
def test_another_agents_use_of_a_reference_is_refused(intake, peer, agent, error):
    """A run is its agent's and its user's; root may speak for anybody, but not mix up agents."""
    intake.admit(start(agent_id="billing"))
    outcome = intake.admit(event(**({} if agent is None else {"agent_id": agent})), peer)
    assert reasons(outcome) == ([] if error is None else [(0, error)])
    assert dict(intake.admission.refused) == ({} if error is None else {Cause.FOREIGN_REFERENCE.value: 1})


def test_a_second_start_of_a_foreign_run_is_refused(intake):
    """Nobody takes over a run by introducing it again."""
    intake.admit(start())
    assert intake.admit(start(), OTHER).accepted == 0


def test_a_parent_of_another_user_is_refused(intake):
    """A run may be the child of another agent's run, never of another user's; root may speak for anybody."""
    intake.admit(start("theirs", agent_id="billing"), OTHER)
    intake.admit(start("mine", agent_id="billing"))
    assert reasons(intake.admit(start("a", parent_run_id="theirs"))) == [
        (0, "$.parent_run_id: belongs to another user")
    ]
    assert intake.admission.refused == {Cause.FOREIGN_REFERENCE.value: 1}
    assert intake.admit(start("b", agent_id="support", parent_run_id="mine")).accepted == 1
    assert intake.admit(start("c", parent_run_id="nobodys")).accepted == 1
    assert intake.admit(start("d", parent_run_id="theirs"), ROOT).accepted == 1


@pytest.mark.parametrize(("named", "right"), [(None, True), ("agent-1", True), ("agent-2", False)])
def test_who_starts_without_an_agent_is_the_default_one(make_intake, named, right):
    """A run that was started without agent_id belongs to the destination's default agent: later records may name it so."""
    intake = make_intake(Route("one", RUNS, frozenset({"run.start"}), default_agent="agent-1"))
    [first] = intake.admit(start()).copies["one"]
    outcome = intake.admit(event(**({} if named is None else {"agent_id": named})))
    assert reasons(outcome) == ([] if right else [(0, "$.run_id: belongs to agent ''")])
    if right:
        [later] = outcome.copies["one"]
        assert (later.lane, later.agent) == (first.lane, first.agent) == ("run:r", "")


def test_an_unknown_reference_is_taken(intake):
    """An id that nothing has introduced is taken: delivery waits for its introducer, or it is the platform's own."""
    assert intake.admit(event("their-own")).accepted == 1


# -- a full queue ----------------------------------------------------------------------------------------------------------


def test_a_full_queue_is_answered_per_record(intake):
    """Promise 6: what finds no room is refused by name, and its record is given back; smaller ones of other runs may fit."""
    intake.shelf.room = 300
    outcome = intake.admit(array(event(), event(payload="x" * 300), event("other")))
    assert outcome.accepted == 2
    assert reasons(outcome) == [(1, "spool full")]
    assert [index for index, _ in outcome.full] == [1]
    assert intake.admission.refused == {"spool_full": 1}


def test_what_finds_no_room_is_overtaken_by_its_run_nowhere_but_elsewhere(make_intake):
    """Promise 2: behind a record that found no room nothing of its run is taken for the same destination; others go on."""
    intake = make_intake(Route("one", RUNS), Route("two", RUNS))
    intake.shelf.rooms = {"one": 300}
    large = event(to="one", payload="x" * 300)
    outcome = intake.admit(array(event(), large, event(to="one"), event(), event("other"), event(to="two")))
    assert [(refused.index, refused.to) for refused in outcome.rejected] == [(1, []), (2, []), (3, ["one"])]
    assert [index for index, _ in outcome.full] == [1, 2, 3]
    runs = {name: [json.loads(entry.body)["run_id"] for entry in entries] for name, entries in outcome.copies.items()}
    assert runs == {"one": ["r", "other"], "two": ["r", "r", "other", "r"]}


@pytest.mark.parametrize(("level", "waits"), [("warn", True), ("error", True), ("info", False), ("debug", False)])
def test_a_stream_remembers_what_has_to_come_first(intake, level, waits):
    """Promise 2: what must not be lost comes again, and its run waits for it in later messages; what may be lost holds up nobody."""
    away = {}
    intake.shelf.room = 300
    large = event(payload="x" * 300, level=level)
    assert intake.admit(large, turned_away=away).accepted == 0
    assert intake.admit(event(), turned_away=away).accepted == (not waits)
    assert intake.admit(event("other"), turned_away=away).accepted == 1
    intake.shelf.room = 10**9
    assert intake.admit(event(), turned_away=away).accepted == (not waits)
    assert intake.admit(large, turned_away=away).accepted == 1
    assert away == {}
    assert intake.admit(event(), turned_away=away).accepted == 1


@pytest.mark.parametrize("room", [10**9, 0])
def test_what_can_never_fit_is_refused_at_once(make_intake, room):
    """A record above a destination's own max_bytes would wait for ever: it is refused with that reason, full or not."""
    intake = make_intake(Route("one", RUNS), Route("two", RUNS))
    intake.shelf.room = room
    body = len(event(payload="x" * 300).replace(b" ", b""))
    intake.shelf.quotas["two"] = body + 63
    outcome = intake.admit(event(payload="x" * 300))
    assert reasons(outcome) == [(0, f"$: {body} bytes, above max_bytes of destination two")]
    assert (outcome.full, outcome.copies, dict(intake.admission.refused)) == ([], {}, {"invalid": 1})
    intake.shelf.quotas["two"] += 1
    intake.shelf.room = 10**9
    assert intake.admit(event(payload="x" * 300)).accepted == 1


# -- times -----------------------------------------------------------------------------------------------------------------

TIMES = [
    ("event", "occurred_at", {"run_id": "r", "type": "t"}),
    ("span", "started_at", {"run_id": "r", "span_id": "s", "name": "n"}),
    ("span", "ended_at", {"run_id": "r", "span_id": "s", "name": "n"}),
]


@pytest.mark.parametrize(("kind", "field", "fields"), TIMES)
@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+05:00", "9999-12-31T23:59:59-00:01"])
def test_a_time_without_a_utc_form_is_refused(make_intake, kind, field, fields, time):
    """A moment before the year 1 or after 9999 in UTC could never be sent: it is refused at once, and its field is named."""
    intake = make_intake(Route("one", RUNS | {"span"}))
    outcome = intake.admit(array(json.dumps({"kind": kind, field: time, **fields}).encode(), event()))
    assert reasons(outcome) == [(0, f"$.{field}: out of range in UTC")]
    assert (outcome.accepted, dict(intake.admission.refused)) == (1, {"invalid": 1})


@pytest.mark.parametrize(("kind", "field", "fields"), TIMES)
def test_times_are_kept_in_utc(make_intake, kind, field, fields):
    """What is stored is the same moment in UTC, so that nothing that is sent later needs an offset."""
    intake = make_intake(Route("one", RUNS | {"span"}))
    for time in ("2026-01-31T12:00:00.5+05:30", "2026-01-31T06:30:00.5Z"):
        [entry] = intake.admit(json.dumps({"kind": kind, field: time, **fields}).encode()).copies["one"]
        assert json.loads(entry.body)[field] == "2026-01-31T06:30:00.500000Z"


def test_every_time_of_every_kind_is_looked_at():
    """A time field that is added to a kind is normalised too."""
    for kind, record in TYPES.items():
        times = {field.name for field in msgspec.structs.fields(record) if "datetime" in str(field.type)}
        assert set(TIME_FIELDS[kind]) == times, kind


def test_a_refused_debug_event_does_not_turn_away_what_is_never_shed(intake):
    """Promise 6: behind a debug or info event that finds no room a warning may still find some, by shedding others of these."""
    intake.shelf.room_for = lambda _name, _size, loss, _uid: loss is LossClass.KEEP
    outcome = intake.admit(array(event(level="debug"), event(level="info"), event(level="warn"), event(level="debug")))
    assert [rejected.index for rejected in outcome.rejected] == [0, 1, 3]
    assert [entry.loss for entry in outcome.copies["one"]] == [LossClass.KEEP]


def test_what_waits_here_is_overtaken_by_nothing(intake):
    """Promise 2: of a message that nobody answers, a record that has to wait keeps all of its run behind it."""
    intake.shelf.room_for = lambda _name, _size, loss, _uid: loss is LossClass.KEEP
    message = decode_message(array(event(level="debug"), event(level="warn"), event("other", level="warn")))
    outcome = intake.admission.admit(list(enumerate(message.items)), ME, "lines", 0, hold=True)
    assert [index for index, _ in outcome.full] == [0, 1]
    assert [entry.lane for entry in outcome.copies["one"]] == ["run:other"]


def test_a_message_may_not_take_more_than_there_is(intake):
    """Promise 6: the records of one message count against the room one after the other, not each by itself."""
    one = len(msgspec.json.encode({"kind": "event", "run_id": "r", "type": "t"})) + 64
    intake.shelf.room = 3 * one + one // 2
    assert intake.admit(array(*[event() for _ in range(10)])).accepted <= 3


# -- taken in part ---------------------------------------------------------------------------------------------------------

TWO = (Route("one", RUNS, frozenset({"run.start"})), Route("two", RUNS, frozenset({"run.start"})))


def placed(outcome):
    return {name: [json.loads(entry.body)["run_id"] for entry in entries] for name, entries in outcome.copies.items()}


def test_each_destination_answers_for_itself(make_intake):
    """Who has room takes a record; its refusal names those that have none, and it counts as refused once."""
    intake = make_intake(*TWO)
    intake.shelf.rooms = {"one": 0}
    outcome = intake.admit(array(event(), event(to="two"), event(to="one")))
    assert [(refused.index, refused.error, refused.to) for refused in outcome.rejected] == [
        (0, "spool full", ["one"]), (2, "spool full", []),
    ]  # fmt: skip
    assert placed(outcome) == {"two": ["r", "r"]}
    assert (outcome.accepted, intake.admission.accepted) == (1, 1)
    assert intake.admission.refused == {"spool_full": 2}
    assert [record.to for _, record in outcome.full] == [["one"], "one"]


def test_a_run_is_introduced_where_its_start_is_taken(make_intake):
    """A reference comes into being with the copy that introduces it, at its own destination."""
    intake = make_intake(*TWO)
    intake.shelf.rooms = {"one": 0}
    assert [ref.destination for ref in intake.admit(start(agent_id="billing")).introduced] == ["two"]
    intake.shelf.rooms = {}
    assert [ref.destination for ref in intake.admit(start(agent_id="billing", to="one")).introduced] == ["one"]


@pytest.mark.parametrize("again", [{}, {"to": "one"}, {"to": ["two", "one"]}], ids=["as it was", "narrowed", "named"])
def test_a_record_with_an_id_is_sent_again_to_who_lacks_it(make_intake, again):
    """As it was or narrowed, it is stored at those alone that had no room; after that it is a repeat however it comes."""
    intake = make_intake(*TWO)
    intake.shelf.rooms = {"one": 0}
    assert placed(intake.admit(event(id=ID))) == {"two": ["r"]}
    outcome = intake.admit(event(id=ID, **again))
    assert (placed(outcome), outcome.accepted) == ({}, 0)
    intake.shelf.rooms = {}
    outcome = intake.admit(event(id=ID, **again))
    assert (placed(outcome), outcome.accepted, outcome.rejected) == ({"one": ["r"]}, 1, [])
    for fields in ({}, {"to": "one"}, {"to": ["one", "two"]}):
        outcome = intake.admit(event(id=ID, **fields))
        assert (placed(outcome), outcome.accepted, len(outcome.repeats)) == ({}, 1, 1)
    assert reasons(intake.admit(event(id=ID, level="warn"))) == [(0, f"$.id: {ID} was used for other content")]


def test_a_refusal_names_who_lacks_it_not_who_was_asked(make_intake):
    """Sent again as it was while the queue is still full, `to` is what it was; narrowed, nobody else is concerned."""
    intake = make_intake(*TWO)
    intake.shelf.rooms = {"one": 0}
    asked = [event(id=ID), event(id=ID), event(id=ID, to="one"), event(id=ID, to="two")]
    refused = [[(one.error, one.to) for one in intake.admit(data).rejected] for data in asked]
    assert refused == [[("spool full", ["one"])], [("spool full", ["one"])], [("spool full", [])], []]


def test_where_it_goes_is_no_content(make_intake):
    """The same id and content for another destination is the same record, which that one lacks."""
    intake = make_intake(*TWO)
    assert placed(intake.admit(event(id=ID, to="two"))) == {"two": ["r"]}
    assert placed(intake.admit(event(id=ID, to="one"))) == {"one": ["r"]}
    assert placed(intake.admit(event(id=ID))) == {}


def test_a_record_without_an_id_is_sent_again_narrowed(make_intake):
    """Nothing tells it from another one like it: narrowed it is stored at those that lack it, as it was at all once more."""
    intake = make_intake(*TWO)
    intake.shelf.rooms = {"one": 0}
    assert placed(intake.admit(event())) == {"two": ["r"]}
    intake.shelf.rooms = {}
    assert placed(intake.admit(event(to=["one"]))) == {"one": ["r"]}
    assert placed(intake.admit(event())) == {"one": ["r"], "two": ["r"]}


def test_a_narrower_record_may_be_a_little_longer(make_intake):
    """A record at the largest size is not refused for the `to` that it was told to come again with."""
    intake = make_intake(*TWO, max_record_bytes=200)
    full = event(payload="x" * (200 - len(event(payload="").replace(b" ", b"")))).replace(b" ", b"")
    assert intake.admit(full).accepted == 1
    assert intake.admit(full[:-1] + b',"to":["one"]}').accepted == 1
    assert intake.admit(full[:-2] + b'x","to":["one"]}').accepted == 0


def test_a_stream_waits_at_the_full_destination_alone(make_intake):
    """Promise 2: what has to come first is remembered per destination, and known again when it comes narrowed."""
    intake = make_intake(*TWO)
    away = {}
    intake.shelf.rooms = {"one": 300}
    large = {"payload": "x" * 300, "level": "warn"}
    assert intake.admit(event(**large), turned_away=away).rejected[0].to == ["one"]
    assert intake.admit(event(), turned_away=away).rejected[0].to == ["one"]
    assert intake.admit(event(to="two"), turned_away=away).accepted == 1
    intake.shelf.rooms = {}
    assert intake.admit(event(to="one"), turned_away=away).accepted == 0
    assert intake.admit(event(to=["one"], **large), turned_away=away).accepted == 1
    assert away == {}


def test_more_runs_than_are_remembered_wait_together(intake, monkeypatch):
    """Promise 2: beyond 256 runs of a stream, all that are not known wait for the first of them; a sweep opens it again."""
    monkeypatch.setattr("agentd.intake.order.MAX_TURNED_AWAY", 2)
    away = {}
    intake.shelf.room = 0
    for run in "abcd":
        assert intake.admit(event(run, level="warn"), turned_away=away).accepted == 0
    assert list(away) == ["one run:a", "one run:b", "one "]
    assert intake.admit(event("a", level="error"), turned_away=away).accepted == 0
    intake.shelf.room = 10**9
    assert intake.admit(event("a", level="error"), turned_away=away).accepted == 0
    for level in ("warn", "error"):  # once its first has come, a run that is known waits for no other
        assert intake.admit(event("a", level=level), turned_away=away).accepted == 1
    for run, right in (("d", False), ("new", False), ("c", True), ("d", True), ("b", True), ("new", True)):
        assert intake.admit(event(run, level="warn"), turned_away=away).accepted == right, run
    assert away == {}


def test_a_message_that_waits_holds_its_rest(make_intake):
    """With `hold` the rest of a record waits, narrowed to who lacks it, and what comes later behind it there alone."""
    intake = make_intake(*TWO)
    intake.shelf.rooms = {"one": 0}
    items = list(enumerate(decode_message(array(event(level="debug"), event("other"))).items))
    outcome = intake.admission.admit(items, ME, "lines", 0, hold=True, behind=[("two", "run:other")])
    assert [(index, record.to) for index, record in outcome.full] == [(0, ["one"]), (1, None)]
    assert placed(outcome) == {"two": ["r"]}
    assert outcome.waiting == {("one", "run:r"), ("one", "run:other"), ("two", "run:other")}
