"""Tables for people."""

from __future__ import annotations

from clip_embed._cli.table import format_box, format_cell, format_table


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


def test_a_box_is_as_wide_as_it_looks() -> None:
    """Numbers stand right; wide and combining letters are counted by what they take on the screen."""
    rows = [["1", "猫"], ["100", "e\u0301"]]
    assert format_box(["n", "file"], ["INTEGER", "VARCHAR"], rows, right=[True, False]).split("\n") == [
        "┌─────────┬─────────┐",
        "│       n │ file    │",
        "│ INTEGER │ VARCHAR │",
        "├─────────┼─────────┤",
        "│       1 │ 猫      │",
        "│     100 │ e\u0301       │",
        "└─────────┴─────────┘",
    ]


def test_a_box_fits_the_terminal() -> None:
    """The widest cells give way; what is short stays whole."""
    rows = [["short", "x" * 70, "猫" * 30]]
    lines = format_box(["a", "b", "c"], ["T", "T", "T"], rows, right=[False] * 3, width=60).split("\n")
    widths = {len(line) + line.count("猫") for line in lines}
    assert len(widths) == 1
    assert 55 <= widths.pop() <= 60
    assert "│ short │" in lines[4]
    assert "xx… │ 猫猫" in lines[4]


def test_nothing_steers_the_terminal() -> None:
    """Control characters are spelled out."""
    assert format_cell("\x1b[31mred\x07") == r"\x1b[31mred\x07"
