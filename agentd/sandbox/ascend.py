"""ASCEND (OW-KAI) as it can be known from outside: actions and their approval, completions, agents, heartbeats, kill switch.

Sources: ascend-ai-sdk 2.7.1 (endpoints, fields, headers, signature), https://docs.ascendowkai.com (answers, errors, limits), and
the server routes in older commits of Amplify-Cost/ascend-sdk-python. They disagree more than for any other platform; where they
do, `AscendSwitches` chooses, and the defaults are the documentation's. Known: nothing is idempotent, so that a repeated
submission is another action; a submission is written down before it is judged, so that a denial leaves a row too; the older
completion and approval routes take numeric ids only, and log a number that they have never seen; approval wants a person's token.
Known from nowhere, and guessed: the answers of dry run, output filter, audit log and webhooks, completions of actions that were
never approved (taken and counted), and the SDK's completion of an unknown action (404).
"""

from __future__ import annotations

import re
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from urllib.parse import parse_qs, unquote

import msgspec

from agentd.sandbox._ascend_agents import Agents
from agentd.sandbox._ascend_bodies import (
    AnyBody,
    AscendSwitches,
    CompleteBody,
    DryRunBody,
    FailBody,
    Fields,
    HookBody,
    OldCompleteBody,
    OldFailBody,
    Refused,
    SubmitBody,
    number_in,
    read_body,
    read_json,
    read_mcp,
    read_submission,
)
from agentd.sandbox._ascend_rules import Action, denial, detail, foreseen, judge, mcp_submitted, polled, submitted
from agentd.sandbox._ascend_wire import Ration, bearer, check_signature, error_answer, need_user
from agentd.sandbox.faces import Answer, Call, Totals
from agentd.units import rfc3339

_KILL_SWITCH = "kill-switch"
_AGENT = "agent:"
_STRAY = "stray:"
_BY_HAND = {"approve": "approved", "deny": "denied"}
_APPROVAL_WORDS = {"denied": "rejected"}

Said = tuple[int, Any]
Handler = Callable[..., Said]


