"""Another configuration while records flow: nothing is lost, doubled or reordered, and a bad one changes nothing."""

import http.client
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
from harness import AGENT, Frames, Ledger, Platform, Producer, http_call, wait_for

SIDE = "side"  # the agent whose records go to the second destination


def reload(daemon):
    status, answer = http_call(daemon.socket, "POST", "/-/reload")
    assert status == 200, (answer, daemon.tail())
    return answer


def refused(daemon):
    """The reason why a reload changed nothing."""
    daemon.expected.add("reload_failed")
    status, answer = http_call(daemon.socket, "POST", "/-/reload")
    assert (status, answer["error"]["code"]) == (422, "bad_configuration"), answer
    return answer["error"]["message"]


def forget(daemon, section):
    """Take a section out of the file."""
    daemon._sections.pop(section)
    daemon.configure()


def runs_of(ledger, producer, count, events):
    """Whole runs, each event's place in it known."""
    return [record for n in range(count) for record in ledger.whole_run(f"p{producer}-{n}", events)]


def numbers(platform, run):
    found = platform.run(run)
    return [event["payload"]["n"] for event in found["events"]] if found else []


class Second:
    """A second destination on a platform of its own, for the agent `side` alone; `begin` and `leave` are reloads."""

    def __init__(self, world, daemon):
        self.platform = Platform()
        world.on_exit(self.platform.close)
        self.daemon = daemon
        self.ledger = Ledger()
        self.section = {
            "platform": "agentos", "base_url": self.platform.url, "agent_id": AGENT, "api_key": {"env": "KEY"},
            "agents": {SIDE: AGENT}, "copy": True,
        }  # fmt: skip

    def begin(self, **more):
        self.daemon.configure(**{"destinations.second": {**self.section, **more}})
        return reload(self.daemon)

    def leave(self):
        forget(self.daemon, "destinations.second")
        return reload(self.daemon)

    def send(self, run, events):
        records = [{**record, "agent_id": SIDE, "to": "second"} for record in self.ledger.whole_run(run, events)]
        with Frames(self.daemon) as client:
            assert client.deliver(self.ledger, records) == {}

    def check(self):
        """Every run that was acknowledged is there, once and in order."""
        for run in self.ledger.runs:
            assert numbers(self.platform, run) == sorted(self.ledger.events[run]), run
        assert self.platform.state().duplicates == 0


def test_destinations_come_change_and_go_while_records_flow(world):
    """Promises 1 and 2 over reloads: what another destination's coming and going costs those that stay is nothing."""
    daemon = world.daemon(destination={"copy": True})
    second = Second(world, daemon)
    producers = [
        Producer(daemon, world.ledger, runs_of(world.ledger, p, 40, 50), frame=20, pause_s=0.004) for p in range(3)
    ]
    turns = 0
    while turns < 6 or not all(producer.done for producer in producers):
        assert list(second.begin(max_in_flight=1 + turns % 3)["added"]) == ["second"]
        second.send(f"side-{turns}", 60)
        daemon.configure(
            batch={"max_events": 5 + turns % 40}, **{"destinations.agentos": {"timeout": f"{20 + turns}s"}}
        )
        assert set(reload(daemon)["changed"]["agentos"]) == {"timeout", "batch"}
        assert list(second.leave()["removed"]) == ["second"]
        turns += 1
    for producer in producers:
        producer.join()
    assert daemon.status()["reloads"]["done"] == 3 * turns
    second.begin()
    daemon.drained(destination="second")
    second.check()


def test_a_removed_destinations_queue_is_kept_and_named_and_goes_on_when_it_is_back(world):
    """What waits is not thrown away: status and log name it, over a restart too, and the same destination takes it up again."""
    daemon = world.daemon(destination={"copy": True})
    second = Second(world, daemon)
    second.begin()
    second.platform.down()
    second.send("before", 200)
    wait_for(lambda: daemon.books("second")["state"] == "waiting")
    answer = second.leave()
    assert answer["removed"] == {"second": 202}
    books = wait_for(lambda: (found := daemon.books("second"))["state"] == "removed" and found)
    assert (books["queued"], books["balanced"]) == (202, True)
    wait_for(lambda: daemon.entries("removed"))
    with Frames(daemon) as client:
        [error] = client.deliver(
            second.ledger, [{**second.ledger.start("x"), "to": "second", "agent_id": SIDE}]
        ).values()
    assert "no destination 'second'" in error
    daemon.stop()
    daemon.start()
    assert daemon.books("second")["state"] == "removed"
    second.platform.up()
    assert second.begin()["added"] == {"second": 202}
    second.send("after", 20)
    daemon.drained(destination="second")
    second.check()


