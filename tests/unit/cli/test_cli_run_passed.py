"""`agentd run`: what the service manager passes goes before the configuration's place, and contradicts it never in silence."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from agentd.cli.run import _with
from agentd.errors import ConfigError
from agentd.paths import socket_path
from agentd.sections import Config, Listen, Loaded, SpoolConfig

USUAL = socket_path(os.environ, os.getuid())


def settled(configured=USUAL, **given):
    loaded = Loaded(Config(listen=Listen(socket=configured), spool=SpoolConfig("/state")), "agentd.toml")
    return _with(loaded, **({"socket": None, "state": None, "passed": None} | given)).config


def test_the_command_line_goes_before_the_file():
    """`--socket` and `--state`."""
    config = settled("/from/file", state="/other")
    assert (config.listen.socket, config.spool.directory) == ("/from/file", "/other")
    assert settled("/from/file", socket="/from/line").listen.socket == "/from/line"


def test_a_socket_that_was_passed_is_where_agentd_is():
    """Where the configuration says nothing, or the same, the status shows systemd's."""
    assert settled(passed="/srv/agentd.sock").listen.socket == "/srv/agentd.sock"
    assert settled("/srv/agentd.sock", passed="/srv/agentd.sock").listen.socket == "/srv/agentd.sock"


def test_two_sockets_are_one_too_many():
    """The configuration names another one: agents that follow it would find nobody there."""
    with pytest.raises(ConfigError, match=r"/etc/other.sock, and systemd listens at /srv/agentd.sock"):
        settled("/etc/other.sock", passed="/srv/agentd.sock")


def test_what_systemd_passes_wrongly_is_a_bad_configuration():
    """Exit code 78 before anything is opened."""
    done = subprocess.run(
        [sys.executable, "-m", "agentd", "run"],
        env={**os.environ, "LISTEN_FDS": "1", "LISTEN_PID": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, "systemd has passed its sockets to another" in done.stderr) == (78, True)
