"""Doctor on this host: from facts to what is wrong, why, and what to do."""

from __future__ import annotations

import stat

import pytest
from msgspec.structs import replace

from agentd.doctor import local
from agentd.doctor.facts import DiskSeen, FilesSeen, FolderSeen, SocketSeen, SoftwareSeen, UnitSeen, User
from agentd.filesystems import Judgement

ALICE = User(1001, "alice", frozenset({1001}), frozenset({1001}))
GID = 990
SOCKET = SocketSeen("/run/agentd/agentd.sock", "socket", "denied", "", 0, GID, "agentd", stat.S_IFSOCK | 0o660)
GIB = 2**30
DISK = DiskSeen("/var/lib/agentd", 50 * GIB, 100 * GIB, 10**6, 10**7, read_only=False, judged=Judgement("ext4"))
FOLDER = FolderSeen("/var/lib/agentd", exists=True, uid=1001, mode=stat.S_IFDIR | 0o700)
SOFTWARE = SoftwareSeen("0.1.0", "3.12.3", "/opt/agentd", {"aiohttp": ">=3.13,<4"}, {"aiohttp": "3.14.5"})
UNIT = UnitSeen("active", "running", "success", 0, 0, stale=False, socket_active="active")


def levels(findings):
    return [(finding.check, finding.level) for finding in findings]


# -- the socket ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "user", "level", "cause", "cure"),
    [
        ({"answer": "answers"}, ALICE, "ok", "", ""),
        ({}, ALICE, "fail", "alice is not in the group agentd", "usermod -aG agentd alice"),
        ({}, replace(ALICE, member_of=frozenset({1001, GID})), "fail", "this session began before that", "newgrp agentd"),
        ({"mode": stat.S_IFSOCK | 0o600}, ALICE, "fail", "nobody but its owner", "[listen] group"),
        ({"gid": 0, "group": "root"}, ALICE, "fail", "its group is root's", "[listen] group"),
        ({"answer": "refused"}, ALICE, "fail", "a daemon ended without taking it away", "replaces the socket by itself"),
        ({"answer": "silent"}, ALICE, "fail", "it hangs", "agentd diagnose"),
        ({"answer": "failed", "error": "not a daemon"}, ALICE, "fail", "does not speak as agentd", "AGENTD_SOCKET"),
        ({"kind": "file", "answer": "refused"}, ALICE, "fail", "something else is in the socket's place", "mv "),
        ({"kind": "", "answer": "missing"}, ALICE, "fail", "not running", "systemctl start agentd.socket"),
        ({"kind": "", "answer": "missing", "expected": False}, ALICE, "warn", "none was set up", "agentd sidecar"),
        ({"kind": "", "answer": "missing", "expected": False, "named_by": "AGENTD_SOCKET"}, ALICE, "fail", "AGENTD_SOCKET says", "correct AGENTD_SOCKET"),
        ({"kind": "", "answer": "denied", "closed_folder": "/run/agentd"}, ALICE, "fail", "/run/agentd is closed", "chmod o+x"),
    ],
)  # fmt: skip
def test_why_a_user_does_not_reach_the_daemon(changes, user, level, cause, cure):
    """Each of the usual causes has its own words and its own cure."""
    found = local.socket(replace(SOCKET, **changes), user)
    assert (found.check, found.level) == ("socket", level)
    assert cause in found.cause
    assert cure in found.cure


# -- the state folder ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "uid", "answers", "expected"),
    [
        ({}, 1001, True, [("state", "ok")]),
        ({"mode": stat.S_IFDIR | 0o750}, 1001, False, [("state", "fail")]),
        ({}, 1002, False, [("state", "warn")]),
        ({"readable": False}, 1002, True, [("state", "ok")]),
        ({}, 0, False, [("state", "ok")]),
        ({"exists": False}, 1001, False, [("state", "ok")]),
        ({"exists": False, "makeable": False}, 1001, False, [("state", "warn")]),
        ({"holder": 42}, 1001, False, [("state", "ok"), ("daemon", "warn")]),
        ({"holder": 42}, 1001, True, [("state", "ok")]),
        ({"quarantined": {"2026-11-22": 2, "segment": 3}}, 1001, True, [("state", "ok"), ("quarantine", "warn")]),
    ],
)  # fmt: skip
def test_the_state_folder(changes, uid, answers, expected):
    """Whose it is, who may look, who uses it, and what was set aside."""
    findings = list(local.folder(replace(FOLDER, **changes), uid, answers=answers))
    assert levels(findings) == expected
    if "quarantined" in changes:
        assert "5 damaged pieces were set aside: 2026-11-22 (2), segment (3)" in findings[-1].what


