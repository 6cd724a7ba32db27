"""Uses of clip_embed_duckdb that the type checkers must accept."""

from collections.abc import Callable

import duckdb

from clip_embed import ClipEmbedder, Stamp
from clip_embed_duckdb import (
    Materialized,
    Mismatch,
    check,
    check_database,
    follow,
    interrupt,
    materialize,
    register,
    unregister,
)


def use(con: duckdb.DuckDBPyConnection, clip: ClipEmbedder) -> None:
    """Call each function in every way that their contract allows."""
    register(con)
    register(con, None)
    register(con, clip)
    register(con.cursor(), embedder=clip, on_error="raise")
    register(duckdb.default_connection(), on_error="null", progress=False)
    interrupt(con)
    report: Materialized = materialize(con, "photos", "img")
    materialize(con, "photos", "img", "emb8", clip, storage="int8", retry=True, progress=False)
    numbers: tuple[int, int, int, float] = (report.done, report.failed, report.skipped, report.seconds)
    stamp: Stamp | None = check(con, "photos", "emb", clip)
    mismatches: list[Mismatch] = check_database(con)
    follow(con, "photos", "img", "id")
    report = follow(con, "photos", "img", key="id", into="side", retry=True, progress=False)
    print(numbers, stamp, [(each.table, each.column, each.reason) for each in mismatches])
    unregister(con)


on_connect: Callable[[duckdb.DuckDBPyConnection], None] = register
