"""Refused decisions and lifecycle records: what of them is kept, as whose, and how they are judged again."""

from __future__ import annotations

import asyncio
import json
from uuid import UUID

import pytest

from agentd.errors import RecordError, WireError
from agentd.intake import NO_TOKEN, Grant, Peer
from agentd.intake.evidence import Sender, allowed_by, grant_of, record_in, refused_record
from agentd.intake.routes import parse_body
from agentd.intake.routing import Route
from agentd.outcomes import Cause
from agentd.queued import Allowed, Refused, Source
from agentd.records import EVIDENCE
from agentd.wire import decode_message, decode_record

ME = Peer(1000, 1000, 7)
TCP = Peer(1000, -1, 0, token=3)
ID = "01890a5d-ac96-774b-bcce-b302099a8057"
MADE = b"m" * 16
KINDS = frozenset({"run.start", "event", "decision", "snapshot"})
SENDER = Sender(1000, 7, "lines")
DEEP = b'{"kind":"decision","context":"c","parameters":' + b"[" * 50_000 + b"]" * 50_000 + b"}"
HALF_PAIR = b'{"kind":"decision","context":"\\ud83d"}'


def keep(body, reason="why", limit=2**20, sender=SENDER):
    return refused_record(RecordError(raw=body), reason, sender, limit, lambda: MADE)


def decision(**fields):
    return json.dumps({"kind": "decision", "context": "c", **fields}).encode()


def array(*records):
    return b"[" + b",".join(records) + b"]"


# -- what is kept ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(EVIDENCE))
def test_evidence_is_kept(kind):
    """Every decision, receipt, task and lifecycle record, whatever is wrong with it."""
    assert keep(b'{"kind":"%b","wrong":1}' % kind.encode()).kind == kind


@pytest.mark.parametrize(
    "body",
    [b'{"kind":"event"}', b'{"kind":"span"}', b'{"kind":"heartbeat"}', b'{"kind":"decison"}', b'{"kind":7}', b'{"context":"c"}', b"{}", b"[]",
     b'"decision"', b"null", b"", b"decision", b'[{"kind":"decision"}]', b'{"kind":"\xff"}', b'{"x":{"kind":"decision"}}'],
)  # fmt: skip
def test_nothing_else_is_kept(body):
    """Telemetry, and what nobody can tell the kind of."""
    assert keep(body) is None


def test_it_is_kept_as_it_was_sent():
    """Bytes, sender and reason; its own id, run and agent where they can be read."""
    body = decision(id=ID, run_id="r", agent_id="billing", confidense=2)
    assert keep(body, "$.confidense: unknown field") == Refused(
        "decision", UUID(ID).bytes, "run:r", body, Source("billing", 1000, 7, "lines"), "$.confidense: unknown field"
    )


@pytest.mark.parametrize(
    "fields",
    [{"id": 7, "run_id": 7, "agent_id": {}}, {"id": "x", "run_id": "r" * 1000, "agent_id": None}, {"run_id": "\udcff"}],
)
def test_what_cannot_be_read_is_left_empty(fields):
    """It was refused for something: an id of ours stands for one that is none, and a name that is none is no name."""
    kept = keep(decision(**fields))
    assert (kept.record_id, kept.lane, kept.source.agent) == (MADE, "", "")


@pytest.mark.parametrize("body", [DEEP, HALF_PAIR, b' { "kind" : "decision", "context": '])
def test_what_no_parser_reads_is_known_by_a_kind_that_comes_first(body):
    """Too deep, half a surrogate pair, cut off."""
    assert (keep(body).kind, keep(body).body) == ("decision", body)
    assert keep(body.replace(b"decision", b"event")) is None


@pytest.mark.parametrize(("limit", "whole"), [(99, False), (100, True), (101, True)])
def test_a_record_is_kept_up_to_its_largest_size(limit, whole):
    """At limit − 1, limit and limit + 1 of `intake.max_record_bytes`; what was cut off is said."""
    body = decision(context="x" * (100 - len(decision(context=""))))
    kept = keep(body, limit=limit)
    assert kept.body == body[:limit]
    assert kept.reason == ("why" if whole else "why (the first 99 of 100 bytes are kept)")


def test_what_was_understood_and_is_too_large_is_kept_as_it_was_understood():
    """Its own bytes are gone by then; what is kept says the same."""
    record = decode_record(decision(parameters={"a": 1}, run_id="r"))
    kept = refused_record(record, "too large", SENDER, 2**20, lambda: MADE)
    assert json.loads(kept.body) == json.loads(decision(parameters={"a": 1}, run_id="r"))
    assert (kept.kind, kept.lane) == ("decision", "run:r")


def test_a_grant_comes_back_as_it_was():
    """With all, with none and with some."""
    for grant in (Grant(), Grant((), frozenset()), Grant(("a", "b*"), frozenset({"x", "y"}))):
        assert grant_of(allowed_by(grant)) == grant


