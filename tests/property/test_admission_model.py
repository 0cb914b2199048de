"""Admission, sink and client's outbox against plain lists: two destinations, each with room or without, a disk that fails, kills.

The model is the wire: what is sent arrives in order or is lost with its connection, and so do the answers. Whatever happens,
each destination holds each record that may not be lost exactly once and in the order of its run, and the books balance.
"""

import asyncio
import contextlib
import json
from collections import Counter
from unittest.mock import patch
from uuid import UUID

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentd.client import outbox
from agentd.client.buffer import DEBUG, INFO, KEEP, Buffer
from agentd.errors import SpoolFull
from agentd.intake import Peer, order, streams
from agentd.intake.admit import Admission, Limits
from agentd.intake.dedupe import Window
from agentd.intake.routing import Route, Table
from agentd.intake.sink import SpoolSink
from agentd.intake.streams import Streams
from agentd.wire import decode_message, encode

ME = Peer(1000, 1000, 7)
STREAM = "3e0f4a3a-0000-7000-8000-000000000000"
NAMES = ("a", "b")
RUNS = ("r", "s", "t")
LEVELS = {DEBUG: "debug", INFO: "info", KEEP: "warn"}
PLENTY = 10**9
SMALL, LARGE = 0, 300  # bytes of a payload: where a large one finds no room, a small one may


class Shelf:
    """Room in bytes by destination, and a disk of which the commits are steps of the test."""

    def __init__(self):
        self.room = dict.fromkeys(NAMES, PLENTY)
        self.disk_full = False
        self.stored = {name: [] for name in NAMES}
        self.rows = {}  # streams by row
        self.ids = []  # rows of the window
        self.pending = []
        self.waiters = []
        self.next_row = self.next_number = 0

    def room_for(self, destination, size, _loss, _uid=None):
        return not self.disk_full and size <= self.room[destination]

    def quota(self, _destination):
        return PLENTY

    def number(self, _destination):
        self.next_number += 1
        return self.next_number

    def owners(self, _kind, _local_id):
        return []

    def introduce(self, ref):
        return ref

    def append(self, copies, *, puts=(), introduced=()):
        del introduced
        future = asyncio.get_running_loop().create_future()
        for name, entries in copies.items():
            self.room[name] -= sum(len(entry.body) + 64 for entry in entries)
        self.pending.append((copies, puts, future))
        return future

    def stream_row(self, row, value):
        return lambda: self.rows.update({row: value})

    def new_stream_row(self):
        self.next_row += 1
        return self.next_row

    def seen(self, value, _count):
        return lambda: self.ids.append(value)

    async def wait_for_room(self):
        future = asyncio.get_running_loop().create_future()
        self.waiters.append(future)
        await future

    def tell_room(self):
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            waiter.set_result(None)

    def commit(self, count=None):
        """The oldest `count` appends reach the disk, all of them without it."""
        done = self.pending[:count]
        del self.pending[:count]
        for copies, puts, future in done:
            for name, entries in copies.items():
                self.stored[name] += [json.loads(entry.body) for entry in entries]
            for put in puts:
                put()
            if not future.done():
                future.set_result(None)

    def fail(self):
        """No room on the disk: all that waits is refused, but for rows without records, which wait on."""
        self.disk_full = True
        pending, self.pending = self.pending, []
        for copies, puts, future in pending:
            if copies:
                for name, entries in copies.items():
                    self.room[name] += sum(len(entry.body) + 64 for entry in entries)
                future.set_exception(SpoolFull())
            else:
                self.pending.append((copies, puts, future))

    def payloads(self, name):
        told = [record for record in self.stored[name] if record["type"] != "agentd.lost"]
        return [(record["run_id"], record["payload"][0]) for record in told]


class House:
    """The daemon's side, which can be killed."""

    def __init__(self, window=1000):
        self.shelf = Shelf()
        self._window = window
        self._ids = iter(range(1, 10**9))
        self.start()

    def start(self):
        """Begin with what the disk holds."""
        self.shelf.pending = []
        window, known = Window(self._window), Streams()
        for rows in self.shelf.ids:
            window.restore(rows)
        for row, value in self.shelf.rows.items():
            known.add(row, streams.decode(value))
        routes = [Route(name, frozenset({"event"})) for name in NAMES]
        self.admission = Admission(
            Table(routes), self.shelf, window, Limits(10**6, 64), lambda: next(self._ids).to_bytes(16, "big"), ()
        )
        self.sink = SpoolSink(
            self.admission, self.shelf, window, known, max_frame_bytes=10**6, now_us=lambda: 1, clock=lambda: 1.0
        )

    def submit(self, data, **options):
        return self.sink.submit(decode_message(data), ME, origin="frames", **{"stream": None, "hold": False, **options})

    def make_room(self):
        self.shelf.disk_full = False
        self.shelf.room = dict.fromkeys(NAMES, PLENTY)
        self.shelf.tell_room()


async def turn():
    for _ in range(6):
        await asyncio.sleep(0)


