"""Rows that can't be read: out of the queue, in the books, and kept for whoever wants to look, as soon as the disk has room."""

import errno

import pytest

from agentd.outcomes import State
from agentd.spool.folder import Folder
from agentd.spool.tables import Table


def keys(harness, table):
    return [key for key, _, _ in harness.store.tags(table)]


def copies(harness):
    place = harness.folder / "quarantine" / "segments"
    return [path.name for path in place.iterdir()] if place.exists() else []


@pytest.mark.parametrize("count", [3, 8, 9])
async def test_what_there_is_no_room_to_set_aside_stays(harness, monkeypatch, count):
    """Promise 8: on a full disk the row is out of the queue and stays in the store; a start that has room keeps its copy."""

    def keep(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    await harness.open()
    await harness.put(count)
    (row,) = keys(harness, Table.SEGMENT)
    harness.store.change(row, b"AGS\1 damaged")
    monkeypatch.setattr(Folder, "keep", keep)
    spool = await harness.crash()
    await harness.filled()
    await spool.barrier()
    assert spool.books.total("cloud", State.QUARANTINED) == count
    assert harness.balanced()
    assert keys(harness, Table.SEGMENT) == [row]
    monkeypatch.undo()
    spool = await harness.crash()
    assert spool.queues["cloud"].live == 0
    await harness.filled()
    await spool.barrier()
    assert (keys(harness, Table.SEGMENT), keys(harness, Table.ENDED)) == ([], [])
    assert copies(harness) == [f"{row:x}"]
    assert spool.books.total("cloud", State.QUARANTINED) == count
    assert harness.balanced()