# -- where it is found ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda one: one, array, lambda one: b'{"seq":1,"records":[%b]}' % one])
def test_a_refused_record_comes_with_its_bytes(wrap):
    """Alone, in an array and in an envelope: what is judged to be none of ours is at hand as it was sent."""
    bad = b'{"kind":"decision", "contxt":1.50}'
    [item] = decode_message(wrap(bad)).items
    assert (type(item), item.raw) == (RecordError, bad)


@pytest.mark.parametrize("bad", [DEEP, HALF_PAIR])
def test_what_the_parser_gives_up_on_comes_with_its_bytes(bad):
    """Beside its neighbours as their equal; alone with the refusal of the message."""
    good, item = decode_message(array(decision(), bad)).items
    assert (good.context, item.raw) == ("c", bad)
    with pytest.raises(WireError) as caught:
        decode_message(bad)
    assert caught.value.raw == bad
    assert not caught.value.fatal
    _, line = parse_body(decision() + b"\n" + bad + b"\n", "application/x-ndjson").items
    assert line.raw == bad


@pytest.mark.parametrize("bad", [b"{", b'{"kind":"decision"', b"nonsense", b'{"seq":1,"records":7}'])
def test_what_is_no_record_comes_without(bad):
    """A message that nobody can read is malformed, not an invalid record."""
    with pytest.raises(WireError) as caught:
        decode_message(bad)
    assert caught.value.raw == b""


# -- at intake -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def house(make_intake):
    return make_intake(Route("one", KINDS, frozenset({"run.start", "decision"})), max_record_bytes=200, max_depth=8)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (decision(confidence=7), "$.confidence: "),
        (decision(contxt="c"), "$.contxt: unknown field of decision; did you mean context?"),
        (decision(parameters="x" * 200), "$: 249 bytes, above intake.max_record_bytes (200) (the first 200 of 249 bytes are kept)"),
        (decision(parameters=[[[[[[[[]]]]]]]]), "$: nested deeper than intake.max_depth (8)"),
    ],
)  # fmt: skip
async def test_whatever_makes_a_record_invalid_has_it_kept(house, bad, reason):
    """A wrong field, an unknown one, too large, too deep; the sender is told as ever."""
    ack_of = house.submit(array(decision(), bad))
    house.shelf.commit()
    house.shelf.keep_letters()
    [refused] = (await ack_of).rejected
    [kept] = house.shelf.invalid
    assert (kept.reason.startswith(reason), kept.reason.startswith(refused.error)) == (True, True)
    assert (kept.source.uid, kept.source.origin, kept.allowed) == (1000, "frames", None)


@pytest.mark.parametrize("cause", [Cause.UNROUTED, Cause.SPOOL_FULL, Cause.ID_CONFLICT, Cause.FOREIGN_REFERENCE])
async def test_what_was_well_understood_is_not_kept(house, cause):
    """Its sender was told, and has it: it has no place here, or not now."""
    bad = decision(id=ID, decision_id="d")
    if cause is Cause.UNROUTED:
        bad = b'{"kind":"outcome","decision_id":"d","outcome_status":"s"}'
    elif cause is Cause.SPOOL_FULL:
        house.shelf.room = 0
    elif cause is Cause.ID_CONFLICT:
        house.submit(decision(id=ID))
        house.shelf.commit()
    else:
        house.shelf.own("decision", "d", uid=1001)
    outcome = house.admit(bad)
    assert (len(outcome.rejected), outcome.invalid) == (1, [])
    assert house.admission.refused[cause.value] == 1


async def test_the_answer_waits_until_the_letter_is_on_disk(house):
    """Promise 8: whoever has heard that his decision is refused can be sure that it is kept."""
    future = house.submit(b'{"seq":1,"records":[%b]}' % decision(contxt=1), stream="s")
    house.shelf.commit()
    await house.idle()
    assert not future.done()
    house.shelf.keep_letters()
    assert (await future).accepted == 0


async def test_what_needs_no_letter_is_answered_at_once(house):
    """Telemetry that is refused, and a repeat that is kept already."""
    assert (await house.submit(b'{"kind":"event"}')).accepted == 0
    house.shelf.knows_invalid = True
    assert (await house.submit(array(decision(contxt=1)))).accepted == 0


async def test_a_repeated_envelope_is_not_judged_again(house):
    """The stream's own memory answers it: one refusal, one letter."""
    data = b'{"seq":1,"records":[%b]}' % decision(contxt=1)
    first = house.submit(data, stream="s")
    house.shelf.commit()
    house.shelf.keep_letters()
    assert await house.submit(data, stream="s") == await first
    assert len(house.shelf.invalid) == 1


async def test_who_waits_for_no_answer_is_refused_once(house):
    """What finds no room is tried again and again; what is invalid beside it was judged the first time."""
    house.shelf.room = 0
    future = house.submit(array(decision(), decision(contxt=1)), hold=True)
    await house.idle()
    house.shelf.make_room()
    await house.idle()
    house.shelf.commit()
    house.shelf.keep_letters()
    ack = await future
    assert (ack.accepted, [refused.index for refused in ack.rejected], len(house.shelf.invalid)) == (1, [1], 1)


