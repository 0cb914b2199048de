"""Looking at this host. Reads, connects once to the daemon's socket, and writes nothing."""

from __future__ import annotations

import contextlib
import errno
import grp
import importlib.metadata
import os
import platform
import pwd
import re
import resource
import shutil
import socket as sockets
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from agentd import __version__, filesystems
from agentd.doctor.facts import DiskSeen, FilesSeen, FolderSeen, SocketSeen, SoftwareSeen, UnitSeen, User

_CONNECT_S = 2.0
_SYSTEMCTL_S = 5.0
_OURS, _OTHERS = "agentd-recorder", "agentd"
_REQUIREMENT = re.compile(r"([A-Za-z0-9_.-]+)\s*\(?([^;()]*)\)?\s*(;.*)?")
_KINDS = ((stat.S_ISSOCK, "socket"), (stat.S_ISDIR, "folder"), (stat.S_ISLNK, "symbolic link"))
_ANSWERS: dict[int, Literal["answers", "refused", "denied", "missing", "silent"]] = {
    0: "answers", errno.ECONNREFUSED: "refused", errno.EACCES: "denied", errno.EPERM: "denied", errno.ENOENT: "missing",
    errno.EAGAIN: "silent", errno.ETIMEDOUT: "silent", errno.ENOTDIR: "missing",
}  # fmt: skip


def user() -> User:
    """Who we are. The list of groups is what a new login would get."""
    uid, gid = os.geteuid(), os.getegid()
    try:
        entry = pwd.getpwuid(uid)
        name, listed = entry.pw_name, os.getgrouplist(entry.pw_name, entry.pw_gid)
    except (KeyError, OSError):
        name, listed = f"uid {uid}", []
    groups = frozenset({gid, *os.getgroups()})
    return User(uid, name, groups, frozenset(listed) | groups)


def socket(path: str, *, named_by: str = "", expected: bool = True) -> SocketSeen:
    """What is at the path, and whether it lets us in. A connection is made and closed without a word."""
    closed = _closed_on_the_way(Path(path))
    try:
        found = os.lstat(path)
    except OSError as error:
        return SocketSeen(
            path,
            "",
            "denied" if error.errno == errno.EACCES else "missing",
            closed_folder=closed,
            named_by=named_by,
            expected=expected,
        )
    kind = next((name for is_it, name in _KINDS if is_it(found.st_mode)), "file")
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as probe:
        probe.settimeout(_CONNECT_S)
        try:
            number = probe.connect_ex(path)
        except OSError as error:  # TimeoutError; a path that is too long
            number = error.errno or errno.ETIMEDOUT
    return SocketSeen(
        path, kind, _ANSWERS.get(number, "failed"), os.strerror(number) if number else "", found.st_uid, found.st_gid,
        _group(found.st_gid), found.st_mode, closed, named_by, expected,
    )  # fmt: skip


def _group(gid: int) -> str:
    with contextlib.suppress(KeyError):
        return grp.getgrgid(gid).gr_name
    return ""


def _closed_on_the_way(path: Path) -> str:
    for place in reversed(path.absolute().parents):
        if place.exists() and not os.access(place, os.X_OK):
            return str(place)
    return ""


def folder(path: Path, holder: int | None) -> FolderSeen:
    """The state folder; `holder` is who has its lock (agentd.spool.look.running_pid)."""
    try:
        found = path.stat()
    except PermissionError:
        return FolderSeen(str(path), exists=True, readable=False, holder=holder)
    except OSError:
        above = next(place for place in (*path.absolute().parents, Path("/")) if place.is_dir())
        return FolderSeen(str(path), exists=False, makeable=os.access(above, os.W_OK | os.X_OK))
    readable = os.access(path, os.R_OK | os.X_OK)
    quarantined = _quarantined(path / "quarantine") if readable else {}
    return FolderSeen(
        str(path), exists=True, readable=readable, uid=found.st_uid, mode=found.st_mode, quarantined=quarantined, holder=holder
    )  # fmt: skip


def _quarantined(place: Path) -> dict[str, int]:
    """How many files lie in each of its folders."""
    try:
        folders = [entry.name for entry in os.scandir(place) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return {}
    counts = {name: sum(len(files) for _, _, files in os.walk(place / name)) for name in folders}
    return {name: count for name, count in counts.items() if count}


def disk(path: Path) -> DiskSeen | None:
    """The file system of the nearest folder that exists; None where it does not say."""
    place = next(each for each in (path.absolute(), *path.absolute().parents, Path("/")) if each.exists())
    try:
        found = os.statvfs(place)
    except OSError:
        return None
    return DiskSeen(
        str(place), found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize, found.f_favail, found.f_files,
        bool(found.f_flag & os.ST_RDONLY), filesystems.look(path),
    )  # fmt: skip


def files(pid: int | None) -> FilesSeen:
    """Of this process, and of the daemon as far as we may look."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    hard = 2**31 if hard == resource.RLIM_INFINITY else hard
    limit = count = None
    if pid is not None:
        with contextlib.suppress(OSError, StopIteration, ValueError, IndexError):
            lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
            limit = int(next(line for line in lines if line.startswith("Max open files")).split()[3])
        with contextlib.suppress(OSError):
            count = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - names alone
    return FilesSeen(hard, limit, count)


def software() -> SoftwareSeen:
    """What is installed in the environment that this runs in."""
    wanted, packages = {}, {}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for requirement in importlib.metadata.requires(_OURS) or ():
            found = _REQUIREMENT.fullmatch(requirement)
            if found is not None and "extra" not in (found[3] or ""):
                wanted[found[1]] = found[2].strip()
    for name in wanted:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            packages[name] = importlib.metadata.version(name)
    others = tuple(
        str(one.locate_file(""))
        for one in importlib.metadata.distributions()
        if (one.metadata["Name"] or "").lower() == _OTHERS
    )
    own = Path(sys.prefix) / "bin" / "agentd"
    on_path = shutil.which("agentd") or ""
    same = bool(on_path) and own.exists() and Path(on_path).resolve() == own.resolve()
    return SoftwareSeen(
        __version__, platform.python_version(), sys.prefix, wanted, packages, others,
        "" if same else on_path, str(own) if own.exists() else "",
    )  # fmt: skip


def unit(name: str = "agentd") -> UnitSeen | None:
    """What systemd says; None where there is no systemd, or no such unit."""
    if not Path("/run/systemd/system").is_dir() or shutil.which("systemctl") is None:
        return None
    service = _show(f"{name}.service")
    if service.get("LoadState") != "loaded":
        return None
    return UnitSeen(
        service.get("ActiveState", ""), service.get("SubState", ""), service.get("Result", ""), _number(service.get("NRestarts")),
        _number(service.get("ExecMainStatus")), service.get("NeedDaemonReload") == "yes", _show(f"{name}.socket").get("ActiveState", ""),
    )  # fmt: skip


def _show(name: str) -> Mapping[str, str]:
    wanted = "LoadState,ActiveState,SubState,Result,NRestarts,ExecMainStatus,NeedDaemonReload"
    try:
        done = subprocess.run(
            ["systemctl", "show", name, f"--property={wanted}"],
            capture_output=True, text=True, timeout=_SYSTEMCTL_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0
