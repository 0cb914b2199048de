"""A command beside a daemon in this very process: started when the daemon takes records, its signals and its status passed on.

The daemon ends when the command has ended, and drains as it does on SIGTERM. A daemon that dies first leaves the command
running, since an agent is worth more than its telemetry, and makes itself known in the log and by the exit status.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from agentd.cli.reaping import reaping
from agentd.daemon import Daemon
from agentd.errors import StateError
from agentd.signals import signals_to

# What a supervisor or a shell sends to a program that it wants to end, reload or resize
_PASSED = (
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH,
    signal.SIGCONT,
)  # fmt: skip
_FROM_THE_TERMINAL = frozenset({signal.SIGINT, signal.SIGQUIT, signal.SIGWINCH, signal.SIGCONT})
_PR_SET_DUMPABLE = 4  # linux/prctl.h
_NOT_FOUND, _NOT_EXECUTABLE = 127, 126  # as a shell has them


async def run_beside(daemon: Daemon, command: Sequence[str], env: Callable[[], Mapping[str, str]]) -> int:
    """Run both to their end. Returns the command's exit status, 128 + n for one that signal n ended; 1 if the daemon died.

    `env` is asked for when the daemon is up, so that it may tell the port that was found. Raises what the daemon's start
    raises: then the command has not begun.
    """
    files = resource.getrlimit(
        resource.RLIMIT_NOFILE
    )  # the daemon lifts ours; the command keeps what it would have had
    running = asyncio.create_task(daemon.run(), name="daemon")
    if await _told_to_end(daemon, running):
        return 128 + signal.SIGTERM
    try:
        code = await run_command(command, env(), files)
    finally:
        daemon.stop()
        with signals_to(daemon.stop):  # an impatient second SIGTERM ends the draining
            failed = await running
    return code or failed


async def _told_to_end(daemon: Daemon, running: asyncio.Task[int]) -> bool:
    """Wait until the daemon takes records. True if a signal came meanwhile: it has ended, and the command is not to begin.

    To process 1 the kernel gives no signal that it has no handler for (pid_namespaces(7)): unheard, one that comes during a long
    recovery would be lost, and a container's runtime would kill us after its grace.
    """
    told = asyncio.Event()

    def stop() -> None:
        told.set()
        daemon.stop()

    with signals_to(stop):
        ready = asyncio.create_task(daemon.ready.wait(), name="daemon's start")
        await asyncio.wait({running, ready}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if told.is_set():
            await running
            return True
    if not daemon.ready.is_set():
        code = await running  # raises what ended it
        raise StateError(f"the daemon ended with status {code} before it took records")
    return False


async def deliver(daemon: Daemon) -> int:
    """Start, deliver what is there, end. Returns the daemon's status."""
    running = asyncio.create_task(daemon.run(), name="daemon")
    ready = asyncio.create_task(daemon.ready.wait(), name="daemon's start")
    await asyncio.wait({running, ready}, return_when=asyncio.FIRST_COMPLETED)
    ready.cancel()
    daemon.stop()
    with signals_to(daemon.stop):
        return await running


def hide() -> None:
    """Keep our environment, which holds the platforms' keys, from the command: it runs under our own uid.

    A process that is not dumpable has its /proc/PID/environ closed to its own uid (prctl(2), PR_SET_DUMPABLE); root sees it
    all the same. A program that is executed is dumpable again.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


async def run_command(command: Sequence[str], env: Mapping[str, str], files: tuple[int, int] | None = None) -> int:
    """Run a command with our signals passed on. Returns its exit status. `files` is the limit of open files to give it."""
    if not command[0]:
        sys.stderr.write("agentd: the command's name is empty\n")
        return _NOT_FOUND
    with reaping() as reaper:
        try:
            with reaper.holding():
                process = await asyncio.create_subprocess_exec(*command, env=dict(env))
                reaper.keep(process.pid)
            if files is not None:
                with contextlib.suppress(ProcessLookupError):
                    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, files)
        except FileNotFoundError:
            sys.stderr.write(f"agentd: {command[0]}: not found\n")
            return _NOT_FOUND
        except OSError as error:
            sys.stderr.write(f"agentd: {command[0]}: {error.strerror}\n")
            return _NOT_EXECUTABLE
        with _handing_on(process.pid):
            code = await process.wait()
    return code if code >= 0 else 128 - code


@contextlib.contextmanager
def _handing_on(pid: int) -> Iterator[None]:
    """Signals that come to us go to the command; what a terminal sends, it sends to both of us already."""
    loop = asyncio.get_running_loop()
    numbers = [number for number in _PASSED if not (number in _FROM_THE_TERMINAL and _has_terminal())]
    ignored = [number for number in (signal.SIGINT, signal.SIGQUIT) if number not in numbers]

    def hand_on(number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    for number in numbers:
        loop.add_signal_handler(number, hand_on, number)
    for number in ignored:
        loop.add_signal_handler(number, lambda: None)
    try:
        yield
    finally:
        for number in [*numbers, *ignored]:
            loop.remove_signal_handler(number)


def _has_terminal() -> bool:
    """Whether we are in a terminal's foreground, which tells the whole group of an interrupt."""
    try:
        with open("/dev/tty", "rb") as terminal:  # noqa: PTH123 - Path.open is no shorter
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False
