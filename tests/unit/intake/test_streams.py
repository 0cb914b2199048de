"""Streams: the last 64 outcomes of each client, so that a repeated envelope is stored once."""

from __future__ import annotations

import msgspec
import pytest

from agentd.errors import WireError
from agentd.intake import streams
from agentd.intake.streams import Stream, Streams
from agentd.wire import Ack, Rejected


def test_the_last_64_outcomes_are_kept():
    """An envelope within the last 64 is answered as before; an older one can't be known and is refused with its seq."""
    stream = Stream(5, "s")
    for seq in range(1, 101):
        stream.record(Ack(seq, seq), 7)
    assert (stream.last_seq, stream.touched_us) == (100, 7)
    assert stream.known(101) is None
    assert stream.known(100) == Ack(100, 100)
    assert stream.known(37) == Ack(37, 37)
    with pytest.raises(WireError, match="seq 36: 100 was the last, and no outcome of 36 is kept") as caught:
        stream.known(36)
    assert caught.value.seq == 36


def test_a_seq_that_was_skipped_has_no_outcome():
    """A seq below the last that was never sent can't be told from one that is too old: it is refused, and the rule is named."""
    stream = Stream(5, "s")
    stream.record(Ack(1, 1), 7)
    stream.record(Ack(3, 1), 7)
    with pytest.raises(
        WireError, match="seq 2: 3 was the last, and no outcome of 2 is kept; seq rises by one"
    ) as caught:
        stream.known(2)
    assert caught.value.seq == 2


def test_what_was_turned_away_is_remembered_for_envelopes_that_were_under_way():
    """An envelope that was sent before its client could know of the refusal is held to it; a later one is not."""
    stream = Stream(5, "s", turned_away={"run:r": b"d"}, turned_away_until=64)
    assert streams.decode(streams.encode(stream)) == stream
    assert stream.waiting_room(64) == {"run:r": b"d"}
    assert stream.waiting_room(65) == {}
    assert stream.turned_away == {}


def test_a_stream_belongs_to_its_uid():
    """Another user's stream of the same name is another stream."""
    known = Streams()
    known.add(1, Stream(5, "s"))
    assert known.get(6, "s") is None
    assert known.get(5, "s") == (1, Stream(5, "s"))
    assert len(known) == 1


def test_a_stream_comes_back_from_disk():
    """Outcomes with their refusals survive; a damaged row raises what the start knows how to handle."""
    stream = Stream(5, "s", lost={"no_daemon": 3})
    stream.record(Ack(1, 1, [Rejected(1, "no"), Rejected(2, "spool full", ["one"])]), 9)
    assert streams.decode(streams.encode(stream)) == stream
    no_text = streams.encode(stream).replace(b"spool full", b"\xff" * 10)
    for damaged in (b"", b"\xc1", no_text, streams.encode(stream)[:-3], msgspec.msgpack.encode({"a": 1})):
        with pytest.raises(msgspec.MsgspecError):
            streams.decode(damaged)


def test_losses_are_summed_by_cause():
    """Promise 8: what clients lost before intake is one number by cause over all streams."""
    known = Streams()
    known.add(1, Stream(5, "a", lost={"no_daemon": 3}))
    known.add(2, Stream(5, "b", lost={"no_daemon": 1, "buffer_full": 2}))
    assert known.lost() == {"no_daemon": 4, "buffer_full": 2}


def test_a_client_can_take_nothing_back():
    """The newest word of a stream counts, by cause and kind; one that says less is not believed."""
    known = Streams()
    stream = known.add(1, Stream(5, "a"))
    assert known.report(stream, {"no_daemon:event": 3, "closed:task": 1})
    assert not known.report(stream, {"no_daemon:event": 3})
    assert not known.report(stream, {"no_daemon:event": 2, "closed:task": 0})
    assert known.report(stream, {"no_daemon:event": 4})
    assert known.lost() == {"no_daemon:event": 4, "closed:task": 1}


def test_what_a_client_calls_things_is_bounded():
    """Causes and kinds become labels: of words that are not ours few are taken, of kinds those that there are; the rest is `other`."""
    known = Streams()
    for number in range(100):
        stream = known.add(number + 1, Stream(5, f"s{number}"))
        known.report(stream, {f"cause_{number}:event": 1, "no_daemon:" + "k" * number: 1, "Not a word:task": 1})
    lost = known.lost()
    assert len(lost) == 32 + 4
    assert (lost["other:event"], lost["other:task"]) == (68, 100)
    assert (lost["no_daemon"], lost["no_daemon:other"]) == (1, 99)
    again = Streams()
    for number in range(100):
        row, value = known.row(known.get(5, f"s{number}")[1])
        again.add(row, streams.decode(value))
    again.report(again.get(5, "s0")[1], {"one_more:event": 1})
    assert again.lost()["other:event"] == 69


