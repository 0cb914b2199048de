"""The spool's model once more, with runs that lose records, are told so, and have their ends moved behind the notice.

At every quiet moment, and after every crash: what was shed of a destination is what its runs are still to be told and what their
notices said, each record once.
"""

import asyncio
import json
from collections import Counter
from itertools import count

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule, run_state_machine_as_test
from msgspec.structs import replace
from test_spool_model import LIMITS, NAMES, SpoolMachine, lanes, losses, names

from agentd.outcomes import State
from agentd.queued import Entry
from agentd.records import LossClass
from agentd.spool import compact, lost, room, segments
from agentd.spool.notices import Notices
from agentd.spool.tables import Table
from agentd.wire import decode_record


class LostMachine(SpoolMachine):
    """`told` is what notices said that were on disk, by destination; `asked` what is on its way: (destination, number) → records."""

    limits = replace(LIMITS, quotas=dict.fromkeys(NAMES, 2500))

    @initialize()
    def begin_telling(self):
        self.told = Counter()
        self.asked = {}
        self.moved = []  # (destination, old number, new number): a later place was asked for, and not acknowledged

    def open(self):
        super().open()
        ids = count(10**9)
        self.notices = Notices(self.spool, NAMES, lambda: next(ids).to_bytes(16, "big"), lambda: next(self.clock))

    def kind_of(self, loss):
        return "task" if loss is LossClass.KEEP else "event"

    def settle_down(self):
        super().settle_down()
        if hasattr(self, "asked"):
            self.look_at_notices(self.on_disk() if self.asked else None)
            self.moved.clear()
            self.add_up()

    def look_at_notices(self, found):
        for (name, number), records in self.asked.items():
            if number in found[name]:
                self.told[name] += records
                self.live[name][number] = found[name][number]
            else:
                self.live[name].pop(number, None)
        self.asked.clear()

    def add_up(self):
        for name in NAMES:
            owed = sum(
                self.spool.ledger.losses.find(name, lane).records for lane in self.spool.ledger.losses.lanes(name)
            )
            assert self.spool.books.total(name, State.SHED) == owed + self.told[name]

    # -- losing ------------------------------------------------------------------------------------------------------

    @rule(name=names, lane=lanes, wait=st.booleans())
    def flood(self, name, lane, wait):
        """More of what may be shed than a queue holds for long."""
        self.append({name}, [(lane, LossClass.DEBUG, 150)] * 5, wait)

    @rule(name=names, excess=st.integers(1, 600), loss=losses)
    def make_room_and_go_on(self, name, excess, loss):
        """Promise 6, and what comes next happens before the disk knows: a crash leaves the records, or books without them."""
        self.settle_down()
        queue = self.spool.queues[name]
        before = dict(queue.segments)
        rows = dict(self.do(self.spool.run_in_thread(lambda store: list(store.rows(Table.SEGMENT)))))
        self.spool.room_for(name, self.limits.quotas[name] - queue.stored_bytes + excess, loss)
        shed = set()
        for key in before.keys() - queue.segments.keys():
            for entry in segments.decode(key, rows[key])[1]:
                if not before[key].has_ended(entry.index):
                    self.live[name].pop(entry.number)
                    self.ended.add((name, entry.number))
                    shed.add((name, entry.number))
        self.maybe |= shed

    # -- telling -----------------------------------------------------------------------------------------------------

    def notice(self, name, number):
        """Expect a notice under that number."""
        entry = next(
            entry
            for append in self.spool._committer._appends
            for entry in append.copies.get(name, ())
            if entry.number == number
        )
        payload = json.loads(bytes(decode_record(entry.body).payload))
        assert payload["records"] == sum(payload["kinds"].values()) == sum(payload["levels"].values()) > 0
        self.asked[name, number] = payload["records"]
        self.live[name][number] = entry.lane, LossClass.KEEP
        self.maybe.add((name, number))

    @rule(wait=st.booleans())
    def tell(self, wait):
        """Whoever can be told is, in one commit or in none."""
        self.settle_down()
        before = dict(self.spool.meta.next_number)

        async def run():
            self.notices.tick(lambda _at: 0, 10**18)
            for name in NAMES:
                numbers = range(before.get(name, 1), self.spool.meta.next_number.get(name, 1))
                for number in numbers:
                    self.notice(name, number)
                self.unsure += [{(name, number) for number in numbers}] if numbers else []

        self.do(run())
        if wait:
            self.settle_down()

    @rule(name=names, lane=lanes, wait=st.booleans())
    def tell_at_the_end(self, name, lane, wait):
        """An end comes: the notice stands right before it, in the same commit."""
        self.settle_down()
        if self.notices.size_before_end(name, lane) == 0:
            return

        async def run():
            notice = self.notices.before_end(name, lane)
            number = self.spool.number(name)
            end = Entry(
                number, number.to_bytes(16, "big"), lane, "run.complete", LossClass.KEEP, notice.source, 1, b"{}"
            )
            assert notice.number == number - 1
            stored = self.spool.append({name: [notice, end]})
            stored.add_done_callback(lambda done: self.refused(done, {(name, number): None}))
            self.notice(name, notice.number)
            self.live[name][number] = lane, LossClass.KEEP
            self.maybe.add((name, number))
            self.unsure.append({(name, notice.number), (name, number)})

        self.do(run())
        if wait:
            self.settle_down()

    # -- a later place -----------------------------------------------------------------------------------------------

    @rule(name=names, lane=lanes, wait=st.booleans(), steps=st.integers(0, 2))
    def move_back(self, name, lane, wait, steps):
        """Promises 1 and 2: each record keeps its old place or has its new one, whatever happens in between."""
        self.settle_down()
        queue = self.spool.queues[name]
        if (name, lane) in self.blocked or queue.has_more(lane) or self.spool.seals.of_lane(name, lane):
            return
        entries = list(queue.peek(lane))
        before = self.spool.meta.next_number.get(name, 1)

        async def run():
            moving = self.spool.move_back(name, entries)
            for _ in range(steps):
                await asyncio.sleep(0)
            if wait:
                await moving

        new = dict(zip([entry.number for entry in entries], range(before, before + len(entries)), strict=True))
        self.do(run())
        for old, number in new.items():
            self.live[name][number] = self.live[name].pop(old)
            self.ended.add((name, old))
            self.maybe |= {(name, old), (name, number)}
            self.moved.append((name, old, number))
        if wait:
            self.settle_down()

    def compare_records(self):
        found = self.on_disk()
        for name, old, number in self.moved:
            assert (old in found[name]) != (number in found[name])
        self.moved.clear()
        super().compare_records()
        self.look_at_notices(found)
        self.add_up()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_was_shed_is_told_once(monkeypatch, caplog):
    """Promises 1, 2, 6, 8: over floods, notices, ends that move, full disks, rewriting and crashes in any order."""
    caplog.set_level("CRITICAL", "agentd")
    monkeypatch.setattr(compact, "MANY_TINY", 2)
    monkeypatch.setattr(compact, "WORTH_BYTES", 1)
    monkeypatch.setattr(room, "SHED_STEP", 200)
    monkeypatch.setattr(lost, "_LOG_ROWS", 3)
    run_state_machine_as_test(
        LostMachine,
        settings=settings(
            max_examples=180,
            stateful_step_count=50,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
