"""What standard output can bear: colours, live screens, or plain lines. Nothing here loads rich."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click

_COLOUR = re.compile(r"(\x1b\[(?:3[0-7]|0)m)")  # what `paint` puts around a word


def is_live() -> bool:
    """Whether a screen may be redrawn here: a terminal, and one that can move its cursor."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def paint(text: str, colour: str) -> str:
    """The text in a colour where colours are welcome (https://no-color.org), else as it is."""
    return click.style(text, fg=colour) if is_live() and not os.environ.get("NO_COLOR") else text


def harmless(text: str) -> str:
    """One line without what a terminal would take for an order: names, reasons, answers and records come from others."""
    return text if text.isprintable() else "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def echo_lines(lines: Iterable[str]) -> None:
    """Lines for people on standard output, harmless but for their colours."""
    for line in lines:
        click.echo("".join(part if _COLOUR.fullmatch(part) else harmless(part) for part in _COLOUR.split(line)))


def print_json(document: Any) -> None:
    """The one document of `--json`."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def complain(message: str) -> None:
    """One line for people on standard error."""
    click.echo(f"agentd: {message}", err=True)


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, left: int = 1) -> list[str]:
    """Aligned columns, two blanks apart: the first `left` of them to the left, numbers to the right."""
    lines = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
