"""What gates share where they read an answer: failures that mean the same everywhere, ids in paths, reasons."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import quote

import msgspec

from agentd.exchange import GATE_ANSWER_BYTES, Attempt, Lost, Response
from agentd.gating import Ruling, Word

_REASON_CHARS = 500
_MAX_ID_CHARS = 200
_NO_SEGMENT = frozenset({".", ".."})  # a URL loses them on its way
# A server that names one of these has not acted on the request: it read it and said no, or pointed elsewhere before it did.
# 302 and 303 may follow an act, 408 and 409 may speak of one that came before.
_TURNED_AWAY = frozenset(
    {301, 307, 308, 400, 401, 402, 403, 404, 405, 406, 411, 413, 414, 415, 421, 422, 425, 426, 428, 429, 431}
)
_NOT_OURS = frozenset({301, 302, 303, 307, 308, 405})
# What platforms' keys look like; an answer that quotes the key which it refuses must not carry it into logs and books.
_KEY = re.compile(
    r"(?i)\bbearer\s+[^\s\"',;]+"
    r"|\b(?:owkai_[a-z_]+|ask_live|aegis_sk|dos_live|dos_test|decide_live|aos_agent|aos_ws|aos_user)_[a-z0-9_\-]+"
    r"|\bascend_[a-z0-9]+_[a-z0-9_\-]{16,}"
)


def bounded(reason: str) -> str:
    """A reason of at most 500 characters, without keys."""
    return _KEY.sub("[key]", reason[: 4 * _REASON_CHARS])[:_REASON_CHARS].rstrip(": ")


def lost(answer: Lost) -> Ruling:
    """No answer: something was made unless certainly nothing was sent."""
    return Ruling(Word.UNAVAILABLE, bounded(answer.reason), acted=answer.sent)


def failed(status: int, reason: str, again_s: float | None = None) -> Ruling:
    """An answer that is no success and no decision either."""
    hint = ": is base_url right?" if status in _NOT_OURS else ""
    return Ruling(Word.UNAVAILABLE, bounded(reason + hint), acted=status not in _TURNED_AWAY, again_s=again_s)


def still_open(reason: str, platform_id: str | None = None, again_s: float | None = None) -> Ruling:
    """The platform has not said its last word, or it could not be heard this time."""
    return Ruling(Word.PENDING, bounded(reason), platform_id, final=False, again_s=again_s)


def segment(platform_id: str) -> str | None:
    """An id as one segment of a path; None for one that would address something else, or that no platform gives."""
    if not platform_id.strip() or platform_id in _NO_SEGMENT or len(platform_id) > _MAX_ID_CHARS:
        return None
    return quote(platform_id, safe="") if platform_id.isprintable() else None


def after(attempt: Attempt, ruling: Ruling) -> Ruling:
    """The ruling, in the light of earlier tries: one of them may have acted, whatever the last one is answered."""
    if ruling.acted or not attempt.maybe_taken:
        return ruling
    return msgspec.structs.replace(ruling, acted=True)


def is_cut(answer: Response) -> bool:
    """Whether an answer that is no JSON is the beginning of some that was too long to be read whole."""
    return len(answer.body) >= GATE_ANSWER_BYTES and answer.body.lstrip().startswith((b"{", b"["))


def says_twice(body: bytes) -> bool:
    """Whether some JSON object in the body has a name twice: readers differ in which of the two values counts."""
    try:
        json.loads(body.decode(), object_pairs_hook=_once)
    except _Twice:
        return True
    except (ValueError, RecursionError):  # for whoever reads it in earnest
        return False
    return False


class _Twice(Exception):  # noqa: N818 - a finding
    """A name occurs twice."""


def _once(members: list[tuple[str, Any]]) -> None:
    if len({name for name, _ in members}) < len(members):
        raise _Twice
