"""What a courier is told of its destination."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from agentd.delivery.backoff import Backoff
from agentd.delivery.batcher import Limits


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

    def __repr__(self) -> str:
        """Without the key."""
        return f"<Settings {self.name}>"
