"""What the daemon would do with records: admission, routing, batching and encoding by its own code, on a spool that is no spool.

Nothing is opened, sent or written, and no secret is read: a stand-in takes its place. Every call is taken to succeed; the ids
that the platform would name by it are shown as `<run run-1>`. Time passes only where nothing else is left to do: then the wait
for references is over, and ids that nobody introduced go out as the platform's own. Used by `agentd explain`.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from uuid import UUID

import msgspec
from msgspec import Struct, field

from agentd.ageing import Clocks
from agentd.delivery import batcher
from agentd.delivery.sealing import Sealer, Wait, key_of
from agentd.errors import RecordError
from agentd.exchange import Request, Sending, Unencodable
from agentd.http import HEADERS
from agentd.intake import Peer
from agentd.intake.admit import Admission
from agentd.intake.admit import Limits as AdmitLimits
from agentd.intake.dedupe import Window
from agentd.intake.routing import Table
from agentd.outcomes import Cause
from agentd.queued import DEAD, KNOWN, Entry, Ref, made_up
from agentd.records import INTRODUCES, LossClass, Record, kind_of
from agentd.redact.build import build_redactor
from agentd.sections import Config, Redact, Secret
from agentd.targets import Target, targets_of

MASK = "***"
_VARIABLE = "SECRET"
_ALL = 2**62  # as if somebody waited for every record: nothing waits for its batch to fill


class Judged(Struct, omit_defaults=True):
    """What admission says of one record."""

    record: int  # its place, from 1
    kind: str = ""
    to: list[str] = []
    refused: str = ""
    repeats: bool = False  # its id has been seen: accepted again, stored once
    redacted: dict[str, int] = {}  # the redaction rules that hit, and how often


class Planned(Struct):
    """One request as it would go out."""

    method: str
    url: str
    headers: dict[str, str]
    body: str
    records: list[int]
    after_s: float = 0.0  # not before this time, since an id waited for whoever introduces it


class Unsent(Struct):
    """A record that would end otherwise."""

    record: int
    cause: str
    reason: str


class Outlook(Struct):
    """One destination's."""

    platform: str
    base_url: str
    requests: list[Planned] = field(default_factory=list)
    unsent: list[Unsent] = field(default_factory=list)


class Stage:
    """In the spool's place: what is queued, by destination and lane, and who introduced what. It is never full."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._refs: dict[tuple[str, str], dict[str, Ref]] = {}  # (kind, id) → destination → reference
        self._numbers: Counter[str] = Counter()
        self._places: dict[tuple[str, int], int] = {}
        self.place = 0  # of the record that is being admitted

    def room_for(self, destination: str, size: int, loss: LossClass, uid: int | None = None) -> bool:  # noqa: ARG002 - admission's protocol
        return True

    def quota(self, destination: str) -> int:
        return self._config.quota_of(destination)

    def number(self, destination: str) -> int:
        self._numbers[destination] += 1
        number = self._numbers[destination]
        self._places[destination, number] = self.place
        return number

    def place_of(self, destination: str, entry: Entry) -> int:
        """Where the record stood in what was read."""
        return self._places[destination, entry.number]

    def owners(self, kind: str, local_id: str) -> Sequence[Ref]:
        return list(self._refs.get((kind, local_id), {}).values())

    def introduce(self, ref: Ref) -> Ref:
        return self._refs.setdefault((ref.kind, ref.local_id), {}).setdefault(ref.destination, ref)

    def reference(self, destination: str, kind: str, local_id: str) -> Ref | None:
        return self._refs.get((kind, local_id), {}).get(destination) or made_up(destination, kind, local_id)


class Queue:
    """One destination's records in order, as the sealer looks them up."""

    def __init__(self, name: str, stage: Stage, entries: Sequence[Entry]) -> None:
        self._name = name
        self._stage = stage
        self.lanes: dict[str, list[Entry]] = {}
        for entry in entries:
            self.lanes.setdefault(entry.lane, []).append(entry)

    def peek(self, lane: str) -> Iterator[Entry]:
        return iter(self.lanes.get(lane, ()))

    def find(self, lane: str, number: int) -> Entry | None:
        return next((entry for entry in self.peek(lane) if entry.number == number), None)

    def bring(self, lane: str, number: int) -> None:
        """All of it is in memory."""

    def reference(self, kind: str, local_id: str) -> Ref | None:
        return self._stage.reference(self._name, kind, local_id)

    def end(self, entry: Entry) -> None:
        """It is queued no more."""
        left = self.lanes[entry.lane]
        left.remove(entry)
        if not left:
            del self.lanes[entry.lane]


