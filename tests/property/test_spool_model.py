"""The spool against a dictionary: appends, batches, endings, full disks, rewriting and crashes, in any order.

What was acknowledged is certain and must be there after a crash; what was asked for and not acknowledged may be there or
not, but whole. The machine drives the real Spool through recovery, over a `MemoryStore` in many examples and over the real
Store in a few.
"""

import asyncio
import tempfile
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from agentd.errors import SpoolFull
from agentd.outcomes import Cause, State
from agentd.queued import Death, Entry, Seal, Source
from agentd.records import LossClass
from agentd.spool import compact, segments
from agentd.spool import dead as dead_letters
from agentd.spool import journal as journals
from agentd.spool.audit import audit
from agentd.spool.dead import DeadLetters
from agentd.spool.findings import Severity
from agentd.spool.journal import Journal
from agentd.spool.ledger import Limits
from agentd.spool.letters import Wanted
from agentd.spool.recovery import open_spool
from agentd.spool.store import Store
from agentd.spool.tables import Table
from agentd.testing import MemoryStore

SOURCE = Source("billing", 1000, 42, "frames")
NAMES = ["cloud", "local"]
LANES = [f"run:{letter}" for letter in "abc"]
LIMITS = Limits(
    quotas=dict.fromkeys(NAMES, 6000),
    max_bytes=12000,
    dead_bytes=10**9,
    window_bytes=6000,
    directory_bytes=10**6,
    seen_ids=10,
)

CAUSES = [Cause.REJECTED, Cause.OUTCOME_UNKNOWN, Cause.INTRODUCER_DEAD]

names, lanes, losses = st.sampled_from(NAMES), st.sampled_from(LANES), st.sampled_from(list(LossClass))


def facts(seal):
    """What has to come back identical: all but the row, and `tried`, which a crash sets."""
    return (
        seal.seq, seal.destination, seal.lane, seal.first, seal.last, seal.count, seal.exceptions, seal.key, seal.encoder,
        seal.sha256, seal.call, seal.body,
    )  # fmt: skip


class Immediate(Executor):
    """Runs a job when it is given: what the machine finds doesn't hang on how threads are scheduled."""

    def submit(self, job, /, *arguments, **named):
        future = Future()
        try:
            future.set_result(job(*arguments, **named))
        except Exception as error:  # noqa: BLE001 - as an executor does
            future.set_exception(error)
        return future


