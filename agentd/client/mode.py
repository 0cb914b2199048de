"""Switches that the pytest plugin turns and every client reads. A module of its own so that the plugin loads no client."""

from __future__ import annotations

from collections.abc import Callable

TYPE_CHECKING = False  # `typing` would cost the plugin more than the rest of this module
if TYPE_CHECKING:
    from agentd.client.script import Script

inert = False  # every client made while this is set does nothing
tap: Callable[[bytes], None] | None = None  # hears each record that any client emits, inert or not
script: Script | None = None  # hears what any client asks, and answers for those that do nothing
