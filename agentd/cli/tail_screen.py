"""A record that has come, as one line for people. Pure: documents of `GET /v1/tail` in, lines out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from agentd.cli.layout import cut
from agentd.cli.terminal import harmless, paint

_COLOURS = {
    "error": "red",
    "warn": "yellow",
    "debug": "blue",
    "run.fail": "red",
    "run.cancel": "yellow",
    "action.failed": "red",
}
_NAMES = (
    "type",
    "name",
    "status",
    "span_kind",
    "decision_id",
    "action_id",
    "task_id",
)  # what it is called, after its kind
_TEXTS = ("error_message", "error", "reason")
_SHOWN_ELSEWHERE = frozenset({"kind", "id", "to", "agent_id", "run_id", "level", "occurred_at", *_NAMES, *_TEXTS})
_CONTENTS = frozenset({"payload", "input", "output", "context", "snapshot", "result", "parameters", "metrics"})


def line(document: Mapping[str, Any], width: int | None = None) -> str:
    """A record or a gap; no longer than `width`, and harmless but for its colour."""
    if "not_shown" in document:
        return paint(gap(document["not_shown"], exact=document.get("exact", True)), "yellow")
    record = document["record"]
    head = f"{document['admitted_at'][11:23]} {','.join(document['destinations'])} {_whose(document)}"
    text = harmless(f"{head}  {' '.join(_told(document['kind'], record))}")
    colour = _COLOURS.get(record.get("level", ""), "") or _COLOURS.get(document["kind"], "")
    text = text if width is None else cut(text, width)
    return paint(text, colour) if colour else text


def gap(records: int, *, exact: bool) -> str:
    """What a reader that was too slow has missed."""
    what = "record" if records == 1 else "records"
    return f"… {'' if exact else 'up to '}{records:,} {what} not shown"


def _whose(document: Mapping[str, Any]) -> str:
    """Its run, decision or agent; with the agent where that has a name and is not the lane."""
    lane, agent = document["lane"], document["agent"]
    return f"{lane} ({agent})" if agent and lane.partition(":")[2] != agent else str(lane)


def _told(kind: str, record: Mapping[str, Any]) -> Iterator[str]:
    yield kind
    yield from (str(record[name]) for name in _NAMES if record.get(name) is not None)
    if record.get("level", "info") != "info":
        yield record["level"]
    yield from (f"{record[name]!s}" for name in _TEXTS if record.get(name) is not None)
    rest = {name: value for name, value in record.items() if name not in _SHOWN_ELSEWHERE}
    if set(rest) & _CONTENTS and len(rest) == 1:
        yield _compact(next(iter(rest.values())))
    elif rest:
        yield _compact(rest)


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
