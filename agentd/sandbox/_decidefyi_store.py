"""What decide.fyi keeps: decisions with their receipts, by API key, and the ledger by which a repeat is known.

Sources: https://www.decide.fyi developer pages (same key and same canonical payload: the original; other payload: 409), the README of
the SDK in decidefyi/decide (a decision belongs to the API key that made it, to all others it is 404; a lifecycle write whose twin
still runs is 409). Whether one key may serve two operations is known from nowhere: "separate key per operation" is taken at its word.
Invariant: what is refused has changed nothing. Used by the face in `decidefyi` alone.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from msgspec import Struct

from agentd.sandbox._decidefyi_bodies import Refused
from agentd.sandbox.faces import Totals
from agentd.units import rfc3339

_COUNTED = ("replays", "conflicts", "in_progress", "keyless")


class Receipt(Struct):
    """One lifecycle write."""

    call: str  # execution, outcome, crm-sync
    receipt_id: str
    answer: dict[str, Any]
    sent: dict[str, Any]
    key: str
    at: float
    posts: int = 1

    def row(self, number: int) -> dict[str, Any]:
        return {
            "sequence_number": number,
            "type": self.call,
            "id": self.receipt_id,
            "status": next((value for name, value in self.sent.items() if name.endswith("_status")), None),
            "received_at": rfc3339(self.at),
            "idempotency_key": self.key,
            "posts": self.posts,
            "sent": self.sent,
        }


class Decision(Struct):
    """One decision and what became of it."""

    decision_id: str
    tenant: str  # the API key that made it
    record: dict[str, Any]
    mode: str
    request: dict[str, Any]  # without response_view
    at: float
    last_at: float
    posts: int = 1
    receipts: list[Receipt] = []

    def of(self, call: str) -> list[Receipt]:
        return [receipt for receipt in self.receipts if receipt.call == call]

    def row(self) -> dict[str, Any]:
        counts = Counter(receipt.call for receipt in self.receipts)
        context = self.request.get("context")
        return {
            "id": self.decision_id,
            "verdict": self.record["verdict"],
            "reason_code": self.record["reason_code"],
            "action": self.record["action"],
            "mode": self.mode,
            "source_record_id": context.get("source_record_id") if isinstance(context, dict) else None,
            "idempotency_key": self.record.get("idempotency_key"),
            "posts": self.posts,
            "executions": counts["execution"],
            "outcomes": counts["outcome"],
            "crm_syncs": counts["crm-sync"],
            "first_at": rfc3339(self.at),
            "last_at": rfc3339(self.last_at),
        }


class _Used(Struct, frozen=True):
    """What an idempotency key was used for."""

    payload: str  # canonical hash of the operation and its body
    made: Decision | Receipt
    at: float


class Store:
    """In memory; the face replaces it to forget."""

    def __init__(self) -> None:
        self.decisions: dict[str, Decision] = {}
        self.rulebooks: dict[tuple[str, str], dict[str, Any]] = {}  # (tenant, hash) → rulebook
        self.counts: Counter[str] = Counter()
        self._used: dict[tuple[str, str], _Used] = {}
        self._payloads: Counter[str] = Counter()
        self._names: dict[str, str] = {}  # every other id of a decision → its own
        self._months: Counter[tuple[str, int, int]] = Counter()

    # -- what the calls need ----------------------------------------------------------------------------------------------------

    def find(self, tenant: str, decision_id: str) -> Decision:
        """A decision of this API key. Raises Refused: another's is as unknown as one that never was."""
        decision = self.decisions.get(decision_id)
        if decision is None or decision.tenant != tenant:
            raise Refused(404, "DECISION_NOT_FOUND", f"no decision {decision_id}")
        return decision

    def known(
        self, tenant: str, key: str, payload: str, conflict: str, running: Callable[[float], bool] = lambda _at: False
    ) -> Decision | Receipt | None:
        """What this key made before, None for a new one. Raises Refused for another payload or while the first use runs."""
        used = self._used.get((tenant, key)) if key else None
        if used is None:
            return None
        if used.payload != payload:
            self.counts["conflicts"] += 1
            message = "this idempotency key was used with another payload"
            raise Refused(409, conflict, message, "idempotency_conflict")
        if running(used.at):
            self.counts["in_progress"] += 1
            code = conflict.replace("IDEMPOTENCY_CONFLICT", "IDEMPOTENCY_IN_PROGRESS")
            headers = {"x-idempotency-status": "in_progress", "Retry-After": "1"}
            message = "the first write under this key is still running"
            raise Refused(409, code, message, "in_progress", headers, status="in_progress", retryable=True)
        self.counts["replays"] += 1
        used.made.posts += 1
        return used.made

    def month_left(self, tenant: str, now: float, cap: int) -> int:
        """How many records this API key may still make this month."""
        return cap - self._months[_month(tenant, now)]

    def add_decision(self, decision: Decision, key: str, payload: str) -> None:
        """Keep a new decision."""
        self.decisions[decision.decision_id] = decision
        self._names[decision.record["request_id"]] = decision.decision_id
        if key:
            self._names.setdefault(key, decision.decision_id)
        self._note(decision.tenant, key, payload, decision, decision.at)

    def add_receipt(self, decision: Decision, receipt: Receipt, payload: str) -> None:
        """Keep a new receipt; one whose payload was stored before, for want of a key, is a duplicate."""
        decision.receipts.append(receipt)
        decision.last_at = receipt.at
        self._names[receipt.receipt_id] = decision.decision_id
        self._payloads[payload] += 1
        self.counts[receipt.call] += 1
        self._note(decision.tenant, receipt.key, payload, receipt, receipt.at)

    def _note(self, tenant: str, key: str, payload: str, made: Decision | Receipt, at: float) -> None:
        self._months[_month(tenant, at)] += 1
        if key:
            self._used[tenant, key] = _Used(payload, made, at)
        else:
            self.counts["keyless"] += 1

    # -- inspection -------------------------------------------------------------------------------------------------------------

    def totals(self) -> Totals:
        receipts = sum(self._payloads.values())
        details = {
            "verdicts": dict(Counter(str(decision.record["verdict"]) for decision in self.decisions.values())),
            "executions": self.counts["execution"],
            "outcomes": self.counts["outcome"],
            "crm_syncs": self.counts["crm-sync"],
            **{name: self.counts[name] for name in _COUNTED},
        }
        return Totals(len(self.decisions), receipts, receipts - len(self._payloads), details)

    def rows(self, limit: int | None, offset: int) -> list[dict[str, Any]]:
        until = None if limit is None else offset + limit
        return [each.row() for each in itertools.islice(reversed(self.decisions.values()), offset, until)]

    def whole(self, key: str, limit: int | None, offset: int) -> dict[str, Any] | None:
        """A decision by its id, its request's, its idempotency key or a receipt's id."""
        decision = self.decisions.get(key) or self.decisions.get(self._names.get(key, ""))
        if decision is None:
            return None
        rows = [receipt.row(number) for number, receipt in enumerate(decision.receipts, 1)]
        until = None if limit is None else offset + limit
        return {
            **decision.row(),
            "record": decision.record,
            "request": decision.request,
            "executions": [receipt.answer for receipt in decision.of("execution")],
            "outcomes": [receipt.answer for receipt in decision.of("outcome")],
            "crm_syncs": [receipt.answer for receipt in decision.of("crm-sync")],
            "event_count": len(rows),
            "events": rows[offset:until],
            "tasks": [],
        }


def _month(tenant: str, now: float) -> tuple[str, int, int]:
    date = datetime.fromtimestamp(now, UTC)
    return tenant, date.year, date.month


def seconds_to_next_month(now: float) -> float:
    """Until the month ends in UTC, when a monthly cap starts anew."""
    date = datetime.fromtimestamp(now, UTC)
    following = date.replace(year=date.year + date.month // 12, month=date.month % 12 + 1, day=1)
    return following.replace(hour=0, minute=0, second=0, microsecond=0).timestamp() - now


def without_view(request: Mapping[str, Any]) -> dict[str, Any]:
    """The request as it is hashed: `response_view` is taken out before."""
    return {name: value for name, value in request.items() if name != "response_view"}
