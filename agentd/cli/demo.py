"""`agentd demo`: see it work in a quarter of a minute, with nothing but the installed package.

A sandbox plays the platforms in this process; the daemon and the agents are children, as they would be in earnest. In the
middle the sandbox goes away for some seconds and comes back; then an agent asks for leave before it acts, and this process plays
the person who has to approve. At the end the three accounts are compared (`demo_report`), and
the exit code says whether all promises were kept.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, TypeVar

import click

from agentd.cli.options import config_option, json_option, seconds
from agentd.cli.terminal import complain, print_json
from agentd.errors import StateError, UsageError

if TYPE_CHECKING:
    from agentd.cli.demo_report import Outage, Result
    from agentd.cli.demo_screen import Scene, Screen
    from agentd.cli.demo_stage import Stage
    from agentd.cli.status import Status

ResultT = TypeVar("ResultT")

_STEPS = 13  # of a run, about: a list, ten looks, a file, an answer
_AROUND_S = 5.0  # of agents' work before the outage and after it
_BEFORE_OUTAGE = 12  # delivered records a run: enough to see it flow
_LEAST_OUTAGE_S = 0.5
_LOOK_S = 0.2  # between two looks at the daemon's figures
_DELIVERED_WITHIN_S = 60.0
_PERSON_THINKS_S = 2.0
_TERMINATED = 128 + signal.SIGTERM


@click.command()
@click.option("--keep", is_flag=True, help="Leave sandbox and daemon up at the end, to be looked at, until Ctrl-C.")
@click.option("--outage", "outage_s", metavar="DURATION", callback=seconds, default="4s", show_default=True)
@click.option("--runs", type=click.IntRange(1, 64), default=8, show_default=True, help="Runs of agents, all at once.")
@config_option
@json_option
@click.pass_context
def demo(ctx: click.Context, outage_s: float, runs: int, *, keep: bool, as_json: bool) -> None:
    """Watch agents, daemon and a platform that goes away and comes back; needs no account and no configuration."""
    if outage_s < _LEAST_OUTAGE_S:
        raise UsageError(f"--outage: expected {_LEAST_OUTAGE_S}s or more: below, nobody would see it")
    try:
        ok = asyncio.run(_perform(outage_s, runs, keep=keep, as_json=as_json))
    except asyncio.CancelledError:
        ctx.exit(_TERMINATED)
    ctx.exit(0 if ok else 1)


async def _perform(outage_s: float, runs: int, *, keep: bool, as_json: bool) -> bool:
    """Play, compare, print. Whatever happens, the children are ended; the folder stays if a promise was broken."""
    from agentd.cli.demo_report import document, ended, final_screen
    from agentd.cli.demo_screen import Scene, screen
    from agentd.cli.demo_stage import Stage

    _end_on_sigterm()
    async with AsyncExitStack() as exits:
        stage = Stage()
        exits.push_async_callback(stage.close)
        shown = screen(to_stderr=as_json)
        exits.callback(shown.close)
        play = Play(stage, Scene(), shown)
        try:
            result = await play.run(outage_s, runs)
        except StateError:  # its message names the log
            stage.keep_folder = True
            raise
        if not keep:
            result.checks.append(ended(await stage.stop_daemon()))
        report = document(result, play.scene.elapsed_s)
        shown.close()
        if as_json:
            print_json(report)
        else:
            click.echo("\n".join(final_screen(report)))
        stage.keep_folder = not report["ok"]
        if stage.keep_folder:
            complain(f"a promise was broken; configuration, log and records are left in {stage.folder}")
        if keep:
            await _leave_up(stage)
    return bool(report["ok"])


def _end_on_sigterm() -> None:
    """SIGTERM ends it as Ctrl-C does: by cancelling, so that the children are ended."""
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


async def _leave_up(stage: Stage) -> None:
    """Until Ctrl-C, which is a good end here."""
    click.echo(
        f"\nEverything is up until Ctrl-C. The platform's page: {stage.sandbox.url}/_sandbox/\n"
        f"The daemon:     agentd --config {stage.config} status\n"
        f"Another agent:  AGENTD_SOCKET={stage.daemon.socket} python my_agent.py\n"
        f"Its log:        {stage.log}",
        err=True,
    )
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()


class Play:
    """The acts. Every wait goes through `_until`, which looks at daemon and platform meanwhile and draws what it finds."""

    def __init__(self, stage: Stage, scene: Scene, shown: Screen) -> None:
        self.stage = stage
        self.scene = scene
        self._shown = shown
        self._clock = asyncio.get_running_loop().time
        self._seen: dict[str, float] = {}  # intents, and since when
        self._told: set[str] = set()

    async def run(self, outage_s: float, runs: int) -> Result:
        """From an empty folder to the last comparison."""
        from agentd.cli.demo_report import conclude

        scene, stage = self.scene, self.stage
        await stage.open()
        scene.platform = "up"
        scene.note(f"sandbox at {stage.sandbox.url}, daemon pid {stage.daemon_pid}, both in {stage.folder}")
        scene.note(f"{runs} agents begin to ask about Python's standard library")
        agents = asyncio.create_task(stage.run_agents(runs, (outage_s * 1.2 + _AROUND_S) / _STEPS))
        try:
            await self._until(lambda: scene.delivered >= runs * _BEFORE_OUTAGE or agents.done())
            outage = await self._outage(outage_s)
            told = await self._result_of(agents)
        finally:
            agents.cancel()
        scene.note("the agents are done")
        flushed = await self._result_of(asyncio.create_task(stage.flush(_DELIVERED_WITHIN_S)))
        scene.note("all is delivered" if flushed["flushed"] else f"not all is delivered: {flushed['reason']}")
        status = await self._look()
        return conclude(told, status, stage.sandbox, outage._replace(most_queued=scene.most_queued))

    async def _outage(self, outage_s: float) -> Outage:
        """Take the platform away, and bring it back after so many seconds."""
        from agentd.cli.demo_report import Outage

        began, before = self._clock(), (await self._look()).intake.accepted
        await self.stage.sandbox.down()
        self.scene.platform = "DOWN"
        self.scene.note("the platform is gone: connections are refused")
        await self._until(lambda: self._clock() >= began + outage_s)
        accepted = self.scene.accepted - before
        await self.stage.sandbox.up()
        self.scene.platform = "up"
        self.scene.note(f"the platform is back; {accepted} records were accepted meanwhile, {self.scene.queued} wait")
        return Outage(round(self._clock() - began, 1), accepted, 0)

    async def _result_of(self, task: asyncio.Task[ResultT]) -> ResultT:
        await self._until(task.done)
        return await task

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Until it holds. A daemon that dies meanwhile is an error here, and not an endless wait."""
        await self._look()
        while not condition():
            await asyncio.sleep(_LOOK_S)
            await self._look()

    def _attend(self, intents: list[dict[str, Any]]) -> None:
        """Be the person who decides on spending: look at it for a moment, then approve."""
        for intent in intents:
            seen_at = self._seen.setdefault(intent["id"], self._clock())
            if intent["status"] != "pending_approval":
                continue
            if intent["id"] not in self._told:
                self._told.add(intent["id"])
                self.scene.note(
                    f"AegisOS waits for a person: {intent['amount']:g} {intent['currency']} to {intent['merchant']}"
                )
            elif self._clock() - seen_at >= _PERSON_THINKS_S:
                self.stage.sandbox.act("aegis", intent["id"], "approve")
                self.scene.note("the person has approved")

    async def _look(self) -> Status:
        """Make the scene true, and draw it."""
        from agentd.cli.demo_report import summed

        status = await self.stage.status()
        everywhere = summed(status)
        self.scene.count(status.intake.accepted, everywhere.queued, everywhere.delivered, everywhere.dead)
        rows = self.stage.sandbox.runs()[::-1]
        self._attend([row for row in rows if row["face"] == "aegis"])
        self.scene.runs = [row for row in rows if row["face"] == "agentos"]
        for run in self.scene.runs:
            if run["id"] not in self.scene.questions:
                self.scene.questions[run["id"]] = self.stage.sandbox.run(run["id"], limit=0)["input"].get(
                    "question", ""
                )
        self._shown.draw(self.scene)
        return status
