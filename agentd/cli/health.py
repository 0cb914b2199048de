"""Whether a daemon is in good health, and if not, why not: one function that all who judge ask. Pure.

Healthy means that nobody has to look: what was shed, refused or buried one by one is counted and no reason, what keeps records from
getting through, or will soon, is one.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from agentd.cli.status_document import AT_REST, DestinationStatus, Status
from agentd.units import format_duration, format_size

HEALTHY, NO_DAEMON, DEGRADED = 0, 1, 3  # exit codes of `agentd status`
_NEARLY = 0.8  # of the dead letters' room, and of a queue's quota


class Trouble(Struct, frozen=True):
    """One reason. `what` is a stable word for scripts."""

    what: str
    reason: str
    destination: str | None = None

    def __str__(self) -> str:
        """For people."""
        return self.reason if self.destination is None else f"{self.destination}: {self.reason}"


def troubles(status: Status) -> list[Trouble]:
    """All reasons why somebody should look, those of the whole daemon first; none for one in good health."""
    return [*_of_daemon(status), *(one for name in status.destinations for one in _of_destination(name, status))]


def exit_code(status: Status, found: list[Trouble]) -> int:
    """0 healthy, 1 no daemon, 3 degraded."""
    if status.state in AT_REST:
        return NO_DAEMON
    return DEGRADED if found else HEALTHY


def _of_daemon(status: Status) -> Iterator[Trouble]:
    spool, letters = status.spool, status.dead_letters
    if status.stuck:
        yield Trouble("stuck", f"nothing gets to the disk: {status.stuck}")
    if spool.full:
        yield Trouble("disk_full", f"the disk is full ({format_size(spool.disk_free_bytes)} free): records are refused")
    if status.unbalanced is not None:
        yield Trouble("books", f"the books do not balance{_of(status.unbalanced)}: agentd audit says more")
    if spool.quarantined_rows:
        yield Trouble(
            "quarantine",
            f"{spool.quarantined_rows} damaged rows are in {spool.directory}/quarantine; the log says which records",
        )
    if letters.max_bytes and letters.bytes >= _NEARLY * letters.max_bytes:
        taken = f"{format_size(letters.bytes)} of {format_size(letters.max_bytes)}"
        yield Trouble("dead_letters", f"dead letters take {taken}; full, they pause their destinations")
    if status.reloads.last_error is not None:
        yield Trouble("reload", f"the configuration before is in force: {status.reloads.last_error}")
    if status.state == "draining":
        yield Trouble("draining", "it is stopping, and takes no records")


def _of(names: list[str]) -> str:
    return f" ({', '.join(names)})" if names else ""


def _of_destination(name: str, status: Status) -> Iterator[Trouble]:
    there = status.destinations[name]
    if there.state not in ("ok", *AT_REST):
        yield Trouble(there.state, _standing(there), name)
    if there.share is not None and there.share >= _NEARLY and there.queued:
        yield Trouble("queue", f"its queue takes {there.share:.0%} of max_bytes; full, it sheds debug and info", name)
    if there.quota is not None and there.quota.reached:
        yield Trouble("quota", there.forecast or "its monthly cap is used up", name)
    if there.gates is not None and there.gates.circuit != "closed":
        yield Trouble("gates", f"gates go unasked, circuit {there.gates.circuit}: {there.gates.reason}", name)


def _standing(there: DestinationStatus) -> str:
    return there.state + (f": {there.reason}" if there.reason else "") + again(there)


def again(there: DestinationStatus) -> str:
    """When it is tried next, after its reason."""
    return "" if there.retry_in_s is None else f"; next try in {format_duration(there.retry_in_s)}"
