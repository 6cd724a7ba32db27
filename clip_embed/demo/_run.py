"""`clip-embed demo`: the mission's query on the sample photos."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path

import click
import duckdb

from clip_embed import ClipEmbedder, MissingExtra
from clip_embed._cli.gallery import Tile, write_gallery
from clip_embed._cli.sql import connect
from clip_embed._cli.table import format_table
from clip_embed._progress import Progress
from clip_embed.demo import photos
from clip_embed_duckdb import register

_SHOWN, _SHOWN_OF_QDRANT = 10, 3
_NEXT = "SELECT * FROM photos ORDER BY clip_sim(img, 'a boat') LIMIT 3"
_NOTE = (
    "Model: offline. It needs no download, sees less than CLIP does, and is used here because you asked\n"
    "for the demo; no other command takes it unless told to (--model offline).\n"
)


def run_demo(text: str, folder: Path) -> None:
    """Fill a DuckDB file and a Qdrant store with the sample photos, ask both, write a gallery."""
    folder.mkdir(parents=True, exist_ok=True)
    database, page = folder / "photos.duckdb", folder / "gallery.html"
    embedder = ClipEmbedder("offline")
    click.echo(_NOTE)
    started = time.perf_counter()
    embedder.load()
    click.echo(f"Loaded the model in {time.perf_counter() - started:.1f} s, on {embedder.device}.")
    with connect(database) as connection:
        _check_table(connection, database)
        register(connection, embedder)
        milliseconds = _fill(connection, embedder)
        count = len(photos())
        click.echo(
            f"{count} photos are in {database}: {milliseconds:.0f} ms per image, decoded and embedded.\n"
        )
        query = f"SELECT * FROM photos ORDER BY clip_sim(img, {_literal(text)})"  # noqa: S608 - quoted
        click.echo(f"{query};\n")
        started = time.perf_counter()
        rows = connection.execute(query).fetchall()
        seconds = time.perf_counter() - started
        scores = dict(connection.execute("SELECT file, clip_score(img, ?) FROM photos", [text]).fetchall())
    _show([(name, image, scores[name]) for name, image in rows], seconds)
    tiles = [Tile(image, name, scores[name]) for name, image in rows]
    write_gallery(page, f"{text} – {count} photos, best first", query, tiles)
    _search_store(embedder, text, folder / "photos.clip")
    click.echo(f"\nGallery: {page.resolve()}")
    click.echo(f'Next:    clip-embed sql --model offline {shlex.quote(str(database))} -c "{_NEXT}"')


def _search_store(embedder: ClipEmbedder, text: str, place: Path) -> None:
    """Ask the same of Qdrant Edge; the vectors of the photos are remembered by now."""
    try:
        from clip_embed_qdrant import ImageStore
    except MissingExtra as missing:
        click.echo(f"\nWithout Qdrant: {missing}")
        return
    started = time.perf_counter()
    with ImageStore(place, embedder=embedder) as store:
        store.ingest(photos()[0].parent)
        hits = store.search(text=text, k=_SHOWN_OF_QDRANT)
        count = store.status().points
    seconds = time.perf_counter() - started
    click.echo(f"\nThe same from Qdrant, in this process: {count} photos in {place}, {seconds:.1f} s.")
    click.echo(format_table(("score", "photo"), [(hit.score, hit.key) for hit in hits]))


def _check_table(connection: duckdb.DuckDBPyConnection, database: Path) -> None:
    """Refuse to replace a table that the demo did not make."""
    columns = connection.execute(
        "SELECT column_name FROM duckdb_columns() WHERE table_name = 'photos' ORDER BY column_index"
    ).fetchall()
    if not columns:
        return
    ours = [path.name for path in photos()]
    if [name for (name,) in columns] == ["file", "img"]:
        foreign = connection.execute(
            "SELECT count(*) FROM photos WHERE file NOT IN (SELECT unnest(?))", [ours]
        )
        if foreign.fetchall() == [(0,)]:
            return
    raise click.ClickException(f"{database} has a table photos of its own: choose another folder with --to")


def _fill(connection: duckdb.DuckDBPyConnection, embedder: ClipEmbedder) -> float:
    """Insert the photos as they are embedded; returns milliseconds per image."""
    connection.execute("CREATE OR REPLACE TABLE photos (file VARCHAR, img BLOB)")
    images = {path.name: path.read_bytes() for path in photos()}
    started = time.perf_counter()
    click.echo("Photos going in")
    with (
        Progress("Photos going in", len(images)) as progress,
        embedder.stream_images(images.items()) as batches,
    ):
        for batch in batches:
            rows = [(name, images[str(name)]) for name in batch.keys]
            connection.executemany("INSERT INTO photos VALUES (?, ?)", rows)
            progress.add(len(rows))
    return (time.perf_counter() - started) / len(images) * 1000


def _show(rows: Sequence[tuple[str, bytes, float]], seconds: float) -> None:
    """Print the first rows; the pictures themselves are for the gallery."""
    table = [(rank, *row) for rank, row in enumerate(rows[:_SHOWN], 1)]
    click.echo(format_table(("", "file", "img", "score"), table))
    click.echo(
        f"({len(rows)} rows in {seconds * 1000:.0f} ms; score is clip_score of the same image and text)"
    )


def _literal(text: str) -> str:
    """Return a text as an SQL string literal."""
    return "'" + text.replace("'", "''") + "'"
