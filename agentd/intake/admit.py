"""Admission: may this record in, for whom, and in which form. No I/O and no waiting: records and `now` in, copies out.

A record is encoded once, from the checked Struct, so that what is stored is exactly what was understood; its free JSON
stays as it was sent. Then, in this order: size and depth, whose run or decision it is, which destinations take it, whether
its id was seen before, and whether every queue has room. What is refused leaves no trace but a count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC
from typing import Protocol

from msgspec import Struct, field

from agentd.errors import RecordError
from agentd.identity import text_of
from agentd.intake import Peer
from agentd.intake.dedupe import Seen, Window, digest
from agentd.intake.routing import Route, Table
from agentd.outcomes import Cause
from agentd.queued import Entry, Ref, Source
from agentd.records import (
    INTRODUCES,
    REFERENCE_FIELDS,
    TIME_FIELDS,
    LossClass,
    Record,
    RunStart,
    kind_of,
    lane_of,
    loss_class,
    order_key,
)
from agentd.wire import Rejected, deeper_than, encode

FULL = "spool full"
_TURNED_AWAY = (
    256  # runs of one stream that wait for their first record to come again; it is written with each envelope
)


class Shelf(Protocol):
    """What admission asks of the spool."""

    def room_for(self, destination: str, size: int, loss: LossClass) -> bool: ...
    def quota(self, destination: str) -> int: ...
    def number(self, destination: str) -> int: ...
    def owners(self, kind: str, local_id: str) -> Sequence[Ref]: ...
    def introduce(self, ref: Ref) -> Ref: ...


class Limits(Struct, frozen=True):
    max_record_bytes: int
    max_depth: int


class Admitted(Struct):
    """A message's outcome before it is on disk."""

    accepted: int = 0
    rejected: list[Rejected] = field(default_factory=list)
    copies: dict[str, list[Entry]] = field(default_factory=dict)
    introduced: list[Ref] = field(default_factory=list)
    seen: list[bytes] = field(default_factory=list)
    repeats: list[tuple[int, bytes]] = field(default_factory=list)
    full: list[tuple[int, Record]] = field(default_factory=list)  # refused for want of room, with their places
    full_keys: set[tuple[str, LossClass]] = field(default_factory=set)  # of records that found no room themselves
    turned_away: dict[str, bytes] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)  # by destination, of what was accepted so far
    hold: bool = False


class _Refusal(Exception):  # noqa: N818 - a verdict, caught within this module
    def __init__(self, cause: Cause, reason: str) -> None:
        super().__init__(reason)
        self.cause = cause


