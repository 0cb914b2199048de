"""What a courier is told of its destination."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from msgspec import Struct

from agentd.delivery.backoff import Backoff
from agentd.delivery.batcher import Limits
from agentd.exchange import Platform, Sending
from agentd.stamp import Stamp


class Settings(Struct, frozen=True):
    """What a courier is told of its destination."""

    name: str
    api_key: str
    limits: Limits
    max_in_flight: int
    backoff: Backoff
    reference_wait_us: int
    agent_of: Callable[[str], str]
    inject_id: bool = True
    options: Mapping[str, str] = {}
    signing_secret: str | None = None
    rate: float | None = None  # requests a second
    stamp: Stamp = Stamp()
    dialect: object = None  # what of the configuration shapes the bytes of a batch: equal where they would be

    @property
    def keys(self) -> tuple[str, str | None]:
        """The secrets that a request goes out under."""
        return self.api_key, self.signing_secret

    def headers(self, platform: Platform, idempotency_key: str, now_s: float, body: bytes) -> dict[str, str]:
        """What a request goes out under; `now_s` is Unix time."""
        key, secret = self.keys
        sending = Sending(key, idempotency_key, now_s, body, secret, self.stamp.environment)
        return {**self.stamp.headers, **platform.headers(sending)}

    def __repr__(self) -> str:
        """Without the secrets."""
        return f"<Settings {self.name}>"
