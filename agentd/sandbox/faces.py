"""What a platform looks like to the rest of the sandbox: the `Face` protocol, and how a face is found by its name.

A face is one module in this folder, named as the platform is in the configuration, with a name `FACE` that makes one when
called without arguments. Server, faults, books and pages know no platform; whatever they need to show or refuse they ask of
the face. A face does no I/O and has no clock: the time comes with the call, and answering is synchronous, so that a request
is committed whole or not at all.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import msgspec

from agentd.errors import UsageError

JSON = "application/json"

# Modules of this folder that are no platform. `face_names` would otherwise have to import everything to find out.
EQUIPMENT = frozenset(
    {"books", "demo", "demo_governed", "emulation", "faces", "faults", "inspection", "pages", "server", "switches"},
)
_NAME = re.compile(r"[a-z][a-z0-9_]*")


class Call(msgspec.Struct, frozen=True):
    """One request as a face sees it: `path` is relative to the face, still percent-encoded, without the query."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    query: str = ""
    now: float = 0.0  # seconds since 1970


class Answer(msgspec.Struct, frozen=True):
    """What goes back to the client: now, or if it is held, as late as that."""

    status: int
    body: bytes = b""
    content_type: str = JSON
    headers: Mapping[str, str] = {}
    held: Held | None = None


class Held(msgspec.Struct, frozen=True):
    """A long poll. Its request is committed; what it is told is `look(now)` once that is held no more.

    The server looks whenever something has happened, and at `until` at the latest.
    """

    until: float  # seconds since 1970
    look: Callable[[float], Answer]


class Totals(msgspec.Struct, frozen=True):
    """What a face holds. `duplicates` counts deliveries beyond the first of what bears an id; `details` is the face's own."""

    runs: int = 0
    events: int = 0
    duplicates: int = 0
    details: dict[str, Any] = {}


class Face(Protocol):
    """One platform. A *run* is whatever has a history there: a run, a decision, an action, an intent."""

    name: str
    prefixes: tuple[str, ...]
    """Paths that are this platform's own; beside them, everything below `/{name}/` is."""
    switches: msgspec.Struct
    """A frozen Struct, replaced whole when a switch is thrown; behaviour on which no source is certain."""

    def presented_key(self, headers: Mapping[str, str]) -> str:
        """The API key that a request shows in this platform's way, or an empty string."""

    def idempotency_key(self, call: Call) -> str:
        """The key by which a repeat of this request would be recognised, or an empty string."""

    def answer(self, call: Call) -> Answer:
        """Judge an authenticated request, commit it if it stands, and answer it."""

    def refuse(self, status: int, message: str) -> Answer:
        """An error in this platform's envelope; also how injected faults speak."""

    def totals(self) -> Totals:
        """Counters over everything since the last reset."""

    def runs(self, limit: int | None = None, offset: int = 0) -> list[dict[str, Any]]:
        """One short row a run, newest first; each has `id`, by which `run` finds it."""

    def run(self, key: str, limit: int | None = None, offset: int = 0) -> dict[str, Any] | None:
        """Everything about one run, found by the platform's id or the client's; limit and offset apply to `events`."""

    def act(self, item_id: str, verb: str) -> Answer:
        """What a person does to a run that a row of `runs` offers under `verbs`, such as approve or deny."""

    def reset(self) -> None:
        """Forget everything but the switches."""


@runtime_checkable
class Keyless(Protocol):
    """A face some of whose addresses need no key; the others don't have this."""

    def opens(self, call: Call) -> bool:
        """Whether whoever knows this address may ask there: a capability link."""


@runtime_checkable
class Hearing(Protocol):
    """A face some of whose verbs take a person's words; rows name these verbs under `with_text`. The others don't have this."""

    def hear(self, item_id: str, verb: str, text: str) -> Answer:
        """`act`, with what the person said; empty if nothing."""


def face_names() -> tuple[str, ...]:
    """The platforms that the sandbox can be, by the modules in its folder."""
    found = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return tuple(sorted(name for name in found if name not in EQUIPMENT and not name.startswith("_")))


def load_face(name: str) -> Face:
    """A fresh face by its module's name. Raises UsageError that lists the names there are."""
    if _NAME.fullmatch(name) is None or name not in face_names():
        raise UsageError(f"the sandbox has no platform {name!r}; it has {', '.join(face_names())}")
    module = importlib.import_module(f"{__package__}.{name}")
    factory: Callable[[], Face] = module.FACE
    return factory()
