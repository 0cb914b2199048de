"""The socket's path: folder, lock, mode, group; and what happens when accept() fails."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import shutil
import socket
import stat
import tempfile
from pathlib import Path

import pytest

from agentd.errors import AlreadyRunning, ConfigError, StateError
from agentd.intake import listen
from agentd.intake.listen import ACCEPT_BURST, ACCEPT_PAUSE_S, Acceptor, UnixListener, check_private, peer_of
from agentd.sections import Listen


@pytest.fixture
def folder():
    folder = Path(tempfile.mkdtemp(prefix="ad-"))  # short: a socket's path has 107 bytes at most
    yield folder
    shutil.rmtree(folder)


@contextlib.contextmanager
def listening(path, **options):
    listener = UnixListener(Listen(socket=str(path), **options))
    try:
        yield listener
    finally:
        listener.release()


def mode_of(path):
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize("mode", ["0660", "0600", "666", "0400"])
@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_mode_is_the_configured_one(folder, mode, umask):
    """The socket has the mode of listen.mode, whatever the umask, which is given back unchanged."""
    before = os.umask(umask)
    try:
        with listening(folder / "s", mode=mode):
            assert mode_of(folder / "s") == int(mode, 8)
        assert os.umask(umask) == umask
    finally:
        os.umask(before)


def test_mode_is_never_wider_than_configured(folder, monkeypatch):
    """Between bind and listen the socket is never open to more than listen.mode says."""
    seen = []
    for name in ("chown", "umask"):
        original = getattr(os, name)

        def spy(*args, original=original):
            if (folder / "s").exists():
                seen.append(mode_of(folder / "s"))
            return original(*args)

        monkeypatch.setattr(listen.os, name, spy)
    with listening(folder / "s", mode="0660", group=str(os.getgid())):
        assert seen
        assert all(mode & ~0o600 == 0 for mode in seen)


def test_group_gets_the_socket(folder):
    """listen.group, by name or number, owns the socket."""
    gid = os.getgroups()[-1] if os.getgroups() else os.getgid()
    with listening(folder / "s", group=str(gid)):
        assert (folder / "s").stat().st_gid == gid


def test_unknown_group_is_an_error_of_the_configuration(folder):
    """A group that the machine does not have is named, and nothing is left at the path."""
    with pytest.raises(ConfigError, match=r"listen.*no group 'no-such-group'"):
        UnixListener(Listen(socket=str(folder / "s"), group="no-such-group"))
    assert list(folder.iterdir()) == []


def test_folder_is_made_for_us_alone(folder):
    """A folder that is missing is made with mode 0700."""
    with listening(folder / "agentd" / "s"):
        assert mode_of(folder / "agentd") == 0o700


def test_folder_that_exists_keeps_its_mode(folder):
    """A folder that exists is the operator's: its mode is not touched."""
    folder.chmod(0o755)
    with listening(folder / "s"):
        assert mode_of(folder) == 0o755


def test_folder_that_can_not_be_made_is_named(folder):
    """A file in the place of the folder is an error that names it."""
    (folder / "file").write_text("")
    with pytest.raises(StateError, match="file/deep"):
        UnixListener(Listen(socket=str(folder / "file" / "deep" / "s")))


def test_private_folder_is_looked_at(folder, monkeypatch):
    """The folder in /tmp, which anybody could have made first, is checked before it is used; others are not."""
    looked = []
    monkeypatch.setattr(listen, "check_private", lambda *seen: looked.append(seen))
    listen._prepare_folder(folder, 1)
    monkeypatch.setattr(Path, "mkdir", lambda *_args, **_options: None)
    listen._prepare_folder(Path("/tmp/agentd-4242"), 4242)
    assert looked == [(Path("/tmp/agentd-4242"), 4242)]


def test_private_folder_has_to_be_ours(folder):
    """Another's folder, a link, a file, or a folder that others may write to is refused by name."""
    uid = os.getuid()
    folder.chmod(0o700)
    check_private(folder, uid)
    with pytest.raises(StateError, match=f"belongs to uid {uid}, expected {uid + 1}"):
        check_private(folder, uid + 1)
    (folder / "link").symlink_to(folder)
    (folder / "file").write_text("")
    for name in ("link", "file"):
        with pytest.raises(StateError, match=f"{name}: a symbolic link or a file"):
            check_private(folder / name, uid)
    folder.chmod(0o770)
    with pytest.raises(StateError, match="others may write"):
        check_private(folder, uid)


@pytest.mark.parametrize("extra", [0, 1])
def test_path_may_have_107_bytes(folder, extra):
    """107 bytes are a path, 108 are not; bytes count, not characters."""
    path = folder / ("ü" + "x" * (107 + extra - len(str(folder)) - 3))
    assert len(os.fsencode(path)) == 107 + extra
    if extra:
        with pytest.raises(StateError, match="this one has 108"):
            UnixListener(Listen(socket=str(path)))
    else:
        with listening(folder / ("x" * (107 - len(str(folder)) - 1 - len(".lock")))) as listener:
            assert listener.socket.fileno() >= 0


