"""`agentd sandbox`: governance platforms on this machine, in the foreground, until SIGINT or SIGTERM."""

from __future__ import annotations

import asyncio
import signal
import uuid
from typing import TYPE_CHECKING

import click

from agentd.cli.options import config_option, json_option
from agentd.cli.terminal import print_json
from agentd.errors import StateError

if TYPE_CHECKING:
    from agentd.sandbox import Sandbox

# platform → the variables from which agentd (and the platform's own SDK) takes base URL, key and agent. Decision OS and
# decide.fyi have none for the URL: a key alone would lead to the real platform, so that a file has to name the sandbox.
_VARIABLES = {
    "agentos": ("AGENTOS_BASE_URL", "AGENTOS_API_KEY", "AGENTOS_AGENT_ID"),
    "ascend": ("ASCEND_API_URL", "ASCEND_API_KEY", "ASCEND_AGENT_ID"),
    "aegis": ("AEGIS_API_URL", "AEGIS_API_KEY", "AEGIS_AGENT_ID"),
}
API_KEY = "sandbox"  # any will do: the sandbox asks for one, not for a certain one
AGENT_ID = str(uuid.uuid5(uuid.NAMESPACE_URL, "agentd:sandbox"))  # the same each time, so that it can be written down


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=4400, show_default=True, help="0 takes a free one.")
@click.option("--fault", "faults", metavar="SPEC", multiple=True, help="Such as status=503,rate=0.1 or cut,count=3.")
@click.option("--set", "switches", metavar="SWITCH", multiple=True, help="Such as agentos.late_events=409.")
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Of the die that the faults' rates are thrown with."
)
@config_option
@json_option
def sandbox(
    host: str, port: int, faults: tuple[str, ...], switches: tuple[str, ...], seed: int, *, as_json: bool
) -> None:
    """Be every platform that agentd knows, with faults on demand and a page to look at."""
    from agentd.sandbox import Sandbox, face_names

    there = Sandbox(face_names(), host, port, switches=switches, seed=seed)
    there.faults.add(*faults)
    try:
        asyncio.run(_serve(there, face_names(), as_json=as_json))
    except OSError as error:
        raise StateError(f"{host}:{port}: {error.strerror}") from error


async def _serve(there: Sandbox, faces: tuple[str, ...], *, as_json: bool) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with there:
        _announce(there, faces, as_json=as_json)
        await stop.wait()


def _announce(there: Sandbox, faces: tuple[str, ...], *, as_json: bool) -> None:
    settings = environment(there, faces)
    if as_json:
        print_json({"url": there.url, "page": f"{there.url}/_sandbox/", "environment": settings})
        return
    click.echo(
        f"agentd sandbox ({', '.join(faces)}): {there.url}/_sandbox/ shows what it has received; Ctrl-C ends it\n"
    )
    for name, value in settings.items():
        click.echo(f"export {name}={value}")


def environment(there: Sandbox, faces: tuple[str, ...]) -> dict[str, str]:
    """The variables that make agentd, or a platform's own SDK, speak to this sandbox."""
    settings: dict[str, str] = {}
    for face in faces:
        values = (there.url_for(face), API_KEY, AGENT_ID)
        settings |= dict(zip(_VARIABLES.get(face, ()), values, strict=False))
    return settings
