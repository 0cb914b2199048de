"""`agentd dead-letters`: the records that no platform will take, each with the reason."""

from __future__ import annotations

from typing import Any

import click

from agentd.cli.options import config_option, daemon, json_option, socket_option
from agentd.cli.terminal import print_json, table


@click.group("dead-letters")
def dead_letters() -> None:
    """The records that no platform will take."""


@dead_letters.command("list")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True)
@click.option("--destination", metavar="NAME")
@click.option("--run", metavar="RUN_ID")
@click.option("--cause", metavar="CAUSE", help="rejected, invalid, run_ended, …")
@config_option
@socket_option
@json_option
def list_(
    limit: int, destination: str | None, run: str | None, cause: str | None, socket: str | None, *, as_json: bool
) -> None:
    """List them, each with the platform's answer."""
    letters = daemon(socket).get("/v1/dead-letters", limit=limit, destination=destination, run=run, cause=cause)
    if as_json:
        print_json(letters)
        return
    for line in _lines(letters):
        click.echo(line)


def _lines(letters: list[dict[str, Any]]) -> list[str]:
    if not letters:
        return ["no dead letters"]
    rows = [
        (letter["id"], letter["destination"], letter["kind"], letter["lane"], letter["cause"], letter["died_at"][:19])
        for letter in letters
    ]
    head, *body = table(("id", "destination", "kind", "lane", "cause", "died"), rows, left=6)
    lines = [head]
    for row, letter in zip(body, letters, strict=True):
        lines += [row, f"    {_reason(letter)}"]
    return lines


def _reason(letter: dict[str, Any]) -> str:
    tries = letter.get("tries", 1)
    return f"{letter.get('reason') or ''} (after {tries} {'try' if tries == 1 else 'tries'})".strip()
