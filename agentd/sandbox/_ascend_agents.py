"""ASCEND's agents: registry, heartbeats, the kill switch and its commands. Used by the face in `ascend` alone.

Known: a duplicate registration is 201 with `created: false`; ten registrations a minute; of a batch of heartbeats the first 50
count and the rest is ignored in silence; a heartbeat may be refused under 200; three missed ones make an agent unhealthy.
Known from nowhere: which of flat and nested metrics the server reads (a switch), what a kill switch does to submissions (here:
they are denied), and whether a command is still listed once it is acknowledged (here: not).
"""

from __future__ import annotations

from collections import Counter, deque

import msgspec
from msgspec import Struct

from agentd.sandbox._ascend_bodies import (
    AscendSwitches,
    Fields,
    HeartbeatBody,
    KillBody,
    Refused,
    RegisterBody,
    Vitals,
    read_body,
    read_json,
    read_value,
)
from agentd.sandbox._ascend_rules import Thresholds, thresholds_of
from agentd.sandbox.faces import Call
from agentd.units import rfc3339

_INTERVAL_S = 60
_MISSED = 3
_BATCH = 50
_REGISTRATIONS = 10  # a minute
_MINUTE_S = 60.0
_KEPT = 100  # heartbeats of one agent that can be looked at
BROADCAST = "*"
_COMMANDS = {
    "block": "BLOCK",
    "unblock": "UNBLOCK",
    "suspend": "SUSPEND",
    "quarantine": "QUARANTINE",
    "resume": "RESUME",
}
_STOPS = frozenset({"block", "suspend", "quarantine"})


class Agent(Struct):
    """An agent that registered, or that was heard of by its heartbeats alone."""

    agent_id: str
    fields: Fields = {}
    registered: bool = False
    status: str = "unregistered"
    thresholds: Thresholds = Thresholds()
    stopped: str = ""  # the verb that did it
    heartbeats: int = 0
    last_beat_at: float | None = None
    vitals: Fields = {}
    beats: deque[Fields] = msgspec.field(default_factory=lambda: deque(maxlen=_KEPT))

    def health(self, now: float) -> str:
        """Healthy, unhealthy after three missed heartbeats, unknown without any."""
        if self.last_beat_at is None:
            return "unknown"
        return "unhealthy" if now - self.last_beat_at > _MISSED * _INTERVAL_S else "healthy"

    def shown(self) -> Fields:
        """The agent as the registry tells it."""
        thresholds = msgspec.to_builtins(self.thresholds)
        return {**self.fields, "agent_id": self.agent_id, "status": self.status, **thresholds}


class Command(Struct):
    """Something that a person tells one agent, or all."""

    command_id: str
    agent_id: str
    command_type: str
    reason: str
    issued_at: float
    acked_by: set[str] = set()

    def shown(self) -> Fields:
        """As the SDK reads it."""
        return {
            "command_id": self.command_id,
            "command_type": self.command_type,
            "reason": self.reason,
            "issued_at": rfc3339(self.issued_at),
            "is_broadcast": self.agent_id == BROADCAST,
        }


class KillSwitch(Struct, frozen=True):
    """The organisation's."""

    blocked: bool = False
    reason: str | None = None
    activated_at: str | None = None
    activated_by: str | None = None


