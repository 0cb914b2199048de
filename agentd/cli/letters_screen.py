"""What `agentd dead-letters` shows people: lines for a terminal out of the daemon's documents. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from agentd.cli.terminal import harmless, paint, table

# why a letter stays dead, and what one does about it
_LEFT = {
    "outcome_unknown": "the platform may have acted on {them} already: look there first, then say --force",
    "introducer_dead": "the run.start or decision that {they} {need} is dead: replay that one, and {they} will come along",
    "gate_unavailable": "{they} {name} a gate that no platform knows: see 'agentd gates list'",
    "foreign_reference": "the run, decision or action that {they} {name} is another's",
    "no_destination": "{their} destination is not in the configuration",
    "spool_full": "no room in the queue or on the disk: try again when it has drained",
    "spool full": "no room in the queue or on the disk: try again when it has drained",
    "damaged": "{they} can't be read: only a purge is left",
    "invalid": "refused again, for other reasons",
}
_ONE = {"they": "it", "them": "it", "their": "its", "need": "needs", "name": "names"}
_MANY = {"they": "they", "them": "them", "their": "their", "need": "need", "name": "name"}
_FACTS = (
    "destination", "kind", "agent", "lane", "cause", "reason", "status", "tries", "admitted_at", "died_at", "key", "bytes",
    "sha256", "uid", "pid", "origin",
)  # fmt: skip


def number(count: int, what: str) -> str:
    """`1 dead letter`, `1,200 dead letters`."""
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def list_lines(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each, and below it what was said of it."""
    if not found:
        return ["no dead letters"]
    rows = [
        (
            letter.get("id", "–"),
            letter["destination"] or "–",
            letter["kind"],
            letter.get("lane") or "–",
            letter["cause"],
            letter["died_at"][:19],
        )
        for letter in found
    ]
    head, *body = table(("id", "destination", "kind", "lane", "cause", "died"), rows, left=6)
    lines = [head]
    for row, letter in zip(body, found, strict=True):
        lines += [row, f"    {_reason(letter)}"]
    return lines


def _reason(letter: Mapping[str, Any]) -> str:
    if "reason" not in letter:
        return "(another user's)"
    tries = letter["tries"]
    after = f" (after {tries} {'try' if tries == 1 else 'tries'})" if tries else ""
    return f"{letter['reason']}{after}"


def letter_lines(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each whole: facts, tries, the platform's answer, the record."""
    lines: list[str] = []
    for letter in found:
        lines += ([""] if lines else []) + _whole(letter)
    return lines


def _whole(letter: Mapping[str, Any]) -> list[str]:
    width = max(map(len, _FACTS))
    lines = [f"dead letter {letter.get('id', '')}".rstrip()]
    lines += [f"  {name.ljust(width)}  {letter[name]}" for name in _FACTS if letter.get(name) not in (None, "")]
    if letter.get("carries"):
        lines.append(f"  {'carries'.ljust(width)}  {number(letter['carries'], 'other')}, which a replay brings along")
    if "reason" not in letter:
        return [*lines, "  another user's: only its sender and admins see what is in it"]
    if letter["history"]:
        lines += ["  tries", *(f"    {_try(tried)}" for tried in letter["history"])]
    if letter["answer"]:
        lines += ["  answer", *_indented(_pretty(letter["answer"]))]
    record = (
        letter.get("text") if letter["record"] is None else json.dumps(letter["record"], indent=2, ensure_ascii=False)
    )
    return [*lines, "  record", *_indented(str(record))]


def _try(tried: Mapping[str, Any]) -> str:
    status = (
        "" if tried["status"] is None or tried["reason"].startswith(str(tried["status"])) else f"{tried['status']} "
    )
    return f"{tried['at'][:23]}Z  {status}{tried['reason']}"


def _pretty(answer: str) -> str:
    try:
        return json.dumps(json.loads(answer), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return answer


def _indented(text: str) -> list[str]:
    return [f"    {harmless(line)}" for line in text.split("\n")]


def left_lines(left: Mapping[str, int]) -> list[str]:
    """What stays dead, and why."""
    lines = []
    for reason, count in sorted(left.items(), key=lambda item: (-item[1], item[0])):
        words = _LEFT.get(reason)
        why = f"refused again: {reason}" if words is None else words.format(**(_ONE if count == 1 else _MANY))
        lines.append(paint(f"{count:,} left", "yellow") + f": {why}")
    return lines