def test_a_number_of_records_is_bounded():
    """Whatever a client says, its row can be written, and so can the sum."""
    known = Streams()
    for number in range(3):
        known.report(
            known.add(number + 1, Stream(5, f"s{number}")), {"closed:event": 2**63 - 1, "Closed:event": 2**63 - 1}
        )
    assert known.lost() == {"closed:event": 3 * 10**15, "other:event": 3 * 10**15}
    for row in known.prune(lambda _at: True):
        assert row in (1, 2, 3)
    nobody = known.take_forgotten(lambda: 9)
    nobody.lost["closed:event"] = 2**63 - 1
    known.report(known.add(10, Stream(5, "t")), {"closed:event": 10**15})
    known.prune(lambda _at: True)
    assert streams.decode(known.row(known.take_forgotten(lambda: 11))[1]).lost["closed:event"] == 2**63 - 1


def test_what_is_forgotten_stays_in_the_sum():
    """A stream that is pruned leaves its losses in a row of nobody's, written with the commit that drops its own, for ever."""
    known = Streams()
    for number in range(4):
        known.report(
            known.add(number + 1, Stream(5, f"s{number}", touched_us=number)), {"no_daemon:event": 10 + number}
        )
    assert known.prune(lambda at: at < 2) == [1, 2]
    nobody = known.take_forgotten(lambda: 7)
    assert known.row(nobody)[0] == 7
    assert known.take_forgotten(lambda: 8) is None
    assert (known.lost(), len(known)) == ({"no_daemon:event": 46}, 2)
    assert known.prune(lambda _at: True) == [3, 4]
    row, value = known.row(known.take_forgotten(lambda: 9))
    assert row == 7
    again = Streams()
    again.add(row, streams.decode(value))
    assert (again.lost(), len(again), again.prune(lambda _at: True)) == ({"no_daemon:event": 46}, 0, [])


@pytest.mark.parametrize(("before_us", "rows"), [(100, []), (101, [1]), (201, [1, 2])])
def test_silent_streams_are_forgotten(before_us, rows):
    """A stream that was silent long enough gives its row back."""
    known = Streams()
    known.add(1, Stream(5, "a", touched_us=100))
    known.add(2, Stream(5, "b", touched_us=200))
    assert known.prune(lambda at: at < before_us) == rows
    assert len(known) == 2 - len(rows)


def test_an_outcome_of_an_older_daemon_is_read():
    """A refusal that was kept before refusals named destinations was for all of them."""
    stream = Stream(5, "s")
    stream.record(Ack(1, 0, [Rejected(0, "spool full")]), 9)
    written = msgspec.msgpack.decode(streams.encode(stream))
    assert written[4][1]["rejected"] == [{"index": 0, "error": "spool full"}]
    assert streams.decode(msgspec.msgpack.encode(written)).known(1).rejected[0].to == []


def test_a_user_has_so_many_streams_and_no_more(monkeypatch):
    """The one goes that was silent longest, its row with the next housekeeping; another user's stay, and what was lost is not forgotten."""
    monkeypatch.setattr(streams, "MOST_STREAMS", 3)
    known = Streams()
    known.add(1, Stream(7, "his"))
    first = known.add(2, Stream(5, "s0"))
    known.report(first, {"no_daemon:event": 4})
    for number in range(1, 3):
        known.add(2 + number, Stream(5, f"s{number}"))
    known.record(first, Ack(1, 1), 10)  # in use again
    known.add(9, Stream(5, "s3"))
    assert [known.get(5, f"s{number}") is not None for number in range(4)] == [True, False, True, True]
    assert known.get(7, "his") is not None
    for number in range(4, 7):
        known.add(10 + number, Stream(5, f"s{number}"))
    assert known.get(5, "s0") is None
    assert known.lost() == {"no_daemon:event": 4}
    assert sorted(known.prune(lambda _: False)) == [2, 3, 4, 9]
    assert known.prune(lambda _: False) == []


def test_what_a_users_outcomes_say_is_bounded(monkeypatch):
    """Envelopes whose every record is refused: other streams of the user go, then older outcomes of this one; the newest stays."""
    monkeypatch.setattr(streams, "MOST_REFUSALS", 10)
    known = Streams()
    other, mine = known.add(1, Stream(5, "other")), known.add(2, Stream(5, "mine"))
    his = known.add(3, Stream(7, "his"))
    known.record(his, refusing(1, 10), 0)
    known.record(other, refusing(1, 6), 0)
    known.record(mine, refusing(1, 6), 0)
    assert (known.get(5, "other"), list(mine.outcomes)) == (None, [1])
    known.record(mine, refusing(2, 6), 0)
    known.record(mine, refusing(3, 50), 0)
    assert (list(mine.outcomes), list(his.outcomes)) == ([3], [1])


def refusing(seq, count):
    return Ack(seq, 0, [Rejected(index, "no") for index in range(count)])