class Agents:
    """All agents of the sandbox's one organisation."""

    def __init__(self) -> None:
        self.known: dict[str, Agent] = {}
        self.kill_switch = KillSwitch()
        self.counts: Counter[str] = Counter()
        self._commands: list[Command] = []
        self._registered_at: deque[float] = deque(maxlen=_REGISTRATIONS)

    def thresholds(self, agent_id: str) -> Thresholds:
        """By which an agent's actions are judged."""
        agent = self.known.get(agent_id)
        return agent.thresholds if agent is not None else Thresholds()

    def blocked(self, agent_id: str) -> str:
        """Why nothing of this agent may pass, or an empty string."""
        if self.kill_switch.blocked:
            return f"kill switch: {self.kill_switch.reason}"
        agent = self.known.get(agent_id)
        return f"agent: {agent.stopped}" if agent is not None and agent.stopped else ""

    def is_registered(self, agent_id: str) -> bool:
        """Heartbeats alone don't register an agent."""
        agent = self.known.get(agent_id)
        return agent is not None and agent.registered

    def _heard_of(self, agent_id: str) -> Agent:
        return self.known.setdefault(agent_id, Agent(agent_id))

    # -- registry ---------------------------------------------------------------------------------------------------------

    def register(self, call: Call, switches: AscendSwitches) -> Fields:
        """Upsert-like: a second registration changes nothing and says so."""
        recent = [at for at in self._registered_at if call.now - at < _MINUTE_S]
        if len(recent) >= _REGISTRATIONS:
            wait = str(int(_MINUTE_S - (call.now - recent[0])) + 1)
            raise Refused(429, "10 registrations a minute", headers={"Retry-After": wait})
        sent = read_json(call.body)
        body = read_value(sent, RegisterBody, switches)
        self._registered_at.append(call.now)
        agent = self._heard_of(body.agent_id)
        created = not agent.registered
        if created:
            agent.fields, agent.registered, agent.status = sent, True, "draft"
            agent.thresholds = thresholds_of(body.agent_type, body.auto_approve_below, body.max_risk_threshold)
        said = {"success": True, "created": created, "agent": agent.shown()}
        words = "registered" if created else "already exists"
        return said | {"message": f"agent {words}", "next_steps": ["an administrator activates the agent"]}

    def update(self, call: Call, agent_id: str) -> Fields:
        """Take over what is sent; the id stays."""
        sent = read_json(call.body)
        if not isinstance(sent, dict):
            raise Refused(422, "expected an object")
        agent = self._registered(agent_id)
        agent.fields = {**agent.fields, **sent, "agent_id": agent_id}
        agent.status = str(sent.get("status") or agent.status)
        return {"success": True, "agent": agent.shown()}

    def remove(self, agent_id: str) -> Fields:
        """Forget a registered agent."""
        self._registered(agent_id)
        del self.known[agent_id]
        return {"success": True, "agent_id": agent_id}

    def _registered(self, agent_id: str) -> Agent:
        if not self.is_registered(agent_id):
            raise Refused(404, f"Agent {agent_id} not found", "AGENT_NOT_FOUND")
        return self.known[agent_id]

    # -- heartbeats -------------------------------------------------------------------------------------------------------

    def beat(self, call: Call, switches: AscendSwitches) -> Fields:
        """One heartbeat."""
        return self._beat(read_body(call.body, HeartbeatBody, switches), call.now, switches)

    def beats(self, call: Call, switches: AscendSwitches) -> Fields:
        """An array of heartbeats, of which the first 50 are looked at; all of these must be valid."""
        sent = read_json(call.body)
        if not isinstance(sent, list):
            raise Refused(422, "expected an array of heartbeats")
        bodies = [read_value(one, HeartbeatBody, switches) for one in sent[:_BATCH]]
        self.counts["ignored_heartbeats"] += max(0, len(sent) - _BATCH)
        results = [self._beat(body, call.now, switches) for body in bodies]
        return {"processed": len(results), "results": results}

    def _beat(self, body: HeartbeatBody, now: float, switches: AscendSwitches) -> Fields:
        said: Fields = {"success": True, "agent_id": body.agent_id, "health_status": "healthy"}
        said |= {"next_heartbeat_expected_at": rfc3339(now + _INTERVAL_S), "heartbeat_interval_seconds": _INTERVAL_S}
        if switches.unregistered == "refuse" and not self.is_registered(body.agent_id):
            self.counts["refused_heartbeats"] += 1
            return said | {"success": False, "health_status": "unknown", "error": f"agent {body.agent_id} not found"}
        agent = self._heard_of(body.agent_id)
        agent.heartbeats += 1
        agent.last_beat_at = now
        agent.vitals = _vitals(body, switches.heartbeat_metrics)
        agent.beats.append(
            {"sequence_number": agent.heartbeats, "at": rfc3339(now), "sent": body.timestamp, **agent.vitals}
        )
        self.counts["heartbeats"] += 1
        return said | {"error": None}

    def health(self, agent_id: str, now: float) -> Fields:
        """The health view; its fields beside the answer's of a heartbeat are a guess."""
        agent = self.known.get(agent_id)
        if agent is None:
            raise Refused(404, f"Agent {agent_id} not found", "AGENT_NOT_FOUND")
        last = None if agent.last_beat_at is None else rfc3339(agent.last_beat_at)
        said = {"agent_id": agent_id, "health_status": agent.health(now), "last_heartbeat_at": last}
        return said | {"heartbeat_interval_seconds": _INTERVAL_S, "metrics": agent.vitals}

    # -- kill switch and commands -----------------------------------------------------------------------------------------

    def trigger(self, call: Call, switches: AscendSwitches, who: str = "api") -> Fields:
        """Block everything, and tell every agent."""
        return self._throw(read_body(call.body, KillBody, switches).reason, call.now, who, blocked=True)

    def release(self, call: Call, switches: AscendSwitches, who: str = "api") -> Fields:
        """Let everything pass again, and tell every agent."""
        return self._throw(read_body(call.body, KillBody, switches).reason, call.now, who, blocked=False)

    def _throw(self, reason: str, now: float, who: str, *, blocked: bool) -> Fields:
        self.kill_switch = KillSwitch(True, reason, rfc3339(now), who) if blocked else KillSwitch()
        self._command(BROADCAST, "BLOCK" if blocked else "UNBLOCK", reason, now)
        return {"success": True, **msgspec.to_builtins(self.kill_switch)}

    def _command(self, agent_id: str, command_type: str, reason: str, now: float) -> None:
        self._commands.append(Command(f"cmd_{len(self._commands) + 1}", agent_id, command_type, reason, now))

    def commands(self, agent_id: str) -> Fields:
        """What an agent has been told and not acknowledged."""
        told = [command for command in self._commands if command.agent_id in {agent_id, BROADCAST}]
        listed = [command.shown() for command in told if agent_id not in command.acked_by]
        return {"agent_id": agent_id, "commands": listed, "count": len(listed)}

    def ack(self, agent_id: str, command_id: str) -> Fields:
        """Acknowledge, as often as one likes."""
        for command in self._commands:
            if command.command_id == command_id and command.agent_id in {agent_id, BROADCAST}:
                command.acked_by.add(agent_id)
                return {"success": True}
        raise Refused(404, f"no command {command_id} for {agent_id}", "COMMAND_NOT_FOUND")

    # -- a person's hand --------------------------------------------------------------------------------------------------

    def verbs(self, agent: Agent) -> list[str]:
        """What a person may do to an agent now."""
        activate = ["activate"] if agent.status == "draft" else []
        return activate + (["unblock", "resume"] if agent.stopped else sorted(_STOPS))

    def act(self, agent_id: str, verb: str, now: float) -> Fields | None:
        """Do it; None if there is no such agent or verb."""
        agent = self.known.get(agent_id)
        if agent is None or verb not in self.verbs(agent):
            return None
        if verb == "activate":
            agent.status = "active"
        else:
            agent.stopped = verb if verb in _STOPS else ""
            self._command(agent_id, _COMMANDS[verb], "by a person at the sandbox", now)
        return agent.shown()

    def throw_by_hand(self, verb: str, now: float) -> Fields:
        """Trigger or release the kill switch from the sandbox's page."""
        return self._throw("by a person at the sandbox", now, "sandbox", blocked=verb == "trigger")


def _vitals(body: HeartbeatBody, read: str) -> Fields:
    """The metrics that this server reads; the others are lost, as on the real one."""
    nested = {} if body.metrics is None else msgspec.structs.asdict(body.metrics)
    flat = {name: getattr(body, name) for name in Vitals.__struct_fields__}
    chosen = [nested] if read == "nested" else [flat] if read == "flat" else [nested, flat]
    found: Fields = {}
    for source in chosen:
        found |= {name: value for name, value in source.items() if value is not None and name not in found}
    return found
