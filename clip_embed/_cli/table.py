"""Rows as columns of text, for people."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from typing import cast

_NARROWEST = 6  # what is left of a cell where the terminal is too narrow


def format_table(header: Sequence[str], rows: Iterable[Sequence[object]], widest: int = 80) -> str:
    """Return header and rows in columns as wide as their widest cell, without a newline at the end.

    Cells of text are cut at `widest` characters.
    """
    lines = [list(header), *([format_cell(value, widest) for value in row] for row in rows)]
    widths = [max(_width(line[column]) for line in lines) for column in range(len(header))]
    lines.insert(1, ["─" * width for width in widths])
    return "\n".join(
        "  ".join(_fit(cell, width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def format_box(
    header: Sequence[str],
    kinds: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[bool],
    width: int | None = None,
) -> str:
    """Return a box of names, types and rows of cells, without a newline at the end.

    Columns that are `right` are aligned there. Where the box would be wider than `width`, the widest
    cells are cut.
    """
    lines = [list(header), list(kinds), *rows]
    widths = [max(_width(line[column]) for line in lines) for column in range(len(header))]
    if width is not None:
        widths = _shrink(widths, width - 3 * len(widths) - 1)

    def rule(left: str, cross: str, end: str) -> str:
        return left + cross.join("─" * (each + 2) for each in widths) + end

    def row(line: Sequence[str]) -> str:
        cells = (_fit(cell, size, last) for cell, size, last in zip(line, widths, right, strict=True))
        return "│ " + " │ ".join(cells) + " │"

    body = [row(line) for line in lines]
    return "\n".join([rule("┌", "┬", "┐"), *body[:2], rule("├", "┼", "┤"), *body[2:], rule("└", "┴", "┘")])


def format_cell(value: object, widest: int = 80) -> str:
    """Return a value in one short line: images as their size, vectors as their first numbers."""
    if value is None:
        return "NULL"
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, dict):
        fields = cast("dict[object, object]", value)
        return ", ".join(f"{format_cell(name)}: {format_cell(part)}" for name, part in fields.items())
    if isinstance(value, (list, tuple)):
        parts = cast("Sequence[object]", value)
        shown = ", ".join(format_cell(part) for part in parts[:3])
        return f"[{shown}, … {len(parts):,}]" if len(parts) > 3 else f"[{shown}]"
    return shorten(one_line(str(value)), widest)


def one_line(text: str) -> str:
    """Return a text in one line and `printable`."""
    return printable(" ".join(text.split()))


def printable(text: str) -> str:
    """Return a text with its control characters spelled out, but newlines: no others reach a terminal."""
    return text if text.isprintable() else "".join(map(_spell_out, text))


def _spell_out(letter: str) -> str:
    return repr(letter)[1:-1] if unicodedata.category(letter) == "Cc" and letter != "\n" else letter


def shorten(line: str, widest: int) -> str:
    """Return a line, cut at `widest` characters."""
    return line if len(line) <= widest else line[: widest - 1] + "…"


def _fit(cell: str, width: int, right: bool = False) -> str:
    """Return a cell of exactly this width on the screen, cut or padded."""
    missing = width - _width(cell)
    if missing < 0:
        while _width(cell) > width - 1:
            cell = cell[:-1]
        cell += "…"
        missing = width - _width(cell)
    return " " * missing + cell if right else cell + " " * missing


def _width(text: str) -> int:
    """Return how many columns of a terminal a text takes: two for a Chinese character or an emoji."""
    if text.isascii():
        return len(text)
    shown = [letter for letter in text if unicodedata.category(letter) not in ("Mn", "Me", "Cf")]
    return len(shown) + sum(unicodedata.east_asian_width(letter) in ("W", "F") for letter in shown)


def _shrink(widths: Sequence[int], room: int) -> list[int]:
    """Return widths that take no more than `room`: the widest columns give way first."""
    widest = max(widths)
    while widest > _NARROWEST and sum(min(width, widest) for width in widths) > room:
        widest -= 1
    return [min(width, widest) for width in widths]
