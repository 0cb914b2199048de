"""From a lane's records to a sealed batch: what has to go before it, its bytes, and its seal (promise 4). No I/O.

A batch is encoded with what is known of its references, and sealed with the digest of its bytes; a repeat is encoded again and
held against that digest, so that whatever was learned since changes nothing of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile

from msgspec import structs

from agentd.delivery.lanes import Hold
from agentd.delivery.ports import Lookup
from agentd.delivery.settings import Settings
from agentd.exchange import Call, Context, Platform, Reference, Request, Unencodable
from agentd.identity import text_of
from agentd.outcomes import Cause
from agentd.queued import DEAD, GATE_LANE, KNOWN, Entry, Ref, Seal, is_anothers

log = logging.getLogger("agentd.delivery")

_FORMER_KEPT = 8  # settings that differ in what shapes a batch's bytes


class Wait(Exception):  # noqa: N818 - a turn of the loop, not an error
    """The batch can't go now."""

    def __init__(self, hold: Hold, wait_s: float, reason: str) -> None:
        super().__init__(reason)
        self.hold, self.wait_s, self.reason = hold, wait_s, reason


class Unnamed(Unencodable):
    """An id that the batch needs will never be known; `cause` says why, of all its records."""

    def __init__(self, ref: Ref) -> None:
        gate = ref.lane.startswith(GATE_LANE)
        self.cause = Cause.GATE_UNAVAILABLE if gate else Cause.INTRODUCER_DEAD
        why = "names a gate that no platform knows" if gate else "was refused for good"
        super().__init__(f"{ref.kind} {ref.local_id} {why}", -1)


class Planted(Unencodable):
    """A record that named an id before there was one, and the id came to be another's: whoever guesses a name gets nothing."""

    cause = Cause.FOREIGN_REFERENCE

    def __init__(self, ref: Ref, index: int) -> None:
        super().__init__(f"{ref.kind} {ref.local_id} was introduced by another after this had named it", index)


