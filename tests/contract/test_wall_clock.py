"""Somebody sets the wall clock while records wait in every way there is: time is what the monotonic clock says, and nothing else happens.

Real intake, spool, couriers and adapters on one clock of the test's, as in `test_one_hour_outage`; the platforms keep a right clock of
their own, and say so in their answers. Gates have the same in tests/unit/gate/test_gate_clocks.py.
"""

from __future__ import annotations

import asyncio
import email.utils
import itertools
import math
import random
import uuid
from collections import Counter

import msgspec
import pytest
from multidict import CIMultiDict
from test_one_hour_outage import AGENT, PEER, Immediate, decode_record

from agentd.ageing import Clocks
from agentd.delivery.courier import Courier
from agentd.exchange import Lost, Response
from agentd.identity import Uuid7
from agentd.intake import routing
from agentd.intake.admit import Admission
from agentd.intake.admit import Limits as AdmitLimits
from agentd.intake.dedupe import Window
from agentd.intake.sink import SpoolSink
from agentd.intake.streams import Streams, decode
from agentd.outcomes import State
from agentd.sandbox import Call, Emulation
from agentd.sandbox.faults import Decision
from agentd.sections import Batch, Config, Destination, Intake, Secret
from agentd.spool import journal
from agentd.spool.journal import Journal
from agentd.spool.ledger import Limits
from agentd.spool.outbox import SpoolOutbox
from agentd.spool.recovery import open_spool
from agentd.spool.shelf import SpoolShelf
from agentd.spool.tables import Table
from agentd.targets import Target
from agentd.testing import FakeClock, MemoryStore
from agentd.wire import Message

FACES = ("agentos", "decisionos")
EPOCH_S = 1_767_225_600  # where FakeClock's wall clock begins
YEAR_S = 366 * 86_400
TO_1970_S, TO_2099_S = 1000 - EPOCH_S, 4_070_908_800 - EPOCH_S
JUMPS = pytest.mark.parametrize("jump_s", [YEAR_S, -YEAR_S, TO_1970_S, TO_2099_S])
KEEP_US = 7 * 86_400 * 10**6
EVENTS = "/api/ingest/v1/events"
NO_CONNECTION = Lost("no connection to 127.0.0.1:1: connection refused", sent=False)


