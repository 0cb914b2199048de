"""`agentd emit`: records from a shell, one built from `key=value` or many read as NDJSON.

The daemon judges them; only what it could not answer helpfully is judged here (a kind's missing fields, a line that is no JSON).
"""

from __future__ import annotations

import difflib
import io
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import click
import msgspec

from agentd.cli.ask import Daemon, Refused
from agentd.cli.options import config_option, daemon, json_option, socket_option
from agentd.cli.terminal import complain, print_json
from agentd.errors import AgentdError, StateError, UsageError
from agentd.records import KINDS, TYPES

_READ_BYTES = 2**18  # a pipe's lines go out as they come, a file's in messages of about this size
_MAX_LINE_BYTES = 2**24 - 1


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("kind", metavar="KIND|-")
@click.argument("pairs", metavar="[KEY=VALUE]...", nargs=-1, type=click.UNPROCESSED)
@config_option
@socket_option
@json_option
@click.pass_context
def emit(ctx: click.Context, kind: str, pairs: tuple[str, ...], socket: str | None, *, as_json: bool) -> None:
    r"""Hand one record to the daemon, or with '-' every line of standard input.

    \b
    agentd emit event run_id=r1 type=step.completed payload.step=fetch payload.rows=42
    agentd emit run.start run_id=r1 input:='{"invoice": "INV-001"}'
    agentd emit - < records.ndjson

    A value is JSON where it is JSON, else text; key:=value insists on JSON. A dot in a key nests. It returns once the
    record is on disk: exit 0 if everything was taken, 1 if anything was refused.
    """
    asked = daemon(socket)
    if kind == "-":
        if pairs:
            raise UsageError("with '-' the records come from standard input; say no key=value beside it")
        answer = send_lines(asked, typing.cast("io.BufferedReader", sys.stdin.buffer))
    else:
        answer = send(asked, msgspec.json.encode(build(kind, pairs)))
    for refused in answer.rejected:
        error = refused["error"] + (f" at {', '.join(refused['to'])}, taken elsewhere" if refused.get("to") else "")
        complain(f"line {refused['line']}: {error}" if "line" in refused else error)
    if as_json:
        print_json(answer.document())
    elif answer.accepted or not answer.rejected:
        click.echo(f"accepted {answer.accepted}")
    if answer.rejected:
        ctx.exit(1)


class Taken(NamedTuple):
    """What became of the records: how many the daemon has on disk, and why the others were refused."""

    accepted: int
    rejected: list[dict[str, Any]]

    def document(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {"accepted": self.accepted} | ({"rejected": self.rejected} if self.rejected else {})


def build(kind: str, pairs: Sequence[str]) -> dict[str, Any]:
    """The record that the command line describes. Raises UsageError."""
    texts = _text_fields(kind)
    record: dict[str, Any] = {"kind": kind}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        path = key.removesuffix(":").split(".")
        if not equals or not all(path):
            raise UsageError(f"expected key=value, got {pair!r}")
        if path == ["kind"]:
            raise UsageError("the kind is the first word; say no kind= beside it")
        plain = key.removesuffix(":") in texts and not key.endswith(":")
        _put(record, path, value if plain else _value(value, key, must_be_json=key.endswith(":")))
    _check_required(kind, record)
    return record


def _put(record: dict[str, Any], path: list[str], value: Any) -> None:
    target = record
    for depth, name in enumerate(path[:-1], 1):
        target = target.setdefault(name, {})
        if not isinstance(target, dict):
            raise UsageError(f"{'.'.join(path[:depth])} is a value already, {'.'.join(path)} can't be inside it")
    if path[-1] in target:
        raise UsageError(f"{'.'.join(path)} is given twice")
    target[path[-1]] = value


def _value(text: str, key: str, *, must_be_json: bool) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError) as error:
        if must_be_json:
            raise UsageError(f"{key}=: not JSON: {error}") from None
        return text


def _text_fields(kind: str) -> frozenset[str]:
    """The fields that hold text and nothing else: `run_id=42` and `error_message=404` mean what they say."""
    if kind not in TYPES:
        return frozenset()
    hints = typing.get_type_hints(TYPES[kind])
    return frozenset(name for name, hint in hints.items() if _is_text(hint))


def _is_text(hint: Any) -> bool:
    if typing.get_origin(hint) in {typing.Union, types.UnionType}:
        return all(_is_text(part) for part in typing.get_args(hint) if part is not type(None))
    return (
        hint is str
        or typing.get_origin(hint) is typing.Literal
        or getattr(hint, "__name__", "") in {"datetime", "UUID"}
    )


def _check_required(kind: str, record: dict[str, Any]) -> None:
    """All that is missing at once. A kind that only a newer daemon may know is left to the daemon, unless it is a slip."""
    if kind not in TYPES:
        close = difflib.get_close_matches(kind, KINDS, n=1)
        if close or "." not in kind:
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(KINDS)}"
            raise UsageError(f"{kind!r} is no kind of record; {hint}")
        return
    missing = [f.name for f in msgspec.structs.fields(TYPES[kind]) if f.required and f.name not in record]
    if missing:
        raise UsageError(f"{kind} needs {' and '.join(f'{name}=…' for name in missing)}")


def send(asked: Daemon, body: bytes) -> Taken:
    """One record or an array of them, and what the daemon says of each. Raises what `ask` raises."""
    try:
        document = asked.ask("POST", "/v1/records", body).document
    except Refused as refused:
        document = refused.document
        if not isinstance(document, dict) or "rejected" not in document:  # the message was refused, not its records
            raise
    return Taken(document["accepted"], document.get("rejected", []))


def send_lines(asked: Daemon, stream: io.BufferedIOBase) -> Taken:
    """Every line of NDJSON; refusals name the line. What is at hand goes out together, so that a pipe is not held back."""
    accepted = 0
    rejected: list[dict[str, Any]] = []
    for batch in batches(stream):
        sound: list[tuple[int, bytes]] = []
        for number, line in batch:
            try:
                msgspec.json.decode(line)
                sound.append((number, line))
            except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
                rejected.append({"line": number, "error": f"not JSON: {error}"})
        if sound:
            try:
                taken = send(asked, b"[" + b",".join(line for _, line in sound) + b"]")
            except AgentdError as error:
                raise StateError(f"from line {sound[0][0]} on: {error} ({accepted} accepted before)") from error
            accepted += taken.accepted
            rejected += [_at_line(sound[r["index"]][0], r) for r in taken.rejected]
    return Taken(accepted, rejected)


def _at_line(number: int, refused: dict[str, Any]) -> dict[str, Any]:
    return {"line": number} | {name: value for name, value in refused.items() if name != "index"}


def batches(stream: io.BufferedIOBase) -> Iterator[list[tuple[int, bytes]]]:
    """Numbered lines without the empty ones, as many at a time as one read brought. Raises UsageError for an endless one."""
    number = 0
    rest = b""
    while chunk := stream.read1(_READ_BYTES):  # what there is, without waiting for a full buffer
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > _MAX_LINE_BYTES:
            raise UsageError(f"line {number + len(lines) + 1}: longer than 16 MiB")
        yield [(number + i, line) for i, line in enumerate(lines, 1) if line.strip()]
        number += len(lines)
    if rest.strip():
        yield [(number + 1, rest)]
