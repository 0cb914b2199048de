"""Bad days on the command line: whatever is wrong with configuration or machine, one sentence says so, and no traceback."""

import os
from pathlib import Path

import pytest
from harness import AGENT, Frames

DESTINATION = f"""
[destinations.agentos]
platform = "agentos"
base_url = "http://127.0.0.1:9"
agent_id = "{AGENT}"
api_key = {{ env = "KEY" }}
"""
BAD_CONFIGURATIONS = {
    "not TOML": ("[listen\nsocket=", ["not TOML", "line 1"]),
    "a typo in a key": ("[batch]\nmax_event = 5" + DESTINATION, ["max_event", "did you mean 'max_events'?"]),
    "a typo in a section": ("[btach]\nmax_events = 5" + DESTINATION, ["btach", "did you mean 'batch'?"]),
    "a bad duration": ('[batch]\nmax_interval = "5 parsecs"' + DESTINATION, ["[batch] max_interval", "5 parsecs"]),
    "a bad size": ('[spool]\nmax_bytes = "lots"' + DESTINATION, ["[spool] max_bytes", "lots"]),
    "a word for a number": ('[batch]\nmax_events = "many"' + DESTINATION, ["[batch] max_events"]),
    "a secret in the file": (
        DESTINATION.replace('{ env = "KEY" }', '"aos_agent_s3cret"'),
        ["[destinations.agentos] api_key", "a secret stands in the configuration", "{ file ="],
    ),
    "an unknown platform": (DESTINATION.replace('platform = "agentos"', 'platform = "agentoss"'), ["agentoss"]),
    "a key in the clear": (DESTINATION.replace("127.0.0.1:9", "example.com"), ["http://", "loopback"]),
    "no such kind": (DESTINATION + 'accept = ["evnet"]', ["evnet"]),
    "no destination": ("[batch]\nmax_events = 5", ["AGENTOS_API_KEY", "[destinations"]),
    "no key": (DESTINATION.replace('api_key = { env = "KEY" }', ""), ["[destinations.agentos]", "api_key is missing"]),
    "its variable is not set": (DESTINATION.replace('"KEY"', '"NO_SUCH_KEY"'), ["NO_SUCH_KEY"]),
}


def _one_sentence(stderr):
    """A single line for people, and the secret is not in it."""
    (line,) = stderr.splitlines()
    assert line.startswith("agentd: ")
    assert "s3cret" not in line
    return line


@pytest.mark.parametrize("what", BAD_CONFIGURATIONS)
def test_a_wrong_configuration_is_named(world, what):
    """Section 6: exit code 78, and one line that names the place and what to do."""
    text, words = BAD_CONFIGURATIONS[what]
    path = world.folder / "agentd.toml"
    path.write_text(text)
    state = {"AGENTD_SPOOL__DIRECTORY": str(world.folder / "state"), "AGENTD_LISTEN__SOCKET": str(world.folder / "s")}
    ran = world.cli("--config", str(path), "run", KEY="k", **state)
    assert ran.returncode == 78
    line = _one_sentence(ran.stderr)
    assert all(word in line for word in words), line
    assert not (world.folder / "state").exists()
    checked = world.cli("--config", str(path), "check", KEY="k", **state)
    assert checked.returncode == 78
    assert "s3cret" not in checked.stdout + checked.stderr


def test_a_configuration_that_cannot_be_read_is_named(world):
    """Section 6: missing, or a folder: exit code 78."""
    for path, word in (("/nonexistent/agentd.toml", "No such file"), (str(world.folder), "directory")):
        for verb in ("run", "check", "config"):
            done = world.cli("--config", path, verb)
            assert done.returncode == 78
            assert path in _one_sentence(done.stderr)
            assert word in done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_configuration_that_is_closed_to_us_is_named(world):
    """Section 6: a file that this user may not read is a bad configuration, exit code 78."""
    path = world.folder / "agentd.toml"
    path.write_text(DESTINATION)
    path.chmod(0)
    for verb in ("run", "check"):
        done = world.cli("--config", str(path), verb)
        assert done.returncode == 78
        assert "Permission denied" in _one_sentence(done.stderr)


