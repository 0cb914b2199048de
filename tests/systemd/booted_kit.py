"""A real systemd for tests: it boots in about a second in namespaces of its own, over a throw-away overlay of this machine's root.

    with machine(folder, shared) as booted:         # agentd installed in /opt/agentd as a user installs it
        booted.run("systemctl", "start", "agentd")
        booted.path("/run/agentd/agentd.sock")      # the same file, for this process

What is written there exists in memory and for the test alone. Nothing has to be installed for it; it takes root, overlayfs, a
cgroup2 hierarchy, systemd and a Python with venv in /usr/bin. Everything hangs on one process that ends when its standard input
does: with the tests, however they end, the whole machine goes, its mounts included.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).parents[2]
SYSTEMD = "/lib/systemd/systemd"
PYTHON = "/usr/bin/python3"
AGENTD = "/opt/agentd/bin/agentd"
_NEEDED = (SYSTEMD, PYTHON, "/usr/bin/systemd-analyze", "/usr/bin/nsenter", "/usr/bin/unshare")
_SOURCE = ("agentd", "config", "systemd", "README.md", "pyproject.toml")
_PATH = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}

T = TypeVar("T")

# $1: an empty folder. What is mounted below it is seen by this process and its children alone.
_HOLD = """
set -e
mount -t tmpfs -o mode=755,size=2g tmpfs "$1"
mkdir "$1/up" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/up,workdir=$1/work" "$1/root"
echo ready
read -r _ || true
"""

# $1: the folder again, $2: a cgroup of its own, without which systemd would put the machine's processes in order
_BOOT = """
echo $BASHPID > "$2/cgroup.procs"
unshare --pid --mount --uts --ipc --net --cgroup --fork --kill-child --propagation private bash -c '
    set -e
    cd "$1/root"
    mount -t proc proc proc
    mount -t sysfs -o ro sysfs sys
    mount -t cgroup2 cgroup2 sys/fs/cgroup
    mount -t tmpfs -o mode=755 tmpfs run
    mount -t tmpfs -o mode=1777 tmpfs tmp
    mount -t tmpfs -o mode=755 tmpfs dev
    for name in null zero full random urandom tty; do touch dev/$name; mount --bind /dev/$name dev/$name; done
    mkdir dev/pts dev/shm
    mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
    ln -s pts/ptmx dev/ptmx
    mount -t tmpfs tmpfs dev/shm
    ln -s /proc/self/fd dev/fd
    ln -s /proc/self/fd/2 dev/stderr
    ip link set lo up
    mkdir -p .old
    pivot_root . .old
    cd /
    umount -l /.old
    mount --make-rshared /     # without it LoadCredential= gives an empty folder
    exec env -i container=other PATH="$PATH" '"$3"' --system --unit=basic.target