def in_order(shelf, due):
    """Every destination against what it should hold: once each, and in the order of their runs."""
    for name in NAMES:
        found = shelf.payloads(name)
        assert len(found) == len(set(found)), f"{name} holds a record twice"
        for run in RUNS:
            numbers = [number for of, number in found if of == run]
            assert numbers == sorted(numbers), f"{name} is out of order"
        missing = {(run, number) for run, number, to in due if name in to} - set(found)
        assert not missing, f"{name} lacks {missing}"


# -- the client library ------------------------------------------------------------------------------------------------


class Agent:
    """The client's outbox and the wire to the daemon."""

    def __init__(self, house):
        self.house = house
        self.buffer = Buffer(10_000, 10**7)
        self.outbox = outbox.Outbox(self.buffer, STREAM, "test")
        self.futures = []  # of what arrived, unanswered yet
        self.due = []
        self.number = 0

    def emit(self, run, rank, to, size):
        self.number += 1
        record = {
            "kind": "event",
            "run_id": run,
            "type": "t",
            "level": LEVELS[rank],
            "payload": [self.number, "x" * size],
        }
        data = msgspec.json.encode(record | ({"to": to} if to else {}))
        self.buffer.put("event", rank, run, data, len(data))
        if rank == KEEP:
            self.due.append((run, self.number, [to] if to else NAMES))

    def send(self, count=1):
        for _ in range(count):
            envelope = self.outbox.next_envelope()
            if envelope is None:
                return False
            self.arrive(envelope)
        return True

    def arrive(self, envelope):
        self.futures.append(self.house.submit(envelope.frame()[4:], stream=STREAM))

    def vanish(self):
        """An envelope leaves and never arrives."""
        if self.outbox.next_envelope() is not None:
            self.reconnect()

    def reconnect(self):
        self.futures = []
        for envelope in self.outbox.repeats():
            self.arrive(envelope)

    def hear(self):
        """The next answer that is there: they come in the order in which they were done."""
        future = next((one for one in self.futures if one.done()), None)
        if future is None:
            return False
        self.futures.remove(future)
        self.outbox.on_answer(msgspec.json.decode(encode(future.result())))
        return True

    def balance(self):
        stats = self.buffer.stats()
        assert stats.emitted == stats.accepted + stats.refused + stats.lost + stats.buffered
        assert stats.refused == 0


async def _play(steps):
    house = House()
    agent = Agent(house)
    for name, *arguments in steps:
        if name in {"emit", "send", "vanish", "reconnect", "hear"}:
            getattr(agent, name)(*arguments)
        elif name == "sweep":
            agent.outbox.sweep()
        elif name in {"commit", "fail"}:
            getattr(house.shelf, name)(*arguments)
        elif name == "room":
            house.shelf.room[arguments[0]] = arguments[1]
        elif name == "recover":
            house.shelf.disk_full = False
        elif name == "kill":
            house.start()
            agent.reconnect()
        await turn()
        agent.balance()
    house.make_room()
    for index in range(300):
        if not agent.buffer.buffered:
            break
        if index % 3 == 0:
            agent.outbox.sweep()
        agent.send()
        house.shelf.commit()
        await turn()
        while agent.hear():
            pass
    assert not agent.buffer.buffered, "something never gets through"
    in_order(house.shelf, agent.due)
    stats = agent.buffer.stats()
    assert stats.emitted == stats.accepted + stats.lost
    assert stats.accepted >= len(agent.due)
    await house.sink.close()


rooms = st.sampled_from([0, 200, 500, 1000, PLENTY])
emits = st.tuples(
    st.just("emit"), st.sampled_from(RUNS), st.sampled_from([KEEP, KEEP, KEEP, INFO, DEBUG]),
    st.sampled_from(["", "", "", *NAMES]), st.sampled_from([SMALL, LARGE]),
)  # fmt: skip
steps = st.lists(
    st.one_of(
        emits, emits, st.tuples(st.just("send"), st.integers(1, 3)), st.tuples(st.just("send"), st.integers(1, 3)),
        st.tuples(st.just("room"), st.sampled_from(NAMES), rooms), st.tuples(st.just("commit"), st.sampled_from([None, 1])),
        st.tuples(st.sampled_from(["hear", "hear", "hear", "sweep", "vanish", "reconnect", "fail", "recover", "kill"])),
    ),
    max_size=60,
)  # fmt: skip


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(steps=steps)
def test_the_client_brings_each_record_to_each_destination_once(steps):
    """Promises 1, 2 and 8: whatever is full and whatever breaks, what may not be shed arrives everywhere once and in order."""
    # small, so that a few records make many envelopes, and a few runs more than are remembered each by itself
    with patch.object(outbox, "ENVELOPE_RECORDS", 3), patch.object(order, "MAX_TURNED_AWAY", 2):
        asyncio.run(_play(steps))


# -- clients without a stream --------------------------------------------------------------------------------------------


