"""The platform's key is taken out of whatever the platform says: an echo of the request must not hand it to an agent.

Answers reach agents, dead letters, logs and the status. Only what stands there letter for letter is found: a platform that sends
the key back in pieces or in another encoding can't be kept from it.
"""

from __future__ import annotations

from collections.abc import Mapping

_HEADERS = frozenset({"authorization", "x-api-key"})  # of a request, in lower case: all that carry a key
_SHORTEST = 8  # characters; what is shorter stands in a text by chance
_STARS = b"***"


class Withheld:
    """What must not be said, from the headers of a request."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        words = {value.rpartition(" ")[2] for name, value in headers.items() if name.lower() in _HEADERS}
        self._keys = [word.encode() for word in words if len(word) >= _SHORTEST]

    def __repr__(self) -> str:
        """Without the keys."""
        return f"<Withheld {len(self._keys)} keys>"

    def data(self, data: bytes) -> bytes:
        for key in self._keys:
            data = data.replace(key, _STARS)
        return data

    def text(self, data: str) -> str:
        for key in self._keys:
            data = data.replace(key.decode(), _STARS.decode())
        return data

    def begun(self, data: bytes) -> int:
        """How many bytes at its end may be the beginning of a key, whose rest is still to come."""
        return max((_overlap(data, key) for key in self._keys), default=0)


def _overlap(data: bytes, key: bytes) -> int:
    return next((size for size in range(min(len(key) - 1, len(data)), 0, -1) if data.endswith(key[:size])), 0)
