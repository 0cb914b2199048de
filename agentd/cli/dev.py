"""`agentd dev -- COMMAND`: a sidecar whose platforms are the sandbox: no key, no account, one URL to look at.

Destinations that a configuration names keep their names and what they accept; their platforms are emulated all the same, and
every other platform is there as well. The page stays up after the command's end as long as somebody at a terminal wants it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from agentd.cli.options import config_option, load_config
from agentd.cli.sandbox import AGENT_ID, API_KEY
from agentd.errors import StateError
from agentd.sections import Batch, Config, Destination, Duration, Loaded, Secret, Size

if TYPE_CHECKING:
    from agentd.sandbox import Sandbox

_KEY_VARIABLE = "AGENTD_DEV_KEY"  # where our own configuration finds the sandbox's key, in no environment but ours
_KNOWS_ITS_AGENTS = frozenset({"agentos", "aegis", "decisionos"})  # of these platforms' agents the sandbox has one
_BATCH = Batch(max_interval=Duration(0.2))  # somebody watches


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@config_option
@click.option(
    "--port", type=click.IntRange(0, 65535), default=4400, show_default=True, help="Of the page; 0: a free one."
)
@click.option(
    "--fault", "faults", metavar="SPEC", multiple=True, help="Such as status=503,rate=0.1 (see agentd sandbox)."
)
@click.option("--set", "switches", metavar="SWITCH", multiple=True, help="Such as ascend.response_shape=B.")
@click.option("--stay/--no-stay", default=None, help="Keep the page up after COMMAND's end [default: at a terminal].")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def dev(
    ctx: click.Context,
    port: int,
    faults: tuple[str, ...],
    switches: tuple[str, ...],
    *,
    stay: bool | None,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND with agentd and every platform emulated on this machine."""
    from agentd.logs import set_up
    from agentd.sandbox import Sandbox, face_names

    env = {name: value for name, value in os.environ.items() if name != "AGENTD_SOCKET"}
    loaded = load_config()
    set_up("warning", loaded.config.log.format)
    there = Sandbox(face_names(), "127.0.0.1", port, switches=switches)
    there.faults.add(*faults)
    stays = sys.stdout.isatty() if stay is None else stay
    with tempfile.TemporaryDirectory(prefix="agentd-dev-") as place:
        ctx.exit(asyncio.run(_run(there, loaded, Path(place), command, env, stays=stays)))


async def _begin(there: Sandbox, port: int) -> None:
    try:
        await there.start()
    except OSError as error:
        raise StateError(f"127.0.0.1:{port}: {error.strerror}; say --port 0 for a free one") from error


async def _run(
    there: Sandbox, loaded: Loaded, place: Path, command: tuple[str, ...], env: Mapping[str, str], *, stays: bool
) -> int:
    from agentd.cli.beside import hide, run_beside
    from agentd.cli.child_env import child_env
    from agentd.cli.sidecar import TOKEN_VARIABLE, last_line, outcome_of, say, settings
    from agentd.daemon import Daemon

    await _begin(there, there.port)
    try:
        page = f"{there.url}/_sandbox/"
        sys.stderr.write(f"agentd dev: {page} shows what the platforms receive\n")
        config = emulated(loaded.config, there)
        ours = settings(config, socket=str(place / "agentd.sock"), folder=place / "state")
        token = secrets.token_urlsafe(32)
        secret = {_KEY_VARIABLE: API_KEY, TOKEN_VARIABLE: token}
        daemon = Daemon(msgspec.structs.replace(loaded, config=ours), {**env, **secret}, beside=True)
        hide()
        code = await run_beside(
            daemon, command, lambda: child_env(env, config, ours.listen.socket, daemon.http_url, token)
        )
        say(last_line(outcome_of(code, daemon), "the sandbox's daemon, which is gone"))
        if stays:
            sys.stderr.write(f"agentd dev: the command ended with {code}; {page} stays until Ctrl-C\n")
            await _interrupt()
    finally:
        await there.stop()
    return code


def emulated(config: Config, there: Sandbox) -> Config:
    """The configuration with the sandbox as every platform: the destinations that it names, and one for each platform that it does not."""
    from agentd.sandbox import face_names

    named = {name: _emulated(one, there) for name, one in config.destinations.items()}
    taken = {one.platform for one in named.values()}
    more = {
        face: _emulated(Destination(face), there) for face in face_names() if face not in taken and face not in named
    }
    everything = {**named, **more}
    spool = msgspec.structs.replace(config.spool, max_bytes=Size(max(int(config.spool.max_bytes), 2**30)))
    return msgspec.structs.replace(config, destinations=everything, spool=spool, batch=_BATCH)


def _emulated(destination: Destination, there: Sandbox) -> Destination:
    agents = {"*": AGENT_ID} if destination.platform in _KNOWS_ITS_AGENTS else None
    return msgspec.structs.replace(
        destination,
        base_url=there.url_for(destination.platform),
        api_key=Secret(env=_KEY_VARIABLE),
        signing_secret=None,
        agent_id=AGENT_ID if agents else destination.agent_id or "dev",
        agents=agents
        if destination.agents is None
        else dict.fromkeys(destination.agents, AGENT_ID)
        if agents
        else destination.agents,
        max_bytes=None,
    )


async def _interrupt() -> None:
    """Wait for SIGINT or SIGTERM."""
    import signal

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()
