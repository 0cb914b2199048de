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
