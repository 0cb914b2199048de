"""What of a lane goes into the next request, and when (promise 3). Pure: records and their ages in, a plan out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol, TypeVar

from msgspec import Struct


class Sized(Protocol):
    """A record as the batcher sees it."""

    @property
    def kind(self) -> str: ...
    @property
    def admitted_us(self) -> int: ...
    @property
    def body(self) -> bytes: ...
    @property
    def number(self) -> int: ...


class Batchable(Protocol):
    """A platform's call as the batcher sees it."""

    @property
    def name(self) -> str: ...
    @property
    def batch(self) -> bool: ...


R = TypeVar("R", bound=Sized)


class Limits(Struct, frozen=True):
    """When a batch is due, and what a request holds at most."""

    max_events: int
    max_bytes: int
    max_interval_us: int
    max_request_events: int


class Plan(NamedTuple):
    """Send `take` records of the lane now, or look again after `wait_us`; neither for an empty lane."""

    take: int
    wait_us: int | None


IDLE = Plan(0, None)


def plan(
    records: Iterable[R],
    call_of: Callable[[str], Batchable],
    limits: Limits,
    age_us: Callable[[int], int],
    flush_through: int = 0,
) -> Plan:
    """Decide over a lane's records, which come in order; `age_us` says how long ago one was admitted.

    A call for one record goes at once, and sends what is before it at once. `flush_through` is the highest number that
    somebody waits for: it makes a batch due.
    """
    count = size = 0
    first: R | None = None
    call: Batchable | None = None
    for record in records:
        following = call_of(record.kind)
        if first is None or call is None:
            if not following.batch:
                return Plan(1, None)
            first, call = record, following
        elif (
            following.name != call.name
            or count >= limits.max_request_events
            or size + len(record.body) > limits.max_bytes
        ):
            return Plan(count, None)
        count += 1
        size += len(record.body)
    if first is None:
        return IDLE
    left_us = limits.max_interval_us - age_us(first.admitted_us)
    due = count >= limits.max_events or count >= limits.max_request_events or size >= limits.max_bytes
    if due or first.number <= flush_through or left_us <= 0:
        return Plan(count, None)
    return Plan(0, left_us)
