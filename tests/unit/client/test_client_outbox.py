"""The stream: seq rises by one, what has no answer is repeated as it was, and a full spool changes no order."""

import json

import pytest

from agentd.client.buffer import DEBUG, INFO, KEEP, Buffer
from agentd.client.outbox import Frames, Outbox
from agentd.errors import WireError
from agentd.wire import Hello, Message, decode_message, hello_answer


def outbox(count=0, rank=KEEP, max_records=1000, max_bytes=10**6):
    box = Outbox(Buffer(max_records, max_bytes), "5e5e5e5e-0000-4000-8000-000000000000", "python/test")
    emit(box, count, rank)
    return box


def emit(box, count, rank=KEEP, kind="event"):
    for _ in range(count):
        number = box._buffer.emitted
        line = b'{"kind":"%b","run_id":"r","type":"t%d"}' % (kind.encode(), number)
        box._buffer.put(kind, rank, "r", line, len(line))


def sent(envelope):
    message = json.loads(envelope.frame()[4:])
    return message["seq"], [record["type"] for record in message["records"]]


def test_the_hello_says_who_we_are_and_what_was_lost():
    """Promise 8: the client's losses by cause and kind travel in the hello, and the daemon can read it."""
    box = outbox(3, max_records=1)
    hello = decode_message(box.hello()[4:])
    assert isinstance(hello, Hello)
    assert hello.owns_runs
    assert hello.lost == {"no_daemon:event": 2}
    assert hello.emitted == 3
    assert hello.client == "python/test"


def test_an_envelope_is_what_the_daemon_decodes():
    """At most a hundred records travel together, under a seq that begins at 1 and rises by one."""
    box = outbox(150)
    first, second = box.next_envelope(), box.next_envelope()
    message = decode_message(first.frame()[4:])
    assert isinstance(message, Message)
    assert message.seq == 1
    assert len(message.items) == 100
    assert sent(second)[0] == 2
    assert len(sent(second)[1]) == 50
    assert box.next_envelope() is None


def test_no_more_than_64_envelopes_are_unanswered():
    """The window is 64 envelopes; an answer opens it again."""
    box = outbox(7000, max_records=100_000, max_bytes=10**8)
    frames = [box.next_envelope() for _ in range(65)]
    assert frames[63] is not None
    assert frames[64] is None
    box.on_answer({"seq": 1, "accepted": 100})
    assert sent(box.next_envelope())[0] == 65


def test_half_of_the_buffer_stays_free_for_what_comes():
    """What is under way can't be shed, so it never takes up the whole bound."""
    box = outbox(10, max_records=10)
    assert len(sent(box.next_envelope())[1]) == 5
    assert box.next_envelope() is None


def test_repeats_are_the_same_bytes():
    """Whatever got no answer is repeated with the same seq and the same bytes."""
    box = outbox(250)
    frames = [box.next_envelope().frame() for _ in range(3)]
    box.on_answer({"seq": 2, "accepted": 100})
    assert [envelope.frame() for envelope in box.repeats()] == [frames[0], frames[2]]


def test_refusals_are_counted_by_cause_and_kind():
    """One bad record costs its neighbours nothing, and its cause is counted."""
    box = outbox(3)
    box.next_envelope()
    box.on_answer({"seq": 1, "accepted": 2, "rejected": [{"index": 1, "error": "$.level: expected one of …"}]})
    stats = box._buffer.stats()
    assert (stats.accepted, stats.refused, stats.refused_by) == (2, 1, {"invalid:event": 1})


def test_an_envelope_that_is_refused_whole_is_settled():
    """An error with a seq ends the wait for that envelope."""
    box = outbox(3)
    box.next_envelope()
    assert box.on_answer({"seq": 1, "error": "nested too deeply"}) is None
    assert box._buffer.stats().refused_by == {"nested too deeply:event": 3}
    assert box.unanswered == 0


def test_causes_are_bounded():
    """A daemon that words each refusal differently does not grow the books without end."""
    box = outbox(100)
    box.next_envelope()
    rejected = [{"index": index, "error": f"word{index}"} for index in range(100)]
    box.on_answer({"seq": 1, "accepted": 0, "rejected": rejected})
    assert len(box._buffer.stats().refused_by) == 33


