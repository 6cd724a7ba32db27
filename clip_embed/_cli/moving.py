"""Stores on the move: onto a server, to another model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from clip_embed import ClipEmbedder, ImagePolicy
from clip_embed._cli.store import (
    PLACE,
    finish,
    is_url,
    json_option,
    not_empty,
    open_store,
    progress_shown,
    store_options,
    table_options,
)
from clip_embed._cli.written import failures_option

if TYPE_CHECKING:
    from collections.abc import Callable


def _patience_option(command: Callable[..., None]) -> Callable[..., None]:
    text = "Seconds to ride out an outage."
    return click.option("--patience", default=600.0, show_default=True, help=text)(command)


@click.command()
@click.argument("store", type=click.Path(exists=True, file_okay=False))
@click.option("--to", "url", required=True, metavar="URL", help="Of a Qdrant server.")
@click.option("--collection", required=True, metavar="NAME", help="Made where there is none.")
@click.option("--api-key", envvar="QDRANT_API_KEY", metavar="KEY", help="Better: QDRANT_API_KEY.")
@click.option("--on-disk", is_flag=True, help="Keep the vectors of a new collection out of memory.")
@_patience_option
@failures_option
@json_option
def copy(
    store: str,
    url: str,
    collection: str,
    api_key: str | None,
    on_disk: bool,
    patience: float,
    failures: Path | None,
    as_json: bool,
) -> None:
    """Copy a store in a folder into a collection of a Qdrant server; nothing is embedded.

    What is there in the same state is skipped: run it again after whatever ended it. Where the server refused
    images, they are listed, and the exit code is 1.
    """
    from clip_embed_qdrant import IngestStopped

    if not is_url(url):
        raise click.UsageError(f"--to {url} is no server: give its URL, as http://localhost:6333")
    with open_store(store, None, None) as opened:
        try:
            with progress_shown("Copying", opened.status().points) as progress:
                report = opened.copy_to(
                    url,
                    collection,
                    api_key=api_key,
                    on_disk=on_disk,
                    patience=patience,
                    progress=progress,
                )
        except IngestStopped as stopped:
            finish(stopped.report, failures, as_json=as_json, stopped=stopped)
        else:
            finish(report, failures, as_json=as_json)


@click.group()
def migrate() -> None:
    """Move a store to another model while it answers with its own.

    Four steps: `run` embeds the images with the new model, `compare` says how far the two agree, `switch`
    lets the other one answer from now on (and back), `drop` removes what is no longer in use.
    """


@migrate.command()
@click.argument("store", type=PLACE)
@click.argument("source", callback=not_empty)
@store_options
@click.option("--model", metavar="NAME", help="The new model. [default: that of the migration under way]")
@table_options
@click.option("--etag", type=click.Choice(("stat", "sha256")), default="stat", show_default=True,
              help="As it was ingested.")  # fmt: skip
@_patience_option
@failures_option
@json_option
def run(
    store: str,
    source: str,
    collection: str | None,
    api_key: str | None,
    model: str | None,
    key: str,
    image: str,
    prefix: str,
    etag: str,
    patience: float,
    failures: Path | None,
    as_json: bool,
) -> None:
    """Embed the images of SOURCE with the new model, beside the vectors in use.

    SOURCE and the options are as they were for `ingest`. Run it again after whatever ended it.
    """
    from clip_embed_qdrant import IngestStopped
    from clip_embed_qdrant._sources import open_source

    with open_store(store, collection, api_key) as opened:
        try:
            migration = opened.migration(ClipEmbedder(model) if model else None)
            images = open_source(source, columns=(image, key, []), policy=ImagePolicy())
            with progress_shown("Migrating", images.total()) as progress:
                report = migration.run(
                    images, prefix=prefix, etag=cast("Any", etag), patience=patience, progress=progress
                )
        except IngestStopped as stopped:
            finish(stopped.report, failures, as_json=as_json, stopped=stopped)
        except (ValueError, TypeError) as error:
            raise click.UsageError(str(error)) from error
        else:
            finish(report, failures, as_json=as_json)


@migrate.command()
@click.argument("store", type=PLACE)
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@store_options
@click.option("-k", default=10, show_default=True, type=click.IntRange(min=1), help="How many nearest.")
@click.option("--sample", default=50, show_default=True, help="How many stored images to ask with.")
@json_option
def compare(
    store: str,
    texts: tuple[str, ...],
    collection: str | None,
    api_key: str | None,
    k: int,
    sample: int,
    as_json: bool,
) -> None:
    """Say how far the k nearest of both models agree, for TEXTs and for a sample of the images."""
    with open_store(store, collection, api_key) as opened:
        found = opened.migration().compare(texts, k=k, sample=sample)
    if as_json:
        facts = {"k": found.k, "images": found.images, "overlaps": dict(found.overlaps)}
        click.echo(json.dumps(facts | {"mean": found.mean if found.overlaps else None}, indent=1))
    else:
        for text in texts:
            click.echo(f"{found.overlaps.get(text, 0.0):.2f}  {text}")
        click.echo(str(found))


@migrate.command()
@click.argument("store", type=PLACE)
@store_options
@click.option("--partial", is_flag=True, help="Also where images lack the other vector: they are not found.")
def switch(store: str, collection: str | None, api_key: str | None, partial: bool) -> None:
    """Answer with the other model from now on; again, and it is the one before."""
    with open_store(store, collection, api_key) as opened:
        opened.migration().switch(partial=partial)
        click.echo(f"{store} answers with {opened.status().model} now.")


@migrate.command()
@click.argument("store", type=PLACE)
@store_options
@click.option("--yes", is_flag=True, help="Do not ask.")
def drop(store: str, collection: str | None, api_key: str | None, yes: bool) -> None:
    """Remove the vectors of the model that is not in use."""
    with open_store(store, collection, api_key) as opened:
        facts = opened.status()
        migration = opened.migration()
        if not yes:
            click.confirm(
                f"Remove {facts.points_beside:,} vectors of {facts.beside} from {store}?", abort=True
            )
        migration.drop()
    click.echo(f"Removed {facts.points_beside:,} vectors of {facts.beside}.")


COMMANDS = (copy, migrate)
