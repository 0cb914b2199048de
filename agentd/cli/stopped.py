"""Verbs that read a daemon's books also where none runs: then they look into the state folder that is configured, and change nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from agentd.cli.ask import Daemon, NoDaemon
from agentd.cli.options import daemon, load_config
from agentd.cli.terminal import complain

if TYPE_CHECKING:
    from agentd.sections import Config, Loaded
    from agentd.spool.look import Look

T = TypeVar("T")


class Stopped:
    """The state folder of a daemon that does not answer. Raises ConfigError."""

    def __init__(self) -> None:
        self.loaded: Loaded = load_config()
        self.config: Config = self.loaded.config
        self.directory = Path(self.config.spool.directory)
        self.now_us = time.time_ns() // 1000

    @property
    def has_spool(self) -> bool:
        """Whether anything was ever kept there; also where that can't be seen, which looking into it then says."""
        try:
            return (self.directory / "spool" / "cache.db").exists()
        except PermissionError:
            return True

    @property
    def pid(self) -> int | None:
        """That of a daemon which uses the folder and does not answer where it was asked; None if none does."""
        from agentd.spool.look import running_pid

        return running_pid(self.directory)

    def __repr__(self) -> str:
        return f"<Stopped daemon's folder {self.directory}>"


def ask_or_look(
    socket: str | None, ask: Callable[[Daemon], T], look_at: Callable[[Look, Stopped], T], timeout_s: float = 5.0
) -> T:
    """What the daemon says, or else what the disk says, with a line on standard error that it is the disk.

    A daemon that was named by its socket is asked or nobody is. Raises StateError, SpoolDamaged, ConfigError.
    """
    try:
        return ask(daemon(socket, timeout_s))
    except NoDaemon as error:
        if socket is not None:
            raise
        return _look(error, look_at)


def _look(nobody: NoDaemon, look_at: Callable[[Look, Stopped], T]) -> T:
    from agentd.spool.look import look

    folder = Stopped()
    if not folder.has_spool:
        raise nobody
    whose = "a stopped one left" if folder.pid is None else f"the one with pid {folder.pid} uses"
    complain(f"{str(nobody).partition(':')[0]}: reading {folder.directory}, which {whose}")
    with look(folder.directory, folder.now_us) as found:
        return look_at(found, folder)
