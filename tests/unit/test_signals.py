"""Signals that come before, while and after somebody listens: in a process of its own, since they kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

PRELUDE = """
import asyncio, os, signal, time
from agentd.signals import catch_early, signals_to
def me(number): os.kill(os.getpid(), number)
def say(word): print(word, flush=True)
"""


def run(script):
    """Exit code and what was said."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout.split()


@pytest.mark.parametrize("number", ["SIGHUP", "SIGUSR1"])
def test_what_comes_during_the_start_is_kept(number):
    """It kills nobody, and whoever listens later hears of it, once."""
    script = f"""
    catch_early()
    me(signal.{number}); me(signal.{number})
    async def main():
        with signals_to(lambda: say("stop"), {{signal.{number}: lambda: say("heard")}}):
            await asyncio.sleep(0.01)
            me(signal.{number})
            await asyncio.sleep(0.01)
    asyncio.run(main())
    say("end")
    """
    assert run(script) == (0, ["heard", "heard", "end"])


def test_what_comes_behind_the_end_does_nothing():
    """A process that ends then is not killed while it tidies up, whichever signal it is."""
    script = """
    catch_early()
    async def main():
        with signals_to(lambda: say("stop"), {signal.SIGHUP: lambda: say("hup")}, ends=True):
            me(signal.SIGTERM)
            await asyncio.sleep(0.01)
    asyncio.run(main())
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        me(number)
    say("end")
    """
    assert run(script) == (0, ["stop", "end"])


def test_there_is_no_moment_at_which_a_hangup_kills():
    """A storm from outside, over start, loop and end."""
    script = """
    catch_early()
    say("ready")
    async def main():
        with signals_to(lambda: None, {signal.SIGHUP: lambda: None, signal.SIGUSR1: lambda: None}, ends=True):
            await asyncio.sleep(0.2)
    time.sleep(0.1)
    asyncio.run(main())
    time.sleep(0.1)
    os._exit(7)
    """
    process = subprocess.Popen([sys.executable, "-c", PRELUDE + textwrap.dedent(script)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    while process.poll() is None:
        os.kill(process.pid, signal.SIGHUP)
        os.kill(process.pid, signal.SIGUSR1)
        time.sleep(0)
    process.stdout.close()
    assert process.returncode == 7
