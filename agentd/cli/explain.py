"""`agentd explain`: what would become of records, down to the requests; nothing is sent, opened or written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import IO, TYPE_CHECKING

import click
import msgspec

from agentd.cli.options import config_option, json_option, load_config
from agentd.cli.terminal import print_json
from agentd.errors import RecordError, UsageError, WireError
from agentd.outcomes import Cause
from agentd.records import Record
from agentd.units import format_duration
from agentd.wire import Hello, decode_message

if TYPE_CHECKING:
    from agentd.cli.rehearsal import Judged, Outlook, Planned

Item = Record | RecordError


@click.command()
@click.argument("file", metavar="FILE|-", type=click.File("rb"))
@config_option
@json_option
@click.pass_context
def explain(ctx: click.Context, file: IO[bytes], *, as_json: bool) -> None:
    r"""Show what would become of records: where each goes, and the requests. Sends nothing.

    \b
    agentd explain records.ndjson
    echo '{"kind": "run.start", "run_id": "r1"}' | agentd explain -

    FILE holds one record, an array, or a record a line. Batches are as if all were due at once and every call succeeded; an
    id that the platform has yet to name is shown as <run r1>, an id that agentd would make as a small number, a secret as ***.
    Exit 1 if anything would be refused or dead.
    """
    from agentd.cli.rehearsal import rehearse

    judged, outlooks = rehearse(read(file.read()), load_config().config)
    if as_json:
        print_json({"records": msgspec.to_builtins(judged), "destinations": msgspec.to_builtins(outlooks)})
    else:
        for line in report(judged, outlooks):
            click.echo(line)
    dead = [one for outlook in outlooks.values() for one in outlook.unsent if one.cause != Cause.STALE]
    if dead or any(one.refused for one in judged):
        ctx.exit(1)


def read(data: bytes) -> list[Item]:
    """The records of a file: one, an array, an envelope, or any of these a line. Raises UsageError for what is none of it."""
    lines = [(number, line) for number, line in enumerate(data.split(b"\n"), 1) if line.strip()]
    if not lines:
        raise UsageError("there are no records: expected one, an array of them, or one a line")
    try:
        return _items(data)
    except WireError as error:
        if len(lines) == 1 or not _is_json(lines[0][1]):
            raise UsageError(str(error)) from None
    return [item for number, line in lines for item in _of_line(number, line)]


def _items(data: bytes) -> list[Item]:
    message = decode_message(data.strip())
    if isinstance(message, Hello):
        raise WireError("a hello begins a connection, it is no record")
    return list(message.items)


def _of_line(number: int, line: bytes) -> list[Item]:
    try:
        return _items(line)
    except WireError as error:
        return [RecordError(f"line {number}: {error}")]


def _is_json(line: bytes) -> bool:
    try:
        msgspec.json.decode(line, type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def report(judged: Sequence[Judged], outlooks: dict[str, Outlook]) -> Iterator[str]:
    """The same for people: the records first, then the requests of each destination."""
    width = max(len(one.kind) for one in judged)
    for one in judged:
        yield f"record {one.record:<{len(str(len(judged)))}}  {one.kind:<{width}}  {_fate(one)}"
    for name, outlook in outlooks.items():
        yield ""
        count = len(outlook.requests)
        yield f"{name}: {count} request{'' if count == 1 else 's'} to {outlook.platform} at {outlook.base_url}"
        for request in outlook.requests:
            yield ""
            yield from _request(request)
        if outlook.unsent:
            yield ""
        for unsent in outlook.unsent:
            yield f"  record {unsent.record} is not sent: {unsent.cause}: {unsent.reason}"


def _fate(one: Judged) -> str:
    if one.refused:
        return f"refused: {one.refused}"
    redacted = ", ".join(f"{rule} {count}" for rule, count in sorted(one.redacted.items()))
    fate = "seen before: accepted, and stored once" if one.repeats else f"to {', '.join(one.to)}"
    return f"{fate} (redacted: {redacted})" if redacted else fate


def _request(request: Planned) -> Iterator[str]:
    plural = "" if len(request.records) == 1 else "s"
    after = f", after {format_duration(request.after_s)}" if request.after_s else ""
    yield f"  {request.method} {request.url}   (record{plural} {ranges(request.records)}{after})"
    for name, value in request.headers.items():
        yield f"    {name}: {value}"
    yield f"    {request.body}"


def ranges(numbers: Sequence[int]) -> str:
    """`2-4, 7`."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ", ".join("-".join(map(str, part)) for part in parts)
