"""The sink: acknowledged once on disk, repeats answered alike, and nothing dropped in silence."""

from __future__ import annotations

import json

import pytest

from agentd.errors import WireError
from agentd.intake import Peer, Waiting, streams
from agentd.intake.routing import Route
from agentd.intake.streams import Streams
from agentd.wire import Ack, Hello, Rejected

ME = Peer(1000, 1000, 7)
OTHER = Peer(1001, 1001, 8)
ID = "01890a5d-ac96-774b-bcce-b302099a8057"
STREAM = "3e0f4a3a-0000-7000-8000-000000000000"


RUNS = frozenset({"run.start", "event"})


def event(type_="t", **fields):
    return json.dumps({"kind": "event", "run_id": "r", "type": type_, **fields}).encode()


def envelope(seq, *records):
    return b'{"seq":%d,"records":[%b]}' % (seq, b",".join(records))


def array(*records):
    return b"[" + b",".join(records) + b"]"


def types(intake):
    return [json.loads(body)["type"] for body in intake.stored_types()]


# -- on disk, then answered ------------------------------------------------------------------------------------------------


async def test_an_envelope_is_answered_when_it_is_on_disk(intake):
    """Promise 1: an answer is given after the commit and never before it."""
    future = intake.submit(envelope(7, event(), b'{"kind":"event"}', event()))
    await intake.idle()
    assert not future.done()
    intake.shelf.commit()
    ack = await future
    assert (ack.seq, ack.accepted) == (7, 2)
    assert [(r.index, r.error) for r in ack.rejected] == [(1, "$.type: required in event")] or ack.rejected[
        0
    ].index == 1
    assert len(intake.shelf.stored) == 2


async def test_what_is_refused_whole_needs_no_disk(intake):
    """An envelope of which nothing is taken is answered at once."""
    future = intake.submit(envelope(7, b'{"kind":"event"}'))
    assert (await future).accepted == 0
    assert intake.shelf.pending == []


async def test_a_message_without_seq_says_so(intake):
    """Nobody waits for it: its seq is -1."""
    future = intake.submit(event())
    intake.shelf.commit()
    assert (await future).seq == -1
    assert intake.sink.messages == 1


# -- streams ---------------------------------------------------------------------------------------------------------------


async def test_a_repeated_envelope_is_answered_from_what_was_kept(intake):
    """Within a stream a repeat gets the same answer and stores nothing, refusals included."""
    data = envelope(1, event(), b'{"kind":"event"}')
    first = intake.submit(data, stream=STREAM)
    intake.shelf.commit()
    again = intake.submit(data, stream=STREAM)
    assert await again == await first
    assert intake.shelf.pending == []
    assert len(intake.shelf.stored) == 1


async def test_a_repeat_of_what_is_under_way_waits_with_it(intake):
    """A client that reconnects before the commit shares the answer that is to come."""
    first = intake.submit(envelope(1, event()), stream=STREAM)
    again = intake.submit(envelope(1, event()), stream=STREAM)
    assert again is first
    intake.shelf.commit()
    assert (await again).accepted == 1


async def test_outcomes_go_to_disk_with_their_records(intake):
    """Promise 1: after a restart the stream knows its last outcomes, so that a repeat is stored once."""
    intake.submit(envelope(1, event()), stream=STREAM)
    intake.shelf.commit()
    [(_, row, value)] = [put for put in intake.shelf.puts if put[0] == "stream"]
    known = Streams()
    known.add(row, streams.decode(value))
    sink = intake.new_sink(known)
    assert sink.hello(Hello(hello=1, stream=STREAM), ME)["last_seq"] == 1
    intake.sink = sink
    assert await intake.submit(envelope(1, event()), stream=STREAM) == Ack(1, 1)
    assert intake.shelf.pending == []


async def test_a_stream_is_its_users_own(intake):
    """Another user's envelope under the same stream and seq is another one."""
    intake.submit(envelope(1, event()), stream=STREAM)
    intake.submit(envelope(1, event()), OTHER, stream=STREAM)
    assert len(intake.shelf.pending) == 2


