"""`agentd run`: the daemon, in the foreground, until SIGTERM."""

from __future__ import annotations

import click
import msgspec

from agentd.cli.options import config_option, load_config


@click.command()
@config_option
@click.option("--socket", metavar="PATH", help="Listen here instead of where the configuration says.")
@click.option("--state", metavar="DIR", help="Keep records here instead of where the configuration says.")
@click.pass_context
def run(ctx: click.Context, socket: str | None, state: str | None) -> None:
    """Run the daemon in the foreground until SIGTERM."""
    loaded = load_config()
    settings = loaded.config
    if socket:
        settings = msgspec.structs.replace(settings, listen=msgspec.structs.replace(settings.listen, socket=socket))
    if state:
        settings = msgspec.structs.replace(settings, spool=msgspec.structs.replace(settings.spool, directory=state))
    from agentd.daemon import serve

    ctx.exit(serve(msgspec.structs.replace(loaded, config=settings)))
