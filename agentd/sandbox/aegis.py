"""AegisOS Comply as it can be known from outside: intents to spend, decided later. Strict where a source speaks, a switch where none does.

Source: https://www.aegis-comply.com/, its API reference and its pages of the Python and Node SDKs. Known from there: a POST is
answered 202 and `pending`, always; the decision comes later and is read by id; `pending_approval` waits for a person; nothing is
deduped, so that a second POST is a second spend; names are camelCase; the list takes status, agentId, from, to, limit, offset.
Known from nowhere, and chosen here: the envelope of errors, `{"error": {"code", "message"}}`; the list's order, newest first; that an
optional field is left out and never null. The list's shape and whether it shows metadata are `AegisSwitches`. The paths of approvals
and agents are unknown: a person decides on the inspection page, and such a path is 404. Webhooks are not emulated.
"""

from __future__ import annotations

import itertools
import math
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal
from urllib.parse import unquote

import msgspec
from msgspec import UNSET, Meta, Struct

from agentd.sandbox._aegis_bodies import IntentBody, ListQuery, Refused, Status, read_intent, read_query
from agentd.sandbox.faces import Answer, Call, Totals
from agentd.units import rfc3339

_PATH = "/v1/intents"
_CODES = {
    400: "validation_error",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    409: "conflict",
    413: "payload_too_large",
    429: "rate_limited",
}
_SERVER_ERROR = 500
_EXAMPLE_RISK = 0.12  # of the API reference's example, which was allowed
_VERBS: dict[str, Status] = {"approve": "approved", "deny": "denied"}
_DECISIONS: dict[Status, str | None] = {
    "pending": None,
    "approved": "allow",
    "denied": "deny",
    "pending_approval": "review",
}


class AegisSwitches(Struct, frozen=True, forbid_unknown_fields=True):
    """How intents are decided, and what no source settles. An intent is decided by the switches as they stood when it came."""

    decision_delay: Annotated[float, Meta(ge=0)] = 0.5  # seconds from the POST to the decision; `2s`, `500ms`
    park: bool = False  # what would be approved waits for a person: pending_approval
    deny_above: Annotated[float, Meta(ge=0)] | None = 100_000.0  # amounts above it are denied, whatever their currency
    list_shape: Literal["object", "array"] = "object"  # object: {intents, total, limit, offset}
    list_metadata: bool = False  # whether a listed intent shows its metadata


class _Change(Struct):
    """A status, from when on, and by whom."""

    at: float
    status: Status
    by: Literal["agent", "policy", "person"]


class _Intent(Struct):
    id: str
    body: IntentBody
    other: dict[str, Any]  # fields that Aegis documents nowhere
    key: str  # the Idempotency-Key that came with it, to which Aegis pays no heed
    changes: list[_Change]
    matched_policy: str
    risk_score: float
    reads: int = 0

    def at(self, now: float) -> _Change:
        """What holds at a time: the last change that has come about by then."""
        return next(change for change in reversed(self.changes) if change.at <= now or change is self.changes[0])

    def wire(self, now: float) -> dict[str, Any]:
        """As GET shows it; what is not decided yet is null."""
        change = self.at(now)
        is_decided = change.status != "pending"
        return {
            **self.receipt(),
            "status": change.status,
            "policyDecision": _DECISIONS[change.status],
            "matchedPolicy": self.matched_policy if is_decided else None,
            "riskScore": self.risk_score if is_decided else None,
            "updatedAt": rfc3339(change.at),
        }

    def receipt(self) -> dict[str, Any]:
        """As its POST is answered, whatever the policy will say."""
        return {
            "id": self.id,
            "status": "pending",
            "amount": self.body.amount,
            "currency": self.body.currency,
            "policyDecision": None,
            "createdAt": rfc3339(self.changes[0].at),
        }

    def row(self, now: float) -> dict[str, Any]:
        sent = msgspec.to_builtins(self.body)
        names = ("agentId", "reason", "merchant", "merchantCategory")
        verbs = list(_VERBS) if self.at(now).status in ("pending", "pending_approval") else []
        return {**self.wire(now), **{name: sent.get(name) for name in names}, "reads": self.reads, "verbs": verbs}


