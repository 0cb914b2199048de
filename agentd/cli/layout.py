"""Parts of screens: bars, figures, and lines that fit a width. Pure; colours (`terminal.paint`) take no room."""

from __future__ import annotations

import re
from collections.abc import Iterator

_COLOUR = re.compile(r"\x1b\[\d*m")
_PIECES = re.compile(r"\s*\S+")  # words with the blanks before them


def bar(share: float, cells: int) -> str:
    """A share of a whole, at least one cell for a hundredth of it."""
    full = min(cells, max(round(share * cells), 1 if share >= 0.01 else 0))  # noqa: PLR2004 - as it says
    return "█" * full + "·" * (cells - full)


def rate(value: float | None) -> str:
    """Records a second in at most five places: `0.1`, `38.8`, `2,340`, `120k`; a dash where it is not known."""
    if value is None:
        return "–"
    if value < 100:  # noqa: PLR2004 - three digits
        return f"{value:.1f}"
    return f"{value:,.0f}" if value < 10_000 else f"{value / 1000:,.0f}k"  # noqa: PLR2004


def length(line: str) -> int:
    """The places that it takes."""
    return len(_COLOUR.sub("", line))


def wrapped(line: str, width: int) -> Iterator[str]:
    """The line, parted at its blanks where it is longer than `width`; what follows stands two places further in."""
    indent = " " * (len(line) - len(line.lstrip(" ")) + 2)
    now = ""
    for piece in _PIECES.findall(line):
        if now.strip() and length(now) + length(piece) > width:
            yield now
            now = indent + piece.lstrip()
        else:
            now += piece
    yield now


def cut(line: str, width: int) -> str:
    """The line, or its beginning and an ellipsis. Of plain text: a colour would be cut as well."""
    return line if len(line) <= width else line[: max(0, width - 1)] + "…"
