"""Where the daemon's socket is, and whether it may be trusted."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping

from agentd.errors import AgentdError
from agentd.paths import MAX_SOCKET_PATH, client_socket_paths

_TEMPORARY = "/tmp/agentd-"  # noqa: S108 - anyone may make a folder there, hence the check below


class NoDaemon(AgentdError, ConnectionError):  # noqa: N818 - a state that is found, named as the reader would say it
    """No agentd answers."""


def find_socket(env: Mapping[str, str], wanted: str | None = None) -> str:
    """The first of the known places that holds a socket we may trust. Raises NoDaemon with all that was tried."""
    if not hasattr(os, "getuid"):
        raise NoDaemon("this system has no Unix sockets")
    uid = os.getuid()
    tried = []
    for path in [wanted] if wanted else client_socket_paths(env, uid):
        against = _against(path, uid)
        if against is None:
            return path
        tried.append(f"{path} ({against})")
    raise NoDaemon(", ".join(tried))


def _against(path: str, uid: int) -> str | None:
    """Why this path is not the one, None if it is."""
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        return f"longer than the {MAX_SOCKET_PATH} bytes that a socket's path may have"
    if path.startswith(_TEMPORARY):
        foreign = _folder_against(os.path.dirname(path), uid)  # noqa: PTH120 - pathlib costs an agent 5 ms at import
        if foreign:
            return foreign
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - as above
    except OSError as error:
        return (error.strerror or "unreachable").lower()
    return None if stat.S_ISSOCK(mode) else "not a socket"


def _folder_against(folder: str, uid: int) -> str | None:
    """In /tmp somebody else could have put up a daemon of his own: the folder has to be ours alone."""
    try:
        found = os.lstat(folder)
    except OSError as error:
        return (error.strerror or "unreachable").lower()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid or stat.S_IMODE(found.st_mode) & 0o077:
        return f"its folder is not a folder of uid {uid} with mode 0700"
    return None
