"""Whether an agent may go on: the one place that says so (contract §4). Pure.

`allow` lets it. So does `unavailable`, where the operator chose fail_mode = "open", the gate lets itself be covered by that
(Aegis' intents don't), and the one reason is that the platform could not be reached: nothing was sent for want of a
connection or behind an open circuit. A lost answer, a refused key, a thrown kill switch, an unknown word, a disk that can't
record it: never.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from agentd.gating import Ruling, Traits, Word


class HeldBack(StrEnum):
    """Why nothing was sent; NOT says that something may have been."""

    NOT = ""
    NO_CONNECTION = "no_connection"
    CIRCUIT = "circuit"
    OTHER = "other"  # its run is unknown, its deadline over, the kill switch thrown, the disk full, the daemon stopping


class Leave(NamedTuple):
    """`fail_open`: it proceeds by the fail mode alone."""

    proceed: bool
    fail_open: bool


def leave(ruling: Ruling, held_back: HeldBack, traits: Traits, *, open_mode: bool) -> Leave:
    """Whether the agent may go on after this ruling. `open_mode`: the destination's fail_mode is "open"."""
    if ruling.word is Word.ALLOW:
        return Leave(proceed=ruling.final, fail_open=False)
    unreached = held_back in (HeldBack.NO_CONNECTION, HeldBack.CIRCUIT) and not ruling.acted
    fail_open = open_mode and traits.fails_open and unreached and ruling.word is Word.UNAVAILABLE
    return Leave(fail_open, fail_open)