async def test_a_seq_that_is_too_old_is_an_error(intake):
    """An envelope more than 64 behind can't be judged: it is an error with its seq, never stored a second time."""
    for seq in range(1, 67):
        intake.submit(envelope(seq, event()), stream=STREAM)
    intake.shelf.commit()
    await intake.idle()
    with pytest.raises(WireError, match="no outcome of 1 is kept") as caught:
        intake.submit(envelope(1, event()), stream=STREAM)
    assert caught.value.seq == 1


async def test_a_hello_alone_opens_no_stream(intake):
    """A client that says hello and sends nothing takes no place in memory or on disk; its first envelope opens its stream."""
    for number in range(100):
        assert intake.sink.hello(Hello(hello=1, stream=f"s{number}"), ME)["last_seq"] == 0
    assert (len(intake.sink.streams), intake.shelf.rows) == (0, 0)
    intake.submit(envelope(1, event()), stream="s7")
    intake.shelf.commit()
    assert (len(intake.sink.streams), intake.shelf.rows) == (1, 1)
    assert intake.sink.hello(Hello(hello=1, stream="s7"), ME)["last_seq"] == 1


async def test_silent_streams_are_pruned(intake):
    """A stream that was silent for long is forgotten, and its row is given back; one that spoke since stays."""
    intake.submit(envelope(1, event()), stream="silent")
    intake.clock.advance(100)
    intake.submit(envelope(1, event()), stream="lively")
    intake.shelf.commit()
    row, _ = intake.sink.streams.get(ME.uid, "silent")
    assert intake.sink.prune(lambda at: at < intake.clock.now_us() - 10**6) == [row]
    assert intake.sink.streams.get(ME.uid, "silent") is None
    assert intake.sink.streams.get(ME.uid, "lively") is not None
    assert intake.sink.hello(Hello(hello=1, stream="silent"), ME)["last_seq"] == 0


def test_a_hello_tells_and_is_told(intake):
    """The hello's losses are counted by cause, the newest word of each stream; the answer names the last seq."""
    answer = intake.sink.hello(Hello(hello=1, stream=STREAM, lost={"no_daemon": 3}), ME)
    assert (answer["last_seq"], answer["max_frame_bytes"]) == (0, 1000)
    intake.sink.hello(Hello(hello=1, stream=STREAM, lost={"no_daemon": 5}), ME)
    assert intake.sink.streams.lost() == {"no_daemon": 5}
    assert intake.sink.hello(Hello(hello=1), ME)["last_seq"] == 0


def test_what_a_hello_says_is_on_disk_without_an_envelope(intake):
    """A client that has lost everything so far may never send anything: its figures outlive the daemon all the same."""
    intake.sink.hello(Hello(hello=1, stream=STREAM, lost={"no_daemon:event": 3}), ME)
    assert {row: streams.decode(value).lost for row, value in intake.shelf.kept.items()} == {1: {"no_daemon:event": 3}}
    intake.shelf.kept.clear()
    intake.sink.hello(Hello(hello=1, stream=STREAM, lost={"no_daemon:event": 3}), ME)
    assert intake.shelf.kept == {}
    intake.sink.hello(Hello(hello=1, stream=STREAM, lost={"no_daemon:event": 5}), ME)
    assert streams.decode(intake.shelf.kept[1]).lost == {"no_daemon:event": 5}


async def test_what_a_forgotten_stream_has_lost_is_kept(intake):
    """Its row goes, its figures stay; a hello says that its client has not gone."""
    intake.sink.hello(Hello(hello=1, stream="silent", lost={"no_daemon:event": 3}), ME)
    intake.sink.hello(Hello(hello=1, stream="lively", lost={"no_daemon:event": 2}), ME)
    intake.clock.advance(100)
    intake.sink.hello(Hello(hello=1, stream="lively", lost={"no_daemon:event": 2}), ME)
    row, _ = intake.sink.streams.get(ME.uid, "silent")
    assert intake.sink.prune(lambda at: at < intake.clock.now_us() - 10**6) == [row]
    assert intake.sink.streams.lost() == {"no_daemon:event": 5}
    assert streams.decode(intake.shelf.kept[intake.shelf.rows]).lost == {"no_daemon:event": 3}


