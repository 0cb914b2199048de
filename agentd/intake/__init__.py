"""Intake: from a connection's bytes to records that are admitted, or refused with the reason.

`server` and `routes` hold sockets and decide nothing; `admit` and `dedupe` decide and hold no socket. What they need of
the rest of the daemon are the two protocols here, which the composition root fills.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from msgspec import Struct

from agentd.wire import Ack, Hello, Message


class Peer(Struct, frozen=True, gc=False):
    """Who is at the other end, as the kernel says (SO_PEERCRED, unix(7)); kept with every record."""

    uid: int
    gid: int
    pid: int
    token: int = -1  # over TCP: which of `[[security.tokens]]` it showed; -1 on the Unix socket

    @property
    def local(self) -> bool:
        """Whether it came over the Unix socket: nobody who came over TCP is an admin or trusted, whatever its uid."""
        return self.token < 0


class Grant(Struct, frozen=True):
    """What a peer may do: the agents that it may speak for (names or globs) and the destinations; None: all of them."""

    agent_ids: tuple[str, ...] | None = None
    destinations: frozenset[str] | None = None


class Waiting(asyncio.Future[Ack]):
    """The future of a message that waits for room in a queue: its connection is not read until it is done."""


class Sink(Protocol):
    """Where messages go. All methods are called on the event loop and return at once."""

    def hello(self, hello: Hello, peer: Peer) -> dict[str, Any]:
        """The answer to a hello; counts what the client says it has lost. Raises WireError for a malformed stream id."""
        ...

    def submit(
        self, message: Message, peer: Peer, *, stream: str | None, origin: str, hold: bool
    ) -> asyncio.Future[Ack]:
        """Admit a message; the future is done once every record is on disk (fsync) or refused.

        `stream` is the hello's, `origin` names the dialect (`frames`, `lines`, `http`). With `hold` (nobody reads the
        answer) records that find the queue full wait for room instead of being refused: the future is a `Waiting`, and
        the caller stops reading that connection until it is done. `Ack.seq` is -1 for a message without `seq`.
        """
        ...

    def refuse(self, cause: str, detail: str, peer: Peer) -> None:
        """Count (and log, at a bounded rate) a message that was no message: bad JSON, oversized frame, half a frame."""
        ...


class Control(Protocol):
    """What the HTTP dialect asks of the daemon, in the shapes that contract and README show."""

    def status(self) -> dict[str, Any]: ...

    def unhealthy(self) -> str | None:
        """Why the daemon is not alive in earnest (event loop or storage thread stuck), None if it is."""
        ...

    def unready(self) -> str | None:
        """Why records can't be taken now (spool not open, draining), None if they can."""
        ...

    def metrics(self) -> tuple[bytes, str]:
        """The Prometheus text and its content type."""
        ...

    async def flush(self, until: str, timeout_s: float) -> dict[str, Any]: ...

    async def run(self, run_id: str) -> dict[str, Any] | None: ...

    async def dead_letters(
        self, *, limit: int, destination: str | None, run: str | None, cause: str | None, viewer: Peer, admin: bool
    ) -> list[dict[str, Any]]: ...

    def is_admin(self, peer: Peer) -> bool:
        """The daemon's own uid, root, and `security.admin_uids`."""
        ...
