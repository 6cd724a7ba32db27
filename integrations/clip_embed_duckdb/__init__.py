"""Query images by text in DuckDB: `SELECT * FROM photos ORDER BY clip_sim(img, 'red car')`."""

from clip_embed.errors import MissingExtra

try:
    import duckdb as _duckdb  # noqa: F401  # pyright: ignore[reportUnusedImport]
except ModuleNotFoundError as error:
    if error.name != "duckdb":
        raise
    raise MissingExtra("duckdb", "duckdb", "clip_embed_duckdb") from error

from clip_embed_duckdb._calibrate import calibrate
from clip_embed_duckdb._classifiers import add_classifier
from clip_embed_duckdb._follow import follow
from clip_embed_duckdb._materialize import Materialized, materialize
from clip_embed_duckdb._register import interrupt, register, unregister
from clip_embed_duckdb._stamps import Mismatch, check, check_database

__all__ = [
    "Materialized",
    "Mismatch",
    "add_classifier",
    "calibrate",
    "check",
    "check_database",
    "follow",
    "interrupt",
    "materialize",
    "register",
    "unregister",
]