class Admission:
    """Decides over messages; `refused` and `accepted` count what was decided."""

    def __init__(
        self,
        table: Table,
        shelf: Shelf,
        window: Window,
        limits: Limits,
        new_id: Callable[[], bytes],
        trusted_uids: Iterable[int],
    ) -> None:
        self._table = table
        self._shelf = shelf
        self._window = window
        self._limits = limits
        self._new_id = new_id
        self._trusted = frozenset(trusted_uids)
        self.accepted = 0
        self.refused: Counter[str] = Counter()

    def admit(
        self,
        items: Sequence[tuple[int, Record | RecordError]],
        peer: Peer,
        origin: str,
        now_us: int,
        turned_away: dict[str, bytes] | None = None,
        *,
        hold: bool = False,
    ) -> Admitted:
        """Decide over the items of a message, each with its place in it.

        A record that finds no room is not overtaken by a later one of its run. Only one that is never shed may still come
        behind a debug or info event that was refused, since it may find room by shedding others of these; with `hold`,
        where the refused wait here, nothing may. `turned_away` does the same for a stream, for records that are never
        shed and so come again: order key → digest of the record that has to come first.
        """
        outcome = Admitted(turned_away={} if turned_away is None else turned_away, hold=hold)
        sources: dict[str, Source] = {}
        for index, item in items:
            try:
                if isinstance(item, RecordError):
                    raise _Refusal(Cause.INVALID, str(item))  # noqa: TRY301 - one way out for every refusal
                self._admit_one(item, peer, origin, now_us, outcome, sources)
                outcome.accepted += 1
            except _Refusal as refusal:
                if refusal.cause is Cause.SPOOL_FULL and not isinstance(item, RecordError):
                    outcome.full.append((index, item))
                self.refused[refusal.cause.value] += 1
                outcome.rejected.append(Rejected(index, str(refusal)))
        self.accepted += outcome.accepted
        return outcome

    def _admit_one(
        self, record: Record, peer: Peer, origin: str, now_us: int, outcome: Admitted, sources: dict[str, Source]
    ) -> None:
        kind = kind_of(record)
        for name in TIME_FIELDS[kind]:
            _to_utc(record, name)
        body = encode(record)
        self._check_form(body)
        agent = self._agent(record, kind, peer)
        try:
            routes = self._table.route(kind, agent, record.to)
        except RecordError as error:
            raise _Refusal(Cause.UNROUTED, str(error)) from None
        if record.id is not None and self._repeated(record, peer, body, outcome):
            return
        loss = loss_class(record)
        self._check_room(record, body, routes, loss, outcome)
        source = sources.get(agent)
        if source is None:
            source = sources[agent] = Source(agent, peer.uid, peer.pid, origin)
        record_id = self._new_id() if record.id is None else record.id.bytes
        if record.id is not None:
            outcome.seen.append(self._window.add(peer.uid, record_id, body))
        for route in routes:
            self._place(record, Entry(0, record_id, "", kind, loss, source, now_us, body), route, outcome)

    def _check_room(
        self, record: Record, body: bytes, routes: Sequence[Route], loss: LossClass, outcome: Admitted
    ) -> None:
        size = len(body) + 64
        for route in routes:
            if size > self._shelf.quota(route.name):
                raise _Refusal(Cause.INVALID, f"$: {len(body)} bytes, above max_bytes of destination {route.name}")
        key = order_key(record)
        first = outcome.turned_away.get(key)
        if (
            (key, LossClass.KEEP) in outcome.full_keys
            or (key, loss) in outcome.full_keys
            or (first is not None and first != digest(body))
        ):
            raise _Refusal(Cause.SPOOL_FULL, FULL)
        if not all(self._shelf.room_for(r.name, outcome.sizes.get(r.name, 0) + size, loss) for r in routes):
            outcome.full_keys.add((key, LossClass.KEEP if outcome.hold else loss))
            if loss is LossClass.KEEP and len(outcome.turned_away) < _TURNED_AWAY:
                outcome.turned_away.setdefault(key, digest(body))
            raise _Refusal(Cause.SPOOL_FULL, FULL)
        for route in routes:
            outcome.sizes[route.name] = outcome.sizes.get(route.name, 0) + size
        outcome.turned_away.pop(key, None)

    def _check_form(self, body: bytes) -> None:
        if len(body) > self._limits.max_record_bytes:
            raise _Refusal(
                Cause.INVALID, f"$: {len(body)} bytes, above intake.max_record_bytes ({self._limits.max_record_bytes})"
            )
        if deeper_than(body, self._limits.max_depth):
            raise _Refusal(Cause.INVALID, f"$: nested deeper than intake.max_depth ({self._limits.max_depth})")

    def _agent(self, record: Record, kind: str, peer: Peer) -> str:
        """The local name of the agent it is for: its own word, else that of whoever introduced what it refers to."""
        named = record.agent_id or ""
        if isinstance(record, RunStart) and record.parent_run_id is not None:
            self._check_parent(record.parent_run_id, peer)
        place = REFERENCE_FIELDS.get(kind) or INTRODUCES.get(kind)
        local_id = getattr(record, place[1]) if place is not None else None
        if place is None or local_id is None:
            return named
        for ref in self._shelf.owners(place[0], local_id):
            other = named and named != ref.agent and (ref.agent or named != self._table.default_agent(ref.destination))
            if other or self._is_stranger(ref, peer):
                whose = f"agent {ref.agent!r}" if ref.uid == peer.uid else "another user"
                raise _Refusal(Cause.FOREIGN_REFERENCE, f"$.{place[1]}: belongs to {whose}")
            named = ref.agent
        return named

    def _check_parent(self, run_id: str, peer: Peer) -> None:
        """A run may be the child of another agent's run, but not of another user's."""
        if any(self._is_stranger(ref, peer) for ref in self._shelf.owners("run", run_id)):
            raise _Refusal(Cause.FOREIGN_REFERENCE, "$.parent_run_id: belongs to another user")

    def _is_stranger(self, ref: Ref, peer: Peer) -> bool:
        return ref.uid != peer.uid and peer.uid not in self._trusted

    def _repeated(self, record: Record, peer: Peer, body: bytes, outcome: Admitted) -> bool:
        assert record.id is not None  # noqa: S101 - the caller asked
        seen = self._window.look(peer.uid, record.id.bytes, body)
        if seen is Seen.OTHER:
            raise _Refusal(Cause.ID_CONFLICT, f"$.id: {text_of(record.id.bytes)} was used for other content")
        if seen is Seen.SAME:
            outcome.repeats.append((peer.uid, record.id.bytes))
        return seen is Seen.SAME

    def _place(self, record: Record, entry: Entry, route: Route, outcome: Admitted) -> None:
        entry.number = self._shelf.number(route.name)
        agent = entry.source.agent or route.default_agent
        entry.lane = lane_of(
            record, agent, route.ordering, text_of(entry.record_id) if route.ordering == "none" else ""
        )
        outcome.copies.setdefault(route.name, []).append(entry)
        if entry.kind not in route.introduces:
            return
        kind, name = INTRODUCES[entry.kind]
        local_id = getattr(record, name)
        if local_id is not None:
            ref = Ref(
                route.name,
                kind,
                local_id,
                entry.source.agent,
                entry.source.uid,
                entry.number,
                touched_us=entry.admitted_us,
                lane=entry.lane,
            )
            if self._shelf.introduce(ref) is ref:
                outcome.introduced.append(ref)


def _to_utc(record: Record, name: str) -> None:
    """Times are kept in UTC; one that has no UTC form is refused here rather than met when it is to be sent."""
    time = getattr(record, name)
    if time is None or time.tzinfo is UTC:
        return
    try:
        setattr(record, name, time.astimezone(UTC))
    except OverflowError:
        raise _Refusal(Cause.INVALID, f"$.{name}: out of range in UTC") from None
