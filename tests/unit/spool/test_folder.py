"""The state folder: ours alone, one daemon at a time, with room kept back."""

import contextlib
import errno
import os
import shutil
from pathlib import Path

import pytest

from agentd.errors import AlreadyRunning, StateError
from agentd.spool import folder as folders
from agentd.spool.folder import BALLAST_BYTES, FLOOR_BYTES, Folder, sync_names


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
    monkeypatch.setattr(Folder, "free_bytes", lambda _: FLOOR_BYTES + BALLAST_BYTES - 1)
    assert not folder.refill_ballast()
    monkeypatch.setattr(Folder, "free_bytes", lambda _: FLOOR_BYTES + BALLAST_BYTES)
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


INSIDE = ["spool", "quarantine", "salvage", "salvaged"]
FILES = ["lock", "ballast", "spool/cache.db", "spool/cache.db-wal", "spool/cache.db-shm"]


def laid_out(folder):
    """A state folder with everything in it that we use."""
    folder.open()
    folder.close()
    for name in INSIDE:
        (folder.path / name).mkdir(mode=0o700)
    for name in FILES:
        (folder.path / name).touch(mode=0o600)
    return folder


@pytest.mark.parametrize("name", [*INSIDE, *FILES])
def test_no_link_inside_is_followed(folder, tmp_path, name):
    """Who could plant one could have us write, or empty, any file of ours: it is refused by name, and nothing behind it is touched."""
    laid_out(folder)
    path, target = folder.path / name, tmp_path / "target"
    if path.is_dir():
        shutil.rmtree(path)
        target.mkdir()
    else:
        path.unlink()
        target.write_bytes(b"precious")
    path.symlink_to(target)
    with pytest.raises(StateError, match=f"{name}.*symbolic link|{name}: Too many levels"):
        folder.open()
    assert list(target.iterdir()) == [] if target.is_dir() else target.read_bytes() == b"precious"


@pytest.mark.parametrize("name", [*INSIDE, *FILES])
def test_nothing_inside_may_be_somebody_elses(folder, monkeypatch, name):
    """A file or folder of another user's in ours was planted."""
    laid_out(folder)
    real = Path.lstat

    def lstat(path):
        info = real(path)
        return os.stat_result((*info[:4], 4242, *info[5:])) if path == folder.path / name else info

    monkeypatch.setattr(Path, "lstat", lstat)
    with pytest.raises(StateError, match=f"{name} belongs to uid 4242, not to us"):
        folder.open()


@pytest.mark.parametrize("name", [*INSIDE, *FILES])
def test_nothing_inside_may_be_of_another_kind(folder, name):
    """A folder in the place of a file, or a pipe, is named as what it is not."""
    laid_out(folder)
    path = folder.path / name
    if path.is_dir():
        path.rmdir() if name != "spool" else shutil.rmtree(path)
        os.mkfifo(path, 0o600)
    else:
        path.unlink()
        path.mkdir(mode=0o700)
    with pytest.raises(StateError, match=f"{name}"):
        folder.open()


@pytest.mark.parametrize("name", ["spool", "salvaged", "spool/cache.db", "spool/cache.db-wal"])
@pytest.mark.parametrize("mode", [0o020, 0o002])
def test_what_others_may_write_is_not_trusted(folder, name, mode):
    """What is read back from there may be theirs; the error says how to take it back."""
    laid_out(folder)
    path = folder.path / name
    path.chmod(path.stat().st_mode | mode)
    with pytest.raises(StateError, match=rf"{name} can be written by others \(mode 07?\d\d\d?\): chmod [67]00 it"):
        folder.open()


def test_what_is_refused_is_not_held(folder):
    """Who has put it right may start again, in the same process too: the lock is given back with the refusal."""
    folder.open()
    folder.close()
    (folder.path / "spool").write_bytes(b"")
    with pytest.raises(StateError, match="is something else"):
        folder.open()
    (folder.path / "spool").unlink()
    Folder(folder.path).open()


def test_what_others_may_read_is_closed(folder):
    """An older agentd left files that others could read, had they been let into the folder: now they are 0600 and 0700."""
    laid_out(folder)
    for name in [*INSIDE, *FILES]:
        path = folder.path / name
        path.chmod(0o755 if path.is_dir() else 0o644)
    (folder.path / "ballast").chmod(0o664)  # by an umask of 002; nothing is read from it
    folder.open()
    modes = {path: path.stat().st_mode & 0o777 for path in [folder.path, *folder.path.rglob("*")]}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}


def test_a_copy_of_something_damaged_is_kept_once(folder):
    """The same copy of a later start is the same file; another one gets another name; nobody else may read it."""
    folder.open()
    first = folder.keep("segments", "1a", b"one")
    assert folder.keep("segments", "1a", b"one") == first
    second = folder.keep("segments", "1a", b"two")
    assert (first.read_bytes(), second.read_bytes()) == (b"one", b"two")
    assert (first.name, second.name) == ("1a", "1a-1")
    assert {path.stat().st_mode & 0o777 for path in (first, second)} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in (first.parent, first.parent.parent)} == {0o700}


def test_a_planted_copy_is_not_written_through(folder, tmp_path):
    """A link under the name that a copy would get is passed by."""
    folder.open()
    (folder.path / "quarantine" / "meta").mkdir(parents=True)
    (tmp_path / "precious").write_bytes(b"precious")
    (folder.path / "quarantine" / "meta" / "1").symlink_to(tmp_path / "precious")
    assert folder.keep("meta", "1", b"copy").name == "1-1"
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_what_is_set_aside_never_takes_the_place_of_another(folder):
    """Two quarantines in one second get two folders."""
    folder.open()
    first, second = folder.quarantine("x"), folder.quarantine("x")
    assert first != second


@pytest.fixture
def synced(monkeypatch):
    """The folders that are synced, in their order."""
    found = []
    fsync = os.fsync

    def noted(descriptor):
        found.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    monkeypatch.setattr(folders.os, "fsync", noted)
    return found


def test_the_names_that_lead_to_the_store_are_synced(folder, tmp_path, synced):
    """Promise 1: a power cut takes no folder away that a start has made, however many of them there are."""
    folder.open()
    sync_names(folder.path)
    assert synced[:3] == [folder.path, folder.path.parent, tmp_path]


def test_another_file_system_is_not_synced(folder, synced, monkeypatch):
    """What lies above the mount point is there already."""
    folder.open()
    stat = Path.stat

    def elsewhere(path, **options):
        found = stat(path, **options)
        return found if path in (folder.path, folder.path.parent) else os.stat_result([*found[:2], 4242, *found[3:]])

    monkeypatch.setattr(folders.Path, "stat", elsewhere)
    sync_names(folder.path)
    assert synced == [folder.path, folder.path.parent]


def test_a_folder_that_we_may_not_read_is_left_to_its_owner(folder, synced, monkeypatch):
    """Somebody else has made it, and those above it."""
    folder.open()
    opened = os.open

    def refused(path, *options):
        if path == folder.path.parent:
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, *options)

    monkeypatch.setattr(folders.os, "open", refused)
    sync_names(folder.path)
    assert synced == [folder.path]


def test_a_file_system_that_syncs_no_folders_is_no_error(folder, monkeypatch):
    """Some in user space say EINVAL; whatever else fails is a StateError that names the folder."""
    folder.open()
    for number, expected in (
        (errno.EINVAL, contextlib.nullcontext()),
        (errno.EIO, pytest.raises(StateError, match="agentd: ")),
    ):

        def fails(_, number=number):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(folders.os, "fsync", fails)
        with expected:
            sync_names(folder.path)
