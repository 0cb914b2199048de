"""What the demonstration asked leave for: each act held against what the platform that was asked has on record."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from agentd.cli.terminal import paint, table
from agentd.sandbox import Sandbox

_COLOURS = {"allow": "green", "deny": "red"}


class Check(NamedTuple):
    """One promise, and whether it was kept."""

    ok: bool
    what: str


def judge(governed: dict[str, Any], sandbox: Sandbox) -> Iterator[Check]:
    """The decision, the act that was allowed, the one that was denied, the one that waited for a person."""
    asked = {one["platform"]: one for one in governed["asked"]}
    yield _decision(governed, sandbox)
    yield _published(asked["decide.fyi"], sandbox)
    yield _denied(asked["ASCEND"], sandbox)
    yield _approved(asked["AegisOS"], sandbox)


def _held(sandbox: Sandbox, key: str | None) -> dict[str, Any]:
    try:
        return sandbox.run(key or "")
    except KeyError:
        return {}


def _decision(governed: dict[str, Any], sandbox: Sandbox) -> Check:
    """Found by what was chosen: its id there is the platform's own, and the snapshot has to name that one."""
    rows = [_held(sandbox, row["id"]) for row in sandbox.runs() if row["face"] == "decisionos"]
    ours = [row for row in rows if row["sent"].get("chosenOptionKey") == governed["chosen"]]
    snapshots = [event for row in ours for event in row["events"] if event.get("decisionId") == row["id"]]
    return Check(
        (len(ours), len(snapshots)) == (1, 1),
        f"the decision is in Decision OS's ledger once ({len(ours)}), with its snapshot ({len(snapshots)})",
    )


def _published(asked: dict[str, Any], sandbox: Sandbox) -> Check:
    receipts = len(_held(sandbox, asked["platform_id"]).get("events", ()))
    ok = asked["verdict"] == "allow" and asked["done"] and receipts == 2  # noqa: PLR2004 - execution and outcome
    return Check(ok, f"what decide.fyi allowed was done, and execution and outcome are on record: {receipts} receipts")


def _denied(asked: dict[str, Any], sandbox: Sandbox) -> Check:
    held = _held(sandbox, asked["platform_id"])
    ok = asked["verdict"] == "deny" and not asked["done"] and held.get("completions", 0) == 0
    return Check(ok, f"what ASCEND denied was not done: {held.get('reason', 'no such action there')}")


def _approved(asked: dict[str, Any], sandbox: Sandbox) -> Check:
    by = [
        event["by"] for event in _held(sandbox, asked["platform_id"]).get("events", ()) if event["status"] == "approved"
    ]
    ok = asked["verdict"] == "allow" and asked["done"] and by == ["person"]
    return Check(
        ok, f"what AegisOS left to a person waited {asked['waited_s']:.1f}s for the approval, and went on only then"
    )


def asked_lines(asked: list[dict[str, Any]]) -> list[str]:
    """What was asked, of whom, and what was said."""
    if not asked:
        return []
    rows = [(one["act"], one["platform"], one["verdict"], f"{one['waited_s']:.1f}s") for one in asked]
    lines = ["", *table(("asked before acting", "of", "verdict", "after"), rows, left=3)]
    for place, one in enumerate(asked, start=2):
        word = one["verdict"]
        lines[place] = lines[place].replace(f" {word} ", f" {paint(word, _COLOURS.get(word, 'yellow'))} ", 1)
    return lines
