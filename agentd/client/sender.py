"""From fields to the channel, for everything that an agent can call: encode, cut, let the recorder listen, hand over.

Nothing here raises: what can't be encoded after all is counted as lost, cause `not_encodable`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from agentd.client import mode
from agentd.client.buffer import KEEP, Ticket
from agentd.client.encode import safe_repr
from agentd.client.lines import line, shrink

if TYPE_CHECKING:
    from agentd.client.channel import Channel


class Sender:
    """What a client and its runs share. `channel` is None for a client that does nothing."""

    __slots__ = ("agent_id", "channel", "max_record_bytes")

    def __init__(self, channel: Channel | None, agent_id: str | None, max_record_bytes: int) -> None:
        self.channel = channel
        self.agent_id = agent_id
        self.max_record_bytes = max_record_bytes

    @property
    def silent(self) -> bool:
        """Whether nobody listens: then nothing is encoded either."""
        return self.channel is None and mode.tap is None

    def record(self, kind: str, values: Mapping[str, Any], rank: int = KEEP, ticket: Ticket | None = None) -> None:
        """Send one record. The client's own agent_id goes with it unless it has one."""
        if self.silent:
            return
        run_id = values.get("run_id")
        run_id = run_id if isinstance(run_id, str) else ""
        try:
            if self.agent_id is not None and values.get("agent_id") is None:
                values = {**values, "agent_id": self.agent_id}
            self.out(kind, rank, run_id, line(kind, values), ticket)
        except Exception as error:  # noqa: BLE001 - telemetry never raises
            self.unmade(kind, run_id, error, ticket)

    def out(self, kind: str, rank: int, run_id: str, data: bytes, ticket: Ticket | None = None) -> None:
        """Hand over a record's bytes, cut to the limit."""
        if len(data) > self.max_record_bytes:
            data = shrink(data, self.max_record_bytes)
            if self.channel is not None:
                self.channel.count_cut()
        if mode.tap is not None:
            mode.tap(data)
        if self.channel is not None:
            self.channel.send(kind, rank, run_id, data, len(data), ticket)

    def unmade(self, kind: str, run_id: str, error: Exception, ticket: Ticket | None = None) -> None:
        """Count a record that could not be made."""
        self.never(kind, run_id, "not_encodable", f"{kind} could not be encoded: {safe_repr(error)}", ticket)

    def never(self, kind: str, run_id: str, cause: str, reason: str, ticket: Ticket | None = None) -> None:
        """Count a record that was lost before it was one."""
        if self.channel is not None:
            self.channel.never(kind, run_id, cause, reason, ticket)
