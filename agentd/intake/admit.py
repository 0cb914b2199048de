"""Admission: may this record in, for whom, and in which form. No I/O and no waiting: records and `now` in, copies out.

A record is encoded once, from the checked Struct, so that what is stored is exactly what was understood; its free JSON
stays as it was sent. Then, in this order: size and depth, whose it is and which destinations take it (`whose`), whether its
id was seen before, and which of their queues have room. What is refused leaves no trace but a count.

Each destination answers for itself: those with room take the record, and its refusal names the others in `to`. Sent again
as `to` says, or with an `id` as it was, it is stored at these alone. A record without an `id` that is sent again as it was is
stored twice where it was taken: nothing tells it from another one like it. The client library sends it again with `to`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from msgspec import Struct, field
from msgspec.structs import replace

from agentd.errors import RecordError
from agentd.identity import text_of
from agentd.intake import Grant, Peer
from agentd.intake.dedupe import Part, Seen, Window, digest
from agentd.intake.evidence import Sender, allowed_by, refused_record
from agentd.intake.order import Place, Turns
from agentd.intake.orphans import ORIGIN, Process
from agentd.intake.redacting import Prepared, content_of, prepare
from agentd.intake.routing import Route, Table
from agentd.intake.whose import Owners, Refusal, Whose
from agentd.outcomes import Cause
from agentd.queued import Entry, Ref, Refused, Source
from agentd.records import (
    INTRODUCES,
    RUN_ENDS,
    LossClass,
    Record,
    RunCancel,
    RunComplete,
    RunFail,
    kind_of,
    lane_of,
    loss_class,
    order_key,
)
from agentd.redact.build import no_redactor
from agentd.redact.engine import Redactor
from agentd.wire import Rejected, decode_record, deeper_than

FULL = "spool full"
_OVERHEAD = 64  # bytes of a record on disk beside its body
_EVERYTHING = Grant()


class Shelf(Owners, Protocol):
    """What admission asks of the spool."""

    def room_for(self, destination: str, size: int, loss: LossClass, uid: int | None = None) -> bool: ...
    def quota(self, destination: str) -> int: ...
    def number(self, destination: str) -> int: ...
    def introduce(self, ref: Ref) -> Ref: ...


class Notices(Protocol):
    """What runs have to be told before they end: records of agentd's own, stored right before the end and with it."""

    def size_before_end(self, destination: str, lane: str) -> int:
        """How many bytes that takes, 0 for nothing."""
        ...

    def before_end(self, destination: str, lane: str) -> Entry | None: ...


class Limits(Struct, frozen=True):
    max_record_bytes: int
    max_depth: int


class Admitted(Struct):
    """A message's outcome before it is on disk. A record counts as accepted once nobody who takes it lacks it."""

    turns: Turns
    accepted: int = 0
    rejected: list[Rejected] = field(default_factory=list)
    copies: dict[str, list[Entry]] = field(default_factory=dict)
    introduced: list[Ref] = field(default_factory=list)
    seen: list[bytes] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    repeats: list[tuple[int, bytes]] = field(default_factory=list)
    full: list[tuple[int, Record]] = field(default_factory=list)  # refused for want of room, with their places in it
    waiting: set[Place] = field(default_factory=set)  # where `full` waits
    placed: list[tuple[int, list[str]]] = field(default_factory=list)  # with `hold`: which copies are whose
    process: Process | None = None  # the sender's, if its connection owns runs
    lacking: dict[int, list[str]] = field(default_factory=dict)  # if nothing of this is kept: who lacks a part; []: all
    sizes: dict[str, int] = field(default_factory=dict)  # by destination, of what was accepted so far
    invalid: list[Refused] = field(default_factory=list)  # what of the refused is evidence


class _NoRoom(Exception):  # noqa: N818 - a verdict, caught within this module
    """These have none; `in_part`: others have the record."""

    def __init__(self, names: list[str], *, in_part: bool) -> None:
        super().__init__(FULL)
        self.names = names
        self.in_part = in_part


class _Sender(Struct):
    """What all records of a message have in common."""

    peer: Peer
    grant: Grant
    origin: str
    now_us: int
    redaction: int  # version of the rules in force
    sources: dict[str, Source] = field(default_factory=dict)

    def source(self, agent: str) -> Source:
        known = self.sources.get(agent)
        if known is None:
            known = self.sources[agent] = Source(agent, self.peer.uid, self.peer.pid, self.origin, self.redaction)
        return known


