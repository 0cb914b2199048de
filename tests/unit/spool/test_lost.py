"""What runs lost: counted where it is shed, kept until they were told, and told neither twice nor never."""

import tracemalloc
from itertools import count

import pytest
from spool_kit import entry

from agentd.errors import SpoolDamaged
from agentd.queued import Source
from agentd.records import LossClass
from agentd.spool import columns, lost, segments
from agentd.spool.lost import Gap, Losses

DEBUG, INFO = LossClass.DEBUG, LossClass.INFO


def found(**gaps):
    return {"cloud": {f"run:{name}": gap for name, gap in gaps.items()}}


def gap(debug=1, first=10, last=20):
    return Gap("billing", 1000, first, last, debug_events=debug)


class Log:
    """The rows on a disk: commits bring what runs lose and whom they tell, a crash leaves what was committed."""

    def __init__(self, most=lost.MOST_RUNS):
        self.most = most
        self.rows = {}
        self.numbers = count(1)
        self.losses = Losses(most)

    def commit(self, lose=None, *, tell=(), fails=False):
        """`tell`: runs whose notices are made with this commit and in it, or that of a notice `tell` gave before."""
        notices = [one if isinstance(one, bytes) else self.tell(one) for one in tell]
        row, added = next(self.numbers), next(self.numbers)
        written = self.losses.write(notices, row)
        rows = dict(self.rows)
        if written is not None:
            rows |= {row: written.value} if written.value else {}
            for gone in written.gone:
                rows.pop(gone, None)
        if fails:
            self.losses.untell(notices)
            rows[row] = self.losses.rewrite(row)
            notices = []
        if lose:
            rows[added] = lost.encode_found(lose)
        self.rows = rows
        self.losses.told(notices)
        return self.losses.learn(lose or {}, added)

    def tell(self, name):
        """A notice that is on its way, but not in the next commit."""
        notice = b"notice %d" % next(self.numbers)
        self.losses.tell("cloud", f"run:{name}", notice)
        return notice

    def crash(self):
        self.losses = Losses(self.most)
        for row, value in sorted(self.rows.items()):
            self.losses.restore(row, value)

    def gaps(self):
        return {lane.removeprefix("run:"): self.losses.find("cloud", lane) for lane in self.losses.lanes("cloud")}


# -- counting --------------------------------------------------------------------------------------------------------


def segment_of(*entries):
    return columns.read(1, segments.encode("cloud", entries).value)


def test_a_segment_is_counted_by_run():
    """Records, kinds, levels and times of each run; what is of no run or has ended is nobody's loss."""
    other = Source("other", 5, 6, "lines")
    rows = [
        entry(1, "run:a", DEBUG, admitted_us=100),
        entry(2, "run:b", DEBUG, kind="span", admitted_us=90),
        entry(3, "run:a", DEBUG, admitted_us=300),
        entry(4, "heartbeat:a", DEBUG, kind="heartbeat"),
        entry(5, "run:a", DEBUG, kind="span", admitted_us=350),
        entry(6, "run:c", DEBUG),
    ]
    rows[1].source = other
    gaps = lost.tally(segment_of(*rows), bytearray([0b100100]))
    assert gaps == {
        "run:a": Gap("billing", 1000, 100, 350, debug_events=1, debug_spans=1),
        "run:b": Gap("other", 5, 90, 90, debug_spans=1),
    }
    assert lost.tally(segment_of(*rows), None)["run:a"] == Gap("billing", 1000, 100, 350, debug_events=2, debug_spans=1)


def test_records_at_hand_are_counted_alike():
    """A segment that was rewritten while it was shed is counted from its records."""
    rows = [entry(1, "run:a", INFO), entry(2, "run:b", INFO), entry(3, "run:a", INFO, kind="span")]
    assert lost.tally_entries(rows) == lost.tally(segment_of(*rows), None)
    assert lost.tally_entries([]) == {}


def test_what_a_gap_says():
    """By kind and by level, those that are none left out."""
    one = Gap("a", 1, 5, 9, debug_events=2, info_events=1, info_spans=4)
    assert (one.records, one.kinds, one.levels) == (7, {"event": 3, "span": 4}, {"debug": 2, "info": 5})
    assert one.with_(Gap("b", 2, 3, 7, debug_spans=1)) == Gap("a", 1, 3, 9, 2, 1, 1, 4)
    assert one.with_(None) is one


# -- the table and its log -------------------------------------------------------------------------------------------


def test_losses_add_up_until_they_are_told():
    """One gap however many segments it took; what is lost after it was told is another one."""
    log = Log()
    log.commit(found(a=gap(2), b=gap(1)))
    log.commit(found(a=gap(3, first=15, last=40)))
    assert log.gaps() == {"a": gap(5, last=40), "b": gap(1)}
    log.commit(tell=["a"])
    assert log.gaps() == {"b": gap(1)}
    log.commit(found(a=gap(7)))
    assert log.gaps() == {"a": gap(7), "b": gap(1)}
    log.crash()
    assert log.gaps() == {"a": gap(7), "b": gap(1)}


