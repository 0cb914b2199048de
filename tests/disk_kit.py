"""Real small file systems for the end-to-end tests, and somebody else who fills them."""

import contextlib
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

MIB = 2**20


def run(*command):
    return subprocess.run([str(each) for each in command], capture_output=True, text=True, check=False)


def mount(world, kind, size_mib=96, inodes=None):
    """A file system of its own, `tmpfs` or `ext4` on a loop device; gone with the world. Skips where that can't be had."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    place = world.folder / f"m{len(list(world.folder.glob('m*')))}"
    place.mkdir()
    if kind == "tmpfs":
        inodes = f",nr_inodes={inodes}" if inodes else ""
        mounted = run("mount", "-t", "tmpfs", "-o", f"size={size_mib}m,mode=700{inodes}", "agentd-test", place)
    else:
        image = world.folder / f"{place.name}.img"
        with image.open("wb") as file:
            file.truncate(size_mib * MIB)
        # none of it is kept for root, as whom these tests run; no journal of its own that would take 4 MiB
        made = run("mkfs.ext4", "-q", "-F", "-m", "0", *(["-N", inodes] if inodes else []), image)
        if made.returncode:
            pytest.skip(f"mkfs.ext4: {made.stderr.strip()}")
        mounted = run("mount", "-o", "loop", image, place)
    if mounted.returncode:
        pytest.skip(f"mount: {mounted.stderr.strip()}")
    world.on_exit(lambda: unmount(place))
    place.chmod(0o700)
    return place


def unmount(place):
    assert run("umount", "-l", place).returncode == 0


def free_bytes(folder):
    room = os.statvfs(folder)
    return room.f_bavail * room.f_frsize


def fill(folder, leave=0):
    """Write a file until only `leave` bytes are free."""
    step = MIB
    with (folder / "filler").open("ab", buffering=0) as file:
        while (free := free_bytes(folder)) > leave:
            try:
                file.write(bytes(min(free - leave, step)))
            except OSError:
                if step <= 512:
                    break
                step //= 2
    run(
        "sync", "-f", folder
    )  # ext4 finds places for blocks when they are written out: until then some are promised twice


def release(folder):
    """It is gone again."""
    (folder / "filler").unlink(missing_ok=True)


class Greedy:
    """A neighbour who takes whatever is free at once, and goes on doing so."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / "filler").open("ab", buffering=0)
        self._folder = folder
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="greedy")

    def __enter__(self):
        fill(self._folder)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stopped.set()
        self._thread.join()
        self._file.close()

    def _run(self):
        while not self._stopped.is_set():
            for step in (MIB, 64 * 1024, 4096):
                with contextlib.suppress(OSError):
                    while self._file.write(bytes(step)) == step and not self._stopped.is_set():
                        pass
            time.sleep(0.001)
