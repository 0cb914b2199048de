"""Decision Record v1 and the receipts of decide.fyi: how they are made, hashed, shown in three views and verified. Pure.

Sources: https://www.decide.fyi/openapi.json v1.10.0 and the developer pages for the names of fields; the repository decidefyi/decide
for the canonical form (keys sorted at every depth, SHA-256 in hex). What exactly each hash covers and which fields the smaller views
have is known from nowhere. Signatures only look like signatures: an HMAC under a key that everybody can read here.
Used by the face in `decidefyi` alone.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from typing import Any

import msgspec

EVALUATOR = "sandbox-rulebook-evaluator-1"
KEY_ID = "sandbox-key-1"
_SIGNING_KEY = b"decide.fyi sandbox: anybody can sign with this"
FINGERPRINT = hashlib.sha256(_SIGNING_KEY).hexdigest()
ALGORITHM = "hmac-sha256-sandbox"

_SEALS = frozenset({"record_hash", "receipt_hash", "receipt_signature"})
_OUTCOME = (
    "verdict", "c", "v", "application_verdict", "action", "reason_code", "matched_rule_id", "evidence", "evidence_manifest",
)  # fmt: skip
_MINIMAL = frozenset(
    {
        "decision_record_version", "verdict", "c", "v", "application_verdict", "action", "reason_code",
        "matched_rule_id", "request_id", "decision_id", "record_hash", "receipt_hash", "created_at",
        "decision_contract",
    }
)  # fmt: skip
_STANDARD = _MINIMAL | frozenset(
    {
        "idempotency_key", "evidence", "rulebook", "evaluator_version", "runtime_binding", "policy_id",
        "policy_version", "action_binding", "input_hash", "output_hash", "receipt_key_id", "receipt_signature",
        "receipt_signature_algorithm", "replay_url", "verify_url",
    }
)  # fmt: skip
VIEWS = ("minimal", "standard", "full")


def canonical_hash(value: Any) -> str:
    """SHA-256 in hex over the JSON with keys sorted at every depth."""
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()


def projected(record: Mapping[str, Any], view: str) -> dict[str, Any]:
    """The fields of a record that a view shows: minimal ⊂ standard ⊂ full."""
    if view == "full":
        return dict(record)
    shown = _MINIMAL if view == "minimal" else _STANDARD
    return {name: value for name, value in record.items() if name in shown}


# -- decisions ----------------------------------------------------------------------------------------------------------------


def rulebook_fields(rulebook: Mapping[str, Any], binding_mode: str) -> dict[str, Any]:
    """What a record says of the rulebook that decided."""
    rulebook_hash = canonical_hash(rulebook)
    known = {"id": rulebook["rulebook_id"], "version": rulebook["version"], "hash": rulebook_hash}
    return {
        "rulebook": {"schema_version": "rulebook_v1", **known},
        "evaluator_version": EVALUATOR,
        "rulebook_contract": {"schema_version": "rulebook_v1", "binding": True},
        "runtime_binding": {
            "production_core": "hybrid_declarative_rulebook_with_trusted_adapters",
            "binding_mode": binding_mode,
            "verdict_authority": "declarative_rulebook",
            "customer_supplied_code": "rejected",
        },
        "rulebook_registry": {"registered": True, "hash": rulebook_hash},
        "rulebook_attestation": {"bundle_hash": canonical_hash([known, EVALUATOR])},
        **_policy(rulebook["rulebook_id"], rulebook["version"], rulebook_hash),
    }


def advisory_fields() -> dict[str, Any]:
    """What a record says of itself when no rulebook decided: that it binds nobody."""
    return {
        "decision_contract": {
            "authority": "advisory_only",
            "production_verdict": False,
            "production_binding_required": True,
        },
        **_policy("advisory", "1", canonical_hash("advisory")),
    }


def _policy(policy_id: str, version: str, policy_hash: str) -> dict[str, Any]:
    bundle = {"policy_id": policy_id, "policy_version": version, "policy_hash": policy_hash}
    return {**bundle, "source_hash": policy_hash, "policy_bundle": bundle, "policy_bundle_hash": canonical_hash(bundle)}


def binding_of(context: Mapping[str, Any]) -> dict[str, Any]:
    """What the decision is about, as its executor has to repeat it; what the caller did not say is not in it."""
    names = {
        "system": "target_system",
        "resource": "target_object_id",
        "proposed_action": "requested_action",
        "mutation": "mutation",
        "workflow": "workflow",
        "source_record_id": "source_record_id",
    }
    return {name: context[source] for name, source in names.items() if source in context}


def confidence_fields(score: float) -> dict[str, Any]:
    """How sure the decision is."""
    confidence = {
        "decision_confidence_version": "decision_confidence_v1",
        "score": score,
        "level": "high" if score >= 0.9 else "low",  # noqa: PLR2004 - rulebooks score 1, advice 0.5
        "similar_decisions": 0,
        "policy_stability": "stable",
        "recommendation": "proceed" if score >= 0.9 else "review",  # noqa: PLR2004
    }
    digest = canonical_hash(confidence)
    return {"decision_confidence": {**confidence, "confidence_hash": digest}, "confidence_hash": digest}


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with its hashes and its signature."""
    whole = {
        **record,
        "output_hash": canonical_hash({name: record.get(name) for name in _OUTCOME}),
        "integrity": {"canonicalization": "json.sort_deep.v1", "hash_algorithm": "sha256"},
        "receipt_key_id": KEY_ID,
        "receipt_signature_algorithm": ALGORITHM,
        "receipt_public_key_fingerprint": FINGERPRINT,
    }
    return {**whole, **_seals(whole)}


