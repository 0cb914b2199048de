"""One destination's courier: take → seal → encode → send → classify → settle, for many lanes at once.

Deciding is done elsewhere and without awaiting (`lanes`, `batcher`, `circuit`); the courier asks them, does what they say
and tells them what came of it. A batch is on disk as a seal before its first try, and what a try may have done is read in
that light ever after. The courier ends when its task is cancelled; what was under way then is repeated after the restart.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from agentd.ageing import Clocks
from agentd.crashpoints import Point, reached
from agentd.delivery import batcher
from agentd.delivery.accounts import Counts, about, death_of, size_of
from agentd.delivery.circuit import Circuit, Health
from agentd.delivery.lanes import Hold, Lane, Lanes
from agentd.delivery.ports import Outbox
from agentd.delivery.sealing import Sealer, Wait
from agentd.delivery.settings import Settings
from agentd.delivery.throttle import Throttle
from agentd.delivery.waits import next_step, standing
from agentd.exchange import Attempt, Lost, Platform, Request, Response, Transport, Unencodable, told_at
from agentd.outcomes import Cause, Delivered, Pause, Reject, Retry, Scope, Split, Unknown, Verdict
from agentd.queued import Death, Entry, Seal, Try
from agentd.records import RUN_ENDS

log = logging.getLogger("agentd.delivery")

# a lane that failed once or twice will go soon: to read its records from disk again would cost more (a third of the CPU in a
# load with 10 % of 503)
_PARK_AFTER_FAILURES = 3
_RESERVED_S = 30.0  # how long to look away from a destination whose dead letters have no room
_LETTERS_FULL = "the dead letters are full (dead_letters.max_bytes): replay or purge some"


class Courier:
    """See the module."""

    def __init__(
        self,
        settings: Settings,
        platform: Platform,
        outbox: Outbox,
        transport: Transport,
        *,
        clock: Callable[[], float] = time.monotonic,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
        age_us: Callable[[int], int] | None = None,
        share: Callable[[], float] = random.random,
    ) -> None:
        """`age_us` judges the stamps of whoever admitted the records (agentd.ageing); by `now_us` alone if it is left out."""
        self.settings = settings
        self.platform = platform
        self.circuit = Circuit(settings.backoff)
        self.lanes = Lanes(outbox.is_urgent)
        self.throttle = Throttle(settings.max_in_flight, settings.rate, clock)
        self.counts = Counts()
        self.flush_through = 0
        self.rounds = 0  # of the loop; `touch` has it go round, so that whoever asks gets an answer
        self._newest_only = frozenset(kind for kind, call in platform.calls.items() if call.newest_only)
        self._outbox = outbox
        self._age_us = age_us or Clocks(now_us, clock).age_us
        self._sealer = Sealer(settings, platform, outbox, self._age_us)
        self._transport = transport
        self._clock = clock
        self._now_us = now_us
        self._share = share
        self._observe: Callable[[str, float, int], None] = lambda _verdict, _seconds, _records: None
        self._wake = asyncio.Event()
        self._name = settings.name
        self._about = partial(about, settings.name)
        self._suspended = False
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Courier {self._name} {self.circuit.health} {self.lanes!r}>"

    # -- what the others tell it -------------------------------------------------------------------------------------

    def touch(self, lanes: set[str]) -> None:
        """These lanes have something new."""
        for key in lanes:
            if self.lanes.touch(key):
                self._outbox.unblock(key)
        self._wake.set()

    def observe(self, observer: Callable[[str, float, int], None]) -> None:
        """`observer(verdict's name, seconds, records)` hears of every request."""
        self._observe = observer

    def moving(self, deadline: float) -> bool:
        """Whether more may go out before `deadline` (monotonic): something is under way, or the destination takes it by then."""
        return bool(self.lanes.in_flight) or self.circuit.passing(deadline)

    def flush(self) -> None:
        """Send everything that is queued by now without waiting for batches to fill."""
        self.flush_through = max(self.flush_through, self._outbox.highest)
        self._release()

    def exchange(self, settings: Settings, transport: Transport, *, probes: bool = False) -> None:
        """From now on by these; what is under way ends as it began. With `probes` a destination that waits is tried at once."""
        if probes:
            self.circuit.try_now(self._clock(), anew=settings.keys != self.settings.keys)
        self.settings, self._transport = settings, transport
        self.circuit.backoff = settings.backoff
        self.throttle.follow(settings.max_in_flight, settings.rate)
        sealed = [seal for lane in self._outbox.sealed_lanes() for seal in self._outbox.seals(lane)]
        for fixed, seal in self._sealer.follow(settings, [(seal, self._outbox.members(seal)) for seal in sealed]):
            if not self.lanes.is_busy(seal.lane):
                _ = self._outbox.split(seal, [fixed])  # the same batch, with its bytes
        self._release()

    def take_over(self, lanes: Iterable[str]) -> None:
        """The queue is there already, with what another courier before has made of it."""
        for key in list(lanes):
            self._outbox.unblock(key)
            self.lanes.touch(key)

    def suspend(self) -> None:
        """Start no request until `resume`; what is under way ends as it does."""
        self._suspended = True

    def resume(self) -> None:
        """Go on, and look at every lane anew: what it waited for may be gone."""
        self._suspended = False
        self._release()
        self.touch({lane.key for lane in self.lanes})

    def _release(self, keys: list[str] | None = None) -> None:
        for lane in self.lanes.release(keys):
            self._outbox.unblock(lane)
        self._wake.set()

    def letters_left(self) -> None:
        """Dead letters have left their room: a pause for want of it is over."""
        if self.circuit.lift(_LETTERS_FULL):
            log.info("%s: the dead letters have room again", self._name, extra=self._about("resumed"))
            self._wake.set()

    def status(self) -> tuple[str, str | None, float | None]:
        """(state, reason, seconds until the next try) for people."""
        return standing(self.lanes, self.circuit, self._clock())

    # -- the loop ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Send until cancelled."""
        for key in self._outbox.sealed_lanes():
            self.lanes.touch(key)
        try:
            while True:
                self._wake.clear()
                self._step()
                self.rounds += 1
                await self._sleep()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _sleep(self) -> None:
        at = None if self._suspended else next_step(self.lanes, self.circuit, self.throttle, self._clock())
        if at is None:
            await self._wake.wait()
            return
        timeout = max(0.0, at - self._clock())
        try:
            async with asyncio.timeout(timeout):
                await self._wake.wait()
        except TimeoutError:
            return

    def _step(self) -> None:
        """Start whatever may start now."""
        if self._suspended:
            return
        now = self._clock()
        for key in self.lanes.expire(now):
            self._outbox.unblock(key)
        self._outbox.fill()
        looked_at = 0
        bound = len(self.lanes) + 1  # a lane that is put back is not looked at again in this step
        while looked_at < bound and self.circuit.room(now, self.lanes.in_flight, self.throttle.width):
            lane = self.lanes.next_ready() if self.throttle.ready_at(now) <= now else None
            if lane is None:
                break
            looked_at += 1
            self._look_at(lane, now)

    def _look_at(self, lane: Lane, now: float) -> None:
        self._discard_stale(lane.key)
        seals = self._outbox.seals(lane.key)
        if seals:
            members = self._outbox.members(seals[0])
            if members is not None:
                self._start(lane, seals[0], members)
            else:
                self._outbox.unblock(lane.key)
                self._outbox.fill()  # its listener touches the lane once they are in memory
            return
        plan = batcher.plan(
            self._outbox.peek(lane.key), self._sealer.call, self.settings.limits, self._age_us, self.flush_through
        )
        if plan.take:
            records = [entry for entry, _ in zip(self._outbox.peek(lane.key), range(plan.take), strict=False)]
            if records[0].kind in RUN_ENDS and self._outbox.tell_first(lane.key):
                return
            self._start(lane, None, records)
        elif plan.wait_us is not None:
            self.lanes.hold(lane, Hold.GATHERING, now + plan.wait_us / 1e6)
        else:
            self.lanes.forget(lane)

    def _discard_stale(self, lane: str) -> None:
        """Where only the newest counts, all of that kind before it ends here, also what was sealed and waits for its next try."""
        head = next(self._outbox.peek(lane), None) if self._newest_only else None
        if head is None or head.kind not in self._newest_only:
            return
        *older, _newest = [entry for entry in self._outbox.peek(lane) if entry.kind == head.kind]
        if older:
            _ = self._outbox.discard_stale(older)  # nobody has to wait: after a crash they are as stale as before

    def _start(self, lane: Lane, seal: Seal | None, entries: list[Entry]) -> None:
        self.lanes.begin(lane)
        lane.leave = self.throttle.begin()
        task = asyncio.create_task(self._deliver(lane, seal, entries), name=f"deliver {self._name} {lane.key}")
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._delivered(lane, done))

    def _delivered(self, lane: Lane, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self.lanes.finish(lane)
        self.throttle.end(lane.leave)
        if not task.cancelled() and (error := task.exception()) is not None:
            # a defect of ours: the lane rests, nothing is lost, and the log has the whole of it
            log.error("%s: %s: %r", self._name, lane.key, error, exc_info=error, extra=self._about("defect", lane))
            lane.failures += 1
            self._hold(lane, Hold.BACKOFF, self.settings.backoff.step(lane.failures + 4), f"defect: {error!r}")
        elif lane.hold is None:
            self.lanes.touch(lane.key)
        self._wake.set()

    # -- one batch ---------------------------------------------------------------------------------------------------

    async def _deliver(self, lane: Lane, seal: Seal | None, entries: list[Entry]) -> None:
        if seal is not None and not entries:
            await self._outbox.settle(seal, [], (), 0)  # all of it ended otherwise
            return
        try:
            if seal is None:  # what a sealed batch needed was settled before it was sealed
                alive = {entry.number for entry, _ in zip(self._outbox.peek(lane.key), entries, strict=False)}
                entries = [entry for entry in entries if entry.number in alive]  # a full queue may have shed some since
                if not entries:
                    return
                entries = self._sealer.resolve(entries)
            request = self._sealer.encode(entries, seal)
        except Wait as wait:
            self._hold(lane, wait.hold, wait.wait_s, wait.reason)
            return
        except Unencodable as error:
            await self._bury_one(seal, entries, error)
            return
        except Exception as error:
            if seal is not None or not await self._bury_defective(lane, entries, error):
                raise
            return
        if seal is None:
            seal = self._sealer.new_seal(entries, request)
            reached(Point.SEAL_MADE)
            await self._outbox.seal(seal)
            reached(Point.SEAL_STORED)
        await self._send(lane, seal, entries, request)

    async def _send(self, lane: Lane, seal: Seal, entries: list[Entry], request: Request) -> None:
        if seal.tried and not self._sealer.call(entries[0].kind).repeat:
            reason = "an earlier try may have been taken, and this call must not be repeated"
            await self._bury(lane, seal, entries, death_of(Cause.OUTCOME_UNKNOWN, reason, lane, seal, None))
            return
        keys = self.settings.keys
        headers = self.settings.headers(self.platform, seal.key, self._now_us() / 1e6, request.body)
        maybe_taken = seal.tried
        seal.tried = True
        begun = self._clock()
        lane.leave.asked = True
        reached(Point.SEND_BEGUN)
        answer = await self._transport.send(request, headers)
        reached(Point.SEND_ANSWERED)
        spent = self._clock() - begun
        attempt = Attempt(told_at(answer, self._now_us() / 1e6), maybe_taken, self._has_ended(entries[0]))
        verdict = self.platform.classify(self._sealer.call(entries[0].kind), entries, answer, attempt)
        if isinstance(answer, Lost) and not answer.sent:
            seal.tried = maybe_taken
        elif isinstance(verdict, Pause) or (isinstance(verdict, Retry) and verdict.scope is Scope.DESTINATION):
            seal.tried = maybe_taken  # turned away at the door: refused key, rate limit
        self.counts.requests += 1
        self.counts.latency_s += spent
        self.throttle.heard(lane.leave, verdict, answer, self.lanes.in_flight)
        self._observe(type(verdict).__name__.lower(), spent, len(entries))
        reached(Point.VERDICT_GIVEN)
        if isinstance(verdict, Pause) and keys != self.settings.keys:
            return  # it was refused under a key that was exchanged meanwhile: it goes at once, under the new one
        await self._apply(verdict, lane, seal, entries, answer)

    # -- verdicts ----------------------------------------------------------------------------------------------------

    async def _apply(
        self, verdict: Verdict, lane: Lane, seal: Seal, entries: list[Entry], answer: Response | Lost
    ) -> None:
        now = self._clock()
        if not isinstance(verdict, Delivered):
            status = answer.status if isinstance(answer, Response) else None
            lane.note_try(Try(self._now_us(), status, verdict.reason))
        match verdict:
            case Delivered():
                await self._settle(lane, seal, entries, verdict)
            case Retry():
                await self._retry(verdict, lane, seal, entries, now)
            case Pause():
                self._pause(verdict, lane, now)
            case Split() if len(entries) > 1:
                self.lanes.succeeded(lane)
                await self._split(seal, entries)
            case Split() | Reject():
                await self._reject(verdict.cause, verdict.reason, lane, seal, entries, answer)
            case Unknown():
                death = death_of(Cause.OUTCOME_UNKNOWN, verdict.reason, lane, seal, answer)
                await self._bury(lane, seal, entries, death)

    async def _split(self, seal: Seal, entries: list[Entry]) -> None:
        reached(Point.SPLIT_MADE)
        await self._outbox.split(seal, self._sealer.halves(seal, entries))
        reached(Point.SPLIT_STORED)

    async def _settle(self, lane: Lane, seal: Seal, entries: list[Entry], verdict: Delivered) -> None:
        tries = lane.failures + 1
        self.lanes.succeeded(lane)
        lane.history = []
        self.counts.records += len(entries)
        if self.circuit.delivered(self._clock()):
            log.info("%s: delivers again", self._name, extra=self._about("resumed", lane, seal))
            self.lanes.forgive()  # what failed with everything else is no poison
            self._release()
        reached(Point.SETTLE_BEGUN)
        future = self._outbox.settle(seal, entries, verdict.learned, tries)
        reached(Point.SETTLE_HANDED_OVER)
        if verdict.introduces:  # others may wait for these ids, and must not be sent before the ids are on disk
            await future
            reached(Point.LEARN_STORED)
            self._release(self.lanes.waiting_for_references())
        self._wake.set()

    async def _retry(self, verdict: Retry, lane: Lane, seal: Seal, entries: list[Entry], now: float) -> None:
        self.counts.retries += 1
        if verdict.scope is Scope.DESTINATION:  # says nothing of this batch: the lane's own failures are not counted
            if self.circuit.health is Health.OK:
                log.warning("%s: %s; waiting", self._name, verdict.reason, extra=self._about("waiting", lane, seal))
            self.circuit.wait(now, self._share(), verdict.reason, verdict.after_s)
            return  # the lane stays ready: the first one is the probe
        lane.failed(now, self.counts.requests, self.counts.retries)
        self.circuit.lane_failed(now, self._share(), verdict.reason, verdict.after_s)
        poisoned = lane.is_poisoned(now) and self.circuit.health is Health.OK
        if poisoned and len(entries) > 1:
            self.lanes.succeeded(lane)
            await self._split(seal, entries)
        elif poisoned:
            reason = f"failed {lane.own_failures} times alone: {verdict.reason}"
            await self._bury(lane, seal, entries, death_of(Cause.REJECTED, reason, lane, seal, None))
        else:
            wait_s = self.settings.backoff.wait(lane.failures, self._share(), verdict.after_s)
            self._hold(lane, Hold.BACKOFF, wait_s, verdict.reason)

    def _pause(self, verdict: Pause, lane: Lane, now: float) -> None:
        was = self.circuit.health
        if verdict.scope is Scope.DESTINATION:
            self.circuit.pause(now, verdict.reason, verdict.until_s)
        else:
            lane.failures += 1
            self._hold(lane, Hold.FORBIDDEN, self.settings.backoff.step(lane.failures + 4), verdict.reason)
            self.circuit.forbidden(now, lane.key, verdict.reason)
        if was is not Health.PAUSED and self.circuit.health is Health.PAUSED:
            told = self._about("paused", lane)
            log.error("%s: paused: %s; everything is kept", self._name, verdict.reason, extra=told)

    async def _reject(
        self, cause: Cause, reason: str, lane: Lane, seal: Seal, entries: list[Entry], answer: Response | Lost
    ) -> None:
        now = self._clock()
        if self._outbox.dead_room(size_of(entries)) and not self.circuit.refused(now, lane.key, reason):
            log.error("%s: paused: %s", self._name, self.circuit.reason, extra=self._about("paused", lane, seal))
            return
        if cause is Cause.REJECTED and self._has_ended(entries[0]):
            cause = Cause.RUN_ENDED
        await self._bury(lane, seal, entries, death_of(cause, reason, lane, seal, answer))

    def _has_ended(self, entry: Entry) -> bool:
        kind, _, local_id = entry.lane.partition(":")
        ref = self._outbox.reference(kind, local_id)
        return ref is not None and ref.ended

    async def _bury(self, lane: Lane, seal: Seal | None, entries: Sequence[Entry], death: Death) -> None:
        if not self._outbox.dead_room(size_of(entries)):
            self.circuit.pause(self._clock(), _LETTERS_FULL, _RESERVED_S)
            log.error("%s: paused: %s", self._name, _LETTERS_FULL, extra=self._about("paused", lane, seal))
            return
        told = {**self._about("buried", lane, seal, entries), "cause": str(death.cause)}
        log.warning("%s: %d records of %s are dead: %s", self._name, len(entries), lane.key, death.reason, extra=told)
        self.lanes.succeeded(lane)
        lane.history = []
        reached(Point.BURY_BEGUN)
        await self._outbox.bury(seal, entries, death)
        reached(Point.BURY_STORED)

    async def _bury_one(self, seal: Seal | None, entries: list[Entry], error: Unencodable) -> None:
        """The one record that can't be expressed, or all of the batch where an id will never be known."""
        lane = self.lanes.get(entries[0].lane)
        death = Death(error.cause, str(error))
        if error.index < 0:
            await self._bury(lane, seal, entries, death)
        else:
            await self._bury(lane, None, [entries[error.index]], death)

    async def _bury_defective(self, lane: Lane, entries: list[Entry], error: Exception) -> bool:
        """The adapter fell over a record that it should have refused: bury that one, so that it costs nothing else.

        False if none of the records alone makes it fall, or if it falls over everything: then the lane rests.
        """
        for entry, alone in self._sealer.defects(entries):
            reason = f"defect in the {self.platform.name} adapter: {alone!r}"
            if not self.circuit.refused(self._clock(), lane.key, reason):
                return False
            log.error("%s: %s", self._name, reason, exc_info=error, extra=self._about("defect", lane, None, [entry]))
            await self._bury(lane, None, [entry], Death(Cause.UNENCODABLE, reason))
            return True
        return False

    def _hold(self, lane: Lane, hold: Hold, wait_s: float, reason: str) -> None:
        self.lanes.hold(lane, hold, self._clock() + wait_s, reason)
        if hold is Hold.READING:
            self._outbox.fill()
        elif hold is not Hold.BACKOFF or lane.failures >= _PARK_AFTER_FAILURES:
            self._outbox.block(lane.key)
