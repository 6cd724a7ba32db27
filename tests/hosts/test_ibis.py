"""The recipe for ibis."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

ibis = pytest.importorskip("ibis", reason="needs ibis-framework")

from clip_embed import ClipEmbedder
from clip_embed_duckdb import register

pytestmark = pytest.mark.skipif(
    not hasattr(duckdb.DuckDBPyConnection, "fetch_arrow_table"),
    reason="ibis 12 calls fetch_arrow_table, which DuckDB 2.0 does not have: runs in the env compat",
)


def test_sql_and_expressions(photos: Path, clip: ClipEmbedder) -> None:
    """The functions are there in SQL, and as expressions once they are declared."""
    con = ibis.duckdb.connect()
    register(con.con, clip)

    @ibis.udf.scalar.builtin
    def clip_score(img: str, query: str) -> float: ...

    files = con.sql("SELECT file FROM glob('photos/*.jpg') AS t(file)")
    scored = files.mutate(score=clip_score(files.file, "green"))
    best = scored.filter(scored.score.notnull()).order_by(ibis.desc("score")).to_pyarrow().to_pylist()
    assert Path(best[0]["file"]).stem == "green"
    assert len(best) == 3
    assert con.sql("SELECT clip_error('photos/torn.jpg') AS why").to_pyarrow()["why"][0].as_py()
