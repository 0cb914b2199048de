"""Local ids of a call as the platform knows them, and whether they are the caller's to name.

An id that agentd knows is replaced by the platform's; one that is another user's or another agent's is not found, as if it
did not exist; one that the platform has not named yet is waited for. Any other is taken to be the platform's own.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import msgspec
from msgspec import Raw, Struct

from agentd.intake import Grant, Peer
from agentd.queued import DEAD, Ref
from agentd.standin import Called, Why

_GLOB = re.compile(r"[*?\[]")
_encode = msgspec.json.Encoder().encode


class Refused(Exception):  # noqa: N818 - it is answered, not reported
    """A call that is turned away, in words for its SDK."""

    def __init__(self, why: Why, message: str) -> None:
        super().__init__(message)
        self.why = why


class References(Protocol):
    """What is asked of the spool's references."""

    def get(self, destination: str, kind: str, local_id: str) -> Ref | None: ...
    def named(self, destination: str, kind: str, platform_id: str) -> list[Ref]: ...


class Asker(Struct, frozen=True):
    """Who calls, and what he may."""

    peer: Peer
    grant: Grant
    trusted: bool  # may name what is another user's


class Agents(Struct, frozen=True):
    """A destination's agents: local name → the platform's id, and back."""

    platform_id: Callable[[str], str]
    default: str = ""  # the local name of the destination's own
    local: Mapping[str, str] = {}


def locals_of(agents: Mapping[str, str] | None) -> dict[str, str]:
    """The platform's id → local name, where just one agent has that id and it is no other's name.

    An SDK that is set up for the platform names its agent by the id that it has there: nothing has to be changed.
    """
    table = agents or {}
    ids = list(table.values())
    return {to: name for name, to in table.items() if ids.count(to) == 1 and to not in table and not _GLOB.search(name)}


class _Wait(Struct, frozen=True):
    until: float  # by the event loop's clock
    late: Why


class Names:
    """The names of one destination."""

    def __init__(
        self,
        destination: str,
        kinds: Mapping[str, str],
        references: References,
        named: Callable[[], Awaitable[None]],
        agents: Agents,
    ) -> None:
        """`kinds`: see `StandIn.names`. `named` returns when a reference has become known or dead since."""
        self._destination = destination
        self._kinds = kinds
        self._references = references
        self._agents = agents
        self._named = named

    def agent(self, name: str) -> str:
        """The local name of an agent, where an SDK names it by the platform's id."""
        return self._agents.local.get(name, name)

    async def translate(self, called: Called, asker: Asker, wait_s: float, late: Why = Why.NOT_FOUND) -> Called:
        """The call under the platform's names. Raises Refused.

        `wait_s` is for ids that the platform has not named yet, `late` is why it is refused if it names them later.
        """
        wait = _Wait(asyncio.get_running_loop().time() + wait_s, late)
        segments = dict(called.segments)
        for name, value in segments.items():
            segments[name] = await self._name(name, value, asker, wait)
        query = [(name, await self._name(name, value, asker, wait)) for name, value in called.query]
        members = dict(called.members)
        for name, raw in members.items():
            text = _text(raw) if name in self._kinds else None
            if text:
                members[name] = Raw(_encode(await self._name(name, text, asker, wait)))
        return msgspec.structs.replace(called, segments=segments, query=query, members=members)

    def check(self, kind: str, local_id: str, asker: Asker) -> Ref | None:
        """The reference, by agentd's or the platform's id; None for an id that agentd doesn't know.

        Raises Refused where it is another's.
        """
        own = self._references.get(self._destination, kind, local_id)
        found = [own] if own is not None else self._references.named(self._destination, kind, local_id)
        if not found:
            return None
        allowed = next((ref for ref in found if self._allows(ref, asker)), None)
        if allowed is None:
            raise Refused(Why.NOT_FOUND, f"there is no {kind} {local_id[:256]!r}")
        return allowed

    def _allows(self, ref: Ref, asker: Asker) -> bool:
        is_own = ref.uid == asker.peer.uid or asker.trusted
        return is_own and asker.grant.allows_agent(ref.agent or self._agents.default)

    async def _name(self, name: str, value: str, asker: Asker, wait: _Wait) -> str:
        kind = self._kinds.get(name)
        if kind is None or not value:
            return value
        if kind == "agent":
            local = self.agent(value)
            if not asker.grant.allows_agent(local):
                allowed = asker.grant.names
                raise Refused(Why.FORBIDDEN, f"{name}: {local[:256]!r} is not among your agents ({allowed})")
            return self._agents.platform_id(local)
        ref = self.check(kind, value, asker)
        return value if ref is None else await self._platform_id(ref, wait)

    async def _platform_id(self, ref: Ref, wait: _Wait) -> str:
        """The platform's id, as soon as it has given one."""
        shown = f"{ref.kind} {ref.local_id[:256]!r}"
        try:
            async with asyncio.timeout_at(wait.until):
                while True:
                    current = self._references.get(self._destination, ref.kind, ref.local_id)
                    if current is None or current.state == DEAD:
                        raise Refused(Why.NOT_FOUND, f"{shown} was not taken by the platform")
                    if current.platform_id is not None:
                        return current.platform_id
                    await self._named()
        except TimeoutError:
            raise Refused(wait.late, f"{shown} is not delivered to the platform yet") from None


def _text(raw: Raw) -> str | None:
    """The member where it is a string; what is none is the platform's to refuse."""
    try:
        return msgspec.json.decode(raw, type=str)
    except msgspec.MsgspecError:
        return None


def body_of(called: Called) -> bytes:
    """The body that goes out: its members as they were written, each once, so that nobody reads another one than was checked."""
    return _encode(called.members) if called.body.strip() else b""
