"""Seeing the real daemon at work: the exit code of `status`, `top` on a terminal, `tail` while records come."""

import contextlib
import json
import signal
import subprocess
import sys

import pytest
from harness import Frames, Producer, clean_environment, deal, wait_for
from pty_kit import OnTerminal

AGENTD = (sys.executable, "-m", "agentd")


def _status(world, daemon, *options):
    done = world.cli("--config", str(daemon.config), "status", *options)
    return done.returncode, done.stdout


@contextlib.contextmanager
def _running(world, daemon, *arguments):
    """`agentd …` as a child, with a pipe to read from."""
    command = [*AGENTD, "--config", str(daemon.config), *arguments]
    environment = clean_environment(world.folder)
    pipe = subprocess.PIPE
    child = subprocess.Popen(command, env=environment, cwd=world.folder, stdout=pipe, stderr=pipe, text=True)
    with child:
        try:
            yield child
        finally:
            child.kill()


def _listen(daemon, count=1):
    """Wait until so many do."""
    wait_for(lambda: daemon.status()["intake"]["tails"] == count, 10)


def test_the_exit_code_follows_the_daemons_health(world):
    """0 in good health, 3 with the reason while a platform is away, 0 when it is back, 1 when no daemon runs."""
    daemon = world.daemon()
    with Frames(daemon) as client:
        client.deliver(world.ledger, world.ledger.whole_run("r", 3))
        daemon.drained()
        assert _status(world, daemon)[0] == 0
        world.platform.down()
        client.deliver(world.ledger, [world.ledger.start("r3")])
        wait_for(lambda: daemon.books()["state"] == "waiting")
        code, shown = _status(world, daemon, "--json")
        document = json.loads(shown)
        assert (code, document["healthy"]) == (3, False)
        assert [(one["what"], one["destination"]) for one in document["degraded"]] == [("waiting", "agentos")]
        code, shown = _status(world, daemon)
        assert code == 3
        assert "  ! waiting: no connection to " in shown
        world.platform.up()
        daemon.drained()
    assert _status(world, daemon)[0] == 0
    assert daemon.stop() == 0
    code, shown = _status(world, daemon)
    assert code == 1
    assert shown.startswith("agentd 0.1.0  stopped\n")
    daemon.start()


def test_top_on_a_terminal(world):
    """Figures that move, keys, another size; a daemon that dies and comes back; and the terminal as it was."""
    daemon = world.daemon(batch={"max_interval": "30s", "max_events": 50})
    command = ("-m", "agentd", "--config", str(daemon.config), "top", "--interval", "100ms")
    environment = clean_environment(world.folder, TERM="xterm")
    with (
        OnTerminal(*command, columns=120, lines=20, env=environment, cwd=world.folder) as screen,
        Frames(daemon) as client,
    ):
        screen.until("every 100ms")
        client.deliver(world.ledger, [world.ledger.start("r"), *world.ledger.events_of("r", 5)])
        screen.until("run:r ")
        assert len(screen.frame) == 20
        screen.press("s")
        screen.until("largest first")
        screen.press("d")
        screen.until("lanes of agentos, largest first")
        screen.press("?")
        screen.until("in/s, out/s")
        screen.press("?")
        screen.resize(80, 12)
        screen.until(lambda: len(screen.frame) == 12 and "lanes of agentos" in "\n".join(screen.frame))
        screen.press(" ")
        screen.until("PAUSED")
        screen.press(" ")
        screen.until(lambda: "PAUSED" not in "\n".join(screen.frame))
        daemon.kill()
        screen.until("no daemon at")
        daemon.start()
        screen.until(lambda: "no daemon at" not in "\n".join(screen.frame) and "every 100ms" in "\n".join(screen.frame))
        screen.press("q")
        assert screen.code() == 0
        assert screen.is_as_before()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_top_gives_the_terminal_back(world, number, code):
    """Also where it is ended from outside."""
    daemon = world.daemon()
    command = ("-m", "agentd", "--config", str(daemon.config), "top")
    with OnTerminal(*command, env=clean_environment(world.folder, TERM="xterm"), cwd=world.folder) as screen:
        screen.until("agentos")
        screen.signal(number)
        assert screen.code() == code
        assert screen.is_as_before()


