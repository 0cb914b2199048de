"""Signs of life: work that is not done is what tells a part that hangs, and nothing else does."""

import pytest

from agentd.vitals import Pace, Vital, Vitals


@pytest.mark.parametrize(
    ("before", "now", "hangs"),
    [
        (Vital(7, busy=True), Vital(7, busy=True), True),
        (Vital(7, busy=True), Vital(8, busy=True), False),  # gets on
        (Vital(7, busy=False), Vital(7, busy=False), False),  # nothing to do
        (Vital(7, busy=False), Vital(7, busy=True), False),  # has begun since
        (Vital(7, busy=True), Vital(7, busy=False), False),  # nothing is left, whoever took it
    ],
)
def test_a_part_hangs_that_had_work_and_ended_none(before, now, hangs):
    """Two looks decide, and only of what both have seen."""
    vitals = Vitals()
    assert vitals.look({"part": before}) == []
    assert vitals.look({"part": now}) == ["part"] * hangs


def test_parts_come_and_go():
    """A reload brings couriers and takes some: a new one has a look's time, one that went is not missed."""
    vitals = Vitals()
    vitals.look({"old": Vital(1, busy=True)})
    assert vitals.look({"new": Vital(1, busy=True)}) == []
    assert vitals.look({"old": Vital(1, busy=True), "new": Vital(1, busy=True)}) == ["new"]


def test_a_pace_is_busy_for_as_long_as_there_are_steps():
    """Steps are what counts of a long piece of work."""
    pace, vitals = Pace(), Vitals()
    vitals.look({"it": pace.vital()})
    pace.step()
    assert vitals.look({"it": pace.vital()}) == []
    assert vitals.look({"it": pace.vital()}) == ["it"]
