"""The write-ahead log as SQLite writes it, and what is known of it when it is damaged."""

import shutil
import sqlite3
import struct
from contextlib import closing

import pytest
from damage_kit import PAGE, rubbish

from agentd.spool.wal import FRAME, HEADER, checksum, read_log

STEP = FRAME + PAGE


class Hot:
    """A database in the middle of its life: ten commits in the log; the connection stays open meanwhile."""

    def __init__(self, folder):
        self.path = folder / "cache.db"
        self.connection = sqlite3.connect(self.path, isolation_level=None)
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA wal_autocheckpoint = 0")
        self.connection.execute("CREATE TABLE T (a)")
        for number in range(10):
            self.add(number)

    def add(self, number):
        self.connection.execute("INSERT INTO T VALUES (?)", (bytes([number]) * 6000,))

    def take(self):
        """Log and index as they are now."""
        return [bytearray(self.path.with_name(f"cache.db-{end}").read_bytes()) for end in ("wal", "shm")]


@pytest.fixture
def hot(tmp_path):
    made = Hot(tmp_path)
    yield made
    made.connection.close()


def look(log, index=b"", **options):
    return read_log(lambda offset, length: bytes(log[offset : offset + length]), len(log), bytes(index), **options)


def commits(log):
    """The frames that end a transaction, numbered from 1."""
    return [n for n, at in enumerate(range(HEADER, len(log), STEP), 1) if any(log[at + 4 : at + 8])]


def scramble(log, frame, count=1):
    log[HEADER + (frame - 1) * STEP : HEADER + (frame - 1 + count) * STEP] = rubbish(count * STEP)


def test_a_whole_log(hot):
    """All of it is seen, nothing is lost, with the index and without it."""
    log, index = hot.take()
    last = commits(log)[-1]
    for found in (look(log, index), look(log)):
        assert (found.frames, found.seen, found.lost, found.unread, found.is_damaged) == (last, last, 0, 0, False)
        assert found.page_size == PAGE
        newest = found.pages[max(found.pages)]
        assert log[newest : newest + PAGE] == bytes([9]) * PAGE or log[newest : newest + 1] == b"\x00"