def test_nothing_configured_at_all_says_what_to_set(world):
    """Section 7: without a file and without a platform's variables it says what to set."""
    places = {"AGENTD_SPOOL__DIRECTORY": str(world.folder / "st"), "AGENTD_LISTEN__SOCKET": str(world.folder / "s")}
    done = world.cli("run", **places)
    if Path("/etc/agentd/agentd.toml").exists():
        pytest.skip("this machine has an /etc/agentd/agentd.toml")
    assert done.returncode == 78
    line = _one_sentence(done.stderr)
    assert "AGENTOS_API_KEY" in line
    assert "agentd demo" in line


def test_a_socket_path_that_is_too_long_is_named(world):
    """A Unix socket's path has at most 107 bytes: it says so, and how many there are."""
    daemon = world.daemon(start=False, listen={"socket": str(world.folder / ("s" * 108))})
    daemon.spawn()
    assert daemon.wait() == 1
    line = _one_sentence(daemon.log.read_text())
    daemon.log.unlink()
    assert "107" in line
    assert "listen.socket" in line
    checked = world.cli("--config", str(daemon.config), "check", KEY="k")
    assert checked.returncode == 78
    assert "107" in checked.stdout


def test_a_socket_path_of_107_bytes_works(world):
    """… and 107 are not too many."""
    name = "s" * (107 - len(str(world.folder)) - 1)
    daemon = world.daemon(listen={"socket": str(world.folder / name)})
    assert len(daemon.socket) == 107
    with Frames(daemon) as client:
        assert client.deliver(world.ledger, world.ledger.whole_run("r", 3)) == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_state_folder_of_somebody_else_is_refused(world):
    """A state folder that belongs to another user is not used: exit code 1, and it says whose it is."""
    daemon = world.daemon(start=False)
    daemon.state.mkdir(mode=0o700)
    os.chown(daemon.state, 65534, 65534)
    daemon.spawn()
    assert daemon.wait() == 1
    line = _one_sentence(daemon.log.read_text())
    daemon.log.unlink()
    assert "belongs to uid 65534" in line
    assert list(daemon.state.iterdir()) == []
    checked = world.cli("--config", str(daemon.config), "check", KEY="k")
    assert checked.returncode == 78
    assert "65534" in checked.stdout


def test_a_state_folder_that_others_may_write_to_is_refused(world):
    """What others can write to is no evidence: exit code 1, and it says chmod 700."""
    daemon = world.daemon(start=False)
    daemon.state.mkdir()
    daemon.state.chmod(0o777)
    daemon.spawn()
    assert daemon.wait() == 1
    assert "chmod 700" in _one_sentence(daemon.log.read_text())
    daemon.log.unlink()


def test_a_state_folder_that_is_a_file_is_named(world):
    """Something else in the state folder's place: exit code 1."""
    daemon = world.daemon(start=False)
    daemon.state.write_text("")
    daemon.spawn()
    assert daemon.wait() == 1
    assert str(daemon.state) in _one_sentence(daemon.log.read_text())
    daemon.log.unlink()


@pytest.mark.parametrize("arguments", [("run", "--no-such-option"), ("rnu",), ("emit",), ("flush", "--timeout", "x")])
def test_a_wrong_command_line_is_usage(world, arguments):
    """Section 6: exit code 2."""
    assert world.cli(*arguments).returncode == 2


@pytest.mark.parametrize("arguments", [("status",), ("flush",), ("dead-letters", "list"), ("emit", "heartbeat")])
def test_a_verb_without_a_daemon_says_how_to_start_one(world, arguments):
    """Section 6: exit code 1, one sentence."""
    done = world.cli(*arguments, AGENTD_SOCKET=str(world.folder / "nobody.sock"))
    assert done.returncode == 1
    assert "agentd run" in _one_sentence(done.stderr)
