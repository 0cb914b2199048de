"""Telemetry of an SDK: made records, stored like a client's, and answered once they are on disk."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from agentd.compat.ids import REMEMBERED_US, Caller, Naming, namings
from agentd.compat.names import Asker, Refused
from agentd.compat.paths import path_of
from agentd.compat.stands import Stand
from agentd.errors import RecordError, SpoolFull, WireError
from agentd.intake import Sink
from agentd.records import INTRODUCES, REFERENCE_FIELDS, Record, kind_of
from agentd.redact.build import no_redactor
from agentd.redact.engine import Redactor
from agentd.standin import Called, Handed, Reply, Why
from agentd.wire import Message, Rejected, decode_message, encode

log = logging.getLogger("agentd.compat")

ORIGIN = "sdk"
_FULL = str(SpoolFull())
_TOLD = 1000  # names come from outside: bounded


class Store(Sink, Protocol):
    """The sink, and its memory."""

    def knows(self, uid: int, record_id: bytes) -> bool:
        """Whether a record of this id was taken from the uid, as far back as the dedupe window goes."""
        ...


class Telemetry:
    """Takes what an SDK reports."""

    def __init__(
        self, sink: Store, said_us: Callable[[int], list[tuple[int, int]]], redactor: Redactor | None = None
    ) -> None:
        """`said_us` is what the wall clock said (agentd.ageing). Ids are made of bodies: of one with a secret by `redactor`'s key."""
        self._redactor = redactor or no_redactor()
        self._said_us = said_us
        self._sink = sink
        self._knows = sink.knows
        self._told: set[tuple[str, str]] = set()

    async def take(self, stand: Stand, called: Called, asker: Asker) -> Reply:
        """Store what the call says. Raises Refused, RecordError, Forbidden.

        What is no record is kept among the dead letters, where it is evidence: in agentd's words as far as it could be said in them,
        else as the SDK has sent it.
        """
        try:
            return await self._take(stand, called, asker)
        except RecordError as error:
            self._sink.keep(error.raw or called.body, str(error), asker.peer, ORIGIN, called.door.kind)
            raise

    async def _take(self, stand: Stand, called: Called, asker: Asker) -> Reply:
        handed, naming = self._hand_over(stand, called, asker)
        self._tell(stand.name, handed.left_out)
        ids = naming.record_ids(len(handed.records), handed.key)
        # Under the SDK's own idempotency field a second call is the first one, whatever else it says.
        again = {index for index, of in enumerate(ids) if handed.key and self._knows(asker.peer.uid, of.bytes)}
        records = [
            {**record, "id": str(of), "to": [stand.name]} for record, of in zip(handed.records, ids, strict=True)
        ]
        if not records:
            return handed.reply
        message = _message(records)
        for record in message.items:
            _check(stand, record, asker)
        future = self._sink.submit(message, asker.peer, stream=None, origin=ORIGIN, hold=False)
        ack = await asyncio.shield(future)  # a daemon that stops must not withdraw the records
        refused = [rejected for rejected in ack.rejected if rejected.index not in again]
        if again and handed.conflicts and ack.rejected:
            raise Refused(Why.CONFLICT, "other content was sent under this key before")
        if refused:
            raise _refusal(refused, len(records))
        return handed.reply

    def _hand_over(self, stand: Stand, called: Called, asker: Asker) -> tuple[Handed, Naming]:
        """The call's records, under the ids that they had if it came in the last ten minutes."""
        uid = asker.peer.uid
        path = path_of(called.door, called.segments, called.query)
        caller, spans = Caller(uid, asker.peer.token, stand.name), self._said_us(REMEMBERED_US)
        newest, *older = namings(caller, path, self._redactor.fingerprint(called.body), spans)
        handed = stand.stand_in.hand_over(called, newest.make_id)
        if handed.key:
            return handed, newest
        for naming in (newest, *older):
            if any(self._knows(uid, of.bytes) for of in naming.record_ids(len(handed.records), "")):
                return stand.stand_in.hand_over(called, naming.make_id), naming
        return handed, newest

    def _tell(self, destination: str, names: Iterable[str]) -> None:
        """Say once of each member that it gets lost: an SDK that is newer than agentd has more to say than we have places for."""
        for name in names:
            if (destination, name) not in self._told and len(self._told) < _TOLD:
                self._told.add((destination, name))
                log.warning(
                    "%s: its SDK sends %r, which is not carried through",
                    destination,
                    name[:64],
                    extra={"action": "left_out"},
                )


def _message(records: Sequence[object]) -> Message:
    """The records as decoded ones, all of them valid. Raises RecordError: one that is not refuses its call, as a platform would."""
    try:
        message = decode_message(encode(records))
    except WireError as error:
        raise RecordError(str(error)) from None
    assert isinstance(message, Message)  # noqa: S101 - an array is never a hello
    for item in message.items:
        if isinstance(item, RecordError):
            raise item
    return message


def _check(stand: Stand, record: Record | RecordError, asker: Asker) -> None:
    """Whether the caller may say this, with its agent under the local name. Admission asks the same, and can't say which error it is."""
    assert not isinstance(record, RecordError)  # noqa: S101 - `_message` has looked
    record.agent_id = record.agent_id and stand.names.agent(record.agent_id)
    kind = kind_of(record)
    place = REFERENCE_FIELDS.get(kind) or INTRODUCES.get(kind)
    local_id = None if place is None else getattr(record, place[1])
    known = None if place is None or local_id is None else stand.names.check(place[0], local_id, asker)
    if known is None:
        asker.grant.agent_for(record.agent_id)


def _refusal(refused: Sequence[Rejected], count: int) -> Refused:
    """Full where nothing but room is missing: what was stored is known again when the call is repeated."""
    if all(rejected.error == _FULL for rejected in refused):
        return Refused(Why.SPOOL_FULL, _FULL)
    first = next(rejected for rejected in refused if rejected.error != _FULL)
    rest = f"; {count - len(refused)} of {count} are stored" if count > len(refused) else ""
    return Refused(Why.MALFORMED, f"{first.error.removeprefix('$.to: ')}{rest}")