class Delivery:
    """One destination's courier, on a clock of its own."""

    def __init__(self, target: Target, stage: Stage, entries: Sequence[Entry], begun_us: int) -> None:
        self._target = target
        self._stage = stage
        self._queue = Queue(target.name, stage, entries)
        self._settings = target.settings()
        self._begun_us = self._now_us = begun_us
        self._sealer = Sealer(self._settings, target.platform, self._queue, self._age_us)
        self.outlook = Outlook(target.platform.name, target.base_url)

    def _age_us(self, admitted_us: int) -> int:
        return self._now_us - admitted_us

    def run(self) -> Outlook:
        """Round the lanes until nothing is left."""
        self._drop_stale()
        while self._queue.lanes:
            moved = [self._step(lane) for lane in list(self._queue.lanes)]
            if any(moved):
                continue
            if self._now_us > self._begun_us:  # nothing moves any more, and time does not help
                for entry in [entry for lane in self._queue.lanes.values() for entry in lane]:
                    self._end(entry, "waiting", "its turn never comes")
            self._now_us += self._settings.reference_wait_us + 1
        return self.outlook

    def _drop_stale(self) -> None:
        calls = self._target.platform.calls
        for lane in list(self._queue.lanes.values()):
            for entry in [entry for entry in lane[:-1] if calls[entry.kind].newest_only]:
                self._end(entry, Cause.STALE, f"a newer {entry.kind} takes its place")

    def _step(self, lane: str) -> bool:
        """The lane's next request; False if it has to wait."""
        plan = batcher.plan(self._queue.peek(lane), self._sealer.call, self._settings.limits, self._age_us, _ALL)
        entries = list(itertools.islice(self._queue.peek(lane), plan.take))
        try:
            entries = self._sealer.resolve(entries)
            self._send(entries, self._sealer.encode(entries, None))
        except Wait:
            return False
        except Unencodable as error:
            alone = error.index >= 0  # else what they need will never be known
            for entry in [entries[error.index]] if alone else entries:
                self._end(entry, error.cause, str(error))
                self._name(entry, DEAD)
        return True

    def _send(self, entries: list[Entry], request: Request) -> None:
        places = [self._stage.place_of(self._target.name, entry) for entry in entries]
        url = self._target.base_url.rstrip("/") + request.path
        waited_s = round((self._now_us - self._begun_us) / 1e6, 3)
        headers = self._headers(key_of(entries), request)
        self.outlook.requests.append(Planned(request.method, url, headers, request.body.decode(), places, waited_s))
        for entry in entries:
            self._queue.end(entry)
            self._name(entry, KNOWN)

    def _headers(self, key: str, request: Request) -> dict[str, str]:
        """What is signed changes with the secret: such a value is a mask as a whole."""
        secret = self._settings.signing_secret
        one, other = (
            self._target.platform.headers(
                Sending(MASK, key, self._now_us / 1e6, request.body, signed, self._settings.stamp.environment)
            )
            for signed in (secret, secret and secret + secret)
        )
        return {
            **HEADERS,
            **self._settings.stamp.headers,
            **{name: value if other[name] == value else MASK for name, value in one.items()},
            **request.headers,
        }

    def _end(self, entry: Entry, cause: str, reason: str) -> None:
        self._queue.end(entry)
        place = self._stage.place_of(self._target.name, entry)
        self.outlook.unsent.append(Unsent(place, str(cause), reason))

    def _name(self, entry: Entry, state: str) -> None:
        """The answer names the id that the record introduces, or it never will be named."""
        if entry.kind not in self._target.platform.introduces:
            return
        kind, name = INTRODUCES[entry.kind]
        local_id = msgspec.json.decode(entry.body).get(name)
        ref = local_id and self._queue.reference(kind, local_id)
        if ref and ref.number == entry.number:
            ref.state, ref.platform_id = state, f"<{kind} {local_id}>" if state == KNOWN else None


def rehearse(items: Sequence[Record | RecordError], config: Config) -> tuple[list[Judged], dict[str, Outlook]]:
    """What would become of the records. Raises ConfigError where the daemon would not start."""
    targets = targets_of(_without_secrets(config), {_VARIABLE: MASK})
    stage, begun_us = Stage(config), Clocks().now_us()
    judged, copies = _admit(items, config, targets, stage, begun_us)
    return judged, {
        name: Delivery(target, stage, copies.get(name, ()), begun_us).run() for name, target in targets.items()
    }


def _without_secrets(config: Config) -> Config:
    stand_in = Secret(env=_VARIABLE)
    return msgspec.structs.replace(
        config,
        destinations={
            name: msgspec.structs.replace(
                one,
                api_key=one.api_key and stand_in,
                signing_secret=one.signing_secret and stand_in,
            )
            for name, one in config.destinations.items()
        },
    )


def _masking(config: Redact) -> Redact:
    """The same rules; tags need the key, which is not read here."""
    return msgspec.structs.replace(config, mode="mask" if config.mode == "hash" else config.mode, key=None)


def _admit(
    items: Sequence[Record | RecordError],
    config: Config,
    targets: Mapping[str, Target],
    stage: Stage,
    begun_us: int,
) -> tuple[list[Judged], dict[str, list[Entry]]]:
    """Each record's judgement, and the copies by destination. Ids that agentd makes count from 1, to be known as such."""
    numbers = itertools.count(1)
    intake = config.intake
    admission = Admission(
        Table(target.route() for target in targets.values()),
        stage,
        Window(intake.dedupe_window),
        AdmitLimits(int(intake.max_record_bytes), intake.max_depth),
        lambda: UUID(int=next(numbers)).bytes,
        (),
        redactor=build_redactor(_masking(config.redact), {}),
    )
    peer = Peer(os.getuid(), os.getgid(), os.getpid())
    judged: list[Judged] = []
    copies: dict[str, list[Entry]] = {}
    for place, item in enumerate(items, 1):
        stage.place = place
        hits: dict[int, Mapping[str, int]] = {}
        outcome = admission.admit([(0, item)], peer, "explain", begun_us, hits=hits)
        kind = "" if isinstance(item, RecordError) else kind_of(item)
        refused = "".join(rejected.error for rejected in outcome.rejected)
        found = dict(hits.get(0, {}))
        judged.append(Judged(place, kind, list(outcome.copies), refused, repeats=bool(outcome.repeats), redacted=found))
        for name, entries in outcome.copies.items():
            copies.setdefault(name, []).extend(entries)
    return judged, copies
