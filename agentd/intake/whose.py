"""Whose a record is, and so where it goes: the agent, what its ids say, what its sender may do. Pure.

Routing needs the agent, and the agent may follow from the ids that a record names, each of which belongs to (destination,
kind, id). So it goes in this order:

1. **The agent.** The record's own word counts. Without one it is for the agent that introduced the id which it names,
   looked up at the destinations that would take it as that agent's, the sender's own references alone; what `to` names
   comes before the rest, so that a copy that is sent again with a narrower `to` is the same agent's. Several agents: it is
   refused, and they are named. None: that of the sender's grant if it binds one, else each destination's default.
2. **The destinations** that take the kind from that agent, and that the grant allows: those of `to`, else all.
3. **The check.** At each of these destinations the id has to be nobody's, or the same agent's and the same user's. What
   the id is called elsewhere is of no concern: two platforms may know different things by one name.

A run's parent may be another agent's, never another user's. Users are told apart by uid, and root, the daemon's own uid and
`security.admin_uids` may speak for all on the Unix socket, nowhere else. Uid -1 is whoever the kernel could not name (TCP):
it says nothing, so what was introduced by it belongs to whoever holds a token for its agent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from agentd.errors import Forbidden, RecordError
from agentd.intake import Grant, Peer
from agentd.intake.routing import Route, Table
from agentd.outcomes import Cause
from agentd.queued import Ref
from agentd.records import INTRODUCES, REFERENCE_FIELDS, Record, RunStart

_PLACES = INTRODUCES | REFERENCE_FIELDS  # kind → (kind of id, field)


class Owners(Protocol):
    """Who introduced an id, at whichever destination."""

    def owners(self, kind: str, local_id: str) -> Sequence[Ref]: ...


class Refusal(Exception):  # noqa: N818 - a verdict, caught by admission
    def __init__(self, cause: Cause, reason: str) -> None:
        super().__init__(reason)
        self.cause = cause


class Whose:
    """Decides over agent and destinations of a record."""

    def __init__(self, table: Table, owners: Owners, trusted_uids: Iterable[int]) -> None:
        self._table = table
        self._owners = owners
        self._trusted = frozenset(trusted_uids)

    def decide(self, record: Record, kind: str, peer: Peer, grant: Grant) -> tuple[str, Sequence[Route]]:
        """The local name of its agent ("": each destination's own) and where it goes. Raises Refusal."""
        agent = record.agent_id or ""
        place = _PLACES.get(kind)
        local_id = getattr(record, place[1]) if place is not None else None
        refs = self._owners.owners(place[0], local_id) if place is not None and local_id is not None else ()
        if refs and place is not None and not agent:
            agent = self._introducer(refs, record, kind, peer, grant, place[1])
        if grant.agent_ids is not None:
            agent = _granted(agent, grant)
        routes = self._routes(kind, agent, record.to, grant)
        if refs and place is not None and not _is_plain(refs, routes, agent, peer):
            agent = self._check(refs, routes, agent, peer, grant, place[1])
        if type(record) is RunStart and record.parent_run_id is not None:
            self._check_parent(record.parent_run_id, routes, peer, grant)
        return agent, routes

    def _introducer(self, refs: Sequence[Ref], record: Record, kind: str, peer: Peer, grant: Grant, field: str) -> str:
        """The agent that introduced the id, as far as the sender may know of it; "" if nobody did."""
        if len(refs) == 1 and record.to is None:  # the common case
            return refs[0].agent if self._counts(refs[0], kind, peer, grant) else ""
        own = [ref for ref in refs if self._counts(ref, kind, peer, grant)]
        if record.to is not None:
            named = (record.to,) if isinstance(record.to, str) else record.to
            there = [ref for ref in own if ref.destination in named]
            if not there and not self._speaks_for_all(own, kind, named):
                return ""
            own = there or own
        agents = {ref.agent for ref in own}
        if len(agents) > 1:  # a reference without a name is its destination's default agent's
            agents = {ref.agent or self._table.default_agent(ref.destination) for ref in own}
        if len(agents) > 1:
            whose = " and ".join(sorted(f"agent {ref.agent!r}'s at {ref.destination}" for ref in own))
            raise Refusal(Cause.FOREIGN_REFERENCE, f"$.{field}: is {whose}: say which by agent_id")
        return agents.pop() if agents else ""

    def _counts(self, ref: Ref, kind: str, peer: Peer, grant: Grant) -> bool:
        """Whether it says something about the agent of a record of this kind: its destination would take it, it is ours."""
        if grant.destinations is not None and ref.destination not in grant.destinations:
            return False
        return self._table.takes(ref.destination, kind, ref.agent) and not self._is_hidden(ref, peer, grant)

    def _speaks_for_all(self, refs: Sequence[Ref], kind: str, named: Sequence[str]) -> bool:
        """Whether the references are one agent's, and each of these destinations takes the kind from it."""
        agents = {ref.agent for ref in refs}
        return len(agents) == 1 and all(self._table.takes(name, kind, refs[0].agent) for name in named)

    def _routes(self, kind: str, agent: str, to: str | list[str] | None, grant: Grant) -> Sequence[Route]:
        allowed = grant.destinations
        try:
            if allowed is not None and to is not None:
                for name in (to,) if isinstance(to, str) else to:
                    grant.check_destination(name)
            routes: Sequence[Route] = self._table.route(kind, agent, to)
        except RecordError as error:
            raise Refusal(Cause.UNROUTED, str(error)) from None
        except Forbidden as error:
            raise Refusal(Cause.FORBIDDEN_DESTINATION, f"$.to: {error}") from None
        if allowed is not None and to is None:
            routes = [route for route in routes if route.name in allowed]
            if not routes:
                names = ", ".join(sorted(allowed)) or "none"
                reason = f"$.to: no destination that you may use ({names}) takes {kind} of agent {agent[:64]!r}"
                raise Refusal(Cause.FORBIDDEN_DESTINATION, reason)
        if not agent and grant.agent_ids is not None:
            _check_defaults(routes, grant)
        return routes

    def _check(
        self, refs: Sequence[Ref], routes: Sequence[Route], agent: str, peer: Peer, grant: Grant, field: str
    ) -> str:
        """The agent, under the name that its references have where they all agree."""
        here = [ref for ref in refs for route in routes if route.name == ref.destination]
        for ref in here:
            hidden = self._is_hidden(ref, peer, grant)
            if hidden or self._is_others(ref, agent):
                whose = "another user" if hidden or ref.uid != peer.uid else f"agent {ref.agent!r}"
                at = f" at {ref.destination}" if len(routes) > 1 else ""
                raise Refusal(Cause.FOREIGN_REFERENCE, f"$.{field}: belongs to {whose}{at}")
        if len(here) != len(routes) or any(ref.agent != here[0].agent for ref in here[1:]):
            return agent
        return here[0].agent

    def _is_others(self, ref: Ref, agent: str) -> bool:
        """Whether it is another agent's; a destination's default agent is the same with its name and without."""
        if agent == ref.agent:
            return False
        default = self._table.default_agent(ref.destination)
        return (agent or default) != (ref.agent or default)

    def _check_parent(self, run_id: str, routes: Sequence[Route], peer: Peer, grant: Grant) -> None:
        names = [route.name for route in routes]
        refs = [ref for ref in self._owners.owners("run", run_id) if ref.destination in names]
        if any(self._is_stranger(ref, peer, grant) for ref in refs):
            raise Refusal(Cause.FOREIGN_REFERENCE, "$.parent_run_id: belongs to another user")

    def _is_hidden(self, ref: Ref, peer: Peer, grant: Grant) -> bool:
        """Whether the sender is not to hear whose it is: a stranger's, or an agent's that its grant does not cover."""
        return self._is_stranger(ref, peer, grant) or not self._covers(ref, grant)

    def _covers(self, ref: Ref, grant: Grant) -> bool:
        return grant.allows_agent(ref.agent or self._table.default_agent(ref.destination))

    def _is_stranger(self, ref: Ref, peer: Peer, grant: Grant) -> bool:
        if ref.uid == peer.uid:
            return peer.uid < 0 and not self._covers(ref, grant)
        return not (peer.local and peer.uid in self._trusted)


def _is_plain(refs: Sequence[Ref], routes: Sequence[Route], agent: str, peer: Peer) -> bool:
    """The common case, which costs an event nothing: one destination, one reference, and both are of one agent and user."""
    ref = refs[0]
    return (
        len(refs) == len(routes) == 1
        and ref.agent == agent
        and ref.uid == peer.uid >= 0
        and ref.destination == routes[0].name
    )


def _granted(agent: str, grant: Grant) -> str:
    """The agent that the grant lets it be; "" is still to be judged by the defaults of its destinations."""
    try:
        return grant.agent_for(agent)
    except Forbidden as error:
        if agent:
            raise Refusal(Cause.FORBIDDEN_AGENT, str(error)) from None
        return ""


def _check_defaults(routes: Sequence[Route], grant: Grant) -> None:
    for route in routes:
        if not grant.allows_agent(route.default_agent):
            whose = f"agent {route.default_agent!r} of {route.name}" if route.default_agent else f"that of {route.name}"
            reason = (
                f"$.agent_id: required here: {whose} is not among the agents that you may speak for ({grant.names})"
            )
            raise Refusal(Cause.FORBIDDEN_AGENT, reason)
