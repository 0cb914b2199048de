"""The spool's model with damage and clocks: rows that rot between two starts, and a wall clock that is moved back and forth.

What is whole is there and in order; what is damaged is counted as quarantined, with its number; nothing is there that nobody
sent, no number is given twice, and the books balance.
"""

from itertools import count

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test
from test_spool_model import NAMES, SpoolMachine

from agentd.outcomes import State
from agentd.spool import compact, segments
from agentd.spool.tables import Table, ended_key

YEAR_US = 365 * 86_400 * 10**6


class FaultyMachine(SpoolMachine):
    """`lost` counts by destination what damage has taken."""

    def __init__(self):
        super().__init__()
        self.lost = dict.fromkeys(NAMES, 0)

    def audit(self):
        """Damage breaks chains and leaves stories without an end: `agentd audit` says so, and is tested by itself."""

    def look_at_the_journal(self):
        """Its rows are damaged here as well."""

    def restart(self):
        """The daemon has died; it starts again on what is left."""
        self.store = self.store.crash()
        self.open()
        self.blocked.clear()

    def keys_of(self, table):
        return [key for key, _, _ in self.store.tags(table)]

    @rule(place=st.integers(0, 9), both=st.booleans())
    def damage_a_segment(self, place, both):
        """Promise 8: a segment that can't be read costs its own records, counted; neighbours are delivered."""
        self.settle_down()
        self.do(self.abort())
        keys = self.keys_of(Table.SEGMENT)
        if not keys:
            self.restart()
            return
        key = keys[place % len(keys)]
        name, entries = segments.decode(key, self.store.read(key))
        queue_segment = self.spool.queues[name].segments[key]
        gone = [entry.number for entry in entries if not queue_segment.has_ended(entry.index)]
        value = bytearray(self.store.read(key))
        value[-1] ^= 0xFF
        if both:
            self.store.change(key, bytes(value), b"\xc1")
            for number in gone:
                self.live[name].pop(number, None)
                self.ended.add((name, number))
            self.lost[name] += len(gone)
        else:  # its directory alone: made anew from the records
            self.store.change(key, self.store.read(key), b"\xc1")
        self.restart()
        self.settle_down()
        self.compare_records()
        self.seals = {seal.seq: seal for seal in self.spool.seals.all()}

    @rule(place=st.integers(0, 9))
    def damage_endings(self, place):
        """Rather twice than never: where it can't be read which records have ended, all of the segment are sent again."""
        self.settle_down()
        self.do(self.abort())
        keys = self.keys_of(Table.ENDED)
        if keys:
            key = keys[place % len(keys)]
            name = next(
                name
                for name, queue in self.spool.queues.items()
                if any(ended_key(segment) == key for segment in queue.segments)
            )
            segment = next(each for each in self.spool.queues[name].segments if ended_key(each) == key)
            self.store.change(key, b"\xc1\0\0\0\0" + self.store.read(key)[5:])
            for entry in segments.decode(segment, self.store.read(segment))[1]:
                self.live[name][entry.number] = entry.lane, entry.loss
                self.ended.discard((name, entry.number))
        self.restart()
        self.settle_down()
        self.compare_records()
        self.seals = {seal.seq: seal for seal in self.spool.seals.all()}

    @rule(table=st.sampled_from([Table.SEAL, Table.JOURNAL, Table.META]), place=st.integers(0, 9))
    def damage_another_row(self, table, place):
        """Promise 1: a damaged seal, entry of the journal or meta row costs no record."""
        self.settle_down()
        self.do(self.abort())
        keys = self.keys_of(table)
        if keys:
            key = keys[place % len(keys)]
            value = bytearray(self.store.read(key))
            value[-1] ^= 0xFF
            self.store.change(key, bytes(value))
        if table is Table.META:
            self.lost = dict.fromkeys(NAMES, 0)  # the books began anew
        self.restart()
        self.settle_down()
        self.compare_records()
        self.seals = {seal.seq: seal for seal in self.spool.seals.all()}

    def compare_records(self):
        """As without damage, but for what it has taken, which is counted."""
        found = self.on_disk()
        for numbers in self.unsure:
            present = {number for number in numbers if number[1] in found[number[0]]}
            assert present == {number for number in numbers if number not in self.ended} or not present
        for name in NAMES:
            sure = {n: facts for n, facts in self.live[name].items() if (name, n) not in self.maybe}
            assert sure.items() <= found[name].items()
            assert all((name, number) in self.maybe for number in found[name].keys() - sure.keys())
            self.live[name] = found[name]
            assert self.spool.books.total(name, State.QUARANTINED) == self.lost[name]
            assert self.spool.number(name) > max([0, *found[name]])

    @rule(years=st.sampled_from([-50, -1, 1, 50]))
    def move_the_clock(self, years):
        """A wall clock that is set says nothing of what is queued."""
        now = next(self.clock)
        self.clock = count(max(1, now + years * YEAR_US))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_damage_costs_what_it_has_hit_and_is_counted(monkeypatch, caplog):
    """Promises 1, 2 and 8: over appends, batches, full disks, crashes, damaged rows of each table and clocks that are moved, in any order."""
    caplog.set_level("CRITICAL", "agentd")
    monkeypatch.setattr(compact, "MANY_TINY", 2)
    monkeypatch.setattr(compact, "WORTH_BYTES", 1)
    run_state_machine_as_test(
        FaultyMachine,
        settings=settings(
            max_examples=120, stateful_step_count=30, deadline=None, derandomize=True, database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip
