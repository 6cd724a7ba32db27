"""The command `clip-embed`.

Exit code 0: done, 1: failed in part or whole, 2: wrong usage, 130: Ctrl-C, 141: nobody reads the output any
more, 143: SIGTERM.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clip_embed import ClipEmbedder, ClipEmbedError, ImageBatchError, MissingExtra, __version__, fit_relevance
from clip_embed._cli import moving, upkeep
from clip_embed._cli.classify import classify
from clip_embed._cli.endings import leave_closed_pipe, plain_warnings
from clip_embed._cli.evaluate import evaluate
from clip_embed._cli.fewshot import FEWSHOT_COMMANDS
from clip_embed._cli.folder import embed_folder, json_option, model_option, report_failures
from clip_embed._cli.models import models
from clip_embed._cli.moderate import MODERATION_COMMANDS
from clip_embed._cli.signals import STOPPED, Stopped, orderly_end
from clip_embed._cli.store import COMMANDS, PLACE, is_store, search_store, store_options
from clip_embed._cli.table import format_table
from clip_embed._cli.train import train
from clip_embed._cli.visual import VISUAL_COMMANDS
from clip_embed._cli.written import ParquetTarget
from clip_embed._models.opening import default_model
from clip_embed._models.precision import PRECISIONS, Precision
from clip_embed._relevance import GOOD

if TYPE_CHECKING:
    from clip_embed._cli.folder_index import FolderIndex
    from clip_embed._types import Float32

_EXTRAS = {"duckdb": "duckdb", "prompt_toolkit": "shell", "pygments": "shell"}


class _Group(click.Group):
    """Shows an error of the library as one message, without a traceback."""

    def make_context(self, *args: Any, **options: Any) -> click.Context:  # noqa: ANN401 - as in click
        try:
            return super().make_context(*args, **options)
        except BrokenPipeError:  # of --help
            leave_closed_pipe()

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - as in click
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # a file name or a line need not fit the terminal
        try:
            with orderly_end(), plain_warnings():
                result = super().invoke(ctx)
                sys.stdout.flush()
                return result
        except Stopped as stopped:
            sys.exit(stopped.exit_code)
        except ModuleNotFoundError as error:
            library = (error.name or "").partition(".")[0]
            if library not in _EXTRAS:
                raise
            extra = "all" if ctx.invoked_subcommand == "demo" else _EXTRAS[library]
            raise click.ClickException(str(MissingExtra(library, extra, "this command"))) from error
        except ImageBatchError as error:  # its text says what a program could do
            lines = [f"{failure.source}: {failure.reason}" for failure in error.failures]
            raise click.ClickException("\n  ".join(lines)) from error
        except BrokenPipeError:  # whoever read the output has seen enough
            leave_closed_pipe()
        except (ClipEmbedError, OSError) as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="clip-embed")
def main() -> None:
    """Query images by text."""


def run() -> None:
    """Run the command as a program: before and after the work, Ctrl-C ends it without a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        main()
    except SystemExit as end:
        if end.code in STOPPED:  # all is kept and closed; taking torch apart would only take time
            sys.stdout.flush()
            os._exit(end.code)
        raise


@main.command()
@click.option("--text", default="red car", show_default=True, help="What to look for.")
@click.option(
    "--to",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("clip-embed-demo"),
    show_default=True,
    help="Folder for photos.duckdb, photos.clip and gallery.html.",
)
def demo(text: str, folder: Path) -> None:
    """Put the sample photos into a DuckDB file and a Qdrant store and query them by text.

    Uses the model "offline", so it needs no hub, no GPU and no server.
    """
    from clip_embed.demo._run import run_demo

    run_demo(text, folder)


@main.command()
@click.argument("where", type=PLACE)
@click.argument("text")
@click.option("-k", default=10, show_default=True, type=click.IntRange(min=1), help="How many photos.")
@click.option("--html", "page", type=click.Path(dir_okay=False, path_type=Path), help="Write a gallery.")
@click.option("--relevance", is_flag=True, help="Of a folder: percentiles, and whether any fits.")
@click.option("--filter", "condition", metavar="JSON", help='Of a store only, as {"size": {"$gte": 10000}}.')
@store_options
@model_option
@json_option
def search(
    where: str,
    text: str,
    k: int,
    page: Path | None,
    relevance: bool,
    condition: str | None,
    collection: str | None,
    api_key: str | None,
    model: str | None,
    as_json: bool,
) -> None:
    """Find the photos in WHERE that match TEXT best.

    WHERE is a folder of photos, or a store that `clip-embed ingest` filled: its folder, or the URL of a
    Qdrant server with --collection. The vectors of a folder of photos are kept in the cache folder, so that
    the next search embeds only what is new or changed. Photos that cannot be read are listed, and the
    exit code is 1.

    --relevance gives a percentile in place of the cosine similarity: 95 says that a photo fits TEXT better
    than the best of these photos fits 95 of 100 texts about something else. Below 90 is no good match.
    """
    from clip_embed._cli.gallery import Tile, write_gallery

    if not text.strip():
        raise click.UsageError("TEXT is empty: say what to look for")
    if is_store(where):
        if relevance:
            raise click.UsageError("--relevance is for folders of photos")
        search_store(where, text, k, page, condition, collection, api_key, model, as_json)
        return
    if condition or collection:
        raise click.UsageError(f"{where} is a folder of photos, not a store")
    folder = Path(where)
    name = model or default_model()
    embedder = ClipEmbedder(name)
    index = embed_folder(folder, name, embedder)
    scores = _rate(embedder, index, text) if relevance else embedder.scores(index.vectors, [text])[:, 0]
    best = sorted(zip(scores.tolist(), index.paths, strict=True), key=lambda hit: (-hit[0], hit[1]))[:k]
    measure = "relevance" if relevance else "score"
    if as_json:
        click.echo(json.dumps([{"path": path, measure: round(score, 6)} for score, path in best], indent=1))
    else:
        click.echo(format_table((measure, "photo"), best, widest=4096))
    if relevance and not any(score >= GOOD for score, _ in best):
        click.echo(f"No good match: none has a relevance of {GOOD:.0f}.", err=True)
    if page:
        unit = 100 if relevance else 1
        tiles = [Tile(folder / path, path, score / unit) for score, path in best]
        write_gallery(page, text, str(folder), tiles)
        click.echo(f"Gallery: {page.resolve()}", err=as_json)
    report_failures(index.failures)


