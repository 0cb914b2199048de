"""A shelf without a disk, for admission and the sink."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from agentd.errors import SpoolFull
from agentd.intake import Grant, Peer
from agentd.intake.admit import Admission, Limits
from agentd.intake.dedupe import Window
from agentd.intake.routing import Route, Table
from agentd.intake.sink import SpoolSink
from agentd.intake.streams import Streams
from agentd.queued import Ref
from agentd.testing import FakeClock
from agentd.wire import Message, decode_message

ME = Peer(1000, 1000, 7)
RUNS = frozenset({"run.start", "event", "span", "task", "run.complete", "run.fail", "run.cancel"})


class FakeShelf:
    """Room, numbers and references as a spool has them; `commit` is the fsync, `fail` the disk that has no room."""

    def __init__(self):
        self.room = 10**9
        self.rooms = {}  # of destinations that have one of their own
        self.quotas = {}  # of destinations that have one of their own
        self.numbers = Counter()
        self.refs = {}
        self.stored = []  # (destination, entry) in the order of the commits
        self.puts = []
        self.pending = []
        self.rows = 0
        self.waiters = []
        self.kept = {}  # rows of streams that nobody waits for
        self.invalid = []  # what is kept of the refused
        self.knows_invalid = False  # all of it is a repeat
        self.letters = []  # futures of their commits

    def room_for(self, destination, size, loss, uid=None):
        return size <= min(self.room, self.rooms.get(destination, self.room))

    def quota(self, destination):
        return self.quotas.get(destination, 10**9)

    def number(self, destination):
        self.numbers[destination] += 1
        return self.numbers[destination]

    def owners(self, kind, local_id):
        return [ref for (_, k, i), ref in self.refs.items() if (k, i) == (kind, local_id)]

    def introduce(self, ref):
        return self.refs.setdefault((ref.destination, ref.kind, ref.local_id), ref)

    def own(self, kind, local_id, agent="", uid=ME.uid, destination="one"):
        self.introduce(Ref(destination, kind, local_id, agent, uid, 1))

    def append(self, copies, *, puts=(), introduced=()):
        future = asyncio.get_running_loop().create_future()
        self.pending.append((copies, list(puts), list(introduced), future))
        return future

    def stream_row(self, row, value):
        return ("stream", row, value)

    def keep_stream(self, row, value):
        self.kept[row] = value

    def new_stream_row(self):
        self.rows += 1
        return self.rows

    def seen(self, value, count):
        return ("seen", count, value)

    def keep_invalid(self, refused):
        if self.knows_invalid or not refused:
            return None
        self.invalid += refused
        self.letters.append(asyncio.get_running_loop().create_future())
        return self.letters[-1]

    def keep_letters(self):
        letters, self.letters = self.letters, []
        for future in letters:
            future.set_result(None)

    async def wait_for_room(self):
        future = asyncio.get_running_loop().create_future()
        self.waiters.append(future)
        await future

    def commit(self):
        pending, self.pending = self.pending, []
        for copies, puts, _, future in pending:
            self.stored += [(name, entry) for name, entries in copies.items() for entry in entries]
            self.puts += puts
            future.set_result(None)

    def fail(self):
        pending, self.pending = self.pending, []
        for _, _, introduced, future in pending:
            for ref in introduced:
                del self.refs[ref.destination, ref.kind, ref.local_id]
            future.set_exception(SpoolFull())

    def make_room(self, size=10**9):
        self.room = size
        self.rooms = {}
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            waiter.set_result(None)


class Intake:
    """Admission and sink over a fake shelf."""

    def __init__(self, *routes, window=100, max_record_bytes=2**20, max_depth=64, grant=None):
        self.clock = FakeClock()
        self.shelf = FakeShelf()
        self.window = Window(window)
        made = (n.to_bytes(16, "big") for n in range(1, 10**6))
        self.admission = Admission(
            Table(routes or [Route("one", RUNS, frozenset({"run.start"}))]), self.shelf, self.window,
            Limits(max_record_bytes, max_depth), lambda: next(made), {0}, grants=lambda _: grant or Grant(),
        )  # fmt: skip
        self.sink = self.new_sink(Streams())

    def new_sink(self, known):
        return SpoolSink(
            self.admission, self.shelf, self.window, known,
            max_frame_bytes=1000, now_us=self.clock.now_us, clock=self.clock,
        )  # fmt: skip

    def admit(self, data, peer=ME, turned_away=None):
        items = list(enumerate(decode_message(data).items))
        return self.admission.admit(items, peer, "frames", self.clock.now_us(), turned_away)

    def submit(self, data, peer=ME, *, stream=None, hold=False):
        message = data if isinstance(data, Message) else decode_message(data)
        return self.sink.submit(message, peer, stream=stream, origin="frames", hold=hold)

    async def idle(self):
        for _ in range(10):
            await asyncio.sleep(0)

    def stored_types(self):
        return [entry.body for _, entry in self.shelf.stored]


@pytest.fixture
def make_intake():
    return Intake


@pytest.fixture
def intake():
    return Intake()
