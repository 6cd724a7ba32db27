"""Photos by likeness on the command line: what is like others, and what looks the same."""

from __future__ import annotations

import json
from pathlib import Path

import click

from clip_embed import ClipEmbedder
from clip_embed import duplicates as find_duplicates
from clip_embed import similar as find_similar
from clip_embed._cli.folder import embed_folder, json_option, model_option, report_failures
from clip_embed._cli.table import format_table
from clip_embed._models.opening import default_model

_FOLDER = click.argument(
    "folder", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="PHOTOS"
)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_PAGE = click.option(
    "--html", "page", type=click.Path(dir_okay=False, path_type=Path), help="Write a gallery."
)


@click.command()
@_FOLDER
@click.argument("examples", nargs=-1, type=_FILE, metavar="[IMAGE...]")
@click.option("--text", "texts", multiple=True, metavar="TEXT", help="A text to match as well.")
@click.option("--unlike", multiple=True, type=_FILE, metavar="IMAGE", help="An image to lead away from.")
@click.option("-k", default=10, show_default=True, type=click.IntRange(min=1), help="How many photos.")
@click.option("--diversity", type=click.FloatRange(0, 1), help="Prefer photos that differ from each other.")
@_PAGE
@model_option
@json_option
def similar(
    folder: Path,
    examples: tuple[Path, ...],
    texts: tuple[str, ...],
    unlike: tuple[Path, ...],
    k: int,
    diversity: float | None,
    page: Path | None,
    model: str | None,
    as_json: bool,
) -> None:
    """Find the photos below PHOTOS that are most like each IMAGE and TEXT, and unlike others.

    --text, --unlike may be repeated. Vectors are kept as by search; photos that cannot be read are listed,
    and the exit code is 1.
    """
    if not (examples or texts or unlike):
        raise click.UsageError("similar to what? Give an IMAGE, --text or --unlike")
    import numpy as np

    name = model or default_model()
    embedder = ClipEmbedder(name)
    index = embed_folder(folder, name, embedder)
    liked = np.concatenate([embedder.embed_images(examples), embedder.embed_texts(texts)])
    try:
        found = find_similar(embedder, index.vectors, liked, unlike=unlike, k=k, diversity=diversity)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    hits = [(score, index.paths[place]) for place, score in found]
    if as_json:
        click.echo(json.dumps([{"path": path, "score": round(score, 6)} for score, path in hits], indent=1))
    else:
        click.echo(format_table(("score", "photo"), hits, widest=4096))
    title = " + ".join([*(path.name for path in examples), *texts]) or "Similar"
    write_page(page, title, folder, [(path, path, score) for score, path in hits], as_json)
    report_failures(index.failures)


@click.command()
@_FOLDER
@click.option(
    "--threshold",
    default=0.95,
    show_default=True,
    type=click.FloatRange(-1, 1),
    help="Least cosine similarity: 0.95 for copies, crops and bursts, 0.9999 for the same pixels.",
)
@_PAGE
@model_option
@json_option
def duplicates(folder: Path, threshold: float, page: Path | None, model: str | None, as_json: bool) -> None:
    """List the photos below PHOTOS that look like another one, in groups.

    Each group begins with its first photo by name. Nothing is deleted. Vectors are kept as by search; photos
    that cannot be read are listed, and the exit code is 1.
    """
    name = model or default_model()
    embedder = ClipEmbedder(name)
    index = embed_folder(folder, name, embedder)
    found = find_duplicates(embedder, index.vectors, threshold=threshold)
    rows = [
        (group, score, index.paths[place])
        for group, (places, scores) in enumerate(zip(found.groups, found.scores, strict=True), 1)
        for place, score in zip(places, scores, strict=True)
    ]
    if as_json:
        fields = ("group", "score", "path")
        click.echo(json.dumps([dict(zip(fields, row, strict=True)) for row in rows], indent=1))
    elif rows:
        click.echo(format_table(("group", "score", "photo"), rows, widest=4096))
    click.echo(
        f"{len(rows):,} of {len(index.paths):,} photos, in {len(found.groups):,} groups, look like another.",
        err=as_json,
    )
    tiles = [(path, f"group {group}: {path}", score) for group, score, path in rows]
    write_page(page, "Photos that look alike", folder, tiles, as_json)
    report_failures(index.failures)


VISUAL_COMMANDS = (similar, duplicates)


def write_page(
    page: Path | None, title: str, folder: Path, hits: list[tuple[str, str, float]], as_json: bool
) -> None:
    """Write a gallery of (path, name, score), where one is wanted."""
    if page is None:
        return
    from clip_embed._cli.gallery import Tile, write_gallery

    write_gallery(page, title, str(folder), [Tile(folder / path, name, score) for path, name, score in hits])
    click.echo(f"Gallery: {page.resolve()}", err=as_json)