@pytest.mark.parametrize("stream", ["", "x" * 65])
def test_a_stream_has_a_name_of_bounded_length(intake, stream):
    """A stream id that is none is an error."""
    with pytest.raises(WireError, match=r"\$\.stream"):
        intake.sink.hello(Hello(hello=1, stream=stream), ME)


# -- ids -------------------------------------------------------------------------------------------------------------------


async def test_a_repeated_id_waits_until_the_first_is_on_disk(intake):
    """Promise 1: "accepted" for a repeat means that the record is on disk, not that it is under way."""
    first = intake.submit(envelope(1, event(id=ID)))
    again = intake.submit(envelope(2, event(id=ID)))
    await intake.idle()
    assert not again.done()
    intake.shelf.commit()
    assert ((await first).accepted, (await again).accepted) == (1, 1)
    assert len(intake.shelf.stored) == 1
    [seen] = [put for put in intake.shelf.puts if put[0] == "seen"]
    assert seen[1] == 1


async def test_a_repeated_id_whose_first_was_not_kept_is_refused(intake):
    """If the disk had no room for the first, its repeat is refused in its place, beside its own refusals."""
    intake.submit(envelope(1, event(id=ID)))
    again = intake.submit(envelope(2, b'{"kind":"event"}', event(id=ID)))
    intake.shelf.fail()
    ack = await again
    assert (ack.accepted, [r.index for r in ack.rejected]) == (0, [0, 1])
    assert ack.rejected[1] == Rejected(1, "spool full")
    assert "run_id" in ack.rejected[0].error


# -- a full disk -----------------------------------------------------------------------------------------------------------


async def test_a_full_disk_is_answered_per_record(intake):
    """Promise 6: what the disk did not take is refused as `spool full`, each record in its place, and counted."""
    future = intake.submit(envelope(1, event(id=ID), b'{"kind":"event"}', event()))
    intake.shelf.fail()
    ack = await future
    assert (ack.seq, ack.accepted) == (1, 0)
    assert [r.index for r in ack.rejected] == [0, 1, 2]
    assert (ack.rejected[0].error, ack.rejected[2].error) == ("spool full", "spool full")
    assert intake.admission.refused == {"invalid": 1, "spool_full": 2}
    assert intake.admission.accepted == 0


async def test_after_a_full_disk_ids_are_free(intake):
    """A refused record uses up no id: the client sends it again when there is room, and it is stored."""
    intake.submit(envelope(1, event(id=ID)))
    intake.shelf.fail()
    await intake.idle()
    again = intake.submit(envelope(2, event(id=ID)))
    intake.shelf.commit()
    assert (await again).accepted == 1
    assert len(intake.shelf.stored) == 1


async def test_after_a_full_disk_a_stream_keeps_the_refusal(intake):
    """The outcome that is kept for a repeat is the one that was answered, on disk too as soon as there is room."""
    first = intake.submit(envelope(1, event()), stream=STREAM)
    intake.shelf.fail()
    assert (await first).accepted == 0
    intake.shelf.commit()
    again = await intake.submit(envelope(1, event()), stream=STREAM)
    assert again.accepted == 0
    [put] = [put for put in intake.shelf.puts if put[0] == "stream"]
    assert streams.decode(put[2]).outcomes[1] == again


async def test_a_full_queue_is_answered_to_whoever_waits(intake):
    """An envelope that finds no room is answered at once."""
    intake.shelf.room = 0
    assert await intake.submit(envelope(1, event())) == Ack(1, 0, [Rejected(0, "spool full")])


# -- backpressure ----------------------------------------------------------------------------------------------------------


