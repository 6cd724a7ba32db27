"""What the commands over a folder of photos share."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from clip_embed import ClipEmbedder
from clip_embed._cli.table import one_line

if TYPE_CHECKING:
    from clip_embed._cli.folder_index import FolderIndex
    from clip_embed._types import ImageFailure

_MODEL_HELP = (
    "Hub name (or name@revision), local folder, or offline. [default: CLIP_EMBED_MODEL, else ViT-B/32]"
)


def model_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add --model."""
    return click.option("--model", metavar="NAME", default=None, help=_MODEL_HELP)(command)


def json_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(command)


def embed_folder(folder: Path, name: str, embedder: ClipEmbedder) -> FolderIndex:
    """Bring the vectors of a folder's photos up to date, and say on stderr what that took."""
    from clip_embed._cli.folder_index import find_photos, index_folder
    from clip_embed._progress import Progress

    photos = find_photos(folder)
    if not photos:
        raise click.ClickException(f"no photos below {folder}")
    click.echo(f"Loading {name} …", err=True)
    embedder.load()
    started = time.perf_counter()
    click.echo(f"Reading {len(photos):,} photos", err=True)
    with Progress("Reading", len(photos)) as progress:
        index = index_folder(folder, photos, embedder, progress.add)
    seconds = time.perf_counter() - started
    if index.embedded:
        click.echo(f"Embedded {index.embedded:,} photos on {embedder.device} in {seconds:.1f} s.", err=True)
    return index


def report_failures(failures: Sequence[ImageFailure]) -> None:
    """List failed photos on stderr and leave with exit code 1 if there are any."""
    if not failures:
        return
    click.echo(f"\n{len(failures)} photos could not be used; they are tried again next time:", err=True)
    for failure in failures:
        click.echo(f"  {one_line(f'{failure.source}: {failure.reason}')}", err=True)
    sys.exit(1)