async def test_what_came_with_a_token_is_kept_with_what_that_allowed(make_intake):
    """The token may be another's by the time that somebody looks at it."""
    house = make_intake(Route("one", KINDS), grant=Grant(("billing",), frozenset({"one"})))
    house.submit(array(decision(contxt=1)), TCP)
    house.sink.keep(HALF_PAIR, "half a pair", TCP, "http")
    assert [kept.allowed for kept in house.shelf.invalid] == [Allowed(("billing",), ("one",))] * 2
    assert [(kept.source.uid, kept.source.origin) for kept in house.shelf.invalid] == [(1000, "frames"), (1000, "http")]


async def test_what_never_got_to_be_an_item_is_kept_too(house):
    """A broken record alone on its connection; what is no evidence, or nothing, is not."""
    house.sink.keep(HALF_PAIR, "half a pair", ME, "lines")
    house.sink.keep(b"", "nothing", ME, "lines")
    house.sink.keep(b'{"kind":"event","x":"\\ud800"}', "half a pair", ME, "lines")
    assert [(kept.body, kept.reason) for kept in house.shelf.invalid] == [(HALF_PAIR, "half a pair")]


# -- once more ---------------------------------------------------------------------------------------------------------------------


def refused(body, uid=1000, **facts):
    return Refused("decision", MADE, "", body, Source("", uid, 7, "lines"), "why", **facts)


async def again(house, one):
    task = asyncio.create_task(house.sink.readmit(one))
    await house.idle()
    house.shelf.commit()
    return await task


async def test_a_refused_record_that_is_right_by_now_is_taken(house):
    """As its sender's, under the id that it was kept by, on disk before it is said."""
    task = asyncio.create_task(house.sink.readmit(refused(decision(decision_id="d"))))
    await house.idle()
    assert not task.done()
    house.shelf.commit()
    assert await task is None
    [(name, entry)] = house.shelf.stored
    assert (name, entry.record_id, entry.kind) == ("one", MADE, "decision")
    assert (entry.source.uid, entry.source.pid, entry.source.origin) == (1000, 7, "lines")
    assert house.shelf.refs["one", "decision", "d"].uid == 1000


async def test_a_crash_before_the_letter_went_costs_no_second_copy(house):
    """It is known by its id: judged a third time it is taken, and stored once."""
    assert await again(house, refused(decision())) is None
    assert await again(house, refused(decision())) is None
    assert len(house.shelf.stored) == 1


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (decision(contxt=1), "$.contxt: unknown field of decision; did you mean context?"),
        (decision()[:-9], "Input data was truncated"),
        (HALF_PAIR, "Input data was truncated"),
        (DEEP, "nested too deeply"),
        (array(), "$: expected one record"),
        (decision(parameters="x" * 200), "$: "),
    ],
)
async def test_what_is_still_wrong_is_refused_again_and_kept_once(house, body, said):
    """With the reason of today."""
    answer = await again(house, refused(body))
    assert answer.startswith(said)
    assert (house.shelf.stored, house.shelf.invalid) == ([], [])


async def test_a_full_queue_is_a_reason_like_others(house):
    """It stays a letter until there is room."""
    house.shelf.room = 0
    assert await again(house, refused(decision())) == "spool full"


async def test_a_full_disk_is_too(house):
    """The commit fails: nothing was taken."""
    task = asyncio.create_task(house.sink.readmit(refused(decision())))
    await house.idle()
    house.shelf.fail()
    assert await task == "spool full"
    assert await again(house, refused(decision())) is None


async def test_whose_it_was_it_is(house):
    """Another user's reference is as closed to it as it would have been, also where root has it judged again."""
    house.shelf.own("decision", "d", uid=1001)
    assert "belongs to another user" in await again(house, refused(decision(decision_id="d")))


@pytest.mark.parametrize(
    ("allowed", "body", "said"),
    [
        (Allowed(("billing",), None), decision(agent_id="billing"), None),
        (Allowed(("billing",), None), decision(agent_id="sales"), "is not among the agents that you may speak for"),
        (Allowed(None, ("other",)), decision(), "no destination that you may use"),
    ],
)
async def test_what_a_token_allowed_it_is_what_is_allowed(house, allowed, body, said):
    """Not what its place in the configuration stands for now, and never more: root's uid over TCP is nobody's."""
    answer = await again(house, refused(body, uid=0, allowed=allowed))
    assert answer is None if said is None else said in answer
    house.shelf.own("decision", "d", uid=1001, agent="billing")
    theirs = refused(decision(decision_id="d", agent_id="billing"), uid=0, allowed=Allowed(None, None))
    assert "belongs to another user" in await again(house, theirs)


def test_a_record_keeps_its_own_id():
    """The one that it was kept by is its own, if it had one."""
    assert record_in(refused(decision())).id == UUID(bytes=MADE)
    assert record_in(refused(decision(id=ID))).id == UUID(ID)
    assert NO_TOKEN > 0
