"""The order of what finds no room: a record that is refused is not overtaken by a later one of its run. Pure.

It holds per destination: what waits for one holds up no other. Only what is never shed may still come behind a debug or info
event that was refused, since it may find room by shedding others of these; where the refused wait here (`hold`), nothing may.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from msgspec import Struct, field

from agentd.intake.dedupe import DIGEST
from agentd.records import LossClass

Place: TypeAlias = tuple[str, str]  # destination, order key
MAX_TURNED_AWAY = 256  # runs of one stream that are remembered each by itself; they are written with each envelope


class Turns(Struct):
    """Whose turn it is not, during one message.

    `away` is the stream's, and changed in place: `destination order-key` → digest of the record that has to come first, and
    the seq that it came with: what a full disk takes back may have come before. It holds records alone that are never shed,
    and so come again, in their order. Beyond `MAX_TURNED_AWAY` runs all others wait at the destination for the first of them
    that found no place here, under an empty order key; until that comes, an empty value says of a run that it need not wait.
    """

    away: dict[str, bytes] = field(default_factory=dict)
    seq: int = 0
    hold: bool = False
    full: set[tuple[str, str, LossClass]] = field(default_factory=set)  # of records that found no room themselves

    def wait_behind(self, places: Iterable[Place]) -> None:
        """What waits there came before all of the message."""
        self.full |= {(destination, key, LossClass.KEEP) for destination, key in places}

    def is_behind(self, destination: str, key: str, loss: LossClass, content: bytes) -> bool:
        """Whether something has to come before this record; `content` is its digest."""
        if (destination, key, LossClass.KEEP) in self.full or (destination, key, loss) in self.full:
            return True
        first = self.away.get(f"{destination} {key}")
        if first is None:
            first = self.away.get(f"{destination} ")
        return first is not None and first != b"" and first[:DIGEST] != content

    def turn_away(self, destination: str, key: str, loss: LossClass, content: bytes) -> None:
        """It found no room."""
        self.full.add((destination, key, LossClass.KEEP if self.hold else loss))
        if loss is not LossClass.KEEP or self.hold:
            return
        place = self._place(destination, key)
        if not self.away.get(place):
            self.away[place] = content + self.seq.to_bytes(8, "big")

    def turn_back(self, taken: Iterable[tuple[str, str, bytes]]) -> None:
        """They had found room and were not kept: (destination, order key, digest) in their order, each before what was refused."""
        first: dict[str, bytes] = {}
        for destination, key, content in taken:
            first.setdefault(self._place(destination, key), content)
        for place, content in first.items():
            known = self.away.get(place)
            if not known or int.from_bytes(known[DIGEST:], "big") >= self.seq:
                self.away[place] = content + self.seq.to_bytes(8, "big")

    def _place(self, destination: str, key: str) -> str:
        place = f"{destination} {key}"
        return place if place in self.away or len(self.away) < MAX_TURNED_AWAY else f"{destination} "

    def take(self, destination: str, key: str, content: bytes) -> None:
        """It found room: what waited for it need not any more."""
        place, rest = f"{destination} {key}", f"{destination} "
        first = self.away.get(rest)
        if first is None:
            self.away.pop(place, None)
        elif first[:DIGEST] == content:
            for free in [one for one, value in self.away.items() if not value and one.startswith(rest)]:
                del self.away[free]
            del self.away[rest]
        elif place in self.away:
            self.away[place] = b""
