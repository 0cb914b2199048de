"""`agentd gates`: the questions that agents asked, their verdicts, and a person's word where nobody knows what became of one."""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any
from urllib.parse import quote

import click
import msgspec

from agentd.cli.options import config_option, daemon, json_option, socket_option
from agentd.cli.stopped import ask_or_look
from agentd.cli.terminal import paint, print_json, table
from agentd.errors import StateError

_COLOURS = {"allow": "green", "deny": "red", "review": "yellow", "pending": "yellow", "unavailable": "red"}
_VERDICTS = ("allow", "deny", "review", "unavailable")


@click.group("gates")
def gates() -> None:
    """The questions that agents asked, and their verdicts."""


@gates.command("list")
@click.option("--state", type=click.Choice(["open", "final", "all"]), default="all", show_default=True)
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True)
@config_option
@socket_option
@json_option
def list_(state: str, limit: int, socket: str | None, *, as_json: bool) -> None:
    """List them, the newest first. What was asked and answered in full is shown by `show`."""
    found = ask_or_look(
        socket,
        lambda there: list(there.get("/v1/gates", state=state, limit=limit)),
        lambda look, _: _plain(_at_rest().gates_at_rest(look, state, limit)),
    )
    if as_json:
        print_json(found)
        return
    for line in _lines(found):
        click.echo(line)


@gates.command()
@click.argument("gate_id", metavar="ID")
@config_option
@socket_option
@json_option
def show(gate_id: str, socket: str | None, *, as_json: bool) -> None:
    """Show one with its question and the platform's answer."""
    found = ask_or_look(
        socket,
        lambda there: dict(there.get(f"/v1/gates/{quote(gate_id, safe='')}")),
        lambda look, _: _plain(_at_rest().gate_at_rest(look, gate_id)),
    )
    if found is None:
        raise StateError(f"no gate {gate_id[:64]!r} is on record")
    if as_json:
        print_json(found)
        return
    for line in _whole(found):
        click.echo(line)


@gates.command()
@click.argument("gate_id", metavar="ID")
@click.argument("verdict", type=click.Choice(_VERDICTS))
@click.option("--platform-id", metavar="ID", help="What the platform calls it, where it has made something of it.")
@click.option("--note", metavar="TEXT", help="What you know and from where; kept with it.")
@config_option
@socket_option
@json_option
def resolve(
    gate_id: str, verdict: str, platform_id: str | None, note: str | None, socket: str | None, *, as_json: bool
) -> None:
    """Say what became of one whose answer was lost. `unavailable` says that nothing did, and frees its key."""
    given = {"verdict": verdict, "platform_id": platform_id, "note": note}
    body = json.dumps({name: value for name, value in given.items() if value is not None}).encode()
    found = daemon(socket).post(f"/v1/gates/{quote(gate_id, safe='')}/resolve", body=body)
    if as_json:
        print_json(found)
        return
    key = f", key {found['key']}" if found["key"] else ""
    click.echo(f"{found['gate_id']}: {_verdict(found)} ({found['gate']} at {found['destination']}{key})")
    if not found["acted"]:
        click.echo("the same question may be asked again under its key" if found["key"] else "nothing was made of it")


def _at_rest() -> ModuleType:
    from agentd.control import at_rest

    return at_rest


def _plain(document: Any) -> Any:
    """With what is spliced into it as JSON built into values, as a daemon's answer has it."""
    return msgspec.json.decode(msgspec.json.encode(document))


def _lines(found: list[dict[str, Any]]) -> list[str]:
    if not found:
        return ["no gates"]
    rows = [
        (
            gate["gate_id"],
            gate["gate"],
            gate["destination"],
            gate["agent_id"] or "–",
            gate["verdict"] + _marks(gate),
            gate["asked_at"][:19],
        )
        for gate in found
    ]
    head, *body = table(("id", "gate", "destination", "agent", "verdict", "asked"), rows, left=6)
    lines = [head]
    for row, gate in zip(body, found, strict=True):
        lines.append(row.replace(f" {gate['verdict']}", f" {_verdict(gate)}", 1))
        lines += [f"    {gate['reason']}"] if gate["reason"] else []
    return lines


def _verdict(gate: dict[str, Any]) -> str:
    return paint(gate["verdict"], _COLOURS.get(gate["verdict"], "white"))


def _marks(gate: dict[str, Any]) -> str:
    """What the verdict alone does not say."""
    marks = [] if gate["final"] else [gate["step"]]
    marks += ["may have acted"] if gate["verdict"] == "unavailable" and gate["acted"] else []
    marks += ["fail open"] if gate.get("fail_open") else []
    marks += ["resolved"] if gate["resolved_by"] is not None else []
    return f" ({', '.join(marks)})" if marks else ""


def _whole(gate: dict[str, Any]) -> list[str]:
    names = (
        "gate", "destination", "agent_id", "run_id", "id", "platform_id", "key", "step", "verdict", "proceed", "reason",
        "asked_at", "decided_at", "deadline", "tries", "relayed", "uid", "pid", "resolved_by", "note",
    )  # fmt: skip
    width = max(map(len, names))
    lines = [f"gate {gate['gate_id']}"]
    lines += [f"  {name.ljust(width)}  {gate[name]}" for name in names if gate[name] not in (None, "")]
    for name in ("request", "response"):
        if gate[name] is not None:
            lines += [f"  {name}", *(f"    {line}" for line in json.dumps(gate[name], indent=2).splitlines())]
    return lines
