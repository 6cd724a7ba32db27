"""Stores in Qdrant on the command line: looking after them."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from typing import Any, cast

import click

from clip_embed import ImagePolicy
from clip_embed._cli.store import (
    PLACE,
    json_option,
    list_failures,
    not_empty,
    open_store,
    source_errors,
    store_options,
    table_options,
)
from clip_embed._cli.table import format_table


@click.command()
@click.argument("store", type=PLACE)
@store_options
@json_option
def status(store: str, collection: str | None, api_key: str | None, as_json: bool) -> None:
    """Say what is in a store: model, images, size. No model is loaded."""
    with open_store(store, collection, api_key) as opened:
        facts = asdict(opened.status())
    if as_json:
        click.echo(json.dumps(facts, indent=1))
    else:
        if facts["beside"] is None:
            del facts["points_beside"]
        facts["sources"] = ", ".join(f"{prefix}{root}" for prefix, root in facts["sources"].items())
        rows = [(name, f"{value:,}" if isinstance(value, int) else value) for name, value in facts.items()]
        click.echo(format_table(("fact", "value"), [row for row in rows if row[1] is not None], widest=4096))


@click.command()
@click.argument("store", type=PLACE)
@click.argument("source", callback=not_empty)
@store_options
@table_options
@click.option("--etag", type=click.Choice(("stat", "sha256")), default="stat", show_default=True,
              help="As it was ingested.")  # fmt: skip
def verify(
    store: str,
    source: str,
    collection: str | None,
    api_key: str | None,
    key: str,
    image: str,
    prefix: str,
    etag: str,
) -> None:
    """Compare a store with its SOURCE; where they differ, the exit code is 1."""
    with open_store(store, collection, api_key) as opened, source_errors(source):
        found = opened.verify(source, image=image, key=key, prefix=prefix, etag=cast("Any", etag))
    click.echo(str(found))
    list_failures(found.problems)
    if not found:
        sys.exit(1)


@click.command()
@click.argument("store", type=PLACE)
@click.argument("source", callback=not_empty)
@store_options
@table_options
@click.option("--other-source", is_flag=True, help="Also where the store was filled from another SOURCE.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def prune(
    store: str,
    source: str,
    collection: str | None,
    api_key: str | None,
    key: str,
    image: str,
    prefix: str,
    other_source: bool,
    yes: bool,
) -> None:
    """Remove from a store what its SOURCE no longer lists.

    Only keys that begin with --prefix are looked at, and none below another prefix that was ingested.
    """
    from clip_embed_qdrant._origins import check_origin
    from clip_embed_qdrant._sources import open_source

    with open_store(store, collection, api_key) as opened, source_errors(source):
        if not yes:
            images = open_source(source, columns=(image, key, []), policy=ImagePolicy())
            facts = opened.status()
            if not other_source:  # before it asks, not after
                check_origin(facts.sources, facts.where, images, prefix)
            extra = opened.verify(source, image=image, key=key, prefix=prefix).extra
            points = facts.points
            if not extra:
                click.echo("Nothing to remove.")
                return
            click.confirm(f"Remove {extra:,} of {points:,} images from {store}?", abort=True)
        removed = opened.prune(source, image=image, key=key, prefix=prefix, other_source=other_source)
    click.echo(f"Removed {removed:,} images.")


@click.command()
@click.argument("store", type=click.Path(exists=True, file_okay=False))
def optimize(store: str) -> None:
    """Build the index of a store in a folder: faster searches from some 100,000 images on."""
    with open_store(store, None, None) as opened:
        begun = time.monotonic()
        opened.optimize()
        click.echo(f"Indexed {opened.status().indexed:,} images in {time.monotonic() - begun:,.1f} s.")


COMMANDS = (status, verify, prune, optimize)