def test_top_without_a_terminal(world):
    """A snapshot for each interval, as plain lines; one with `--once`."""
    daemon = world.daemon()
    with _running(world, daemon, "top", "--interval", "100ms") as child:
        heads = []
        while len(heads) < 3:
            line = child.stdout.readline()
            heads += [line] if line.startswith("agentd ") else []
        assert all("every 100ms" in head for head in heads)
    done = world.cli("--config", str(daemon.config), "top", "--once")
    assert (done.returncode, done.stdout.count("every 1s"), "\x1b" in done.stdout) == (0, 1, False)


def test_tail_shows_what_comes(world):
    """What is queued first, then each record as it is stored, without its secrets; filtered; Ctrl-C ends it with 130."""
    world.platform.down()
    daemon = world.daemon()
    secret = "ghp_" + "a1B2c3D4e5" * 3 + "f6G7h8"
    with Frames(daemon) as client:
        client.deliver(world.ledger, [world.ledger.start("r"), *world.ledger.events_of("r", 3)])
        options = ("tail", "--json", "-n", "2", "--kind", "event", "--run", "r", "--level", "warn")
        with (
            _running(world, daemon, "tail", "--json", "-n", "2") as all_of_it,
            _running(world, daemon, *options) as some,
        ):
            before = [json.loads(all_of_it.stdout.readline()) for _ in range(2)]
            assert [one["record"]["payload"]["n"] for one in before] == [1, 2]
            _listen(daemon, 2)
            client.deliver(world.ledger, [world.ledger.event("r", note=f"token {secret}")])
            client.deliver(world.ledger, [world.ledger.event("r", level="error"), world.ledger.end("r")])
            shown = [json.loads(all_of_it.stdout.readline()) for _ in range(3)]
            assert [one["kind"] for one in shown] == ["event", "event", "run.complete"]
            assert secret not in json.dumps(shown)
            assert "[redacted:" in shown[0]["record"]["payload"]["note"]
            assert json.loads(some.stdout.readline())["record"]["payload"]["n"] == 4
            for child in (all_of_it, some):
                child.send_signal(signal.SIGINT)
                assert child.wait(10) == 130
    world.platform.up()


def test_a_tail_that_is_not_read_holds_up_nobody(world):
    """Records are taken as fast as ever; the reader is told how many it has missed, and what it has shown and missed is all of them."""
    daemon = world.daemon()
    with _running(world, daemon, "tail", "--json") as child:
        _listen(daemon)
        records = deal(world.ledger, 12_000, 20)
        Producer(daemon, world.ledger, records).join()
        daemon.drained()
        shown = missed = 0
        while shown + missed < len(records):
            line = json.loads(child.stdout.readline())
            missed += line.get("not_shown", 0)
            shown += "record" in line
        assert shown + missed == len(records)
        assert missed > 0
        assert shown > 1000


def test_a_tail_whose_pipe_is_closed_ends(world):
    """`agentd tail | head -1`: no traceback, and nobody listens any more."""
    daemon = world.daemon()
    with _running(world, daemon, "tail") as child, Frames(daemon) as client:
        _listen(daemon)
        client.deliver(world.ledger, world.ledger.whole_run("r", 3))
        child.stdout.readline()
        child.stdout.close()

        def ended():
            client.deliver(world.ledger, world.ledger.whole_run(f"r{len(world.ledger.runs)}", 1))
            return child.poll() is not None

        wait_for(ended, 10)
        _listen(daemon, 0)
        assert "Traceback" not in child.stderr.read()


@pytest.mark.parametrize("killed", [False, True], ids=["stopped", "killed"])
def test_the_end_of_the_daemon_ends_a_tail(world, killed):
    """It waits for nobody who listens, and they are told; also where it was killed."""
    daemon = world.daemon()
    with _running(world, daemon, "tail") as child:
        _listen(daemon)
        if killed:
            daemon.kill()
        else:
            assert daemon.stop(within_s=5) == 0
        assert child.wait(10) == 1
        assert child.stderr.read() == "agentd: the daemon has ended\n"
