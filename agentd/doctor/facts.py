"""What was seen of the host, as plain values: whoever judges them opens nothing."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from agentd.filesystems import Judgement


class User(Struct, frozen=True):
    """Who asks. `groups` are those of this process, `member_of` those that the host's list says: a new one counts from the next login."""

    uid: int
    name: str
    groups: frozenset[int]
    member_of: frozenset[int]


class SocketSeen(Struct, frozen=True):
    """What lies at the socket's path, and what connecting to it came to."""

    path: str
    kind: str  # "" for nothing, "socket", "file", "folder"
    answer: Literal["answers", "refused", "denied", "missing", "silent", "failed"]
    error: str = ""
    uid: int = -1
    gid: int = -1
    group: str = ""
    mode: int = 0
    closed_folder: str = ""  # on the way to it, which this user may not pass
    named_by: str = ""  # the variable or option that says so; empty for the usual place
    expected: bool = True  # somebody has set up agentd here


class FolderSeen(Struct, frozen=True):
    """The state folder. `readable` False: this user may not look inside."""

    path: str
    exists: bool
    readable: bool = True
    uid: int = -1
    mode: int = 0
    makeable: bool = True
    quarantined: dict[str, int] = {}  # files below quarantine/, by folder
    holder: int | None = None  # pid of the daemon that uses it


class DiskSeen(Struct, frozen=True):
    """The file system that the state folder is on, or will be."""

    path: str
    free_bytes: int
    total_bytes: int
    free_inodes: int
    inodes: int  # 0 where there is no such limit
    read_only: bool
    judged: Judgement = Judgement()


class FilesSeen(Struct, frozen=True):
    """How many files may be open: of this process at most, and of the daemon, where that can be seen."""

    hard: int
    daemon_limit: int | None = None
    daemon_open: int | None = None


class SoftwareSeen(Struct, frozen=True):
    """Versions. `wanted` are the requirements of our own distribution, `packages` what is installed.

    `others` are the places of a distribution of the name `agentd`, `on_path` is the command that a shell would start.
    """

    agentd: str
    python: str
    where: str
    wanted: dict[str, str] = {}
    packages: dict[str, str] = {}
    others: tuple[str, ...] = ()
    on_path: str = ""
    own_command: str = ""


class UnitSeen(Struct, frozen=True):
    """What systemd says of agentd.service."""

    active: str
    sub: str
    result: str
    restarts: int
    exit_status: int
    stale: bool  # the unit's file is newer than what systemd has read
    socket_active: str = ""


class Hop(Struct, frozen=True):
    """The way to one destination as far as it was gone; the first thing that failed ends it."""

    name: str
    base_url: str
    host: str
    port: int
    proxy: str = ""
    proxy_source: str = ""
    addresses: tuple[str, ...] = ()
    dns_error: str = ""
    tcp_error: str = ""
    tcp_ms: float | None = None
    tls_error: str = ""
    certificate_days: float | None = None  # until it ends
    issuer: str = ""
    lost: str = ""  # why there was no answer to the question
    key_found: Literal["taken", "refused", "away", "unclear", ""] = ""  # "": it was not asked
    key_said: str = ""
    status: int | None = None
    clock_ahead_s: float | None = None  # ours, of the platform's Date
    unreadable: str = ""  # why the key can't be had
