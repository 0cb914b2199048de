"""Files that hold secrets: read only where nobody else can read them, or put another secret in their place.

A symbolic link is followed (Kubernetes mounts secrets as links), and held to the same as the file: whoever owns it, or may write in
the folder that it stands in, chooses what is read. Root may read what belongs to somebody else: its configuration says so.
Messages name the path and never the content.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from agentd.errors import ConfigError, StateError
from agentd.ownership import check_way, is_trusted

MAX_BYTES = 64 * 1024  # keys, tokens, PEM files
_OTHERS = 0o077
_OTHERS_WRITE = 0o022


def read_private(path: Path, *, checked: bool = True) -> str:
    """The file's text. Raises ConfigError, also where others may read or replace it; without `checked` somebody else has seen to that."""
    try:
        fd = os.open(
            path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        )  # a FIFO that nobody writes to would hold up the start
        try:
            _check_kind(path, os.fstat(fd))
            if checked:
                _check_file(path, os.fstat(fd))
                _check_way(path)
            data = os.read(fd, MAX_BYTES + 1)
        finally:
            os.close(fd)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: more than {MAX_BYTES} bytes, which is no secret's size")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not text") from None  # the cause would quote the secret


def _check_kind(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"{path}: {'Is a directory' if stat.S_ISDIR(found.st_mode) else 'is no file'}")


def _check_file(path: Path, found: os.stat_result) -> None:
    if found.st_mode & _OTHERS:
        raise ConfigError(
            f"{path}: others may read this secret; chmod 600 it (its mode is {stat.S_IMODE(found.st_mode):o})"
        )
    if not _is_ours(found.st_uid):
        raise ConfigError(f"{path}: belongs to uid {found.st_uid}, who may change it; agentd runs as {os.geteuid()}")


def _check_way(path: Path) -> None:
    """Whoever may write to a folder may put another file into it; the sticky bit leaves that to the file's owner."""
    us = os.geteuid()
    for place in {path.absolute(), Path(os.path.realpath(path))}:
        found = os.stat(place.parent)  # noqa: PTH116 - beside the other calls of os
        if found.st_mode & _OTHERS_WRITE and not found.st_mode & stat.S_ISVTX:
            mode = f"{stat.S_IMODE(found.st_mode):o}"
            raise ConfigError(
                f"{path}: others may put another file in its place: {place.parent} is theirs to write to (its mode is {mode})"
            )
    link = os.lstat(path)
    if stat.S_ISLNK(link.st_mode) and not _is_ours(link.st_uid):
        raise ConfigError(f"{path}: is a symbolic link of uid {link.st_uid}, who may lead it elsewhere")
    if us:
        try:
            check_way(path, us, "secret")
        except StateError as error:
            raise ConfigError(str(error)) from None


def _is_ours(uid: int) -> bool:
    """Root's, or our own; to root everybody's is."""
    us = os.geteuid()
    return us == 0 or is_trusted(uid, us)