async def test_records_that_nobody_answers_for_wait_for_room(intake):
    """Promise 6: without an answer there is backpressure, never a silent drop; what waits keeps its order."""
    intake.shelf.room = 0
    futures = [intake.submit(event(f"t{n}"), hold=True) for n in range(3)]
    await intake.idle()
    assert not any(future.done() for future in futures)
    assert +intake.admission.refused == {}
    intake.shelf.make_room()
    await intake.idle()
    intake.shelf.commit()
    await intake.idle()
    assert types(intake) == ["t0", "t1", "t2"]
    assert all(future.done() for future in futures)
    assert intake.admission.accepted == 3
    await intake.sink.close()


async def test_only_what_finds_no_room_waits(intake):
    """Of one message what fits is stored at once, the rest waits; the message is done when all of it is on disk."""
    intake.shelf.room = 300
    future = intake.submit(array(event("small"), event("large", payload="x" * 300)), hold=True)
    intake.shelf.commit()
    await intake.idle()
    assert types(intake) == ["small"]
    assert not future.done()
    intake.shelf.make_room()
    await intake.idle()
    intake.shelf.commit()
    assert (await future).accepted == 2
    assert types(intake) == ["small", "large"]
    await intake.sink.close()


async def test_nothing_overtakes_what_waits(intake):
    """A message that would fit stands behind those that wait: order within a connection holds."""
    intake.shelf.room = 300
    intake.submit(event("large", payload="x" * 300), hold=True)
    intake.submit(event("small"), hold=True)
    intake.shelf.commit()
    assert types(intake) == []
    intake.shelf.make_room()  # before anybody asked for it
    await intake.idle()
    intake.shelf.commit()
    await intake.idle()
    assert types(intake) == ["large", "small"]
    await intake.sink.close()


async def test_a_large_record_is_not_overtaken_by_its_run(intake):
    """Promise 2: in a queue that is nearly full the smaller ones behind a large one of their run wait with it, message by message."""
    intake.shelf.room = 300
    futures = [
        intake.submit(event("a"), hold=True),
        intake.submit(array(event("large", payload="x" * 300), event("b")), hold=True),
    ]
    futures += [intake.submit(event(type_), hold=True) for type_ in ("c", "d")]
    intake.shelf.commit()
    await intake.idle()
    assert types(intake) == ["a"]
    assert intake.sink.held == 4
    intake.shelf.make_room(400)  # still not enough
    await intake.idle()
    intake.shelf.commit()
    assert types(intake) == ["a"]
    intake.shelf.make_room()
    await intake.idle()
    intake.shelf.commit()
    await intake.idle()
    assert types(intake) == ["a", "large", "b", "c", "d"]
    assert [(await future).accepted for future in futures] == [1, 2, 1, 1]
    assert intake.sink.held == 0
    await intake.sink.close()


async def test_what_waits_holds_up_no_other_run_and_no_other_destination(make_intake):
    """Promise 2: a full destination is no reason to hold up another, nor a run another; within a message too."""
    intake = make_intake(Route("one", RUNS), Route("two", RUNS))
    intake.shelf.room_for = lambda name, size, _loss, _uid: name == "two" or size < 300
    large = {"payload": "x" * 300, "to": "one"}
    waiting = intake.submit(array(event("large", **large), event("other", run_id="s", to="one")), hold=True)
    futures = [
        intake.submit(event("two", run_id="t", to="two"), hold=True),
        intake.submit(event("small", run_id="u", to="one"), hold=True),
        intake.submit(event("later", run_id="s", to="one"), hold=True),
    ]
    intake.shelf.commit()
    await intake.idle()
    assert types(intake) == ["other", "two", "small", "later"]
    assert all(future.done() for future in futures)
    assert not waiting.done()
    # what waits behind it for room of its own goes as soon as that is there, though the first still waits
    intake.shelf.room_for = lambda name, _size, _loss, _uid: False
    second = intake.submit(event("second", run_id="v", to="two"), hold=True)
    await intake.idle()
    assert not second.done()
    intake.shelf.room_for = lambda name, _size, _loss, _uid: name == "two"
    intake.shelf.make_room()
    await intake.idle()
    intake.shelf.commit()
    assert (await second).accepted == 1
    assert not waiting.done()
    await intake.sink.close()


