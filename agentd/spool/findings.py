"""What an audit finds, for a stranger to read: how bad it is, where, and what. Pure."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum

from msgspec import Struct

_SHOWN = 20  # of one kind at one place; damage that hits a million records is one line and a number


class Severity(StrEnum):
    """An ERROR says that books, journal and rows contradict one another; a NOTE is worth knowing and contradicts nothing."""

    ERROR = "error"
    NOTE = "note"


class Finding(Struct, frozen=True):
    severity: Severity
    where: str
    what: str


class Findings:
    """Findings as they come. Of each sort (a check's own word) the first are kept, the others counted."""

    def __init__(self) -> None:
        self._found: list[Finding] = []
        self._counts: Counter[tuple[str, Severity]] = Counter()

    def __len__(self) -> int:
        return self._counts.total()

    def error(self, sort: str, where: str, what: str) -> None:
        self._add(sort, Finding(Severity.ERROR, where, what))

    def note(self, sort: str, where: str, what: str) -> None:
        self._add(sort, Finding(Severity.NOTE, where, what))

    def _add(self, sort: str, finding: Finding) -> None:
        self._counts[sort, finding.severity] += 1
        if self._counts[sort, finding.severity] <= _SHOWN:
            self._found.append(finding)

    def all(self) -> list[Finding]:
        """Errors first, each severity in the order of finding."""
        more = [
            Finding(severity, sort, f"and {count - _SHOWN} more of this kind")
            for (sort, severity), count in self._counts.items()
            if count > _SHOWN
        ]
        return sorted([*self._found, *more], key=lambda finding: finding.severity is Severity.NOTE)
