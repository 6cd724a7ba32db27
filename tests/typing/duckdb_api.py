"""Uses of clip_embed_duckdb that the type checkers must accept."""

from collections.abc import Callable

import duckdb

from clip_embed import ClipEmbedder
from clip_embed_duckdb import interrupt, register, unregister


def use(con: duckdb.DuckDBPyConnection, clip: ClipEmbedder) -> None:
    """Call each function in every way that their contract allows."""
    register(con)
    register(con, None)
    register(con, clip)
    register(con.cursor(), embedder=clip, on_error="raise")
    register(duckdb.default_connection(), on_error="null", progress=False)
    interrupt(con)
    unregister(con)


on_connect: Callable[[duckdb.DuckDBPyConnection], None] = register