async def test_only_who_waits_for_room_is_not_read(intake):
    """The future of a message that waits for room is a `Waiting`, by which a connection knows that it is not to be read."""
    intake.shelf.room = 300
    assert not isinstance(intake.submit(event("a"), hold=True), Waiting)
    assert isinstance(intake.submit(event("large", payload="x" * 300), hold=True), Waiting)
    assert isinstance(intake.submit(event("b"), hold=True), Waiting)
    assert not isinstance(intake.submit(event("c", run_id="other"), hold=True), Waiting)
    assert not isinstance(intake.submit(envelope(1, event("d", run_id="third"))), Waiting)
    await intake.sink.close()


# -- order of what is refused ----------------------------------------------------------------------------------------------


async def answers(intake, *envelopes):
    """Accepted and refused places of envelopes that were all under way together."""
    futures = [intake.submit(data, stream=STREAM) for data in envelopes]
    intake.shelf.commit()
    found = []
    for future in futures:
        ack = await future
        found.append((ack.accepted, [rejected.index for rejected in ack.rejected]))
    return found


async def test_a_refused_warn_is_not_overtaken_by_its_run(intake):
    """Promise 2: neither in its envelope nor in those that were under way does anything of its run go past it; other runs do."""
    intake.shelf.room = 300
    warn = event("warn", level="warn", payload="x" * 300)
    found = await answers(
        intake,
        envelope(1, event("a"), warn, event("b"), event("other", run_id="s")),
        envelope(2, event("c"), event("other", run_id="s")),
        envelope(64, event("d")),
    )
    assert found == [(2, [1, 2]), (1, [0]), (0, [0])]
    intake.shelf.room = 10**9
    # what the client sends again, in its order, is taken in that order
    assert await answers(intake, envelope(65, warn, event("b"), event("c"), event("d"))) == [(4, [])]
    assert types(intake) == ["a", "other", "other", "warn", "b", "c", "d"]


async def test_room_alone_does_not_let_a_run_past_its_refused_warn(intake):
    """Promise 2: room that comes between two envelopes under way opens no gap: the run waits for the record that came first."""
    intake.shelf.room = 300
    warn = event("warn", level="warn", payload="x" * 300)
    intake.submit(envelope(1, warn), stream=STREAM)
    intake.shelf.room = 10**9
    assert await answers(intake, envelope(2, event("b"))) == [(0, [0])]
    assert await answers(intake, envelope(3, warn, event("b"))) == [(2, [])]
    assert types(intake) == ["warn", "b"]


async def test_a_client_that_gives_a_record_up_is_not_held_to_it_for_ever(intake):
    """After 64 envelopes everything is known to have been answered: a run whose refused record never came again goes on."""
    intake.shelf.room = 300
    await answers(intake, envelope(1, event("warn", level="warn", payload="x" * 300)))
    assert await answers(intake, envelope(64, event("b")), envelope(65, event("c"))) == [(0, [0]), (1, [])]


async def test_a_refused_warn_is_remembered_over_a_restart(intake):
    """Promise 2: envelopes that were under way when the daemon died are judged as they would have been."""
    intake.shelf.room = 300
    await answers(intake, envelope(1, event("warn", level="warn", payload="x" * 300), event("other", run_id="s")))
    [(_, row, value)] = [put for put in intake.shelf.puts if put[0] == "stream"]
    known = Streams()
    known.add(row, streams.decode(value))
    intake.sink = intake.new_sink(known)
    intake.shelf.room = 10**9
    assert await answers(intake, envelope(2, event("b"), event("other", run_id="s"))) == [(1, [0])]


async def test_another_stream_is_not_held_to_it(intake):
    """What one client was refused is no affair of another's, whose records stand in no order with it."""
    intake.shelf.room = 300
    await answers(intake, envelope(1, event("warn", level="warn", payload="x" * 300)))
    assert (await _committed(intake, envelope(1, event("b")), stream="another")).accepted == 1
    assert (await _committed(intake, envelope(1, event("c")))).accepted == 1