class Sender:
    """Sends records with ids until each destination is known to have them, as they were or narrowed as it was told."""

    def __init__(self, house):
        self.house = house
        self.records = {}  # number → the record, and the `to` that it was told, if any
        self.futures = []

    def make(self, number, to):
        record = {"kind": "event", "run_id": RUNS[number % 3], "type": "t", "level": "warn", "payload": [number]}
        self.records[number] = [record | {"id": str(UUID(int=number + 1))} | ({"to": to} if to else {}), None]

    def send(self, number, *, narrow):
        record, told = self.records[number]
        body = encode(record | ({"to": told} if narrow and told else {}))
        self.futures.append((number, self.house.submit(b'{"seq":1,"records":[' + body + b"]}")))

    def hear(self):
        for number, future in [one for one in self.futures if one[1].done()]:
            self.futures.remove((number, future))
            ack = future.result()
            assert ack.accepted + len(ack.rejected) == 1
            if ack.rejected:
                assert ack.rejected[0].error == "spool full"
                self.records[number][1] = ack.rejected[0].to or self.records[number][1]
            else:
                self.records[number][1] = None


async def _resend(steps):
    house = House()
    sender = Sender(house)
    for name, *arguments in steps:
        if name == "send":
            number, to, narrow = arguments
            if number not in sender.records:
                sender.make(number, to)
            sender.send(number, narrow=narrow)
        elif name in {"commit", "fail"}:
            getattr(house.shelf, name)(*arguments)
        elif name == "room":
            house.shelf.room[arguments[0]] = arguments[1]
        elif name == "recover":
            house.shelf.disk_full = False
        elif name == "kill":
            sender.futures = []
            house.start()
        await turn()
        sender.hear()
    house.make_room()
    house.shelf.commit()
    await turn()
    for number in sender.records:
        for narrow in (True, False):
            sender.send(number, narrow=narrow)
        house.shelf.commit()
        await turn()
    for name in NAMES:
        held = Counter(house.shelf.payloads(name))
        due = {
            (record["run_id"], record["payload"][0])
            for record, _ in sender.records.values()
            if name in record.get("to", NAMES)
        }
        assert held == dict.fromkeys(due, 1)
    await house.sink.close()


resends = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(0, 5), st.sampled_from([None, None, "a", ["a", "b"]]), st.booleans()),
        st.tuples(st.just("send"), st.integers(0, 5), st.none(), st.booleans()),
        st.tuples(st.just("room"), st.sampled_from(NAMES), rooms), st.tuples(st.just("commit"), st.sampled_from([None, 1])),
        st.tuples(st.sampled_from(["fail", "recover", "kill"])),
    ),
    max_size=40,
)  # fmt: skip


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(steps=resends)
def test_a_record_with_an_id_is_stored_once_at_each_destination(steps):
    """Sent again as it was or narrowed, over kills and full disks: nothing is stored twice, nothing that was taken is lost."""
    asyncio.run(_resend(steps))


# -- clients that ask for no answers -------------------------------------------------------------------------------------


async def _wait(steps):
    house = House()
    due, futures, number = [], [], 0
    for name, *arguments in steps:
        if name == "send":
            message = []
            for run, rank, to, size in arguments[0]:
                number += 1
                record = {
                    "kind": "event",
                    "run_id": run,
                    "type": "t",
                    "level": LEVELS[rank],
                    "payload": [number, "x" * size],
                }
                message.append(record | ({"to": to} if to else {}))
                due.append((run, number, [to] if to else NAMES))
            futures.append(house.submit(encode(message), hold=True))
        elif name in {"commit", "fail"}:
            getattr(house.shelf, name)(*arguments)
        else:
            house.shelf.room[arguments[0]] = arguments[1]
            house.shelf.disk_full = False
            house.shelf.tell_room()
        await turn()
    for _ in range(20):
        house.make_room()
        await turn()
        house.shelf.commit()
        await turn()
    in_order(house.shelf, due)
    assert all(future.done() for future in futures)
    assert sum(future.result().accepted for future in futures) == len(due) == house.admission.accepted
    assert +house.admission.refused == {}
    with contextlib.suppress(asyncio.CancelledError):
        await house.sink.close()


silents = st.lists(
    st.one_of(
        st.tuples(
            st.just("send"),
            st.lists(
                st.tuples(
                    st.sampled_from(RUNS), st.sampled_from([KEEP, INFO, DEBUG]), st.sampled_from(["", "", *NAMES]),
                    st.sampled_from([SMALL, LARGE]),
                ),
                min_size=1, max_size=4,
            ),
        ),
        st.tuples(st.just("room"), st.sampled_from(NAMES), rooms), st.tuples(st.just("commit"), st.sampled_from([None, 1])),
        st.tuples(st.just("fail")),
    ),
    max_size=30,
)  # fmt: skip


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(steps=silents)
def test_what_waits_for_room_arrives_everywhere_once_and_in_order(steps):
    """Promise 6: nothing of a silent connection is dropped or stored twice, and each record is counted once."""
    asyncio.run(_wait(steps))
