"""`agentd dead-letters`: the records that no platform will take, and those that were refused as invalid, each with the reason.

Looking works on a running daemon and on the folder of one that does not run; replaying and purging are the daemon's.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import click
import msgspec
from msgspec import Raw

from agentd.cli.letters_screen import left_lines, letter_lines, list_lines, number
from agentd.cli.options import config_option, daemon, json_option, seconds, socket_option
from agentd.cli.stopped import Stopped, ask_or_look
from agentd.cli.terminal import complain, echo_lines, print_json
from agentd.errors import StateError, UsageError
from agentd.outcomes import DEATHS

if TYPE_CHECKING:
    from agentd.spool.look import Look

CommandT = TypeVar("CommandT", bound=Callable[..., Any])
Pages = Callable[[int], list[dict[str, Raw]]]  # from the number of the last letter that is known already

_MOST = 1000  # letters of one answer
_LOOK_S = 60.0
_PATIENCE_S = 3600.0  # for a room that is emptied, at some milliseconds a commit


@click.group("dead-letters")
def dead_letters() -> None:
    """The records that no platform will take, and what was refused as invalid."""


def _age(ctx: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    return None if value is None else seconds(ctx, parameter, value)


def _filters(command: CommandT) -> CommandT:
    """The options that narrow a choice down."""
    for option in (
        click.option("--older", metavar="AGE", callback=_age, help="Only what has been dead for that long: 12h, 7d."),
        click.option("--cause", type=click.Choice(DEATHS), metavar="CAUSE", help=f"One of {', '.join(DEATHS)}."),
        click.option("--run", metavar="RUN_ID"),
        click.option("--destination", metavar="NAME"),
    ):
        command = option(command)
    return command


def _choice(command: CommandT) -> CommandT:
    """What a verb that moves letters chooses them by."""
    every = click.option("--all", "every", is_flag=True, help="All that there are, in so many words.")
    return click.argument("ids", metavar="[ID]...", nargs=-1)(_filters(every(command)))


def _common(command: CommandT) -> CommandT:
    for option in (json_option, socket_option, config_option):
        command = option(command)
    return command


# -- looking -----------------------------------------------------------------------------------------------------------


@dead_letters.command("list")
@_filters
@click.option("--limit", type=click.IntRange(1, _MOST), default=100, show_default=True)
@_common
def list_(socket: str | None, *, as_json: bool, **asked: Any) -> None:
    """List them, the newest first, each with what was said of it."""
    found = _look(socket, asked)
    if as_json:
        print_json(found)
        return
    echo_lines(list_lines(found))


@dead_letters.command()
@click.argument("record_id", metavar="ID")
@_common
def show(record_id: str, socket: str | None, *, as_json: bool) -> None:
    """Show one whole: the record, the platform's answer, each try, and what has died with it.

    A record that is dead at several destinations is shown once for each of them.
    """
    _check_ids([record_id])
    found = _look(socket, {"id": record_id, "limit": _MOST})
    if not found:
        raise StateError(f"no dead letter has the id {record_id}")
    if as_json:
        print_json(found)
        return
    echo_lines(letter_lines(found))


def _look(socket: str | None, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """What the daemon says, or what the folder of a stopped one does."""
    found: list[dict[str, Any]] = ask_or_look(
        socket,
        lambda there: there.get("/v1/dead-letters", **asked),
        lambda look, folder: json.loads(msgspec.json.encode(_in_folder(look, folder, asked))),
        _LOOK_S,
    )
    return found


def _in_folder(look: Look, folder: Stopped, asked: dict[str, Any]) -> list[dict[str, Any]]:
    from agentd.control.letters import document, look_for, wanted_by
    from agentd.intake.letters import Selection

    ids = frozenset([UUID(asked["id"]).bytes]) if "id" in asked else frozenset()
    names = {"destination": "destination", "run": "run", "cause": "cause", "older": "older_s"}
    chosen = Selection(ids, **{names[name]: value for name, value in asked.items() if name in names})
    wanted = wanted_by(chosen, folder.now_us)
    found = look_for(look.store, wanted, asked["limit"], asked.get("after"), counts=bool(ids))
    return [document(row, letter, whole=True, carries=carries) for row, letter, carries in found]


class _Export:
    """What was written by now; a daemon that stops meanwhile leaves the rest to its folder."""

    def __init__(self, file: IO[bytes]) -> None:
        self.letters = 0
        self.hidden = 0
        self._file = file
        self._after = 0

    def write(self, pages: Pages) -> None:
        """All pages that are left; a daemon's answer is bounded."""
        while page := pages(self._after):
            for letter in page:
                self._after = max(self._after, int(bytes(letter["letter"])))
                if "record" in letter:
                    self._file.write(msgspec.json.encode(letter) + b"\n")
                    self.letters += 1
                else:
                    self.hidden += 1