class Ascend:
    """The face. Invariant: a request that is refused as malformed has changed nothing."""

    name = "ascend"
    prefixes = (
        "/api/v1/actions", "/api/v1/mcp/", "/api/v1/output-filter/", "/api/agent-action/", "/api/agent-activity", "/api/sdk/",
        "/api/registry/", "/api/agents/health/", "/api/governance/", "/api/billing/kill-switch/", "/api/webhooks", "/api/audit/",
        "/audit/logs", "/api/deployment-info", "/health",
    )  # fmt: skip

    def __init__(self) -> None:
        self.switches: msgspec.Struct = AscendSwitches()
        self._routes = [(method, _pattern(path), handler) for method, path, handler in self._table()]
        self.reset()

    def reset(self) -> None:
        """Forget actions, agents, kill switch and webhooks."""
        self._actions: dict[str, Action] = {}
        self._strays: dict[str, list[Fields]] = {}  # completions of numbers that name no action
        self._agents = Agents()
        self._hooks: list[Fields] = []
        self._counts: Counter[str] = Counter()
        self._delayed: list[Action] = []
        self._ration = Ration()
        self._now = 0.0  # of the latest call: a person's hand has no clock of its own

    def _table(self) -> list[tuple[str, str, Handler]]:
        old, sdk = "/api/sdk/action/{}/", "/api/agent-action/{}/"
        registry, health = "/api/registry/agents", "/api/agents/health"
        return [
            ("POST", "/api/v1/actions/submit", self._submit),
            ("POST", "/api/v1/mcp/actions/submit", self._submit_mcp),
            ("GET", "/api/v1/actions/{}/status", self._status),
            ("GET", "/api/agent-action/status/{}", self._legacy_status),
            ("POST", f"{sdk}complete", lambda call, key: self._sdk_end(call, key, CompleteBody)),
            ("POST", f"{sdk}fail", lambda call, key: self._sdk_end(call, key, FailBody)),
            ("POST", f"{old}completed", lambda call, key: self._old_end(call, key, OldCompleteBody, "completed")),
            ("POST", f"{old}failed", lambda call, key: self._old_end(call, key, OldFailBody, "failed")),
            ("GET", "/api/v1/actions", self._list),
            ("GET", "/api/agent-activity", self._list),
            ("GET", "/api/v1/actions/{}", lambda _call, key: (200, detail(self._action(key)))),
            ("GET", "/api/sdk/approval/{}", self._approval),
            ("POST", "/api/v1/actions/{}/approve", lambda call, key: self._decide(call, key, "approved")),
            ("POST", "/api/v1/actions/{}/reject", lambda call, key: self._decide(call, key, "denied")),
            ("POST", "/api/governance/workflows/{}/approve", lambda call, key: self._decide_flow(call, key, "approved")),
            ("POST", "/api/governance/workflows/{}/deny", lambda call, key: self._decide_flow(call, key, "denied")),
            ("POST", registry, lambda call: (201, self._agents.register(call, self._chosen))),
            ("PUT", f"{registry}/{{}}", lambda call, key: (200, self._agents.update(call, key))),
            ("DELETE", f"{registry}/{{}}", lambda _call, key: (200, self._agents.remove(key))),
            ("GET", f"{registry}/{{}}/commands", lambda _call, key: (200, self._agents.commands(key))),
            ("POST", f"{registry}/{{}}/commands/{{}}/ack", lambda _call, key, cid: (200, self._agents.ack(key, cid))),
            ("POST", f"{health}/heartbeat", lambda call: (200, self._agents.beat(call, self._chosen))),
            ("POST", f"{health}/heartbeat/batch", lambda call: (200, self._agents.beats(call, self._chosen))),
            ("GET", f"{health}/{{}}", lambda call, key: (200, self._agents.health(key, call.now))),
            ("GET", "/api/sdk/kill-switch/status", lambda _call: (200, self._agents.kill_switch)),
            ("POST", "/api/billing/kill-switch/{}/trigger", lambda call, _org: (200, self._agents.trigger(call, self._chosen))),
            ("POST", "/api/billing/kill-switch/{}/release", lambda call, _org: (200, self._agents.release(call, self._chosen))),
            ("POST", "/api/governance/policies/evaluate-realtime", self._dry_run),
            ("POST", "/api/v1/output-filter/scan", self._scan),
            ("POST", "/api/webhooks/configure", self._hook),
            ("POST", "/api/webhooks", self._hook),
            ("GET", "/audit/logs", self._audit),
            ("GET", "/api/audit/logs", self._audit),
            ("GET", "/health", lambda _call: (200, {"status": "healthy"})),
            ("GET", "/api/deployment-info", lambda _call: (200, {"version": "sandbox", "environment": "sandbox"})),
        ]  # fmt: skip

    # -- the wire -----------------------------------------------------------------------------------------------------------

    def presented_key(self, headers: Mapping[str, str]) -> str:
        """`X-API-Key`, or the token of `Authorization: Bearer`: either will do."""
        return headers.get("X-API-Key", "").strip() or bearer(headers)

    def opens(self, call: Call) -> bool:
        """Liveness can be asked for without a key."""
        return call.path == "/health"

    def idempotency_key(self, call: Call) -> str:
        """ASCEND knows none; agentd sends one all the same, and the books want to see it."""
        return call.headers.get("Idempotency-Key", "")

    def answer(self, call: Call) -> Answer:
        """Route, validate, commit."""
        self._now = call.now
        self._decide_what_is_due(call.now)
        try:
            headers = self._ration.count(call.now, self._chosen)
            check_signature(call, self._chosen)
            handler, keys = self._route(call)
            status, said = handler(call, *keys)
        except Refused as refusal:
            correlation = call.headers.get("X-Correlation-ID") or _correlation_id()
            return error_answer(refusal, self._chosen.error_envelope, correlation, call.now)
        return Answer(status, msgspec.json.encode(said), headers=headers)

    def refuse(self, status: int, message: str) -> Answer:
        """An error in the envelope that the switch says."""
        return error_answer(Refused(status, message), self._chosen.error_envelope, _correlation_id(), self._now)

    @property
    def _chosen(self) -> AscendSwitches:
        assert isinstance(self.switches, AscendSwitches)  # noqa: S101 - the sandbox only ever puts this type there
        return self.switches

    def _route(self, call: Call) -> tuple[Handler, list[str]]:
        path, known = call.path.rstrip("/"), False
        for method, pattern, handler in self._routes:
            found = pattern.fullmatch(path)
            if found is None:
                continue
            if method == call.method:
                return handler, [unquote(part) for part in found.groups()]
            known = True
        # FastAPI's own words, whatever envelope the rest speaks.
        raise Refused(405, "Method Not Allowed", raw=True) if known else Refused(404, "Not Found", raw=True)

    # -- actions --------------------------------------------------------------------------------------------------------------

    def _submit(self, call: Call) -> Said:
        action = self._take(call, *read_submission(call.body, self._chosen))
        return submitted(action, self._chosen.response_shape)

    def _submit_mcp(self, call: Call) -> Said:
        return mcp_submitted(self._take(call, *read_mcp(call.body, self._chosen)))

    def _take(self, call: Call, body: SubmitBody, sent: Fields) -> Action:
        """Judge a submission and write it down. Raises Refused."""
        agent_id, switches = body.agent_id or "", self._chosen
        if agent_id and switches.unregistered == "refuse" and not self._agents.is_registered(agent_id):
            raise Refused(403, "Agent must be registered first")
        number = len(self._actions) + 1
        thresholds, blocked = self._agents.thresholds(agent_id), self._agents.blocked(agent_id)
        judgement = judge(body, thresholds, blocked, switches.decision)
        action = Action(
            id=str(number) if switches.id_type == "int" else f"act_{uuid.uuid4().hex[:16]}",
            sent=sent,
            body=body,
            judgement=judgement,
            decision=judgement.decision,
            created_at=call.now,
            updated_at=call.now,
            correlation_id=call.headers.get("X-Correlation-ID") or _correlation_id(),
            reason=judgement.reason,
        )
        self._actions[action.id] = action
        action.note(call.now, "submitted", decision=action.decision, reason=action.reason)
        if action.decision == "pending" and switches.decision_delay is not None:
            action.decides_at = call.now + switches.decision_delay
            self._delayed.append(action)
        if action.decision == "denied" and switches.governance_403 == "on":
            raise Refused(403, denial(action), raw=True)
        return action

    def _decide_what_is_due(self, now: float) -> None:
        """What is pending may decide itself after a while; a face has no clock, so that it does when somebody calls."""
        due = [action for action in self._delayed if action.decides_at is not None and action.decides_at <= now]
        if due:
            self._delayed = [action for action in self._delayed if action not in due]
        for action in due:
            if action.decision == "pending":
                self._settle(action, self._chosen.delayed_decision, "delay", action.decides_at or now)

    def _settle(self, action: Action, decision: str, by: str, now: float, reason: str = "") -> None:
        action.decision, action.decided_by, action.decides_at = decision, by, None
        action.reason = reason or f"{decision} by {by}"
        action.note(now, decision, by=by, reason=action.reason)

    def _action(self, key: str) -> Action:
        action = self._actions.get(key)
        if action is None:
            raise Refused(404, f"Action {key} not found", "ACTION_NOT_FOUND")
        return action

    def _status(self, _call: Call, key: str) -> Said:
        return 200, polled(self._action(key), self._chosen.response_shape)

    def _legacy_status(self, call: Call, key: str) -> Said:
        if "X-API-Key" in call.headers:
            raise Refused(401, "X-API-Key is not accepted here", "MISSING_AUTH")
        return self._status(call, key)

    def _list(self, call: Call) -> Said:
        as_object = self._chosen.list_shape == "object"
        asked = {name: values[-1] for name, values in parse_qs(call.query).items()}
        limit = min(number_in(asked, "limit", 50 if as_object else 100), 100 if as_object else 1000)
        offset = number_in(asked, "offset", 0)
        status = asked.get("status" if as_object or call.path == "/api/agent-activity" else "status_filter")
        found = [
            detail(action)
            for action in reversed(self._actions.values())
            if status in {None, action.decision, action.server_status}
            and asked.get("agent_id") in {None, action.body.agent_id}
        ]
        page = found[offset : offset + limit]
        return 200, {"actions": page, "total": len(found), "limit": limit, "offset": offset} if as_object else page

    # -- completion -----------------------------------------------------------------------------------------------------------

    def _sdk_end(self, call: Call, key: str, shape: type[CompleteBody | FailBody]) -> Said:
        if self._chosen.completion_routes == "server":
            raise Refused(404, "Not Found", raw=True)
        body: CompleteBody | FailBody = read_body(call.body, shape, self._chosen)
        if str(body.action_id) != key:
            raise Refused(400, f"action_id {body.action_id} is not that of the path")
        self._end(self._action(key), body.status, read_json(call.body), call.now)
        return 200, {"action_id": self._actions[key].shown_id, "status": body.status}

    def _old_end(self, call: Call, key: str, shape: type[OldCompleteBody | OldFailBody], status: str) -> Said:
        if self._chosen.completion_routes == "sdk":
            raise Refused(404, "Not Found", raw=True)
        read_body(call.body, shape, self._chosen)
        if not (key.isascii() and key.isdecimal()):
            raise Refused(400, f"Invalid action_id {key!r}: expected a number")
        said, action = read_json(call.body), self._actions.get(key)
        if action is not None:
            self._end(action, status, said, call.now)
        else:
            self._counts["stray_completions"] += 1
            self._strays.setdefault(key, []).append({"at": rfc3339(call.now), "what": status, "said": said})
        return 200, {"action_id": int(key), "status": status, "logged_at": rfc3339(call.now)}

    def _end(self, action: Action, status: str, said: Fields, now: float) -> None:
        """Log it, again if it comes again: nothing here is idempotent."""
        self._counts["completions"] += 1
        self._counts["repeated_completions"] += action.completions > 0
        self._counts["unapproved_completions"] += action.decision != "approved"
        action.completions += 1
        action.note(now, status, said=said)

    # -- approval -------------------------------------------------------------------------------------------------------------

    def _approval(self, _call: Call, key: str) -> Said:
        if not (key.isascii() and key.isdecimal()):
            raise Refused(400, f"Invalid action_id {key!r}: expected a number")
        action = self._action(key)
        by, decided = action.decided_by or None, action.decision != "pending"
        denied = action.decision == "denied"
        return 200, {
            "action_id": action.shown_id,
            "status": _APPROVAL_WORDS.get(action.decision, action.decision),
            "approved_by": by if action.decision == "approved" else None,
            "rejected_by": by if denied else None,
            "rejection_reason": action.reason if denied else None,
            "decided_at": rfc3339(action.updated_at) if decided else None,
        }

    def _decide(self, call: Call, key: str, decision: str) -> Said:
        need_user(call.headers)
        words = read_body(call.body, AnyBody, self._chosen) if call.body else AnyBody()
        action = self._action(key)
        if action.decision != "pending":
            raise Refused(400, f"Action {key} is {action.decision}, not pending", "INVALID_STATE")
        self._settle(action, decision, "user", call.now, words.reason or words.comments or "")
        return 200, polled(action, self._chosen.response_shape)

    def _decide_flow(self, call: Call, key: str, decision: str) -> Said:
        return self._decide(call, key.removeprefix("wf_"), decision)

    # -- the smaller calls ------------------------------------------------------------------------------------------------------

    def _dry_run(self, call: Call) -> Said:
        body = read_body(call.body, DryRunBody, self._chosen).submission()
        agent_id, agents = body.agent_id or "", self._agents
        judgement = judge(body, agents.thresholds(agent_id), agents.blocked(agent_id), self._chosen.decision)
        return 200, foreseen(judgement)

    def _scan(self, call: Call) -> Said:
        if not isinstance(read_json(call.body), dict):
            raise Refused(422, "expected an object")
        return 200, {"allowed": True, "findings": []}

    def _hook(self, call: Call) -> Said:
        body = read_body(call.body, HookBody, self._chosen)
        url, events = body.url or body.target_url, body.events or body.event_types
        if not url or not events:
            raise Refused(
                int(self._chosen.missing_field), "Missing required fields: url, events", "MISSING_REQUIRED_FIELD"
            )
        hook: Fields = {"webhook_id": f"wh_{len(self._hooks) + 1}", "url": url, "events": events}
        self._hooks.append(hook)
        return 201, {"success": True, **hook}

    def _audit(self, _call: Call) -> Said:
        logs = [{"action_id": action.shown_id, **line} for action in self._actions.values() for line in action.log]
        return 200, {"logs": logs, "total": len(logs)}

    # -- inspection -----------------------------------------------------------------------------------------------------------

    def act(self, item_id: str, verb: str) -> Answer:
        """A person's hand: approve or deny an action, stop or start an agent, throw the kill switch. The time is the latest call's."""
        action = self._actions.get(item_id)
        said: Fields | None = None
        if action is not None and action.decision == "pending" and verb in _BY_HAND:
            self._settle(action, _BY_HAND[verb], "a person at the sandbox", self._now)
            said = detail(action)
        elif item_id.startswith(_AGENT):
            said = self._agents.act(item_id.removeprefix(_AGENT), verb, self._now)
        elif item_id == _KILL_SWITCH and verb in {"trigger", "release"}:
            said = self._agents.throw_by_hand(verb, self._now)
        if said is None:
            return self.refuse(409 if action is not None else 404, f"nothing to {verb} at {item_id}")
        return Answer(200, msgspec.json.encode(said))

    def totals(self) -> Totals:
        """Counters; `duplicates` are completions of an action beyond its first."""
        details = {
            "actions": len(self._actions),
            "actions_by_decision": dict(Counter(action.decision for action in self._actions.values())),
            "agents": len(self._agents.known),
            "kill_switch": self._agents.kill_switch.blocked,
            "webhooks": len(self._hooks),
            **{name: self._counts[name] for name in _COUNTED},
            **{name: self._agents.counts[name] for name in _COUNTED_BEATS},
        }
        events = sum(len(action.log) for action in self._actions.values())
        return Totals(len(self._rows()), events, self._counts["repeated_completions"], details)

    def _rows(self) -> list[Callable[[], Fields]]:
        """One maker of a row for each thing, oldest first."""
        rows = [partial(self._stray_row, key) for key in self._strays]
        rows += [partial(self._agent_row, agent_id) for agent_id in self._agents.known]
        rows += [partial(self._action_row, key) for key in self._actions]
        if self._agents.kill_switch.blocked:
            rows.append(partial(dict, id=_KILL_SWITCH, status="blocked", verbs=["release"]))
        return [*rows]

    def _action_row(self, key: str) -> Fields:
        action = self._actions[key]
        return {
            "id": key,
            "agent_id": action.body.agent_id,
            "status": action.decision,
            "what": f"{action.body.action_type} {action.body.resource or action.body.tool_name or ''}".strip(),
            "risk_score": action.judgement.score,
            "completions": action.completions,
            "last_at": rfc3339(action.updated_at),
            "verbs": sorted(_BY_HAND) if action.decision == "pending" else [],
        }

    def _agent_row(self, agent_id: str) -> Fields:
        agent = self._agents.known[agent_id]
        status = f"{agent.status}, {agent.health(self._now)}"
        return {
            "id": _AGENT + agent_id,
            "agent_id": agent_id,
            "status": f"{status}, {agent.stopped}" if agent.stopped else status,
            "heartbeats": agent.heartbeats,
            "last_at": None if agent.last_beat_at is None else rfc3339(agent.last_beat_at),
            "verbs": self._agents.verbs(agent),
        }

    def _stray_row(self, key: str) -> Fields:
        return {"id": _STRAY + key, "status": "no such action", "completions": len(self._strays[key])}

    def runs(self, limit: int | None = None, offset: int = 0) -> list[dict[str, Any]]:
        """One row for each action, agent and stray completion: actions first, newest first."""
        makers = self._rows()[::-1][offset : None if limit is None else offset + limit]
        return [make() for make in makers]

    def run(self, key: str, limit: int | None = None, offset: int = 0) -> dict[str, Any] | None:
        """One action with its log, one agent with its latest heartbeats, or what was said of no action."""
        agent_id, stray = key.removeprefix(_AGENT), key.removeprefix(_STRAY)
        if key in self._actions:
            action = self._actions[key]
            shown, log = {**self._action_row(key), "reason": action.reason, "sent": action.sent}, action.log
        elif key.startswith(_AGENT) and agent_id in self._agents.known:
            agent = self._agents.known[agent_id]
            shown, log = (
                {**self._agent_row(agent_id), "agent": agent.shown(), "metrics": agent.vitals},
                list(agent.beats),
            )
        elif key.startswith(_STRAY) and stray in self._strays:
            shown, log = self._stray_row(stray), self._strays[stray]
        else:
            return None
        return shown | {"event_count": len(log), "events": log[offset : None if limit is None else offset + limit]}


_COUNTED = ("completions", "repeated_completions", "unapproved_completions", "stray_completions")
_COUNTED_BEATS = ("heartbeats", "ignored_heartbeats", "refused_heartbeats")


def _pattern(path: str) -> re.Pattern[str]:
    """A path with `{}` for each segment that names something."""
    return re.compile("([^/]+)".join(re.escape(part) for part in path.split("{}")))


def _correlation_id() -> str:
    return f"asc_{uuid.uuid4().hex[:16]}"


FACE = Ascend
