"""Stores in Qdrant on the command line: filling and searching them."""

from __future__ import annotations

import json
import sys
import tarfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from clip_embed import ClipEmbedder, ImagePolicy
from clip_embed._cli.signals import Stopped
from clip_embed._cli.table import format_table
from clip_embed._cli.written import failures_option
from clip_embed._models.opening import default_model
from clip_embed._progress import Progress

if TYPE_CHECKING:
    from clip_embed_qdrant import Failures, ImageStore, IngestReport, IngestStopped

_SHOWN = 10  # failures
_BETWEEN_LINES = 30.0  # seconds, where there is no terminal
_FACTS = ("dimensions", "date", "camera", "gps")
_KINDS = ("keyword", "integer", "float", "bool", "datetime", "geo", "text")


_IN_SQL = """vectors in Parquet are searched in SQL, by the --model that made them:
  clip-embed sql -c "SELECT path FROM '{}' ORDER BY clip_sim(embedding, 'a red car') LIMIT 10"
"""


class _Place(click.Path):
    """A folder that exists, or the URL of a server."""

    name = "folder or URL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ANN401 - as in click
        """Return it as text."""
        if is_url(str(value)):
            return str(value)
        if Path(value).suffix == ".parquet" and Path(value).is_file():
            self.fail(f"{value} is a file: {_IN_SQL.format(value)}", param, ctx)
        return str(super().convert(value, param, ctx))


def not_empty(_: click.Context, __: click.Parameter, value: str) -> str:
    """Refuse an empty source, as of a variable that is not set: it would mean the current folder."""
    if not value:
        from clip_embed_qdrant._sources import EMPTY

        raise click.BadParameter(EMPTY)
    return value


PLACE = _Place(exists=True, file_okay=False)


def is_url(text: str) -> bool:
    """Whether a text is the URL of a server."""
    return text.lower().startswith(("http://", "https://"))


def is_store(place: str) -> bool:
    """Whether a folder or URL is a store rather than a folder of photos."""
    return is_url(place) or Path(place, "store.json").is_file()


def store_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say which collection of a server is meant."""
    key = click.option("--api-key", envvar="QDRANT_API_KEY", metavar="KEY", help="Better: QDRANT_API_KEY.")
    return click.option("--collection", metavar="NAME", help="On a Qdrant server.")(key(command))


def table_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say what is where in a table, and what keys begin with."""
    for name, default, what in (("key", "path", "keys"), ("image", "image", "images")):
        option = click.option(f"--{name}", default=default, show_default=True, metavar="COLUMN",
                              help=f"Column with the {what}, in tables.")  # fmt: skip
        command = option(command)
    return click.option("--prefix", default="", metavar="TEXT", help="What keys begin with.")(command)


def json_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(command)


def _model_option(command: Callable[..., None]) -> Callable[..., None]:
    text = "Hub name, local folder, or offline. [default: that of the store, else CLIP_EMBED_MODEL]"
    return click.option("--model", metavar="NAME", help=text)(command)


def open_store(
    place: str,
    collection: str | None,
    api_key: str | None,
    model: str | None = None,
    **options: Any,  # noqa: ANN401
) -> ImageStore:
    """Open a store; a usage error where folder, URL and collection contradict each other."""
    from clip_embed_qdrant import ImageStore

    if is_url(place) != bool(collection):
        raise click.UsageError("a server needs --collection, a folder has none")
    embedder = ClipEmbedder(model) if model else None
    try:
        return ImageStore(place, collection=collection, api_key=api_key, embedder=embedder, **options)
    except TypeError as error:  # a place that is none
        raise click.UsageError(str(error)) from error


