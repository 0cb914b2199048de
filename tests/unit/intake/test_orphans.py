"""Who owns which run and what is due when its process is gone: records, deaths and a clock that is a number; no pids."""

from __future__ import annotations

import itertools

import pytest

from agentd.intake.orphans import ORIGIN, Kept, Orphans, Owner, Process, decode, encode
from agentd.queued import Entry, Ref, Source
from agentd.records import LossClass

GRACE_S = 30.0
KINDS = ("run.start", "event", "span", "task")


def process(pid=7, **facts):
    return Process(
        Owner(**({"boot": "b", "pid_space": 1, "pid": pid, "start": 5, "inode": 0, "uid": 1000, "stream": "s"} | facts))
    )


class Desk:
    """Orphans, the messages that they see, and the disk that takes them or does not."""

    def __init__(self, takes=lambda _name, _agent: True):
        self.orphans = Orphans(GRACE_S, itertools.count(1).__next__, takes)
        self.numbers = itertools.count(1)
        self.now = 0.0
        self.disk = {}

    def entry(self, kind, run="r", uid=1000, agent="a", origin="frames"):
        number = next(self.numbers)
        source = Source(agent, uid, 7, origin)
        return Entry(number, number.to_bytes(16, "big"), f"run:{run}", kind, LossClass.KEEP, source, 1, b"{}")

    def admit(self, by, *entries, to=("one",), starts=None):
        """A message on its way; the first `run.start` of a run at a destination introduces it, as admission would say."""
        introduced = [
            Ref(name, "run", entry.lane[4:], entry.source.agent, entry.source.uid, entry.number, lane=entry.lane)
            for name in to
            for entry in entries
            if entry.kind == "run.start" and (starts is None or name in starts)
        ]
        return self.orphans.admitted(dict.fromkeys(to, entries), introduced, by, self.now)

    def store(self, change):
        """The disk has it."""
        self.disk.update(change.rows())
        over, late = self.orphans.kept(change)
        for row in over:
            del self.disk[row]
        return late

    def refuse(self, change):
        """The disk had no room for it."""
        change.rows()
        self.disk.update(self.orphans.undone(change))

    def say(self, by, *kinds, to=("one",), **facts):
        """A message that is on disk."""
        change = self.admit(by, *(self.entry(kind, **facts) for kind in kinds), to=to)
        return [] if change is None else self.store(change)

    def dies(self, who):
        self.disk.update(self.orphans.gone(who, self.now, 1_000_000))

    def due(self):
        return {run.run_id: list(run.open_at) for runs in self.orphans.due(self.now).values() for run in runs}

    @property
    def rows(self):
        return [decode(value) for value in self.disk.values()]


@pytest.fixture
def desk():
    return Desk()


# -- what is watched -------------------------------------------------------------------------------------------------------


def test_a_run_is_due_when_its_process_is_gone_and_the_grace_is_over(desk):
    """Not before its process has ended, not before `orphan_grace` after that."""
    agent = process()
    desk.say(agent, "run.start", "event")
    desk.now = 1000.0
    assert desk.due() == {}
    desk.dies(agent)
    desk.now += GRACE_S - 0.1
    assert desk.due() == {}
    desk.now += 0.1
    assert desk.due() == {"r": ["one"]}


def test_a_run_of_another_connection_is_never_watched(desk):
    """Lines, curl and SDKs own nothing: neither their runs, nor by what a library's client writes to these later."""
    desk.say(None, "run.start", "event")
    agent = process()
    desk.say(agent, "event", "task")
    assert (len(desk.orphans), desk.disk, dict(agent.runs)) == (0, {}, {})


def test_a_repeated_start_begins_nothing(desk):
    """A run that was introduced before, by whoever, is what it was: only its first start counts."""
    agent = process()
    assert desk.admit(agent, desk.entry("run.start"), starts=()) is None
    assert len(desk.orphans) == 0