def test_one_that_moves_while_records_wait_is_refused_with_the_way_out(world):
    """Records go where they were taken for, or nowhere: the reason says what to do, and after that it is done."""
    daemon = world.daemon(destination={"copy": True})
    second = Second(world, daemon)
    second.begin()
    second.platform.down()
    second.send("lost", 5)
    elsewhere = {"base_url": f"{world.platform.url}/", "agents": {SIDE: AGENT}}
    daemon.configure(**{"destinations.second": {**second.section, **elsewhere}})
    text = refused(daemon)
    assert "changed while 7 records wait" in text
    assert "agentd queue drop second" in text
    assert daemon.books("second")["base_url"] == second.platform.url
    dropped = world.cli("queue", "drop", "second", "--reason", "moved", "--yes", "--socket", daemon.socket)
    assert dropped.returncode == 0, dropped.stderr
    assert reload(daemon)["moved"] == ["second"]
    assert daemon.books("second")["base_url"] == f"{world.platform.url}/"
    second.ledger = Ledger()  # what was dropped is not looked for


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda daemon: daemon.config.write_text("[listen\n"), "not TOML"),
        (lambda daemon: daemon.configure(batch={"max_evnets": 5}), "did you mean 'max_events'?"),
        (lambda daemon: daemon.configure(**{"destinations.agentos": {"api_key": {"env": "NONE"}}}), "NONE is not set"),
        (lambda daemon: daemon.configure(spool={"sync": "normal"}), "[spool] sync needs a restart"),
        (lambda daemon: daemon.config.unlink(), "No such file"),
    ],
)  # fmt: skip
def test_a_configuration_that_is_wrong_changes_nothing(world, spoil, reason):
    """Checked first: with whatever fault, by endpoint or signal, the daemon goes on as it was and says why."""
    daemon = world.daemon()
    before = daemon.config.read_text()
    daemon.configure(batch={"max_events": 7})
    spoil(daemon)
    assert reason in refused(daemon)
    daemon.signal(signal.SIGHUP)
    wait_for(lambda: daemon.status()["reloads"]["failed"] == 2)
    assert reason in daemon.status()["reloads"]["last_error"]
    with Frames(daemon) as client:
        assert client.deliver(world.ledger, world.ledger.whole_run("r", 30)) == {}
    daemon.config.write_text(before)
    assert reload(daemon)["changed"] == {}
    assert daemon.status()["reloads"]["last_error"] is None


def test_a_key_is_rotated_without_losing_a_batch(world):
    """A platform that takes the old key no more from one moment on: everything is kept, and goes at once with the new one."""
    key = world.folder / "key"
    key.write_text("aos_old_key_0001\n")
    key.chmod(0o600)
    daemon = world.daemon(
        destination={"api_key": {"file": str(key)}},
        retry={"initial": "20s", "max": "60s"},  # a pause that nobody ends lasts longer than the test
    )
    daemon.expected.add("paused")
    producer = Producer(daemon, world.ledger, runs_of(world.ledger, 0, 30, 40), frame=20, pause_s=0.01)
    wait_for(lambda: daemon.books()["delivered"] > 200)
    world.platform.ask(lambda: setattr(world.platform.sandbox._emulation, "_keys", frozenset({"aos_new_key_0002"})))
    wait_for(lambda: daemon.books()["state"] == "paused")
    producer.join()
    key.write_text("aos_new_key_0002\n")
    assert reload(daemon)["changed"] == {"agentos": ["api_key"]}
    daemon.drained(within_s=15)
    said = "\n".join([daemon.log.read_text(), json.dumps(daemon.status())])
    assert "aos_old_key" not in said
    assert "aos_new_key" not in said


