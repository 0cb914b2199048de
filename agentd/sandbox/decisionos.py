"""Decision OS as it can be known from outside: the log of decisions, their snapshots, its ledger and its reads.

Sources: PyPI `decision-os-sdk` 0.2.1 (fields, answers, errors, the ledger's verification) and the project's page on it.
Known from there: `requestId` makes a repeat answer with the original; an agent that the workspace has not is a 404 unless
`createAgentIfMissing` is true; a snapshot needs its decision; `policyEval.ok: false` comes inside a success; a used up quota is
a 402; errors are `{error: "text"}`. Known from nowhere, or told in two ways: `DecisionosSwitches`. The outcomes chain, which no
documented call fills, is empty.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import secrets
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs, quote, unquote

import msgspec
from msgspec import UNSET, Meta, Struct

from agentd.sandbox._decisionos_bodies import DecisionBody, Invalid, Refused, SnapshotBody, option_keys, read_body
from agentd.sandbox._decisionos_ledger import Agent, Decision, Ledger, Snapshot, seal
from agentd.sandbox.faces import Answer, Call, Totals
from agentd.units import rfc3339

_BASE = "/api/public/v1/"
_DEFAULT_LIMIT, _MAX_LIMIT = 25, 100
_FIRST_MONTH, _LAST_MONTH = 1, 12
# How a decision is to be taken, and not what it says: no part of the seal.
_NOT_SEALED = frozenset({"requestId", "createAgentIfMissing", "runPolicyEval"})

Limit = Annotated[int, Meta(ge=1)]


class DecisionosSwitches(Struct, frozen=True, forbid_unknown_fields=True):
    """What no source settles, and what a workspace is made of. The defaults are what decision-os-sdk 0.2.1 was built for."""

    agents: str = str(uuid.uuid5(uuid.NAMESPACE_URL, "agentd:sandbox"))  # ids that exist, comma-separated; `*`: any
    status_word: Literal["logged", "draft"] = "logged"
    request_id_conflict: Literal["409", "original"] = "409"  # other content under a known requestId
    request_id_scope: Literal["endpoint", "workspace"] = "endpoint"  # may a snapshot have its decision's requestId?
    created_status: Literal["200", "201"] = "200"
    replayed_status: Literal["200", "201", "409"] = "200"  # 409: the same content is refused as well
    envelope: Literal["data", "bare"] = "data"
    error_field: Literal["error", "message"] = "error"
    invalid_status: Literal["400", "422"] = "400"
    chosen_must_be_option: bool = True  # where options are given
    policy_eval_ok: bool = True
    monthly_decisions: Limit | None = None  # above: 402
    reset_at_in_402: bool = False  # whether the refusal says when the quota is fresh again
    tampered_link: Limit | None = None  # the ledger is verified as if somebody had changed this one
    max_body_bytes: Limit = 4 * 1024 * 1024  # above: 413


class _RequestId(Struct):
    request_id: str = msgspec.field(name="requestId", default="")


_decode_request_id = msgspec.json.Decoder(_RequestId).decode


class _Known(Struct):
    """What a `requestId` was used for."""

    endpoint: str
    content: str
    stored: Decision | Snapshot


class DecisionOS:
    """The face. Invariant: a request that is refused has changed nothing but counters."""

    name = "decisionos"
    prefixes = ("/api/public/",)

    def __init__(self) -> None:
        self.switches: Struct = DecisionosSwitches()
        self._secret = secrets.token_bytes(16)
        self._writes: dict[str, Callable[[Call], tuple[int, Any]]] = {
            "decisions": self._log_decision,
            "snapshots": self._capture_snapshot,
        }
        self._reads: dict[str, Callable[[Call], Any]] = {
            "decisions": self._list_decisions,
            "agents": self._list_agents,
            "workspace/usage": self._usage,
            "ledger/verify": self._verify,
        }
        self._finds: dict[str, Callable[[Call, str], Any]] = {
            "decisions": lambda _call, key: self._decision(key).shown(),
            "agents": lambda _call, key: self._agent(key),
            "receipt": self._receipt,
        }
        self.reset()

    def reset(self) -> None:
        """Forget decisions, snapshots and the agents that came into being with them."""
        self._agents: dict[str, Agent] = {}
        self._decisions: dict[str, Decision] = {}
        self._requests: dict[tuple[str, str], _Known] = {}
        self._ledger = Ledger()
        self._counts: Counter[str] = Counter()
        self._months: dict[str, Counter[str]] = {}

    # -- the wire -----------------------------------------------------------------------------------------------------------

    def presented_key(self, headers: Mapping[str, str]) -> str:
        """The token of `Authorization: Bearer …`."""
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        return token.strip() if scheme.lower() == "bearer" else ""

    def opens(self, call: Call) -> bool:
        """A receipt's link is a capability: who has it needs no key."""
        return call.method == "GET" and call.path.startswith(f"{_BASE}receipt/")

    def idempotency_key(self, call: Call) -> str:
        """The `requestId` in the body."""
        try:
            return _decode_request_id(call.body).request_id
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return ""

    def answer(self, call: Call) -> Answer:
        """Route, validate, commit."""
        try:
            status, value = self._handle(call)
        except Invalid as refusal:
            return self.refuse(int(self._switches.invalid_status), refusal.message)
        except Refused as refusal:
            return self._refusal(refusal.status, refusal.message, refusal.more)
        bare = self._switches.envelope == "bare" or self.opens(call)  # the SDK verifies a receipt as it comes
        shown = value if bare else {"data": value}
        return Answer(status, msgspec.json.encode(shown))

    def _handle(self, call: Call) -> tuple[int, Any]:
        place = call.path.removeprefix(_BASE) if call.path.startswith(_BASE) else ""
        group, _, key = place.partition("/")
        readable = place in self._reads or (group in self._finds and key and "/" not in key)
        if call.method == "POST" and place in self._writes:
            if len(call.body) > self._switches.max_body_bytes:
                raise Refused(413, f"the body exceeds {self._switches.max_body_bytes} bytes")
            return self._writes[place](call)
        if call.method == "GET" and readable:
            return 200, self._reads[place](call) if place in self._reads else self._finds[group](call, unquote(key))
        if place in self._writes or readable:
            raise Refused(405, f"{call.method} is not allowed here")
        raise Refused(404, f"no such endpoint: {call.path}")

    def refuse(self, status: int, message: str) -> Answer:
        """`{error: "text"}`, or `{message: "text"}`; there is no machine code."""
        return self._refusal(status, message, {})

    def _refusal(self, status: int, message: str, more: Mapping[str, Any]) -> Answer:
        return Answer(status, msgspec.json.encode({self._switches.error_field: message, **more}))

    @property
    def _switches(self) -> DecisionosSwitches:
        assert isinstance(self.switches, DecisionosSwitches)  # noqa: S101 - the sandbox only ever puts this type there
        return self.switches

    # -- writes: validate wholly, then change -----------------------------------------------------------------------------------

    def _log_decision(self, call: Call) -> tuple[int, Any]:
        body, sent = read_body(call.body, DecisionBody)
        keys = option_keys(body)
        if self._switches.chosen_must_be_option and keys is not None and body.chosen_option_key not in {UNSET, *keys}:
            raise Invalid(f"{body.chosen_option_key!r} is none of the options - at `$.chosenOptionKey`")
        if (known := self._known("decisions", sent)) is not None:
            return self._replay(known)
        agent = self._agent_or_none(body.agent_id)
        if agent is None and not body.create_agent_if_missing:
            raise self._unknown("agent", body.agent_id)
        self._check_quota(call.now)
        if agent is None:
            name = body.agent_id if body.agent_name is UNSET else body.agent_name
            self._agents[body.agent_id] = Agent(body.agent_id, name, rfc3339(call.now))
        decision = self._seal(call, sent, body)
        self._decisions[decision.id] = decision
        self._remember("decisions", sent, decision)
        self._month(call.now)["decision_count"] += 1
        return int(self._switches.created_status), decision.answer

    def _seal(self, call: Call, sent: dict[str, Any], body: DecisionBody) -> Decision:
        decision_id = f"dec_{uuid.uuid4().hex}"
        content = {name: value for name, value in sent.items() if name not in _NOT_SEALED}
        link = self._ledger.append({**content, "id": decision_id, "createdAt": rfc3339(call.now)})
        answer = {
            "id": decision_id,
            "status": self._switches.status_word,
            "contentHash": link.content_hash,
            "chainIndex": link.index,
            "receipt": self._receipt_link(call, decision_id),
        }
        if body.run_policy_eval:
            answer["policyEval"] = self._evaluate(body, call.now)
        return Decision(decision_id, sent, call.now, self._switches.status_word, link, answer)

    def _evaluate(self, body: DecisionBody, now: float) -> dict[str, Any]:
        month = self._month(now)
        month["policy_eval_count"] += 1
        month["replay_count"] += 1
        ok = self._switches.policy_eval_ok
        version = "pv_sandbox" if body.policy_version_id is UNSET else body.policy_version_id
        result = {
            "ok": ok,
            "replayId": f"rep_{uuid.uuid4().hex}",
            "policyVersionId": version,
            "diff": {"changed": not ok},
        }
        return result if ok else {**result, "error": "the sandbox's policy is against it"}

    def _capture_snapshot(self, call: Call) -> tuple[int, Any]:
        body, sent = read_body(call.body, SnapshotBody)
        if (known := self._known("snapshots", sent)) is not None:
            return self._replay(known)
        if self._agent_or_none(body.agent_id) is None:
            raise self._unknown("agent", body.agent_id)
        decision = self._decisions.get(body.decision_id)
        if decision is None:
            raise self._unknown("decision", body.decision_id)
        snapshot = Snapshot(f"snap_{uuid.uuid4().hex}", sent, call.now)
        decision.snapshots.append(snapshot)
        self._remember("snapshots", sent, snapshot)
        self._month(call.now)["snapshot_count"] += 1
        self._counts["snapshots"] += 1
        return int(self._switches.created_status), snapshot.answer

    def _unknown(self, what: str, id_: str) -> Refused:
        self._counts[f"unknown_{what}s"] += 1
        return Refused(404, f"{what.capitalize()} {id_} not found in this workspace")

    # -- requestId --------------------------------------------------------------------------------------------------------------

    def _scope(self, endpoint: str, request_id: str) -> tuple[str, str]:
        return ("" if self._switches.request_id_scope == "workspace" else endpoint), request_id

    def _known(self, endpoint: str, sent: dict[str, Any]) -> _Known | None:
        """What was made under this `requestId` before. Raises Refused if it can't be the same request."""
        if "requestId" not in sent:
            return None
        known = self._requests.get(self._scope(endpoint, sent["requestId"]))
        if known is None:
            return None
        same = known.endpoint == endpoint and known.content == seal(sent)
        lenient = known.endpoint == endpoint and self._switches.request_id_conflict == "original"
        if not same:
            self._counts["conflicts"] += 1
            if not lenient:
                raise Refused(409, f"requestId {sent['requestId']} was used for other content")
        return known

    def _replay(self, known: _Known) -> tuple[int, Any]:
        known.stored.requests += 1
        self._counts["replayed"] += 1
        if self._switches.replayed_status == "409":
            raise Refused(409, f"{known.stored.id} exists under this requestId")
        return int(self._switches.replayed_status), known.stored.answer

    def _remember(self, endpoint: str, sent: dict[str, Any], stored: Decision | Snapshot) -> None:
        if "requestId" in sent:
            self._requests[self._scope(endpoint, sent["requestId"])] = _Known(endpoint, seal(sent), stored)

    # -- the workspace ----------------------------------------------------------------------------------------------------------

    def _agent_or_none(self, agent_id: str) -> Agent | None:
        there = [name.strip() for name in self._switches.agents.split(",")]
        if agent_id in self._agents:
            return self._agents[agent_id]
        return Agent(agent_id, agent_id, rfc3339(0.0)) if agent_id in there or "*" in there else None

    def _agent(self, agent_id: str) -> Agent:
        agent = self._agent_or_none(agent_id)
        if agent is None:
            raise Refused(404, f"Agent {agent_id} not found in this workspace")
        return agent

    def _decision(self, decision_id: str) -> Decision:
        decision = self._decisions.get(decision_id)
        if decision is None:
            raise Refused(404, f"Decision {decision_id} not found in this workspace")
        return decision

    def _month(self, now: float) -> Counter[str]:
        return self._months.setdefault(_period(now), Counter())

    def _check_quota(self, now: float) -> None:
        most = self._switches.monthly_decisions
        if most is None or self._month(now)["decision_count"] < most:
            return
        more = {"resetAt": _next_month(now)} if self._switches.reset_at_in_402 else {}
        raise Refused(402, f"the plan's {most} decisions of this month are used up", **more)

    def _list_agents(self, call: Call) -> dict[str, Any]:
        there = [name.strip() for name in self._switches.agents.split(",")]
        named = [self._agent(name) for name in there if name not in {"", "*"} and name not in self._agents]
        wanted = _one(parse_qs(call.query), "name")
        found = [*named, *self._agents.values()]
        return {"items": [agent for agent in found if wanted is None or agent.name == wanted]}

    def _usage(self, call: Call) -> dict[str, Any]:
        names = ("decision_count", "snapshot_count", "replay_count", "policy_eval_count")
        used = self._month(call.now)
        return {
            "plan": "sandbox",
            "period": _period(call.now),
            "resetAt": _next_month(call.now),
            "usage": {name: used[name] for name in names},
        }

    # -- reads ------------------------------------------------------------------------------------------------------------------

    def _list_decisions(self, call: Call) -> dict[str, Any]:
        """Newest first; the cursor is the last decision that was shown."""
        query = parse_qs(call.query)
        limit, agent, status = _limit(query), _one(query, "agentId"), _one(query, "status")
        newest_first = reversed(self._decisions.values())
        if (cursor := _one(query, "cursor")) is not None:
            if cursor not in self._decisions:
                raise Invalid("the cursor is unknown")
            after = itertools.dropwhile(lambda decision: decision.id != cursor, newest_first)
            newest_first = itertools.islice(after, 1, None)
        fits = (
            decision
            for decision in newest_first
            if agent in {None, decision.sent["agentId"]} and status in {None, decision.status}
        )
        page = list(itertools.islice(fits, limit + 1))
        more = len(page) > limit
        return {
            "items": [decision.shown() for decision in page[:limit]],
            "nextCursor": page[limit - 1].id if more else None,
        }

    def _verify(self, call: Call) -> dict[str, Any]:
        decisions = self._ledger.verify(self._switches.tampered_link)
        outcomes = Ledger().verify()
        return {
            "verified_at": rfc3339(call.now),
            "ok": decisions["ok"],
            "requestId": uuid.uuid4().hex,
            "decisions": decisions,
            "outcomes": outcomes,
        }

    def _signature(self, decision_id: str) -> str:
        return hmac.new(self._secret, decision_id.encode(), hashlib.sha256).hexdigest()[:32]

    def _receipt_link(self, call: Call, decision_id: str) -> dict[str, Any]:
        signature = self._signature(decision_id)
        path = f"{_BASE}receipt/{quote(decision_id)}?sig={signature}"
        return {"sig": signature, "path": path, "url": f"http://{call.headers.get('Host', 'sandbox')}{path}"}

    def _receipt(self, call: Call, decision_id: str) -> dict[str, Any]:
        shown = _one(parse_qs(call.query), "sig") or ""
        if not hmac.compare_digest(shown.encode(), self._signature(decision_id).encode()):
            raise Refused(404, "Receipt not found")  # without the link's signature nobody learns whether there is one
        link = self._decision(decision_id).link
        verified = seal(link.payload) == link.content_hash and link.index != self._switches.tampered_link
        return {"canonical_payload": link.payload, "content_hash": link.content_hash, "verified": verified}

    # -- inspection ---------------------------------------------------------------------------------------------------------------

    def act(self, item_id: str, verb: str) -> Answer:
        """A logged decision was made elsewhere: nothing waits for a person."""
        return self.refuse(404, f"nothing to {verb} at {item_id}")

    def totals(self) -> Totals:
        """Counters: decisions, snapshots, and repeats under a known `requestId`, which are answered and not stored."""
        names = ("replayed", "conflicts", "unknown_agents", "unknown_decisions")
        details = {"agents_created": len(self._agents), **{name: self._counts[name] for name in names}}
        return Totals(len(self._decisions), self._counts["snapshots"], self._counts["replayed"], details)

    def runs(self, limit: int | None = None, offset: int = 0) -> list[dict[str, Any]]:
        """One row a decision, newest first."""
        until = None if limit is None else offset + limit
        return [one.row() for one in itertools.islice(reversed(self._decisions.values()), offset, until)]

    def run(self, key: str, limit: int | None = None, offset: int = 0) -> dict[str, Any] | None:
        """A decision by its id or its `requestId`, as it was sent, with its seal and its snapshots as events."""
        known = self._requests.get(self._scope("decisions", key))
        decision = self._decisions.get(key) or (known.stored if known is not None else None)
        if not isinstance(decision, Decision):
            return None
        until = None if limit is None else offset + limit
        return {
            **decision.row(),
            "content_hash": decision.link.content_hash,
            "prev_hash": decision.link.prev_hash,
            "policy_eval": decision.answer.get("policyEval"),
            "sent": decision.sent,
            "event_count": len(decision.snapshots),
            "events": [
                {"id": one.id, "received_at": rfc3339(one.at), "requests": one.requests, **one.sent}
                for one in decision.snapshots[offset:until]
            ],
        }


def _one(query: Mapping[str, list[str]], name: str) -> str | None:
    given = query.get(name)
    return given[-1] if given else None


def _limit(query: Mapping[str, list[str]]) -> int:
    text = _one(query, "limit")
    if text is None:
        return _DEFAULT_LIMIT
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= _MAX_LIMIT:
        raise Invalid(f"limit lies between 1 and {_MAX_LIMIT}")
    return int(text)


def _period(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m")


def _next_month(now: float) -> str:
    today = datetime.fromtimestamp(now, UTC)
    year, month = (today.year + 1, _FIRST_MONTH) if today.month == _LAST_MONTH else (today.year, today.month + 1)
    return rfc3339(datetime(year, month, 1, tzinfo=UTC).timestamp())


FACE = DecisionOS