def test_where_nothing_is_watched_nothing_is_looked_at(desk):
    """A daemon whose clients own no runs pays for a look at two empty tables."""
    assert desk.orphans.admitted(None, (), None, 0.0) is None  # the copies are not touched


@pytest.mark.parametrize("end", ["run.complete", "run.fail", "run.cancel"])
@pytest.mark.parametrize("by_owner", [True, False])
def test_a_terminal_record_ends_the_watch_whoever_sends_it(desk, end, by_owner):
    """Whoever may end a run, the owner or a shell: it is not watched any more, and its row goes."""
    agent = process()
    desk.say(agent, "run.start")
    assert len(desk.rows) == 1
    desk.say(agent if by_owner else None, end)
    desk.dies(agent)
    desk.now += GRACE_S
    assert (desk.due(), desk.disk, len(desk.orphans)) == ({}, {}, 0)


def test_the_row_says_that_the_end_is_in_before_it_goes(desk):
    """With the very commit of the terminal record the row is empty: a crash between that and its deletion revives nothing."""
    agent = process()
    desk.say(agent, "run.start")
    change = desk.admit(agent, desk.entry("run.complete"))
    assert change.rows() == [(1, b"")]
    assert decode(b"") is None


def test_a_run_within_one_message_leaves_nothing(desk):
    """Start, events and end together: no row is ever written."""
    change = desk.admit(process(), *(desk.entry(kind) for kind in ("run.start", "event", "run.complete")))
    assert change.rows() == []
    assert desk.orphans.kept(change) == ([], [])
    assert len(desk.orphans) == 0


def test_a_destination_that_takes_no_end_is_not_watched():
    """Where `accept` leaves `run.fail` out there is nothing that agentd could send."""
    desk = Desk(takes=lambda name, agent: (name, agent) == ("two", "a"))
    agent = process()
    desk.say(agent, "run.start", to=("one", "two"))
    desk.dies(agent)
    desk.now += GRACE_S
    assert desk.due() == {"r": ["two"]}


# -- whose it is -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_ownership_moves_with_any_record_of_an_owning_process(desk, kind):
    """The last owning process that wrote to the run owns it, in memory and on disk: the first one's end means nothing then."""
    parent, child = process(1), process(2)
    desk.say(parent, "run.start")
    change = desk.admit(child, desk.entry(kind), starts=())
    desk.store(change)
    assert [kept.owner.pid for kept in desk.rows] == [2]
    desk.dies(parent)
    desk.now += GRACE_S
    assert desk.due() == {}
    desk.dies(child)
    desk.now += GRACE_S
    assert desk.due() == {"r": ["one"]}


def test_a_record_of_a_connection_that_owns_nothing_moves_nothing(desk):
    """A shell that adds an event does not take the run over."""
    agent = process()
    desk.say(agent, "run.start")
    desk.say(None, "event")
    desk.dies(agent)
    desk.now += GRACE_S
    assert desk.due() == {"r": ["one"]}


def test_taking_over_within_the_grace_saves_the_run(desk):
    """A process that goes on with a dead one's run owns it; what it does not touch is due."""
    first, second = process(1), process(2)
    desk.say(first, "run.start", run="kept")
    desk.say(first, "run.start", run="left")
    desk.dies(first)
    desk.now += GRACE_S / 2
    desk.say(second, "event", run="kept")
    desk.now += GRACE_S
    assert desk.due() == {"left": ["one"]}


def test_what_a_dead_process_has_sent_is_read_first(desk):
    """Its end may be known before its last records are read: with each of them the grace begins anew."""
    agent = process()
    desk.dies(agent)
    desk.say(agent, "run.start")
    desk.now += GRACE_S - 1
    desk.say(agent, "event")
    desk.now += GRACE_S - 1
    assert desk.due() == {}
    desk.now += 1
    assert desk.due() == {"r": ["one"]}
    desk.say(agent, "run.complete")
    assert desk.due() == {}


