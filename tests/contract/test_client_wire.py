"""The client against a scripted daemon on a real Unix socket: nothing blocks, nothing is sent twice, nothing goes uncounted."""

import asyncio
import gc
import json
import logging
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

import agentd
from agentd import AgentdError, AsyncClient, Client, NoDaemon, NotStored
from agentd.client.buffer import KEEP, Ticket
from agentd.client.lines import render
from agentd.records import KINDS
from agentd.wire import hello_answer

CLOSE, SILENT, STALL = "close", None, "stall"


def accept(envelope):
    return {"seq": envelope["seq"], "accepted": len(envelope["records"])}


class Daemon:
    """Speaks frames as told: `script(envelope)` gives the answer, SILENT, CLOSE, or STALL (read nothing more)."""

    def __init__(self, path):
        self.path = str(path)
        self.script = accept
        self.hello = hello_answer("0.1.0", 2**24 - 1, 0)
        self.flush_answer = (200, {"flushed": True, "until": "delivered", "left": {}, "waited_s": 0.1, "reason": ""})
        self.hellos, self.frames, self.requests = [], [], []
        self._changed = threading.Condition()
        self._connections = set()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen(64)
        self._threads = [threading.Thread(target=self._listen)]
        self._threads[0].start()

    def _listen(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.add(connection)
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection):
        with connection, connection.makefile("rb") as stream:
            try:
                while (head := stream.read(4)) and len(head) == 4:
                    if head == b"POST":
                        self._answer_http(connection, stream)
                        return
                    if self._answer(connection, stream.read(struct.unpack(">I", head)[0])) == CLOSE:
                        return
            except OSError:
                pass
            finally:
                self._connections.discard(connection)

    def _answer(self, connection, data):
        message = json.loads(data)
        with self._changed:
            (self.hellos if "hello" in message else self.frames).append(message if "hello" in message else data)
            self._changed.notify_all()
        answer = self.hello if "hello" in message else self.script(message)
        if answer == STALL:
            threading.Event().wait(timeout=1) if not self._connections else self._wait_for_the_end(connection)
            return CLOSE
        if answer not in (SILENT, CLOSE):
            data = json.dumps(answer).encode()
            connection.sendall(struct.pack(">I", len(data)) + data)
        return answer

    def _wait_for_the_end(self, connection):
        with self._changed:
            self._changed.wait_for(lambda: connection not in self._connections)

    def _answer_http(self, connection, stream):
        self.requests.append("POST " + stream.readline().decode().strip())
        status, answer = self.flush_answer
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        connection.sendall(b"HTTP/1.1 %d x\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))

    @property
    def envelopes(self):
        return [json.loads(data) for data in list(self.frames)]

    @property
    def records(self):
        return [record for envelope in self.envelopes for record in envelope["records"]]

    def wait(self, condition, timeout=10):
        with self._changed:
            assert self._changed.wait_for(condition, timeout), (self.hellos, self.frames)

    def drop(self):
        """Cut all connections."""
        for connection in list(self._connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def close(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._changed:
            left = list(self._connections)
            self._connections.clear()
            self._changed.notify_all()
        for connection in left:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        for thread in self._threads:
            thread.join(10)
        Path(self.path).unlink()


@pytest.fixture(autouse=True)
def _live(agentd_live, monkeypatch):
    for name in ("AGENTD_DISABLED", "AGENTD_REQUIRED", "AGENTD_SOCKET"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "agentd.sock"


@pytest.fixture
def daemon(path):
    daemon = Daemon(path)
    yield daemon
    daemon.close()


@pytest.fixture
def make(path):
    made = []

    def make(kind=Client, **options):
        options.setdefault("exit_timeout", 0.1)
        client = kind(socket=str(path), **options)
        made.append(client)
        return client

    yield make
    for client in made:
        Client.close(client, 0)


@pytest.fixture
def client(daemon, make):
    return make()


def balanced(client):
    stats = client.stats()
    assert stats.emitted == stats.accepted + stats.refused + stats.lost + stats.buffered
    return stats


def numbers(records):
    return [record["payload"] for record in records if record["kind"] == "event"]


def until(condition, timeout=10):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def test_hello_envelopes_and_answers(daemon, client):
    """A process is one stream on one connection: hello, then envelopes whose seq rises by one from 1."""
    run = client.start_run(input={"n": 1})
    for n in range(250):
        run.emit("step", n)
    result = client.flush()
    assert (result.ok, result.until, result.left) == (True, "stored", {})
    (hello,) = daemon.hellos
    assert (hello["hello"], hello["owns_runs"], hello["lost"]) == (1, True, {})
    assert hello["client"] == "python/0.1.0"
    envelopes = daemon.envelopes
    assert [envelope["seq"] for envelope in envelopes] == list(range(1, len(envelopes) + 1))
    assert max(len(envelope["records"]) for envelope in envelopes) <= 100
    assert numbers(daemon.records) == list(range(250))
    assert balanced(client).accepted == 251


def test_the_version_that_is_named_is_ours():
    """The hello names the version that is installed."""
    from agentd.client.channel import CLIENT_NAME

    assert CLIENT_NAME.partition("/")[2] == agentd.__version__


def test_lost_answers_are_asked_for_again(daemon, client):
    """Whatever got no answer is repeated after a reconnect: the same stream, the same seq, the same bytes."""
    daemon.script = lambda envelope: CLOSE if len(daemon.frames) < 3 else accept(envelope)
    client.start_run(run_id="r").emit("x", {"a": [1, 2]})
    assert client.flush().ok
    assert len(daemon.frames) == 3
    assert len(set(daemon.frames)) == 1
    assert len({hello["stream"] for hello in daemon.hellos}) == 1
    assert balanced(client).accepted == 2


def test_many_unanswered_envelopes_are_repeated_in_order(daemon, client):
    """Several envelopes without an answer come again in the order of their seq, and later ones go on from there."""
    daemon.script = lambda envelope: SILENT
    run = client.start_run()
    for n in range(500):
        run.emit("x", n)
    daemon.wait(lambda: sum(len(json.loads(frame)["records"]) for frame in daemon.frames) == 501)
    first = list(daemon.frames)
    daemon.script = accept
    daemon.drop()
    run.emit("x", 500)
    assert client.flush().ok
    assert daemon.frames[len(first) : 2 * len(first)] == first
    assert daemon.envelopes[-1]["seq"] == len(first) + 1
    assert balanced(client).accepted == 502


def test_a_full_spool_keeps_what_matters_and_its_order(daemon, client):
    """On `spool full` debug and info are lost and counted; the rest comes again under a fresh seq, ahead of what is younger."""
    refusals = iter([True, True])

    def script(envelope):
        if next(refusals, False):
            return {
                "seq": envelope["seq"],
                "accepted": 0,
                "rejected": [{"index": i, "error": "spool full"} for i in range(len(envelope["records"]))],
            }
        return accept(envelope)

    daemon.script = script
    run = client.start_run()
    run.emit("x", 1, "debug")
    run.emit("x", 2, "info")
    run.emit("x", 3, "warn")
    until(lambda: client.dropped == 2)
    run.emit("x", 4, "error")
    run.complete()
    assert client.flush().ok
    last = {}
    for envelope in daemon.envelopes:
        for record in envelope["records"]:
            last[json.dumps(record)] = envelope["seq"], envelope["records"].index(record)
    order = [json.loads(text) for text, _ in sorted(last.items(), key=lambda item: item[1])]
    kept = [
        record.get("payload", record["kind"])
        for record in order
        if record.get("level", "warn") not in ("debug", "info")
    ]
    (told,) = [item for item in kept if isinstance(item, dict)]
    assert (told["records"], told["causes"]) == (2, {"spool_full": 2})
    assert kept[-1] == "run.complete"
    assert [item for item in kept if item not in (1, 2, told)] == ["run.start", 3, 4, "run.complete"]
    stats = balanced(client)
    assert (stats.accepted, stats.lost_by) == (5, {"spool_full:event": 2})


def test_a_refusal_is_counted_and_told_once(daemon, make, caplog):
    """Other refusals are counted by cause and kind; on_error and the log hear of a cause once."""
    heard = []
    client = make(on_error=lambda cause, example: heard.append((cause, example)))
    daemon.script = lambda envelope: {"seq": envelope["seq"], "error": "no destination takes this"}
    with caplog.at_level(logging.WARNING, "agentd"):
        for _ in range(3):
            client.heartbeat()
            client.flush()
    until(lambda: heard)
    assert heard == [("no destination takes this", "heartbeat refused: no destination takes this")]
    assert len(caplog.records) == 1
    assert balanced(client).refused_by == {"no destination takes this:heartbeat": 3}
    assert client.dropped == 0


def test_an_on_error_that_fails_harms_nothing(daemon, make, caplog):
    """The agent's callback may raise; the client goes on."""
    client = make(on_error=lambda cause, example: 1 / 0)
    client.emit("outside of a run")
    client.heartbeat()
    assert client.flush().ok
    until(lambda: "on_error failed" in caplog.text)
    assert client.dropped.by_cause == {"no_run": 1}


def test_a_daemon_that_never_reads_does_not_block_the_agent(daemon, make):
    """Emitting costs microseconds while the daemon is stalled; memory stays within the bound and losses are counted."""
    daemon.script = lambda envelope: STALL
    client = make(max_buffer_records=2000)
    run = client.start_run()
    run.emit("x", 0)
    daemon.wait(lambda: daemon.frames)
    slowest = 0.0
    for n in range(20_000):
        began = time.perf_counter()
        run.emit("x", {"n": n, "text": "y" * 300})
        slowest = max(slowest, time.perf_counter() - began)
    assert slowest < 1.0
    stats = balanced(client)
    assert stats.buffered <= 2000
    assert stats.buffered_bytes <= 16 * 2**20
    assert client.dropped.by_cause == {"buffer_full": stats.lost}
    assert client.dropped.by_kind == {"event": stats.lost}
    result = client.flush(timeout=0.1)
    assert not result.ok
    assert result.left["client"] == stats.buffered
    assert result.reason


def test_a_missing_daemon_costs_bounded_memory_and_one_warning(make, path, caplog):
    """A missing daemon costs memory up to a bound, then the oldest debug and info go first; the log says once how to cure it."""
    heard = []
    client = make(max_buffer_records=10, on_error=lambda cause, example: heard.append(cause))
    run = client.start_run(run_id="r")
    for n in range(50):
        run.emit("x", n, "debug" if n % 2 else "info")
    run.emit("x", "kept", "error")
    until(lambda: client._channel._failures > 2 and heard)
    stats = balanced(client)
    assert (stats.buffered, stats.lost) == (10, 42)
    assert client.dropped == 42
    assert client.dropped.by_cause == {"no_daemon": 42}
    assert heard == ["no_daemon"]
    cures = [record.getMessage() for record in caplog.records if "agentd run" in record.getMessage()]
    assert len(cures) == 1
    assert str(path) in cures[0]
    daemon = Daemon(path)
    try:
        assert client.flush().ok
        run.complete()
        assert client.flush().ok
        assert daemon.hellos[0]["lost"] == {"no_daemon:event": 42}
        assert daemon.hellos[0]["emitted"] == 52
        kinds = [record["kind"] for record in daemon.records]
        assert (kinds[0], kinds[-1]) == ("run.start", "run.complete")
        lost = daemon.records[-2]
        assert (lost["type"], lost["level"]) == ("agentd.lost", "warn")
        assert lost["payload"] == {
            "records": 42,
            "cause": "no_daemon",
            "causes": {"no_daemon": 42},
            "kinds": {"event": 42},
        }
        assert "kept" in numbers(daemon.records)
    finally:
        client.close()
        daemon.close()


def test_an_older_daemon_gets_only_what_it_knows(daemon, client):
    """Kinds that the hello does not name stay here, counted as lost, cause unsupported."""
    daemon.hello = {**daemon.hello, "kinds": sorted(set(KINDS) - {"crm_sync"})}
    client.record_crm_sync("d", sync_status="written")
    client.heartbeat()
    assert client.flush().ok
    assert [record["kind"] for record in daemon.records] == ["heartbeat"]
    assert client.dropped.by_cause == {"unsupported": 1}


@pytest.mark.parametrize(
    "answer", [{"error": "too many connections"}, CLOSE, {"hello": 1, "kinds": 5, "max_frame_bytes": "x"}]
)
def test_a_strange_hello_is_survived(daemon, client, answer):
    """A refused hello is tried again later, and a hello that says nonsense limits nothing."""
    good = daemon.hello
    daemon.hello = answer
    client.heartbeat()
    daemon.wait(lambda: len(daemon.hellos) > (0 if isinstance(answer, dict) and "hello" in answer else 1))
    daemon.hello = good
    assert client.flush().ok


def test_an_answer_that_is_none_begins_the_connection_anew(daemon, client):
    """What can't be read, and an error about the connection itself, lead to a new connection and the same bytes."""
    answers = iter([{"error": "JSON is malformed"}, [1]])
    daemon.script = lambda envelope: next(answers, None) or accept(envelope)
    client.heartbeat()
    assert client.flush().ok
    assert len(daemon.frames) == 3
    assert len(set(daemon.frames)) == 1


def test_an_idle_client_sleeps(daemon, client, monkeypatch):
    """No periodic wake-ups: once all is answered the thread does nothing until the next emit."""
    client.heartbeat()
    assert client.flush().ok
    link = client._channel._link
    waits = []
    wait = link._wait
    monkeypatch.setattr(link, "_wait", lambda timeout: waits.append(timeout) or wait(timeout))
    client.heartbeat()
    assert client.flush().ok
    until(
        lambda: client._channel._idle and waits[-1] is None
    )  # without a time limit: only an emit or the daemon ends it
    client.heartbeat()
    assert client.flush().ok


def test_log_decision_waits_for_the_disk(daemon, client):
    """With `wait` it returns once the decision is on disk, or raises NotStored with the reason."""
    decision = client.log_decision("x", wait=5.0)
    assert daemon.records[0]["decision_id"] == decision.decision_id
    daemon.script = lambda envelope: {
        "seq": envelope["seq"],
        "accepted": 0,
        "rejected": [{"index": 0, "error": "$.x: no"}],
    }
    with pytest.raises(NotStored, match=re.escape("refused: $.x: no")):
        client.log_decision("y", wait=5.0)
    daemon.script = lambda envelope: SILENT
    with pytest.raises(NotStored, match=r"no answer within 0\.05 s"):
        client.log_decision("z", wait=0.05)
    assert issubclass(NotStored, AgentdError)
    assert balanced(client).buffered == 1


async def test_the_async_client_waits_with_await(daemon, make):
    """The same names, with `await` where one waits."""
    async with make(AsyncClient) as client:
        async with client.start_run() as run, run.start_span("s"):
            run.emit("x")
            decision = await client.log_decision("x", wait=5.0)
            assert decision.run_id == run.run_id
        assert (await client.flush()).ok
        assert (await client.flush(until="delivered")).until == "delivered"
        daemon.script = lambda envelope: {"seq": envelope["seq"], "error": "unrouted"}
        with pytest.raises(NotStored, match="unrouted"):
            await client.log_decision("y", wait=5.0)
        client.log_decision("not awaited")
        await client.flush()
        daemon.script = lambda envelope: SILENT
        with pytest.raises(NotStored):
            await client.log_decision("z", wait=0.05)
        assert not await client.flush(timeout=0.05)
        asyncio.get_running_loop().call_later(0.05, daemon.drop)
        daemon.script = accept
        assert await client.flush()
    assert balanced(client).refused == 2
    client.heartbeat()
    assert client.dropped.by_cause == {"closed": 1}


def test_flush_until_delivered_asks_the_daemon(daemon, client):
    """`delivered` waits for the disk here and for the platforms there, and says what is left."""
    client.heartbeat()
    assert client.flush(until="delivered")
    assert re.fullmatch(r"POST /v1/flush\?until=delivered&timeout=[45]\.\d+ HTTP/1\.1", daemon.requests[0])
    daemon.flush_answer = (
        200,
        {"flushed": False, "left": {"agentos": 5}, "waited_s": 1, "reason": "agentos is paused"},
    )
    result = client.flush(timeout=1, until="delivered")
    assert (result.ok, result.left, result.reason) == (False, {"agentos": 5}, "agentos is paused")
    daemon.flush_answer = (403, {"error": {"code": "forbidden", "message": "flush needs an admin uid"}})
    result = client.flush(until="delivered")
    assert (result.ok, result.reason) == (False, "the daemon refused (403): flush needs an admin uid")
    daemon.flush_answer = (200, b"nonsense")
    assert "did not answer" in client.flush(until="delivered").reason


def test_a_daemon_that_is_required_and_missing(make, path, monkeypatch):
    """AGENTD_REQUIRED=1 makes Client() fail without a daemon, within 2 s, and leaves no thread behind."""
    monkeypatch.setenv("AGENTD_REQUIRED", "1")
    before = threading.active_count()
    began = time.monotonic()
    with pytest.raises(NoDaemon, match=re.escape(str(path))) as caught:
        make()
    assert time.monotonic() - began < 3.5
    assert isinstance(caught.value, ConnectionError)
    assert isinstance(caught.value, AgentdError)
    until(lambda: threading.active_count() == before)
    monkeypatch.setenv("AGENTD_DISABLED", "1")
    assert make().disabled, "a client that is turned off requires nothing"


def test_a_daemon_that_is_required_and_there(daemon, make, monkeypatch):
    """With a daemon the client is connected when it is made."""
    monkeypatch.setenv("AGENTD_REQUIRED", "1")
    make()
    assert len(daemon.hellos) == 1


@pytest.mark.parametrize(("word", "disabled"), [("1", True), ("allow", True), ("0", False), ("", False)])
def test_the_environment_turns_a_client_off(make, monkeypatch, word, disabled):
    """AGENTD_DISABLED decides when the client is made."""
    monkeypatch.setenv("AGENTD_DISABLED", word)
    assert make().disabled is disabled


def test_after_close_emits_are_counted_as_lost(daemon, make, caplog):
    """`with Client()` flushes at the end; what comes later is lost, cause closed, and told once."""
    heard = []
    with make(on_error=lambda cause, example: heard.append(cause)) as client:
        run = client.start_run()
    assert len(daemon.records) == 1
    run.emit("late")
    run.complete()
    client.log_decision("late")
    assert client.dropped.by_cause == {"closed": 3}
    assert heard == ["closed"]
    with pytest.raises(NotStored, match="closed"):
        client.log_decision("late", wait=1.0)
    assert client.flush().ok
    client.close()
    assert balanced(client).accepted == 1


def test_what_is_left_at_close_is_counted(make):
    """Without a daemon a close counts what it could not send."""
    client = make()
    client.start_run()
    client.close(0.05)
    assert balanced(client).lost_by == {"closed:run.start": 1}


def test_a_client_that_nobody_holds_ends_its_thread(daemon, path):
    """Clients that come and go leave neither threads nor connections behind, and send what they had."""
    before = threading.active_count()
    for _ in range(3):
        Client(socket=str(path)).heartbeat()
    gc.collect()
    daemon.wait(lambda: len(daemon.frames) == 3)
    until(lambda: not [thread for thread in threading.enumerate() if thread.name == "agentd"])
    assert threading.active_count() <= before + 3  # the daemon's own threads, one for each connection


def test_a_lost_connection_comes_back_while_a_run_is_open(daemon, client):
    """The daemon can tell a silent agent from a dead one: while a run is open the connection is kept up."""
    run = client.start_run()
    assert client.flush().ok
    daemon.drop()
    daemon.wait(lambda: len(daemon.hellos) == 2)
    run.complete()
    assert client.flush().ok


def test_an_emit_in_the_middle_of_an_emit(daemon, client):
    """A signal handler or a finalizer may emit while an emit is under way: nothing blocks, nothing is lost."""
    channel = client._channel
    run = client.start_run()
    channel.never("event", "", "made_up", "", Ticket(lambda: run.emit("inner", 1)))
    channel._guarded(lambda: run.emit("inner", 2))
    assert client.flush().ok
    assert numbers(daemon.records) == [1, 2]
    assert balanced(client).emitted == 4


def test_an_emit_that_interrupts_an_emit_comes_after_it(make):
    """What is emitted from inside an emit is the younger of the two, and never finds the buffer half changed."""
    client = make(max_buffer_records=1)
    run = client.start_run()
    ticket = Ticket(lambda: run.emit("inner", level="error"))
    client._sender.record("heartbeat", {}, KEEP, ticket)
    run.emit("outer", level="error")
    assert ticket.state == "lost"
    (left,) = client._channel._buffer.take(10, 10**6)
    assert b'"inner"' in render(left.data)
    assert left.number == 4
    client._channel._buffer.park(left)


def test_emits_from_a_signal_handler(daemon, client):
    """Signals that interrupt emits at any point leave the books in balance."""
    run = client.start_run()
    previous = signal.signal(signal.SIGALRM, lambda *_: run.emit("signal"))
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        for n in range(20_000):
            run.emit("x", n)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert client.flush(30).ok
    stats = balanced(client)
    assert stats.lost + stats.accepted == stats.emitted > 20_000
    found = [record["payload"] for record in daemon.records if record.get("type") == "x"]
    assert found == sorted(set(found))
    told = [record["payload"]["records"] for record in daemon.records if record.get("type") == "agentd.lost"]
    assert sum(told) <= stats.lost


def test_emits_from_many_threads(daemon, client):
    """Each thread's records arrive in its own order, and every one is counted."""
    run = client.start_run()

    def work(name):
        for n in range(500):
            run.emit("x", [name, n])

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client.flush(30).ok
    found = numbers(daemon.records)
    assert len(found) == 2000
    for name in range(4):
        assert [n for who, n in found if who == name] == list(range(500))


def test_a_thread_that_fails_is_started_again(daemon, client, monkeypatch, caplog):
    """Even a fault of the client's own costs no record: a later emit starts the thread anew."""
    monkeypatch.setattr("agentd.client.channel._RESTART_S", 0.0)
    client.heartbeat()
    assert client.flush().ok
    monkeypatch.setattr(client._channel, "hurry", lambda: 1 / 0)
    client.heartbeat()
    until(lambda: client._channel._link is None)
    monkeypatch.undo()
    monkeypatch.setattr("agentd.client.channel._RESTART_S", 0.0)
    client.heartbeat()
    assert client.flush().ok
    assert "thread ended" in caplog.text
    assert balanced(client).accepted == 3


def test_records_above_the_limit_are_cut_and_counted(daemon, make):
    """Above max_record_bytes the longest strings are cut, marked and counted."""
    client = make(max_record_bytes=2000)
    client.start_run().emit("x", {"long": "y" * 10_000, "short": "z"})
    assert client.flush().ok
    payload = daemon.records[1]["payload"]
    assert payload["short"] == "z"
    assert re.fullmatch(r"y+…\[cut \d+ characters\]", payload["long"])
    assert balanced(client).cut == 1


def run_child(code, path, **env):
    """Run Python code in a process of its own, against the socket at `path`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AGENTD_")}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**clean, "AGENTD_SOCKET": str(path), **env},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_what_waits_at_exit_is_sent(daemon, path):
    """A process that ends right after its last emit, by an exception too, has its records stored."""
    code = "from agentd import Client; run = Client().start_run(); [run.emit('x', n) for n in range(1000)]; raise SystemExit(3)"
    done = run_child(code, path)
    assert (done.returncode, done.stderr) == (3, "")
    assert numbers(daemon.records) == list(range(1000))


def test_an_exit_without_a_daemon_is_quick_and_says_what_was_left(path):
    """Where no daemon ever answered nobody waits for one at the end."""
    code = "import time; from agentd import Client; Client().start_run(); print(time.time())"
    done = run_child(code, path)
    assert time.time() - float(done.stdout) < 1.5
    assert "1 records were not stored before the process ended" in done.stderr


def test_an_exit_with_a_stalled_daemon_ends_in_time(daemon, path):
    """exit_timeout bounds the wait."""
    daemon.script = lambda envelope: SILENT
    code = "import time; from agentd import Client; Client(exit_timeout=0.2).start_run(); print(time.time())"
    done = run_child(code, path)
    assert 0.15 < time.time() - float(done.stdout) < 2.0
    assert "1 records were not stored" in done.stderr


FORK = """
import os, sys
from agentd import Client
client = Client()
with client.start_run(run_id="r") as run:
    run.emit("x", "before")
    if {flushed}: client.flush()
    child = os.fork()
    if child == 0:
        run.emit("x", "child")
        with client.start_run(): pass
        ok = client.flush().ok
        stats = client.stats()
        sys.exit(0 if ok and stats.emitted == stats.accepted == 3 else 1)
    run.emit("x", "parent")
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize("flushed", [True, False])
def test_after_a_fork_both_sides_work(daemon, path, flushed):
    """The child has a stream and an empty buffer of its own; what waited is the parent's, and so is the run's end."""
    done = run_child(FORK.format(flushed=flushed), path)
    assert (done.returncode, done.stderr) == (0, "")
    assert len({hello["stream"] for hello in daemon.hellos}) == 2
    assert sorted(numbers(daemon.records)) == ["before", "child", "parent"]
    ends = [record for record in daemon.records if record["kind"] == "run.complete" and record["run_id"] == "r"]
    assert len(ends) == 1


MULTI = """
import multiprocessing, sys
from agentd import Client
client = Client()
def work(n):
    client.start_run().emit("x", n)
if __name__ == "__main__":
    context = multiprocessing.get_context({method!r})
    client.heartbeat()
    children = [context.Process(target=work, args=(n,)) for n in range(2)]
    [child.start() for child in children]
    [child.join() for child in children]
    sys.exit(sum(child.exitcode for child in children))
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_of_multiprocessing_send_what_they_have(daemon, path, tmp_path, method):
    """multiprocessing ends its children without atexit; their records are stored all the same."""
    script = tmp_path / "script.py"
    script.write_text(MULTI.format(method=method))
    done = (
        run_child(f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')", path)
        if method == "fork"
        else None
    )
    if done is None:
        env = {**os.environ, "AGENTD_SOCKET": str(path)}
        done = subprocess.run(
            [sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=30, check=False
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(numbers(daemon.records)) == [0, 1]
    assert len({hello["stream"] for hello in daemon.hellos}) == 3


NOOP = """
import asyncio, sys, threading
from agentd import AsyncClient, Client
asyncio.new_event_loop().close()
events = []
sys.addaudithook(lambda name, args: events.append(name) if name.startswith(("socket.", "open", "os.", "subprocess")) else None)
client = Client(**{options})
with client.start_run(input=object()) as run, run.start_task("t"), run.start_span("s"):
    run.emit("x", {{"a": 1}})
    client.log_decision("x", wait=1.0)
client.flush(until="delivered")
client.close()
found = [name for name in events]
assert threading.enumerate() == [threading.main_thread()], threading.enumerate()
assert found == [], found
assert "agentd.client.channel" not in sys.modules
"""


@pytest.mark.parametrize(("options", "env"), [({"disabled": True}, {}), ({}, {"AGENTD_DISABLED": "1"})])
def test_no_op_mode_touches_nothing(daemon, path, options, env):
    """No-op mode by argument and by environment: the same objects, no socket, no thread, no file."""
    done = run_child(NOOP.format(options=options), path, **env)
    assert (done.returncode, done.stderr) == (0, "")
    assert daemon.hellos == []


def test_importing_agentd_loads_the_client_and_the_vocabulary_alone(daemon, path):
    """An agent pays for the client only: none of the daemon's rooms and none of its libraries is loaded."""
    code = (
        "import sys, agentd; before = {m for m in sys.modules if m.startswith('agentd')}; assert before == {'agentd'}, before\n"
        "from agentd import AsyncClient, Client; c = Client(); c.heartbeat(); assert c.flush()\n"
        "print(*sorted(m for m in sys.modules if m.split('.')[0] in "
        "('agentd', 'aiohttp', 'diskcache', 'click', 'rich', 'prometheus_client', 'sqlite3', 'http')))"
    )
    done = run_child(code, path)
    assert done.stderr == ""
    vocabulary = {"agentd", *(f"agentd.{name}" for name in ("errors", "explain", "paths", "records", "wire"))}
    rest = set(done.stdout.split()) - vocabulary
    assert all(name.startswith("agentd.client") for name in rest), rest


def test_the_folder_in_tmp_has_to_be_ours():
    """In /tmp anyone could put up a daemon: the folder must be owned by this user and closed to others."""
    from agentd.client.find import find_socket

    with tempfile.TemporaryDirectory(prefix="agentd-", dir="/tmp") as folder, socket.socket(socket.AF_UNIX) as listener:
        place = f"{folder}/agentd.sock"
        listener.bind(place)
        assert find_socket({}, place) == place
        Path(folder).chmod(0o755)
        with pytest.raises(NoDaemon, match="mode 0700"):
            find_socket({}, place)
        Path(folder).chmod(0o700)
        link = f"{folder}x"
        Path(link).symlink_to(folder)
        with pytest.raises(NoDaemon, match="not a folder"):
            find_socket({}, f"{link}/agentd.sock")
        Path(link).unlink()
    with pytest.raises(NoDaemon, match="no such file"):
        find_socket({}, place)


def test_every_place_that_was_tried_is_named(tmp_path):
    """The daemon is looked for in the daemon's own places, and the error says why each was not it."""
    from agentd.client.find import find_socket

    (tmp_path / "file").touch()
    with pytest.raises(NoDaemon, match="not a socket"):
        find_socket({"AGENTD_SOCKET": str(tmp_path / "file")})
    with pytest.raises(NoDaemon, match="107 bytes"):
        find_socket({}, "/" + "x" * 107)
