"""Options that many verbs share, and what they resolve to: the configuration, or a running daemon's socket.

`--config` may stand before the verb or after it; the later one counts. Verbs that talk to a daemon find it the way an agent
does, so that inside a sidecar they reach the sidecar's daemon and not the host's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from agentd.paths import client_socket_paths
from agentd.units import parse_duration

if TYPE_CHECKING:
    from agentd.cli.ask import Daemon
    from agentd.sections import Loaded

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


class Given:
    """What the command line said beside the verb's own options; click hands it from the group to the verb."""

    def __init__(self) -> None:
        self.config: Path | None = None


def seconds(_: click.Context, __: click.Parameter, value: str) -> float:
    """An option's callback: `500ms`, `10s`, `2m`. Raises UsageError."""
    return parse_duration(float(value) if value.replace(".", "", 1).isdigit() else value)


def _remember_config(ctx: click.Context, _: click.Parameter, value: Path | None) -> None:
    given: Given = ctx.ensure_object(Given)
    if value is not None:
        given.config = value


config_option: Callable[[CommandT], CommandT] = click.option(
    "--config",
    metavar="PATH",
    type=click.Path(path_type=Path, readable=False),  # one that can't be read is a bad configuration, not a bad usage
    expose_value=False,
    callback=_remember_config,
    help="The configuration file (else AGENTD_CONFIG, ./agentd.toml, the user's, the host's).",
)
json_option: Callable[[CommandT], CommandT] = click.option(
    "--json", "as_json", is_flag=True, help="One JSON document on standard output."
)
socket_option: Callable[[CommandT], CommandT] = click.option(
    "--socket", metavar="PATH", help="The daemon's socket (else where an agent would look)."
)


def load_config() -> Loaded:
    """The configuration that this command line, the environment or the usual places name. Raises ConfigError."""
    return read_config(_given().config)


def named_config() -> Path | None:
    """What `--config` says."""
    return _given().config


def read_config(path: Path | None, before: Path | None = None) -> Loaded:
    """The configuration at `path`, else the one that was found `before`, or is found now; on any thread. Raises ConfigError."""
    from agentd import config

    return config.load(path, os.environ, None, _kinds_of, before=before)


def _kinds_of(platform: str) -> Iterable[str]:
    from agentd import platforms

    return platforms.load(platform).calls


def daemon(socket: str | None, timeout_s: float = 5.0) -> Daemon:
    """The daemon to ask. `socket` is the verb's `--socket`; whether anyone listens there shows when it is asked."""
    from agentd.cli.ask import Daemon

    return Daemon(socket or find_socket(_given().config, os.environ, os.getuid()), timeout_s)


def find_socket(given: Path | None, env: Mapping[str, str], uid: int) -> str:
    """`--config`'s socket, else `AGENTD_SOCKET`, else that of a configuration which is lying about, else the usual places.

    A configuration that this user may not read is the host's service's, not ours: its socket is in a usual place.
    """
    if given is None and env.get("AGENTD_SOCKET"):
        return env["AGENTD_SOCKET"]
    from agentd import config

    path = given or config.find(env)
    if path is not None and (given is not None or env.get("AGENTD_CONFIG") or os.access(path, os.R_OK)):
        socket = config.load(path, env, uid, _kinds_of).config.listen.socket
        if (
            socket != client_socket_paths(env, uid)[0]
        ):  # the file names one, and does not leave it to the place that depends on who asks
            return socket
    from agentd.client import find

    try:
        return find.find_socket(env)
    except find.NoDaemon as error:
        from agentd.cli.ask import NoDaemon

        raise NoDaemon(f"no daemon at {error}: start one with 'agentd run'") from error


def given_config() -> Path | None:
    """What `--config` names."""
    return _given().config


def _given() -> Given:
    return click.get_current_context().ensure_object(Given)