def test_two_users_runs_of_one_name_are_two(desk):
    """At two destinations one name may be two users' runs: each has its owner and its end."""
    mine, other = process(1), process(2, uid=1001)
    desk.say(mine, "run.start", to=("one",))
    desk.say(other, "run.start", to=("two",), uid=1001)
    assert len(list(desk.orphans)) == 2
    desk.dies(mine)
    desk.now += GRACE_S
    assert desk.due() == {"r": ["one"]}
    desk.say(other, "event", to=("two",), uid=1001)
    desk.say(None, "run.complete", to=("two",), uid=1001)
    assert desk.due() == {"r": ["one"]}
    assert len(list(desk.orphans)) == 1


def test_an_event_that_goes_elsewhere_is_a_record_of_the_run(desk):
    """Of two destinations one may take starts and ends alone: who writes the events to the other owns the run at both."""
    parent, child = process(1), process(2)
    desk.say(parent, "run.start", to=("ends",))
    desk.say(child, "event", to=("events",))
    desk.dies(parent)
    desk.now += GRACE_S
    assert desk.due() == {}


# -- several destinations --------------------------------------------------------------------------------------------------


def test_each_destination_is_ended_for_itself(desk):
    """A terminal record that one destination had no room for leaves the run open there, and there alone."""
    agent = process()
    desk.say(agent, "run.start", to=("one", "two"))
    desk.say(agent, "run.complete", to=("one",))
    assert [kept.open_at for kept in desk.rows] == [["two"]]
    desk.dies(agent)
    desk.now += GRACE_S
    assert desk.due() == {"r": ["two"]}
    desk.say(None, "run.fail", to=("two",))
    assert (desk.due(), desk.disk) == ({}, {})


def test_a_start_that_comes_later_to_a_second_destination_joins(desk):
    """What found no room at first is the same run, with one row."""
    agent = process()
    desk.say(agent, "run.start", to=("one",))
    desk.say(agent, "run.start", to=("two",))
    assert [kept.open_at for kept in desk.rows] == [["one", "two"]]


def test_a_place_where_nothing_is_to_end_is_let_go(desk):
    """A reference that is dead or forgotten: the run is watched at the others, and with the last of them not at all."""
    agent = process()
    desk.say(agent, "run.start", to=("one", "two"))
    [run] = desk.orphans
    rows, over = desk.orphans.close(run, {"one"})
    assert ([decode(value).open_at for _, value in rows], over) == ([["two"]], [])
    assert desk.orphans.close(run, {"two"}) == ([], [run.row])
    assert len(desk.orphans) == 0


# -- what the disk refuses -------------------------------------------------------------------------------------------------


def test_a_start_that_was_refused_is_forgotten(desk):
    """The disk had no room for it: there is no run to end."""
    agent = process()
    desk.refuse(desk.admit(agent, desk.entry("run.start")))
    assert (len(desk.orphans), dict(agent.runs), desk.disk) == (0, {}, {})


def test_an_end_that_was_refused_ended_nothing(desk):
    """While it is on its way nothing is due; when it comes to nothing the run is open again, and its row says so."""
    agent = process()
    desk.say(agent, "run.start")
    desk.dies(agent)
    change = desk.admit(None, desk.entry("run.complete"))
    desk.now += GRACE_S
    assert desk.due() == {}
    desk.refuse(change)
    assert desk.due() == {"r": ["one"]}
    assert [kept.open_at for kept in desk.rows] == [["one"]]


def test_start_and_end_that_are_refused_together_leave_nothing(desk):
    """Two messages under way when the disk is full: the second's way back does not bring the first one's run back."""
    agent = process()
    start = desk.admit(agent, desk.entry("run.start"))
    start.rows()
    end = desk.admit(agent, desk.entry("run.complete"))
    desk.refuse(start)
    desk.refuse(end)
    assert (len(desk.orphans), dict(agent.runs)) == (0, {})


