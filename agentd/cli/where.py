"""`agentd where`: what became of a record, run, decision, action or gate, by whatever id it goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from agentd.cli.ask import Daemon
from agentd.cli.options import config_option, json_option, socket_option
from agentd.cli.stopped import Stopped, ask_or_look
from agentd.cli.terminal import echo_lines, paint, print_json
from agentd.errors import StateError, UsageError

if TYPE_CHECKING:
    from agentd.spool.look import Look

_PATIENCE_S = 120.0  # a journal of 256 MiB takes a second or two, a queue of gigabytes longer
_COLOURS = {
    "delivered": "green", "answered": "green", "queued": "yellow", "open": "yellow", "dead": "red", "missing": "red",
    "quarantined": "red",
}  # fmt: skip


@click.command()
@click.argument("name", metavar="ID")
@config_option
@socket_option
@json_option
def where(name: str, socket: str | None, *, as_json: bool) -> None:
    """Tell where a record, run, decision, action or gate is: by the client's id, agentd's, the platform's, or a key."""
    if not name:
        raise UsageError("ID: expected an id or a key, got nothing")
    document = ask_or_look(
        socket, lambda daemon: _ask(daemon, name), lambda look, folder: _look(look, folder, name), _PATIENCE_S
    )
    if as_json:
        print_json(document)
        return
    echo_lines(lines(document))


def _ask(daemon: Daemon, name: str) -> dict[str, Any]:
    return dict(daemon.get(f"/v1/records/{quote(name, safe='')}"))


def _look(look: Look, folder: Stopped, name: str) -> dict[str, Any]:
    from agentd.control import record_documents as documents
    from agentd.control.queue_documents import waits_at_rest
    from agentd.control.records import look_for

    del folder
    found, taken = look_for(look.store, name, None)
    document = documents.document(
        found,
        documents.everything,
        lambda waiting: waits_at_rest(look.ledger, waiting.destination, waiting.entry.lane, waiting.entry.kind),
        taken,
    )
    if document is None:
        raise StateError(documents.unknown(name, found.since_us))
    return document


# -- for people ----------------------------------------------------------------------------------------------------------


def lines(document: dict[str, Any]) -> list[str]:
    """The document, record by record."""
    shown = [f"{document['id']}: {', '.join(document['is']) or 'known'}"]
    for reference in document["references"]:
        shown += _reference(reference)
    for gate in document["gates"]:
        shown.append(
            f"gate {gate['gate_id']}: {gate['gate']} at {gate['destination']}: {gate['verdict']}"
            + (f" ({gate['reason']})" if gate["reason"] else "")
        )
    for record in document["records"]:
        shown += _record(record)
    if document["more"]:
        shown.append(f"and {document['more']} more records")
    if document["journal"]["damaged_rows"]:
        shown.append(f"{document['journal']['damaged_rows']} rows can't be read and may say more")
    return shown


def _reference(reference: dict[str, Any]) -> list[str]:
    called = f", there {reference['platform_id']}" if reference["platform_id"] else ""
    counts = f"{reference['delivered']} delivered, {reference['queued']} queued, {reference['dead']} dead"
    ended = ", ended" if reference["ended"] else ""
    return [
        f"{reference['kind']} {reference['id']} at {reference['destination']}: {reference['state']}{called}{ended}; {counts}"
    ]


def _record(record: dict[str, Any]) -> list[str]:
    if not record["destinations"]:
        return [f"record {record['id']}, uid {record['uid']}: {record['note']}"]
    run = f", run {record['run']}" if record["run"] else ""
    agent = f"agent {record['agent']}" if record["agent"] else "the destination's agent"
    occurred = f"occurred {record['occurred_at']}, " if record["occurred_at"] else ""
    shown = [
        f"{record['kind']} {record['id']}, {agent}{run}, uid {record['uid']}",
        f"  {occurred}received {record['received_at']}, sha256 {record['sha256']}",
    ]
    if record.get("redacted"):
        shown.append(
            "  redacted: " + ", ".join(f"{rule} {count}" for rule, count in sorted(record["redacted"].items()))
        )
    for place in record["destinations"]:
        shown.append(f"  {place['destination'] or '(intake)'}: {_state(place)}")
        if len(place["history"]) > 1:
            shown += [f"    {_step(step)}" for step in place["history"]]
    return shown


def _state(place: dict[str, Any]) -> str:
    word = paint(place["state"], _COLOURS.get(place["state"], "white"))
    details = {
        "queued": _queued, "dead": _dead, "ended": _note, "missing": _note, "open": _gate, "answered": _gate,
    }.get(place["state"], _ended)  # fmt: skip
    return f"{word} {details(place)}".rstrip()


def _queued(place: dict[str, Any]) -> str:
    waits = place["waits"] or {}
    why = f"; waits for {waits['for']}" + (f": {waits['reason']}" if waits.get("reason") else "") if waits else ""
    sealed = f", in a batch of {place['batch']} with key {place['key']}" if place["key"] else ""
    return f"as number {place['number']} of {place['lane']} since {place['at']}{sealed}{why}"


def _dead(place: dict[str, Any]) -> str:
    key = f", key {place['key']}" if place["key"] else ""
    return f"since {place['at']}: {place['cause']}: {place['reason']} (letter {place['letter']}{key}, {_tries(place)})"


def _ended(place: dict[str, Any]) -> str:
    called = f" as {place['platform_id']}" if place["platform_id"] else ""
    key = f", key {place['key']}" if place["key"] else ""
    cause = f": {place['cause']}" if place["cause"] else ""
    tries = f", {_tries(place)}" if place["tries"] else ""
    return f"{place['at']}{called}{key}{tries}{cause}{_by(place)}"


def _gate(place: dict[str, Any]) -> str:
    called = f" as {place['platform_id']}" if place["platform_id"] else ""
    return f"{place['at']}{called}: {place.get('verdict') or place.get('step')}, key {place['key']}{_by(place)}"


def _note(place: dict[str, Any]) -> str:
    return f"since {place['at']}: {place['note']}"


def _step(step: dict[str, Any]) -> str:
    whole = step.get("segment")
    of = f", with {whole['records']} of the numbers {whole['numbers']}" if whole else ""
    cause = f": {step['cause']}" if step.get("cause") else ""
    return f"{step['at']}  {step['state']}{cause}{of}{_by(step)} (entry {step['entry']})"


def _tries(place: dict[str, Any]) -> str:
    return f"{place['tries']} {'try' if place['tries'] == 1 else 'tries'}"


def _by(place: dict[str, Any]) -> str:
    who = f" by uid {place['by']}" if place.get("by", -1) >= 0 else ""
    return who + (f" ({place['reason']})" if place.get("reason") else "")