def _everything(_: Peer) -> Grant:
    return _EVERYTHING


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
        *,
        grants: Callable[[Peer], Grant] = _everything,
        notices: Notices | None = None,
        redactor: Redactor | None = None,
    ) -> None:
        """`trusted_uids` may use every user's references, on the Unix socket; `grants` says what a peer may do."""
        self.redactor = redactor or no_redactor()
        self._notices = notices
        self._shelf = shelf
        self._window = window
        self._new_id = new_id
        self._grants = grants
        self.follow(table, limits, trusted_uids)
        self.accepted = 0
        self.refused: Counter[str] = Counter()

    def follow(self, table: Table, limits: Limits, trusted_uids: Iterable[int]) -> None:
        """Decide by these from now on."""
        self._limits = limits
        self._decide = Whose(table, self._shelf, trusted_uids).decide

    def admit(
        self,
        items: Sequence[tuple[int, Record | RecordError]],
        peer: Peer,
        origin: str,
        now_us: int,
        turned_away: dict[str, bytes] | None = None,
        *,
        seq: int = 0,
        hold: bool = False,
        behind: Iterable[Place] = (),
        grant: Grant | None = None,
        hits: dict[int, Mapping[str, int]] | None = None,
    ) -> Admitted:
        """Decide over the items of a message, each with its place in it.

        `turned_away` is the stream's memory of what has to come first (`order.Turns.away`), `seq` the message's. With `hold` the refused wait
        here, and `behind` says where others wait already. `grant` is the peer's, where it is not what the rules say now. `hits` are the
        redaction rules' by index, of what was here before.
        """
        hits = {} if hits is None else hits
        outcome = Admitted(Turns({} if turned_away is None else turned_away, seq, hold), process=peer.process)
        if behind:
            outcome.turns.wait_behind(behind)
        sender = _Sender(peer, grant or self._grants(peer), origin, now_us, self.redactor.version)
        for one in prepare(items, self.redactor, hits, self._limits.max_record_bytes):
            index, item = one.index, one.item
            try:
                if isinstance(item, RecordError):
                    raise Refusal(Cause.INVALID, self.redactor.text(str(item)))  # noqa: TRY301 - one way out for every refusal
                self._admit_one(one, item, hits.get(index), sender, outcome)
                outcome.accepted += 1
            except Refusal as refusal:
                self.refused[refusal.cause.value] += 1
                outcome.rejected.append(Rejected(index, str(refusal)))
                if refusal.cause is Cause.INVALID:
                    outcome.invalid += self.evidence(
                        item, str(refusal), peer, origin, sender.grant, hits=hits.get(index)
                    )
            except _NoRoom as full:
                self._refuse(index, item, full, outcome)
        self.accepted += outcome.accepted
        return outcome

    def evidence(
        self,
        item: Record | RecordError,
        reason: str,
        peer: Peer,
        origin: str,
        grant: Grant | None = None,
        kind: str = "",
        hits: Mapping[str, int] | None = None,
    ) -> list[Refused]:
        """What of a record that was refused as invalid is kept; nothing, unless it is a decision or a lifecycle record."""
        allowed = None if peer.local else allowed_by(grant or self._grants(peer))
        sender = Sender(peer.uid, peer.pid, origin, allowed, self.redactor.version)
        kept = refused_record(
            item, reason, sender, self._limits.max_record_bytes, self._new_id, kind, self.redactor.raw
        )
        if kept is None:
            return []
        kept.reason = self.redactor.text(kept.reason)
        kept.redactions = {**(hits or {}), **kept.redactions}
        return [kept]

    def turn_back(self, outcome: Admitted) -> None:
        """The disk had no room for it: what may not be shed comes again, and before what is younger."""
        copies = [(name, entry) for name, entries in outcome.copies.items() for entry in entries]
        kept = [(name, e.body) for name, e in copies if e.loss is LossClass.KEEP and e.source.origin != ORIGIN]
        taken = [(name, decode_record(body), body) for name, body in kept]
        outcome.turns.turn_back((name, order_key(one), digest(content_of(one, body))) for name, one, body in taken)

    def _refuse(self, index: int, record: Record | RecordError, full: _NoRoom, outcome: Admitted) -> None:
        assert not isinstance(record, RecordError)  # noqa: S101 - it was admitted, or would have been
        self.refused[Cause.SPOOL_FULL.value] += 1
        outcome.full.append((index, narrowed(record, full.names) if full.in_part else record))
        outcome.rejected.append(Rejected(index, FULL, full.names if full.in_part else []))
        if outcome.turns.hold:
            outcome.waiting.update((name, order_key(record)) for name in full.names)

    def _admit_one(
        self, one: Prepared, record: Record, hits: Mapping[str, int] | None, sender: _Sender, outcome: Admitted
    ) -> None:
        """Raises Refusal, or _NoRoom where some of its destinations, or all, have none."""
        index, kind, body = one.index, kind_of(record), one.body
        if deeper_than(one.sent or body, self._limits.max_depth):
            raise Refusal(Cause.INVALID, f"$: nested deeper than intake.max_depth ({self._limits.max_depth})")
        agent, routes = self._decide(record, kind, sender.peer, sender.grant)
        content, seen, lacking = b"", Seen.NEW, routes
        if record.id is not None:
            content = body if record.to is None else content_of(record, body)
            seen, lacking = self._unseen(record.id.bytes, sender.peer, content, one.sent, routes, outcome)
            if not lacking:
                return
        loss = loss_class(record)
        taking, full = self._with_room(record, body, lacking, loss, sender.peer.uid, outcome)
        if len(taking) < len(routes) and (taking or len(lacking) < len(routes)):
            outcome.lacking[index] = [route.name for route in lacking] if len(lacking) < len(routes) else []
        if taking:
            record_id = self._new_id() if record.id is None else record.id.bytes
            if record.id is not None:
                whole = record.to is None and seen is Seen.NEW and not full
                self._remember(record_id, sender.peer, content, None if whole else taking, outcome)
            source = sender.source(agent)
            for route in taking:
                entry = Entry(0, record_id, "", kind, loss, source, sender.now_us, body, redactions=hits)
                self._place(record, entry, route, outcome)
            if outcome.turns.hold:
                outcome.placed.append((index, [route.name for route in taking]))
        if full:
            raise _NoRoom(full, in_part=len(full) < len(routes))

    def _with_room(
        self, record: Record, body: bytes, routes: Sequence[Route], loss: LossClass, uid: int, outcome: Admitted
    ) -> tuple[list[Route], list[str]]:
        """The destinations that take it, and the names of those that have no room. Raises Refusal if it can't ever fit."""
        size = len(body) + _OVERHEAD
        shelf, sizes, turns = self._shelf, outcome.sizes, outcome.turns
        for route in routes:
            if size > shelf.quota(route.name):
                raise Refusal(Cause.INVALID, f"$: {len(body)} bytes, above max_bytes of destination {route.name}")
        in_order = not (turns.full or turns.away)  # nothing was refused: no need to know what it is
        key = "" if in_order else order_key(record)
        content = digest(content_of(record, body)) if turns.away else b""
        taking: list[Route] = []
        full: list[str] = []
        for route in routes:
            name = route.name
            total = sizes.get(name, 0) + size + self._size_before(record, name)
            if not in_order and turns.is_behind(name, key, loss, content):
                full.append(name)
            elif shelf.room_for(name, total, loss, uid):
                sizes[name] = total
                taking.append(route)
                if not in_order:
                    turns.take(name, key, content)
            else:
                turns.turn_away(name, order_key(record), loss, content or digest(content_of(record, body)))
                full.append(name)
        return taking, full

    def _size_before(self, record: Record, destination: str) -> int:
        """How much goes before it."""
        if self._notices is None or not isinstance(record, RunComplete | RunFail | RunCancel):
            return 0
        return self._notices.size_before_end(destination, "run:" + record.run_id)

    def _unseen(
        self, record_id: bytes, peer: Peer, content: bytes, sent: bytes, routes: Sequence[Route], outcome: Admitted
    ) -> tuple[Seen, Sequence[Route]]:
        """What is known of the id, and those destinations that lack the record. Raises Refusal for other content."""
        seen = self._window.look(peer.uid, record_id, content)
        if seen is Seen.OTHER and sent:  # taken as it was sent, before these rules were
            seen = self._window.look(peer.uid, record_id, sent)
        if seen is Seen.NEW:
            return seen, routes
        if seen is Seen.OTHER:
            raise Refusal(Cause.ID_CONFLICT, f"$.id: {text_of(record_id)} was used for other content")
        outcome.repeats.append((peer.uid & 0xFFFFFFFF, record_id))
        if seen is Seen.SAME:
            return seen, ()
        return seen, [route for route in routes if not self._window.has(peer.uid, record_id, route.name)]

    def _remember(
        self, record_id: bytes, peer: Peer, content: bytes, taking: Sequence[Route] | None, outcome: Admitted
    ) -> None:
        """The id, for these destinations; None: for all that there are."""
        if taking is None:
            outcome.seen.append(self._window.add(peer.uid, record_id, content))
        else:
            names = [route.name for route in taking]
            outcome.parts.append(self._window.add_part(peer.uid, record_id, content, names))

    def _place(self, record: Record, entry: Entry, route: Route, outcome: Admitted) -> None:
        agent = entry.source.agent or route.default_agent
        entry.lane = lane_of(
            record, agent, route.ordering, text_of(entry.record_id) if route.ordering == "none" else ""
        )
        copies = outcome.copies.setdefault(route.name, [])
        if self._notices is not None and entry.kind in RUN_ENDS:
            notice = self._notices.before_end(route.name, entry.lane)
            copies += [notice] if notice is not None else []
        entry.number = self._shelf.number(route.name)
        copies.append(entry)
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


def narrowed(record: Record, names: Sequence[str]) -> Record:
    """The record for these destinations alone."""
    return replace(record, to=list(names))
