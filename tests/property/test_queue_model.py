"""The queue against a plain list: whatever is blocked, parked, evicted, shed or rewritten, order and completeness hold.

The model is a courier that knows only what the queue tells it: a lane is looked at when `push`, `loaded` or `released` named
it, or when it was unblocked, and not otherwise. A record that becomes visible without anybody being told would stay.
"""

from itertools import groupby

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentd.queued import Entry, Source
from agentd.records import LossClass
from agentd.spool.directory import Segment
from agentd.spool.queue import Moved, Queue
from agentd.spool.segments import encode

SOURCE = Source("billing", 1000, 42, "frames")
LANES = [f"run:{letter}" for letter in "abcd"]
CHUNK = 3  # records of a segment: small, so that a few records make many segments


class Bench:
    """A queue, the rows that it would have on disk, and a courier that takes what it is told of."""

    def __init__(self, window):
        self.queue = Queue("cloud", window, 10**6)
        self.rows = {}
        self.waiting = {}  # number → lane, of what was admitted and has not ended
        self.taken = []
        self.ready = set()
        self.blocked = set()
        self.reading = None
        self.next_number = 1
        self.next_row = 1

    def commit(self, records, *, recovering=False):
        """Records of one commit: segments by loss class, which overlap in their numbers."""
        entries = []
        for lane, loss in records:
            entries.append(Entry(self.next_number, bytes(16), lane, "event", loss, SOURCE, 0, b"x" * 50))
            self.waiting[self.next_number] = lane
            self.next_number += 1
        made = []
        for _, group in groupby(sorted(entries, key=lambda e: (e.loss, e.number)), key=lambda e: e.loss):
            part = list(group)
            made += [self.store(part[i : i + CHUNK]) for i in range(0, len(part), CHUNK)]
        if recovering:
            self.queue.recover(made)
        else:
            self.hear(self.queue.push(made, entries))

    def store(self, part):
        key, self.next_row = self.next_row, self.next_row + 1
        for index, entry in enumerate(part):
            entry.segment, entry.index = key, index
        self.rows[key] = [(e.number, e.lane, e.loss) for e in part]
        return Segment(key, encode("cloud", part).directory)

    def read(self, key):
        return [
            Entry(number, bytes(16), lane, "event", loss, SOURCE, 0, b"x" * 50, key, index)
            for index, (number, lane, loss) in enumerate(self.rows[key])
        ]

    def hear(self, lanes):
        self.ready |= lanes

    def begin(self):
        """The loader asks what to read; the answer comes back while other things have happened."""
        if self.reading is None:
            self.reading = self.queue.next_load()
            if self.reading is None:
                self.hear(self.queue.released())

    def finish(self):
        if self.reading is None:
            return False
        key, self.reading = self.reading, None
        self.hear(self.queue.loaded(key, self.read(key) if key in self.rows else []))
        return True

    def load(self):
        self.begin()
        return self.finish()

    def block(self, lane):
        if self.queue.lanes.get(lane) is not None:
            self.blocked.add(lane)
            self.queue.block(lane)

    def unblock(self, lane):
        if lane in self.blocked:
            self.blocked.discard(lane)
            self.queue.unblock(lane)
            self.ready.add(lane)

    def take(self, lane, count):
        """What a courier does with a lane: the first few records, and they end."""
        if lane not in self.ready or lane in self.blocked:
            return 0
        entries = [entry for entry, _ in zip(self.queue.peek(lane), range(count), strict=False)]
        if not entries:
            self.ready.discard(lane)
            return 0
        due = sorted(number for number, of in self.waiting.items() if of == lane)[: len(entries)]
        assert [entry.number for entry in entries] == due, "out of order, or one was left out"
        for entry in entries:
            del self.waiting[entry.number]
        self.taken += [entry.number for entry in entries]
        for key in self.queue.end(entries).deletes:
            del self.rows[key]
        return len(entries)

    def shed(self, loss, wanted):
        for segment in self.queue.shed(loss, wanted, lambda _: False):
            for index, (number, _, _) in enumerate(self.rows.pop(segment.key)):
                if not segment.has_ended(index):
                    del self.waiting[number]
        self.hear(self.queue.released())

    def rewrite(self, which, start, length):
        """Some neighbours of a loss class become one segment."""
        part = self.queue.index.parts()[which]
        for loss in LossClass:
            old = [s for s in part if s.loss is loss and s.key not in self.queue.being_read()][start : start + length]
            if not old:
                continue
            live = [e for s in old for e in self.read(s.key) if not s.has_ended(e.index)]
            before = {e.number: Moved(e.segment, e.index) for e in live}
            new = self.store(live)
            moves = {before[e.number]: Moved(e.segment, e.index) for e in live}
            self.queue.replace(old, [new], moves, {e.lane for e in live})
            for segment in old:
                del self.rows[segment.key]
            return

    def drain(self):
        """Unblock everything and go on for as long as anything moves."""
        for lane in LANES:
            self.unblock(lane)
        moved = True
        while moved:
            moved = self.load()
            for lane in LANES:
                while self.take(lane, 2):
                    moved = True


records = st.lists(st.tuples(st.sampled_from(LANES), st.sampled_from(list(LossClass))), min_size=1, max_size=12)
step = st.one_of(
    st.tuples(st.just("commit"), records),
    st.tuples(st.sampled_from(["block", "unblock"]), st.sampled_from(LANES)),
    st.tuples(st.just("take"), st.sampled_from(LANES), st.integers(1, 5)),
    st.tuples(st.sampled_from(["begin", "finish", "load"])),
    st.tuples(st.just("shed"), st.sampled_from([LossClass.DEBUG, LossClass.INFO]), st.integers(1, 2000)),
    st.tuples(st.just("rewrite"), st.integers(0, 1), st.integers(0, 3), st.integers(1, 4)),
)


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(window=st.integers(300, 6000), stored=st.lists(records, max_size=4), steps=st.lists(step, max_size=40))
def test_every_live_record_is_taken_once_and_in_order(window, stored, steps):
    """Promise 2: in order within a lane, whatever else is blocked, read back, shed or rewritten, and none is forgotten."""
    bench = Bench(window)
    for commit in stored:
        bench.commit(commit, recovering=True)
    for name, *arguments in steps:
        getattr(bench, name)(*arguments)
        assert bench.queue.live == len(bench.waiting)
        assert bench.queue.window_bytes == sum(lane.size for lane in bench.queue.lanes.values())
    bench.drain()
    assert bench.waiting == {}
    assert len(bench.taken) == len(set(bench.taken))
    assert bench.queue.live == bench.queue.window_bytes == bench.queue.stored_bytes == 0
    assert bench.rows == {}
    assert not bench.queue.lanes