def test_a_sealed_batch_stays_the_same_over_a_reload(world):
    """Promise 4: limits, `inject_id` and kill -9 between two tries change neither its bytes nor its key."""
    daemon = world.daemon(batch={"max_events": 10})
    with Frames(daemon) as client:
        assert client.deliver(world.ledger, [world.ledger.start("r")]) == {}
        daemon.drained()
        world.platform.faults("status=503")
        assert client.deliver(world.ledger, world.ledger.events_of("r", 25)) == {}
    wait_for(lambda: world.platform.repeats(2))
    daemon.configure(batch={"max_events": 3}, **{"destinations.agentos": {"inject_id": False}})
    assert set(reload(daemon)["changed"]["agentos"]) == {"inject_id", "batch"}
    tries = max(repeat.count for repeat in world.platform.repeats(2).values())
    wait_for(lambda: max(repeat.count for repeat in world.platform.repeats(2).values()) > tries)
    daemon.kill()
    daemon.start()
    world.platform.faults()
    daemon.drained()
    world.ledger.took([])
    with Frames(daemon) as client:
        assert client.deliver(world.ledger, [world.ledger.end("r")]) == {}


def catches(process, number):
    """Whether the process has a handler for the signal."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    mask = int(next(line for line in lines if line.startswith("SigCgt:")).split()[1], 16)
    return bool(mask >> (number - 1) & 1)


def test_no_storm_of_hangups_ends_it(world):
    """SIGHUP and SIGUSR1 during the start, under load and while it drains: it reads its file, and lives."""
    daemon = world.daemon(start=False)
    daemon.spawn()
    wait_for(lambda: catches(daemon.process, signal.SIGHUP))
    deadline = time.monotonic() + 20
    while not Path(daemon.socket).exists() and time.monotonic() < deadline:
        daemon.signal(signal.SIGHUP)
        daemon.signal(signal.SIGUSR1)
        time.sleep(0.01)
    wait_for(daemon._is_up, 20, daemon.tail)
    wait_for(lambda: daemon.status()["reloads"]["done"] >= 1)
    producer = Producer(daemon, world.ledger, runs_of(world.ledger, 0, 20, 50), frame=20)
    while not producer.done:
        daemon.signal(signal.SIGHUP)
        time.sleep(0.001)
    producer.join()
    daemon.drained()
    world.platform.down()
    with Frames(daemon) as client:
        assert client.deliver(world.ledger, world.ledger.whole_run("late", 5)) == {}
    daemon.signal(signal.SIGTERM)
    while daemon._reap(os.WNOHANG) is None:
        daemon.signal(signal.SIGHUP)
        time.sleep(0.002)
    assert daemon._code() == 0
    world.platform.up()
    daemon.start()


def test_many_who_ask_at_once_have_the_answer_to_what_they_wrote(world):
    """A reload that is asked for after the file was written has read that file, however many are under way."""
    daemon = world.daemon()
    answers = []

    def ask():
        answers.append(http_call(daemon.socket, "POST", "/-/reload")[0])

    for number in range(5):
        daemon.configure(batch={"max_events": 10 + number})
        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        daemon.configure(batch={"max_events": 100 + number})
        assert reload(daemon)["settings"] == ["batch.max_events"]
    assert answers == [200] * 40


def test_the_log_level_follows_signal_and_file(world):
    """SIGUSR1 makes it talk and be silent again; the file's level is taken up by a reload."""
    daemon = world.daemon()
    daemon.signal(signal.SIGUSR1)
    wait_for(lambda: daemon.entries("log_level")[-1:] and daemon.entries("log_level")[-1]["level"] == "debug")
    daemon.signal(signal.SIGUSR1)
    wait_for(lambda: daemon.entries("log_level")[-1]["level"] == "info")
    daemon.configure(log={"level": "error"})
    assert reload(daemon)["settings"] == ["log.level"]
    written = len(daemon.entries("reloaded"))
    daemon.configure(log={"level": "info"})
    reload(daemon)
    assert len(daemon.entries("reloaded")) == written + 1