def test_a_take_over_that_was_refused_is_written_again(desk):
    """The process has the run all the same, since it will repeat the record: the row is put in order as soon as there is room."""
    parent, child = process(1), process(2)
    desk.say(parent, "run.start")
    desk.refuse(desk.admit(child, desk.entry("event")))
    assert [kept.owner.pid for kept in desk.rows] == [2]


# -- our own end of it -----------------------------------------------------------------------------------------------------


def ended_by_us(desk):
    agent = process()
    desk.say(agent, "run.start")
    desk.dies(agent)
    end = desk.entry("run.fail", origin=ORIGIN)
    desk.store(desk.admit(None, end))
    return end


def test_a_real_end_after_ours_takes_ours_back(desk):
    """It is said once, when the real one is on disk; a second end changes nothing."""
    end = ended_by_us(desk)
    assert desk.disk == {}
    change = desk.admit(None, desk.entry("run.complete"))
    assert desk.say(None, "run.fail", origin=ORIGIN) == []
    assert desk.store(change) == [("one", "run:r", end.record_id)]
    assert desk.say(None, "run.complete") == []


def test_a_real_end_elsewhere_takes_nothing_back(desk):
    """Ours stands at the destination that the other one does not go to."""
    ended_by_us(desk)
    assert desk.say(None, "run.complete", to=("two",)) == []


def test_an_end_of_ours_that_was_refused_is_due_again(desk):
    """And a real one after it has nothing to take back."""
    agent = process()
    desk.say(agent, "run.start")
    desk.dies(agent)
    desk.now += GRACE_S
    desk.refuse(desk.admit(None, desk.entry("run.fail", origin=ORIGIN)))
    assert desk.due() == {"r": ["one"]}
    assert desk.say(None, "run.complete") == []


def test_ends_of_ours_that_are_delivered_are_forgotten(desk):
    """What is out can't be taken back: no memory is kept of it."""
    ended_by_us(desk)
    desk.orphans.settle(lambda _name, _lane: False)
    assert desk.orphans._ended
    desk.orphans.settle(lambda name, lane: (name, lane) == ("one", "run:r"))
    assert desk.orphans._ended == {}


# -- over a restart --------------------------------------------------------------------------------------------------------


def test_a_row_holds_what_a_restart_needs(desk):
    """Run, user, agent, destinations, process, and when that was seen to be gone."""
    agent = process(pid=9, stream="x")
    desk.say(agent, "run.start", to=("one", "two"))
    assert desk.rows == [Kept("run:r", 1000, "a", ["one", "two"], agent.owner)]
    desk.dies(agent)
    assert desk.rows == [Kept("run:r", 1000, "a", ["one", "two"], agent.owner, 1_000_000)]


def test_what_was_restored_is_due_like_any_other(desk):
    """The grace of a process that was found gone begins with the start; its first sight stays on record."""
    desk.say(process(), "run.start")
    [(row, value)] = desk.disk.items()
    later = Desk()
    agent = process()
    later.orphans.restore(row, decode(value), agent)
    later.dies(agent)
    later.now += GRACE_S
    assert later.due() == {"r": ["one"]}
    later.say(None, "run.fail")
    assert len(later.orphans) == 0


def test_what_is_asked_is_not_asked_twice(desk):
    """While our end of a run is on its way it is not due; all else that its process left is."""
    agent = process()
    desk.say(agent, "run.start", run="a")
    desk.say(agent, "run.start", run="b")
    desk.dies(agent)
    next(iter(desk.orphans)).is_asked = True
    assert [run.run_id for runs in desk.orphans.left_behind().values() for run in runs] == ["b"]
    desk.now += GRACE_S
    assert desk.due() == {"b": ["one"]}


def test_encode_is_empty_for_what_has_ended(desk):
    """A run without an open destination has nothing to say but that."""
    desk.say(process(), "run.start")
    [run] = desk.orphans
    run.open_at = []
    assert encode(run) == b""