class Sealer:
    """Makes batches for one destination; what it remembers is how batches were made before the settings changed."""

    def __init__(self, settings: Settings, platform: Platform, outbox: Lookup, age_us: Callable[[int], int]) -> None:
        """`age_us` says how long ago a record was admitted."""
        self.settings = settings
        self.platform = platform
        self._outbox = outbox
        self._age_us = age_us
        self._former: list[Settings] = []  # that sealed batches may have been made by, the latest first

    def follow(
        self, settings: Settings, sealed: Sequence[tuple[Seal, Sequence[Entry] | None]]
    ) -> list[tuple[Seal, Seal]]:
        """Make batches by these from now on. `sealed` are those that there are, with their records as far as they are in memory.

        Returns those whose bytes a later start could not make again, each with its bytes and as it was. One whose records are
        not in memory can be made again as long as we live.
        """
        former, self.settings = self.settings, settings
        if not sealed:
            self._former = []
        elif former.dialect != settings.dialect:
            others = [one for one in self._former if one.dialect != former.dialect]
            self._former = [former, *others][:_FORMER_KEPT]
            bare = [(seal, entries) for seal, entries in sealed if seal.body is None and entries]
            return [(fixed, seal) for seal, entries in bare if (fixed := self._with_body(seal, entries)) is not None]
        return []

    def _with_body(self, seal: Seal, entries: Sequence[Entry]) -> Seal | None:
        request = self._as_sealed(self.call(entries[0].kind), entries, seal)
        return None if request is None else structs.replace(seal, body=request.body, path=request.path)

    def call(self, kind: str) -> Call:
        return self.platform.calls[kind]

    def resolve(self, entries: list[Entry]) -> list[Entry]:
        """The batch, or what has to go before it: the record that introduces an id it needs. Raises Wait, Unencodable."""
        for needed in self.platform.references(entries[0]):
            self._check_owner(needed, entries)
            introducer = self._missing(needed, entries[0])
            if introducer is not None:
                if introducer.lane != entries[0].lane:
                    raise Wait(Hold.REFERENCE, 1.0, f"waits for {needed.kind} {needed.local_id}")
                return [introducer]
        return entries

    def _missing(self, needed: Reference, entry: Entry) -> Entry | None:
        """None if the reference is settled one way or another, else the queued record that will settle it."""
        ref = self._outbox.reference(needed.kind, needed.local_id)
        if ref is None:
            left_us = self._left_us(entry)
            if left_us > 0:
                raise Wait(Hold.REFERENCE, left_us / 1e6, f"waits for {needed.kind} {needed.local_id} to be introduced")
            return None  # nobody introduced it: taken to be the platform's own
        if ref.state == KNOWN:
            return None
        if ref.state == DEAD:
            if needed.optional:
                return None
            raise Unnamed(ref)
        if ref.number == entry.number:
            return None
        if needed.optional and ref.number > entry.number and self._left_us(entry) <= 0:
            return None  # introduced after it: two that name one another would wait for ever
        lane = ref.lane or f"{needed.kind}:{needed.local_id}"
        introducer = self._outbox.find(lane, ref.number)
        if introducer is not None:
            return introducer
        if lane == entry.lane:  # far behind in this very lane: to wait for it would be to wait for ever
            self._outbox.bring(lane, ref.number)
            raise Wait(Hold.READING, 1.0, f"{needed.kind} {needed.local_id} is read from disk")
        raise Wait(Hold.REFERENCE, 1.0, f"waits for {needed.kind} {needed.local_id}")

    def _check_owner(self, needed: Reference, entries: Sequence[Entry]) -> None:
        """What came after the introducer was checked at admission; what came before could not be. Raises Planted."""
        ref = self._outbox.reference(needed.kind, needed.local_id)
        if ref is None:
            return
        for index, entry in enumerate(entries):
            if entry.number < ref.number and is_anothers(ref, entry.source):
                raise Planted(ref, index)

    def _left_us(self, entry: Entry) -> int:
        """How long the record may still wait for a reference."""
        return self.settings.reference_wait_us - self._age_us(entry.admitted_us)

    def _context(self) -> Context:
        settings = self.settings
        return Context(
            settings.agent_of, self._platform_id, settings.inject_id, settings.options, settings.stamp.members
        )

    def _platform_id(self, kind: str, local_id: str) -> str | None:
        ref = self._outbox.reference(kind, local_id)
        if ref is None:
            return local_id
        return ref.platform_id  # None for one that is dead or not named yet, which only an optional one can be here

    def _contexts(self) -> Iterator[Context]:
        """What may have been known and set when a batch was sealed.

        Ids as they are known now, ids taken as the platform's own, or none; and `inject_id` as it may have been. What bears a stamp
        is sealed with its body, since when there are stamps: without a body there was none.
        """
        for settings in (self.settings, *self._former):
            for inject_id in (settings.inject_id, not settings.inject_id):
                for resolve in (self._platform_id, lambda _kind, local_id: local_id, lambda _kind, _local_id: None):
                    yield Context(settings.agent_of, resolve, inject_id, settings.options)

    def encode(self, entries: Sequence[Entry], seal: Seal | None) -> Request:
        """The batch's request, as it was sealed if it was. Raises Unencodable."""
        call = self.call(entries[0].kind)
        if seal is None:
            return self.platform.encode(call, entries, self._context())
        if seal.body is not None:
            return Request(seal.path or call.path, seal.body)
        return self._encode_as_sealed(call, entries, seal)

    def _encode_as_sealed(self, call: Call, entries: Sequence[Entry], seal: Seal) -> Request:
        """The same bytes as at the first try, also where an id went as the platform's own that is known or dead by now."""
        request = self._as_sealed(call, entries, seal)
        if request is not None:
            return request
        log.error(
            "%s: batch %s encodes to other bytes than it was sealed with",
            self.settings.name,
            seal.key,
            extra={"action": "reseal", "destination": self.settings.name, "lane": seal.lane, "batch": seal.key},
        )
        return self.platform.encode(call, entries, self._context())

    def _as_sealed(self, call: Call, entries: Sequence[Entry], seal: Seal) -> Request | None:
        for context in self._contexts():
            with contextlib.suppress(Unencodable):
                request = self.platform.encode(call, entries, context)
                if hashlib.sha256(request.body).digest() == seal.sha256:
                    return request
        return None

    def defects(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, Exception]]:
        """The records over which the adapter falls that should have refused them, each with how."""
        for entry in entries:
            try:
                self.encode([entry], None)
            except Unencodable:
                continue
            except Exception as error:  # noqa: BLE001 - whatever a defect of ours raises
                yield entry, error

    def new_seal(self, entries: Sequence[Entry], request: Request) -> Seal:
        """The seal of a batch: its bounds, what lies between them that is not its own, its key and its digest."""
        call = self.call(entries[0].kind)
        first, last = entries[0].number, entries[-1].number
        taken = {entry.number for entry in entries}
        before = takewhile(lambda e: e.number <= last, self._outbox.peek(entries[0].lane))
        between = [e.number for e in before if e.number >= first and e.number not in taken]
        return Seal(
            seq=0,
            destination=self.settings.name,
            lane=entries[0].lane,
            first=first,
            last=last,
            count=len(entries),
            exceptions=tuple(between),
            key=key_of(entries),
            encoder=self.platform.encoder_version,
            sha256=hashlib.sha256(request.body).digest(),
            call=call.name,
            # a strict key takes no other bytes, and what is sent alone is small: kept, whatever the configuration becomes
            body=request.body if call.strict_key or not call.batch else None,
            path=request.path if call.strict_key or not call.batch else "",
        )

    def halves(self, seal: Seal, entries: list[Entry]) -> list[Seal]:
        """A refused batch's parts: new batches with keys of their own."""
        middle = len(entries) // 2
        parts = []
        for half in (entries[:middle], entries[middle:]):
            request = self.platform.encode(self.call(half[0].kind), half, self._context())
            part = self.new_seal(half, request)
            inside = tuple(n for n in seal.exceptions if part.first <= n <= part.last)
            part.exceptions = tuple(sorted({*part.exceptions, *inside}))
            parts.append(part)
        return parts


def key_of(entries: Sequence[Entry]) -> str:
    """The idempotency key: a record's own id for one record, so that a replay keeps it; a digest of the ids for several."""
    if len(entries) == 1:
        return text_of(entries[0].record_id)
    return hashlib.sha256(b"".join([entry.record_id for entry in entries])).hexdigest()[:32]
