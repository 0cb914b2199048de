"""The daemon's start, as far as it needs neither disk nor socket."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from agentd.daemon import Daemon
from agentd.errors import StateError
from agentd.sections import Config, Destination, Listen, Loaded, Secret, SpoolConfig


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


async def test_nothing_is_deleted_for_its_age_before_the_clock_had_time_to_be_put_right(daemon, monkeypatch):
    """A wall clock that is years ahead at the start: for the first minutes nothing counts as old, afterwards what is old does."""
    monkeypatch.setattr("agentd.daemon._TICK_S", 0)
    monkeypatch.setattr("agentd.daemon._SETTLED_TICKS", 3)
    ages, idle = [], SimpleNamespace(tick=lambda *_: None)
    week_ago = daemon._clocks.now_us() - 7 * 86_400 * 10**6
    spool = SimpleNamespace(tick=lambda age_us, _keep_us: ages.append(age_us(week_ago) // (86_400 * 10**6)))
    control = SimpleNamespace(queues=idle)
    task = asyncio.create_task(daemon._housekeeping(control, spool, idle, idle, idle, idle))
    while len(ages) < 5:
        await asyncio.sleep(0)
    task.cancel()
    assert ages[:5] == [0, 0, 0, 7, 7]


async def test_a_start_on_a_network_file_system_is_refused(tmp_path, monkeypatch):
    """Promise 1: before a folder is made or a socket is there, in one line that says what would be right."""
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text("1 0 0:1 / / rw - nfs4 nas:/export rw\n")
    monkeypatch.setattr("agentd.filesystems.look.__defaults__", (mountinfo,))
    cloud = Destination("agentos", "https://example.com", "a", api_key=Secret(env="KEY"))
    config = Config(
        listen=Listen(socket=str(tmp_path / "a.sock")),
        spool=SpoolConfig(directory=str(tmp_path / "state")),
        destinations={"cloud": cloud},
    )
    with pytest.raises(StateError, match=r"network file system .nfs4 at /.* choose a folder on a disk of this machine"):
        await Daemon(Loaded(config, None), {"KEY": "k"}, beside=True).run()
    assert [path.name for path in tmp_path.iterdir()] == ["mountinfo"]
