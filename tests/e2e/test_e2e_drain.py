"""Promise 7 at bad moments: SIGTERM, and a second one, while everything is under way. It ends with 0, in time, and nothing that was
acknowledged is lost: each test starts the daemon again, and the audit at its end looks for what is missing or there twice.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness import AGENT, Frames, Lines, Producer, deal, http_call, wait_for

FACES = ("agentos", "aegis")
PROMPT_S = 3.0  # what "at once" may take on a busy machine
EVENTS = "/api/ingest/v1/events"
SPEND = {"amount": 5, "currency": "USD", "reason": "office supplies"}


def tell(world, daemon, *records):
    with Frames(daemon) as client:
        assert client.deliver(world.ledger, list(records)) == {}


def goes(daemon, within_s, *, hurried=False):
    """SIGTERM ends it in time, with 0; `hurried` by a second one a moment later."""
    begun = time.monotonic()
    daemon.signal(signal.SIGTERM)
    if hurried:
        wait_for(lambda: daemon.entries("stopping"), 5)
        time.sleep(0.3)
        begun = time.monotonic()
        daemon.signal(signal.SIGTERM)
    assert daemon.wait(30) == 0
    assert time.monotonic() - begun < within_s


def hanging(world):
    """A platform that takes connections and requests, and never says a word."""
    world.platform.faults("hang")


def down(world):
    world.platform.down()


def slow(world):
    """A platform that commits, and answers when nobody waits any more."""
    world.platform.faults(f"latency=40s,path={EVENTS}")
    world.doubles = True


def well_again(world):
    world.platform.faults()
    world.platform.up()


# -- under load ------------------------------------------------------------------------------------------------------------


def test_under_full_load(world):
    """Acks are in flight on a stream: what was answered is on disk, what was not is sent again to the next daemon and stored once."""
    world.platform.faults("latency=1ms..20ms")
    daemon = world.daemon(shutdown={"drain_timeout": "1s"})
    producer = Producer(daemon, world.ledger, deal(world.ledger, 4000, 20), frame=50, pause_s=0.005)
    world.on_exit(producer.give_up)
    for part in (1, 2):
        wait_for(lambda part=part: producer.acked >= producer.envelopes * part // 4, 20)
        goes(daemon, 1 + PROMPT_S, hurried=part == 2)
        assert not producer.done
        daemon.start()
    producer.join()
    assert daemon.drained()["delivered"] == 4000 + 40
    assert world.platform.state().faces["agentos"]["details"]["distinct_ids"] == 4000


def test_under_load_by_those_who_repeat_nothing(world):
    """Connections without a stream, in every dialect: each answer that was heard is true, whatever became of the rest."""
    daemon = world.daemon(shutdown={"drain_timeout": "1s"})
    tell(world, daemon, *(world.ledger.start(f"r{number}") for number in range(4)))
    stop = threading.Event()

    def talk(number, kind):
        run = f"r{number}"
        with contextlib.suppress(OSError), kind(daemon, 10) as client:
            for seq in range(1, 100_000):
                records = world.ledger.events_of(run, 20)
                world.ledger.maybe(records)
                client.send({"seq": seq, "records": records})
                answer = client.receive()
                if answer is None or stop.is_set():
                    return
                assert answer == {"seq": seq, "accepted": 20}
                world.ledger.took(records)

    def post(number):
        run = f"r{number}"
        with contextlib.suppress(OSError):
            while not stop.is_set():
                records = world.ledger.events_of(run, 20)
                world.ledger.maybe(records)
                status, _ = http_call(daemon.socket, "POST", "/v1/records", json.dumps(records).encode())
                if status != 202:
                    return
                world.ledger.took(records)

    with ThreadPoolExecutor(4) as pool:
        talking = [
            pool.submit(talk, 0, Frames), pool.submit(talk, 1, Lines), pool.submit(post, 2), pool.submit(talk, 3, Frames)
        ]  # fmt: skip
        wait_for(lambda: min(len(world.ledger.events[f"r{number}"]) for number in range(4)) >= 200, 20)
        goes(daemon, 1 + PROMPT_S)
        stop.set()
        for each in talking:
            each.result(20)
    daemon.start()


# -- the platform --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("trouble", "hurried"), [(down, True), (hanging, False), (hanging, True), (slow, True)])
def test_with_a_platform_in_trouble(world, trouble, hurried):
    """Away, mute or slow: `drain_timeout` bounds the wait where one is of any use, a second signal ends it at once."""
    daemon = world.daemon(shutdown={"drain_timeout": "20s" if hurried else "500ms"})
    tell(world, daemon, world.ledger.start("r"), world.ledger.start("s"))
    daemon.drained()
    trouble(world)
    for run in ("r", "s"):
        tell(world, daemon, *world.ledger.events_of(run, 120))
    wait_for(lambda: daemon.books()["in_flight"] == 2 or daemon.books()["state"] == "waiting", 10, daemon.books)
    tell(world, daemon, *world.ledger.events_of("r", 30))
    goes(daemon, PROMPT_S if hurried else 1 + PROMPT_S, hurried=hurried)
    (left,) = daemon.entries("left")
    assert "for agentos stay on disk" in left["message"]
    well_again(world)
    daemon.start()
    assert daemon.drained()["delivered"] == 2 + 270


def test_a_platform_that_is_paused_is_not_waited_for(world):
    """A refused key: nothing will come of waiting, and the queue is kept."""
    daemon = world.daemon(shutdown={"drain_timeout": "20s"})
    daemon.expected = {"paused"}
    world.platform.faults("status=401")
    tell(world, daemon, *world.ledger.whole_run("r", 50))
    wait_for(lambda: daemon.books()["state"] == "paused", 10, daemon.books)
    goes(daemon, PROMPT_S)
    world.platform.faults()
    daemon.start()
    assert daemon.drained()["delivered"] == 52


# -- intake --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hurried", [False, True])
def test_with_messages_that_wait_for_room(world, hurried):
    """A full queue: who asked for an answer has it, who asked for none is held and was promised nothing; neither prolongs the drain."""
    daemon = world.daemon(
        destination={"max_bytes": "100KiB"}, intake={"max_pending_bytes": "64KiB"},
        shutdown={"drain_timeout": "20s" if hurried else "500ms"},
    )  # fmt: skip
    world.platform.down()
    tell(world, daemon, world.ledger.start("r"))
    with Frames(daemon) as silent, Frames(daemon) as asking:
        while True:
            records = world.ledger.events_of("r", 10, size=1000, level="warn")
            if asking.deliver(world.ledger, records):
                break
        for _ in range(3):
            records = world.ledger.events_of("r", 10, size=1000, level="warn")
            world.ledger.maybe(records)
            silent.send(records)
        wait_for(lambda: daemon.status()["intake"]["held"], 10, daemon.status)
        goes(daemon, PROMPT_S, hurried=hurried)
    assert daemon.entries("held_dropped")
    world.platform.up()
    daemon.start()
    daemon.drained()


def test_with_a_client_that_reads_no_answers(world):
    """Its answers find no way out: it is waited for as long as the drain may take, and no longer."""
    daemon = world.daemon(shutdown={"drain_timeout": "1s"})
    tell(world, daemon, world.ledger.start("r"))
    with Frames(daemon) as deaf:
        deaf.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            for seq in range(1, 200_000):
                deaf.send({"seq": seq, "records": [{"kind": "event", "run_id": "r"}]})  # refused at length
        goes(daemon, 1 + PROMPT_S)
    daemon.start()


def test_with_half_a_message(world):
    """Frames, lines and requests that have begun and never end: a moment in which the rest may come, and a second signal ends that."""
    daemon = world.daemon(shutdown={"drain_timeout": "20s"})
    tell(world, daemon, world.ledger.start("r"), *world.ledger.events_of("r", 5))
    with Frames(daemon) as frame, Lines(daemon) as line, Lines(daemon) as request:
        frame.raw(b"\x00\x00\x10\x00{")
        line.raw(b'{"kind": "event", "run_id"')
        request.raw(b"POST /v1/records HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n[")
        wait_for(lambda: daemon.status()["intake"]["connections"] == 4, 10, daemon.status)
        goes(daemon, PROMPT_S, hurried=True)
    daemon.start()


# -- gates -----------------------------------------------------------------------------------------------------------------


def governed(world, **sections):
    """A daemon that can be asked."""
    aegis = {
        "platform": "aegis", "base_url": f"{world.platform.url}/aegis", "agent_id": AGENT, "api_key": {"env": "KEY"},
    }  # fmt: skip
    return world.daemon(**{"destinations.aegis": aegis, "intake": {"reference_wait": "300ms"}} | sections)


class Asking:
    """A question in the background, and what was heard."""

    def __init__(self, daemon, gate, request, **fields):
        body = json.dumps({"gate": gate, "request": request, "deadline": 60, **fields}).encode()
        self._pool = ThreadPoolExecutor(1)
        self._future = self._pool.submit(http_call, daemon.socket, "POST", "/v1/gate", body)

    def answer(self):
        try:
            status, said = self._future.result(20)
        finally:
            self._pool.shutdown()
        assert status == 200, said
        return said


def steps(daemon):
    return sorted(gate["step"] for gate in http_call(daemon.socket, "GET", "/v1/gates?state=open")[1])


@pytest.mark.parametrize("hurried", [False, True])
def test_with_gates_at_every_step(world, hurried):
    """Waiting for its run, out at a platform that hangs, pending with a person: each hears what is certain, and the next start knows it."""
    daemon = governed(world, shutdown={"drain_timeout": "20s" if hurried else "1s"})
    world.platform.ask(lambda: world.platform.sandbox.throw("aegis.decision_delay=1h"))
    pending = Asking(daemon, "intent", SPEND, key="pending")
    wait_for(lambda: steps(daemon) == ["pending"], 10, lambda: steps(daemon))
    world.platform.faults("status=503,face=agentos", "hang,path=/v1/intents")
    tell(world, daemon, world.ledger.start("r"))
    asked = Asking(daemon, "human_input", {"prompt": "May I?"}, run_id="r", key="asked")
    sending = Asking(daemon, "intent", SPEND, key="sending")
    wait_for(lambda: steps(daemon) == ["asked", "pending", "sending"], 10, lambda: steps(daemon))
    goes(daemon, PROMPT_S if hurried else 1 + PROMPT_S, hurried=hurried)
    heard = {name: of.answer() for name, of in (("pending", pending), ("asked", asked), ("sending", sending))}
    assert {name: said["verdict"] for name, said in heard.items()} == {
        "pending": "pending", "asked": "unavailable", "sending": "unavailable",
    }  # fmt: skip
    assert not any(said["proceed"] for said in heard.values())
    world.platform.faults()
    daemon.start()
    found = {name: http_call(daemon.socket, "GET", f"/v1/gates/{said['gate_id']}")[1] for name, said in heard.items()}
    assert (found["asked"]["acted"], found["sending"]["acted"], found["pending"]["final"]) == (False, True, False)
    again = Asking(daemon, "intent", SPEND, key="sending", deadline=1).answer()
    assert (again["verdict"], again["repeated"]) == ("unavailable", True)
    assert sum(line.path.endswith("/v1/intents") and line.method == "POST" for line in world.platform.requests()) == 2


def test_signals_that_come_late(world):
    """One after another until it is gone, the last of them when there is nothing left to end: still 0."""
    for _ in range(2):
        daemon = world.daemons[0].start() if world.daemons else world.daemon()
        tell(world, daemon, world.ledger.start("r"), *world.ledger.events_of("r", 5))
        while daemon._reap(os.WNOHANG) is None:
            daemon.signal(signal.SIGTERM)
            time.sleep(0.001)
        assert daemon.wait() == 0
    daemon.start()


# -- a start -----------------------------------------------------------------------------------------------------------------


def test_a_bad_configuration_in_between(world):
    """A start that fails for what somebody wrote touches nothing: the backlog is there for the next one."""
    daemon = world.daemon(shutdown={"drain_timeout": "100ms"})
    world.platform.down()
    tell(world, daemon, *world.ledger.whole_run("r", 50))
    assert daemon.stop() == 0
    log = daemon.log.read_bytes()
    for wrong in ({"max_event": 5}, {"max_events": -1}):
        daemon.configure(batch=wrong)
        daemon.spawn()
        assert daemon.wait() == 78
        daemon._sections["batch"].clear()
    moved = {"base_url": f"{world.platform.url}/elsewhere"}
    daemon.configure(**{"destinations.agentos": moved})
    daemon.spawn()
    assert daemon.wait() == 78
    assert b"changed while 52 records wait for it" in daemon.log.read_bytes()
    daemon.log.write_bytes(log)
    daemon.configure(**{"destinations.agentos": {"base_url": world.platform.url}})
    world.platform.up()
    daemon.start()
    assert daemon.drained()["delivered"] == 52


def test_during_a_start(world):
    """Told to stop before it has begun: it ends soon, by the signal or with 0, and leaves what it found."""
    daemon = world.daemon(shutdown={"drain_timeout": "1s"})
    world.platform.down()
    tell(world, daemon, *world.ledger.whole_run("r", 200))
    assert daemon.stop() == 0
    for after_s in (0.05, 0.3, 0.6):
        daemon.spawn()
        time.sleep(after_s)
        daemon.signal(signal.SIGTERM)
        assert daemon.wait(10) in (0, -signal.SIGTERM)
    world.platform.up()
    daemon.start()
    assert daemon.drained()["delivered"] == 202
