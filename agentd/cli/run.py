"""`agentd run`: the daemon, in the foreground, until SIGTERM."""

from __future__ import annotations

import faulthandler
import os
from functools import partial
from pathlib import Path

import click
import msgspec

from agentd.cli.options import config_option, load_config, named_config, read_config
from agentd.errors import ConfigError
from agentd.paths import socket_path
from agentd.sections import Loaded
from agentd.signals import catch_early
from agentd.systemd import inherit


@click.command()
@config_option
@click.option("--socket", metavar="PATH", help="Listen here instead of where the configuration says.")
@click.option("--state", metavar="DIR", help="Keep records here instead of where the configuration says.")
@click.pass_context
def run(ctx: click.Context, socket: str | None, state: str | None) -> None:
    """Run the daemon in the foreground until SIGTERM; SIGHUP has it read the configuration again."""
    catch_early()
    faulthandler.enable(2)  # the watchdog ends a daemon that hangs by SIGABRT: the log says where every thread stood
    inherited = inherit(os.environ)
    settled = partial(_with, socket=socket, state=state, passed=inherited.path)
    loaded = settled(load_config())
    named, found = named_config(), None if loaded.path is None else Path(loaded.path)
    from agentd.control.service import Service
    from agentd.daemon import serve

    ctx.exit(serve(loaded, os.environ, lambda: settled(read_config(named, found)), Service(inherited)))


def _with(loaded: Loaded, *, socket: str | None, state: str | None, passed: str | None) -> Loaded:
    """The configuration with what the command line says instead, and where the service manager listens. Raises ConfigError."""
    replace = msgspec.structs.replace
    settings = loaded.config
    if socket:
        settings = replace(settings, listen=replace(settings.listen, socket=socket))
    if passed:
        if settings.listen.socket not in (passed, socket_path(os.environ, os.getuid())):
            raise ConfigError(
                f"[listen] socket: {settings.listen.socket}, and systemd listens at {passed} for agentd: leave it out, or "
                "change ListenStream= in agentd.socket"
            )
        settings = replace(settings, listen=replace(settings.listen, socket=passed))
    if state:
        settings = replace(settings, spool=replace(settings.spool, directory=state))
    return replace(loaded, config=settings)