def _rate(embedder: ClipEmbedder, index: FolderIndex, text: str) -> Float32:
    """Return the relevance of each photo of a folder, float32 (n,)."""
    try:
        return fit_relevance(embedder, index.vectors).rate(embedder, index.vectors, [text])[:, 0]
    except ValueError as error:
        raise click.ClickException(str(error)) from error


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="PHOTOS")
@click.option(
    "-o",
    "--output",
    "target",
    required=True,
    type=ParquetTarget(),
    help="The Parquet file to write.",
)
@model_option
@json_option
def embed(folder: Path, target: Path, model: str | None, as_json: bool) -> None:
    """Write the vectors of the photos below PHOTOS into a Parquet file.

    Its columns are path, embedding (d float32 of unit length, with the model that made them) and
    embedding_error: DuckDB, pandas and polars read it. A photo that fails has its reason there, and the exit
    code is 1. A run that was ended goes on where it was: vectors stay in the cache folder.
    """
    from clip_embed._cli.embed import write_vectors
    from clip_embed._cli.folder_index import find_photos

    photos = find_photos(folder)
    if not photos:
        raise click.ClickException(f"no photos below {folder}")
    if write_vectors(folder, target, model or default_model(), photos, as_json=as_json):
        sys.exit(1)


@main.command()
@click.argument("database", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option("-c", "queries", multiple=True, metavar="QUERY", help="Run QUERY and leave; may be repeated.")
@click.option("--html", "page", type=click.Path(dir_okay=False, path_type=Path), help="Write a page as well.")
@json_option
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, for programs.")
@click.option("--read-only", is_flag=True, help="Leave the file as it is, and others read it meanwhile.")
@model_option
def sql(
    database: Path | None,
    queries: tuple[str, ...],
    page: Path | None,
    as_json: bool,
    as_csv: bool,
    read_only: bool,
    model: str | None,
) -> None:
    """Query a DuckDB file (or an empty database in memory) with the functions of clip-embed.

    Without -c the statements are read from the standard input, each ended by a semicolon. On a
    terminal that is a shell with history and completion; elsewhere the first statement that fails
    ends it with exit code 1. Vectors are kept in the cache folder: what was embedded once, by
    whatever statement, is not embedded again.
    """
    if as_json and as_csv:
        raise click.UsageError("choose one of --json and --csv")
    from clip_embed._cli.session import Form, Session

    form: Form = "json" if as_json else "csv" if as_csv else "box"
    with Session(database, model or default_model(), form=form, page=page, read_only=read_only) as session:
        if not session.run(queries):
            sys.exit(1)


main.add_command(models)
for _command in (
    *COMMANDS,
    *upkeep.COMMANDS,
    *moving.COMMANDS,
    classify,
    *VISUAL_COMMANDS,
    *FEWSHOT_COMMANDS,
    *MODERATION_COMMANDS,
    evaluate,
    train,
):
    main.add_command(_command)


@main.command()
@click.argument(
    "folder",
    required=False,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="[PHOTOS]",
)
@click.option("--images", default=256, show_default=True, type=click.IntRange(min=1), help="How many.")
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="auto",
    show_default=True,
    help="What the model computes in.",
)
@model_option
@json_option
def bench(folder: Path | None, images: int, precision: Precision, model: str | None, as_json: bool) -> None:
    """Measure where the time from images to vectors goes on this machine.

    Takes images evenly from those below PHOTOS, or else the demo's photos over and over.
    """
    from clip_embed._cli.folder_index import find_photos
    from clip_embed.demo import photos

    name = model or default_model()
    try:
        embedder = ClipEmbedder(name, precision=precision)
        _ = embedder.precision
    except ValueError as error:  # this device does not compute so
        raise click.BadParameter(str(error), param_hint="--precision") from error
    found = [folder / path for path in find_photos(folder)] if folder else photos()
    if not found:
        raise click.ClickException(f"no photos below {folder}")
    count = min(images, len(found)) if folder else images
    chosen = [found[place * len(found) // count % len(found)] for place in range(count)]
    click.echo(f"Loading {name} …", err=True)
    embedder.load()
    click.echo(f"Embedding {count:,} images three times over …", err=True)
    profile = embedder.profile(chosen)
    click.echo(json.dumps(profile.as_dict(), indent=1) if as_json else str(profile))
    if profile.failed:
        sys.exit(1)


@main.command()
@json_option
def doctor(as_json: bool) -> None:
    """Report versions, device and model, and what to do about what is amiss."""
    from clip_embed._cli.doctor import examine

    findings = examine()
    if as_json:
        fields = ("topic", "fact", "ok", "advice")
        click.echo(
            json.dumps([{name: getattr(finding, name) for name in fields} for finding in findings], indent=1)
        )
    else:
        width = max(len(finding.topic) for finding in findings)
        for finding in findings:
            click.echo(f"{'ok' if finding.ok else '!!'}  {finding.topic:<{width}}  {finding.fact}")
            for line in finding.advice.splitlines():
                click.echo(f"    {'':<{width}}  {line}")
    if not all(finding.ok for finding in findings):
        sys.exit(1)
