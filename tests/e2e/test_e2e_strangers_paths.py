"""What a stranger may put in the daemon's way before it starts: links, FIFOs, files and folders of his own.

Each is made by another user, in a folder where he may. The start refuses and says what and where, or is not touched by it; nothing
that belongs to somebody else is written, removed or read.
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
import time
from pathlib import Path

import pytest
from harness import http_call, wait_for
from strangers_kit import HOSTILE, VICTIM, Verbs, as_user, connect, note

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two other users")

REFUSED, BAD_CONFIGURATION = 1, 78


@pytest.fixture
def shared(world):
    """A folder where everybody may make things, as in /tmp."""
    world.folder.chmod(0o755)
    folder = world.folder / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


@pytest.fixture
def precious(world):
    """A file of the daemon's own user that a stranger would like to see overwritten."""
    path = world.folder / "precious"
    path.write_text("precious")
    path.chmod(0o644)
    yield path
    assert path.read_text() == "precious"


def refused(daemon, code, *words):
    """The daemon does not start; what it says."""
    daemon.spawn()
    assert daemon.wait(20) == code, daemon.tail()
    said = daemon.log.read_text()
    daemon.log.unlink()  # what it says is what was wanted
    assert "Traceback" not in said, said
    for word in words:
        assert word in said, said
    return next(line for line in reversed(said.splitlines()) if "agentd" in line)


def as_it_was(path):
    found = os.lstat(path)
    return found.st_ino, found.st_mode, found.st_uid, found.st_size, found.st_mtime_ns


def plant_link(path, target):
    path.symlink_to(target)


def plant_fifo(path, _):
    os.mkfifo(path, 0o666)


def plant_file(path, _):
    path.write_text("mine")


def plant_folder(path, _):
    path.mkdir()


def plant_stale_socket(path, _):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


PLANTS = {
    "a symbolic link": plant_link, "a FIFO": plant_fifo, "a file": plant_file, "a folder": plant_folder,
}  # fmt: skip


@pytest.mark.parametrize("what", PLANTS)
def test_what_lies_at_the_sockets_path_is_not_touched(world, shared, precious, what):
    """It is no socket: the start refuses, by name, and it lies there as before."""
    path = shared / "agentd.sock"
    as_user(HOSTILE, lambda: PLANTS[what](path, precious))
    before = as_it_was(path)
    said = refused(
        world.daemon(start=False, listen={"socket": str(path)}), REFUSED, "there is something that is no socket"
    )
    assert as_it_was(path) == before
    note(f"{what} at the socket's path", said.partition(": ")[2] or said)


def test_a_strangers_dead_socket_is_replaced(world, shared):
    """Nobody answers there: it is taken away, and the daemon's own is root's, with the configured mode."""
    path = shared / "agentd.sock"
    as_user(HOSTILE, lambda: plant_stale_socket(path, None))
    world.daemon(listen={"socket": str(path), "mode": "0666"})
    found = os.lstat(path)
    assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (0, 0o666)
    with pytest.raises(PermissionError):
        as_user(HOSTILE, path.unlink)
    note(
        "a dead socket of his own at the socket's path",
        "replaced by the daemon's; he can't take that away (sticky folder)",
    )


def test_a_strangers_live_socket_is_not_taken_over(world, shared):
    """Somebody listens there: the start refuses."""
    path = shared / "agentd.sock"
    sock = socket.socket(socket.AF_UNIX)
    as_user(HOSTILE, lambda: sock.bind(str(path)))
    sock.listen()
    with sock:
        said = refused(world.daemon(start=False, listen={"socket": str(path)}), REFUSED, "another program")
    note("a listener of his own at the socket's path", said)


LOCKS = PLANTS | {"a file that he holds locked": plant_file}


@pytest.mark.parametrize("what", [*PLANTS, "a hard link"])
def test_the_sockets_lock_is_our_own_file(world, shared, precious, what):
    """Whatever lies at its place is not opened for writing, or not written: not a link's target, nor a hard link's."""
    path = shared / "agentd.sock.lock"
    if what == "a hard link":
        os.link(precious, path)  # what fs.protected_hardlinks would keep a stranger from
    else:
        as_user(HOSTILE, lambda: PLANTS[what](path, precious))
    said = refused(world.daemon(start=False, listen={"socket": str(shared / "agentd.sock")}), REFUSED, str(path))
    note(f"{what} at the lock's path", said)


def test_a_folder_where_everybody_may_replace_the_socket_is_refused(world, shared):
    """World-writable and not sticky, the folder itself or one that leads to it."""
    shared.chmod(0o777)
    inner = shared / "inner"
    inner.mkdir()
    for folder in (shared, inner):
        said = refused(
            world.daemon(start=False, listen={"socket": str(folder / "s.sock")}),
            REFUSED,
            f"everybody may write to {shared}",
        )
    note("a world-writable folder above the socket", said)


def test_a_strangers_folder_is_no_place_for_the_socket(world, shared):
    """Its owner could put another socket in the place of ours."""
    folder = shared / "run"
    as_user(HOSTILE, folder.mkdir)
    said = refused(
        world.daemon(start=False, listen={"socket": str(folder / "s.sock")}),
        REFUSED,
        f"{folder} belongs to uid {HOSTILE}",
    )
    note("a run folder of his own", said)