def test_lock_is_kept_until_it_is_released(folder):
    """The path stays ours after listening has ended, until the lock is let go; the lock file itself stays."""
    first = UnixListener(Listen(socket=str(folder / "s")))
    first.close()
    assert not (folder / "s").exists()
    with pytest.raises(AlreadyRunning, match=f"pid {os.getpid()}"):
        UnixListener(Listen(socket=str(folder / "s")))
    first.release()
    first.release()
    with listening(folder / "s"):
        assert (folder / "s.lock").read_text() == f"{os.getpid()}\n"
        assert mode_of(folder / "s.lock") == 0o600
    assert (folder / "s.lock").exists()


def test_holder_without_a_pid_is_unknown(folder):
    """A lock that is held while its file is still empty is a live lock all the same."""
    with (folder / "s.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(AlreadyRunning, match="pid unknown"):
            UnixListener(Listen(socket=str(folder / "s")))


def test_lock_is_not_taken_through_a_link(folder):
    """A link in the place of the lock file could make us write into another's file: it is an error."""
    (folder / "precious").write_text("precious")
    (folder / "s.lock").symlink_to(folder / "precious")
    with pytest.raises(StateError, match=r"s\.lock"):
        UnixListener(Listen(socket=str(folder / "s")))
    assert (folder / "precious").read_text() == "precious"


def test_failure_to_bind_leaves_nothing(folder, monkeypatch):
    """When the socket can't get its group it is taken away again, and the path is free for the next try."""

    def fail(*_args):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(listen.os, "chown", fail)
        with pytest.raises(StateError, match="not permitted"):
            UnixListener(Listen(socket=str(folder / "s"), group="0"))
    assert not (folder / "s").exists()
    with listening(folder / "s"):
        assert (folder / "s").is_socket()


def test_peer_is_known_on_a_unix_socket_and_nobody_on_tcp():
    """The kernel names the peer of a Unix socket; a TCP peer is nobody, whom no rule takes for root."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer = peer_of(ours)
        assert (peer.uid, peer.gid, peer.pid) == (os.getuid(), os.getgid(), os.getpid())
    with socket.socket(socket.AF_INET) as tcp:
        assert peer_of(tcp).uid == -1


def test_limit_of_open_files_is_raised_to_the_hard_one(monkeypatch):
    """The soft limit is lifted to the hard one; where that is refused the soft one is what counts."""
    assert listen.raise_file_limit() == resource.getrlimit(resource.RLIMIT_NOFILE)[1]

    def refuse(*_args):
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(listen.resource, "getrlimit", lambda _which: (1024, resource.RLIM_INFINITY))
    monkeypatch.setattr(listen.resource, "setrlimit", refuse)
    assert listen.raise_file_limit() == 1024


class FakeListener:
    """A listening socket whose accept() gives what the test has put there."""

    def __init__(self, *outcomes):
        self.outcomes = list(outcomes)

    def accept(self):
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, OSError):
            raise outcome
        return outcome, None


class FakeLoop:
    def __init__(self):
        self.readers = {}
        self.later = []

    def add_reader(self, sock, callback):
        self.readers[sock] = callback

    def remove_reader(self, sock):
        del self.readers[sock]

    def call_later(self, delay_s, callback):
        self.later.append((delay_s, callback))
        return self

    def cancel(self):
        self.later.clear()


def test_accept_without_descriptors_pauses_and_begins_again():
    """accept() that fails for EMFILE is not called again at once, which would be a busy loop, but after a pause."""
    sock = FakeListener("one", OSError(errno.EMFILE, "Too many open files"), "two", BlockingIOError())
    loop, welcomed = FakeLoop(), []
    acceptor = Acceptor(sock, welcomed.append, loop)
    loop.readers[sock]()
    assert (welcomed, loop.readers) == (["one"], {})
    [(delay_s, resume)] = loop.later
    assert delay_s == ACCEPT_PAUSE_S
    resume()
    loop.readers[sock]()
    assert welcomed == ["one", "two"]
    acceptor.close()
    assert loop.readers == {}


def test_acceptor_that_pauses_can_be_closed():
    """Closing during the pause takes the timer back."""
    sock = FakeListener(OSError(errno.ENFILE, "Too many open files in system"))
    loop = FakeLoop()
    acceptor = Acceptor(sock, pytest.fail, loop)
    loop.readers[sock]()
    acceptor.close()
    assert loop.later == []


def test_storm_of_connections_leaves_room_for_others():
    """In one turn of the event loop no more than a burst is taken; a connection that is gone already ends it."""
    sock = FakeListener(*range(ACCEPT_BURST + 5), ConnectionAbortedError())
    loop, welcomed = FakeLoop(), []
    Acceptor(sock, welcomed.append, loop)
    loop.readers[sock]()
    assert len(welcomed) == ACCEPT_BURST
    loop.readers[sock]()
    assert len(welcomed) == ACCEPT_BURST + 5
