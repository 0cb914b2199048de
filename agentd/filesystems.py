"""What kind of file system a folder lies on, and whether records may be kept there.

SQLite's write-ahead log is memory shared by processes of one machine and "does not work over a network filesystem"
(https://sqlite.org/wal.html); a lock there may hold on one host alone, so that two daemons write one spool, and a sync reaches a
server and not a disk, if it is waited for at all. Such a place is refused. 9p, virtiofs and programs in user space are warned of and
not refused: what serves them runs on the same machine nearly always (gVisor's and Kata's volumes, WSL's drives), where both lock
and sync arrive, and a refusal would keep agentd out of sandboxes in which it works.

`judge` is pure; `look` reads /proc/self/mountinfo (proc_pid_mountinfo(5)) and raises nothing.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from agentd.errors import StateError

log = logging.getLogger("agentd")

_MOUNTINFO = Path("/proc/self/mountinfo")
# Linux's names of them, those that FUSE programs give themselves as a subtype included
NETWORK = frozenset({
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "ceph", "coda", "orangefs", "pvfs2", "lustre", "gpfs", "beegfs", "panfs",
    "fuse.ceph", "fuse.ceph-fuse", "fuse.davfs", "fuse.gcsfuse", "fuse.glusterfs", "fuse.goofys", "fuse.juicefs", "fuse.moosefs",
    "fuse.mfs", "fuse.mount-s3", "fuse.rclone", "fuse.s3fs", "fuse.sshfs", "fuse.curlftpfs", "fuse.blobfuse", "fuse.blobfuse2", "davfs",
    "fuse.gvfsd-fuse", "fuse.seaweedfs", "fuse.cephfs", "fuse.smbnetfs",
})  # fmt: skip
_SHARED = frozenset({"9p", "virtiofs", "vboxsf", "fuse.vmhgfs-fuse", "prl_fs"})
_MEMORY = frozenset({"tmpfs", "ramfs"})
_LAYERS = frozenset({"overlay", "aufs", "unionfs", "fuse.fuse-overlayfs", "fuse.overlayfs"})
_LOCAL_FUSE = frozenset({"fuseblk", "fuse.ntfs-3g", "fuse.exfat", "fuse.lxcfs", "fuse.zfs", "fuse.bindfs"})
_EMPTY_DIR = "/volumes/kubernetes.io~empty-dir/"  # in the root of what kubelet mounts
_ESCAPE = re.compile(r"\\([0-7]{3})")
_MIN_FIELDS = 6


class Mount(Struct, frozen=True):
    """A line of mountinfo: what is mounted where. `root` is the part of the file system that is seen."""

    point: str
    kind: str
    root: str = "/"


class Judgement(Struct, frozen=True):
    """What is to be said of a place: a `fault` refuses it, a `warning` does not, `note` is worth knowing; all may be empty."""

    kind: str = ""
    fault: str = ""
    warning: str = ""
    note: str = ""


def mounts_in(text: str) -> list[Mount]:
    """The mounts that a mountinfo lists; a line that is none is left out."""
    return [mount for line in text.splitlines() if (mount := _mount(line)) is not None]


def _mount(line: str) -> Mount | None:
    """`36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw`: the optional fields end with the hyphen."""
    before, hyphen, after = line.partition(" - ")
    fields, kinds = before.split(" "), after.split(" ")
    if not hyphen or len(fields) < _MIN_FIELDS:
        return None
    return Mount(_unescaped(fields[4]), kinds[0], _unescaped(fields[3]))


def _unescaped(text: str) -> str:
    """Blanks and the like are octal there."""
    return _ESCAPE.sub(lambda found: chr(int(found[1], 8)), text)


def mount_of(path: str, mounts: Sequence[Mount]) -> Mount | None:
    """The mount that an absolute path without links lies on: the deepest one, and of two at one point the later."""
    above = [mount for mount in mounts if _is_within(path, mount.point)]
    return max(enumerate(above), key=lambda each: (len(each[1].point), each[0]))[1] if above else None


def _is_within(path: str, point: str) -> bool:
    return point in ("/", path) or path.startswith(f"{point}/")


def judge(path: str, mount: Mount | None) -> Judgement:
    """Whether records may be kept at `path`, which lies on `mount`; nothing is said of what isn't known."""
    if mount is None:
        return Judgement()
    kind, point = mount.kind, mount.point
    if kind in NETWORK:
        return Judgement(
            kind,
            fault=f"{path} is on a network file system ({kind} at {point}), on which neither locks nor syncs hold what was "
            "acknowledged: choose a folder on a disk of this machine",
        )
    if kind in _MEMORY:
        warning = f"{path} is in memory ({kind} at {point}): what waits is gone when this machine or container restarts"
        return Judgement(kind, warning=warning)
    if kind in _LAYERS:
        warning = f"{path} is in a container's own layer ({kind} at {point}): what waits is gone with the container; mount a volume"
        return Judgement(kind, warning=warning)
    if kind in _SHARED or (kind.startswith("fuse") and kind not in _LOCAL_FUSE):
        warning = (
            f"{path} is served by another program ({kind} at {point}): whether a sync reaches a disk is up to that"
        )
        return Judgement(kind, warning=warning)
    if _EMPTY_DIR in f"{mount.root}/":
        return Judgement(kind, note=f"{path} is an emptyDir: what waits outlives the container and ends with the pod")
    return Judgement(kind)


def look(path: Path, mountinfo: Path = _MOUNTINFO) -> Judgement:
    """What is to be said of a folder, or of the nearest one above it that exists."""
    there = (each for each in (path, *path.parents) if os.path.exists(each))  # noqa: PTH110 - Path.exists raises where a stranger's link lies
    place = next(there, Path("/")).resolve()
    try:
        mounts = mounts_in(mountinfo.read_text(errors="surrogateescape"))
    except OSError:  # no /proc here
        return Judgement()
    return judge(str(path), mount_of(str(place), mounts))


def is_pods_own(folder: Path, mountinfo: Path = _MOUNTINFO) -> bool:
    """Whether a folder is the top of a Kubernetes emptyDir: only containers of this pod see it, those that mount it."""
    try:
        mount = mount_of(str(folder), mounts_in(mountinfo.read_text(errors="surrogateescape")))
    except OSError:
        return False
    return mount is not None and mount.point == str(folder) and _EMPTY_DIR in mount.root


def refuse_network(path: Path) -> None:
    """Raise StateError for a state folder on a network file system; say aloud what else may cost its records."""
    found = look(path)
    if found.fault:
        raise StateError(f"state folder {found.fault}")
    if found.warning:
        log.warning("state folder %s", found.warning, extra={"action": "volatile_state"})
