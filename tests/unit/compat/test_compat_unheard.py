"""Questions that nobody listens to any more are joined by their repeats, and by nobody else."""

from __future__ import annotations

import asyncio

import pytest

from agentd.compat.unheard import _MAX_OPEN, Connection, Unheard
from agentd.errors import SpoolFull
from agentd.gate.owed import KEPT_S
from agentd.intake.protocol import HttpProtocol


class Caller:
    """Somebody at the other end of a connection: there until it hangs up, and then it may have read its answer or not."""

    def __init__(self):
        self.is_there = True
        self.has_read = False
        self.was_answered = False

    @property
    def missed(self):
        return not self.is_there and not self.has_read

    @property
    def heard(self):
        return self.was_answered and self.has_read

    def answered(self):
        self.was_answered = True


class Platform:
    """Answers when it is told to, and counts what it was asked."""

    def __init__(self):
        self.asked = 0
        self.answers = asyncio.Queue()

    async def ask(self):
        self.asked += 1
        answer = await self.answers.get()
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def now():
    return [0.0]


@pytest.fixture
def unheard(now):
    return Unheard(lambda: now[0])


async def asking(unheard, platform, caller, key="k"):
    """The caller's question, which is under way when this returns."""
    task = asyncio.create_task(unheard.ask(key, caller, platform.ask))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return task


async def test_who_hangs_up_and_comes_again_asks_once(unheard):
    """A retry layer that gave up waiting gets the answer to what it asked first, however often it comes."""
    platform, callers = Platform(), [Caller() for _ in range(16)]
    tasks = []
    for caller in callers:
        tasks.append(await asking(unheard, platform, caller))
        caller.is_there = False
    callers[-1].is_there = callers[-1].has_read = True
    platform.answers.put_nowait("allow")
    assert await asyncio.gather(*tasks) == ["allow"] * 16
    assert (platform.asked, len(unheard)) == (1, 1)
    platform.answers.put_nowait("another")
    assert await (await asking(unheard, platform, Caller())) == "another"
    assert (platform.asked, len(unheard)) == (2, 1)


async def test_an_answer_that_came_too_late_is_kept_for_its_caller(unheard, now):
    """Ten minutes long; after that the same bytes are a new question."""
    platform, gone = Platform(), Caller()
    platform.answers.put_nowait("first")
    task = await asking(unheard, platform, gone)
    gone.is_there = False
    await task
    now[0] = KEPT_S - 1
    assert await (await asking(unheard, platform, Caller())) == "first"
    platform.answers.put_nowait("second")
    task = await asking(unheard, platform, gone)
    await task
    now[0] += KEPT_S + 1
    platform.answers.put_nowait("third")
    assert await (await asking(unheard, platform, Caller())) == "third"
    assert platform.asked == 3


async def test_two_who_wait_at_the_same_time_ask_twice(unheard):
    """The same bytes are no repeat as long as somebody listens: two equal purchases are two."""
    platform = Platform()
    one, two = [await asking(unheard, platform, Caller()) for _ in "12"]
    platform.answers.put_nowait(1)
    platform.answers.put_nowait(2)
    assert (sorted([await one, await two]), platform.asked) == ([1, 2], 2)


async def test_what_was_heard_is_over(unheard):
    """The same question after its answer is another one; so is another caller's, or other bytes."""
    platform = Platform()
    for answer in ("a", "b"):
        platform.answers.put_nowait(answer)
        assert await (await asking(unheard, platform, Caller())) == answer
    gone = Caller()
    await asking(unheard, platform, gone)
    gone.is_there = False
    other = await asking(unheard, platform, Caller(), key="another")
    platform.answers.put_nowait("c")
    platform.answers.put_nowait("d")
    assert await other in "cd"
    assert platform.asked == 4


async def test_who_is_reset_after_the_answer_has_not_read_it(unheard):
    """It was written to a connection whose owner had stopped reading: he asks again, and is given what he was not."""
    platform, slow = Platform(), Caller()
    platform.answers.put_nowait("once")
    assert await (await asking(unheard, platform, slow)) == "once"
    slow.is_there = False
    assert await (await asking(unheard, platform, Caller())) == "once"
    assert platform.asked == 1


async def test_a_refusal_is_an_answer_like_any_other(unheard):
    """An error is owed to the caller as well, and is nobody's unlooked-at exception."""
    platform, gone = Platform(), Caller()
    task = await asking(unheard, platform, gone)
    gone.is_there = False
    platform.answers.put_nowait(ValueError("unknown"))
    with pytest.raises(ValueError, match="unknown"):
        await task
    with pytest.raises(ValueError, match="unknown"):
        await (await asking(unheard, platform, Caller()))
    assert platform.asked == 1


async def test_a_caller_that_is_cancelled_leaves_its_question_under_way(unheard):
    """The server may end a handler whose connection is gone: the question goes on."""
    platform, gone = Platform(), Caller()
    task = await asking(unheard, platform, gone)
    gone.is_there = False
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    platform.answers.put_nowait("kept")
    assert await (await asking(unheard, platform, Caller())) == "kept"
    assert platform.asked == 1


async def test_there_is_a_bound(unheard):
    """Above it answers go that nobody seems to miss, then new questions are turned away; what is owed is still given."""
    platform, gone = Platform(), Caller()
    platform.answers.put_nowait("read, most likely")
    await (await asking(unheard, platform, Caller(), key="idle"))
    gone.is_there = False
    tasks = [await asking(unheard, platform, gone, key=number) for number in range(_MAX_OPEN)]
    assert len(unheard) == _MAX_OPEN
    with pytest.raises(SpoolFull):
        await unheard.ask("one more", Caller(), platform.ask)
    joined = await asking(unheard, platform, Caller(), key=0)
    for _ in tasks:
        platform.answers.put_nowait("a")
    assert await joined == "a"
    await asyncio.gather(*tasks)
    assert platform.asked == _MAX_OPEN + 1


class Request:
    """A request on a connection of the daemon's, of which only the protocol's state is looked at."""

    def __init__(self):
        self.protocol = object.__new__(HttpProtocol)
        self.protocol.begun, self.protocol.was_reset, self.protocol.ended = 1, False, False
        self.protocol.transport = self
        self.closing = False

    def is_closing(self):
        return self.closing

    def close(self, *, reset):
        self.protocol.was_reset = reset
        self.protocol.transport = None


@pytest.mark.parametrize(
    ("before", "after", "missed", "heard"),
    [
        (None, None, False, False),
        (None, lambda request: request.close(reset=False), False, True),
        (None, lambda request: request.close(reset=True), True, False),
        (None, lambda request: setattr(request.protocol, "begun", 2), False, True),
        (lambda request: setattr(request.protocol, "ended", True), None, True, False),
        (lambda request: setattr(request, "closing", True), None, True, False),
        (lambda request: request.close(reset=False), None, True, False),
        (lambda request: request.close(reset=True), None, True, False),
    ],
)
def test_a_connection_says_whether_its_answer_was_read(before, after, missed, heard):
    """Closed before the answer, or reset after it: missed. Closed in peace or used again: heard. Open: nobody knows yet."""
    request = Request()
    connection = Connection(request)
    assert not connection.missed
    if before is not None:
        before(request)
    assert (connection.missed, connection.heard) == (before is not None, False)
    connection.answered()
    if after is not None:
        after(request)
    assert (connection.missed, connection.heard) == (missed, heard)
