"""The recipe for SQLAlchemy with duckdb-engine."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("duckdb_engine", reason="needs duckdb-engine")
from sqlalchemy import Engine, create_engine, event, func, literal, select, table, text
from sqlalchemy.sql import column

from clip_embed import ClipEmbedder
from clip_embed_duckdb import register


def make_engine(url: str, clip: ClipEmbedder) -> Engine:
    """Return an engine whose connections have the functions."""
    engine = create_engine(url)

    @event.listens_for(engine, "connect")
    def add_functions(connection: object, record: object) -> None:
        register(connection, clip)

    return engine


@pytest.mark.parametrize("url", ["duckdb:///:memory:", "duckdb:///photos.duckdb"])
def test_every_connection_has_the_functions(url: str, photos: Path, clip: ClipEmbedder) -> None:
    """The engine's pool hands out connections that query images, one after the other and side by side."""
    engine = make_engine(url, clip)
    query = text("SELECT file FROM glob('photos/*.jpg') AS t(file) ORDER BY clip_sim(file, :query) LIMIT 1")

    def best(colour: str) -> str:
        with engine.connect() as connection:
            return str(connection.execute(query, {"query": colour}).scalar_one())

    colours = ["red", "green", "blue"] * 4
    assert [Path(best(colour)).stem for colour in colours[:3]] == colours[:3]
    if "memory" not in url:  # in memory there is one connection, for one thread at a time
        with ThreadPoolExecutor(3) as threads:
            assert [Path(file).stem for file in threads.map(best, colours)] == colours
    engine.dispose()


def test_expressions(photos: Path, clip: ClipEmbedder) -> None:
    """`func` builds the calls; a score is a number."""
    engine = make_engine("duckdb:///photos.duckdb", clip)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE photos AS SELECT file FROM glob('photos/*.jpg') AS t(file)"))
    file = column("file")
    query = select(file, func.clip_score(file, literal("blue")).label("score")).select_from(table("photos"))
    with engine.connect() as connection:
        rows = connection.execute(query.order_by(func.clip_sim(file, literal("blue")))).all()
    assert Path(rows[0].file).stem == "blue"
    assert rows[0].score > rows[1].score
    assert rows[-1].score is None
    engine.dispose()