@pytest.mark.parametrize(
    "answer", [{}, {"seq": 99, "accepted": 1}, {"seq": "1"}, {"seq": None, "rejected": 5}, {"accepted": 0}]
)
def test_answers_to_nothing_change_nothing(answer):
    """What answers no envelope of ours is let pass, and the books stay as they are."""
    box = outbox(1)
    box.next_envelope()
    assert box.on_answer(answer) is None
    assert box._buffer.stats().buffered == 1


def test_an_error_without_a_seq_is_about_the_connection():
    """The link hears it and begins anew."""
    assert outbox().on_answer({"error": "invalid UTF-8"}) == "invalid UTF-8"


def full(seq, count, indexes):
    rejected = [{"index": index, "error": "spool full"} for index in indexes]
    return {"seq": seq, "accepted": count - len(indexes), "rejected": rejected}


def test_a_full_spool_changes_no_order():
    """Records that must not be shed are sent again under a fresh seq, before all that is younger, one envelope at a time."""
    box = outbox(200)
    box.next_envelope()
    box.next_envelope()
    emit(box, 150)
    box.on_answer(full(2, 100, [0, 99]))
    assert box.next_envelope() is None, "while answers are missing nothing younger leaves"
    box.on_answer(full(1, 100, [5]))
    assert box.spool_full
    seq, types = sent(box.next_envelope())
    assert seq == 3
    assert types[:4] == ["t5", "t100", "t199", "t200"]
    assert box.next_envelope() is None, "one at a time until they went through"
    box.on_answer({"seq": 3, "accepted": 100})
    assert not box.spool_full
    assert sent(box.next_envelope())[0] == 4


def test_a_full_spool_costs_debug_and_info():
    """Debug and info that find no room at the daemon are lost, cause spool_full."""
    box = outbox(1, DEBUG)
    emit(box, 1, INFO)
    emit(box, 1, KEEP)
    box.next_envelope()
    box.on_answer(full(1, 3, [0, 1, 2]))
    stats = box._buffer.stats()
    assert (stats.lost_by, stats.buffered, stats.refused) == ({"spool_full:event": 2}, 1, 0)


def test_an_older_daemon_gets_only_what_it_knows():
    """A kind that the hello does not name is counted as lost, cause unsupported, however many there are."""
    box = outbox(0, max_records=10_000)
    emit(box, 3000, kind="crm_sync")
    emit(box, 1)
    box.on_hello({**hello_answer("0.0.1", 1000, 0), "kinds": ["event"]})
    assert sent(box.next_envelope()) == (1, ["t3000"])
    assert box._buffer.stats().lost_by == {"unsupported:crm_sync": 3000}


def test_a_record_above_the_daemons_frame_limit_is_lost_alone():
    """max_frame_bytes of the hello is respected."""
    box = outbox(1)
    box._buffer.put("event", KEEP, "", b'{"kind":"event","type":"%b"}' % (b"x" * 2000), 2026)
    emit(box, 1)
    box.on_hello(hello_answer("0.1.0", 1024, 0))
    frames = [box.next_envelope(), box.next_envelope()]
    assert [len(envelope.frame()) <= 1028 for envelope in frames] == [True, True]
    assert box._buffer.stats().lost_by == {"too_large:event": 1}


def test_giving_up_leaves_nothing_uncounted():
    """What is queued, under way or held when a client closes is lost, cause closed."""
    box = outbox(250)
    box.next_envelope()
    box.next_envelope()
    box.on_answer(full(1, 100, [5]))
    box.give_up("closed")
    stats = box._buffer.stats()
    assert (stats.lost, stats.buffered, stats.accepted) == (151, 0, 99)
    assert box.oldest() is None


def test_frames_are_cut_wherever_the_socket_cuts_them():
    """Answers arrive byte by byte or many at once."""
    frames = Frames()
    data = b'\0\0\0\x09{"seq":1}\0\0\0\x09{"seq":2}'
    assert [message for i in range(len(data)) for message in frames.feed(data[i : i + 1])] == [{"seq": 1}, {"seq": 2}]
    assert frames.feed(data) == [{"seq": 1}, {"seq": 2}]