def test_a_notice_without_room_is_told_again():
    """The disk was full: the run is told with a later commit, of all that it has lost by then."""
    log = Log()
    log.commit(found(a=gap(2)))
    log.commit(found(a=gap(3)), tell=["a"], fails=True)
    assert log.gaps() == {"a": gap(5)}
    log.crash()
    assert log.gaps() == {"a": gap(5)}


def test_what_is_lost_while_a_notice_is_under_way_is_told_anew():
    """The notice says what was known when it was made."""
    log = Log()
    log.commit(found(a=gap(2)))
    log.commit(found(a=gap(3)), tell=["a"])
    assert log.gaps() == {"a": gap(3)}
    log.crash()
    assert log.gaps() == {"a": gap(3)}


def test_a_notice_that_waits_for_a_later_commit_keeps_its_gap_on_disk():
    """A commit that writes the log anew before it does not lose what it tells."""
    log = Log()
    log.commit(found(a=gap(2), b=gap(1)))
    log.losses.tell("cloud", "run:a", b"id")
    for _ in range(lost._LOG_ROWS + 1):
        log.commit(found(b=gap(1)))
    log.crash()
    assert log.gaps()["a"] == gap(2)


@pytest.mark.parametrize("fails", [(), (1,), (2,), (1, 2)])
def test_two_notices_of_one_run_may_be_on_their_way(fails):
    """A gap that is found while the notice of the one before waits is another's: each is told once, or again if it found no room."""
    log = Log()
    log.commit(found(a=gap(2)))
    first = log.tell("a")
    log.commit(found(a=gap(3)))
    second = log.tell("a")
    log.commit(tell=[first], fails=1 in fails)
    log.commit(tell=[second], fails=2 in fails)
    left = (2 if 1 in fails else 0) + (3 if 2 in fails else 0)
    assert sum(one.records for one in log.gaps().values()) == left
    log.crash()
    assert sum(one.records for one in log.gaps().values()) == left


def test_nothing_is_left_when_all_are_told():
    """The rows go with the last gap."""
    log = Log()
    log.commit(found(a=gap(), b=gap()))
    log.commit(found(c=gap()))
    log.commit(tell=["a", "c"])
    assert log.rows
    log.commit(tell=["b"])
    assert log.rows == {}
    log.commit(found(a=gap()))
    log.commit(tell=["a"], fails=True)
    log.crash()
    assert log.gaps() == {"a": gap()}


def test_the_log_stays_small():
    """Its rows and what they hold are bounded by the runs with a gap, however often those lose something."""
    log = Log()
    most = 0
    for number in range(5000):
        log.commit(found(**{f"r{number % 20}": gap()}))
        most = max(most, len(log.rows))
    assert most <= lost._LOG_ROWS + 2
    assert sum(one.records for one in log.gaps().values()) == 5000
    log.crash()
    assert sum(one.records for one in log.gaps().values()) == 5000
    assert len(log.gaps()) == 20


def test_a_run_that_is_forgotten_is_told_nobody():
    """Its row goes with the next commit; a destination that is another one now is told nothing either."""
    log = Log()
    log.commit(found(a=gap(), b=gap()))
    log.losses.forget("cloud", "run:a")
    assert log.losses.has_changed
    log.commit()
    log.crash()
    assert log.gaps() == {"b": gap()}
    log.losses.forget_all("cloud")
    log.commit()
    assert (log.gaps(), log.rows) == ({}, {})


def test_more_runs_than_can_be_told_are_counted():
    """Memory is bounded: beyond it runs are not told, and somebody hears of how many records."""
    log = Log(most=2)
    assert log.commit(found(a=gap(1), b=gap(2), c=gap(4))) == 4
    assert log.commit(found(a=gap(1), c=gap(8))) == 8
    assert log.gaps() == {"a": gap(2), "b": gap(2)}
    assert log.losses.untold == 12


def test_a_row_that_is_damaged_says_so():
    """The start sets it aside."""
    value = lost.encode_found(found(a=gap()))
    for damaged in (value[:-1] + b"\x7f", b"", b"\xc1"):
        with pytest.raises(SpoolDamaged):
            Losses().restore(1, damaged)


@pytest.mark.slow
def test_a_gap_costs_about_330_bytes():
    """A shed of 100,000 runs takes about 33 MB."""
    rows = [lost.encode_found(found(**{f"{one:036d}": gap(first=10**15 + one) for one in range(start, start + 1000)}))
            for start in range(0, lost.MOST_RUNS, 1000)]  # fmt: skip
    tracemalloc.start()
    losses = Losses()
    for number, value in enumerate(rows):
        losses.restore(number, value)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(losses) == lost.MOST_RUNS
    assert size / lost.MOST_RUNS < 400
