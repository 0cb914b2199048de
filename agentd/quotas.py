"""What is known of the platforms' caps, over restarts: each answer is heard, and a small file in the state folder remembers.

    async with Quotas(targets, path, now_us) as quotas:
        http.listen(quotas.heard)
        quotas.document("decidefyi")

The file is advice: it is written once a minute and at the end, and one that is not there or can't be read costs a forecast until
there is something to go by again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, cast

import msgspec

from agentd.delivery.quota import Quota, forecast
from agentd.exchange import Lost, Metered, Platform, Request, Response, told_at
from agentd.sections import Destination
from agentd.units import rfc3339

log = logging.getLogger("agentd")

_SAVE_S = 60.0
_MAX_BYTES = 2**20


class Site(Protocol):
    """A configured destination."""

    @property
    def destination(self) -> Destination: ...
    @property
    def identity(self) -> str: ...
    @property
    def platform(self) -> Platform: ...


class Quotas:
    """See the module."""

    def __init__(self, sites: Mapping[str, Site], path: Path, now_us: Callable[[], int]) -> None:
        """`sites` may change behind it."""
        self._sites = sites
        self._path = path
        self._now_us = now_us
        self._known: dict[str, Quota] = {}
        self._unsaved = False
        self._saving: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Quotas of {', '.join(self._known) or 'none'}>"

    async def __aenter__(self) -> Self:
        self._known = await asyncio.to_thread(_read, self._path)
        self._saving = asyncio.create_task(self._keep_saving(), name="quotas")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._saving is not None:
            self._saving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._saving
        await self._save()

    def heard(self, name: str, request: Request, answer: Response | Lost) -> None:
        """A destination has answered, whatever it was asked for."""
        site = self._sites.get(name)
        metered = None if site is None else _metered(site.platform)
        if site is None or metered is None or isinstance(answer, Lost):
            return
        now_s = self._now_us() / 1e6
        usage = metered.usage(request, answer, told_at(answer, now_s))
        quota = self._known.get(name)
        if quota is None or quota.identity != site.identity:
            quota = self._known[name] = Quota(site.identity)
        quota.note(usage, now_s)
        self._unsaved = True

    def document(self, name: str) -> dict[str, Any]:
        """For the status: `quota` with what is known, `forecast` with the sentence if there is something to fear."""
        site = self._sites.get(name)
        metered = None if site is None else _metered(site.platform)
        if site is None or metered is None:
            return {"quota": None, "forecast": None}
        now_s = self._now_us() / 1e6
        quota = self._known.get(name)
        if quota is None or quota.identity != site.identity:
            quota = Quota(site.identity)
        seen = forecast(quota, site.destination.monthly_cap, now_s)
        facts = {
            "used": seen.used,
            "since": rfc3339(seen.since_s),
            "cap": seen.cap,
            "left": seen.left,
            "per_day": None if seen.per_day is None else round(seen.per_day, 1),
            "reached": seen.reached,
            "reached_at": None if seen.reached_s is None else rfc3339(seen.reached_s),
            "resets_at": None if seen.resets_s is None else rfc3339(seen.resets_s),
        }
        return {"quota": facts, "forecast": seen.sentence(metered.cap, now_s)}

    async def _keep_saving(self) -> None:
        while True:
            await asyncio.sleep(_SAVE_S)
            await self._save()

    async def _save(self) -> None:
        told = {
            name: quota for name, quota in self._known.items() if quota.used or quota.reached or quota.left is not None
        }
        if not self._unsaved or not told:
            return
        self._unsaved = False
        try:
            await asyncio.to_thread(_write, self._path, msgspec.json.encode(told))
        except OSError as error:  # a full disk: it is tried again in a minute
            self._unsaved = True
            log.info("%s can't be written: %s", self._path, error.strerror, extra={"action": "quota_unsaved"})


def _metered(platform: Platform) -> Metered | None:
    """The platform where it tells something of a cap."""
    return cast("Metered", platform) if hasattr(platform, "usage") else None


def _read(path: Path) -> dict[str, Quota]:
    """What was known; nothing where it can't be read, and no link is followed."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(handle, "rb") as file:  # noqa: PTH123 - of a handle
            return msgspec.json.decode(file.read(_MAX_BYTES), type=dict[str, Quota])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        log.warning("%s can't be read (%s): quotas are counted anew", path, error, extra={"action": "quota_unread"})
        return {}


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all; not synced: it is advice."""
    new = path.with_name(f"{path.name}.new")
    with contextlib.suppress(FileNotFoundError):
        new.unlink()
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(handle, "wb") as file:  # noqa: PTH123 - of a handle
        file.write(content)
    new.rename(path)
