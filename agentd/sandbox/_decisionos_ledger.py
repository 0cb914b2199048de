"""Decision OS's workspace: agents, snapshots, and a ledger of decisions in the order of their arrival, each sealed with its content and the seal before it.

A seal is the SHA-256 of JSON with sorted keys at every depth, `,` and `:` as separators and no ASCII escapes; indices are
consecutive, and the first link has no predecessor (decision-os-sdk 0.2.1, the names of its verification). That the hash covers
index and predecessor too, and that indices begin with 1, is our choice. Used by the face in `decisionos` alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from agentd.units import rfc3339

_SHOWN_CHARS = 80


class Link(Struct, frozen=True):
    """One sealed decision."""

    index: int
    payload: dict[str, Any]
    content_hash: str
    prev_hash: str | None


def canonical(value: Any) -> bytes:
    """The bytes that a seal is made of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(errors="surrogatepass")


def seal(value: Any) -> str:
    """SHA-256 of the canonical form, in hex."""
    return hashlib.sha256(canonical(value)).hexdigest()


class Ledger:
    """The chain; it only grows."""

    def __init__(self) -> None:
        self.links: list[Link] = []

    def append(self, content: Mapping[str, Any]) -> Link:
        """Seal one decision and hang it to the last."""
        index = len(self.links) + 1
        prev_hash = self.links[-1].content_hash if self.links else None
        payload = {**content, "chainIndex": index, "prevHash": prev_hash}
        link = Link(index, payload, seal(payload), prev_hash)
        self.links.append(link)
        return link

    def verify(self, tampered: int | None = None) -> dict[str, Any]:
        """Compute everything again; `tampered` is the index of a link that is read as if somebody had changed it."""
        errors: list[dict[str, Any]] = []
        expected_prev: str | None = None
        for link in self.links:
            payload = {**link.payload, "changed": True} if link.index == tampered else link.payload
            found = {
                "stored_hash": link.content_hash,
                "computed_hash": seal(payload),
                "expected_prev": expected_prev,
                "actual_prev": link.prev_hash,
            }
            if found["computed_hash"] != link.content_hash:
                errors.append({"chain_index": link.index, "reason": "content_hash_mismatch", **found})
            if link.prev_hash != expected_prev:
                errors.append({"chain_index": link.index, "reason": "broken_link", **found})
            expected_prev = link.content_hash
        return {
            "checked": len(self.links),
            "errors": len(errors),
            "error_details": errors,
            "transcript": [
                {"chain_index": link.index, "content_hash": link.content_hash, "prev_hash": link.prev_hash}
                for link in self.links
            ],
            "ok": not errors,
        }


# -- what a workspace holds ----------------------------------------------------------------------------------------------------


class Agent(Struct):
    """An agent as a read gives it."""

    id: str
    name: str
    created_at: str
    environment: str = "sandbox"
    description: str = ""


class Snapshot(Struct):
    """What was kept of how a decision was made."""

    id: str
    sent: dict[str, Any]
    at: float
    requests: int = 1

    @property
    def answer(self) -> dict[str, Any]:
        return {"id": self.id}


class Decision(Struct):
    """One logged decision; `answer` is what its first request was told, and each repeat is told again."""

    id: str
    sent: dict[str, Any]
    at: float
    status: str
    link: Link
    answer: dict[str, Any]
    requests: int = 1
    snapshots: list[Snapshot] = []

    def shown(self) -> dict[str, Any]:
        """The decision as a read gives it."""
        fields = {"decisionType": "action_selection", **self.sent, **self.answer}
        return {**fields, "prevHash": self.link.prev_hash, "createdAt": rfc3339(self.at)}

    def row(self) -> dict[str, Any]:
        last = self.snapshots[-1].at if self.snapshots else self.at
        return {
            "id": self.id,
            "request_id": self.sent.get("requestId"),
            "agent_id": self.sent["agentId"],
            "run_id": self.sent.get("runId"),
            "context": self.sent["context"][:_SHOWN_CHARS],
            "chosen": self.sent.get("chosenOptionKey"),
            "status": self.status,
            "chain_index": self.link.index,
            "requests": self.requests,
            "snapshots": len(self.snapshots),
            "first_at": rfc3339(self.at),
            "last_at": rfc3339(last),
        }
