"""The state folder: ours alone, one daemon at a time, with room kept back."""

import errno
import os

import pytest

from agentd.errors import AlreadyRunning, StateError
from agentd.spool import folder as folders
from agentd.spool.folder import BALLAST_BYTES, FLOOR_BYTES, Folder


@pytest.fixture
def folder(tmp_path):
    made = Folder(tmp_path / "state" / "agentd")
    yield made
    made.close()


def test_it_is_made_for_us_alone(folder):
    """The folder and its parents are made, nobody else may look in, and the ballast lies ready."""
    folder.open()
    assert folder.path.stat().st_mode & 0o777 == 0o700
    assert (folder.path / "ballast").stat().st_size == BALLAST_BYTES
    assert (folder.path / "lock").read_text() == f"{os.getpid()}\n"
    assert folder.free_bytes() > 0


def test_a_second_daemon_is_told_who_was_first(folder):
    """A second daemon on the same folder gets AlreadyRunning with the pid of the first, and harms nothing."""
    folder.open()
    with pytest.raises(AlreadyRunning, match=f"pid {os.getpid()}"):
        Folder(folder.path).open()
    assert (folder.path / "lock").read_text() == f"{os.getpid()}\n"
    folder.close()
    again = Folder(folder.path)
    again.open()
    again.close()


def test_a_symbolic_link_is_refused(tmp_path):
    """A link could be pointed elsewhere by whoever owns it."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(StateError, match="symbolic link"):
        Folder(tmp_path / "link").open()


def test_a_symbolic_lock_is_refused(tmp_path):
    """Nor is a lock file followed out of the folder."""
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "state" / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StateError, match="lock"):
        Folder(tmp_path / "state").open()
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_in_its_place_is_refused(tmp_path):
    """What is no folder is named as such."""
    (tmp_path / "state").write_text("")
    with pytest.raises(StateError, match="state"):
        Folder(tmp_path / "state").open()


@pytest.mark.parametrize("mode", [0o777, 0o720, 0o702])
def test_a_folder_that_others_may_write_is_refused(tmp_path, mode):
    """Whoever may write it may have planted what lies in it."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(mode)
    with pytest.raises(StateError, match="chmod 700"):
        Folder(tmp_path / "state").open()


def test_a_folder_that_others_may_read_is_closed(tmp_path):
    """Records are nobody else's: reading is taken away, without asking."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o755)
    made = Folder(tmp_path / "state")
    made.open()
    assert made.path.stat().st_mode & 0o777 == 0o700
    made.close()


def test_a_foreign_folder_is_refused(folder, monkeypatch):
    """A folder of another user is not ours, whatever its mode."""
    folder.path.mkdir(parents=True, mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    with pytest.raises(StateError, match="not to us"):
        folder.open()


def test_the_ballast_is_given_back_once_and_taken_again(folder, monkeypatch):
    """A full disk gets 16 MiB back; they are reserved again only when there is plenty of room."""
    folder.open()
    assert folder.release_ballast()
    assert not folder.release_ballast()
    monkeypatch.setattr(Folder, "free_bytes", lambda _: FLOOR_BYTES + 2 * BALLAST_BYTES - 1)
    assert not folder.refill_ballast()
    monkeypatch.setattr(Folder, "free_bytes", lambda _: FLOOR_BYTES + 2 * BALLAST_BYTES)
    assert folder.refill_ballast()
    assert folder.refill_ballast()


def test_a_ballast_that_finds_no_room_leaves_nothing(folder, monkeypatch):
    """Half a ballast would only take room away."""
    folder.open()
    folder.release_ballast()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folders.os, "posix_fallocate", full)
    assert not folder.refill_ballast()
    assert not (folder.path / "ballast").exists()


def test_a_full_disk_does_not_keep_the_lock_from_being_taken(folder, monkeypatch):
    """Promise 1: a daemon starts on a full disk, where even its own pid can't be written."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folders.os, "pwrite", full)
    folder.open()
    with pytest.raises(AlreadyRunning, match="pid unknown"):
        Folder(folder.path).open()


def test_what_is_set_aside_never_takes_the_place_of_another(folder):
    """Two quarantines in one second get two folders."""
    folder.open()
    first, second = folder.quarantine("x"), folder.quarantine("x")
    assert first != second
    folder.spool.mkdir()
    (folder.spool / "cache.db").write_text("damaged")
    place = folder.set_spool_aside("x")
    assert (place / "spool" / "cache.db").read_text() == "damaged"
    assert not folder.spool.exists()
