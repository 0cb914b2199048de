"""What a connection is made of, one part at a time, with a clock and a transport that the test moves."""

from __future__ import annotations

import json
import struct

import pytest

from agentd.errors import WireError
from agentd.intake.budget import Budget, Share
from agentd.intake.connection import FrameReader, LineReader, Outbox, Watch
from agentd.wire import Ack, Rejected, frame


def drain(reader):
    messages = []
    while (message := reader.next()) is not None:
        messages.append(message)
    return messages


def cuts(data):
    """The data whole, in every pair of parts, and byte by byte."""
    yield [data]
    yield from ([data[:at], data[at:]] for at in range(1, len(data)))
    yield [data[at : at + 1] for at in range(len(data))]


def test_frames_are_the_same_however_they_are_cut():
    """Frames are given out whole and in order, and nothing is left, wherever the stream was cut."""
    expected = [b"a", b"bc" * 3, b"d"]
    for parts in cuts(b"".join(frame(message) for message in expected)):
        reader = FrameReader(100)
        found = []
        for part in parts:
            reader.feed(part)
            found += drain(reader)
        assert found == expected
        assert reader.held == 0


def test_lines_are_the_same_however_they_are_cut():
    """Lines are given out whole and in order without their ends, wherever the stream was cut."""
    for parts in cuts(b' {"a":1}\r\n\n\n[2]\n \n3'):
        reader = LineReader(100)
        found = []
        for part in parts:
            reader.feed(part)
            found += drain(reader)
        reader.end()
        found += drain(reader)
        assert found == [b'{"a":1}', b"[2]", b"3"]
        assert reader.held == 0


def test_messages_may_be_left_in_the_reader():
    """What was fed stays until it is asked for; more may be fed meanwhile."""
    reader = FrameReader(100)
    reader.feed(frame(b"1") + frame(b"2") + frame(b"3")[:2])
    assert reader.next() == b"1"
    reader.feed(frame(b"3")[2:])
    assert drain(reader) == [b"2", b"3"]


@pytest.mark.parametrize(("length", "right"), [(0, False), (1, True), (100, True), (101, False), (2**32 - 1, False)])
def test_frame_length_is_judged_on_its_header(length, right):
    """A length outside 1 to the limit is an error before a byte of the frame has come."""
    reader = FrameReader(100)
    reader.feed(struct.pack(">I", length))
    if right:
        assert reader.next() is None
    else:
        with pytest.raises(WireError, match=f"{length} bytes: expected 1 to 100"):
            reader.next()


@pytest.mark.parametrize("parts", [[b"x" * 101], [b"x" * 101 + b"\n"], [b"x" * 60, b"x" * 60], [b"1\n", b"x" * 101]])
def test_line_above_the_limit_is_an_error(parts):
    """A line may have as many bytes as the limit says and no more, its end seen or not."""
    reader = LineReader(100)
    for part in parts[:-1]:
        reader.feed(part)
        drain(reader)
    reader.feed(parts[-1])
    with pytest.raises(WireError, match="line of more than 100 bytes"):
        drain(reader)


def test_line_at_the_limit_is_taken():
    """The limit itself is allowed, with and without an end of line."""
    reader = LineReader(100)
    reader.feed(b"x" * 100 + b"\n" + b"y" * 100)
    reader.end()
    assert drain(reader) == [b"x" * 100, b"y" * 100]


def test_reader_keeps_nothing_that_it_gave_out():
    """An idle connection costs no buffer: when all is given out the memory is let go."""
    for reader, data in ((FrameReader(10**6), frame(b"x" * 10**5)), (LineReader(10**6), b"x" * 10**5 + b"\n")):
        reader.feed(data[:7])
        reader.feed(data[7:])
        assert len(drain(reader)) == 1
        assert len(reader._data) == 0


def test_one_connection_has_the_whole_budget_when_it_is_alone():
    """Full above the limit, then until it is at half of it or below."""
    budget = Budget(100)
    share = Share(budget)
    states = []
    for change in (100, 1, -50, -1):
        (budget.add if change > 0 else budget.remove)(share, abs(change))
        states.append(share.look())
    assert states == [False, True, True, False]


def test_a_full_connection_leaves_the_others_their_share():
    """Above the limit in all, each connection may have its equal part: one that is stuck stops itself alone."""
    budget = Budget(100)
    stuck, busy = Share(budget), Share(budget)
    budget.add(stuck, 1000)
    assert stuck.look()
    assert not busy.look()
    budget.add(busy, 50)
    assert not busy.look()
    budget.add(busy, 1)
    assert busy.look()
    budget.remove(busy, 26)
    assert not busy.look()


def test_who_waits_is_woken_below_half():
    """A connection that waits because of others hears once when all together are at half of the limit or below."""
    budget = Budget(100)
    first, second = Share(budget), Share(budget)
    woken = []
    budget.add(first, 90)
    budget.add(second, 60)
    assert second.look()
    budget.wait(second, lambda: woken.append(second.look()))
    budget.remove(first, 50)
    assert woken == []
    budget.remove(first, 40)
    assert woken == []  # 60 bytes
    budget.remove(second, 10)
    assert woken == [False]
    budget.remove(second, 50)
    assert woken == [False]
    assert budget.total == 0


def test_who_waits_no_more_is_not_woken():
    """Waiting can be taken back, twice as well as once."""
    budget = Budget(100)
    share = Share(budget)
    budget.add(share, 200)
    budget.wait(share, lambda: pytest.fail("nobody waits"))
    budget.wait(share, None)
    budget.wait(share, None)
    budget.remove(share, 200)


