"""What goes right before a run's end: stored with it, refused with it, and never waited for."""

from __future__ import annotations

import json

import pytest

from agentd.intake.routing import Route
from agentd.queued import Entry, Source
from agentd.records import LossClass

RUNS = frozenset({"run.start", "event", "run.complete", "run.fail", "run.cancel"})
ENDS = {"run.complete": {}, "run.fail": {"error_message": "no"}, "run.cancel": {}}
STREAM = "3e0f4a3a-0000-7000-8000-000000000000"


class Notices:
    """One for each (destination, lane) that is owed one."""

    def __init__(self, shelf):
        self.shelf = shelf
        self.owed = set()

    def size_before_end(self, destination, lane):
        return 500 if (destination, lane) in self.owed else 0

    def before_end(self, destination, lane):
        if (destination, lane) not in self.owed:
            return None
        self.owed.discard((destination, lane))
        body = json.dumps({"kind": "event", "run_id": lane[4:], "type": "agentd.lost", "level": "warn"}).encode()
        number = self.shelf.number(destination)
        return Entry(number, b"n" * 16, lane, "event", LossClass.KEEP, Source("", 1000, 0, "agentd"), 1, body)


@pytest.fixture
def two(make_intake):
    """Two destinations; the first owes run r a notice."""
    intake = make_intake(Route("one", RUNS, frozenset({"run.start"})), Route("two", RUNS, frozenset({"run.start"})))
    intake.notices = Notices(intake.shelf)
    intake.notices.owed.add(("one", "run:r"))
    intake.admission._notices = intake.notices
    return intake


def line(kind, run="r", **fields):
    return json.dumps({"kind": kind, "run_id": run, **ENDS.get(kind, {}), **fields}).encode()


def envelope(seq, *records):
    return b'{"seq":%d,"records":[%b]}' % (seq, b",".join(records))


@pytest.mark.parametrize("kind", ENDS)
def test_the_notice_stands_right_before_the_end(two, kind):
    """At the destination that owes it, under the number before the end's; it is no record of the client's."""
    outcome = two.admit(b"[" + b",".join([line("event", type="t"), line(kind), line("event", "s", type="u")]) + b"]")
    assert [(e.kind, e.lane, e.number) for e in outcome.copies["one"]] == [
        ("event", "run:r", 1), ("event", "run:r", 2), (kind, "run:r", 3), ("event", "run:s", 4),
    ]  # fmt: skip
    assert outcome.copies["one"][1].source.origin == "agentd"
    assert [e.number for e in outcome.copies["two"]] == [1, 2, 3]
    assert outcome.accepted == 3


def test_no_other_record_brings_it(two):
    """Events and other runs' ends leave it where it is."""
    two.admit(line("event", type="t"))
    two.admit(line("run.complete", "s"))
    assert two.notices.owed == {("one", "run:r")}


def test_both_have_room_or_none(two):
    """An end that would fit alone is refused by name; nothing is told, and the other destination takes it."""
    two.shelf.rooms["one"] = 400
    outcome = two.admit(line("run.complete"))
    assert [(rejected.error, rejected.to) for rejected in outcome.rejected] == [("spool full", ["one"])]
    assert two.notices.owed == {("one", "run:r")}
    assert [e.kind for e in outcome.copies["two"]] == ["run.complete"]


async def test_a_full_disk_has_nobody_wait_for_the_notice(two):
    """It takes both back: the end comes again and goes in, with a new notice, and what is younger waits for the end alone."""
    future = two.submit(envelope(1, line("run.complete", to="one")), stream=STREAM)
    two.shelf.fail()
    assert (await future).accepted == 0
    two.notices.owed.add(("one", "run:r"))
    late = two.submit(envelope(2, line("event", type="late", to="one")), stream=STREAM)
    two.shelf.commit()
    assert [rejected.error for rejected in (await late).rejected] == ["spool full"]
    again = two.submit(envelope(3, line("run.complete", to="one"), line("event", type="late", to="one")), stream=STREAM)
    two.shelf.commit()
    assert (await again).accepted == 2
    assert [e.kind for _, e in two.shelf.stored] == ["event", "run.complete", "event"]
    assert two.admission.accepted == 2
