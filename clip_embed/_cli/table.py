"""Rows as columns of text, for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast


def format_table(header: Sequence[str], rows: Iterable[Sequence[object]], widest: int = 80) -> str:
    """Return header and rows in columns as wide as their widest cell, without a newline at the end.

    Cells of text are cut at `widest` characters.
    """
    lines = [list(header), *([format_cell(value, widest) for value in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    rule = ["─" * width for width in widths]
    lines.insert(1, rule)
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def format_cell(value: object, widest: int = 80) -> str:
    """Return a value in one short line: images as their size, vectors as their first numbers."""
    if value is None:
        return "NULL"
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, dict):
        fields = cast("dict[str, object]", value)
        return ", ".join(f"{name}: {format_cell(part)}" for name, part in fields.items())
    if isinstance(value, (list, tuple)):
        parts = cast("Sequence[object]", value)
        shown = ", ".join(format_cell(part) for part in parts[:3])
        return f"[{shown}, … {len(parts):,}]" if len(parts) > 3 else f"[{shown}]"
    line = " ".join(str(value).split())
    return line if len(line) <= widest else line[: widest - 1] + "…"