class Aegis:
    """The face. Invariant: a request that is refused has changed nothing."""

    name = "aegis"
    prefixes = ("/v1/",)

    def __init__(self) -> None:
        self.switches: Struct = AegisSwitches()
        self.reset()

    def reset(self) -> None:
        """Forget all intents."""
        self._intents: dict[str, _Intent] = {}
        self._keys: dict[str, _Intent] = {}  # the first intent under each Idempotency-Key
        self._now = 0.0  # of the latest request: a face has no clock of its own
        self._duplicates = 0

    # -- the wire -----------------------------------------------------------------------------------------------------------

    def presented_key(self, headers: Mapping[str, str]) -> str:
        """The token of `Authorization: Bearer …`, an agent's `aegis_sk_…` or a dashboard's JWT."""
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        return token.strip() if scheme.lower() == "bearer" else ""

    def idempotency_key(self, call: Call) -> str:
        """Aegis knows no such header; agentd sends it all the same, and the books want to see it."""
        return call.headers.get("Idempotency-Key", "")

    def answer(self, call: Call) -> Answer:
        """Route, validate, commit."""
        self._now = max(self._now, call.now)
        try:
            return self._handler(call)(call)
        except Refused as refusal:
            return self.refuse(refusal.status, refusal.message)

    def _handler(self, call: Call) -> Callable[[Call], Answer]:
        if call.path == _PATH:
            handlers = {"POST": self._submit, "GET": self._list}
        elif call.path.startswith(f"{_PATH}/"):
            handlers = {"GET": self._read}
        else:
            raise Refused(404, f"no such endpoint: {call.path}")
        if call.method not in handlers:
            raise Refused(405, f"{call.path} takes {' and '.join(handlers)}")
        return handlers[call.method]

    def refuse(self, status: int, message: str) -> Answer:
        """`{error: {code, message}}`: no source shows an error's body, the SDK's AegisError has a code and a message."""
        code = _CODES.get(status, "internal_error" if status >= _SERVER_ERROR else "invalid_request")
        return _json(status, {"error": {"code": code, "message": message}})

    @property
    def _switches(self) -> AegisSwitches:
        assert isinstance(self.switches, AegisSwitches)  # noqa: S101 - the sandbox only ever puts this type there
        return self.switches

    # -- intents --------------------------------------------------------------------------------------------------------------

    def _submit(self, call: Call) -> Answer:
        """202 and pending, always, and a new intent each time."""
        body, other = read_intent(call.body)
        status, policy = self._judge(body.amount)
        limit = self._switches.deny_above
        key = self.idempotency_key(call)
        intent = _Intent(
            id=f"int_{uuid.uuid4().hex[:24]}",
            body=body,
            other=other,
            key=key,
            changes=[
                _Change(call.now, "pending", "agent"),
                _Change(call.now + self._switches.decision_delay, status, "policy"),
            ],
            matched_policy=policy,
            risk_score=round(min(1.0, body.amount / limit), 2) if limit else _EXAMPLE_RISK,
        )
        self._intents[intent.id] = intent
        if key and self._keys.setdefault(key, intent) is not intent:
            self._duplicates += 1
        return _json(202, intent.receipt())

    def _judge(self, amount: float) -> tuple[Status, str]:
        limit = self._switches.deny_above
        if limit is not None and amount > limit:
            return "denied", f"deny-above-{limit:.15g}"
        return ("pending_approval", "ask-a-person") if self._switches.park else ("approved", "allow-the-rest")

    def _read(self, call: Call) -> Answer:
        intent = self._intents.get(unquote(call.path.removeprefix(f"{_PATH}/")))
        if intent is None:
            raise Refused(404, "no such intent")
        intent.reads += 1
        return _json(200, intent.wire(call.now))

    def _list(self, call: Call) -> Answer:
        query = read_query(call.query)
        found = list(self._matching(query, call.now))
        shown = [self._listed(intent, call.now) for intent in found[query.offset : query.offset + query.limit]]
        if self._switches.list_shape == "array":
            return _json(200, shown)
        return _json(200, {"intents": shown, "total": len(found), "limit": query.limit, "offset": query.offset})

    def _matching(self, query: ListQuery, now: float) -> Iterator[_Intent]:
        """Newest first."""
        since = -math.inf if query.since is None else query.since.timestamp()
        until = math.inf if query.until is None else query.until.timestamp()
        for intent in reversed(self._intents.values()):
            if (
                query.status in (None, intent.at(now).status)
                and query.agent_id in (None, intent.body.agent_id)
                and since <= intent.changes[0].at <= until
            ):
                yield intent

    def _listed(self, intent: _Intent, now: float) -> dict[str, Any]:
        metadata = intent.body.metadata
        if self._switches.list_metadata and metadata is not UNSET:
            return {**intent.wire(now), "metadata": metadata}
        return intent.wire(now)

    # -- a person, and inspection: both see what held at the latest request -----------------------------------------------------

    def act(self, item_id: str, verb: str) -> Answer:
        """Approve or deny an intent that is not decided yet; what the policy would have said later is void."""
        intent = self._intents.get(item_id)
        if intent is None or verb not in _VERBS:
            return self.refuse(404, f"nothing to {verb} at {item_id}")
        held = intent.at(self._now)
        if held.status in _VERBS.values():
            return self.refuse(409, f"{item_id} is {held.status} already")
        so_far = [change for change in intent.changes if change.at <= self._now or change is intent.changes[0]]
        intent.changes = [*so_far, _Change(max(self._now, held.at), _VERBS[verb], "person")]
        intent.matched_policy = "ask-a-person"
        return _json(200, intent.wire(self._now))

    def totals(self) -> Totals:
        """Counters; `duplicates` are intents beyond the first under one Idempotency-Key."""
        by_status = Counter(intent.at(self._now).status for intent in self._intents.values())
        details = {"intents_by_status": dict(by_status), "reads": sum(i.reads for i in self._intents.values())}
        return Totals(runs=len(self._intents), duplicates=self._duplicates, details=details)

    def runs(self, limit: int | None = None, offset: int = 0) -> list[dict[str, Any]]:
        """One row an intent, newest first."""
        until = None if limit is None else offset + limit
        newest_first = reversed(self._intents.values())
        return [intent.row(self._now) for intent in itertools.islice(newest_first, offset, until)]

    def run(self, key: str, limit: int | None = None, offset: int = 0) -> dict[str, Any] | None:
        """An intent by its id or its first Idempotency-Key, with all that was sent; its events are its changes of status."""
        intent = self._intents.get(key) or self._keys.get(key)
        if intent is None:
            return None
        until = None if limit is None else offset + limit
        events = [
            {"sequence_number": number, "at": rfc3339(change.at), "status": change.status, "by": change.by}
            for number, change in enumerate(intent.changes, 1)
            if change.at <= self._now or number == 1
        ]
        return {
            **intent.row(self._now),
            "sent": {**msgspec.to_builtins(intent.body), **intent.other},
            "idempotency_key": intent.key,
            "event_count": len(events),
            "events": events[offset:until],
        }


def _json(status: int, value: Any) -> Answer:
    return Answer(status, msgspec.json.encode(value))


FACE = Aegis