' _ "$1" < /dev/null &
echo $!
read -r _ || true
kill -KILL $!
"""


class NotPossible(Exception):  # noqa: N818 - a state that is found
    """What such a machine takes is not here."""


def look() -> None:
    """Raise NotPossible where no machine can be booted at all."""
    if os.geteuid() != 0:
        raise NotPossible("root boots a systemd, and nobody else")
    for path in _NEEDED:
        if not Path(path).exists():
            raise NotPossible(f"{path} is not here")
    _cgroups()
    if "\toverlay\n" not in Path("/proc/filesystems").read_text():
        subprocess.run(["modprobe", "overlay"], check=False, capture_output=True)
        if "\toverlay\n" not in Path("/proc/filesystems").read_text():
            raise NotPossible("the kernel has no overlayfs")


def _cgroups() -> Path:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        if kind == "cgroup2" and "ro" not in options.split(","):
            return Path(place)
    raise NotPossible("there is no cgroup2 hierarchy that may be written to")


def wait_for(condition: Callable[[], T], within_s: float = 15.0, what: Callable[[], object] | str = "") -> T:
    """Look at a condition until it holds. OSErrors count as "not yet"."""
    deadline = time.monotonic() + within_s
    while True:
        with contextlib.suppress(OSError):
            if found := condition():
                return found
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {within_s} s in vain: {what() if callable(what) else what}")
        time.sleep(0.02)


class Root:
    """The machine's root before it boots."""

    def __init__(self, path: Path, chroot: Sequence[str]) -> None:
        self.path = path
        self._chroot = chroot

    def run(self, *command: str) -> str:
        """Run a command in it, as root."""
        done = subprocess.run([*self._chroot, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        _write(self.path / path.lstrip("/"), text, mode)


class Booted:
    """A machine that is up."""

    def __init__(self, leader: int) -> None:
        self.leader = leader  # its PID 1, as we count

    def path(self, path: str) -> str:
        """A path of the machine, for this process."""
        return f"/proc/{self.leader}/root{path}"

    def run(
        self, *command: str, check: bool = True, user: str | None = None, within_s: float = 60.0, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command there, as root or as somebody else."""
        who = [] if user is None else ["runuser", "-u", user, "--"]
        done = subprocess.run(
            ["nsenter", "-t", str(self.leader), "-a", "env", "-i", *[f"{k}={v}" for k, v in _PATH.items()], *who, *command],
            text=True, capture_output=True, timeout=within_s, check=False, **options,
        )  # fmt: skip
        assert done.returncode == 0 or not check, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def systemctl(self, *arguments: str, check: bool = True) -> str:
        return self.run("systemctl", "--no-pager", *arguments, check=check).stdout.strip()

    def show(self, unit: str, *names: str) -> dict[str, str]:
        """Properties of a unit."""
        lines = self.systemctl("show", unit, *(f"--property={name}" for name in names)).splitlines()
        return dict(line.partition("=")[::2] for line in lines)

    def property(self, name: str, unit: str = "agentd.service") -> str:
        return self.show(unit, name)[name]

    def journal(self, unit: str = "agentd.service", lines: int = 60) -> str:
        return self.run("journalctl", "--no-pager", "-o", "cat", "-n", str(lines), "-u", unit, check=False).stdout

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        _write(Path(self.path(path)), text, mode)

    def drop_in(self, text: str, unit: str = "agentd.service") -> None:
        """What `systemctl edit` writes; none of it if the text is empty."""
        path = f"/etc/systemd/system/{unit}.d/test.conf"
        if text:
            self.write(path, text)
        else:
            Path(self.path(path)).unlink(missing_ok=True)
        self.systemctl("daemon-reload")

    def http(self, url: str, *arguments: str) -> Any:
        """A JSON document from within, whose loopback is not ours."""
        done = self.run("curl", "-sS", "--fail-with-body", *arguments, url)
        return json.loads(done.stdout) if done.stdout else None


def _write(place: Path, text: str, mode: int) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)
    place.chmod(mode)


@contextlib.contextmanager
def machine(folder: Path, shared: Path, prepare: Callable[[Root], None]) -> Iterator[Booted]:
    """Boot in `folder`, which is empty. `shared` is where workers of one run keep what is installed once.

    `prepare` is given the machine's root before it boots. Raises NotPossible.
    """
    look()
    group = _cgroups() / f"agentd-tests-{os.getpid()}-{time.monotonic_ns()}"
    with contextlib.ExitStack() as stack:
        holder = stack.enter_context(
            _process(["unshare", "--mount", "--propagation", "private", "bash", "-c", _HOLD, "_", str(folder)])
        )
        if _line(holder) != "ready":
            raise NotPossible(f"no overlay of / can be mounted: {_errors(holder)}")
        enter = ["nsenter", "-t", str(holder.pid), "-m"]
        root = Root(Path(f"/proc/{holder.pid}/root{folder}/root"), [*enter, "chroot", f"{folder}/root"])
        _install(root, shared)
        prepare(root)
        group.mkdir()
        stack.callback(_remove_group, group)
        boot = stack.enter_context(_process([*enter, "bash", "-c", _BOOT, "_", str(folder), str(group), SYSTEMD]))
        unshared = int(_line(boot) or 0)
        leader = wait_for(lambda: _child(unshared), 20, lambda: f"systemd did not start: {_errors(boot)}")
        booted = Booted(leader)
        wait_for(
            lambda: booted.systemctl("is-active", "basic.target", check=False) == "active", 30,
            lambda: f"basic.target is not reached: {booted.systemctl('list-jobs', check=False)}",
        )  # fmt: skip
        yield booted


@contextlib.contextmanager
def _process(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that ends with its standard input."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _errors(process: subprocess.Popen[str]) -> str:
    process.kill()
    assert process.stderr is not None
    return process.stderr.read().strip()


def _child(pid: int) -> int:
    """The first process that it has started, 0 for none yet."""
    if not pid:
        return 0
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else 0


def _install(root: Root, shared: Path) -> None:
    """agentd in /opt/agentd by pip, from source as it lies here; workers that come later take a copy."""
    kept, place = shared / "systemd-venv", root.path / "opt" / "agentd"
    with (shared / "systemd-venv.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if kept.exists():
            shutil.copytree(kept, place, symlinks=True)
            return
        source = root.path / "opt" / "agentd-source"
        source.mkdir(parents=True)
        for name in _SOURCE:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
            copy(ROOT / name, source / name)
        try:
            root.run(PYTHON, "-m", "venv", "/opt/agentd")
            root.run("/opt/agentd/bin/pip", "install", "--quiet", "--disable-pip-version-check", "/opt/agentd-source")
        except AssertionError as why:
            raise NotPossible(f"agentd can't be installed: {why}") from None
        shutil.copytree(place, kept.with_suffix(".new"), symlinks=True)
        kept.with_suffix(".new").rename(kept)


def _remove_group(group: Path) -> None:
    """The cgroups that systemd has left, innermost first; its processes end a moment after their PID 1."""

    def gone() -> bool:
        for place in sorted(group.rglob("*/"), key=lambda place: -len(place.parts)):
            place.rmdir()
        group.rmdir()
        return True

    wait_for(gone, 10, f"{group} can't be removed")
