"""The whole examination: what is looked at, in which order, and what is left out where it can't be seen from here.

    findings = examine(Given(loaded, error, socket, named_by), Answered(status, unhealthy, unready), env)

A daemon that answers speaks for itself; of one that does not, the disk is read, as `agentd status` does it, and as the last thing of
all: root becomes the folder's owner for it, who may not see what root sees.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from agentd import __version__
from agentd.control.at_rest import status_at_rest
from agentd.doctor import asking, daemon, local, looking, remote
from agentd.doctor.facts import Hop, SocketSeen
from agentd.doctor.findings import Finding, fail, ok, warn
from agentd.errors import AgentdError, SpoolDamaged
from agentd.paths import state_directory
from agentd.sections import Config, Loaded
from agentd.spool.look import look, running_pid
from agentd.units import format_duration
from agentd.variables import KEY_VARIABLES


class Given(Struct, frozen=True):
    """What the command line, the environment and the usual places say. `faults` are what `agentd check` finds wrong."""

    socket: str
    loaded: Loaded | None = None
    error: str = ""  # why there is no configuration
    unreadable: bool = False  # there is one, and it is not for this user
    named_by: str = ""  # what names the socket, if anything does
    faults: tuple[str, ...] = ()


class Answered(Struct, frozen=True):
    """What the daemon said of itself; `status` None: it did not."""

    status: dict[str, Any] | None = None
    error: str = ""
    unhealthy: str = ""
    unready: str = ""


def examine(given: Given, ask: Callable[[], Answered], env: Mapping[str, str], *, online: bool = True) -> list[Finding]:
    """All findings, in the order in which one would look. `online` False asks no platform."""
    user = looking.user()
    expected = given.loaded is None or bool(given.loaded.config.destinations) or given.loaded.path is not None
    seen = looking.socket(given.socket, named_by=given.named_by, expected=expected)
    answered = ask() if seen.answer == "answers" else Answered()
    if seen.answer == "answers" and answered.status is None:
        seen = _silent(seen, answered.error)
    config = given.loaded.config if given.loaded is not None else Config()
    directory = _directory(given, answered, env, user.uid)
    holder = running_pid(directory)
    pid = holder if answered.status is None else answered.status["pid"]
    is_anothers = (
        seen.kind == "socket" and seen.answer == "denied"
    )  # somebody else's daemon: what we could start says nothing of it
    if is_anothers:
        given = replace(given, faults=())
    unit = looking.unit()
    hops = asking.hops(config, env) if online and given.loaded is not None else []
    return [
        *local.software(looking.software()),
        *_configuration(given, answered),
        *(local.unit(unit) if unit is not None else ()),
        local.socket(seen, user),
        *local.variables(env, config.listen.socket if given.loaded is not None and given.loaded.path else ""),
        *(daemon.daemon(answered.status, __version__, answered.unhealthy, answered.unready) if answered.status else ()),
        *_state(directory, holder, config, given, answered, user.uid, is_anothers=is_anothers),
        local.files(looking.files(pid), config.intake.max_connections),
        *_platforms([hop for hop in hops if not _is_said(hop, given, answered)], answered, is_anothers=is_anothers),
        *remote.clock(hops),
        *_books(given, answered, directory, holder),
    ]


def _silent(seen: SocketSeen, error: str) -> SocketSeen:
    """It took the connection and said nothing, or nothing that a daemon would say."""
    return SocketSeen(
        seen.path, seen.kind, "silent" if "did not answer" in error else "failed", error.partition(": ")[2] or error
    )


def _directory(given: Given, answered: Answered, env: Mapping[str, str], uid: int) -> Path:
    """Where the state is: the daemon knows best."""
    if answered.status is not None:
        return Path(answered.status["spool"]["directory"])
    if given.loaded is not None:
        return Path(given.loaded.config.spool.directory)
    return Path(state_directory(env, uid))


def _configuration(given: Given, answered: Answered) -> Iterator[Finding]:
    check = "configuration"
    if given.unreadable:
        yield ok(check, f"{given.error}; it is the service's, and nothing for this user")
        return
    if given.loaded is None:
        yield fail(check, given.error, "agentd would not start with it", "mend it; agentd check says when it is right")
        return
    config, where = given.loaded.config, given.loaded.path or "no file; from the environment"
    if answered.status is not None and answered.status.get("config") != given.loaded.path:
        theirs = answered.status.get("config") or "no file; its environment"
        yield warn(check, f"the daemon has {theirs}, this command {where}", "they were started in different places or by different users", "name it: --config PATH, or AGENTD_CONFIG")  # fmt: skip
    if not config.destinations and answered.status is None:
        yield warn(check, "there is no destination", f"no file was found, and none of {', '.join(KEY_VARIABLES[:3])}, … is set", "agentd init writes a configuration; agentd demo needs none")  # fmt: skip
        return
    if answered.status is None:
        for fault in given.faults:
            yield fail(check, fault, "agentd would not start with it", "agentd check says all of it")
    if answered.status is not None or not given.faults:
        yield ok(check, f"{where}; {len(config.destinations)} destination(s)")


def _state(
    directory: Path,
    holder: int | None,
    config: Config,
    given: Given,
    answered: Answered,
    uid: int,
    *,
    is_anothers: bool,
) -> Iterator[Finding]:
    """The state folder and its disk, unless it is not known where they are."""
    answers = answered.status is not None
    if given.unreadable and not answers:
        return
    yield from local.folder(looking.folder(directory, holder), uid, answers=answers or is_anothers)
    seen = looking.disk(directory)
    if seen is not None:
        yield from local.disk(seen, int(config.spool.max_bytes))


def _is_said(hop: Hop, given: Given, answered: Answered) -> bool:
    """Whether the configuration's faults have it already."""
    about = f"[destinations.{hop.name}]"
    return bool(hop.unreadable) and answered.status is None and any(fault.startswith(about) for fault in given.faults)


