"""decide.fyi as it can be known from outside: decisions by rulebook and by advice, their receipts, reads, verification.

Sources: https://www.decide.fyi/openapi.json v1.10.0, the developer pages, and https://github.com/decidefyi/decide (runtime, JS SDK
0.1.19, schemas). Known from there: a rulebook is evaluated and binds; anything else is advice; what cannot be decided is still a 200;
a caller must not bring along what only decide.fyi may say; a key makes a write repeatable, and a changed payload under it is 409.
Known from nowhere: whether receipts come bare or wrapped and with which status, the code of a 409 for a write still running, the unit
of the reset header, the limits of a plan, the codes of 400, 404 and 405: these are `DecidefyiSwitches`, or marked as guesses.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal
from urllib.parse import unquote

import msgspec
from msgspec import Meta, Struct

import agentd.sandbox._decidefyi_reads as reads
import agentd.sandbox._decidefyi_records as records
from agentd.sandbox._decidefyi_advice import Ai, advice, failure, mode_of, unusable
from agentd.sandbox._decidefyi_bodies import (
    DIRECT,
    MAX_KEY,
    TRUSTED,
    CrmSyncBody,
    ExecutionBody,
    OutcomeBody,
    Refused,
    check_rulebook_request,
    check_shape,
    read_object,
)
from agentd.sandbox._decidefyi_rulebook import evaluate, unmet
from agentd.sandbox._decidefyi_store import Decision, Receipt, Store, seconds_to_next_month, without_view
from agentd.sandbox.faces import Answer, Call, Totals
from agentd.units import rfc3339

_MINUTE_S = 60
_SERVER_ERROR = 500
# status → (error, v); the codes of 400, 404, 405 and of the 5xx are guesses
_WORDS = {
    400: ("DECIDE_API_INVALID_REQUEST", "try again"),
    401: ("DECIDE_API_UNAUTHORIZED", "unauthorized"),
    403: ("DECIDE_API_UNAUTHORIZED", "unauthorized"),
    404: ("NOT_FOUND", "try again"),
    405: ("METHOD_NOT_ALLOWED", "try again"),
    409: ("DECIDE_API_IDEMPOTENCY_CONFLICT", "idempotency_conflict"),
    413: ("DECIDE_AI_PROMPT_TOO_LARGE", "try again"),
    422: ("RULEBOOK_INVALID", "try again"),
    429: ("DECIDE_API_RATE_LIMITED", "rate_limited"),
    503: ("DECIDE_STORE_UNAVAILABLE", "try again"),
}
# call → (where a wrapped receipt lies, prefix of its id, shape of the body, how the receipt is made)
_Make = Callable[[Mapping[str, Any], Mapping[str, Any], str, str], dict[str, Any]]
_LIFECYCLE: Mapping[str, tuple[str, str, type[Struct], _Make]] = {
    "execution": ("execution", "exec_", ExecutionBody, records.execution_receipt),
    "outcome": ("outcome", "out_", OutcomeBody, records.outcome_receipt),
    "crm-sync": ("crm_sync", "sync_", CrmSyncBody, records.crm_sync_receipt),
}


class DecidefyiSwitches(Struct, frozen=True, forbid_unknown_fields=True):
    """What no source settles, and states that a client has to be able to meet. The defaults are those of the documentation."""

    receipt_wrapping: Literal["bare", "wrapped"] = "bare"  # of execution and outcome; a crm-sync is known wrapped only
    receipt_status: Literal["200", "201"] = "200"  # of a receipt that is new
    inflight_409: Literal["on", "off"] = (
        "off"  # on: for `inflight_s` after a lifecycle write its repeat is 409 in progress
    )
    inflight_s: Annotated[float, Meta(ge=0)] = 1.0
    reset_unit: Literal["ms", "s"] = "ms"  # of X-RateLimit-Reset
    rate_limit: Annotated[int, Meta(ge=1)] | None = None  # requests a minute and API key; the Starter plan has 20
    rate_limit_form: Literal["gateway", "runtime"] = "gateway"  # the envelope of the 429
    monthly_cap: Annotated[int, Meta(ge=0)] | None = None  # new records a month and API key
    ai: Ai = "ok"  # the provider behind the advisory modes
    advice: Literal["yes", "no", "review"] = "yes"  # what it says
    signing: Literal["on", "off"] = "on"  # off: no rulebook decision without its signature, 503
    store: Literal["up", "down"] = "up"  # down: a retryable 503, and nothing is written
    max_prompt_bytes: Annotated[int, Meta(ge=1)] = 16 * 1024  # of an advisory question; above: 413
    max_body_bytes: Annotated[int, Meta(ge=1)] = 4 * 1024 * 1024  # above: 413


class Decide:
    """The face. Invariant: a request that is refused has changed nothing."""

    name = "decidefyi"
    prefixes = ("/api/decide", "/api/decision/")

    def __init__(self) -> None:
        self.switches: Struct = DecidefyiSwitches()
        self.reset()

    def reset(self) -> None:
        """Forget all decisions, keys and counts of requests."""
        self._store = Store()
        self._minutes: dict[str, tuple[int, int]] = {}  # API key → (minute, requests in it)

    @property
    def _switches(self) -> DecidefyiSwitches:
        assert isinstance(self.switches, DecidefyiSwitches)  # noqa: S101 - the sandbox only ever puts this type there
        return self.switches

    # -- the wire ---------------------------------------------------------------------------------------------------------------

    def presented_key(self, headers: Mapping[str, str]) -> str:
        """`x-api-key`, else the token of `Authorization: Bearer …`."""
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        return headers.get("x-api-key", "").strip() or (token.strip() if scheme.lower() == "bearer" else "")

    def idempotency_key(self, call: Call) -> str:
        """`x-idempotency-key`, of which the first 300 characters count."""
        return call.headers.get("x-idempotency-key", "")[:MAX_KEY]

    def answer(self, call: Call) -> Answer:
        """Count, route, validate, commit."""
        tenant = self.presented_key(call.headers)
        limits: dict[str, str] = {}
        try:
            limits = self._count(tenant, call.now)
            answer = self._route(call, tenant)
        except Refused as refusal:
            answer = self._refusal(refusal)
        except RecursionError:
            answer = self.refuse(400, "invalid JSON body: too deep")
        return msgspec.structs.replace(answer, headers={**limits, **answer.headers})

    def refuse(self, status: int, message: str) -> Answer:
        """`{c, v, error, message, request_id}` with the words that belong to the status."""
        server_error = ("DECIDE_INTERNAL_ERROR", "try again") if status >= _SERVER_ERROR else _WORDS[400]
        code, v = _WORDS.get(status, server_error)
        return self._refusal(Refused(status, code, message, v))

    def _refusal(self, refusal: Refused) -> Answer:
        body: dict[str, Any] = {"c": "unclear", "v": refusal.v, "error": refusal.code, "message": refusal.message}
        if refusal.code == "RATE_LIMIT_EXCEEDED":
            body = {"ok": False, "error": refusal.code, "message": refusal.message}
        headers = dict(refusal.headers)
        if refusal.status == 401:  # noqa: PLR2004
            headers["WWW-Authenticate"] = 'Bearer realm="decide-api"'
        return _json({**body, **refusal.more, "request_id": f"req_{uuid.uuid4().hex}"}, refusal.status, headers)

    # -- limits -----------------------------------------------------------------------------------------------------------------

    def _count(self, tenant: str, now: float) -> dict[str, str]:
        """Count a request against the minute's limit, and say in headers what is left. Raises Refused."""
        limit = self._switches.rate_limit
        if limit is None:
            return {}
        minute = int(now // _MINUTE_S)
        known, used = self._minutes.get(tenant, (minute, 0))
        used = used + 1 if known == minute else 1
        self._minutes[tenant] = (minute, used)
        reset = (minute + 1) * _MINUTE_S
        headers = self._limit_headers(limit, max(0, limit - used), reset)
        if used > limit:
            wait = max(1, math.ceil(reset - now))
            gateway = self._switches.rate_limit_form == "gateway"
            code, v = _WORDS[429] if gateway else ("RATE_LIMIT_EXCEEDED", "")
            headers["Retry-After"] = str(wait)
            raise Refused(429, code, f"more than {limit} requests a minute", v, headers, retry_after=wait)
        return headers

    def _limit_headers(self, limit: int, left: int, reset: float) -> dict[str, str]:
        at = math.ceil(reset * 1000) if self._switches.reset_unit == "ms" else math.ceil(reset)
        return {"X-RateLimit-Limit": str(limit), "X-RateLimit-Remaining": str(left), "X-RateLimit-Reset": str(at)}

    def _check_cap(self, tenant: str, now: float) -> None:
        """Before a new record. Raises Refused when the month's are used up."""
        cap = self._switches.monthly_cap
        if cap is None or self._store.month_left(tenant, now, cap) > 0:
            return
        wait = seconds_to_next_month(now)
        headers = {**self._limit_headers(cap, 0, now + wait), "X-Usage-Monthly-Remaining": "0"}
        code, message = "DECIDE_API_MONTHLY_CAP_EXCEEDED", f"more than {cap} records this month"
        raise Refused(429, code, message, "monthly_cap_exceeded", headers, retry_after=math.ceil(wait))

    def _usage(self, tenant: str, now: float) -> dict[str, str]:
        cap = self._switches.monthly_cap
        return {} if cap is None else {"X-Usage-Monthly-Remaining": str(self._store.month_left(tenant, now, cap))}

    # -- routes -----------------------------------------------------------------------------------------------------------------

    def _route(self, call: Call, tenant: str) -> Answer:
        if len(call.body) > self._switches.max_body_bytes:
            raise Refused(413, "DECIDE_API_BODY_TOO_LARGE", f"the body exceeds {self._switches.max_body_bytes} bytes")
        place = [unquote(part) for part in call.path.removeprefix("/").split("/")]
        if place == ["api", "decision", "status"]:
            _only(call, "GET")
            return self._readiness()
        if self._switches.store == "down":
            code, v = _WORDS[503]
            raise Refused(503, code, "storage is down", v, {"Retry-After": "1"}, retryable=True)
        if place == ["api", "decide"]:
            _only(call, "POST")
            return self._decide(call, tenant)
        if place[:2] == ["api", "decision"]:
            found = self._beside(call, tenant, place[2:])
            if found is not None:
                return _json(found)
            if len(place) in {3, 4}:
                return self._about(call, tenant, place[2], "".join(place[3:]))
        raise Refused(404, "NOT_FOUND", f"no such endpoint: {call.path}")

    def _beside(self, call: Call, tenant: str, place: list[str]) -> dict[str, Any] | None:
        """What lies beside the decisions: registries, chains, policies, verification; None if it is a decision."""
        match place:
            case ["verify"]:
                _only(call, "POST")
                return reads.verify_record(call)
            case ["packet", "verify"]:
                _only(call, "POST")
                return reads.verify_packet(call)
            case [registry] if registry in reads.REGISTRIES:
                _only(call, "GET")
                return reads.REGISTRIES[registry](self._store, tenant, call)
            case ["chains", chain_id]:
                _only(call, "GET")
                return reads.chain(self._store, tenant, chain_id, call)
            case ["policies", policy_id, question]:
                _only(call, "GET")
                return reads.policy(self._store, tenant, policy_id, question)
            case _:
                return None

    def _about(self, call: Call, tenant: str, decision_id: str, what: str) -> Answer:
        if what in _LIFECYCLE:
            _only(call, "GET", "POST")
            decision = self._store.find(tenant, decision_id)
            if call.method == "POST":
                return self._lifecycle(call, decision, what)
            return _json(reads.receipts(decision, what, call))
        if what in reads.ONE:
            methods, read = reads.ONE[what]
            _only(call, *sorted(methods))
            return _json(read(self._store.find(tenant, decision_id), call))
        if what:
            raise Refused(404, "NOT_FOUND", f"no such endpoint: {call.path}")
        _only(call, "GET")
        record = self._store.find(tenant, decision_id).record
        return _json(records.projected(record, _view({}, call.headers)))

    def _readiness(self) -> Answer:
        store, signing = self._switches.store == "up", self._switches.signing == "on"
        parts = {"signing": signing, "ledger": store, "idempotency": store, "auth": True}
        return _json({"ok": all(parts.values()), **{name: "ready" if up else "down" for name, up in parts.items()}})

    # -- decisions --------------------------------------------------------------------------------------------------------------

    def _decide(self, call: Call, tenant: str) -> Answer:
        request = read_object(call.body)
        view, mode = _view(request, call.headers), mode_of(request)
        if mode == "rulebook":
            check_rulebook_request(request)
        elif (answer := self._no_advice(request, mode)) is not None:
            return _json({**answer, "request_id": f"req_{uuid.uuid4().hex}"})
        key, hashed = self.idempotency_key(call), without_view(request)
        payload = records.canonical_hash(["decide", hashed])
        known = self._store.known(tenant, key, payload, _WORDS[409][0])
        if isinstance(known, Decision):
            return self._decided(known, view, "replayed", self._usage(tenant, call.now))
        outcome = self._by_rulebook(request) if mode == "rulebook" else self._by_advice(request, mode)
        if outcome.get("status") == "needs_input":
            return _json({**outcome, "request_id": f"req_{uuid.uuid4().hex}"})
        self._check_cap(tenant, call.now)
        decision = _decision(call, tenant, key, mode, hashed, outcome)
        self._store.add_decision(decision, key, payload)
        if mode == "rulebook":
            book = request["rulebook"]
            self._store.rulebooks[tenant, records.canonical_hash(book)] = book
        return self._decided(decision, view, "created" if key else "", self._usage(tenant, call.now))

    def _decided(self, decision: Decision, view: str, status: str, usage: Mapping[str, str]) -> Answer:
        headers = {
            **usage,
            "x-decision-id": decision.decision_id,
            "x-decision-receipt-signature": decision.record["receipt_signature"],
            **({"x-idempotency-status": status} if status else {}),
        }
        return _json(records.projected(decision.record, view), 200, headers)

    def _no_advice(self, request: Mapping[str, Any], mode: str) -> dict[str, Any] | None:
        """The answer to an advisory question that gets no advice. Raises Refused."""
        question = request.get("question")
        if isinstance(question, str) and len(question.encode()) > self._switches.max_prompt_bytes:
            raise Refused(413, "DECIDE_AI_PROMPT_TOO_LARGE", f"above {self._switches.max_prompt_bytes} bytes")
        return unusable(request, mode) or failure(self._switches.ai)

    def _by_advice(self, request: Mapping[str, Any], mode: str) -> dict[str, Any]:
        return {
            **advice(request, mode, self._switches.advice),
            **records.advisory_fields(),
            **records.confidence_fields(0.5),
        }

    def _by_rulebook(self, request: Mapping[str, Any]) -> dict[str, Any]:
        book, facts = request["rulebook"], reads.facts_of(request)
        missing, invalid = unmet(book, facts)
        if missing or invalid:
            return {
                "status": "needs_input",
                "verdict": "review",
                "application_verdict": "NEEDS_INPUT",
                "action": "collect_required_input",
                "reason_code": "INPUT_SCHEMA_FAILED",
                "missing_fields": missing,
                "invalid_fields": invalid,
            }
        if self._switches.signing == "off":
            raise Refused(503, "RULEBOOK_ATTESTATION_SIGNATURE_REQUIRED", "signing is not configured")
        found = evaluate(book, facts)
        return {
            "status": "ok",
            "verdict": found.outcome["decision"],
            "c": found.outcome["decision"],
            "v": found.outcome["verdict"],
            "application_verdict": found.outcome["verdict"],
            "action": found.outcome["action"],
            "reason_code": found.outcome["reason_code"],
            "matched_rule_id": found.rule_id,
            "evidence": [found.outcome["reason_code"]],
            "evidence_manifest": {"codes": [found.outcome["reason_code"]], "sources": []},
            "evaluation": {"matched": found.rule_id is not None, "checks": found.checks},
            **records.rulebook_fields(book, request.get("binding_mode", TRUSTED if "adapter" in request else DIRECT)),
            **records.confidence_fields(1.0),
        }

    # -- receipts ---------------------------------------------------------------------------------------------------------------

    def _lifecycle(self, call: Call, decision: Decision, what: str) -> Answer:
        place, prefix, shape, make = _LIFECYCLE[what]
        word = place.upper()
        sent = read_object(call.body)
        check_shape(sent, shape, f"DECIDE_{word}_INVALID")
        key, payload = self.idempotency_key(call), records.canonical_hash([what, decision.decision_id, sent])
        switches = self._switches

        def running(at: float) -> bool:
            return switches.inflight_409 == "on" and call.now - at < switches.inflight_s

        known = self._store.known(decision.tenant, key, payload, f"DECIDE_{word}_IDEMPOTENCY_CONFLICT", running)
        status, headers = int(switches.receipt_status), {"x-idempotency-status": "created"} if key else {}
        if isinstance(known, Receipt):
            receipt, status, headers = known, 200, {"x-idempotency-status": "replayed"}
        else:
            self._check_cap(decision.tenant, call.now)
            receipt_id = f"{prefix}{uuid.uuid4().hex}"
            answer = make(decision.record, sent, receipt_id, rfc3339(call.now))
            receipt = Receipt(what, receipt_id, answer, sent, key, call.now)
            self._store.add_receipt(decision, receipt, payload)
        bare = switches.receipt_wrapping == "bare" and what != "crm-sync"
        body = receipt.answer if bare else {place: receipt.answer, "decision_id": decision.decision_id}
        return _json(body, status, {**headers, **self._usage(decision.tenant, call.now)})

    # -- inspection -------------------------------------------------------------------------------------------------------------

    def totals(self) -> Totals:
        """Runs are decisions, events are receipts; a duplicate is a receipt written again without a key to know it by."""
        return self._store.totals()

    def runs(self, limit: int | None = None, offset: int = 0) -> list[dict[str, Any]]:
        """One row a decision, newest first."""
        return self._store.rows(limit, offset)

    def run(self, key: str, limit: int | None = None, offset: int = 0) -> dict[str, Any] | None:
        """A decision with its record, its request and its receipts, which are its events in order of arrival."""
        return self._store.whole(key, limit, offset)

    def act(self, item_id: str, verb: str) -> Answer:
        """Nothing waits for a person: a `review` is final, and whoever asked for it has to ask again."""
        return self.refuse(404, f"nothing to {verb} at {item_id}")


def _json(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(status, msgspec.json.encode(body), headers=dict(headers or {}))


def _only(call: Call, *methods: str) -> None:
    if call.method not in methods:
        raise Refused(405, "METHOD_NOT_ALLOWED", f"{call.path} takes {', '.join(methods)}")


def _view(request: Mapping[str, Any], headers: Mapping[str, str]) -> str:
    """Which view is wanted: by the body, else by either header, else the full one. Raises Refused."""
    view = request.get("response_view")
    if view is not None:
        if view not in records.VIEWS:
            raise Refused(400, "DECIDE_API_INVALID_REQUEST", f"response_view must be one of {', '.join(records.VIEWS)}")
        return str(view)
    preferred = headers.get("Prefer", "").replace(" ", "").lower().removeprefix("return=")
    asked = (headers.get("x-decision-response-view", "").lower(), preferred)
    return next((each for each in asked if each in records.VIEWS), "full")


def _decision(
    call: Call, tenant: str, key: str, mode: str, request: dict[str, Any], outcome: Mapping[str, Any]
) -> Decision:
    """A new decision and its signed record."""
    decision_id = f"dec_{uuid.uuid4().hex}"
    context = request.get("context")
    record = {
        "decision_record_version": "decision_record_v1",
        "request_id": f"req_{uuid.uuid4().hex}",
        "decision_id": decision_id,
        **({"idempotency_key": key} if key else {}),
        **outcome,
        "action_binding": records.binding_of(context if isinstance(context, dict) else {}),
        "input_hash": records.canonical_hash(request),
        "replay_url": f"/api/decision/{decision_id}/replay",
        "verify_url": f"/api/decision/{decision_id}/verify",
        "created_at": rfc3339(call.now),
    }
    return Decision(decision_id, tenant, records.sealed(record), mode, request, call.now, call.now)


FACE = Decide
