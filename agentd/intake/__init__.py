"""Intake: from a connection's bytes to records that are admitted, or refused with the reason.

`server` and `routes` hold sockets and decide nothing; `admit` and `dedupe` decide and hold no socket. What they need of
the rest of the daemon are the three protocols here, which the composition root fills.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, Protocol

from msgspec import Struct

from agentd.errors import AgentdError, Forbidden
from agentd.intake.orphans import Process
from agentd.queued import Entry, Ref
from agentd.wire import Ack, Hello, Message

_GLOB = re.compile(r"[*?\[]")
NO_TOKEN = 2**31 - 1  # the `Peer.token` of who came over TCP and has shown none: no rule covers it


class Peer(Struct, frozen=True, gc=False):
    """Who is at the other end, as the kernel says (SO_PEERCRED, unix(7)); kept with every record."""

    uid: int
    gid: int
    pid: int
    token: int = -1  # over TCP: which of `[[security.tokens]]` it showed; -1 on the Unix socket
    process: Process | None = None  # of a connection that owns the runs which it starts (`Sink.claim`)

    @property
    def local(self) -> bool:
        """Whether it came over the Unix socket: nobody who came over TCP is an admin or trusted, whatever its uid."""
        return self.token < 0


class Grant(Struct, frozen=True):
    """What a peer may do: the agents that it may speak for (names or globs) and the destinations; None: all of them."""

    agent_ids: tuple[str, ...] | None = None
    destinations: frozenset[str] | None = None

    @property
    def names(self) -> str:
        """The agents, for messages."""
        return ", ".join(self.agent_ids or ()) or "none"

    def allows_agent(self, name: str) -> bool:
        """Whether it may speak for the agent; the empty name is the destination's own agent, which only `*` covers."""
        return self.agent_ids is None or any(fnmatchcase(name, allowed) for allowed in self.agent_ids)

    def allows_destination(self, name: str) -> bool:
        return self.destinations is None or name in self.destinations

    def agent_for(self, named: str | None) -> str:
        """The agent that it speaks for where it names this one, or none (None or empty).

        Who may speak for one agent alone, and not by a glob, need not name it. What refers to a run, decision or action
        that is known already is its agent's: that one is to be asked with. Raises Forbidden that says who is allowed.
        """
        if named:
            if self.allows_agent(named):
                return named
            raise Forbidden(
                f"$.agent_id: {named[:256]!r} is not among the agents that you may speak for ({self.names})"
            )
        if self.agent_ids is not None and len(self.agent_ids) == 1 and not _GLOB.search(self.agent_ids[0]):
            return self.agent_ids[0]
        if self.allows_agent(""):
            return ""
        raise Forbidden(f"$.agent_id: required here, since you may speak for certain agents only ({self.names})")

    def check_destination(self, name: str) -> None:
        """Raise Forbidden unless it may use the destination."""
        if not self.allows_destination(name):
            allowed = ", ".join(sorted(self.destinations or ())) or "none"
            raise Forbidden(f"destination {name[:256]!r} is not among those that you may use ({allowed})")


class Waiting(asyncio.Future[Ack]):
    """The future of a message that waits for room in a queue: its connection is not read until it is done."""


class Sink(Protocol):
    """Where messages go. All methods are called on the event loop and return at once."""

    def hello(self, hello: Hello, peer: Peer) -> dict[str, Any]:
        """The answer to a hello; counts what the client says it has lost. Raises WireError for a malformed stream id."""
        ...

    def claim(self, hello: Hello, peer: Peer, transport: asyncio.Transport) -> Peer:
        """The peer as the owner of the runs that it starts, after a hello that said `owns_runs`.

        As it was where nothing can be known of its process.
        """
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

    def keep(self, raw: bytes, reason: str, peer: Peer, origin: str, kind: str = "") -> None:
        """Keep a record that never got as far as `submit` among the dead letters, if it is evidence (`evidence`).

        `kind` says what it is where it can't say so itself.
        """
        ...


class OwnerRows(NamedTuple):
    """What goes to disk with a message for the sake of its runs' owners, and who hears what became of it."""

    puts: list[Any]
    done: Callable[[asyncio.Future[None]], None]


class Runs(Protocol):
    """Who owns which run, as the sink tells it (`reaper`)."""

    def status(self) -> dict[str, int]:
        """How many runs are watched, and how many were ended since the start because their process was gone."""
        ...

    def claim(self, hello: Hello, peer: Peer, transport: asyncio.Transport) -> Peer: ...

    def admitted(
        self, copies: Mapping[str, Sequence[Entry]], introduced: Sequence[Ref], process: Process | None
    ) -> OwnerRows | None:
        """Records that are on their way to disk; `process` is their sender's, if it owns runs. None: nothing changes."""
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

    async def run(self, run_id: str, *, viewer: Peer, admin: bool, grant: Grant) -> dict[str, Any] | None:
        """What of a run is where, None where nothing is known of it; the platform's ids for its owner and admins alone."""
        ...

    def is_admin(self, peer: Peer) -> bool:
        """The daemon's own uid, root, and `security.admin_uids`."""
        ...

    def may_decide(self, peer: Peer) -> bool:
        """Whether an admin, and not one of the agents themselves: who says what became of a gate, or uses the control plane."""
        ...


class GateRefusal(AgentdError):  # noqa: N818 - it is answered, not reported
    """A question that no gate takes. `status` and `code` are those of its HTTP answer."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Gates(Protocol):
    """What the HTTP dialect asks of the gates. Answers are JSON objects as the contract (§4) shows them."""

    async def ask(self, body: bytes, peer: Peer, grant: Grant) -> dict[str, Any]:
        """The verdict on what the body of `POST /v1/gate` asks, within its deadline.

        Raises GateRefusal (403 forbidden, 409 gate_key_conflict, 422 malformed, unrouted, foreign_reference). Whoever
        stops waiting (cancels) stops nothing: the gate goes on, and its verdict is recorded.
        """
        ...

    async def look(
        self, gate_id: str, wait_s: float, viewer: Peer, *, admin: bool, grant: Grant
    ) -> dict[str, Any] | None:
        """A gate as it stands, at the latest after `wait_s`, sooner if its last word comes; None for one of another's."""
        ...

    async def listing(self, state: str, limit: int, viewer: Peer, *, admin: bool, grant: Grant) -> list[dict[str, Any]]:
        """The viewer's own gates, of agents and destinations that its grant covers, all for an admin, the newest first.

        `state` is open, final or all. Without requests and responses, which may be large: those are in `look`.
        """
        ...

    async def resolve(self, gate_id: str, body: bytes, admin: Peer) -> dict[str, Any] | None:
        """Record what a person found out: `{"verdict", "platform_id"?, "note"?}`; None for an unknown gate.

        Raises GateRefusal (409 where the gate has its last word or is under way, 422 malformed, 503 disk full).
        """
        ...
