"""`agentd queue`: what waits, since when and for what; the records themselves; receipts of what was delivered; and a queue's end.

All but `drop` only read, from a running daemon or from the folder of one that does not run.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from agentd.cli.options import config_option, daemon, json_option, seconds, socket_option
from agentd.cli.queue_screen import compact, lane_lines, number, receipt_lines, record_lines, stats_lines
from agentd.cli.stopped import Stopped, ask_or_look
from agentd.cli.terminal import complain, echo_lines, print_json
from agentd.errors import StateError, UsageError

if TYPE_CHECKING:
    from agentd.control.queue_at_rest import QueueAtRest
    from agentd.spool.look import Look

CommandT = TypeVar("CommandT", bound=Callable[..., Any])

_PATIENCE_S = 120.0  # a million records over ten thousand lanes take the daemon about five
_DROP_PATIENCE_S = 3600.0
_SORTS = ("oldest", "records", "bytes")


@click.group("queue")
def queue() -> None:
    """What waits to be sent, since when and for what."""


def _filters(command: CommandT) -> CommandT:
    """The options that narrow a list down."""
    for option in (
        click.option("--kind", metavar="KIND", help="run.start, event, decision, …"),
        click.option("--agent", metavar="NAME", help="The agent's local name."),
        click.option("--run", metavar="RUN_ID"),
        click.option("--destination", metavar="NAME"),
    ):
        command = option(command)
    return command


def _limit(default: int, name: str = "--limit") -> Callable[[CommandT], CommandT]:
    return click.option(name, "limit", type=click.IntRange(1, 1000), default=default, show_default=True)


_older = click.option("--older", metavar="AGE", default="0s", callback=seconds, help="Only what waits for that long.")


def _if_given(ctx: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    return None if value is None else seconds(ctx, parameter, value)


def _common(command: CommandT) -> CommandT:
    for option in (json_option, socket_option, config_option):
        command = option(command)
    return command


@queue.command()
@click.option("--destination", metavar="NAME")
@_common
def stats(destination: str | None, socket: str | None, *, as_json: bool) -> None:
    """Show each destination's queue: how much, how old, how fast it empties, and what its lanes wait for."""
    document = _document(socket, "stats", {"destination": destination})
    _print(document, document, stats_lines, as_json=as_json)


@queue.command("list")
@_filters
@_older
@click.option("--sort", type=click.Choice(_SORTS), default="oldest", show_default=True)
@_limit(100)
@_common
def list_(socket: str | None, *, as_json: bool, **asked: Any) -> None:
    """List the lanes (runs, mostly) with what waits in each, the oldest record, and what it waits for."""
    document = _document(socket, "lanes", asked)
    _print(document, document["lanes"], lane_lines, as_json=as_json)
    if as_json and not document["exact"]:
        complain("more lanes than are counted at a time: those shown may hold more than is said")


@queue.command()
@_filters
@_older
@_limit(10, "-n")
@click.option("--raw", is_flag=True, help="The records alone, one a line, as `agentd emit -` takes them.")
@_common
def peek(socket: str | None, *, raw: bool, as_json: bool, **asked: Any) -> None:
    """Show the oldest records themselves. Others see of your records that there are some."""
    document = _document(socket, "records", asked)
    if not raw:
        _print(document, document["records"], record_lines, as_json=as_json)
        return
    shown = [found["record"] for found in document["records"] if "record" in found]
    for record in shown:
        click.echo(compact(record))
    hidden = len(document["records"]) - len(shown)
    if hidden:
        complain(f"{hidden} records of other users are left out")


@queue.command()
@_filters
@click.option("--since", metavar="AGE", callback=_if_given, help="Only what was delivered within that time.")
@_limit(20, "-n")
@_common
def receipts(socket: str | None, *, as_json: bool, **asked: Any) -> None:
    """Show what was delivered, the newest first: id here and at the platform, key, time, tries. From the journal: of evidence."""
    document = _document(socket, "receipts", asked)
    _print(document, document["receipts"], receipt_lines, as_json=as_json)
    if not document["complete"]:
        complain("the journal goes further back than was searched")