def test_what_one_user_may_follows(world):
    """A noisy agent's rate is bounded without a restart, and set free again, on the connection that it has."""
    daemon = world.daemon()
    with Frames(daemon) as client:
        assert client.deliver(world.ledger, world.ledger.whole_run("free", 50)) == {}
        daemon.configure(intake={"max_records_per_second_per_uid": 50})
        assert reload(daemon)["settings"] == ["intake.max_records_per_second_per_uid"]
        begun = time.monotonic()
        for number in range(4):
            assert client.deliver(world.ledger, world.ledger.whole_run(f"slow-{number}", 48)) == {}
        assert time.monotonic() - begun > 1
        forget(daemon, "intake")
        reload(daemon)
        begun = time.monotonic()
        for number in range(10):
            assert client.deliver(world.ledger, world.ledger.whole_run(f"again-{number}", 48)) == {}
        assert time.monotonic() - begun < 5


def test_a_flush_outlives_its_destination(world):
    """Who waits for a destination's delivery hears that it was removed, and how much is kept."""
    daemon = world.daemon(destination={"copy": True})
    second = Second(world, daemon)
    second.begin()
    second.platform.down()
    second.send("kept", 5)
    answers = []

    def flush():
        answers.append(http_call(daemon.socket, "POST", "/v1/flush?until=delivered&timeout=2"))

    thread = threading.Thread(target=flush)
    thread.start()
    time.sleep(0.5)
    second.leave()
    thread.join()
    [(status, answer)] = answers
    assert (status, answer["left"]) == (200, {"second": 7})
    assert "second: removed" in answer["reason"]
    second.platform.up()
    second.begin()
    daemon.drained(destination="second")
    second.check()


def test_the_verb_says_what_changed(world):
    """`agentd reload`: a line for each change, exit 78 with the reason where nothing did, and one JSON document."""
    daemon = world.daemon(destination={"copy": True})
    second = Second(world, daemon)

    def verb(*options):
        done = world.cli("reload", "--socket", daemon.socket, *options)
        return done.returncode, (done.stdout + done.stderr).strip()

    assert verb() == (0, "read again; nothing has changed")
    daemon.configure(
        batch={"max_events": 9}, **{"destinations.second": second.section, "destinations.agentos": {"timeout": "9s"}}
    )
    assert verb() == (0, "second: added\nagentos: timeout, batch\nbatch.max_events")
    daemon.expected.add("reload_failed")
    daemon.configure(spool={"sync": "normal"})
    code, text = verb()
    assert (code, text) == (78, "agentd: not reloaded: [spool] sync needs a restart")
    daemon.configure(spool={"sync": "full"})
    code, text = verb("--json")
    assert (code, json.loads(text)["reloaded"]) == (0, True)


def test_an_sdk_finds_what_was_added_and_not_what_was_removed(world):
    """`/{destination}/…` follows, and so does what agents of a uid may do, on connections that there are."""
    daemon = world.daemon(destination={"copy": True})
    second = Second(world, daemon)
    start = json.dumps({"agent_id": AGENT, "external_run_id": "by-sdk", "input": {}}).encode()

    def call():
        headers = {"Content-Type": "application/json", "Authorization": "Bearer x"}
        return http_call(daemon.socket, "POST", "/second/api/ingest/v1/run/start", start, **headers)[0]

    with Frames(daemon) as client:
        assert call() == 404
        second.begin()
        assert call() == 200
        daemon.drained(destination="second")
        assert second.platform.run("by-sdk") is not None
        second.leave()
        assert call() == 404
        rule = {"uid": os.getuid(), "agent_ids": ["other"]}
        daemon.configure(security={"peers": [rule]})
        assert reload(daemon)["settings"] == ["security.peers"]
        [error] = client.deliver(world.ledger, [{**world.ledger.start("x"), "agent_id": "mine"}]).values()
        assert "not among the agents that you may speak for" in error
        forget(daemon, "security")
        reload(daemon)
        assert client.deliver(world.ledger, world.ledger.whole_run("y", 3)) == {}


