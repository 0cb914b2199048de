"""Two switches that the pytest plugin turns and every client reads. A module of its own so that the plugin loads no client."""

from __future__ import annotations

from collections.abc import Callable

inert = False  # every client made while this is set does nothing
tap: Callable[[bytes], None] | None = None  # hears each record that any client emits, inert or not
