"""Who may do what: uids on the Unix socket by `[[security.peers]]`, holders of local tokens by `[[security.tokens]]`. Pure.

A token is kept as its SHA-256 only, so that neither a dump nor a `repr` shows it, and all of them are compared in a time
that says nothing about them. A peer that is neither on the Unix socket nor the holder of a token may do nothing.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Sequence

from agentd.intake import Grant, Peer
from agentd.sections import Security

_ALL = Grant()
_NOTHING = Grant((), frozenset())


class Access:
    """The rules of `[security]`."""

    def __init__(self, security: Security = Security(), tokens: Sequence[str] = ()) -> None:  # noqa: B008 - frozen
        """`tokens` are the secrets of `security.tokens`, in their order; none where nothing listens on TCP."""
        self.follow(security, tokens)

    def follow(self, security: Security, tokens: Sequence[str]) -> None:
        """By these rules from now on, also on connections that there are."""
        self._digests = [_digest(token) for token in tokens]
        self._tokens = [_grant(rule.agent_ids, rule.destinations) for rule in security.tokens[: len(tokens)]]
        self._uids = {rule.uid: _grant(rule.agent_ids) for rule in security.peers}

    def __repr__(self) -> str:
        return f"<Access {len(self._digests)} tokens, {len(self._uids)} uids with a rule>"

    def token_of(self, shown: Iterable[str]) -> int | None:
        """Which of the tokens is among what a caller has shown (the first, if it shows several); None if none is."""
        found = None
        for text in shown:
            digest = _digest(text)
            for index, own in enumerate(self._digests):  # to the end, whichever it is
                if hmac.compare_digest(digest, own) and found is None:
                    found = index
        return found

    def grant(self, peer: Peer) -> Grant:
        """What the peer may do. On the Unix socket a uid without a rule may do all, admin or not."""
        if peer.local:
            return self._uids.get(peer.uid, _ALL)
        return self._tokens[peer.token] if peer.token < len(self._tokens) else _NOTHING


def _grant(agent_ids: Sequence[str] | None, destinations: Sequence[str] | None = None) -> Grant:
    return Grant(
        None if agent_ids is None else tuple(agent_ids), None if destinations is None else frozenset(destinations)
    )


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
