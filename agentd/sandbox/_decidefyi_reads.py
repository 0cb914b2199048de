"""Everything of decide.fyi that stores nothing: reads, verification, replay, what-if, registries, intelligence.

Sources: https://www.decide.fyi/openapi.json v1.10.0 for paths and query names. Of the bodies hardly more is known than their purpose;
what is here keeps to that purpose, and its field names are guesses. Used by the face in `decidefyi` alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias
from urllib.parse import parse_qs

import agentd.sandbox._decidefyi_records as records
import agentd.sandbox._decidefyi_rulebook as rulebooks
from agentd.sandbox._decidefyi_bodies import Refused, read_object
from agentd.sandbox._decidefyi_store import Decision, Store
from agentd.sandbox.faces import Call

_INVALID = "DECIDE_API_INVALID_REQUEST"
_MOST = 100
_LISTS = {"execution": "executions", "outcome": "outcomes", "crm-sync": "crm_syncs"}
Read: TypeAlias = Callable[[Store, str, Call], dict[str, Any]]


def query_of(call: Call) -> dict[str, str]:
    """The query, the last of each name."""
    return {name: values[-1] for name, values in parse_qs(call.query).items()}


def limit_of(call: Call, name: str = "limit") -> int:
    """A limit of the query: 1 to 100, by default 100. Raises Refused."""
    text = query_of(call).get(name, str(_MOST))
    if not (text.isascii() and text.isdigit() and len(text) <= 3 and 1 <= int(text) <= _MOST):  # noqa: PLR2004
        raise Refused(400, _INVALID, f"{name} must be a number of 1 to {_MOST}")
    return int(text)


# -- one decision ---------------------------------------------------------------------------------------------------------------


def receipts(decision: Decision, kind: str, call: Call) -> dict[str, Any]:
    """The receipts of one sort, newest first."""
    newest = [receipt.answer for receipt in reversed(decision.of(kind))]
    shown = newest[: limit_of(call)]
    return {"decision_id": decision.decision_id, _LISTS[kind]: shown, "count": len(shown)}


def verify(decision: Decision, _call: Call) -> dict[str, Any]:
    """Whether the stored record still is what was signed."""
    found = records.checks(decision.record, decision.request)
    return {"decision_id": decision.decision_id, "valid": all(found.values()), "checks": found}


def replay(decision: Decision, call: Call) -> dict[str, Any]:
    """Decide again with what was stored; the sandbox's historical engine is its current one."""
    mode = _sent(call).get("replay_mode", "historical")
    if mode not in ("historical", "current"):
        raise Refused(400, _INVALID, "replay_mode must be historical or current")
    again = _outcome(_rulebook_of(decision), facts_of(decision.request))
    then = {name: decision.record[name] for name in again}
    return {"decision_id": decision.decision_id, "replay_mode": mode, "match": again == then, "replayed": again}


def diff(decision: Decision, call: Call) -> dict[str, Any]:
    """The stored outcome beside that of other inputs or of another rulebook."""
    sent = _sent(call)
    book = sent.get("rulebook", _rulebook_of(decision))
    found = rulebooks.problems(book)
    if found:
        raise Refused(422, "RULEBOOK_INVALID", "the rulebook is invalid", errors=[each._asdict() for each in found])
    now = _outcome(book, {**facts_of(decision.request), **_object(sent, "inputs")})
    changed = {
        name: {"before": decision.record[name], "after": value}
        for name, value in now.items()
        if value != decision.record[name]
    }
    return {"decision_id": decision.decision_id, "changed": bool(changed), "diff": changed}


def counterfactuals(decision: Decision, call: Call) -> dict[str, Any]:
    """What other inputs would have led to: one answer for each entry of `cases`."""
    cases = _sent(call).get("cases", [])
    if not isinstance(cases, list) or not all(isinstance(case, dict) for case in cases) or len(cases) > _MOST:
        raise Refused(400, _INVALID, f"cases must be an array of at most {_MOST} objects")
    book, facts = _rulebook_of(decision), facts_of(decision.request)
    answers = [{"inputs": case, **_outcome(book, {**facts, **case})} for case in cases]
    return {"decision_id": decision.decision_id, "counterfactuals": answers}


def packet(decision: Decision, call: Call) -> dict[str, Any]:
    """The export of a decision with what became of it."""
    query = query_of(call)
    shown: dict[str, Any] = {"record": decision.record}
    for kind, limit in (("execution", "execution_limit"), ("outcome", "outcome_limit"), ("crm-sync", "outcome_limit")):
        shown[_LISTS[kind]] = [each.answer for each in decision.of(kind)[-limit_of(call, limit) :]]
    if query.get("include_input") == "true":
        shown["input"] = decision.request
    return {"decision_id": decision.decision_id, "packet": shown, "packet_hash": records.canonical_hash(shown)}


ONE: Mapping[str, tuple[frozenset[str], Callable[[Decision, Call], dict[str, Any]]]] = {
    "verify": (frozenset({"GET", "POST"}), verify),
    "packet": (frozenset({"GET"}), packet),
    "replay": (frozenset({"POST"}), replay),
    "diff": (frozenset({"POST"}), diff),
    "counterfactuals": (frozenset({"POST"}), counterfactuals),
}


