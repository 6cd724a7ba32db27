"""The recipe for `duckdb.sql`, DuckDB's connection without a name."""

from __future__ import annotations

from pathlib import Path

import duckdb

from clip_embed import ClipEmbedder
from clip_embed_duckdb import register, unregister


def test_duckdb_sql(photos: Path, clip: ClipEmbedder) -> None:
    """`duckdb.sql` has the functions, over paths relative to the working folder."""
    register(duckdb.default_connection(), clip)
    try:
        best = duckdb.sql("FROM glob('photos/*.jpg') AS t(file) ORDER BY clip_sim(file, 'red')").fetchall()
        assert best[0][0].endswith("red.jpg")
        assert best[-1][0].endswith("torn.jpg")
    finally:
        unregister(duckdb.default_connection())