@contextmanager
def source_errors(source: str) -> Generator[None]:
    """Show what is wrong with a source in a line: a usage error, or that it cannot be read."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, EOFError, tarfile.TarError) as error:
        raise click.ClickException(f"{source} cannot be read further: {error}") from error
    except (ValueError, TypeError) as error:
        raise click.UsageError(str(error)) from error


def search_store(
    place: str,
    text: str,
    k: int,
    page: Path | None,
    condition: str | None,
    collection: str | None,
    api_key: str | None,
    model: str | None,
    as_json: bool,
) -> None:
    """Print the hits of a search in a store."""
    try:
        where = json.loads(condition) if condition else None
    except ValueError as error:
        raise click.BadParameter(f"this is no JSON: {error}", param_hint="--filter") from error
    with open_store(place, collection, api_key, model) as store:
        try:
            hits = store.search(text=text, k=k, where=where)
        except (ValueError, TypeError) as error:
            raise click.UsageError(str(error)) from error
    if as_json:
        rows = [
            {"path": hit.key, "score": round(hit.score, 6), "payload": hit.payload}
            | ({"duplicates": hit.duplicates} if hit.duplicates else {})
            for hit in hits
        ]
        click.echo(json.dumps(rows, indent=1))
    else:
        click.echo(format_table(("score", "photo"), [(hit.score, hit.key) for hit in hits], widest=4096))
    if page:
        hits.to_html(page)
        click.echo(f"Gallery: {page.resolve()}", err=as_json)


@click.command()
@click.argument("source", callback=not_empty)
@click.option("--to", "place", required=True, metavar="STORE", help="Folder, or URL of a Qdrant server.")
@store_options
@table_options
@click.option(
    "--payload", multiple=True, metavar="COLUMN", help="Take this column along; repeat. [default: all]"
)
@click.option(
    "--fact", "facts", multiple=True, type=click.Choice(_FACTS), help="Take from the files' headers; repeat."
)
@click.option(
    "--index", "indexes", multiple=True, metavar="FIELD=KIND", help=f"Filter fast; {', '.join(_KINDS)}."
)
@click.option("--etag", type=click.Choice(("stat", "sha256")), default="stat", show_default=True,
              help="Tell changed files by size and time, or by content.")  # fmt: skip
@click.option("--link-duplicates", is_flag=True, help="Embed images of the same content once.")
@click.option("--shard", default="0/1", metavar="I/N", help="Take the I-th of N shares, from 0.")
@click.option("--patience", default=600.0, show_default=True, help="Seconds to ride out an outage.")
@failures_option
@_model_option
@json_option
def ingest(
    source: str,
    place: str,
    collection: str | None,
    api_key: str | None,
    key: str,
    image: str,
    prefix: str,
    payload: tuple[str, ...],
    facts: tuple[str, ...],
    indexes: tuple[str, ...],
    etag: str,
    link_duplicates: bool,
    shard: str,
    patience: float,
    failures: Path | None,
    model: str | None,
    as_json: bool,
) -> None:
    """Embed the images of SOURCE into a store; what is in it already is skipped.

    SOURCE is a folder, a pattern, a URL as s3://bucket/photos, a Parquet or CSV file, or tar files. Run it
    again after whatever ended it: it goes on from there. Failed images are listed, and the exit code is 1.
    """
    from clip_embed_qdrant import IngestStopped
    from clip_embed_qdrant._sources import open_source

    store = open_store(
        place,
        collection,
        api_key,
        model or _new_model(place),
        indexes=_parse_indexes(indexes),
        patience=patience,
    )
    stopped: IngestStopped | None = None
    with store:
        columns = (image, key, payload or None)
        try:
            opened = open_source(source, columns=columns, policy=ImagePolicy())
            with progress_shown("Ingesting", opened.total()) as progress:
                store.ingest(
                    opened,
                    etag=cast("Any", etag),
                    facts=cast("Any", facts),
                    prefix=prefix,
                    shard=_parse_shard(shard),
                    on_duplicate="link" if link_duplicates else "embed",
                    patience=patience,
                    progress=progress,
                )
        except IngestStopped as error:
            stopped = error
        except (ValueError, TypeError) as error:
            raise click.UsageError(str(error)) from error
        report = store.last_report
    if report is not None:
        finish(report, failures, as_json=as_json, stopped=stopped)


def finish(
    report: IngestReport, failures: Path | None, *, as_json: bool, stopped: IngestStopped | None = None
) -> None:
    """Print what was done; leave with exit code 1 where some failed or the job was stopped."""
    _say(report, as_json, stopped)
    list_failures(report.failed)
    if failures:
        report.failed.to_parquet(failures)
        click.echo(f"Failures: {failures.resolve()}", err=True)
    if stopped:
        raise click.ClickException(str(stopped))
    if report.failed:
        sys.exit(1)


def _new_model(place: str) -> str | None:
    """Return the default model where a store does not say which it is of."""
    return None if is_store(place) else default_model()


def _parse_shard(text: str) -> tuple[int, int]:
    try:
        index, of = (int(part) for part in text.split("/"))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not I/N, as 0/4", param_hint="--shard") from None
    return index, of


def _parse_indexes(given: tuple[str, ...]) -> dict[str, Any]:
    pairs = [each.partition("=") for each in given]
    for field, _, kind in pairs:
        if kind not in _KINDS or not field:
            raise click.BadParameter(f"give FIELD=KIND, a kind of {', '.join(_KINDS)}", param_hint="--index")
    return {field: kind for field, _, kind in pairs}


@contextmanager
def progress_shown(verb: str, total: int | None) -> Generator[Callable[[IngestReport], None]]:
    """Give a function that shows how far a job is: a bar on a terminal, else a line now and then."""
    click.echo(verb if total is None else f"{verb} {total:,} images", err=True)
    told = time.monotonic()
    from clip_embed_qdrant._shown import advance

    with Progress(verb, total) as bar:

        def show(report: IngestReport) -> None:
            nonlocal told
            if isinstance(sys.exception(), Stopped):  # the process may end at any moment from now on
                click.echo(f"\nUntil then: {report}. Run it again to go on from there.", err=True)
            elif sys.stderr.isatty():
                advance(bar, report)
            elif time.monotonic() - told > _BETWEEN_LINES:
                told = time.monotonic()
                click.echo(str(report), err=True)

        yield show


def _say(report: IngestReport, as_json: bool, stopped: IngestStopped | None) -> None:
    """Print the report; in JSON `stopped` is why the job did not come to its end, null where it did."""
    if as_json:
        names = ("seen", "skipped", "embedded", "linked", "written", "retries", "seconds")
        facts = {name: getattr(report, name) for name in names}
        facts |= {"failed": len(report.failed), "stopped": str(stopped) if stopped else None}
        click.echo(json.dumps(facts, indent=1))
    else:
        click.echo(str(report))


def list_failures(failures: Failures) -> None:
    """List the first failures on stderr."""
    for number, failure in enumerate(failures):
        if number == _SHOWN:
            click.echo(f"  … and {len(failures) - _SHOWN:,} more", err=True)
            return
        click.echo(f"  {failure}", err=True)


COMMANDS = (ingest,)
