"""Who else could change what lies at a path: the folders that lead to it, files that are read, files that are written.

A folder that others may write to lets them rename or replace what is in it, unless it is sticky (`/tmp`): there they may only make what
is not there yet. Root and we ourselves are trusted. A file of another's may be a link to ours, a FIFO that never ends, or change
while it is read. Group members are who the operator says they are. Kubernetes leaves its emptyDirs open to everybody: who that is says the
pod's author, who lets containers mount them.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from agentd.errors import StateError
from agentd.filesystems import is_pods_own

OVERFLOW_UID = 65534  # what the kernel shows for a user that has no number here (user_namespaces(7))


def is_trusted(uid: int, us: int) -> bool:
    """Root, we, or within a user namespace somebody outside it, root most likely: who that is can't be seen from here."""
    return uid in (0, us) or (uid == overflow_uid() and not has_all_uids())


def overflow_uid() -> int:
    """The uid under which all users appear who have none here."""
    try:
        return int(Path("/proc/sys/kernel/overflowuid").read_text())
    except (OSError, ValueError):
        return OVERFLOW_UID


def has_all_uids() -> bool:
    """Whether every user of the machine has a uid here; False within a user namespace that knows some of them only."""
    try:
        lines = Path("/proc/self/uid_map").read_text().splitlines()
    except OSError:
        return True
    return any(line.split() == ["0", "0", "4294967295"] for line in lines)


def check_way(path: Path, us: int, what: str) -> None:
    """Raise StateError where a stranger could put something else in the place of `path`: in a folder that leads to it, or by a link."""
    given = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow the links that are to be looked at
    real = Path(os.path.realpath(given))  # unlike resolve() it raises nothing, also where links go round in a circle
    for folder in dict.fromkeys([*given.parents, *real.parents]):
        try:
            found = folder.lstat()
        except OSError:
            continue  # what does not exist yet we make ourselves
        if not is_trusted(found.st_uid, us):
            raise StateError(
                f"{what} {path}: {folder} belongs to uid {found.st_uid}, who could put something else there"
            )
        is_open = stat.S_ISDIR(found.st_mode) and found.st_mode & 0o002 and not found.st_mode & stat.S_ISVTX
        if is_open and not is_pods_own(folder):
            raise StateError(
                f"{what} {path}: everybody may write to {folder} and put something else there: "
                f"chmod o-w {folder}, or choose another place"
            )


def check_written(descriptor: int, path: Path | str, us: int) -> None:
    """Raise StateError unless an open file is a plain one, ours, and under no other name: before anything is written to it."""
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise StateError(f"{path}: is no file: take it away")
    if found.st_uid != us:
        raise StateError(f"{path}: belongs to uid {found.st_uid}, not to us (uid {us}): take it away")
    if found.st_nlink != 1:
        raise StateError(f"{path}: is another name of some other file (a hard link): take it away")


def read_checked(path: Path, us: int, *, named: bool) -> bytes:
    """A file of configuration. `named`: somebody has said that it is this one, whoever's it is; else it was only found.

    Raises OSError, and StateError for what is no file, what everybody may write to, and what was found and is a stranger's.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO would hold us up for ever
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode) or (stat.S_ISFIFO(found.st_mode) and not named) or stat.S_ISSOCK(found.st_mode):
            raise StateError("is no file")
        if stat.S_ISREG(found.st_mode) and found.st_mode & 0o002:
            raise StateError(f"everybody may write to it: chmod o-w {path}")
        if not named and not is_trusted(found.st_uid, us):
            raise StateError(f"belongs to uid {found.st_uid}; if it is meant all the same, say so: --config {path}")
        os.set_blocking(descriptor, True)
        return file.read()
