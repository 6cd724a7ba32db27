"""ibis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import duckdb
import pytest

pytest.importorskip("ibis", reason="needs ibis-framework")


@pytest.mark.skipif(
    not hasattr(duckdb.DuckDBPyConnection, "fetch_arrow_table"),
    reason="ibis 12 calls fetch_arrow_table, which DuckDB 2.0 does not have: the env hosts-old runs this",
)
@pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning")  # ibis' own call
def test_the_recipe(recipe: Callable[[str], str]) -> None:
    """The functions are expressions once they are declared; failed images have no score."""
    found: dict[str, Any] = {}
    exec(recipe("ibis"), found)  # noqa: S102 - the point of the test
    assert found["best"]["file"].to_pylist()[0] == "photos/car_red_saloon.jpg"
    assert len(found["best"]) == 3
