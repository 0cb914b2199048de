"""Which fields of a record may be changed. Pure.

Ids are references: what names a run has to name it everywhere, so that one that looks like a secret is counted, said, and left. So are
words that agentd goes by, times and numbers. Texts are judged by their form; free JSON (`payload`, `input`, `extra`, …) by the names in it too.
"""

from __future__ import annotations

import re

from agentd.records import TYPES
from agentd.redact.walk import Place, is_id

FIELDS: frozenset[str] = frozenset(name for kind in TYPES.values() for name in kind.__struct_fields__)
_WORDS = frozenset(
    {"kind", "to", "level", "trigger_type", "occurred_at", "started_at", "ended_at", "captured_at", "executed_at"}
)
_HASH = re.compile(r"_hash$")


def place_of(name: str) -> Place:
    """Of a record's own members; what is no field of ours (in a record that is refused for it) is free."""
    if name not in FIELDS:
        return Place.FREE
    return Place.NEVER if name in _WORDS or is_id(name) or _HASH.search(name) else Place.TEXT


def place_in_question(name: str) -> Place:
    """Of the members of a gate's request or answer, which are the platform's."""
    return Place.NEVER if is_id(name) else Place.FREE
