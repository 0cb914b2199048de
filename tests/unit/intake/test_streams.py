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
    for damaged in (b"", b"\xc1", streams.encode(stream)[:-3], msgspec.msgpack.encode({"a": 1})):
        with pytest.raises(msgspec.MsgspecError):
            streams.decode(damaged)


def test_losses_are_summed_by_cause():
    """Promise 8: what clients lost before intake is one number by cause over all streams."""
    known = Streams()
    known.add(1, Stream(5, "a", lost={"no_daemon": 3}))
    known.add(2, Stream(5, "b", lost={"no_daemon": 1, "buffer_full": 2}))
    assert known.lost() == {"no_daemon": 4, "buffer_full": 2}


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
