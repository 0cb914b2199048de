"""`agentd reload`: have the daemon read its configuration again, and say what changed."""

from __future__ import annotations

from typing import Any

import click

from agentd.cli.ask import Refused
from agentd.cli.options import config_option, daemon, json_option, socket_option
from agentd.cli.terminal import print_json
from agentd.errors import ConfigError

_BAD = 422
_PATIENCE_S = 90.0  # a destination that was removed and comes back has its last answer first


@click.command()
@config_option
@socket_option
@json_option
def reload(socket: str | None, *, as_json: bool) -> None:
    """Have the daemon read its configuration again. A faulty one changes nothing: exit 78 and the reason."""
    try:
        answer = daemon(socket).post("/-/reload", timeout_s=_PATIENCE_S)
    except Refused as refused:
        if refused.status == _BAD:
            raise ConfigError(str(refused)) from None
        raise
    if as_json:
        print_json(answer)
        return
    for line in lines_of(answer):
        click.echo(line)


def lines_of(answer: dict[str, Any]) -> list[str]:
    """What changed, a line each."""
    lines = [f"{name}: added" + _kept(count, "taken up") for name, count in answer["added"].items()]
    lines += [f"{name}: removed" + _kept(count, "kept") for name, count in answer["removed"].items()]
    lines += [f"{name}: {', '.join(keys)}" for name, keys in answer["changed"].items()]
    lines += [f"{key}" for key in answer["settings"]]
    return lines or ["read again; nothing has changed"]


def _kept(count: int, what: str) -> str:
    return f", {count} records {what}" if count else ""
