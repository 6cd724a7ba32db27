"""Uses of clip_embed_duckdb that the type checkers must accept."""

from collections.abc import Callable

import duckdb

from clip_embed import ClipEmbedder
from clip_embed_duckdb import register, unregister


def use(con: duckdb.DuckDBPyConnection, clip: ClipEmbedder) -> None:
    """Call register and unregister in every way that their contract allows."""
    register(con)
    register(con, None)
    register(con, clip)
    register(con.cursor(), embedder=clip, on_error="raise")
    register(duckdb.default_connection(), on_error="null")
    unregister(con)


on_connect: Callable[[duckdb.DuckDBPyConnection], None] = register