class FakeTimer:
    def __init__(self, when, callback):
        self.when, self.callback, self.cancelled = when, callback, False

    def cancel(self):
        self.cancelled = True


class FakeClock:
    """Time that stands still until it is moved, and the timers set on it."""

    def __init__(self):
        self.now = 0.0
        self.timers = []

    def time(self):
        return self.now

    def call_at(self, when, callback):
        self.timers.append(FakeTimer(when, callback))
        return self.timers[-1]

    def move(self, now):
        self.now = now
        due = [timer for timer in self.timers if timer.when <= now and not timer.cancelled]
        self.timers = [timer for timer in self.timers if timer not in due]
        for timer in due:
            timer.callback()


class Debtor:
    def __init__(self, watch=None):
        self.expiries = 0
        self.watch = watch

    def expired(self):
        self.expiries += 1
        if self.watch is not None:
            self.watch.start(self)


def test_watch_tells_who_is_late():
    """Each is told after its own term, and once; who has paid is not told."""
    clock = FakeClock()
    watch = Watch(10.0, clock)
    first, paid, last = Debtor(), Debtor(), Debtor()
    watch.start(first)
    clock.move(1.0)
    watch.start(paid)
    watch.start(last)
    watch.stop(paid)
    watch.stop(paid)
    clock.move(10.0)
    assert (first.expiries, last.expiries) == (1, 0)
    clock.move(11.0)
    clock.move(100.0)
    assert (first.expiries, paid.expiries, last.expiries) == (1, 0, 1)


def test_watch_sets_one_timer_for_all_and_none_for_nobody():
    """However many are late, one timer is enough; when nobody is, none is left."""
    clock = FakeClock()
    watch = Watch(10.0, clock)
    debtors = [Debtor() for _ in range(50)]
    for debtor in debtors:
        watch.start(debtor)
    assert len(clock.timers) == 1
    for debtor in debtors[1:]:
        watch.stop(debtor)
    clock.move(10.0)
    assert clock.timers == []
    assert [debtor.expiries for debtor in debtors] == [1] + [0] * 49


def test_watch_gives_a_new_term():
    """A term that is begun anew, while it runs or when it is over, is a whole one."""
    clock = FakeClock()
    watch = Watch(10.0, clock)
    renewed, stubborn = Debtor(), Debtor(watch)
    watch.start(renewed)
    watch.start(stubborn)
    clock.move(9.0)
    watch.start(renewed)
    clock.move(10.0)
    assert (renewed.expiries, stubborn.expiries) == (0, 1)
    clock.move(19.0)
    assert (renewed.expiries, stubborn.expiries) == (1, 1)
    clock.move(20.0)
    assert stubborn.expiries == 2
    watch.close()
    clock.move(100.0)
    assert stubborn.expiries == 2


class FakeTransport:
    def __init__(self):
        self.written = []
        self.untaken = 0
        self.closing = False

    def write(self, data):
        self.written.append(data)

    def get_write_buffer_size(self):
        return self.untaken

    def is_closing(self):
        return self.closing


class FakeLoop:
    def __init__(self):
        self.soon = []

    def call_soon(self, callback):
        self.soon.append(callback)


def test_answers_of_one_turn_leave_together():
    """However many answers one turn of the event loop brings, they leave in order and with one write."""
    transport, loop = FakeTransport(), FakeLoop()
    outbox = Outbox(transport, loop)
    outbox.put(Ack(1, 5))
    outbox.put({"error": "no"})
    assert transport.written == []
    assert len(loop.soon) == 1
    loop.soon[0]()
    assert transport.written == [b'{"seq":1,"accepted":5}\n{"error":"no"}\n']
    outbox.flush()
    assert len(transport.written) == 1


def test_answers_are_framed_in_frames():
    """In frames each answer is a frame, and one too large for it is an error with the same seq."""
    transport = FakeTransport()
    outbox = Outbox(transport, FakeLoop())
    outbox.frames = True
    outbox.put(Ack(1, 5, [Rejected(2, "why")]))
    outbox.put(Ack(8, 0, [Rejected(0, "x" * 2**24)]))
    outbox.flush()
    reader = FrameReader(2**20)
    reader.feed(transport.written[0])
    first, second = (json.loads(message) for message in drain(reader))
    assert first == {"seq": 1, "accepted": 5, "rejected": [{"index": 2, "error": "why"}]}
    assert second["seq"] == 8
    assert "does not fit" in second["error"]


def test_progress_is_what_the_peer_took():
    """Only bytes that the peer took count as progress, not those that we added."""
    transport = FakeTransport()
    outbox = Outbox(transport, FakeLoop())
    outbox.put({"error": "x" * 100})
    outbox.flush()
    transport.untaken = outbox._sent_bytes
    assert not outbox.has_progressed()
    transport.untaken -= 1
    assert outbox.has_progressed()
    outbox.put({"error": "y"})
    outbox.flush()
    transport.untaken += outbox._sent_bytes - transport.untaken - 1
    assert not outbox.has_progressed()


def test_nothing_is_written_to_a_connection_that_closes():
    """An answer for a connection that is closing goes nowhere, and is not kept."""
    transport = FakeTransport()
    outbox = Outbox(transport, FakeLoop())
    outbox.put({"error": "late"})
    transport.closing = True
    outbox.flush()
    transport.closing = False
    outbox.flush()
    assert transport.written == []