async def _committed(intake, data, **options):
    future = intake.submit(data, **options)
    intake.shelf.commit()
    return await future


# -- room comes ------------------------------------------------------------------------------------------------------------


async def test_room_that_is_not_enough_lets_them_wait_on(intake):
    """Each time there is room the first in line is tried again; what is refused for other reasons is refused once."""
    intake.shelf.room = 0
    future = intake.submit(array(event(), b'{"kind":"event"}'), hold=True)
    await intake.idle()
    intake.shelf.make_room(0)
    await intake.idle()
    intake.shelf.make_room(0)
    await intake.idle()
    assert not future.done()
    assert +intake.admission.refused == {"invalid": 1}
    intake.shelf.make_room()
    await intake.idle()
    intake.shelf.commit()
    await future
    assert len(intake.shelf.stored) == 1
    await intake.sink.close()


async def test_a_full_disk_lets_them_wait_too(intake):
    """Promise 6: records without an answer that the disk did not take wait for room, in their order, and are not refused."""
    futures = [intake.submit(array(event(f"a{n}"), event(f"b{n}")), hold=True) for n in range(2)]
    intake.shelf.room = 0
    intake.shelf.fail()
    await intake.idle()
    futures.append(intake.submit(event("c"), hold=True))
    assert not any(future.done() for future in futures)
    assert (intake.admission.accepted, +intake.admission.refused) == (0, {})
    intake.shelf.make_room()
    await intake.idle()
    intake.shelf.commit()
    await intake.idle()
    assert types(intake) == ["a0", "b0", "a1", "b1", "c"]
    assert [(await future).accepted for future in futures] == [2, 2, 1]
    assert intake.admission.accepted == 5
    await intake.sink.close()


async def test_half_a_message_that_waits_and_half_that_the_disk_refused(intake):
    """What fitted but was not kept goes before what never fitted, and the message is done when both are on disk."""
    intake.shelf.room = 300
    future = intake.submit(array(event("large", payload="x" * 300), event("small", id=ID)), hold=True)
    intake.shelf.room = 0
    intake.shelf.fail()
    await intake.idle()
    assert not future.done()
    intake.shelf.make_room()
    await intake.idle()
    intake.shelf.commit()
    assert (await future).accepted == 2
    assert sorted(types(intake)) == ["large", "small"]
    assert intake.admission.accepted == 2
    await intake.sink.close()


async def test_a_message_in_parts_is_done_with_its_last_part(intake):
    """However often room is too small and the disk full between, a message is done only when all of it is on disk."""
    intake.shelf.room = 0
    future = intake.submit(array(event("small"), event("large", payload="x" * 300)), hold=True)
    await intake.idle()
    intake.shelf.make_room(300)
    await intake.idle()
    intake.shelf.room = 0
    intake.shelf.fail()
    await intake.idle()
    intake.shelf.make_room(300)
    await intake.idle()
    intake.shelf.commit()
    await intake.idle()
    assert types(intake) == ["small"]
    assert not future.done()
    intake.shelf.make_room()
    await intake.idle()
    intake.shelf.commit()
    assert (await future).accepted == 2
    assert types(intake) == ["small", "large"]
    await intake.sink.close()


async def test_at_the_end_what_is_held_is_given_up_and_counted(intake):
    """Promise 7: a stop does not wait for room; those who sent it were never told that it was taken."""
    intake.shelf.room = 0
    future = intake.submit(array(event(), event()), hold=True)
    await intake.idle()
    await intake.sink.close()
    assert (await future).accepted == 0
    assert +intake.admission.refused == {"spool_full": 2}


# -- the log ---------------------------------------------------------------------------------------------------------------


