"""`agentd run`, as far as it needs no daemon."""

from __future__ import annotations

import signal

import pytest
from click.testing import CliRunner

from agentd import signals
from agentd.cli import main
from agentd.errors import ConfigError


@pytest.fixture
def handlers():
    """Those of the process as they were before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_hangup_kills_from_no_moment_of_the_start_on(monkeypatch, handlers):
    """SIGHUP and SIGUSR1 are caught before the configuration is read, which may take its time."""
    seen = []

    def load():
        seen.extend(signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGUSR1))
        raise ConfigError("far enough")

    monkeypatch.setattr("agentd.cli.run.load_config", load)
    monkeypatch.setattr("faulthandler.enable", lambda *_: None)
    done = CliRunner().invoke(main, ["run"])
    assert (done.exit_code, seen) == (78, [signals._keep] * 2)
