"""SQLAlchemy with duckdb-engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("duckdb_engine", reason="needs duckdb-engine")
import sqlalchemy
from sqlalchemy import func, literal, select, text


@pytest.fixture
def found(recipe: Callable[[str], str]) -> Iterator[dict[str, Any]]:
    """What the page's recipe leaves behind."""
    names: dict[str, Any] = {}
    exec(recipe("SQLAlchemy"), names)  # noqa: S102 - the point of the test
    yield names
    names["engine"].dispose()


def test_the_recipe(found: dict[str, Any]) -> None:
    """Its query has the best match first, and no file that failed."""
    assert found["best"][0] == "photos/car_red_saloon.jpg"
    assert "photos/torn.jpg" not in found["best"]


def test_connections_side_by_side(found: dict[str, Any]) -> None:
    """All connections of the pool have the functions, at the same time."""
    subjects = {"a panda": "panda", "a rose": "rose_red", "a red car": "car_red_saloon"}

    def best(subject: str) -> str:
        with found["engine"].connect() as connection:
            return str(connection.execute(found["query"], {"query": subject}).scalars().first())

    asked = [*subjects] * 4
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(best, asked)) == [f"photos/{subjects[subject]}.jpg" for subject in asked]


def test_expressions(found: dict[str, Any]) -> None:
    """`func` builds the calls; a score is a number, NULL where the image failed."""
    with found["engine"].begin() as connection:
        connection.execute(text("CREATE TABLE photos AS SELECT file FROM glob('photos/*.jpg') AS t(file)"))
    file = sqlalchemy.column("file")
    score = func.clip_score(file, literal("a panda")).label("score")
    query = select(file, score).select_from(sqlalchemy.table("photos"))
    with found["engine"].connect() as connection:
        rows = connection.execute(query.order_by(func.clip_sim(file, literal("a panda")))).all()
    assert rows[0].file == "photos/panda.jpg"
    assert rows[0].score > rows[1].score
    assert rows[-1].score is None
