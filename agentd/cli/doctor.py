"""`agentd doctor`: looks for the usual causes of trouble, and says what to do. Writes nothing and sends no record."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import click

from agentd.cli.options import config_option, find_socket, given_config, json_option, load_config, socket_option
from agentd.cli.terminal import echo_lines, paint, print_json
from agentd.errors import AgentdError, ConfigError
from agentd.paths import client_socket_paths

if TYPE_CHECKING:
    from agentd.doctor.examination import Answered, Given
    from agentd.doctor.findings import Finding
    from agentd.sections import Loaded

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}
_ANSWER_S = 5.0


@click.command()
@click.option("--offline", is_flag=True, help="Ask no platform: look at this host alone.")
@config_option
@socket_option
@json_option
@click.pass_context
def doctor(ctx: click.Context, socket: str | None, *, offline: bool, as_json: bool) -> None:
    """Find what is wrong, why, and what to do: host, daemon, the way to each platform. Exit 1 if something fails.

    Works without a daemon and without a configuration.
    """
    findings = examined(socket, online=not offline)
    if as_json:
        from msgspec import to_builtins

        print_json(to_builtins(findings))
    else:
        echo_lines(screen(findings))
    ctx.exit(int(any(finding.level == "fail" for finding in findings)))


def examined(socket: str | None, *, online: bool = True) -> list[Finding]:
    """The findings of this host, by this command line's configuration and socket."""
    from agentd.doctor.examination import examine

    given = given_by(socket)
    return examine(given, lambda: _ask(given.socket), os.environ, online=online)


def given_by(socket: str | None) -> Given:
    """What the command line, the environment and the usual places say."""
    from agentd.doctor.examination import Given

    try:
        loaded = load_config()
    except ConfigError as error:
        unreadable = "Permission denied" in str(error)
        return Given(_socket(socket), None, str(error), unreadable, _named_by(socket))
    return Given(_socket(socket), loaded, "", named_by=_named_by(socket), faults=tuple(_faults(loaded)))


def _socket(socket: str | None) -> str:
    """Where a daemon would be, also if none is."""
    if socket is not None:
        return socket
    try:
        return find_socket(given_config(), os.environ, os.getuid())
    except AgentdError:
        return client_socket_paths(os.environ, os.getuid())[-1]


def _named_by(socket: str | None) -> str:
    if socket is not None:
        return "--socket"
    return "AGENTD_SOCKET" if os.environ.get("AGENTD_SOCKET") and given_config() is None else ""


def _faults(loaded: Loaded) -> Iterator[str]:
    from agentd.cli.check import examine as check

    for level, about, message in check(loaded, os.environ, os.getuid()):
        if level == "error" and about != "[destinations]":
            yield f"{about}: {message}"


def _ask(socket: str) -> Answered:
    from agentd.cli.ask import Daemon
    from agentd.doctor.examination import Answered

    there = Daemon(socket, _ANSWER_S)
    try:
        health = there.ask("GET", "/healthz").document
        ready = there.ask("GET", "/readyz").document
        status = dict(there.get("/v1/status"))
    except AgentdError as error:
        return Answered(error=str(error))
    return Answered(status, "", health.get("reason", ""), ready.get("reason", ""))


def screen(findings: Iterable[Finding]) -> Iterator[str]:
    """The lines for people: what fails last, where it is seen first."""
    known = list(findings)
    width = max((len(finding.check) for finding in known), default=0)
    for finding in known:
        yield f"{paint(f'{finding.level:<4}', _COLOURS[finding.level])}  {finding.check:<{width}}  {finding.what}"
        indent = " " * (width + 8)
        if finding.cause:
            yield f"{indent}because: {finding.cause}"
        if finding.cure:
            yield f"{indent}do:      {finding.cure}"
    counts = {level: sum(finding.level == level for finding in known) for level in ("fail", "warn", "ok")}
    yield ""
    if counts["fail"]:
        yield paint(f"{counts['fail']} to mend", "red") + f", {counts['warn']} to look at, {counts['ok']} fine"
    elif counts["warn"]:
        yield paint(f"nothing fails, {counts['warn']} to look at", "yellow") + f", {counts['ok']} fine"
    else:
        yield paint("all is well", "green") + f": {counts['ok']} looked at"
