"""`agentd flush`: wait until everything accepted so far is on disk, or delivered."""

from __future__ import annotations

from typing import Any

import click

from agentd.cli.options import config_option, daemon, json_option, seconds, socket_option
from agentd.cli.terminal import complain, print_json
from agentd.units import format_duration

_PATIENCE_S = 5.0  # beyond the timeout that the daemon was told, before it counts as silent


@click.command()
@click.option("--until", type=click.Choice(["stored", "delivered"]), default="delivered", show_default=True)
@click.option("--timeout", "timeout_s", metavar="DURATION", callback=seconds, default="10s", show_default=True)
@config_option
@socket_option
@json_option
@click.pass_context
def flush(ctx: click.Context, until: str, timeout_s: float, socket: str | None, *, as_json: bool) -> None:
    """Send what waits at once and wait for it; exit 1 if something is left."""
    asked = daemon(socket)
    answer = asked.post("/v1/flush", timeout_s=timeout_s + _PATIENCE_S, until=until, timeout=timeout_s)
    if as_json:
        print_json(answer)
    elif answer["flushed"]:
        click.echo(f"everything is {until} ({format_duration(answer['waited_s'])})")
    if not answer["flushed"]:
        complain(_left(answer, until))
        ctx.exit(1)


def _left(answer: dict[str, Any], until: str) -> str:
    counts = {name: count for name, count in answer.get("left", {}).items() if count}
    what = ", ".join(f"{count} at {name}" for name, count in counts.items()) or "something"
    reason = f": {answer['reason']}" if answer.get("reason") else ""
    return f"not {until} after {format_duration(answer['waited_s'])}: {what} left{reason}"
