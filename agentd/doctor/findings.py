"""What a doctor says: of which part, how bad it is, why, and what to do."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Level = Literal["ok", "warn", "fail"]


class Finding(Struct, frozen=True):
    """`cause` and `cure` are empty where all is well."""

    check: str
    level: Level
    what: str
    cause: str = ""
    cure: str = ""


def ok(check: str, what: str) -> Finding:
    return Finding(check, "ok", what)


def warn(check: str, what: str, cause: str, cure: str) -> Finding:
    return Finding(check, "warn", what, cause, cure)


def fail(check: str, what: str, cause: str, cure: str) -> Finding:
    return Finding(check, "fail", what, cause, cure)
