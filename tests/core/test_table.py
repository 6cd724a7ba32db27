"""Tables for people."""

from __future__ import annotations

from clip_embed._cli.table import format_cell, format_table


def test_cells_are_short_and_of_one_line() -> None:
    """Images show their size, vectors their length, long texts an ellipsis."""
    assert format_cell(b"x" * 12_345) == "12,345 bytes"
    assert format_cell([0.25] * 512) == "[0.250, 0.250, 0.250, … 512]"
    assert format_cell({"distance": 0.5, "score": None}) == "distance: 0.500, score: NULL"
    assert format_cell("a\nb") == "a b"
    assert len(format_cell("x" * 500)) == 80


def test_columns_line_up() -> None:
    """Each column is as wide as its widest cell; an empty answer shows its header."""
    assert format_table(("n", "file"), [(1, "a"), (100, "b")]).split("\n") == [
        "n    file",
        "───  ────",
        "1    a",
        "100  b",
    ]
    assert format_table(("n",), []) == "n\n─"
