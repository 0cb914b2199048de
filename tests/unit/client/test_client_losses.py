"""Runs are told what they lost in the agent's own memory: once for each gap, and before their end."""

import json
from itertools import pairwise

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agentd.client import buffer as buffers
from agentd.client.buffer import DEBUG, INFO, KEEP, Buffer, Notice
from agentd.client.lines import event_line, head, late_event, line, render
from agentd.client.losses import MAX_RUNS, RunLosses
from agentd.client.outbox import Outbox
from agentd.records import Record

decode = msgspec.json.Decoder(Record).decode


def emit(buffer, run="r", rank=DEBUG, payload="x" * 100, **common):
    data, size = late_event(head("event", {"run_id": run, **common}), "t", "debug", payload)
    buffer.put("event", rank, run, data, size)


def end(buffer, run="r", **common):
    data = line("run.complete", {"run_id": run, **common})
    buffer.put("run.complete", KEEP, run, data, len(data))


def told(entry):
    """What an event of ours says; the daemon's own decoder takes it."""
    record = decode(render(entry.data))
    assert (record.type, record.level) == ("agentd.lost", "warn")
    return json.loads(bytes(record.payload))


def kinds(entries):
    return ["lost" if isinstance(entry.ticket, Notice) else entry.kind for entry in entries]


@pytest.fixture
def buffer():
    """Room for eight records; two events were lost."""
    made = Buffer(8, 10**6)
    made.full_cause = "buffer_full"
    for _ in range(10):
        emit(made)
    return made


def test_the_end_of_a_run_goes_behind_what_it_lost(buffer):
    """Right before it, whatever has happened between the two emits; the books have it as one more record."""
    end(buffer)
    for _ in range(3):
        emit(buffer, "s", INFO)  # these push out more of it, after it has ended
    taken = buffer.take(100, 10**6)
    assert kinds(taken) == [*["event"] * 4, "lost", "run.complete", *["event"] * 3]
    assert told(taken[4]) == {"records": 6, "cause": "buffer_full", "causes": {"buffer_full": 6}, "kinds": {"event": 6}}
    assert [entry.number for entry in taken] == sorted(entry.number for entry in taken)
    for entry in taken:
        buffer.accept(entry)
    stats = buffer.stats()
    assert (stats.emitted, stats.accepted, stats.lost, stats.buffered) == (15, 9, 6, 0)
    assert not buffer.has_to_tell


def test_a_run_that_goes_on_is_told_when_there_is_room(buffer):
    """Once half of the buffer is free; what it loses later is told anew."""
    assert not buffer.has_to_tell
    for entry in buffer.take(4, 10**6):
        buffer.accept(entry)
    assert buffer.has_to_tell
    buffer.tell()
    assert not buffer.has_to_tell
    taken = buffer.take(100, 10**6)
    assert kinds(taken) == ["event"] * 4 + ["lost"]
    assert told(taken[-1])["records"] == 2
    buffer.lose(taken[0], "spool_full")
    for entry in taken[1:]:
        buffer.accept(entry)
    buffer.tell()
    (again,) = buffer.take(100, 10**6)
    assert told(again) == {"records": 1, "cause": "spool_full", "causes": {"spool_full": 1}, "kinds": {"event": 1}}


def test_whose_end_waits_is_told_with_it(buffer):
    """Not behind it: the platform takes nothing more of a run that has ended."""
    end(buffer)
    for entry in buffer.take(6, 10**6):
        buffer.accept(entry)
    assert not buffer.has_to_tell
    assert kinds(buffer.take(100, 10**6)) == ["event", "lost", "run.complete"]


def test_a_parked_end_is_told_before_it_goes_again(buffer):
    """What was lost while it waited for room stands before it, too."""
    for entry in buffer.take(8, 10**6):
        buffer.accept(entry)
    buffer.tell()
    end(buffer)
    taken = buffer.take(100, 10**6)
    assert kinds(taken) == ["lost", "run.complete"]
    for entry in taken:
        buffer.park(entry)
    buffer.never("event", "r", "not_encodable")
    assert not buffer.has_to_tell
    again = buffer.take_parked(0, 100, 10**6)
    assert kinds(again) == ["lost", "lost", "run.complete"]
    assert [told(entry)["records"] for entry in again[:2]] == [2, 1]
    assert buffer.stats().buffered == 3


@pytest.mark.parametrize("state", ["lose", "refuse", "accept"])
def test_an_event_that_is_lost_itself_gives_back_what_it_told(buffer, state):
    """And counts as one more; one that the daemon has refused is not sent again."""
    for entry in buffer.take(8, 10**6):
        buffer.accept(entry)
    buffer.tell()
    (notice,) = buffer.take(1, 10**6)
    getattr(buffer, state)(notice, *{"lose": ["closed"], "refuse": ["invalid", "no"]}.get(state, []))
    if state == "lose":
        buffer.tell()
        (again,) = buffer.take(1, 10**6)
        assert told(again)["causes"] == {"buffer_full": 2, "closed": 1}
    assert not buffer.has_to_tell


