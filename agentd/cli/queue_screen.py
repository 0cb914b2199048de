"""The queue for people: lines from the documents of `agentd queue` (agentd.control.queue_documents)."""

from __future__ import annotations

import json
from typing import Any

from agentd.cli.terminal import paint, table
from agentd.units import format_duration, format_size

_COLOURS = {"ok": "green", "waiting": "yellow", "paused": "red", "removed": "red", "stopped": "yellow"}
_LANES = {
    "answer": "in flight",
    "turn": "ready",
    "batch": "gathering a batch",
    "backoff": "in backoff",
    "forbidden": "forbidden",
    "reference": "without an id they need",
    "memory": "on disk only",
}
WAITS = {
    "answer": "an answer of the platform",
    "batch": "its batch to fill or be due",
    "backoff": "its next try",
    "forbidden": "the platform's permission",
    "reference": "an id that it needs",
    "destination": "the destination",
    "turn": "its turn",
    "memory": "room to be read from disk",
    "removed": "its destination",
    "seal": "a start of the daemon",
    "daemon": "a start of the daemon",
}
_SHOWN_CHARS = 160  # of a record


def number(value: float) -> str:
    return f"{value:,}"


def many(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}{'es' if what.endswith('ch') else 's'}"


# -- stats -------------------------------------------------------------------------------------------------------------


def stats_lines(document: dict[str, Any]) -> list[str]:
    destinations: dict[str, dict[str, Any]] = document["destinations"]
    if not destinations:
        return ["no queues"]
    rows = [
        (
            name,
            there["state"],
            number(there["queued"]),
            format_size(there["bytes"]),
            _share(there),
            _age(there["oldest_age_s"]),
            _rate(there["admitted_per_s"]),
            _rate(there["delivered_per_s"]),
            _empty_in(there),
        )
        for name, there in destinations.items()
    ]
    head = ("destination", "state", "queued", "bytes", "of quota", "oldest", "in/s", "out/s", "empty in")
    first, *body = table(head, rows, left=2)
    lines = [first]
    for row, there in zip(body, destinations.values(), strict=True):
        lines.append(row.replace(f" {there['state']} ", f" {paint(there['state'], _COLOURS[there['state']])} ", 1))
        lines += [f"    {line}" for line in _details(there)]
    return [*lines, "", *_total(document["total"])]


def _details(there: dict[str, Any]) -> list[str]:
    lines = []
    if there["reason"]:
        next_try = there["retry_in_s"]
        lines.append(there["reason"] + ("" if next_try is None else f"; next try in {format_duration(next_try)}"))
    if not there["queued"]:
        return lines
    lines.append(_words(there["kinds"]))
    lanes = there["lanes"]
    if lanes["known"]:
        states = [f"{number(count)} {_LANES[why]}" for why, count in lanes["waits"].items()]
        states += [f"{number(lanes['parked'])} parked on disk"] if lanes["parked"] else []
        lines.append(many(lanes["known"], "lane") + (": " + ", ".join(states) if states else ""))
    stored = [many(there["segments"], "segment")]
    stored += [many(there["sealed"], "sealed batch")] if there["sealed"] else []
    if there["window_max_bytes"]:
        stored.append(f"{format_size(there['window_bytes'])} of {format_size(there['window_max_bytes'])} of memory")
    return [*lines, ", ".join(stored)]


def _words(counts: dict[str, int]) -> str:
    return ", ".join(f"{number(count)} {word}" for word, count in sorted(counts.items(), key=lambda item: -item[1]))


def _total(total: dict[str, Any]) -> list[str]:
    oldest = "" if total["oldest_age_s"] is None else f", the oldest {_age(total['oldest_age_s'])} old"
    dead = f"; {many(total['dead_letters'], 'dead letter')}" if total["dead_letters"] else ""
    return [
        f"{many(total['queued'], 'record')} queued{oldest}: {format_size(total['bytes'])} of {format_size(total['max_bytes'])}{dead}",
        f"{format_size(total['database_bytes'])} on disk, {format_size(total['disk_free_bytes'])} free there",
    ]


