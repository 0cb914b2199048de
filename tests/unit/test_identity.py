"""Ids that agentd makes: UUIDv7, rising even when the clock does not."""

from __future__ import annotations

import random
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from agentd.identity import Uuid7, text_of


def test_the_bits_are_those_of_a_uuid7():
    """RFC 9562 §5.7: 48 bits of milliseconds, version 7, variant 10."""
    made = UUID(bytes=Uuid7(lambda: 0x0123456789AB)())
    assert made.int >> 80 == 0x0123456789AB
    assert (made.int >> 76) & 0xF == 7
    assert (made.int >> 62) & 0b11 == 0b10
    assert made.variant == "specified in RFC 4122"
    assert len(text_of(made.bytes)) == 36
    assert UUID(text_of(made.bytes)) == made


def test_ids_of_one_millisecond_rise():
    """Within a millisecond a counter of 74 bits goes on; it does not run over even from its highest start."""
    new = Uuid7(lambda: 5, lambda count: b"\xff" * count)
    ids = [new() for _ in range(10_000)]
    assert ids == sorted(set(ids))
    assert all(UUID(bytes=one).int >> 80 == 5 for one in ids)


def test_the_counter_carries_over_the_variant_bits():
    """Where the lower 62 bits run over, the upper 12 take the carry, and version and variant stay."""
    new = Uuid7(lambda: 5, lambda _count: ((1 << 62) - 1).to_bytes(10, "big"))
    first, second = UUID(bytes=new()), UUID(bytes=new())
    assert second > first
    assert (second.int >> 76) & 0xF == 7
    assert (second.int >> 62) & 0b11 == 0b10


@given(st.lists(st.integers(0, 2**48 - 1), min_size=2, max_size=50))
def test_ids_rise_whatever_the_clock_does(times):
    """A clock that goes back, stands still or leaps never makes an id that is not greater than the one before."""
    source = iter(times)
    new = Uuid7(lambda: next(source), random.Random(0).randbytes)
    ids = [new() for _ in times]
    assert ids == sorted(set(ids))


def test_two_processes_do_not_agree():
    """The counter starts at random: generators of one millisecond make different ids."""
    assert Uuid7(lambda: 5)() != Uuid7(lambda: 5)()