def test_refusals_are_counted_and_logged_at_a_bounded_rate(intake, caplog):
    """Each cause has a line at most every ten seconds that says how many there were; the counter has them all."""
    for _ in range(50):
        intake.sink.refuse("invalid", "bad JSON", ME)
    assert len(caplog.records) == 1
    intake.sink.refuse("spool_full", "other", ME)
    assert len(caplog.records) == 2
    intake.clock.advance(10)
    intake.sink.refuse("invalid", "bad JSON", ME)
    assert "and 49 more since the last line" in caplog.text
    assert intake.admission.refused == {"invalid": 51, "spool_full": 1}
    assert caplog.records[0].action == "refused"


# -- taken in part ---------------------------------------------------------------------------------------------------------

TWO = (Route("one", RUNS), Route("two", RUNS))


def placed(intake):
    return [(name, json.loads(entry.body)["type"]) for name, entry in intake.shelf.stored]


@pytest.fixture
def two(make_intake):
    """Two destinations, of which `one` is full."""
    intake = make_intake(*TWO)
    intake.shelf.rooms = {"one": 0}
    return intake


async def test_the_answer_names_who_lacks_it_once_the_others_have_it(two):
    """Promise 1: a partly taken record is answered after the commit, and a stream keeps that answer for a repeat, restarts included."""
    future = two.submit(envelope(1, event(), event("b", to="two")), stream=STREAM)
    await two.idle()
    assert not future.done()
    two.shelf.commit()
    assert await future == Ack(1, 1, [Rejected(0, "spool full", ["one"])])
    [(_, row, value)] = [put for put in two.shelf.puts if put[0] == "stream"]
    known = Streams()
    known.add(row, streams.decode(value))
    two.sink = two.new_sink(known)
    assert await two.submit(envelope(1, event(), event("b", to="two")), stream=STREAM) == await future
    assert placed(two) == [("two", "t"), ("two", "b")]


async def test_what_the_disk_did_not_keep_is_lacked_by_all(two):
    """On a full disk nobody has it: it is refused as a whole, and its id is free."""
    future = two.submit(envelope(1, event(id=ID), event("b", to="two")))
    two.shelf.fail()
    assert await future == Ack(1, 0, [Rejected(0, "spool full"), Rejected(1, "spool full")])
    assert two.admission.refused == {"spool_full": 2}
    assert (len(two.window), two.admission.accepted) == (0, 0)


async def test_what_others_had_before_they_still_have(two):
    """A full disk takes back what it did not keep and no more: who had the record before is not sent it again."""
    two.submit(envelope(1, event(id=ID)))
    two.shelf.commit()
    two.shelf.rooms = {}
    future = two.submit(envelope(2, event(id=ID)))
    two.shelf.fail()
    assert await future == Ack(2, 0, [Rejected(0, "spool full", ["one"])])
    again = two.submit(envelope(3, event(id=ID)))
    two.shelf.commit()
    assert await again == Ack(3, 1)
    assert placed(two) == [("two", "t"), ("one", "t")]


async def test_a_repeat_of_a_part_that_is_not_on_disk_waits_for_it(two):
    """ "They have it" is said when it is on disk; where it was not kept after all, nobody has it."""
    first = two.submit(envelope(1, event(id=ID)))
    again = two.submit(envelope(2, event(id=ID)))
    await two.idle()
    assert not again.done()
    two.shelf.commit()
    assert (await first).rejected == (await again).rejected == [Rejected(0, "spool full", ["one"])]
    other = two.submit(envelope(3, event("x", id=STREAM)))
    again = two.submit(envelope(4, event("x", id=STREAM)))
    two.shelf.fail()
    assert (await other).rejected == (await again).rejected == [Rejected(0, "spool full")]


async def test_a_part_that_comes_later_is_waited_for_too(two):
    """A record of which one part is on disk and another is not yet is accepted with the last of them."""
    two.submit(envelope(1, event(id=ID)))
    two.shelf.rooms = {}
    two.submit(envelope(2, event(id=ID)))
    first, two.shelf.pending = two.shelf.pending[:1], two.shelf.pending[1:]
    second, two.shelf.pending = two.shelf.pending, first
    two.shelf.commit()
    await two.idle()
    two.shelf.pending = second
    again = two.submit(envelope(3, event(id=ID)))
    await two.idle()
    assert not again.done()
    two.shelf.commit()
    assert await again == Ack(3, 1)


