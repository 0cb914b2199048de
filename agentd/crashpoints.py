"""Crash points: places at which a daemon under test kills itself, so that a test can stop it between any two steps.

`AGENTD_CRASH_AT=commit.written` kills the process with SIGKILL when it gets there, `commit.written:3` at the third time.
`AGENTD_HANG_AT` has the thread that gets there do nothing ever after. Without the variables, which are read once at the start, a
point costs a comparison. There is no other way to arm one.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Mapping
from enum import Enum

from agentd.errors import ConfigError

VARIABLE = "AGENTD_CRASH_AT"
HANG_VARIABLE = "AGENTD_HANG_AT"
log = logging.getLogger("agentd")

_HANG_S = 3600.0


class Point(Enum):
    """The points, in the order in which a record meets them. Numbers are stable."""

    # intake (event loop)
    INTAKE_ADMITTED = (11, "intake.admitted")  # checked and routed; nothing is on its way to the disk
    INTAKE_HANDED_OVER = (12, "intake.handed_over")  # waits for a commit
    INTAKE_STORED = (13, "intake.stored")  # on disk, not answered
    INTAKE_ANSWERED = (14, "intake.answered")
    # a commit (21, 27 event loop, the others storage thread)
    COMMIT_GATHERED = (21, "commit.gathered")  # books and journal say so, in memory
    COMMIT_BEGUN = (22, "commit.begun")  # encoded, no transaction yet
    COMMIT_DELETED = (23, "commit.deleted")  # rows are deleted, none written
    COMMIT_PUT = (24, "commit.put")  # all is written, not committed
    COMMIT_WRITTEN = (25, "commit.written")  # on disk, and nobody knows
    COMMIT_TOLD = (27, "commit.told")  # those who waited know
    # delivery (event loop)
    SEAL_MADE = (31, "seal.made")  # encoded, its seal not on disk
    SEAL_STORED = (32, "seal.stored")  # on disk, nothing was sent
    SEND_BEGUN = (41, "send.begun")
    SEND_ANSWERED = (42, "send.answered")  # the platform has said something, and nobody has read it
    VERDICT_GIVEN = (51, "verdict.given")  # what the answer means is known in memory
    SETTLE_BEGUN = (61, "settle.begun")
    SETTLE_HANDED_OVER = (62, "settle.handed_over")  # ended in memory, waits for a commit
    LEARN_STORED = (63, "learn.stored")  # the platform's id is on disk, and nobody who waits for it was told
    SPLIT_MADE = (64, "split.made")
    SPLIT_STORED = (65, "split.stored")
    BURY_BEGUN = (71, "bury.begun")
    BURY_STORED = (72, "bury.stored")
    REPLAY_BEGUN = (73, "replay.begun")
    REPLAY_STORED = (74, "replay.stored")
    PURGE_BEGUN = (75, "purge.begun")
    SHED_TAKEN = (81, "shed.taken")  # out of the queue in memory
    SHED_BOOKED = (82, "shed.booked")
    FULL_REFUSED = (83, "full.refused")  # a commit found no room; the reserve is given back
    REWRITE_WRITTEN = (85, "rewrite.written")  # new segments are on disk, memory knows the old ones
    REWRITE_TAKEN_OVER = (86, "rewrite.taken_over")
    # gates (event loop)
    GATE_SENDING = (91, "gate.sending")  # on disk as sending; the question has not left
    GATE_ANSWERED = (92, "gate.answered")  # the verdict is not on disk
    GATE_SETTLED = (93, "gate.settled")  # on disk; the agent has not heard it
    # the end
    SHUTDOWN_BEGUN = (101, "shutdown.begun")
    SHUTDOWN_DRAINED = (102, "shutdown.drained")
    SHUTDOWN_COMMITTED = (103, "shutdown.committed")  # the last commit is done, the store is open
    SHUTDOWN_CLOSED = (104, "shutdown.closed")
    # the start
    RECOVERY_LOCKED = (111, "recovery.locked")
    RECOVERY_OPENED = (112, "recovery.opened")  # the store is, nothing of it was read
    RECOVERY_SURVEYED = (113, "recovery.surveyed")
    RECOVERY_STARTED = (114, "recovery.started")  # delivers and listens; nobody was told so

    def __init__(self, number: int, label: str) -> None:
        self.number = number
        self.label = label


class _Armed:
    """Which point, and how many times it may still be passed."""

    def __init__(self) -> None:
        self.point: Point | None = None
        self.left = 0
        self.hangs = False

    def arm(self, wanted: str, variable: str = VARIABLE) -> None:
        name, _, times = wanted.partition(":")
        point = next((point for point in Point if point.label == name), None)
        if point is None or not (times.isdecimal() or not times) or times == "0":
            raise ConfigError(
                f"{variable}: {wanted!r}: expected a point ({', '.join(p.label for p in Point)}) or POINT:N"
            )
        self.point, self.left, self.hangs = point, int(times or 1), variable == HANG_VARIABLE


_armed = _Armed()


def arm(env: Mapping[str, str]) -> None:
    """Read the variables, at the daemon's start. Raises ConfigError for one that names no point."""
    for variable, does in ((VARIABLE, "kill itself"), (HANG_VARIABLE, "hang")):
        if wanted := env.get(variable):
            _armed.arm(wanted, variable)
            log.warning("%s=%s: this daemon will %s there", variable, wanted, does, extra={"action": "crash_armed"})


def reached(point: Point) -> None:
    """Die here, if this is the point."""
    if _armed.point is point:
        _armed.left -= 1
        while _armed.left == 0 and _armed.hangs:
            time.sleep(_HANG_S)
        if _armed.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
