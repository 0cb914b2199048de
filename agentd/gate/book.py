"""Which gates there are: an index in memory of the rows on disk, by id and by (owner, key). Pure; what is dropped is told.

A gate with a key is kept for `gate.remember` after its last word, so that who asks again hears the same; without one nobody
asks for it by name but an operator, and the newest 10,000 will do. One that is unavailable and may have acted keeps its key
until somebody says what became of it: that is the one whose repeat would act twice. A key that the client library has made, for
want of the caller's own, is asked for again within its deadline and never after: ten minutes later it is none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from agentd.gating import Word
from agentd.spool.gaterows import Brief, GateRow, Step, Stored, brief_of

UNKEYED = 10_000
OWN_KEY = "client:"  # how the keys begin that the client library makes (agentd.client.verdict)
_OWN_KEY_US = 600 * 10**6
UNDER_WAY = 4096  # gates at once, each with a connection of its own to the platform
_SHARE = (
    0.75  # of what there is for gates: more than this is nobody's alone, or one agent could take everybody's gates away
)
_COLUMNS = 512  # bytes that a row usually takes beside request and response; a long reason or note is more
# Bytes of a gate's entry in memory beside its key. By tracemalloc 672 with a key of 43 characters, 20,000 gates; dicts grow in steps.
_INDEX = 700
_MAX_KEY = 300


def size_of(gate: GateRow) -> int:
    """About what a gate takes on disk."""
    return len(gate.request) + len(gate.response) + _COLUMNS


def _entry_of(brief: Brief) -> int:
    """About what its entry takes in memory."""
    return _INDEX + len(brief.key or "")


def _has_own_key(brief: Brief) -> bool:
    """Whether the client library made its key."""
    return brief.key is not None and brief.key.startswith(OWN_KEY)


def owner_of(uid: int, token: int) -> int:
    """Whose keys are one space: a uid's; for callers over TCP whose uid the kernel does not say, a token's."""
    return uid if uid >= 0 else -2 - token


def is_unmade(brief: Brief) -> bool:
    """Whether nothing can have been made of it."""
    return brief.step is Step.FINAL and brief.word is Word.UNAVAILABLE and not brief.acted


def may_ask_again(brief: Brief) -> bool:
    """Whether the same question under its key is a new try: nothing was made of it, and no agent was let go by the fail mode."""
    return is_unmade(brief) and not brief.fail_open


def is_unresolved(brief: Brief) -> bool:
    """Whether nobody knows what became of it."""
    return brief.step is Step.FINAL and brief.word is Word.UNAVAILABLE and brief.acted


class Book:
    """See the module. `max_bytes` bounds all rows, `open_bytes` those that are under way and so in memory as a whole.

    `index_bytes` bounds what the book itself takes in memory.
    """

    def __init__(
        self,
        max_bytes: int,
        open_bytes: int,
        index_bytes: int,
        unkeyed: int = UNKEYED,
        *,
        under_way: int = UNDER_WAY,
    ) -> None:
        self._max_bytes = max_bytes
        self._max_index = index_bytes
        self._max_open_bytes = open_bytes
        self._max_unkeyed = unkeyed
        self._max_open = under_way
        self._gates: dict[str, Stored] = {}  # in the order of asking
        self._keys: dict[tuple[int, str], Stored] = {}
        self._unkeyed: dict[str, None] = {}  # final ones that nobody asks for by name, the oldest first
        self._bytes = 0
        self._index = 0  # bytes in memory
        self._open_bytes = 0
        # by owner: gates that have no last word, their bytes, and the bytes of all that can't be let go for others
        self._open: Counter[int] = Counter()
        self._open_bytes_of: Counter[int] = Counter()
        self._kept_bytes_of: Counter[int] = Counter()
        self._kept_index_of: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._gates)

    def follow(self, max_bytes: int) -> None:
        """All rows take so much at most, from the next one on."""
        self._max_bytes = max_bytes

    def __repr__(self) -> str:
        return f"<Book {len(self)} gates, {self._bytes} bytes>"

    def get(self, gate_id: str) -> Stored | None:
        return self._gates.get(gate_id)

    def under(self, owner: int, key: str) -> Stored | None:
        """The gate that was asked under this key."""
        return self._keys.get((owner, key))

    def newest(self, wanted: Callable[[Brief], bool]) -> Iterator[Stored]:
        return (stored for stored in reversed(self._gates.values()) if wanted(stored.brief))

    def room(self, size: int, owner: int | None = None) -> bool:
        """Whether a question of this size may be taken. What nobody asks for by name makes room: see `overflow`.

        No `owner` has more than three quarters of what there is.
        """
        if self._open_bytes + size > self._max_open_bytes or self._open.total() >= self._max_open:
            return False
        if owner is not None and (
            self._open[owner] >= self._max_open * _SHARE
            or self._open_bytes_of[owner] + size > self._max_open_bytes * _SHARE
            or self._kept_bytes_of[owner] + size > self._max_bytes * _SHARE
            or self._kept_index_of[owner] + _INDEX + _MAX_KEY > self._max_index * _SHARE
        ):
            return False
        excess, entries = self._excess(size)
        if excess <= 0 and entries <= 0:
            return True
        loose = [self._gates[gate_id] for gate_id in self._unkeyed]
        return sum(each.size for each in loose) >= excess and sum(_entry_of(each.brief) for each in loose) >= entries

    def _excess(self, size: int) -> tuple[int, int]:
        """How many bytes have to go for `size` more on disk, there and in memory."""
        return self._bytes + size - self._max_bytes, self._index + (_INDEX + _MAX_KEY) * bool(size) - self._max_index

    def put(self, stored: Stored) -> None:
        """Add a gate, or take note of what has changed of it."""
        brief = stored.brief
        self.remove(brief.gate_id, keep_place=True)
        self._gates[brief.gate_id] = stored
        self._bytes += stored.size
        self._count(stored, 1)
        if brief.step is Step.FINAL and brief.key is None:
            self._unkeyed[brief.gate_id] = None
        if brief.key is not None:
            self._keys[owner_of(brief.uid, brief.token), brief.key] = stored

    def record(self, gate: GateRow) -> None:
        """The same from a whole row."""
        self.put(Stored(gate.row, brief_of(gate), size_of(gate)))

    def remove(self, gate_id: str, *, keep_place: bool = False) -> None:
        """Forget a gate; with `keep_place` its place in the order of asking waits for its successor."""
        stored = self._gates.get(gate_id)
        if stored is None:
            return
        self._bytes -= stored.size
        self._count(stored, -1)  # as it was counted: while it is known whether it was let loose
        self._unkeyed.pop(gate_id, None)
        if stored.brief.key is not None:
            self._keys.pop((owner_of(stored.brief.uid, stored.brief.token), stored.brief.key), None)
        if not keep_place:
            del self._gates[gate_id]

    def _count(self, stored: Stored, sign: int) -> None:
        brief = stored.brief
        owner, is_open = owner_of(brief.uid, brief.token), brief.step is not Step.FINAL
        self._index += sign * _entry_of(brief)
        if is_open:
            self._open_bytes += sign * stored.size
            self._open[owner] += sign
            self._open_bytes_of[owner] += sign * stored.size
        if is_open or (brief.key is not None and brief.gate_id not in self._unkeyed):
            self._keep(stored, sign)

    def _keep(self, stored: Stored, sign: int) -> None:
        owner = owner_of(stored.brief.uid, stored.brief.token)
        self._kept_bytes_of[owner] += sign * stored.size
        self._kept_index_of[owner] += sign * _entry_of(stored.brief)

    def overflow(self, size: int = 0) -> list[int]:
        """Let the oldest go that nobody asks for by name, until `size` more bytes fit; their rows."""
        rows = []
        while self._unkeyed and (len(self._unkeyed) > self._max_unkeyed or max(self._excess(size)) > 0):
            rows.append(self._drop(next(iter(self._unkeyed))))
        return rows

    def prune(self, age_us: Callable[[int], int], remember_us: int) -> list[int]:
        """Let those go that were decided more than `remember_us` ago; their rows. Keys that were the client's own lose their weight.

        `age_us` says how long ago a gate was decided.
        """
        for stored in self._gates.values():
            brief = stored.brief
            is_over = brief.step is Step.FINAL and age_us(brief.decided_us) > _OWN_KEY_US
            if is_over and _has_own_key(brief) and brief.gate_id not in self._unkeyed:
                self._keep(stored, -1)
                self._unkeyed[brief.gate_id] = None
        final = [stored.brief for stored in self._gates.values() if stored.brief.step is Step.FINAL]
        old = [brief for brief in final if age_us(brief.decided_us) > remember_us and not _is_kept(brief)]
        return [self._drop(brief.gate_id) for brief in old]

    def _drop(self, gate_id: str) -> int:
        row = self._gates[gate_id].row
        self.remove(gate_id)
        return row


def _is_kept(brief: Brief) -> bool:
    """Whether its key has to be kept, however old, because it may have acted."""
    return brief.key is not None and not _has_own_key(brief) and is_unresolved(brief)
