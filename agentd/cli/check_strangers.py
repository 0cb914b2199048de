"""What `agentd check` says of other users: the ways to socket and state folder, and users whom the kernel can't tell apart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from agentd.errors import StateError
from agentd.ownership import check_way, has_all_uids, overflow_uid

if TYPE_CHECKING:
    from agentd.sections import Config


Level: TypeAlias = Literal["warning", "error"]


def look(config: Config, uid: int) -> Iterator[tuple[Level, str, str]]:
    """(level, about, message)."""
    ways = {"[listen]": (config.listen.socket, "listen.socket"), "[spool]": (config.spool.directory, "state folder")}
    for about, (path, what) in ways.items():
        try:
            check_way(Path(path), uid, what)
        except StateError as error:
            yield "error", about, str(error)
    nobody = overflow_uid()
    if not has_all_uids():
        yield (
            "warning",
            "[security]",
            (
                f"this is a user namespace that knows some users only: all others appear as uid {nobody}, share one user's limits, "
                "and see no contents of records, not even of their own; give each an agentd of its own (agentd sidecar)"
            ),
        )
    if any(rule.uid == nobody for rule in config.security.peers):
        yield (
            "warning",
            "[[security.peers]]",
            f"uid {nobody} is nobody's own: whoever has no uid here appears under it, and gets this rule",
        )
    if nobody in config.security.admin_uids:
        yield (
            "error",
            "[security]",
            f"admin_uids: uid {nobody} is nobody's own: whoever has no uid here appears under it, and would be an admin",
        )
