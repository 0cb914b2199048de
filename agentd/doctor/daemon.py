"""Judging what a daemon says of itself, or what the disk says of one that does not run (`GET /v1/status`). Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from agentd.doctor.findings import Finding, fail, ok, warn
from agentd.units import format_duration, format_size

_NEARLY = 0.8
_STATUS = re.compile(r"\b([1-5]\d\d)\b")
_CURES = {
    "401": "put the right key where api_key says, then systemctl reload agentd (or SIGHUP); agentd check --online asks whether it is taken",
    "402": "the plan or its quota is used up: the platform's billing page; agentd probes and goes on by itself",
    "403": "the key may not do this: give it the permission at the platform, or use another agent's",
    "404": "is base_url right? agentd config shows it",
    "429": "the platform asks for rest; agentd goes on when it says so",
}


def daemon(status: dict[str, Any], version: str, unhealthy: str, unready: str) -> Iterator[Finding]:
    """A daemon that answered. `version` is that of this command."""
    check = "daemon"
    name = f"agentd {status['agentd']}, pid {status['pid']}, up {format_duration(status.get('uptime_s') or 0.0)}"
    if unhealthy:
        yield fail(check, f"{name} is not healthy", unhealthy, "look at the disk (dmesg, df); agentd diagnose, then restart it; what was acknowledged is on disk")  # fmt: skip
    elif unready and unready != "draining":
        yield fail(check, f"{name} is not ready", unready, "restart it: systemctl restart agentd")
    elif status["state"] == "draining":
        yield warn(check, f"{name} is stopping", "it sends what it can before it ends", "wait, or start it again")
    else:
        yield ok(check, name)
    if status["agentd"] != version:
        yield warn(check, f"the daemon is {status['agentd']}, this command {version}", "it was upgraded and not restarted, or there are two installations", "systemctl restart agentd; which -a agentd")  # fmt: skip
    error = (status.get("reloads") or {}).get("last_error")
    if error:
        yield warn("configuration", "the last reload was refused; the old configuration is in force", str(error), "agentd check, mend it, systemctl reload agentd")  # fmt: skip


def books(status: dict[str, Any]) -> Iterator[Finding]:
    """Books, disk and dead letters."""
    if not status.get("balanced", True):
        wrong = [name for name, there in status["destinations"].items() if not there.get("balanced", True)]
        yield fail("books", f"they do not balance{': ' if wrong else ''}{', '.join(wrong)}", "a defect of agentd's, or somebody wrote into the state folder", "agentd audit says where; agentd diagnose makes a bundle for the bug report")  # fmt: skip
    else:
        yield ok("books", "they balance")
    spool = status["spool"]
    if spool.get("full"):
        yield fail("spool", "records are refused: the disk is full or fails", "see disk; the log says `disk full` or `disk fails`", "make room or mend the disk; agentd goes on by itself")  # fmt: skip
    if spool.get("quarantined_rows"):
        yield warn("quarantine", f"{spool['quarantined_rows']} damaged rows were set aside since the start", "the disk gave back other bytes than were written", "the log says which records; agentd audit; look at the disk")  # fmt: skip
    yield from _letters(status["dead_letters"])


def _letters(dead: dict[str, Any]) -> Iterator[Finding]:
    if not dead["records"]:
        return
    size = f"{dead['records']} dead letters, {format_size(dead['bytes'])} of {format_size(dead['max_bytes'])}"
    cure = "agentd dead-letters list says why; mend that, then agentd dead-letters replay, or purge --reason"
    if dead["max_bytes"] and dead["bytes"] > _NEARLY * dead["max_bytes"]:
        yield fail("dead letters", size, "their room is nearly full, and destinations pause when it is", cure)
    else:
        yield warn("dead letters", size, "platforms refused these records for good, or they were invalid", cure)


def destinations(status: dict[str, Any]) -> Iterator[Finding]:
    """Each that is not well, or will not be for long."""
    for name, there in status["destinations"].items():
        check, waits = f"{name} queue", f"{there['queued']:,} wait" if there["queued"] else "nothing waits"
        reason = there.get("reason") or ""
        quota = there.get("quota") or {}
        if quota.get("reached"):
            yield fail(check, f"out of quota; {waits}", there.get("forecast") or reason, "raise the plan at the platform, or wait for the new month; everything is kept and goes out then")  # fmt: skip
        elif there["state"] == "paused":
            yield fail(check, f"paused; {waits}", reason, _cure(reason))
        elif there["state"] == "waiting":
            again = there.get("retry_in_s")
            yield warn(check, f"waiting; {waits}", reason, "agentd tries again by itself" + (f" in {format_duration(again)}" if again is not None else ""))  # fmt: skip
        elif there["state"] == "removed":
            yield warn(check, f"not in the configuration; {waits}", "the queue of a destination that was removed is kept", f"put [destinations.{name}] back, or agentd queue drop {name} --reason …")  # fmt: skip
        else:
            yield ok(check, f"{there['state']}; {waits}")
        if there.get("forecast") and not quota.get("reached"):
            yield warn(f"{name} quota", there["forecast"], "at the rate of the last day", "raise the plan, or send less (accept)")  # fmt: skip
        if there["max_bytes"] and there["queued_bytes"] > _NEARLY * there["max_bytes"]:
            share = there["queued_bytes"] / there["max_bytes"]
            yield fail(check, f"{share:.0%} of its queue's {format_size(there['max_bytes'])} is used", "when it is full debug and info events are shed, and all else is refused", "mend the destination, or raise its max_bytes")  # fmt: skip


def _cure(reason: str) -> str:
    if "dead letters are full" in reason:
        return "agentd dead-letters list; replay or purge some"
    if "redirect" in reason:
        return "base_url is not where the platform is: follow the redirect by hand and write that"
    if "refuses everything" in reason:
        return "is it the right platform, version and agent? the reason is its own; agentd explain shows the requests"
    found = _STATUS.search(reason)
    return _CURES.get(found[1] if found else "", "the reason is the platform's own; everything is kept meanwhile")
