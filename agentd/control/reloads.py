"""How often the configuration was read again while the daemon ran, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct

from agentd.units import rfc3339


class Reloads(Struct):
    """Counts since the start; `now_us` is the wall clock."""

    now_us: Callable[[], int]
    count: int = 0
    failures: int = 0
    at_us: int = 0  # of the last one
    error: str | None = None  # of the last one, None where it was taken

    def done(self) -> None:
        self.count, self.at_us, self.error = self.count + 1, self.now_us(), None

    def refused(self, error: str) -> None:
        self.failures, self.at_us, self.error = self.failures + 1, self.now_us(), error

    def document(self) -> dict[str, Any]:
        """For the status."""
        at = rfc3339(self.at_us / 1e6) if self.at_us else None
        return {"done": self.count, "failed": self.failures, "last_at": at, "last_error": self.error}