def _print(document: dict[str, Any], data: Any, lines: Callable[[dict[str, Any]], list[str]], *, as_json: bool) -> None:
    if as_json:
        print_json(data)
        return
    echo_lines(lines(document))


def _document(socket: str | None, view: str, asked: dict[str, Any]) -> dict[str, Any]:
    """What the daemon says of that view, or what the folder of a stopped one does."""
    return ask_or_look(
        socket,
        lambda there: there.get("/v1/queue", view=view, **asked),
        lambda look, folder: _at_rest(look, folder, view, asked),
        _PATIENCE_S,
    )


def _at_rest(look: Look, folder: Stopped, view: str, asked: dict[str, Any]) -> dict[str, Any]:
    from agentd.control.queue_at_rest import QueueAtRest
    from agentd.intake.queues import Asked

    found = QueueAtRest(look, folder.now_us, folder.config)
    destination = asked["destination"]
    _check(found, destination)
    if view == "stats":
        return found.stats(destination)
    names = {"older": "older_s", "since": "since_s"}
    wanted = Asked(**{names.get(name, name): value for name, value in asked.items()})
    answers = {"lanes": found.lanes, "records": found.records, "receipts": found.receipts}
    return dict(msgspec.json.decode(msgspec.json.encode(answers[view](wanted))))


def _check(found: QueueAtRest, destination: str | None) -> None:
    if destination is not None and destination not in found.names():
        raise StateError(
            f"destination: there is no queue {destination!r}; there are {', '.join(found.names()) or 'none'}"
        )


# -- drop --------------------------------------------------------------------------------------------------------------


@queue.command()
@click.argument("destination", metavar="DESTINATION")
@click.option("--reason", metavar="TEXT", required=True, help="Why; the journal keeps it, with your uid.")
@click.option("--yes", is_flag=True, help="Don't ask. Needed where nobody can be asked.")
@_common
def drop(destination: str, reason: str, socket: str | None, *, yes: bool, as_json: bool) -> None:
    """Take everything that waits for a destination out for good. It is counted as purged, and never sent."""
    if not reason.strip():
        raise UsageError("--reason: say why: who reads the journal will want to know")
    there = _document(socket, "stats", {"destination": destination})
    facts = there["destinations"][destination]
    if not yes:
        _confirm(destination, facts)
    dropped = _drop(destination, reason, socket, running=there["running"])
    if as_json:
        print_json(dropped)
        return
    kinds = ", ".join(f"{number(count)} {kind}" for kind, count in dropped["kinds"].items())
    click.echo(f"{number(dropped['dropped'])} records of {destination} are dropped" + (f": {kinds}" if kinds else ""))
    if dropped["tried"]:
        click.echo(f"{number(dropped['tried'])} of them had been sent without an answer: the platform may have those")


def _confirm(destination: str, facts: dict[str, Any]) -> None:
    if not _can_ask():
        raise UsageError("--yes: say it where nobody can be asked; what is dropped does not come back")
    taken_for = f" ({facts['taken_for']})" if facts["taken_for"] else ""
    question = f"{number(facts['queued'])} records wait for {destination}{taken_for}: drop them all for good?"
    click.confirm(question, abort=True, err=True)


def _can_ask() -> bool:
    return sys.stdin.isatty()


def _drop(destination: str, reason: str, socket: str | None, *, running: bool) -> dict[str, Any]:
    if running:
        body = msgspec.json.encode({"destination": destination, "reason": reason})
        return dict(daemon(socket).post("/v1/queue/drop", body=body, timeout_s=_DROP_PATIENCE_S))
    return _drop_at_rest(destination, reason)


def _drop_at_rest(destination: str, reason: str) -> dict[str, Any]:
    import os

    from agentd.control.queue_documents import dropped_document
    from agentd.spool.drop import Deletion, drop_at_rest
    from agentd.spool.journal import Journal
    from agentd.spool.readonly import become_owner

    folder = Stopped()
    config = folder.config
    become_owner(folder.directory)
    journal = Journal(int(config.journal.retention * 1e6), int(config.journal.max_bytes))
    who = Deletion(os.getuid(), " ".join(reason.split()))
    dropped = asyncio.run(drop_at_rest(folder.directory, destination, who, sync=config.spool.sync, journal=journal))
    return dropped_document(destination, dropped)
