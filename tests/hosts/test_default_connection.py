"""`duckdb.sql`, DuckDB's connection without a name."""

from __future__ import annotations

from collections.abc import Callable

import duckdb
import pytest

from clip_embed_duckdb import unregister


def test_the_recipe(recipe: Callable[[str], str], capsys: pytest.CaptureFixture[str]) -> None:
    """The functions are in `duckdb.sql`, over paths relative to the working folder."""
    try:
        exec(recipe("duckdb.sql"), {})  # noqa: S102 - the point of the test
        shown = capsys.readouterr().out
        assert 0 < shown.index("car_red_saloon.jpg") < shown.index("panda.jpg")
        assert duckdb.sql("SELECT clip_error('photos/torn.jpg')").fetchall()[0][0]
    finally:
        unregister(duckdb.default_connection())