def test_the_pages_are_what_sqlite_would_read(hot, tmp_path):
    """The newest committed version of every page: written over the database they make the database that a checkpoint makes."""
    log, index = hot.take()
    database = bytearray(hot.path.read_bytes())
    for page, place in look(log, index).pages.items():
        database.extend(bytes(max(0, page * PAGE - len(database))))
        database[(page - 1) * PAGE : page * PAGE] = log[place : place + PAGE]
    (tmp_path / "made.db").write_bytes(database)
    with closing(sqlite3.connect(tmp_path / "made.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("SELECT a FROM T").fetchall() == [(bytes([n]) * 6000,) for n in range(10)]


def test_a_hole_costs_itself_alone(hot):
    """Frames behind a damaged one are still known: their checksums go on from the one that it carries."""
    log, index = hot.take()
    middle, last = commits(log)[4], commits(log)[-1]
    log[HEADER + (middle - 1) * STEP + FRAME + 9] ^= 1
    for found in (look(log, index), look(log)):
        assert (found.frames, found.seen, found.lost) == (last, commits(log)[3], 1)
        assert found.is_damaged


def test_a_scrambled_frame_takes_its_neighbour_along(hot):
    """Where the checksum that it carried is lost as well, the next one can't be checked."""
    log, index = hot.take()
    scramble(log, commits(log)[4])
    assert look(log, index).lost == 2
    assert look(log).lost == 2


def test_a_log_that_was_cut_off_is_known_from_its_index(hot):
    """The index beside the log says how many frames were committed; without it a shorter log looks like an older one."""
    log, index = hot.take()
    last, kept = commits(log)[-1], commits(log)[5]
    del log[HEADER + kept * STEP + 100 :]
    found = look(log, index)
    assert (found.frames, found.seen, found.lost) == (last, kept, last - kept)
    assert not look(log).is_damaged
    gone = look(b"", index)
    assert (gone.frames, gone.lost, gone.is_damaged) == (last, last, True)


def test_a_torn_last_transaction_is_no_damage(hot):
    """The power failed before it was synced: nobody had an answer for it. It is said, since who can tell."""
    log, index = hot.take()
    [*_, before, last] = commits(log)
    log[HEADER + before * STEP + FRAME + 9] ^= 1
    found = look(log)
    assert (found.frames, found.seen, found.unread, found.is_damaged) == (before, before, 1, False)
    proven = look(log, index)
    assert (proven.frames, proven.lost, proven.is_damaged) == (last, 1, True)


def test_what_a_kill_left_unfinished_is_nothing(hot):
    """Frames behind the last commit that the index knows were never committed, whole or not."""
    log, index = hot.take()
    log += struct.pack(">II", 9, 0) + log[16:24] + bytes(8) + bytes(PAGE)
    found = look(log, index)
    assert (found.lost, found.unread, found.is_damaged) == (0, 0, False)


def test_without_a_sync_a_hole_proves_nothing(hot):
    """`sync = "normal"`: a power cut may leave holes anywhere; SQLite's own reading, up to the first, is what is whole."""
    log, _ = hot.take()
    scramble(log, commits(log)[4])
    found = look(log, synced=False)
    assert (found.frames, found.seen, found.is_damaged) == (commits(log)[3], commits(log)[3], False)
    assert found.unread > 0


def test_without_a_sync_the_index_proves_nothing(hot):
    """`sync = "normal"`: after a power cut the index may know of commits that the disk never got. It is said, and is no damage."""
    log, index = hot.take()
    last, kept = commits(log)[-1], commits(log)[5]
    scrambled = log.copy()
    scramble(scrambled, kept + 1, count=last - kept)
    for left, seen in ((log[: HEADER + kept * STEP], kept), (scrambled, kept), (b"", 0)):
        found = look(left, index, synced=False)
        assert (found.seen, found.unread, found.is_damaged) == (seen, last - seen, False)
    assert look(log, index, synced=False) == look(log, index)
    log += struct.pack(">II", 9, 0) + log[16:24] + bytes(8) + bytes(PAGE)
    assert look(log, index, synced=False).unread == 0
    hot.connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
    assert look(b"", hot.take()[1], synced=False).unread == 0


def test_a_lost_header_does_not_lose_the_frames(hot):
    """SQLite would read nothing of it. The first frame goes on from the header's checksum and can't be checked, the others can."""
    log, index = hot.take()
    last = commits(log)[-1]
    log[:HEADER] = bytes(HEADER)
    for found in (look(log, index), look(log)):
        assert (found.frames, found.seen, found.lost, found.is_damaged) == (last, 0, 1, True)


def test_a_log_that_is_in_the_database_already_costs_nothing(hot):
    """After a checkpoint the database has it all: whatever becomes of the log then, nothing is lost."""
    hot.connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
    log, index = hot.take()
    scramble(log, 3, count=4)
    assert not look(log, index).is_damaged
    assert not look(b"", index).is_damaged


def test_a_page_that_is_newer_in_the_database_is_not_taken_from_the_log(hot):
    """Where a checkpoint has copied a version that the log has lost, an older one of the log does not hide it."""
    hot.connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
    log, index = hot.take()
    copied = commits(log)[-1]
    assert look(log, index).pages
    scramble(log, copied)
    assert look(log, index).pages == {}
    del log[HEADER + (copied - 2) * STEP :]
    assert look(log, index).pages == {}


def test_frames_of_an_earlier_log_are_none_of_this_one(hot):
    """The log begins anew after a checkpoint, and what is behind its end is of the one before: neither read nor missed."""
    hot.connection.execute("PRAGMA wal_checkpoint(RESTART)")
    hot.add(77)
    log, index = hot.take()
    last = min(commits(log))
    for found in (look(log, index), look(log)):
        assert (found.frames, found.seen, found.unread, found.is_damaged) == (last, last, 0, False)


def test_an_index_of_another_log_proves_nothing(hot):
    """Its salt says which log it speaks of; a scrambled one speaks of none."""
    _, index = hot.take()
    hot.connection.execute("PRAGMA wal_checkpoint(RESTART)")
    hot.add(77)
    log, _ = hot.take()
    assert not look(log, index).is_damaged
    assert not look(log, rubbish(32768)).is_damaged
    assert not look(log, bytes(32768)).is_damaged


def test_checksums_of_a_machine_of_the_other_byte_order(hot, tmp_path):
    """A log whose checksums are over big-endian words is the same log; SQLite agrees."""
    log, _ = hot.take()
    log[:4] = struct.pack(">I", 0x377F0683)
    log[24:32] = seed = checksum(bytes(log[:24]), bytes(8), big_endian=True)
    for at in range(HEADER, len(log), STEP):
        seed = checksum(bytes(log[at : at + 8]), seed, big_endian=True)
        seed = checksum(bytes(log[at + FRAME : at + STEP]), seed, big_endian=True)
        log[at + 16 : at + 24] = seed
    assert look(log).seen == commits(log)[-1]
    shutil.copy(hot.path, tmp_path / "b.db")
    (tmp_path / "b.db-wal").write_bytes(log)
    with closing(sqlite3.connect(tmp_path / "b.db")) as connection:
        assert connection.execute("SELECT count(*) FROM T").fetchone() == (10,)


@pytest.mark.parametrize("log", [b"", bytes(HEADER), rubbish(100_000), rubbish(20)])
def test_what_is_no_log_says_nothing(log):
    """Rubbish in its place is no log, and none is lost."""
    found = look(log)
    assert (found.pages, found.frames, found.is_damaged) == ({}, 0, False)