@pytest.mark.parametrize("data", [b"HTTP/1.1 400", b"\0\0\0\0", b"\0\0\0\x02[]", b"\0\0\0\x02{x"])
def test_what_is_no_answer_ends_the_connection(data):
    """Bytes that are none of ours are an error, not a crash."""
    with pytest.raises((WireError, ValueError)):
        Frames().feed(data)


# -- taken in part ---------------------------------------------------------------------------------------------------------


def parted(seq, count, indexes, to=("a",)):
    rejected = [{"index": index, "error": "spool full", "to": list(to)} for index in indexes]
    return {"seq": seq, "accepted": count - len(indexes), "rejected": rejected}


def records(envelope):
    return json.loads(envelope.frame()[4:])["records"]


def test_a_record_that_was_taken_in_part_is_sent_again_narrowed():
    """What some destinations have goes out again for the others alone, as it was otherwise, and counts once."""
    box = outbox(3)
    box.next_envelope()
    box.on_answer(parted(1, 3, [1]))
    assert (box.spool_full, box.queued, box._buffer.stats().buffered) == (False, 0, 1)
    assert box.next_envelope() is None, "not before it is time"
    box.sweep()
    assert records(box.next_envelope()) == [{"kind": "event", "run_id": "r", "type": "t1", "to": ["a"]}]
    box.on_answer({"seq": 2, "accepted": 1})
    stats = box._buffer.stats()
    assert (stats.emitted, stats.accepted, stats.refused, stats.lost, stats.buffered) == (3, 3, 0, 0, 0)


def test_a_narrowed_record_keeps_its_free_json_to_the_byte():
    """Numbers that no float holds and the order of fields come out as they went in; a `to` of its own is replaced."""
    box = outbox()
    line = b'{"kind":"event","run_id":"r","type":"t","to":["b","a"],"payload":{"b":1.10,"a":12345678901234567890123,"c":"\\u00e9"}}'
    box._buffer.put("event", KEEP, "r", line, len(line))
    box.next_envelope()
    box.on_answer(parted(1, 1, [0]))
    box.sweep()
    assert line.replace(b'["b","a"]', b'["a"]') in box.next_envelope().frame()


def test_one_full_destination_holds_up_nothing_else():
    """Promise 2: while records wait for one destination, younger ones go out as ever, however many wait."""
    box = outbox(300)
    for seq in (1, 2, 3):
        box.next_envelope()
        box.on_answer(parted(seq, 100, range(100)))
    emit(box, 300)
    box.sweep()
    assert [record["type"] for record in records(box.next_envelope())] == [f"t{n}" for n in range(100)]
    assert box.next_envelope() is None, "nothing younger between the envelopes of a sweep"
    box.on_answer(full(4, 100, range(100)))
    assert (box.failed_sweeps, box.spool_full, box.sweeping) == (1, False, False)
    assert [sent(box.next_envelope())[0] for _ in range(3)] == [5, 6, 7]


def test_a_sweep_goes_on_for_as_long_as_anything_is_taken():
    """Promise 2: after it, each that is still parked was refused once more, so that the daemon knows what comes first."""
    box = outbox(250)
    for seq, count in ((1, 100), (2, 100), (3, 50)):
        box.next_envelope()
        box.on_answer(parted(seq, count, range(count)))
    emit(box, 1)
    box.sweep()
    found = []
    for seq, refused in ((4, range(50, 100)), (5, range(99)), (6, range(50))):
        envelope = box.next_envelope()
        found.append(sent(envelope)[1])
        assert box.next_envelope() is None
        box.on_answer(full(seq, len(found[-1]), refused))
    assert [(len(types), types[0]) for types in found] == [(100, "t0"), (100, "t100"), (50, "t200")]
    assert sent(box.next_envelope()) == (7, ["t250"])
    assert box._buffer.parked == 50 + 99 + 50


def test_a_sweep_waits_until_nothing_is_unanswered():
    """Promise 2: what is under way may be refused too, and has to be swept with the rest."""
    box = outbox(200)
    box.next_envelope()
    box.next_envelope()
    box.on_answer(parted(1, 100, [0]))
    box.sweep()
    assert box.next_envelope() is None
    box.on_answer(parted(2, 100, [0]))
    assert sent(box.next_envelope())[1] == ["t0", "t100"]


