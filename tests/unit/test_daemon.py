"""The daemon's start, as far as it needs neither disk nor socket."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from agentd.config import Config, Destination, Loaded, Secret
from agentd.daemon import Daemon


@pytest.fixture
def daemon():
    cloud = Destination("agentos", "https://example.com", "a", api_key=Secret(env="KEY"))
    return Daemon(Loaded(Config(destinations={"cloud": cloud}), None), {"KEY": "k"})


def test_a_removed_destination_with_records_is_named(daemon, caplog):
    """Promise 8: a queue whose destination is not configured any more is kept, and the log says so at the start."""
    queues = {"cloud": SimpleNamespace(live=5), "old": SimpleNamespace(live=3), "empty": SimpleNamespace(live=0)}
    daemon._name_removed(SimpleNamespace(queues=queues))
    [line] = caplog.records
    assert line.getMessage().startswith("3 records wait for destination old, which is not in the configuration")
    assert (line.levelname, line.action, line.destination) == ("WARNING", "removed", "old")