@pytest.mark.parametrize(
    "common", [{}, {"agent_id": "billing"}, {"agent_id": 'b"\\\n', "to": ["one", "two"]}, {"to": "one"}]
)
@pytest.mark.parametrize("how", ["late", "bytes", "end", "never"])
def test_it_is_for_the_same_agent_and_destinations(common, how):
    """Whatever was lost of the run first says whose it is; of what was never made, the run alone is known."""
    buffer = Buffer(1, 10**6)
    run = "r-\u00e9"
    if how == "never":
        buffer.never("event", run, "not_encodable")
    else:
        if how == "late":
            emit(buffer, run, **common)
        elif how == "bytes":
            data = event_line(
                head("event", {"run_id": run, **common}), "t", "debug", {"a": "to"}, "2026-01-01T00:00:00Z"
            )
            buffer.put("event", DEBUG, run, data, len(data))
        else:
            end(buffer, run, **common)
        (entry,) = buffer.take(1, 10**6)
        buffer.lose(entry, "too_large")
    buffer.tell()
    (entry,) = buffer.take(1, 10**6)
    record = decode(render(entry.data))
    assert record.run_id == run
    if how != "never":
        assert (record.agent_id, record.to) == (common.get("agent_id"), common.get("to"))


def test_what_is_no_run_is_told_nothing():
    """A decision outside of a run, an event without one."""
    buffer = Buffer(8, 10**6)
    buffer.never("event", "", "no_run")
    assert not buffer.has_to_tell


def test_memory_for_it_is_bounded():
    """Beyond so many runs the books count what was lost, and nobody is told."""
    losses = RunLosses()
    for number in range(MAX_RUNS + 5):
        losses.add(f"r{number}", "no_daemon", "event", b"")
    assert len(losses) == MAX_RUNS
    gap = losses.take("r0")
    losses.add("later", "no_daemon", "event", b"")
    losses.give_back("r0", gap)
    assert len(losses) == MAX_RUNS
    assert "r0" not in losses


def test_its_size_is_known_beforehand():
    """No event is larger than what room was asked for."""
    losses = RunLosses()
    for cause in ["c" * 64, *"abcdefg"]:
        for kind in ("decision", "action.completed", "run.complete"):
            for _ in range(1000):
                losses.add("r", cause, kind, b"")
    size = losses.size("r")
    assert len(losses.take("r").line()) <= size


def test_a_tiny_buffer_is_told_nothing_that_it_can_not_hold():
    """And says so: a thread that waited for it would spin."""
    buffer = Buffer(4, 100)
    buffer.never("event", "r", "not_encodable")
    assert not buffer.has_to_tell
    end(buffer)
    assert kinds(buffer.take(1, 10**6)) == ["lost", "run.complete"]


def test_nothing_is_told_while_the_daemon_has_no_room():
    """Only an end brings it along; else it waits until nothing is parked."""
    buffer = Buffer(100, 10**6)
    box = Outbox(buffer, "s", "c")
    buffer.never("event", "r", "not_encodable")
    assert box.queued == 1
    box.spool_full = True
    assert box.queued == 0
    assert box.next_envelope() is None
    box.spool_full = False
    envelope = box.next_envelope()
    assert kinds(envelope.entries) == ["lost"]
    assert box.queued == 0


class Telling(RuleBasedStateMachine):
    """Any mix of emits, ends, sends and answers; every loss of a run is to be told, being told, or was told."""

    def __init__(self):
        super().__init__()
        self.notices = []
        self.plain = Notice

        def made(losses, run_id):
            notice = self.plain(losses, run_id)
            self.notices.append(notice)
            return notice

        buffers.Notice = made
        self.buffer = Buffer(10, 5000)
        self.under_way = []

    def teardown(self):
        buffers.Notice = self.plain

    @rule(rank=st.sampled_from([DEBUG, INFO, KEEP]), size=st.integers(0, 900), run=st.sampled_from("rs"))
    def emit(self, rank, size, run):
        emit(self.buffer, run, rank, "x" * size)

    @rule(run=st.sampled_from("rs"))
    def end(self, run):
        end(self.buffer, run)

    @rule(run=st.sampled_from("rs"))
    def never(self, run):
        self.buffer.never("event", run, "not_encodable")

    @rule(records=st.integers(1, 6), size=st.integers(0, 3000), parked=st.booleans())
    def send(self, records, size, parked):
        taken = self.buffer.take_parked(0, records, size) if parked else self.buffer.take(records, size)
        own = [entry for entry in taken if not isinstance(entry.ticket, self.plain)]
        assert len(own) <= records
        for entry, following in pairwise(taken):
            if entry.ticket is not None and entry.number == following.number:
                assert following.kind == "run.complete"
        self.under_way += taken

    @rule()
    def tell(self):
        if self.buffer.has_to_tell:
            self.buffer.tell()
            assert self.buffer.queued

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), state=st.sampled_from(["accept", "lose", "park"]))
    def answer(self, data, state):
        entry = self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1)))
        getattr(self.buffer, state)(entry, *(["spool_full"] if state == "lose" else []))

    @invariant()
    def nothing_is_forgotten_or_told_twice(self):
        """Promise 8: within the bounds, and what was lost adds up."""
        stats = self.buffer.stats()
        assert stats.emitted == stats.accepted + stats.lost + stats.buffered
        ahead = [entry for entry in self.under_way if isinstance(entry.ticket, self.plain)]
        assert stats.buffered <= 10 + len(self.notices)
        assert stats.buffered_bytes <= 5000 + 700 * len(self.notices)
        if not (ahead or self.buffer.parked):
            assert stats.buffered <= 10
            assert stats.buffered_bytes <= 5000
        owed = sum(gap.records for gap in self.buffer._losses._gaps.values())
        assert stats.lost == owed + sum(n._gap.records for n in self.notices if n.state != "lost")


Telling.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, derandomize=True, database=None
)
TestTelling = Telling.TestCase