@dead_letters.command()
@_filters
@click.option("--output", "-o", "path", metavar="FILE", type=click.Path(path_type=Path), help="Else standard output.")
@config_option
@socket_option
def export(path: Path | None, socket: str | None, **asked: Any) -> None:
    """Write them whole, the oldest first, one JSON document a line.

    `record` is the record as it was stored, byte for byte: `jq -c .record` gives what `agentd emit -` takes.
    """
    given = {name: value for name, value in asked.items() if value is not None} | {"limit": _MOST}
    with _stdout() if path is None else _create(path) as file:
        out = _Export(file)
        ask_or_look(
            socket,
            lambda there: out.write(lambda after: _raw(there.read("/v1/dead-letters", **given, after=after))),
            lambda look, folder: out.write(
                lambda after: _raw(msgspec.json.encode(_in_folder(look, folder, given | {"after": after})))
            ),
            _LOOK_S,
        )
    hidden = f"; {number(out.hidden, 'letter')} of other users left out" if out.hidden else ""
    complain(f"{number(out.letters, 'dead letter')} written{hidden}")


def _stdout() -> AbstractContextManager[IO[bytes]]:
    return nullcontext(sys.stdout.buffer)


def _create(path: Path) -> AbstractContextManager[IO[bytes]]:
    """A new file that is its owner's alone: records may hold anything."""
    try:
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")
    except FileExistsError:
        raise UsageError(f"{path} exists, and is not written over") from None
    except OSError as error:
        raise StateError(f"{path}: {error.strerror}") from error


def _raw(answer: bytes) -> list[dict[str, Raw]]:
    """Without decoding the records: what is written is what was stored."""
    return msgspec.json.decode(answer, type=list[dict[str, Raw]])


# -- moving ------------------------------------------------------------------------------------------------------------


@dead_letters.command()
@_choice
@click.option("--force", is_flag=True, help="Also what may have acted already: the platform may do it twice.")
@_common
@click.pass_context
def replay(ctx: click.Context, /, socket: str | None, *, force: bool, as_json: bool, **chosen: Any) -> None:
    """Put them back into their queues, with what has died with them. Exit 1 if any stays dead.

    Each keeps its id, and with it the idempotency key, and goes behind what waits in its run. What was refused as invalid is judged
    anew, as its sender's.
    """
    body = _body(chosen, force=force)
    done = daemon(socket).post("/v1/dead-letters/replay", body=body, timeout_s=_PATIENCE_S)
    left = done["left"]
    if as_json:
        print_json(done)
    else:
        click.echo(f"{number(done['replayed'], 'dead letter')} replayed")
        echo_lines(left_lines(left))
    unknown = bool(chosen["ids"]) and not done["replayed"] and not left
    if unknown:
        complain("no dead letter has that id" if len(chosen["ids"]) == 1 else "no dead letter has one of those ids")
    if left or unknown:
        ctx.exit(1)


@dead_letters.command()
@_choice
@click.option("--reason", metavar="TEXT", required=True, help="Why; the journal keeps it, with your uid.")
@_common
@click.pass_context
def purge(ctx: click.Context, /, reason: str, socket: str | None, *, as_json: bool, **chosen: Any) -> None:
    """Take them away for good. The journal keeps who, when, why, and the digest of each."""
    if not reason.strip():
        raise UsageError("--reason: say why: who reads the journal will want to know")
    body = _body(chosen, reason=reason)
    done = daemon(socket).post("/v1/dead-letters/purge", body=body, timeout_s=_PATIENCE_S)
    if as_json:
        print_json(done)
    else:
        click.echo(f"{number(done['purged'], 'dead letter')} purged")
    if chosen["ids"] and not done["purged"]:
        complain("no dead letter has such an id")
        ctx.exit(1)


def _body(chosen: dict[str, Any], **more: Any) -> bytes:
    """The choice as the daemon takes it. Raises UsageError for an empty one: nothing is moved by an oversight."""
    names = {"ids": "ids", "destination": "destination", "run": "run", "cause": "cause", "older": "older_than"}
    given = {name: chosen[key] for key, name in names.items() if chosen[key] not in (None, ())}
    if bool(given) is bool(chosen["every"]):
        raise UsageError("say which: ID…, --destination, --run, --cause, --older, or --all and nothing else")
    _check_ids(given.get("ids", ()))
    return msgspec.json.encode((given or {"all": True}) | more)


def _check_ids(ids: Any) -> None:
    for one in ids:
        try:
            UUID(one)
        except ValueError:
            raise UsageError(f"{one!r}: expected a record's id, as 'agentd dead-letters list' shows it") from None
