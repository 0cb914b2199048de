"""Which headers pass, either way: lists of what may, so that a new one does not get through by being unknown. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

_OUT = ("content-type", "accept", "accept-language", "user-agent")
_KEYS = frozenset({"authorization", "x-api-key", "cookie", "proxy-authorization"})
# Of the answer: what it is, when to come again, and what names it in the platform's logs. Neither cookies nor a way elsewhere.
_BACK = frozenset({"content-type", "retry-after", "cache-control", "etag", "last-modified"})
_BACK_ENDS = ("request-id", "correlation-id", "trace-id", "idempotency-status", "idempotency-replayed")
_BACK_HEADS = ("x-ratelimit-", "ratelimit", "x-rate-limit-")


def outgoing(sent: Mapping[str, str], own: Mapping[str, str], more: Collection[str]) -> dict[str, str]:
    """What goes to the platform: of the SDK's headers those that may, and over them `own`, which hold the platform's key.

    Names in lower case. `more` are those that the stand-in lets through beside the common ones; they win over `own`, since a
    caller's idempotency key is what the platform knows a repeat by. Those that carry keys never pass, whoever lists them.
    """
    common = {name: sent[name] for name in _OUT if name in sent}
    if (
        "content-type" in common
    ):  # JSON is what was checked: a platform must not read a form, or another charset, out of it
        common["content-type"] = "application/json"
    theirs = {name: sent[name] for name in sorted(set(more) - _KEYS) if name in sent}
    return common | {name.lower(): value for name, value in own.items() if value} | theirs


def returning(answer: Mapping[str, str]) -> dict[str, str]:
    """What of the platform's answer its SDK gets to see. Names in lower case."""
    return {
        name: value
        for name, value in answer.items()
        if name in _BACK or name.startswith(_BACK_HEADS) or name.endswith(_BACK_ENDS)
    }
