"""Judging this host: socket, state folder, disk, open files, software, systemd, variables. Pure."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator, Mapping

from agentd.doctor.facts import DiskSeen, FilesSeen, FolderSeen, SocketSeen, SoftwareSeen, UnitSeen, User
from agentd.doctor.findings import Finding, fail, ok, warn
from agentd.units import format_size

REFUSING_BYTES = 48 * 2**20  # records are refused below 32 MiB, and 16 more are kept back (agentd.spool.folder)
LOW_BYTES = 256 * 2**20
_FEW_INODES = 100
_SPARE_FILES = 64
_OTHERS = 0o077
_RESTARTS = 3
_PYTHON = (3, 11)


def socket(seen: SocketSeen, user: User) -> Finding:
    """Whether this user can reach a daemon."""
    check = "socket"
    if seen.answer == "answers":
        return ok(check, f"{seen.path} answers")
    if seen.closed_folder:
        what = f"{seen.path} can't be reached by {user.name} (uid {user.uid})"
        return fail(check, what, f"the folder {seen.closed_folder} is closed to this user", "set listen.socket to a folder that agents may enter, or chmod o+x it")  # fmt: skip
    if seen.kind not in {"", "socket"}:
        return fail(check, f"{seen.path} is a {seen.kind}", "something else is in the socket's place, which agentd does not delete", f"look at it, move it away, then start agentd: mv {seen.path} {seen.path}.old")  # fmt: skip
    if seen.answer == "denied":
        return _denied(check, seen, user)
    if seen.answer == "refused":
        return fail(check, f"{seen.path} is stale: nobody listens there", "a daemon ended without taking it away (kill -9, power)", "start agentd; it replaces the socket by itself: systemctl start agentd, or agentd run")  # fmt: skip
    if seen.answer == "missing":
        return _missing(check, seen)
    cure = "if it stays so: agentd diagnose, then restart it; what was acknowledged is on disk"
    if seen.answer == "silent":
        return fail(check, f"the daemon at {seen.path} does not answer", "it hangs, or this host is overloaded", cure)
    return fail(check, f"{seen.path}: {seen.error}", "what listens there does not speak as agentd does", "is another program using this path? set AGENTD_SOCKET or --socket to agentd's")  # fmt: skip


def _missing(check: str, seen: SocketSeen) -> Finding:
    cure = "start it: systemctl start agentd.socket, or agentd run; agentd sidecar -- COMMAND needs none"
    if seen.named_by:
        return fail(check, f"no daemon at {seen.path}", f"{seen.named_by} says that it is there", f"{cure}; or correct {seen.named_by}")  # fmt: skip
    if seen.expected:
        return fail(check, f"no daemon at {seen.path}", "it is not running, or listens somewhere else", cure)
    return warn(check, f"no daemon at {seen.path}", "none was set up here", cure)


def _denied(check: str, seen: SocketSeen, user: User) -> Finding:
    mode = f"{stat.S_IMODE(seen.mode):04o}, uid {seen.uid}, group {seen.group or seen.gid}"
    what = f"{user.name} (uid {user.uid}) may not connect to {seen.path} ({mode})"
    by_group = bool(seen.mode & stat.S_IWGRP)
    if by_group and seen.gid in user.member_of and seen.gid not in user.groups:
        return fail(check, what, f"{user.name} is in the group {seen.group} by now, and this session began before that", f"log in anew, or run: newgrp {seen.group}; a service: restart it")  # fmt: skip
    if by_group and seen.gid != 0:
        return fail(check, what, f"{user.name} is not in the group {seen.group or seen.gid}", f"usermod -aG {seen.group or seen.gid} {user.name}, then log in anew")  # fmt: skip
    cure = 'give agents a group of their own: [listen] group = "agentd", mode = "0660", and put their users into it'
    return fail(check, what, "its mode lets nobody but its owner in" if not by_group else "its group is root's", cure)


def folder(seen: FolderSeen, uid: int, *, answers: bool) -> Iterator[Finding]:
    """Whose the state folder is, and what lies in quarantine. `answers`: a daemon was found at the socket."""
    check = "state"
    if not seen.exists:
        if seen.makeable:
            yield ok(check, f"{seen.path} is not there yet; a daemon makes it")
        else:
            yield warn(check, f"{seen.path} is not there", f"uid {uid} may not make it", "run agentd as the user that may, or set spool.directory")  # fmt: skip
        return
    if seen.uid == uid and seen.mode & _OTHERS:
        yield fail(check, f"others may look into {seen.path} (mode {stat.S_IMODE(seen.mode):04o})", "agentd refuses such a folder", f"chmod 700 {seen.path}")  # fmt: skip
    elif uid not in {seen.uid, 0} and not answers and seen.holder is None:
        yield warn(check, f"{seen.path} belongs to uid {seen.uid}", f"an agentd of uid {uid} would refuse it; one that ran as another user, root perhaps, made it", f"chown -R {uid} {seen.path}, or run agentd as uid {seen.uid}, or set spool.directory")  # fmt: skip
    elif not seen.readable:
        yield ok(
            check, f"{seen.path} is closed to this user, as it should be; as its owner or root doctor looks inside"
        )
    else:
        yield ok(check, seen.path)
    if seen.holder is not None and not answers:
        yield warn("daemon", f"a daemon (pid {seen.holder}) uses {seen.path} and does not answer here", "it listens at another socket, or hangs", f"cat /proc/{seen.holder}/cmdline; agentd config shows where it listens")  # fmt: skip
    if seen.quarantined:
        names = ", ".join(f"{name} ({count})" for name, count in sorted(seen.quarantined.items()))
        yield warn("quarantine", f"{sum(seen.quarantined.values())} damaged pieces were set aside: {names}", "the disk gave back other bytes than were written, or somebody wrote into the folder", f"the log said which records; look at the disk (smartctl, dmesg), run agentd audit; then {seen.path}/quarantine may be moved away")  # fmt: skip


def disk(seen: DiskSeen, max_bytes: int) -> Iterator[Finding]:
    """Whether records can be kept there."""
    check, place = "disk", seen.path
    free = f"{format_size(seen.free_bytes)} of {format_size(seen.total_bytes)} free at {place}"
    bad = False
    if seen.read_only:
        bad = True
        yield fail(check, f"{place} is read-only", "mounted so, or the kernel made it so after errors", "dmesg says why; mount -o remount,rw, or under systemd ReadWritePaths= and StateDirectory=")  # fmt: skip
    if seen.judged.fault:
        bad = True
        yield fail(check, seen.judged.fault.partition(", on which")[0], "neither locks nor syncs hold there what was acknowledged", "set spool.directory to a folder on a disk of this machine")  # fmt: skip
    if seen.judged.warning:
        yield warn(check, seen.judged.warning.partition(": ")[0], seen.judged.warning.partition(": ")[2], "set spool.directory to a folder that outlives the container or the restart, on a volume or a disk")  # fmt: skip
    if seen.free_bytes < REFUSING_BYTES:
        bad = True
        yield fail(check, free, "below 32 MiB records are refused as spool full", "make room; agentd takes records again by itself")  # fmt: skip
    elif seen.free_bytes < max(LOW_BYTES, min(max_bytes, seen.total_bytes // 10)):
        yield warn(check, free, f"the queue may grow to {format_size(max_bytes)} (spool.max_bytes)", "make room, or lower spool.max_bytes")  # fmt: skip
    if seen.inodes and seen.free_inodes < _FEW_INODES:
        bad = True
        yield fail(check, f"{seen.free_inodes} inodes are free at {place}", "many small files, usually somebody else's", "df -i; delete what is not needed")  # fmt: skip
    if not bad:
        yield ok(check, free + (f", {seen.judged.kind}" if seen.judged.kind else ""))


def files(seen: FilesSeen, max_connections: int) -> Finding:
    """Whether as many files may be open as connections may come."""
    check, wanted = "files", max_connections + _SPARE_FILES
    cure = f"LimitNOFILE={wanted} in the unit, ulimit -n in a shell; or lower intake.max_connections"
    limit = seen.hard if seen.daemon_limit is None else seen.daemon_limit
    whose = "this user's processes" if seen.daemon_limit is None else "the daemon"
    if seen.daemon_open is not None and seen.daemon_limit and seen.daemon_open > 0.9 * seen.daemon_limit:
        return fail(check, f"the daemon has {seen.daemon_open} of {seen.daemon_limit} files open", "its limit is nearly reached: connections are about to wait", cure)  # fmt: skip
    if limit < wanted:
        return warn(check, f"{whose} may open {limit} files", f"intake.max_connections is {max_connections}", cure)
    return ok(check, f"{whose} may open {limit}" + (f", has {seen.daemon_open} open" if seen.daemon_open is not None else ""))  # fmt: skip


def software(seen: SoftwareSeen) -> Iterator[Finding]:
    """Versions, and the unrelated distribution of our name."""
    check = "versions"
    wrong = [
        f"{name} {seen.packages.get(name) or 'missing'} (wants {spec})"
        for name, spec in seen.wanted.items()
        if not satisfies(seen.packages.get(name, ""), spec)
    ]
    if wrong:
        yield fail(check, ", ".join(wrong), "another program's requirements changed them, or the installation was cut short", "pip install --upgrade agentd-recorder, best in an environment of its own (pipx, venv)")  # fmt: skip
    elif _numbers(seen.python) < _PYTHON:
        yield fail(check, f"Python {seen.python}", "agentd needs 3.11 or newer", "install it for a newer Python")
    else:
        yield ok(check, f"agentd {seen.agentd}, Python {seen.python}, in {seen.where}")
    if seen.others:
        yield fail("name clash", f"a distribution `agentd` is installed beside agentd-recorder ({', '.join(seen.others)})", "PyPI's agentd is another project; both install a package of that name, and the later one overwrote files of the first", "pip uninstall agentd agentd-recorder; pip install agentd-recorder")  # fmt: skip
    if seen.on_path and seen.own_command and seen.on_path != seen.own_command:
        yield warn("name clash", f"a shell starts {seen.on_path}", f"this is {seen.own_command}; another agentd is before it on PATH", "call this one by its whole path, or put its folder first on PATH")  # fmt: skip


def satisfies(version: str, spec: str) -> bool:
    """Whether a version is within `>=3.13,<4`; what can't be compared counts as right."""
    if not version:
        return False
    for part in filter(None, spec.replace(" ", "").split(",")):
        found = re.fullmatch(r"(>=|<=|==|!=|<|>)([0-9.]+)", part)
        if found is None:
            continue
        have, want = _numbers(version), _numbers(found[2])
        size = max(len(have), len(want))
        have, want = (*have, *[0] * (size - len(have))), (*want, *[0] * (size - len(want)))
        right = {
            ">=": have >= want, "<=": have <= want, "==": have == want, "!=": have != want, "<": have < want, ">": have > want,
        }  # fmt: skip
        if not right[found[1]]:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def unit(seen: UnitSeen) -> Iterator[Finding]:
    """What systemd has to say."""
    check = "systemd"
    state = f"agentd.service is {seen.active} ({seen.sub})"
    if seen.active == "failed":
        yield fail(check, state, f"it ended with {seen.result}, status {seen.exit_status}", "journalctl -u agentd -n 50; 78 is a bad configuration: agentd check; then systemctl reset-failed agentd and start it")  # fmt: skip
    elif seen.active == "activating" and seen.sub == "auto-restart":
        yield fail(check, state, f"it ends as soon as it is started ({seen.result}, status {seen.exit_status})", "journalctl -u agentd -n 50")  # fmt: skip
    elif seen.active == "inactive" and seen.socket_active != "active":
        yield warn(check, f"{state}, and its socket does not listen", "it was stopped or never enabled", "systemctl enable --now agentd.socket")  # fmt: skip
    elif seen.restarts > _RESTARTS:
        yield warn(check, f"{state}, restarted {seen.restarts} times", "it was killed or died", "journalctl -u agentd -p warning")  # fmt: skip
    else:
        yield ok(check, state)
    if seen.stale:
        yield warn(check, "the unit was changed and not read again", "its file is newer than what systemd knows", "systemctl daemon-reload, then systemctl restart agentd")  # fmt: skip


def variables(env: Mapping[str, str], listens: str) -> Iterator[Finding]:
    """Variables of this shell that change what clients do."""
    disabled = env.get("AGENTD_DISABLED", "")
    if disabled and disabled != "0":
        yield warn("variables", f"AGENTD_DISABLED={disabled[:16]}", "clients started from here hand in nothing, and their gates do not proceed" + (" (all are allowed)" if disabled == "allow" else ""), "unset AGENTD_DISABLED where agents are to be recorded")  # fmt: skip
    named = env.get("AGENTD_SOCKET", "")
    if named and listens and named != listens:
        yield warn("variables", f"AGENTD_SOCKET is {named}", f"the configuration that is found here listens at {listens}", "let both name one socket, or unset AGENTD_SOCKET")  # fmt: skip