class Host:
    """agentd between a clock that can be set and platforms that know the time; `restart` ends it as kill -9 does."""

    def __init__(self, folder, *, interval_s=0.5, reference_wait_s=2.0):
        self.clock = FakeClock()
        self.platforms = Emulation(FACES, wall=lambda: EPOCH_S + self.clock() - 1000)
        self.said = {}  # path → what is answered instead of the platform's own answer
        self.sent = []  # (when, path, key, body)
        self.folder = folder
        self.store = MemoryStore()
        destinations = {
            name: Destination(name, base_url=f"http://127.0.0.1:1/{name}", api_key=Secret(env="KEY"), agent_id=AGENT)
            for name in FACES
        }
        config = Config(
            destinations=destinations, batch=Batch(max_interval=interval_s), intake=Intake(reference_wait=reference_wait_s)
        )  # fmt: skip
        self.targets = {name: Target(name, config, {"KEY": "k"}) for name in FACES}
        self.begun = self.clock()
        self.unseen = False  # the clock was set while nobody could see it: an age may be anything

    async def __aenter__(self):
        self.clocks = Clocks(self.clock.now_us, self.clock)
        limits = Limits(dict.fromkeys(FACES, 2**26), 2**29, 2**20, 2**22, 2**20, 1000)
        self.spool = await open_spool(
            self.folder, sync="full", limits=limits, identities={n: t.identity for n, t in self.targets.items()},
            journal=Journal(200 * 86_400 * 10**6, 10**9), now_us=self.clocks.now_us, opener=lambda *_: self.store,
            thread=Immediate(),
        )  # fmt: skip
        self.spool.start()
        window, shelf, known = Window(1000), SpoolShelf(self.spool), Streams()
        for row, value in await shelf.stored_streams():
            known.add(row, decode(value))
        table = routing.Table(target.route() for target in self.targets.values())
        new_id = Uuid7(lambda: self.clocks.now_us() // 1000)
        admission = Admission(table, shelf, window, AdmitLimits(2**20, 64), new_id, ())
        self.sink = SpoolSink(
            admission, shelf, window, known, max_frame_bytes=2**20, now_us=self.clocks.now_us, clock=self.clock
        )
        self.couriers = {}
        for name, target in self.targets.items():
            courier = Courier(
                target.settings(), target.platform, SpoolOutbox(self.spool, name), Way(self, name),
                clock=self.clock, now_us=self.clocks.now_us, age_us=self.clocks.age_us, share=lambda: 1.0,
            )  # fmt: skip
            self.spool.listen(name, courier.touch)
            self.couriers[name] = courier
        self.tasks = [asyncio.create_task(courier.run()) for courier in self.couriers.values()]
        return self

    async def __aexit__(self, *_):
        await self._end()
        await self.spool.close()

    async def _end(self):
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.sink.close()

    async def restart(self, jump_s=0.0):
        """kill -9, a minute without agentd, and perhaps somebody sets the clock meanwhile."""
        await self._end()
        self.spool._committer._task.cancel()
        await asyncio.gather(self.spool._committer._task, return_exceptions=True)
        await self.spool._loader.close()
        self.spool.folder.close()
        self.store = self.store.crash()
        self.clock.advance(60)
        self.clock.set_wall(jump_s)
        self.unseen |= jump_s != 0
        await self.__aenter__()
        await self.advance(0)

    async def tell(self, *records, seq=None, stream=None):
        """Take records; the answer."""
        items = [decode_record(msgspec.json.encode(record)) for record in records]
        ack = self.sink.submit(Message(seq, items), PEER, stream=stream, origin="frames", hold=False)
        await self._settle(ack.done, 100)
        assert (ack.result().accepted, ack.result().rejected) == (len(records), [])
        await self._settle()
        return ack.result()

    async def advance(self, seconds, *, step_s=1.0):
        """Time passes, with the timers and the housekeeping that go with it."""
        until = self.clock() + seconds
        while True:
            for courier in self.couriers.values():
                courier.touch(set())
            self.spool.tick(self.clocks.ages(), KEEP_US)
            assert self.sink.prune(lambda at_us: self.clocks.age_us(at_us) > KEEP_US) == []
            self.ages_make_sense()
            await self._settle()
            if self.clock() >= until:
                await self._settle(turns=100)
                return
            self.clock.advance(min(step_s, until - self.clock()))

    async def _settle(self, condition=lambda: False, turns=12):
        """Let everything happen that needs no time to pass; one lane's way from queue to queue takes a dozen turns of the loop."""
        for _ in range(turns):
            if condition():
                return
            await asyncio.sleep(0)

    def ages_make_sense(self):
        """What status shows: never below zero, never more than the time since the test began where that can be known."""
        most_us = math.inf if self.unseen else (self.clock() - self.begun + 1) * 1e6
        for queue in self.spool.queues.values():
            oldest_us = queue.oldest_us(self.clocks.ages())
            assert oldest_us is None or 0 <= oldest_us <= most_us
        for courier in self.couriers.values():
            retry_in_s = courier.status()[2]
            assert retry_in_s is None or 0 <= retry_in_s <= 3600 * 1.1

    def at(self, path):
        """When requests went to a path, in seconds since the test began."""
        return [round(when - self.begun) for when, to, _, _ in self.sent if to == path]

    @property
    def queued(self):
        return sum(queue.live for queue in self.spool.queues.values())

    @property
    def dead(self):
        return sum(self.spool.books.total(name, State.DEAD) for name in FACES)

    def types(self, run):
        return [event["type"] for event in self.platforms.run(run)["events"]]


class Way:
    def __init__(self, host, name):
        self.host, self.name = host, name

    async def send(self, request, headers):
        host = self.host
        key = {**headers, **request.headers}.get("idempotency-key", "")
        host.sent.append((host.clock(), request.path, key, request.body))
        await asyncio.sleep(0)
        answer = host.said.get(request.path, host.said.get("*"))
        if isinstance(answer, Lost) and not answer.sent:
            return answer
        now_s = host.platforms.wall()
        date = email.utils.formatdate(now_s, usegmt=True)
        if isinstance(answer, Response):
            return msgspec.structs.replace(answer, headers={"date": date, **answer.headers})
        sent = CIMultiDict({"content-type": "application/json", **headers, **request.headers})
        call = Call(request.method, request.path, sent, request.body, "", now_s)
        said = host.platforms.answer(host.platforms.faces[self.name], call, Decision())
        if isinstance(answer, Lost):
            return answer
        return Response(said.status, {"date": date} | {k.lower(): v for k, v in said.headers.items()}, said.body)


def start(run="r"):
    return {"kind": "run.start", "run_id": run}


def event(number, run="r"):
    return {"kind": "event", "run_id": run, "type": f"t{number}", "payload": {"n": number}}


# -- one wait at a time --------------------------------------------------------------------------------------------------


@JUMPS
async def test_a_batch_is_gathered_for_its_interval(tmp_path, jump_s):
    """Promise 3: a minute is a minute, whether the clock is set before a batch's first record, within its minute, or back again."""
    async with Host(tmp_path / "state", interval_s=60.0) as host:
        await host.tell(start(), event(0))
        await host.advance(30)
        host.clock.set_wall(jump_s)
        await host.tell(event(1))
        await host.advance(29)
        assert host.at(EVENTS) == []
        await host.advance(2)
        assert host.at(EVENTS) == [60]
        await host.tell(event(2))
        await host.advance(30)
        host.clock.set_wall(-jump_s)
        await host.advance(28)
        assert host.at(EVENTS) == [60]
        await host.advance(4)
        assert host.at(EVENTS) == [60, 121]
        assert host.types("r") == ["t0", "t1", "t2"]


@JUMPS
async def test_an_id_is_waited_for_as_long_as_ever(tmp_path, jump_s):
    """Promise 2: an introducer that comes within `reference_wait` is in time; what nobody introduces goes after it, not next year."""
    async with Host(tmp_path / "state", reference_wait_s=60.0) as host:
        await host.tell(event(0, "late"), event(0, "nobody's"))
        await host.advance(30)
        host.clock.set_wall(jump_s)
        await host.advance(25)
        assert host.at(EVENTS) == []
        await host.tell(start("late"))
        await host.advance(2)
        assert host.types("late") == ["t0"]
        assert len(host.at(EVENTS)) == 1
        await host.advance(5)
        assert host.at(EVENTS)[1] in (60, 61)
        assert (host.queued, host.dead) == (0, 1)


@pytest.mark.parametrize("after", ["100", "a date"])
@JUMPS
async def test_a_server_that_says_when_is_believed(tmp_path, jump_s, after):
    """Promise 5: `Retry-After` in seconds or as a date of the platform's own clock: then, and neither at once nor in an hour."""
    async with Host(tmp_path / "state") as host:
        await host.tell(start())
        await host.advance(1)
        date = email.utils.formatdate(host.platforms.wall() + 101, usegmt=True)
        retry_after = {"retry-after": date if after == "a date" else after}
        host.clock.set_wall(jump_s)
        host.said[EVENTS] = Response(429, retry_after, b"{}")
        await host.tell(event(0))
        await host.advance(1)
        del host.said[EVENTS]
        (first,) = host.at(EVENTS)
        host.clock.set_wall(-jump_s)
        await host.advance(99)
        assert host.at(EVENTS) == [first]
        await host.advance(20)  # with the tenth that is added to a server's wish
        assert len(host.at(EVENTS)) == 2
        assert host.types("r") == ["t0"]


@JUMPS
async def test_backoff_and_pause_go_on(tmp_path, jump_s):
    """Promise 5: a lane in backoff, one that is forbidden, and a destination that is away are tried at their times."""
    async with Host(tmp_path / "state") as host:
        await host.tell(start(), start("other"))
        await host.advance(1)
        host.said[EVENTS] = Response(403, {}, b"{}")
        await host.tell(event(0))
        await host.advance(5)
        host.said["*"] = NO_CONNECTION
        await host.tell({"kind": "decision", "context": "c"})
        await host.advance(100)
        for shift_s in (jump_s, -jump_s):
            before = len(host.sent)
            host.clock.set_wall(shift_s)
            await host.advance(300)
            assert 4 <= len(host.sent) - before <= 20  # probes, at most a minute apart
        host.said.clear()
        host.clock.set_wall(jump_s)
        await host.advance(61)
        assert (host.queued, host.dead) == (0, 0)
        assert host.types("r") == ["t0"]


@JUMPS
async def test_what_was_sealed_is_repeated_as_it_was(tmp_path, jump_s):
    """Promise 4: an answer that was lost, a clock that was set, a crash: the same bytes under the same key."""
    async with Host(tmp_path / "state") as host:
        await host.tell(start())
        await host.advance(1)
        host.said["*"] = Lost("connection closed before the answer", sent=True)
        await host.tell(event(0), event(1), {"kind": "decision", "decision_id": "d", "context": "c"})
        await host.advance(2)
        host.clock.set_wall(jump_s)
        await host.advance(30)
        await host.restart(-jump_s)
        host.said.clear()
        await host.advance(61)
        assert host.queued == 0
        for path in {path for _, path, _, _ in host.sent}:
            assert len({(key, body) for _, to, key, body in host.sent if to == path}) == 1
        assert host.platforms.state().faces["decisionos"]["runs"] == 1


@JUMPS
async def test_a_run_keeps_its_name_and_a_stream_its_outcomes(tmp_path, jump_s):
    """§2, §1: nothing is forgotten for its age because of a clock; after seven days in earnest a silent run is."""
    async with Host(tmp_path / "state") as host:
        first = await host.tell(start(), event(0), seq=1, stream="s")
        await host.advance(2)
        for shift_s in (jump_s, -jump_s, jump_s):
            host.clock.set_wall(shift_s)
            await host.advance(3)
        await host.tell(event(1))
        assert await host.tell(start(), event(0), seq=1, stream="s") == first
        await host.advance(2)
        assert host.types("r") == ["t0", "t1"]
        assert len(list(host.spool.refs)) == 1
        await host.advance(6 * 86_400, step_s=3600)
        host.clock.set_wall(-jump_s)
        await host.tell(event(2))
        await host.advance(2)
        assert host.types("r") == ["t0", "t1", "t2"]


# -- over a restart ------------------------------------------------------------------------------------------------------


@JUMPS
async def test_over_a_restart_what_is_due_is_due(tmp_path, jump_s):
    """Promises 1, 2, 3: whatever the clock says after it, all that waited goes within seconds, to the runs that it is of."""
    async with Host(tmp_path / "state", interval_s=30.0) as host:
        await host.tell(start("a"))
        await host.advance(5)
        host.said["*"] = NO_CONNECTION
        for number in range(20):
            await host.tell(event(number, "a"), event(number, "b"), *([start("b")] if number == 0 else []))
            await host.advance(10)
        await host.restart(jump_s)
        host.said.clear()
        await host.advance(31)  # an interval at most: how long it was down nobody knows
        assert (host.queued, host.dead) == (0, 0)
        assert host.types("a") == host.types("b") == [f"t{number}" for number in range(20)]


async def test_a_name_is_kept_as_long_as_something_waits_that_needs_it(tmp_path):
    """§2: a run that was silent for days, an outage of more than a week, and restarts: its events still know where they belong."""
    async with Host(tmp_path / "state") as host:
        await host.tell(start(), start("idle"))
        await host.advance(3)
        await host.advance(3 * 86_400, step_s=7200)
        host.said["*"] = NO_CONNECTION
        for day in range(12):
            await host.tell(event(day), start(f"r{day}"))
            await host.advance(86_400, step_s=7200)
            if day % 5 == 4:
                await host.restart(YEAR_S if day == 9 else 0)
        host.said.clear()
        await host.advance(120)
        assert (host.queued, host.dead) == (0, 0)
        assert host.types("r") == [f"t{day}" for day in range(12)]
        await host.advance(8 * 86_400, step_s=7200)
        assert list(host.spool.refs) == []


# -- everything at once ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
async def test_a_clock_that_nobody_can_trust(tmp_path, seed):
    """Promises 1, 2, 4, 8: jumps, outages, refusals and crashes for minutes: each record once, in order, and all numbers rise."""
    dice = random.Random(seed)
    told = Counter()
    async with Host(tmp_path / "state", interval_s=5.0) as host:
        runs = [f"run-{number}" for number in range(5)]
        await host.tell(*(start(run) for run in runs))
        off_s = 0.0
        for _ in range(40):
            await host.tell(*(event(number, run) for run in runs if dice.random() < 0.7 for number in _next(told, run)))
            troubles = [NO_CONNECTION, Response(503, {}, b"{}"), Lost("cut", sent=True), Response(429, {}, b"{}")]
            host.said = {"*": dice.choice(troubles)} if dice.random() < 0.4 else {}
            jump_s = dice.choice([YEAR_S, -YEAR_S, TO_1970_S, TO_2099_S, 3600, -7]) - off_s
            if dice.random() < 0.1:
                await host.restart(jump_s)
                off_s += jump_s
            elif dice.random() < 0.6:
                host.clock.set_wall(jump_s)
                off_s += jump_s
            await host.advance(dice.choice([1, 10, 50]))
        host.said.clear()
        await host.advance(130)
        assert (host.queued, host.dead) == (0, 0)
        for run in runs:
            assert list(dict.fromkeys(host.types(run))) == [f"t{number}" for number in range(told[run])]
        _all_numbers_rise(host)


def _next(told, run):
    first, told[run] = told[run], told[run] + 3
    return range(first, first + 3)


def _all_numbers_rise(host):
    """One id is one record's, and the journal has no gap."""
    events = {
        (run["id"], event["type"]): event
        for run in host.platforms.runs()
        for event in host.platforms.run(run["id"])["events"]
    }
    ids = [uuid.UUID(event["payload"]["agentd_id"]) for event in events.values()]
    assert len(set(ids)) == len(ids) > 0
    assert {one.version for one in ids} == {7}
    notes = [note.number for _, value in host.store.rows(Table.JOURNAL) for note in journal.decode(value)]
    assert notes == list(range(1, len(notes) + 1))


@JUMPS
def test_ids_never_come_twice_and_never_go_back(jump_s):
    """UUIDv7: each is greater than the one before while the process lives, and after a restart it is another all the same."""
    clock = FakeClock()
    ids = []
    for _ in range(2):
        make = Uuid7(lambda: clock.now_us() // 1000)
        mine = []
        for shift_s in (0, jump_s, -jump_s, jump_s):
            clock.set_wall(shift_s)
            mine += [make() for _ in range(500)]
        assert all(one < other for one, other in itertools.pairwise(mine))
        assert all(uuid.UUID(bytes=one).version == 7 for one in mine)
        ids += mine
        clock.set_wall(-jump_s)
    assert len(set(ids)) == len(ids)