def _share(there: dict[str, Any]) -> str:
    return f"{100 * there['bytes'] / there['max_bytes']:.1f}%" if there["max_bytes"] else "–"


def _rate(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}" if value < 100 else f"{value:,.0f}"  # noqa: PLR2004 - three digits


def _empty_in(there: dict[str, Any]) -> str:
    if there["drain"] == "empty":
        return "–"
    if there["eta_s"] is not None:
        return format_duration(there["eta_s"])
    return "not draining" if there["drain"] == "not draining" else "?"


def _age(seconds: float | None) -> str:
    return "–" if seconds is None else format_duration(seconds)


# -- lanes -------------------------------------------------------------------------------------------------------------


def lane_lines(document: dict[str, Any]) -> list[str]:
    lanes, matched = document["lanes"], document["matched"]
    lines = _lane_rows(lanes) if lanes else ["nothing of that is queued"]
    if lanes:
        most = "" if document["exact"] else "at most "
        shown = "" if len(lanes) == matched["lanes"] else f", the first {number(len(lanes))} shown"
        what = f"{many(matched['records'], 'record')}, {format_size(matched['bytes'])}"
        lines += ["", f"{most}{many(matched['lanes'], 'lane')}{shown}: {what}"]
    if document["damaged_segments"]:
        lines.append(f"{many(document['damaged_segments'], 'segment')} can't be read")
    return lines


def _lane_rows(lanes: list[dict[str, Any]]) -> list[str]:
    rows = [
        (
            lane["destination"],
            lane["lane"],
            number(lane["records"]),
            format_size(lane["bytes"]),
            _age(lane["oldest"]["age_s"]),
            f"{lane['head']['kind']} #{lane['head']['number']}",
        )
        for lane in lanes
    ]
    first, *body = table(("destination", "lane", "records", "bytes", "oldest", "head"), rows, left=2)
    lines = [first]
    for row, lane in zip(body, lanes, strict=True):
        lines += [row, f"    waits for {_waiting(lane)}"]
    return lines


def _waiting(lane: dict[str, Any]) -> str:
    waits = lane["waits"]
    words = [WAITS[waits["for"]]]
    if waits["failures"]:
        words.append(f"after {many(waits['failures'], 'failure')}")
    if waits["next_try_in_s"] is not None:
        words.append(f"in {format_duration(waits['next_try_in_s'])}")
    marks = ["parked on disk"] if lane["parked"] else []
    marks += [f"{lane['sealed']} sealed"] if lane["sealed"] else []
    reason = waits["reason"] or ""
    if waits["for"] == "destination":  # the same for all of its lanes: `stats` has the whole of it
        reason = reason.partition(":")[0]
    return ", ".join(words) + (f" ({', '.join(marks)})" if marks else "") + (f": {reason}" if reason else "")


# -- records and receipts ----------------------------------------------------------------------------------------------


def record_lines(document: dict[str, Any]) -> list[str]:
    lines = []
    for found in document["records"]:
        head = f"{format_duration(found['age_s'])} old  {found['destination']}  {found['kind']} #{found['number']}"
        size = format_size(found["bytes"])
        if "record" in found:
            lines.append(f"{head}  {found['lane']}  {found['id']}  uid {found['uid']}  {size}")
            lines.append(f"    {_cut(compact(found['record']))}")
        else:
            lines.append(f"{head}  {size}  (another user's)")
    if document["cut"]:
        lines.append("more than fits one answer: ask for fewer, or for one run")
    return lines or ["nothing of that is queued"]


def compact(record: object) -> str:
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"))


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 1] + "…"


def receipt_lines(document: dict[str, Any]) -> list[str]:
    found = document["receipts"]
    if not found:
        return ["no receipts of that"]
    rows = [
        (
            receipt["delivered_at"][:19],
            receipt["destination"],
            receipt["kind"],
            receipt["id"],
            receipt["platform_id"] or "–",
            receipt["key"] or "–",
            receipt["tries"],
        )
        for receipt in found
    ]
    return table(("delivered", "destination", "kind", "id", "platform's id", "key", "tries"), rows, left=6)
