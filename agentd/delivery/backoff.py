"""How long to wait: exponential backoff with full jitter, capped. Pure; the random number is passed in.

Full jitter (a uniform share of the whole step) spreads a fleet's retries best of the usual schemes:
https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
"""

from __future__ import annotations

from msgspec import Struct

_MAX_EXPONENT = 30  # 2**30 × 250 ms is eight years: the cap has taken over long before


class Backoff(Struct, frozen=True):
    """Times in seconds."""

    initial_s: float
    max_s: float

    def step(self, failures: int) -> float:
        """The longest wait after `failures` failures in a row, 1 or more."""
        return min(self.max_s, self.initial_s * 2.0 ** min(max(failures, 1) - 1, _MAX_EXPONENT))

    def wait(self, failures: int, share: float, at_least: float | None = None) -> float:
        """The wait: `share` (0–1, random) of the step, never before what the server asked for.

        A server's wish gets up to a tenth of itself on top, so that those it sent away together don't come back together.
        """
        jittered = self.step(failures) * share
        return jittered if at_least is None else max(jittered, at_least * (1 + share / 10))
