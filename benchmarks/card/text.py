"""Markdown of the data card: tables, numbers, filled paragraphs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence


def wrapped(lines: Sequence[str], width: int = 120) -> Iterator[str]:
    """Lines with paragraphs filled; headings, tables and pictures as they are."""
    paragraph: list[str] = []
    for line in [*lines, ""]:
        if line and line[0] not in "#|!":
            paragraph.append(line)
            continue
        if paragraph:
            yield from textwrap.wrap(" ".join(paragraph), width, break_long_words=False, break_on_hyphens=False)
            paragraph = []
        yield line


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    """A Markdown table, without columns that have nothing in any row."""
    cells = [[str(cell) for cell in row] for row in rows]
    kept = [i for i in range(len(heads)) if any(row[i] for row in cells)]
    yield f"| {' | '.join(heads[i] for i in kept)} |"
    yield "|---" * len(kept) + "|"
    for row in cells:
        yield f"| {' | '.join(row[i] for i in kept)} |"


def number(value: float | None, digits: int = 2) -> str:
    """A number, or nothing."""
    return "" if value is None else f"{value:.{digits}f}"


def percent(value: float | None, digits: int = 0) -> str:
    """A share, or nothing."""
    return "" if value is None else f"{100 * value:.{digits}f} %"
