"""What stands in for a platform: a destination with its adapter, its key and its SDK's doors."""

from __future__ import annotations

from msgspec import Struct

from agentd.compat.headers import outgoing
from agentd.compat.names import Names
from agentd.compat.paths import Doors
from agentd.exchange import Platform, Sending
from agentd.reach import Reach
from agentd.standin import Called, Door, StandIn


class Stand(Struct, frozen=True):
    """One destination towards its SDK."""

    name: str
    platform: Platform
    stand_in: StandIn
    doors: Doors
    names: Names
    reach: Reach
    api_key: str
    signing_secret: str | None
    timeout_s: float  # of one call
    reference_wait_s: float
    is_open: bool  # passthrough = "admin": the control plane passes for admins

    def __repr__(self) -> str:
        """Without the secrets."""
        return f"<Stand {self.name} at {self.reach.base_url}>"

    def wait_s(self, door: Door) -> float:
        """How long to wait for the platform's answer."""
        wait_s = max(self.timeout_s, door.patience_s)
        return wait_s if door.limit_s is None else min(wait_s, door.limit_s)

    def headers(self, called: Called, body: bytes) -> dict[str, str]:
        """What goes out with a call, the platform's key among it."""
        sending = Sending(self.api_key, "", called.now_us / 1e6, body, self.signing_secret)
        return outgoing(called.headers, self.platform.headers(sending), self.stand_in.headers)