def _platforms(hops: list[Hop], answered: Answered, *, is_anothers: bool) -> Iterator[Finding]:
    """A key that is not for this user's eyes is the daemon's affair, who says how it fares."""
    for hop in hops:
        if hop.unreadable and is_anothers:
            yield ok(hop.name, f"its key can't be read from here ({hop.unreadable}); the daemon may have it")
        elif hop.unreadable and answered.status is not None and hop.name in answered.status["destinations"]:
            yield ok(hop.name, f"its key can't be read from here ({hop.unreadable}); how it fares: {hop.name} queue")
        else:
            yield from remote.way(hop)


def _books(given: Given, answered: Answered, directory: Path, holder: int | None) -> Iterator[Finding]:
    """What the daemon says of its queues, or the disk of a stopped one's."""
    status = answered.status
    if status is None:
        if given.loaded is None or not _has_spool(directory):
            return
        try:
            with look(directory, time.time_ns() // 1000) as found:
                status = status_at_rest(found, given.loaded, holder, time.time_ns() // 1000)
        except SpoolDamaged as error:
            yield fail("spool", "it is damaged", str(error), "start agentd: what is whole is delivered, the rest goes to quarantine; agentd audit tells more")  # fmt: skip
            return
        except (AgentdError, OSError) as error:
            yield warn("spool", "it can't be read", str(error), "run doctor as its owner or as root")
            return
    yield from daemon.books(status)
    if answered.status is not None:
        yield from daemon.destinations(status)
        return
    for name, there in status["destinations"].items():
        if there["queued"]:
            age = format_duration(there["oldest_age_s"] or 0.0)
            yield warn(f"{name} queue", f"{there['queued']:,} wait, the oldest for {age}", "no daemon sends them", "start agentd")  # fmt: skip


def _has_spool(directory: Path) -> bool:
    try:
        return (directory / "spool" / "cache.db").exists()
    except OSError:
        return False