class SpoolMachine(RuleBasedStateMachine):
    """`live` is the model: destination → number → (lane, loss class)."""

    real = False
    limits = LIMITS

    @initialize()
    def begin(self):
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.store = MemoryStore()
        self.clock = count(1_000_000)
        self.live = {name: {} for name in NAMES}
        self.maybe = set()  # (destination, number): its append or its end was asked for, and not acknowledged
        self.unsure = []  # appends, as sets of (destination, number), that are on disk as a whole or not at all
        self.seals = {}  # seq → seal, acknowledged and not retired
        self.loose = {}  # the same, asked for or retired and not acknowledged
        self.blocked = set()
        self.letters = set()  # keys of the dead letters that are certain
        self.ended = set()
        self.full = 0
        self.open()

    def teardown(self):
        if hasattr(self, "runner"):
            self.do(self.abort())
            self.audit()
            self.runner.close()
            self.folder.cleanup()

    # -- the machinery -----------------------------------------------------------------------------------------------

    def do(self, coroutine):
        return self.runner.run(coroutine)

    def open(self):
        def opener(path, sync):
            return Store(path, sync) if self.real else self.store

        async def run():
            self.spool = await open_spool(
                Path(self.folder.name) / "state",
                sync="normal",
                limits=self.limits,
                identities=dict.fromkeys(NAMES, "sandbox"),
                journal=Journal(10**15, 10**9),
                now_us=lambda: next(self.clock),
                opener=opener,
                thread=ThreadPoolExecutor(1) if self.real else Immediate(),
                retry_s=0,
            )
            self.spool.start()

        self.do(run())

    async def abort(self):
        """The process is gone: what the storage thread was at is done, the event loop hears nothing of it."""
        spool = self.spool
        spool._committer._task.cancel()
        await spool._loader.close()
        await asyncio.gather(spool._committer._task, return_exceptions=True)
        await spool._storage.close()
        spool.folder.close()

    async def quiet(self):
        """Everything that was asked for is on disk, and the windows are read as far as there is room."""
        await self.spool.barrier()
        while self.spool._committer._errand is not None:
            await asyncio.sleep(0)
        for name in NAMES:
            self.spool.fill(name)
        await asyncio.gather(*self.spool._loader._tasks.values())

    def certain(self):
        """All that was asked for is on disk."""
        self.maybe.clear()
        self.unsure.clear()
        self.loose.clear()

    def settle_down(self):
        self.do(self.quiet())
        if not self.real:
            self.store.full = 0
        if self.spool.disk_full:
            self.spool.check_disk()
        self.certain()
        self.look_at_the_letters()
        self.look_at_the_journal()

    def audit(self):
        """Promises 8 and 9: what is on disk adds up, and books, journal and records say the same."""
        if not self.real:
            assert [found for found in audit(self.store).findings if found.severity is Severity.ERROR] == []

    def look_at_the_journal(self):
        """Promise 9: what is on disk of the journal is numbered 1, 2, 3 …"""
        if not self.real:
            numbers = [note.number for _, value in self.store.rows(Table.JOURNAL) for note in journals.decode(value)]
            assert numbers == list(range(1, len(numbers) + 1))

    # -- intake ------------------------------------------------------------------------------------------------------

    @rule(
        names=st.sets(names, min_size=1),
        records=st.lists(st.tuples(lanes, losses, st.integers(1, 300)), min_size=1, max_size=6),
        wait=st.booleans(),
    )
    def append(self, names, records, wait):
        copies, added = {}, {}
        for name in sorted(names):
            for lane, loss, size in records:
                number = self.spool.number(name)
                assert (name, number) not in self.ended
                kind = self.kind_of(loss)
                entry = Entry(
                    number, number.to_bytes(16, "big"), lane, kind, loss, SOURCE, next(self.clock), b"x" * size
                )
                copies.setdefault(name, []).append(entry)
                added[name, number] = lane, loss
        future = None

        async def run():
            nonlocal future
            future = self.spool.append(copies)
            if wait:
                await asyncio.wait([future])

        self.do(run())
        if wait and isinstance(future.exception(), SpoolFull):
            self.settle_down()  # what went before has reached the disk, or the commit would not have been tried again
            return
        for (name, number), facts in added.items():
            self.live[name][number] = facts
        if wait:
            self.settle_down()
        else:
            self.maybe |= set(added)
            self.unsure.append(set(added))
            future.add_done_callback(lambda done: self.refused(done, added))

    def kind_of(self, loss):
        return "task"

    def refused(self, done, added):
        if not done.cancelled() and done.exception() is not None:
            for name, number in added:
                self.live[name].pop(number, None)
                self.maybe.discard((name, number))
            self.unsure = [numbers for numbers in self.unsure if numbers != set(added)]

    @rule(name=names, size=st.integers(100, 3000), loss=losses)
    def make_room(self, name, size, loss):
        """Promise 6: what is shed is debug or info, never what is sealed."""
        self.settle_down()
        queue = self.spool.queues[name]
        before = dict(queue.segments)
        rows = dict(self.do(self.spool.run_in_thread(lambda store: list(store.rows(Table.SEGMENT)))))
        fits = self.spool.room_for(name, size, loss)
        if fits:
            assert queue.stored_bytes + size <= self.limits.quotas[name]
        sealed = {number for seal in self.seals.values() if seal.destination == name for number in self.of_seal(seal)}
        for key in before.keys() - queue.segments.keys():
            for entry in segments.decode(key, rows[key])[1]:
                if not before[key].has_ended(entry.index):
                    assert entry.loss in (LossClass.DEBUG, LossClass.INFO)
                    assert not (loss is LossClass.DEBUG and entry.loss is LossClass.INFO)
                    assert entry.number not in sealed
                    self.live[name].pop(entry.number)
                    self.ended.add((name, entry.number))
        self.settle_down()

    # -- delivery ----------------------------------------------------------------------------------------------------

    def of_seal(self, seal):
        """The live numbers of a batch, going by the model."""
        return [
            number
            for number, (lane, _) in sorted(self.live[seal.destination].items())
            if lane == seal.lane and seal.first <= number <= seal.last and number not in seal.exceptions
        ]

    def batch(self, name, lane, size):
        """The next batch of a lane as (seal, entries): one that was sealed, or a new one."""
        known = self.spool.seals.of_lane(name, lane)
        if known:
            entries = self.spool.queues[name].members(lane, known[0].first, known[0].last, known[0].exceptions)
            if entries is None:
                return None
            assert [entry.number for entry in entries] == self.of_seal(known[0])
            return known[0], entries
        entries = [entry for entry, _ in zip(self.spool.queues[name].peek(lane), range(size), strict=False)]
        due = [number for number, (of, _) in sorted(self.live[name].items()) if of == lane]
        assert [entry.number for entry in entries] == due[: len(entries)]
        return (self.new_seal(name, lane, entries), entries) if entries else None

    def new_seal(self, name, lane, entries, exceptions=()):
        first, last = entries[0].number, entries[-1].number
        inside = tuple(number for number in exceptions if first <= number <= last)
        return Seal(0, name, lane, first, last, len(entries), inside, f"key-{first}-{last}", 1, b"s" * 32, "events")

    @rule(
        name=names,
        lane=lanes,
        size=st.integers(1, 5),
        outcome=st.sampled_from(["retry", "settle", "bury", "split"]),
        wait=st.booleans(),
        sealed=st.booleans(),
    )
    def deliver(self, name, lane, size, outcome, wait, sealed):
        """Promises 1 and 4: a batch is sealed, then ends, is cut up or waits for its next try."""
        self.settle_down()
        if (name, lane) in self.blocked:
            return
        found = self.batch(name, lane, size)
        if found is None:
            return
        seal, entries = found

        async def run():
            if not seal.seq:
                future = self.spool.seal(seal)
                if sealed:
                    await future
            elif outcome == "retry":
                return
            if outcome == "settle":
                self.spool.settle(seal, entries)
            elif outcome == "bury":
                self.spool.bury(seal, name, entries, Death(CAUSES[seal.first % len(CAUSES)], "no"))
            elif outcome == "split" and len(entries) > 1:
                middle = len(entries) // 2
                parts = [
                    self.new_seal(name, lane, half, seal.exceptions) for half in (entries[:middle], entries[middle:])
                ]
                self.spool.split(seal, parts)
                self.seals.pop(seal.seq, None)
                for part in parts:
                    self.seals[part.seq] = part
                    self.loose[part.seq] = part
                self.loose[seal.seq] = seal
                return
            if outcome in ("settle", "bury"):
                self.seals.pop(seal.seq, None)
                for entry in entries:
                    del self.live[name][entry.number]
                    self.maybe.add((name, entry.number))
                    self.ended.add((name, entry.number))
            else:
                self.seals[seal.seq] = seal
            self.loose[seal.seq] = seal

        self.do(run())
        if wait:
            self.settle_down()

    @rule(name=names, lane=lanes, blocked=st.booleans())
    def block(self, name, lane, blocked):
        queue = self.spool.queues[name]
        if blocked and lane in queue.lanes:
            self.blocked.add((name, lane))
            queue.block(lane)
        elif not blocked:
            self.blocked.discard((name, lane))
            queue.unblock(lane)

    # -- dead letters ------------------------------------------------------------------------------------------------

    def letters_on_disk(self):
        """Key → letter."""

        def read(store):
            return dead_letters.read(store, dead_letters.find(store, Wanted()))

        return {found.key: letter for found, letter in self.do(self.spool.run_in_thread(read))}

    def look_at_the_letters(self):
        """Promise 8: what memory counts of them is what is on disk, and what the books say."""
        tags = self.do(self.spool.run_in_thread(lambda store: list(store.tags(Table.DEAD))))
        self.letters = {key for key, _, _ in tags}
        assert (self.spool.dead_count, self.spool.dead_bytes) == (len(tags), sum(size for _, _, size in tags))
        assert sum(self.spool.books.total(name, "dead") for name in NAMES) == len(tags)

    def queue_on_disk(self):
        """(destination, number) → record id."""
        rows = self.do(self.spool.run_in_thread(lambda store: list(store.rows(Table.SEGMENT))))
        queued = {}
        for key, value in rows:
            name, entries = segments.decode(key, value)
            segment = self.spool.queues[name].segments[key]
            queued |= {(name, e.number): e.record_id for e in entries if not segment.has_ended(e.index)}
        return queued

    def some_die(self, deaths):
        """Letters are rare where each of them takes an append and a refusal: these are of several lanes, and of each cause."""
        self.settle_down()

        async def run():
            for name in NAMES[:deaths]:
                entries = []
                for lane in LANES * deaths:
                    number = self.spool.number(name)
                    record_id, kind = number.to_bytes(16, "big"), self.kind_of(LossClass.KEEP)
                    entries.append(
                        Entry(number, record_id, lane, kind, LossClass.KEEP, SOURCE, next(self.clock), b"x" * 20)
                    )
                    self.ended.add((name, number))
                await self.spool.append({name: entries})
                for place, entry in enumerate(entries):
                    self.spool.bury(None, name, [entry], Death(CAUSES[place % len(CAUSES)], "no"))

        self.do(run())
        self.settle_down()

    def work(self, job, steps, full):
        """Do it to its end, or have the daemon die after so many turns of the loop: then None."""
        if not self.real:
            self.store.full = full

        async def run():
            task = asyncio.create_task(job)
            if steps is None:
                return await task
            for _ in range(steps):
                await asyncio.sleep(0)
            await self.abort()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return None

        done = self.do(run())
        if steps is not None:
            if not self.real:
                self.store = self.store.crash()
            self.open()
            self.blocked.clear()
        self.settle_down()
        return done

    @rule(
        name=st.none() | names,
        force=st.booleans(),
        steps=st.none() | st.integers(0, 12),
        full=st.sampled_from([0, 0, 1, 2]),
        step_bytes=st.sampled_from([1, 400, 10**6]),
        deaths=st.integers(0, 2),
    )
    def replay(self, name, force, steps, full, step_bytes, deaths):
        """Promises 1 and 2: each letter is a letter or queued, never both and never neither; in the old order at its lane's end."""
        self.some_die(deaths)
        dead, queued = self.letters_on_disk(), self.queue_on_disk()
        chosen = [letter for letter in dead.values() if name is None or letter.destination == name]
        dead_letters._STEP_BYTES = step_bytes
        done = self.work(DeadLetters(self.spool).replay(Wanted(destination=name), 7, force=force), steps, full)
        left, now = self.letters_on_disk(), self.queue_on_disk()
        gone = [letter for key, letter in dead.items() if key not in left]
        assert all(dead[key] == letter for key, letter in left.items())
        assert queued.items() <= now.items()
        assert all(letter in chosen and (force or letter.cause is not Cause.OUTCOME_UNKNOWN) for letter in gone)
        for at in NAMES:
            back = sorted((one.number, one.record_id) for one in gone if one.destination == at)
            came = sorted((number, record_id) for (of, number), record_id in now.items() - queued.items() if of == at)
            assert [record_id for _, record_id in came] == [record_id for _, record_id in back]
            assert not came or came[0][0] > max((number for of, number in queued if of == at), default=0)
        if done is not None:
            assert (done.replayed, sum(done.left.values())) == (len(gone), len(chosen) - len(gone))
        self.live = self.on_disk()

    @rule(
        name=st.none() | names,
        cause=st.none() | st.sampled_from(CAUSES),
        steps=st.none() | st.integers(0, 12),
        deaths=st.integers(0, 2),
    )
    def purge(self, name, cause, steps, deaths):
        """Promise 8: what is purged is booked as purged, and nothing else is touched."""
        self.some_die(deaths)
        dead, queued = self.letters_on_disk(), self.queue_on_disk()
        booked = sum(self.spool.books.total(at, "purged") for at in NAMES)
        done = self.work(DeadLetters(self.spool).purge(Wanted(destination=name, cause=cause), 7, "why"), steps, 0)
        left = self.letters_on_disk()
        gone = [letter for key, letter in dead.items() if key not in left]
        assert all(dead[key] == letter for key, letter in left.items())
        assert self.queue_on_disk() == queued
        assert all(name in (None, one.destination) and cause in (None, one.cause) for one in gone)
        assert sum(self.spool.books.total(at, "purged") for at in NAMES) == booked + len(gone)
        if done is not None:
            assert done == len(gone)
            assert not any(name in (None, one.destination) and cause in (None, one.cause) for one in left.values())

    # -- weather -----------------------------------------------------------------------------------------------------

    @rule(wait=st.booleans())
    def tick(self, wait):
        """Housekeeping, rewriting included; without waiting, what comes next happens in the middle of it."""
        if wait:
            self.settle_down()
        now = next(self.clock)
        self.spool.tick(lambda at: now - at, 10**9)
        self.do(asyncio.sleep(0))
        if wait:
            self.settle_down()

    @rule(times=st.integers(1, 2))
    def fill_the_disk(self, times):
        """The next commits find no room."""
        if not self.real:
            self.store.full = times

    @rule(steps=st.integers(0, 4))
    def crash(self, steps):
        """Promise 1: the daemon dies at any moment and starts again."""

        async def run():
            for _ in range(steps):
                await asyncio.sleep(0)
            await self.abort()

        self.do(run())
        if not self.real:
            self.store = self.store.crash()
        self.audit()
        self.open()
        self.blocked.clear()
        self.compare_records()
        self.compare_seals()
        assert self.letters <= self.letters_on_disk().keys()
        self.ended -= self.maybe  # they may never have been on disk: their numbers are free
        self.settle_down()

    def on_disk(self):
        found = {name: {} for name in NAMES}
        rows = self.do(self.spool.run_in_thread(lambda store: list(store.rows(Table.SEGMENT))))
        for key, value in rows:
            name, entries = segments.decode(key, value)
            segment = self.spool.queues[name].segments[key]
            for entry in entries:
                if not segment.has_ended(entry.index):
                    assert entry.number not in found[name]
                    found[name][entry.number] = entry.lane, entry.loss
        return found

    def compare_records(self):
        """What was certain is there and nothing else is; what was not is there as a whole or not at all."""
        found = self.on_disk()
        for numbers in self.unsure:
            present = {number for number in numbers if number[1] in found[number[0]]}
            assert present == {number for number in numbers if number not in self.ended} or not present
        for name in NAMES:
            sure = {n: facts for n, facts in self.live[name].items() if (name, n) not in self.maybe}
            assert sure.items() <= found[name].items()
            for number in found[name].keys() - sure.keys():
                assert (name, number) in self.maybe
            self.live[name] = found[name]
            assert self.spool.books.total(name, State.QUARANTINED) == 0
            assert self.spool.number(name) > max([0, *found[name]])

    def compare_seals(self):
        found = {seal.seq: seal for seal in self.spool.seals.all()}
        for seq, seal in self.seals.items():
            if seq not in self.loose:
                assert facts(found[seq]) == facts(seal)
                assert found[seq].tried
        for seq, seal in found.items():
            if seq not in self.seals and seq not in self.loose:
                assert self.of_seal(seal) == []  # its row lived on for a neighbour; a courier settles it with nothing
        self.seals = found

    # -- at every moment ---------------------------------------------------------------------------------------------

    @invariant()
    def the_books_balance(self):
        """Promise 8: admitted = delivered + queued + dead + purged + shed + quarantined."""
        if hasattr(self, "spool"):
            for name, queue in self.spool.queues.items():
                committing = self.spool.committing(name)
                assert self.spool.books.queued(name) == queue.live + committing


class RealSpoolMachine(SpoolMachine):
    real = True


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("machine", "examples", "steps"), [(SpoolMachine, 100, 40), (RealSpoolMachine, 15, 30)])
def test_nothing_acknowledged_is_lost_or_taken_twice(monkeypatch, caplog, machine, examples, steps):
    """Promises 1, 2, 4, 8, 9: over appends, batches, full disks, rewriting and crashes in any order."""
    caplog.set_level("CRITICAL", "agentd")
    monkeypatch.setattr(compact, "MANY_TINY", 2)
    monkeypatch.setattr(compact, "WORTH_BYTES", 1)
    monkeypatch.setattr(dead_letters, "_STEP_BYTES", 400)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