@pytest.mark.parametrize("what", ["a symbolic link", "a folder", "a file", "a FIFO"])
def test_a_state_folder_of_a_strangers_is_refused(world, shared, precious, what):
    """Links, folders, files and FIFOs at the place of the state folder."""
    path = shared / "state"
    target = world.folder / "elsewhere"
    target.mkdir(mode=0o700)
    as_user(HOSTILE, lambda: PLANTS[what](path, target))
    said = refused(world.daemon(start=False, spool={"directory": str(path)}), REFUSED, str(path))
    assert list(target.iterdir()) == []
    note(f"{what} at the state folder's path", said)


def test_a_way_to_the_state_folder_that_everybody_may_change_is_refused(world, shared):
    """A world-writable folder without the sticky bit above it, and a folder of a stranger's."""
    open_to_all, his = shared / "open", shared / "his"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    as_user(HOSTILE, his.mkdir)
    refused(
        world.daemon(start=False, spool={"directory": str(open_to_all / "state")}),
        REFUSED,
        f"everybody may write to {open_to_all}",
    )
    said = refused(
        world.daemon(start=False, spool={"directory": str(his / "state")}), REFUSED, f"{his} belongs to uid {HOSTILE}"
    )
    assert not (his / "state").exists() or not list((his / "state").iterdir())
    note("a state folder below a folder of his", said)


@pytest.mark.parametrize("name", ["lock", "ballast", "spool", "spool/cache.db"])
@pytest.mark.parametrize("what", ["a symbolic link", "a FIFO"])
def test_nothing_within_the_state_folder_may_be_a_link(world, precious, name, what):
    """As if somebody had once been able to write there."""
    daemon = world.daemon()
    assert daemon.stop() == 0
    path = daemon.state / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    PLANTS[what](path, precious)
    refused(daemon, REFUSED, name.split("/")[-1])
    path.unlink()
    if name.startswith("spool"):
        shutil.rmtree(daemon.state)


def test_a_configuration_that_a_stranger_left_is_not_used(world, shared):
    """Found in the working folder and not named: refused. World-writable: refused whoever's. A FIFO: refused, and not waited for."""
    verbs = Verbs(world.folder)
    config = shared / "agentd.toml"
    as_user(
        HOSTILE,
        lambda: config.write_text('[destinations.a]\nplatform = "agentos"\nbase_url = "https://evil.example"\n'),
    )
    home = {"XDG_CONFIG_HOME": str(shared)}
    (shared / "agentd").mkdir()
    for place in (shared / "agentd" / "agentd.toml",):
        shutil.copy(config, place)
        os.chown(place, HOSTILE, -1)
        code, said = verbs(0, "check", **home)
        assert (code, f"belongs to uid {HOSTILE}" in said) == (BAD_CONFIGURATION, True), said
        note("agentd.toml where root's daemon looks for one", said.strip().splitlines()[-1])
        os.chown(place, 0, -1)
        place.chmod(0o666)
        code, said = verbs(0, "check", **home)
        assert (code, "everybody may write to it" in said) == (BAD_CONFIGURATION, True), said
        place.unlink()
        os.mkfifo(place)
        begun = time.monotonic()
        code, said = verbs(0, "check", **home)
        assert code != 0, said
        assert time.monotonic() - begun < 10
    verbs.close()


def test_anothers_spool_is_closed_to_the_command_line(world):
    """Verbs that read a stopped daemon's folder, run by a stranger who names it: permission denied, and nothing of it is said."""
    world.folder.chmod(0o755)
    daemon = world.daemon(listen={"mode": "0666"})
    marker = "only-the-victim-knows"
    records = [world.ledger.start("victim", input={"secret": marker}), world.ledger.end("victim")]
    with connect(daemon.socket, VICTIM) as link:
        from strangers_kit import ask

        assert ask(link, 1, records)["accepted"] == 2
    world.ledger.took(records)
    daemon.drained()
    assert daemon.stop() == 0
    verbs = Verbs(world.folder)
    config = world.folder / "his.toml"
    config.write_text(daemon.config.read_text())
    config.chmod(0o644)
    told = []
    for verb in (
        ("queue", "peek", "--raw"),
        ("queue", "stats"),
        ("dead-letters", "list"),
        ("where", "victim"),
        ("gates", "list"),
        ("status",),
        ("audit",),
    ):
        code, said = verbs(HOSTILE, "--config", str(config), *verb, KEY="x")
        assert code != 0, (verb, said)
        assert marker not in said
        told.append(said.strip().splitlines()[-1])
    for tool in (lambda: list(daemon.state.iterdir()), lambda: (daemon.state / "spool" / "cache.db").open("rb")):
        with pytest.raises(PermissionError):
            as_user(HOSTILE, tool)
    verbs.close()
    note("another user's spool, by the command line and by hand", f"permission denied (mode 0700): {told[0]}")


def test_what_the_daemon_makes_is_its_own(world, shared):
    """Socket with the mode that was asked for and never wider, state folder 0700, all files in it 0600, the lock beside the socket 0600."""
    daemon = world.daemon(listen={"socket": str(shared / "s.sock"), "mode": "0660"})
    assert http_call(daemon.socket, "GET", "/healthz")[0] == 200
    wait_for((daemon.state / "spool" / "cache.db").exists)
    for path in (daemon.state, *daemon.state.rglob("*"), Path(f"{shared}/s.sock.lock")):
        mode, wanted = stat.S_IMODE(path.lstat().st_mode), 0o700 if path.is_dir() else 0o600
        assert mode == wanted, (path, oct(mode))
    assert stat.S_IMODE(os.lstat(daemon.socket).st_mode) == 0o660
    with pytest.raises(PermissionError):
        connect(daemon.socket, HOSTILE)
    note("connecting where `listen.mode` is 0660", "permission denied by the kernel")
