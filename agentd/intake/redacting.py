"""Records on their way to admission: encoded, and without their secrets. No I/O but a line in the log.

Whole messages are screened at once. Whoever comes after this sees only what will be stored: lanes, digests, evidence and queues know
no secret. So the digest under which a repeat of an id is known is one of the redacted record, and from the disk nobody can try out
what a short secret was; two records of one id that differ in a masked secret alone are one, in mode `hash` they are told apart.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, MutableMapping, Sequence
from datetime import UTC

import msgspec
from msgspec import Struct

from agentd.errors import RecordError
from agentd.records import TIME_FIELDS, Record, kind_of
from agentd.redact.engine import Redacted, Redactor
from agentd.wire import decode_record, encode

log = logging.getLogger("agentd.intake")


class Prepared(Struct, frozen=True):
    """An item of a message with what will be stored of it."""

    index: int
    item: Record | RecordError
    body: bytes = b""
    sent: bytes = b""  # as it was sent but for its destinations, where that is something else


def prepare(
    items: Sequence[tuple[int, Record | RecordError]],
    redactor: Redactor,
    hits: MutableMapping[int, Mapping[str, int]],
    limit: int,
) -> list[Prepared]:
    """All items in their order; `hits` hears by index what was found in which. What is above `limit` bytes is refused unscreened."""
    prepared = [_encoded(index, item, limit) for index, item in items]
    whole = [one for one in prepared if one.body]
    known = redactor.ids.total()
    changed = redactor.records([one.body for one in whole])
    if redactor.ids.total() > known:
        log.warning(
            "an id looks like a secret (%s): it is stored as it is, since it names things", ", ".join(sorted(redactor.ids)),
            extra={"action": "id_like_secret"},
        )  # fmt: skip
    if changed:
        new = {whole[place].index: _without(whole[place], redacted) for place, redacted in changed.items()}
        hits.update({whole[place].index: redacted.hits for place, redacted in changed.items()})
        prepared = [new.get(one.index, one) for one in prepared]
    return prepared


def content_of(record: Record, body: bytes) -> bytes:
    """What of it is compared under its id: all but where it goes."""
    if record.to is None:
        return body
    to, record.to = record.to, None
    try:
        return encode(record)
    finally:
        record.to = to


def _encoded(index: int, item: Record | RecordError, limit: int) -> Prepared:
    if isinstance(item, RecordError):
        return Prepared(index, item)
    for name in TIME_FIELDS[kind_of(item)]:
        if not _to_utc(item, name):
            return Prepared(index, RecordError(f"$.{name}: out of range in UTC", raw=encode(item)))
    body = encode(item)
    if len(body) > limit and len(content_of(item, body)) > limit:  # a longer `to` is no reason to refuse the rest
        why = f"$: {len(body)} bytes, above intake.max_record_bytes ({limit})"
        return Prepared(index, RecordError(why, raw=body))
    return Prepared(index, item, body)


def _without(one: Prepared, redacted: Redacted) -> Prepared:
    assert not isinstance(one.item, RecordError)  # noqa: S101 - it has a body
    try:
        return Prepared(one.index, decode_record(redacted.body), redacted.body, content_of(one.item, one.body))
    except msgspec.MsgspecError as error:  # a mark is longer than its secret, and a name has 512 characters at most
        why = f"$: too long for its fields once its secrets are marked: {error}"
        return Prepared(one.index, RecordError(why, raw=redacted.body))


def _to_utc(record: Record, name: str) -> bool:
    """Times are kept in UTC; one that has no UTC form is refused here rather than met when it is to be sent."""
    time = getattr(record, name)
    if time is None or time.tzinfo is UTC:
        return True
    try:
        setattr(record, name, time.astimezone(UTC))
    except OverflowError:
        return False
    return True