def facts_of(request: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a rulebook request, from the context or from a trusted adapter."""
    adapter = request.get("adapter")
    facts: dict[str, Any] = adapter["input"] if isinstance(adapter, dict) else request["context"]["inputs"]
    return facts


def _sent(call: Call) -> dict[str, Any]:
    return read_object(call.body) if call.body.strip() else {}


def _object(sent: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = sent.get(name, {})
    if not isinstance(value, dict):
        raise Refused(400, _INVALID, f"{name} must be an object")
    return value


def _rulebook_of(decision: Decision) -> dict[str, Any]:
    if "rulebook" not in decision.record:
        raise Refused(422, "RULEBOOK_INVALID", "an advisory decision has no rulebook")
    book: dict[str, Any] = decision.request["rulebook"]
    return book


def _outcome(book: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    found = rulebooks.evaluate(book, facts)
    return {
        "verdict": found.outcome["decision"],
        "application_verdict": found.outcome["verdict"],
        "action": found.outcome["action"],
        "reason_code": found.outcome["reason_code"],
        "matched_rule_id": found.rule_id,
    }


# -- verification of what is brought along ----------------------------------------------------------------------------------------


def verify_record(call: Call) -> dict[str, Any]:
    """`{record, input, public_key}`: whether a record in its full view is as it was signed."""
    sent = read_object(call.body)
    found = records.checks(_object(sent, "record"), sent.get("input"))
    if "public_key" in sent:
        found["public_key"] = sent["public_key"] == records.FINGERPRINT
    return {"valid": all(found.values()), "checks": found}


def verify_packet(call: Call) -> dict[str, Any]:
    """`{packet, packet_hash}`: whether a packet is as it was exported."""
    sent = read_object(call.body)
    exported = _object(sent, "packet")
    found = records.checks(_object(exported, "record"), exported.get("input"))
    found["packet_hash"] = sent.get("packet_hash") == records.canonical_hash(exported)
    return {"valid": all(found.values()), "checks": found}


# -- registries and intelligence --------------------------------------------------------------------------------------------------


def receipt_keys(_store: Store, _tenant: str, _call: Call) -> dict[str, Any]:
    """The keys under which receipts are signed."""
    key = {"key_id": records.KEY_ID, "algorithm": records.ALGORITHM, "fingerprint": records.FINGERPRINT}
    return {"receipt_keys": [key]}


def policy_bundles(store: Store, tenant: str, _call: Call) -> dict[str, Any]:
    """The policy bundles that have decided."""
    bundles = {each.record["policy_bundle_hash"]: each.record["policy_bundle"] for each in _mine(store, tenant)}
    return {"policy_bundles": [{**bundle, "policy_bundle_hash": digest} for digest, bundle in bundles.items()]}


def policy_patterns(_store: Store, _tenant: str, _call: Call) -> dict[str, Any]:
    """The sandbox has none."""
    return {"policy_patterns": []}


def registered(store: Store, tenant: str, call: Call) -> dict[str, Any]:
    """A rulebook by its hash, or by its id and version; there is no listing."""
    query = query_of(call)
    if "hash" not in query and not {"rulebook_id", "version"} <= query.keys():
        raise Refused(400, _INVALID, "hash, or rulebook_id and version, must be given")
    for (owner, digest), book in store.rulebooks.items():
        named = (book["rulebook_id"], book["version"]) == (query.get("rulebook_id"), query.get("version"))
        if owner == tenant and (digest == query["hash"] if "hash" in query else named):
            return {"hash": digest, "rulebook": book}
    raise Refused(404, "RULEBOOK_NOT_FOUND", "no such rulebook")


REGISTRIES: Mapping[str, Read] = {
    "receipt-keys": receipt_keys,
    "policy-bundles": policy_bundles,
    "policy-patterns": policy_patterns,
    "rulebooks": registered,
}


def chain(store: Store, tenant: str, chain_id: str, call: Call) -> dict[str, Any]:
    """The records of one API key for one policy in the order in which they were made, each with the hash before it."""
    links, before = [], None
    for decision in _mine(store, tenant, chain_id):
        links.append(
            {
                "decision_id": decision.decision_id,
                "record_hash": decision.record["record_hash"],
                "previous_hash": before,
            }
        )
        before = decision.record["record_hash"]
    return {"chain_id": chain_id, "links": links[: limit_of(call)]}


def policy(store: Store, tenant: str, policy_id: str, question: str) -> dict[str, Any]:
    """What is known of a policy's decisions: counts and nothing cleverer."""
    if question not in {"effectiveness", "confidence", "anomalies", "benchmarks"}:
        raise Refused(404, "NOT_FOUND", f"no such question about a policy: {question}")
    mine = _mine(store, tenant, policy_id)
    verdicts = Counter(str(each.record["verdict"]) for each in mine)
    outcomes = Counter(receipt.answer["outcome_status"] for each in mine for receipt in each.of("outcome"))
    return {"policy_id": policy_id, "sample": len(mine), "verdicts": verdicts, "outcomes": outcomes, question: []}


def _mine(store: Store, tenant: str, policy_id: str | None = None) -> list[Decision]:
    return [
        each
        for each in store.decisions.values()
        if each.tenant == tenant and policy_id in (None, each.record["policy_id"])
    ]