def _seals(whole: Mapping[str, Any]) -> dict[str, str]:
    record_hash = canonical_hash({name: value for name, value in whole.items() if name not in _SEALS})
    receipt_hash = canonical_hash([whole.get("decision_id"), record_hash, whole.get("created_at")])
    signature = hmac.digest(_SIGNING_KEY, receipt_hash.encode(), "sha256")
    return {
        "record_hash": record_hash,
        "receipt_hash": receipt_hash,
        "receipt_signature": base64.b64encode(signature).decode(),
    }


def checks(record: Mapping[str, Any], request: Any = None) -> dict[str, bool]:
    """What holds of a record in its full view: its hashes, its signature, and with the request that of its input."""
    found = {name: record.get(name) == value for name, value in _seals(record).items()}
    found["output_hash"] = record.get("output_hash") == canonical_hash({name: record.get(name) for name in _OUTCOME})
    if request is not None:
        found["input_hash"] = record.get("input_hash") == canonical_hash(request)
    return found


# -- receipts -----------------------------------------------------------------------------------------------------------------


def execution_receipt(
    record: Mapping[str, Any], sent: Mapping[str, Any], receipt_id: str, reported_at: str
) -> dict[str, Any]:
    """The receipt of an execution; whether it was what had been decided is told, not enforced."""
    binding = record["action_binding"]
    fields = {
        "decision_execution_version": "decision_execution_v1",
        "execution_receipt_id": receipt_id,
        "decision_id": record["decision_id"],
        "execution_status": sent["execution_status"],
        "action_binding_hash": canonical_hash(binding),
        "action_binding_match": _matches(binding, sent),
        **_given(sent, "state_before_hash", "state_after_hash", "decision_record_hash", "decision_receipt_hash"),
    }
    return {**fields, "execution_hash": canonical_hash([fields, sent]), "reported_at": reported_at}


def _matches(binding: Mapping[str, Any], sent: Mapping[str, Any]) -> bool:
    """Whether what was done is what was decided, by the binding sent along or by the fields that say the same."""
    if "action_binding" in sent:
        return canonical_hash(sent["action_binding"]) == canonical_hash(binding)
    names = {
        "action_taken": "proposed_action",
        "target_system": "system",
        "target_object_id": "resource",
        "mutation": "mutation",
    }
    said = [(sent[name], binding.get(decided)) for name, decided in names.items() if name in sent]
    return bool(said) and all(done == decided for done, decided in said)


def outcome_receipt(
    record: Mapping[str, Any], sent: Mapping[str, Any], receipt_id: str, reported_at: str
) -> dict[str, Any]:
    """The receipt of an outcome."""
    fields = {
        "decision_outcome_version": "decision_outcome_v1",
        "outcome_id": receipt_id,
        "decision_id": record["decision_id"],
        "outcome_status": sent["outcome_status"],
        "outcome_input_hash": canonical_hash(sent),
        **_given(sent, "decision_record_hash", "decision_receipt_hash", "execution_receipt_id", "execution_hash"),
    }
    return {**fields, "outcome_hash": canonical_hash(fields), "reported_at": reported_at}


def crm_sync_receipt(
    record: Mapping[str, Any], sent: Mapping[str, Any], receipt_id: str, reported_at: str
) -> dict[str, Any]:
    """The receipt of a write to a CRM."""
    fields = {
        "sync_id": receipt_id,
        "decision_id": record["decision_id"],
        **_given(sent, "sync_status", "sync_direction", "crm_provider", "crm_object_type", "crm_object_id"),
        "mapped_fields": sorted(sent.get("field_mapping", {})),
    }
    return {**fields, "sync_hash": canonical_hash([fields, sent]), "reported_at": reported_at}


def _given(sent: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: sent[name] for name in names if name in sent}