async def test_a_silent_record_waits_for_the_full_destination_alone(two):
    """Promises 2 and 6: who has room gets it at once, the rest waits, and what comes later waits behind it there alone."""
    first = two.submit(event("a"), hold=True)
    second = two.submit(event("b"), hold=True)
    third = two.submit(event("c", to="two"), hold=True)
    two.shelf.commit()
    await two.idle()
    assert placed(two) == [("two", "a"), ("two", "b"), ("two", "c")]
    assert [future.done() for future in (first, second, third)] == [False, False, True]
    assert (two.sink.held, two.admission.accepted, +two.admission.refused) == (2, 1, {})
    two.shelf.make_room()
    await two.idle()
    two.shelf.commit()
    assert [(await future).accepted for future in (first, second)] == [1, 1]
    assert placed(two)[3:] == [("one", "a"), ("one", "b")]
    assert two.admission.accepted == 3
    await two.sink.close()


async def test_a_full_disk_puts_a_silent_record_together_again(two):
    """Neither part of a record is lost, stored twice or counted twice if the disk refuses the part that had found room."""
    future = two.submit(array(event("a"), event("b")), hold=True)
    two.shelf.fail()
    await two.idle()
    assert (two.sink.held, two.admission.accepted) == (2, 0)
    two.shelf.make_room()
    await two.idle()
    two.shelf.commit()
    assert (await future).accepted == 2
    assert sorted(placed(two)) == [("one", "a"), ("one", "b"), ("two", "a"), ("two", "b")]
    assert (two.admission.accepted, +two.admission.refused) == (2, {})
    await two.sink.close()


async def test_a_silent_record_given_up_counts_once(two):
    """At the end the rest of a record is given up, and it is counted as refused, once."""
    future = two.submit(event(), hold=True)
    two.shelf.commit()
    await two.sink.close()
    assert (await future).accepted == 0
    assert +two.admission.refused == {"spool_full": 1}


async def test_a_full_disk_lets_nothing_past_what_it_refused(intake):
    """Promise 2: an envelope that was under way when the disk refused another is held to what that one brought."""
    first = intake.submit(envelope(1, event("a", level="warn"), event("b", level="warn")), stream=STREAM)
    intake.shelf.fail()
    await intake.idle()
    assert (await first).accepted == 0
    assert await answers(intake, envelope(2, event("c", level="warn"))) == [(0, [0])]
    assert await answers(intake, envelope(3, event("a", level="warn"), event("b", level="warn"))) == [(2, [])]
    assert types(intake) == ["a", "b"]


async def test_a_full_disk_takes_back_what_came_before_what_it_had_no_room_for(intake):
    """Promise 2: of one envelope, what the disk refused after all comes before what found no room in the queue."""
    intake.shelf.room = 300
    large = event("large", level="warn", payload="x" * 300)
    future = intake.submit(envelope(1, event("small", level="warn"), large), stream=STREAM)
    intake.shelf.fail()
    assert (await future).accepted == 0
    intake.shelf.room = 10**9
    assert await answers(intake, envelope(2, large)) == [(0, [0])]
    assert await answers(intake, envelope(3, event("small", level="warn"), large)) == [(2, [])]
    assert types(intake) == ["small", "large"]


async def test_parts_that_go_their_own_ways_count_once(two):
    """The rest of a silent record finds room in the moment in which the disk refuses the other part: it is one record all the same."""
    future = two.submit(event(), hold=True)
    await two.idle()
    two.shelf.make_room()
    two.shelf.fail()
    await two.idle()
    two.shelf.commit()
    assert placed(two) == [("one", "t"), ("two", "t")]
    assert ((await future).accepted, two.admission.accepted, +two.admission.refused) == (1, 1, {})
    await two.sink.close()