def test_a_sweep_comes_before_the_daemon_forgets():
    """Promise 2: the daemon holds a run back for 64 envelopes after a refusal; within these it is reminded."""
    box = outbox(7000, max_records=100_000, max_bytes=10**8)
    box.next_envelope()
    box.on_answer(parted(1, 100, [7]))
    for seq in range(2, 61):
        assert len(sent(box.next_envelope())[1]) == 100
        box.on_answer({"seq": seq, "accepted": 100})
    assert sent(box.next_envelope()) == (61, ["t7"])


def test_debug_and_info_are_lost_where_there_is_no_room():
    """What may be shed is not sent again: it is lost for the full destination, and counted so."""
    box = outbox(1, DEBUG)
    emit(box, 1, INFO)
    emit(box, 1, KEEP)
    box.next_envelope()
    box.on_answer(parted(1, 3, [0, 1, 2]))
    stats = box._buffer.stats()
    assert (stats.lost_by, stats.buffered, box._buffer.parked) == ({"spool_full:event": 2}, 1, 1)
    assert not box.spool_full


def test_records_for_a_full_destination_alone_do_not_stop_the_others():
    """Promise 2: refused by all that they are for, they hold everything up for one try; then it is known that others pass."""
    box = outbox(500)
    box.next_envelope()
    box.on_answer(full(1, 100, range(50)))
    assert box.spool_full
    seq, types = sent(box.next_envelope())
    assert (seq, types[:51]) == (2, [*(f"t{n}" for n in range(50)), "t100"])
    box.on_answer(full(2, 100, range(50)))
    assert not box.spool_full
    assert [sent(box.next_envelope())[0] for _ in range(3)] == [3, 4, 5]
    for seq in (3, 4, 5):
        box.on_answer(full(seq, 100, [0]))
    assert not box.spool_full, "what is known already stops nothing"


def test_a_full_disk_stops_everything_but_a_try():
    """While nothing at all is taken, one envelope at a time goes out: what was refused first, then for once what is younger."""
    box = outbox(300)
    box.next_envelope()
    box.on_answer(full(1, 100, range(100)))
    for seq, first in ((2, "t0"), (3, "t100"), (4, "t0")):
        assert (seq, first) == (
            sent(box._unanswered.get(seq) or box.next_envelope())[0],
            sent(box._unanswered[seq])[1][0],
        )
        assert box.next_envelope() is None
        box.on_answer(full(seq, 100, range(100)))
        assert box.spool_full


def test_a_full_buffer_gives_up_the_youngest_that_is_parked():
    """New records that may not be shed push out what waits for a full destination, and of that what came last."""
    box = outbox(4, max_records=6)
    for seq in (1, 2):
        count = len(sent(box.next_envelope())[1])
        box.on_answer(parted(seq, count, range(count)))
    assert box._buffer.parked == 4
    emit(box, 3)
    assert (box._buffer.parked, box._buffer.stats().lost) == (3, 1)
    box.sweep()
    assert sent(box.next_envelope())[1] == ["t0", "t1", "t2"]


def test_what_is_parked_is_left_over_and_given_up_with_the_rest():
    """Who waits for the client hears of parked records, and at its end they are counted as lost."""
    box = outbox(3)
    box.next_envelope()
    box.on_answer(parted(1, 3, [1]))
    assert (box.oldest(), box.left_until(1), box.left_until(2)) == (2, 0, 1)
    box.give_up("closed")
    stats = box._buffer.stats()
    assert (stats.lost_by, stats.buffered, box.oldest()) == ({"closed:event": 1}, 0, None)


@pytest.mark.parametrize("to", [None, 5, "a", {}, []])
def test_a_refusal_that_names_nobody_is_for_all(to):
    """Whatever a peer writes there: without a list of names the record is refused as it is."""
    box = outbox(1)
    box.next_envelope()
    box.on_answer({"seq": 1, "accepted": 0, "rejected": [{"index": 0, "error": "spool full", "to": to}]})
    assert box.spool_full
    assert "to" not in records(box.next_envelope())[0]
