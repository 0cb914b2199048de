"""A disk that fails, as against one that is full and a row that is damaged: nothing is given up for it, and nothing spins."""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3

import pytest

from agentd.errors import SpoolDamaged, SpoolFull
from agentd.records import LossClass
from agentd.spool import failing, store
from agentd.spool.folder import Folder
from agentd.spool.store import Put, Store, key_of
from agentd.spool.tables import Table

KEY = key_of(Table.SEGMENT, 1)


# -- reading -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path):
    """A store of one row, which SQLite calls malformed."""
    made = Store(tmp_path / "spool", "full")
    made.commit([Put(KEY, os.urandom(200_000))], [])
    made.close()
    path = tmp_path / "spool" / "cache.db"
    made = Store(tmp_path / "spool", "full")
    content = bytearray(path.read_bytes())
    for at in range(4096 * 3, len(content), 4096):
        content[at : at + 4096] = b"\xff" * 4096
    path.write_bytes(content)
    yield made
    made.close()


@pytest.mark.parametrize(("fails", "raised"), [(True, sqlite3.OperationalError), (False, SpoolDamaged)])
def test_a_row_on_a_disk_that_fails_is_not_damaged(damaged, monkeypatch, fails, raised):
    """Promise 8: SQLite says the same of both; only what the disk does give is set aside."""
    monkeypatch.setattr(store, "disk_fails", lambda _: fails)
    with pytest.raises(raised, match="malformed"):
        damaged.read(KEY)


@pytest.mark.parametrize(("error", "fails"), [(errno.EIO, True), (errno.ENXIO, True), (errno.EINVAL, False)])
def test_a_disk_fails_that_gives_no_byte(tmp_path, monkeypatch, error, fails):
    """Whatever it says; a file system that knows no reading past its cache says nothing of the disk."""
    path = tmp_path / "file"
    path.write_bytes(bytes(8192))
    assert not failing.disk_fails(path)

    def preadv(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(failing.os, "preadv", preadv)
    if hasattr(os, "O_DIRECT"):
        assert failing.disk_fails(path) == fails


# -- the reserve ---------------------------------------------------------------------------------------------------------


def test_a_disk_that_takes_no_change_is_no_error_of_the_ballast(tmp_path, monkeypatch):
    """Read-only: it is neither given back nor taken, and says so."""
    folder = Folder(tmp_path / "state")
    folder.open()
    (folder.path / "ballast").write_bytes(b"half")

    def unlink(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "unlink", unlink)
    assert not folder.release_ballast()
    assert not folder.refill_ballast()
    folder.close()


# -- committing ----------------------------------------------------------------------------------------------------------


class Sick:
    """A store of the harness that fails to commit, for whatever reason, until it is cured."""

    def __init__(self, harness, monkeypatch):
        self.tries = 0
        self.is_well = False
        self._commit = harness.store.commit
        monkeypatch.setattr(harness.store, "commit", self.commit)

    def commit(self, puts, deletes):
        self.tries += 1
        if not self.is_well:
            raise sqlite3.OperationalError("disk I/O error")
        self._commit(puts, deletes)


async def turns(count=100):
    for _ in range(count):
        await asyncio.sleep(0)


async def refused(harness):
    with pytest.raises(SpoolFull):
        await harness.put(1)


async def test_free_space_does_not_make_a_failing_disk_well(harness, monkeypatch):
    """Promise 1: records are refused and the daemon is stuck until a commit has gone through, however much room there is."""
    spool = await harness.open()
    sick = Sick(harness, monkeypatch)
    await refused(harness)
    assert spool.disk_full
    for _ in range(10):
        await turns()
        spool.check_disk()
        assert spool.disk_full
        assert not spool.room_for("cloud", 1, LossClass.KEEP)
    assert "commits failed in a row" in spool.stuck()
    sick.is_well = True
    await turns()
    assert spool.stuck() is None
    spool.check_disk()
    assert not spool.disk_full
    await harness.put(1)
    assert harness.balanced()


async def test_a_failing_disk_is_asked_once_in_a_while(harness, monkeypatch):
    """With nothing left to write it is tried again after `retry_s`, and not in circles."""
    spool = await harness.open()
    spool._committer._retry_s = 3600
    sick = Sick(harness, monkeypatch)
    await refused(harness)
    await turns(500)
    assert sick.tries <= 3


async def test_an_end_on_a_failing_disk_is_one(harness, monkeypatch):
    """Promise 7: with nothing to write but what could be found out it ends, and so it does with something."""
    spool = await harness.open()
    Sick(harness, monkeypatch)
    await refused(harness)
    await turns()
    async with asyncio.timeout(5):
        await spool.close()
    harness.spool = None
