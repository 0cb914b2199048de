"""A spool of a newer agentd is found out before anything is written, and one of ours says what it is to older ones."""

from __future__ import annotations

import shutil

import msgspec
import pytest

from agentd.errors import NewerFormat, SpoolDamaged
from agentd.spool.newer import refuse_newer
from agentd.spool.store import Put, Store, key_of
from agentd.spool.tables import FORMAT, Meta, Table, decode_meta, encode_meta


def digests(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def write(tmp_path):
    """A spool with this meta row, closed in order or as a crash leaves it: the row in the log alone."""

    def make(value, *, killed):
        folder = tmp_path / "spool"
        store = Store(folder, "full")
        store.commit([Put(key_of(Table.META, 0), encode_meta(Meta()))], ())
        store.commit([Put(key_of(Table.META, 0), value)], ())
        if killed:
            shutil.copytree(folder, tmp_path / "left")
        store.close()
        return tmp_path / "left" if killed else folder

    return make


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("value", [encode_meta(Meta(format=FORMAT + 1)), msgspec.msgpack.encode([FORMAT + 1, "?"])])
def test_a_newer_one_is_refused_and_every_byte_stays(write, value, killed):
    """Promise 1, an upgrade: whatever the newer format is behind its number, also where a crash has left its log."""
    folder = write(value, killed=killed)
    before = digests(folder)
    assert ("cache.db-wal" in before) is killed
    for _ in range(2):
        with pytest.raises(NewerFormat, match=f"format {FORMAT + 1}, this agentd knows {FORMAT}: start the newer"):
            refuse_newer(folder)
        assert digests(folder) == before


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("value", [encode_meta(Meta()), msgspec.msgpack.encode(Meta(format=1)), b"\xc1\xc1", b"\x05"])
def test_others_are_left_to_who_opens_them(write, value, killed):
    """Ours, an older one, one whose meta row is damaged: nothing is said, and nothing is written."""
    folder = write(value, killed=killed)
    before = digests(folder)
    refuse_newer(folder)
    assert digests(folder) == before


def test_no_database_is_no_newer_one(tmp_path):
    """No folder, no file, an empty file, one that is no database, an index that can't be put back."""
    refuse_newer(tmp_path / "none")
    (tmp_path / "cache.db").touch()
    refuse_newer(tmp_path)
    (tmp_path / "cache.db").write_bytes(b"not a database")
    refuse_newer(tmp_path)
    (tmp_path / "cache.db-wal").write_bytes(b"nor a log")
    (tmp_path / "cache.db-shm").mkdir()
    refuse_newer(tmp_path)


def test_an_older_agentd_reads_the_number_and_refuses():
    """Format 1 looks at the first element of an array before anything else, and refuses what is above its own."""
    head = msgspec.msgpack.decode(encode_meta(Meta()))
    assert isinstance(head, list)
    assert head[0] == FORMAT > 1


def test_a_damaged_number_is_damage_and_no_newer_format():
    """A row that is whole and of our format is read, whatever the number before it came to be."""
    row = bytearray(encode_meta(Meta(commits=7)))
    assert row[1] == FORMAT
    row[1] = FORMAT + 1
    assert decode_meta(bytes(row)).commits == 7
    row[-1] ^= 1
    row[1] = FORMAT
    with pytest.raises(SpoolDamaged):
        decode_meta(bytes(row))
