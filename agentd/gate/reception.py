"""Who may ask what of whom: from a question as it was asked to a gate that may be put on record. Reads, and changes nothing.

In this order: the agent (its own word, else that of its run), the destination, whose run it is, the key of an earlier asking,
whose name the question gives itself, and the platform's own rules for the fields.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping

import msgspec
from msgspec import Raw

from agentd.errors import Forbidden
from agentd.exchange import Context, Reference, Unencodable
from agentd.gate.asking import Asking, digest_of, malformed
from agentd.gate.desk import Desk, Shelf
from agentd.gate.flow import question_of
from agentd.gating import Gate
from agentd.identity import text_of
from agentd.intake import GateRefusal, Grant, Peer
from agentd.intake.admit import Limits
from agentd.queued import DEAD, Ref, Source
from agentd.records import Id
from agentd.redact.build import no_redactor
from agentd.redact.engine import Redactor
from agentd.spool.gaterows import Brief, GateRow

_EVERYTHING = Grant()
_EXACT = 4096  # of 32 bytes each
_IDENTITY = Context(lambda local: local, lambda _kind, local_id: local_id)


class Reception:
    """See the module."""

    def __init__(
        self,
        desks: Mapping[str, Desk],
        shelf: Shelf,
        limits: Limits,
        new_id: Callable[[], bytes],
        now_us: Callable[[], int],
        trusted_uids: frozenset[int],
        redactor: Redactor | None = None,
    ) -> None:
        self._redactor = redactor or no_redactor()
        self._exact: dict[
            str, bytes
        ] = {}  # of questions that hold a secret: what tells them apart, in this process alone
        self.follow(limits, trusted_uids)
        self._desks = desks
        self._shelf = shelf
        self._new_id = new_id
        self._now_us = now_us

    def follow(self, limits: Limits, trusted_uids: frozenset[int]) -> None:
        """By these from now on."""
        self.limits, self._trusted = limits, trusted_uids

    def place(self, asking: Asking, peer: Peer, grant: Grant) -> tuple[Desk, str]:
        """The desk that the question goes to, and the agent that asks it. Raises GateRefusal."""
        try:
            agent = self._asker(asking, peer, grant)
            if agent or grant.agent_ids is not None:
                agent = _granted(agent, grant)
            desk = self._desk(asking, agent, grant)
            if not agent and not grant.allows_agent(desk.default_agent):
                grant.agent_for(None)  # raises, and says whom it may speak for
            self._check_hosted(asking, desk, agent, grant)
        except Forbidden as error:
            raise GateRefusal(403, "forbidden", str(error)) from None
        self.check_run(desk, asking.run_id, agent, peer, grant)
        return desk, agent

    def _desk(self, asking: Asking, agent: str, grant: Grant) -> Desk:
        if asking.to is not None:
            return self._named(asking, asking.to, agent, grant)
        able = [desk for desk in self._desks.values() if asking.gate in desk.gates]
        if not able:
            known = sorted({gate for desk in self._desks.values() for gate in desk.gates})
            raise _unrouted(f"$.gate: no destination has a gate {asking.gate[:64]!r} (there are: {_listed(known)})")
        taking = [desk for desk in able if desk.takes_agent(agent)]
        if not taking:
            raise _unrouted(f"$.agent_id: no destination takes {asking.gate} of agent {agent[:64]!r}")
        allowed = [desk for desk in taking if grant.allows_destination(desk.name)]
        if not allowed:
            grant.check_destination(taking[0].name)
        if len(allowed) > 1:
            names = ", ".join(sorted(desk.name for desk in allowed))
            raise _unrouted(f"$.to: required here, since several destinations have a gate {asking.gate}: {names}")
        return allowed[0]

    def _named(self, asking: Asking, name: str, agent: str, grant: Grant) -> Desk:
        desk = self._desks.get(name)
        if desk is None:
            raise _unrouted(f"$.to: no destination {name[:64]!r}; configured: {_listed(self._desks)}")
        grant.check_destination(name)
        if asking.gate not in desk.gates:
            has = f"has the gates {_listed(desk.gates)}" if desk.gates else "has no gates"
            raise _unrouted(f"$.gate: {name} {has}, and no {asking.gate[:64]!r}")
        if not desk.takes_agent(agent):
            raise _unrouted(f"$.agent_id: {name} does not take agent {agent[:64]!r}")
        return desk

    # -- whose it is -------------------------------------------------------------------------------------------------

    def _asker(self, asking: Asking, peer: Peer, grant: Grant) -> str:
        """The agent that is named: beside the request, else in it, else by its run. Empty where none is."""
        if asking.agent_id:
            return asking.agent_id
        agent = self._agent_of_run(asking, peer, grant)
        desks = [desk for desk in self._desks.values() if asking.gate in desk.gates and asking.to in (None, desk.name)]
        named = asking.named_agent if all(desk.gates[asking.gate].traits.asker_field for desk in desks) else ""
        if not named:
            return agent
        own = agent or _granted("", grant)
        is_own = any(named == desk.agent_of(own or desk.default_agent) for desk in desks)  # by the platform's id for it
        return own if is_own else named

    def _check_hosted(self, asking: Asking, desk: Desk, agent: str, grant: Grant) -> None:
        """An agent that is to be run, and not to ask, is named in the same place. Raises Forbidden."""
        hosted = "" if desk.gates[asking.gate].traits.asker_field else asking.named_agent
        if not hosted or grant.allows_agent(hosted) or hosted == desk.agent_of(agent or desk.default_agent):
            return
        raise Forbidden(
            f"$.request.agent_id: {hosted[:256]!r} is not among the agents that you may speak for ({grant.names})"
        )

    def _agent_of_run(self, asking: Asking, peer: Peer, grant: Grant) -> str:
        """The agent whose run it is where the question could go, else wherever it is known; empty where nobody knows.

        Elsewhere a run without a name is of that destination's own agent, which is nobody where the question goes.
        """
        if asking.run_id is None:
            return ""
        here, elsewhere = set(), set()
        for ref in self._shelf.owners("run", asking.run_id):
            desk = self._desks.get(ref.destination)
            if desk is None or not grant.allows_destination(desk.name) or self._is_hidden(ref, peer, grant):
                continue
            if asking.gate in desk.gates and asking.to in (None, desk.name):
                here.add(ref.agent or desk.default_agent)
            elif desk.takes_events(ref.agent):
                elsewhere.add(ref.agent)
        agents = here or elsewhere
        if len(agents) > 1:
            names = " and ".join(repr(agent) for agent in sorted(agents))
            raise GateRefusal(422, "foreign_reference", f"$.run_id: is of agents {names}: say which by agent_id")
        return agents.pop() if agents else ""

    def check_run(self, desk: Desk, run_id: str | None, agent: str, peer: Peer, grant: Grant = _EVERYTHING) -> None:
        """Raises GateRefusal where the run is another's, at this destination or where the event of the verdict goes."""
        for ref in () if run_id is None else self._shelf.owners("run", run_id):
            at = self._desks.get(ref.destination)
            if at is not None and (at is desk or at.takes_events(agent)):
                self._check_owner(ref, "$.run_id", at, agent, peer, grant)

    def _refs(self, desk: Desk, kind: str, name: str) -> list[Ref]:
        """What goes by this name at the destination, be it the agents' or the platform's."""
        return [ref for ref in self._shelf.owners(kind, name) if ref.destination == desk.name]

    def _check_reference(self, needed: Reference, agent: str, desk: Desk, peer: Peer, grant: Grant) -> None:
        """What a question is about is its agent's own; what it comes from (a parent) may be another agent's of the same user."""
        place = f"$.request: {needed.kind} {needed.local_id[:256]!r}"
        for ref in self._refs(desk, needed.kind, needed.local_id):
            if needed.kind == "run" and not needed.optional:
                self._check_owner(ref, place, desk, agent, peer, grant)
            elif self._is_stranger(ref, peer, grant):
                raise GateRefusal(422, "foreign_reference", f"{place}: belongs to another user")

    def _check_owner(self, ref: Ref, place: str, desk: Desk, agent: str, peer: Peer, grant: Grant) -> None:
        if self._is_hidden(ref, peer, grant):
            raise GateRefusal(422, "foreign_reference", f"{place}: belongs to another user")
        owner = ref.agent or desk.default_agent
        if (agent or desk.default_agent) != owner:
            whose = f"agent {owner!r}" if owner else "the agent that the API key stands for"
            raise GateRefusal(422, "foreign_reference", f"{place}: belongs to {whose} at {desk.name}")

    def _is_stranger(self, ref: Ref, peer: Peer, grant: Grant) -> bool:
        """As intake has it: uid -1 says nothing, so what it introduced belongs to whoever may speak for its agent."""
        if ref.uid == peer.uid:
            return peer.uid < 0 and not self._covers(ref, grant)
        return not (peer.local and peer.uid in self._trusted)

    def _is_hidden(self, ref: Ref, peer: Peer, grant: Grant) -> bool:
        """Whether the asker is not to hear whose it is: a stranger's, or an agent's that its grant does not cover."""
        return self._is_stranger(ref, peer, grant) or not self._covers(ref, grant)

    def _covers(self, ref: Ref, grant: Grant) -> bool:
        return grant.allows_agent(ref.agent or self._desks[ref.destination].default_agent)

    # -- the gate ----------------------------------------------------------------------------------------------------

    def digest(self, asking: Asking, desk: Desk, agent: str) -> bytes:
        """What makes two askings under one key the same."""
        named = agent or desk.default_agent  # the same one, whether its run was known already or not
        kept = self._redactor.question(bytes(asking.request))  # of what is on disk: nobody can try out secrets on it
        return digest_of(asking.gate, desk.name, named, asking.run_id, kept.body)

    def is_another(self, before: Brief, asking: Asking, desk: Desk, agent: str) -> bool:
        """Whether an asking under the key of an earlier one is another question.

        What differs in a masked secret alone is told apart until the next start; with `redact.mode = "hash"` after it, too.
        """
        if before.digest != self.digest(asking, desk, agent):
            return True
        exact = self._exact.get(before.gate_id)
        return exact is not None and exact != self._redactor.fingerprint(bytes(asking.request))

    def remember(self, gate_id: str, asking: Asking) -> None:
        """The question that is asked under a key, in case it holds a secret."""
        request = bytes(asking.request)
        if asking.key is None or (exact := self._redactor.fingerprint(request)) is request:
            return
        while len(self._exact) >= _EXACT:
            del self._exact[next(iter(self._exact))]
        self._exact[gate_id] = exact

    def gate(
        self,
        asking: Asking,
        desk: Desk,
        agent: str,
        peer: Peer,
        *,
        origin: str,
        grant: Grant = _EVERYTHING,
        again: str | None = None,
    ) -> GateRow:
        """A new gate; `again` is the id under which it was asked before. Raises GateRefusal."""
        adapter = desk.gates[asking.gate]
        gate_id = again or text_of(self._new_id())
        key = asking.key
        row = GateRow(
            gate_id=gate_id,
            gate=asking.gate,
            destination=desk.name,
            source=Source(agent, peer.uid, peer.pid, origin),
            token=peer.token,
            key=key,
            digest=self.digest(asking, desk, agent),
            kind=adapter.traits.introduces,
            local_id=_local_id(asking.fields, adapter.traits.id_field) or gate_id,
            run_id=asking.run_id,
            span_id=asking.span_id,
            request=bytes(asking.request),
            idempotency_key=gate_id if key is None else _platform_key(peer, agent, key),
            asked_us=self._now_us(),
            deadline_s=adapter.traits.deadline_s if asking.deadline is None else asking.deadline,
            identity=desk.identity,
        )
        self._check_name(row, desk, adapter, peer, grant)
        return row

    def check_fields(self, row: GateRow, desk: Desk, peer: Peer, grant: Grant) -> None:
        """Whether the platform's adapter can express it, and what it names is the agent's to name. Raises GateRefusal."""
        adapter, question = desk.gates[row.gate], question_of(row)
        context = msgspec.structs.replace(_IDENTITY, agent=desk.agent_of, options=desk.options)
        try:
            needed = adapter.references(question)
            adapter.ask(question, context)
        except Unencodable as error:
            raise malformed(str(error)) from None
        for reference in needed:
            self._check_reference(reference, row.source.agent, desk, peer, grant)

    def _check_name(self, row: GateRow, desk: Desk, adapter: Gate, peer: Peer, grant: Grant) -> None:
        """A name that an earlier question of somebody else bears, or one that may have acted, is not given twice."""
        place = f"$.request.{adapter.traits.id_field}"
        for known in self._refs(desk, row.kind, row.local_id):
            if known.lane == row.lane:
                continue
            self._check_owner(known, place, desk, row.source.agent, peer, grant)
            if known.state != DEAD:
                raise malformed(
                    f"{place}: {row.local_id[:64]!r} is the name of an earlier {row.kind}; leave it out or give a new one"
                )


def _granted(agent: str, grant: Grant) -> str:
    """The agent that the grant lets it be; empty is still to be judged by the destination's own agent."""
    try:
        return grant.agent_for(agent)
    except Forbidden:
        if agent:
            raise
        return ""


def _local_id(fields: Mapping[str, Raw], id_field: str) -> str | None:
    raw = fields.get(id_field)
    if raw is None or bytes(raw) == b"null":
        return None
    try:
        return msgspec.json.decode(raw, type=Id)
    except msgspec.ValidationError:
        raise malformed(f"$.request.{id_field}: expected a string of 1 to 256 characters") from None


def _platform_key(peer: Peer, agent: str, key: str) -> str:
    """The key that the platform sees: the agent's own would be in one space with those of other agents behind the same API key."""
    owner = str(peer.uid) if peer.uid >= 0 else f"token {peer.token}"
    return hashlib.sha256(f"gate\0{owner}\0{agent}\0{key}".encode()).hexdigest()[:32]


def _unrouted(message: str) -> GateRefusal:
    return GateRefusal(422, "unrouted", message)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