# -- the disk ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected", "words"),
    [
        ({}, [("disk", "ok")], "50.0 GiB of 100.0 GiB free"),
        ({"free_bytes": 10 * 2**20}, [("disk", "fail")], "records are refused"),
        ({"free_bytes": 48 * 2**20 - 1}, [("disk", "fail")], "records are refused"),
        ({"free_bytes": 48 * 2**20}, [("disk", "warn"), ("disk", "ok")], "queue may grow"),
        ({"free_inodes": 99}, [("disk", "fail")], "inodes"),
        ({"free_inodes": 0, "inodes": 0}, [("disk", "ok")], "free"),
        ({"read_only": True}, [("disk", "fail")], "remount"),
        ({"judged": Judgement("nfs4", fault="/x is on a network file system (nfs4 at /x), on which neither locks …")}, [("disk", "fail")], "a disk of this machine"),
        ({"judged": Judgement("tmpfs", warning="/x is in memory (tmpfs at /x): what waits is gone")}, [("disk", "warn"), ("disk", "ok")], "what waits is gone"),
    ],
)  # fmt: skip
def test_the_disk(changes, expected, words):
    """Full, out of inodes, read-only, on the network, in memory."""
    findings = list(local.disk(replace(DISK, **changes), GIB))
    assert levels(findings) == expected
    assert words in " ".join(part for finding in findings for part in (finding.what, finding.cause, finding.cure))


@pytest.mark.parametrize(
    ("seen", "level"),
    [
        (FilesSeen(20_000), "ok"), (FilesSeen(1024), "warn"), (FilesSeen(20_000, 1024, 10), "warn"), (FilesSeen(1024, 20_000, 10), "ok"),
        (FilesSeen(20_000, 20_000, 19_000), "fail"), (FilesSeen(2112), "ok"), (FilesSeen(2111), "warn"),
    ],
)  # fmt: skip
def test_open_files(seen, level):
    """The daemon's limit where it can be seen, else ours; and what is open already."""
    assert local.files(seen, 2048).level == level


# -- software ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [("versions", "ok")]),
        ({"packages": {}}, [("versions", "fail")]),
        ({"packages": {"aiohttp": "4.0"}}, [("versions", "fail")]),
        ({"python": "3.10.9"}, [("versions", "fail")]),
        ({"others": ("/opt/agentd/lib",)}, [("versions", "ok"), ("name clash", "fail")]),
        ({"on_path": "/usr/bin/agentd", "own_command": "/opt/agentd/bin/agentd"}, [("versions", "ok"), ("name clash", "warn")]),
    ],
)  # fmt: skip
def test_software(changes, expected):
    """Versions that do not fit, and PyPI's unrelated agentd."""
    assert levels(local.software(replace(SOFTWARE, **changes))) == expected


@pytest.mark.parametrize(
    ("version", "spec", "right"),
    [
        ("3.13", ">=3.13,<4", True), ("3.13.0", ">=3.13,<4", True), ("3.12.9", ">=3.13,<4", False), ("4.0", ">=3.13,<4", False), ("4", "<4", False),
        ("1.10", ">=1.9", True), ("1.0rc1", ">=1.0", True), ("", ">=1", False), ("2.0", "", True), ("2.0", "~=1.0", True), ("2.0", "!=2.0", False),
    ],
)  # fmt: skip
def test_requirements(version, spec, right):
    """As pip has them, as far as ours go; what is unknown is no fault."""
    assert local.satisfies(version, spec) is right


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["ok"]), ({"active": "failed", "result": "exit-code", "exit_status": 78}, ["fail"]), ({"active": "inactive", "sub": "dead"}, ["ok"]),
        ({"active": "activating", "sub": "auto-restart"}, ["fail"]), ({"active": "inactive", "sub": "dead", "socket_active": "inactive"}, ["warn"]),
        ({"restarts": 4}, ["warn"]), ({"stale": True}, ["ok", "warn"]),
    ],
)  # fmt: skip
def test_the_unit(changes, expected):
    """Failed, in a loop, never enabled, restarted too often, not read again."""
    assert [finding.level for finding in local.unit(replace(UNIT, **changes))] == expected


def test_variables_of_the_shell():
    """Clients that are switched off, and two names for the socket."""
    assert list(local.variables({"AGENTD_DISABLED": "0", "AGENTD_SOCKET": "/a"}, "/a")) == []
    found = list(local.variables({"AGENTD_DISABLED": "allow", "AGENTD_SOCKET": "/b"}, "/a"))
    assert [finding.level for finding in found] == ["warn", "warn"]
    assert "all are allowed" in found[0].cause
    assert "/a" in found[1].cause


def test_every_trouble_has_a_cause_and_a_cure():
    """Whatever is not ok says why, and what to do."""
    findings = [
        local.socket(SOCKET, ALICE),
        *local.disk(replace(DISK, free_bytes=0, read_only=True), GIB),
        *local.unit(replace(UNIT, active="failed")),
        *local.software(replace(SOFTWARE, packages={}, others=("/x",))),
    ]
    assert all(finding.cause and finding.cure for finding in findings if finding.level != "ok")