def test_tokens_are_exchanged_on_connections_that_there_are(world):
    """A token that was taken away opens nothing any more, also where somebody is connected with it."""
    tokens = world.folder / "token"
    tokens.write_text("first-token-0123456789")
    tokens.chmod(0o600)
    daemon = world.daemon(
        start=False, listen={"http": "127.0.0.1:0"}, security={"tokens": [{"token": {"file": str(tokens)}}]}
    )
    daemon.start()
    host, port = daemon.status()["listen"]["http"].removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)

    def ask(token):
        connection.request("GET", "/v1/status", headers={"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        answer.read()
        return answer.status

    assert ask("first-token-0123456789") == 200
    tokens.write_text("second-token-9876543210")
    assert reload(daemon)["settings"] == ["security.tokens"]
    assert ask("first-token-0123456789") == 401
    assert ask("second-token-9876543210") == 200
    connection.close()


def test_nobody_reloads_a_sidecar_but_by_ending_it(world):
    """In a sidecar the command's uid is no admin: it can't turn the keys' way. SIGHUP is the command's own."""
    script = (
        "import http.client, os, signal, socket, sys\n"
        "got = []\n"
        "signal.signal(signal.SIGHUP, lambda *_: got.append(1))\n"
        "os.kill(os.getppid(), signal.SIGHUP)\n"
        "signal.sigtimedwait([], 5) if not got else None\n"
        "link = socket.socket(socket.AF_UNIX); link.connect(os.environ['AGENTD_SOCKET'])\n"
        "asked = http.client.HTTPConnection('localhost'); asked.sock = link\n"
        "asked.request('POST', '/-/reload'); answer = asked.getresponse()\n"
        "print(answer.status, answer.read().decode(), len(got))\n"
    )
    done = world.cli(
        "sidecar", "--", os.sys.executable, "-c", script,
        AGENTOS_API_KEY="k", AGENTOS_AGENT_ID=AGENT, AGENTOS_BASE_URL=world.platform.url,
        XDG_STATE_HOME=str(world.folder),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    status, *_, hangups = done.stdout.split()
    assert (status, hangups) == ("403", "1")
    assert "within a sidecar for nobody" in done.stdout


def test_over_tcp_a_new_destination_answers_in_its_platforms_words(world):
    """An SDK without a token hears so in the envelope that it understands, also of a destination that a reload brought."""
    daemon = world.daemon(
        start=False, destination={"copy": True}, listen={"http": "127.0.0.1:0"},
        security={"tokens": [{"token": {"env": "TOKEN"}}]},
    )  # fmt: skip
    daemon.environment["TOKEN"] = "token-of-an-agent-0001"
    daemon.start()
    host, port = daemon.status()["listen"]["http"].removeprefix("http://").split(":")

    def answer():
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        connection.request("POST", "/second/api/ingest/v1/run/start", b"{}", {"Content-Type": "application/json"})
        found = connection.getresponse()
        document = json.loads(found.read())
        connection.close()
        return found.status, set(document)

    assert answer() == (401, {"error"})
    second = Second(world, daemon)
    second.begin()
    assert answer() == (401, {"data", "error"})
    second.leave()
    assert answer() == (401, {"error"})


def test_strangers_may_not_reload(world):
    """Over TCP nobody is an admin: a token opens no configuration."""
    daemon = world.daemon(
        start=False, listen={"http": "127.0.0.1:0"}, security={"tokens": [{"token": {"env": "TOKEN"}}]}
    )
    daemon.environment["TOKEN"] = "token-of-an-agent-0001"
    daemon.start()
    host, port = daemon.status()["listen"]["http"].removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as link:
        link.sendall(
            f"POST /-/reload HTTP/1.1\r\nHost: {host}:{port}\r\nX-API-Key: token-of-an-agent-0001\r\n"
            "Content-Length: 0\r\nConnection: close\r\n\r\n".encode()
        )
        assert link.recv(100).startswith(b"HTTP/1.1 403")
    assert daemon.status()["reloads"]["done"] == 0
