"""Labels without training on the command line: `classify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from clip_embed import ClipEmbedder, LabelReport, explain_labels
from clip_embed._classify import read_labels
from clip_embed._cli.folder import embed_folder, json_option, model_option, report_failures
from clip_embed._cli.table import format_table
from clip_embed._models.opening import default_model
from clip_embed._templates import TEMPLATES

if TYPE_CHECKING:
    from clip_embed import Classification
    from clip_embed._cli.folder_index import FolderIndex

_LEAST = 0.5  # from which probability on a photo has a label, where it may have several


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("labels", nargs=-1, required=True, metavar="LABEL LABEL...")
@click.option("--other", metavar="LABEL", help="One more label, for photos that fit none of the others.")
@click.option("--multi", is_flag=True, help="A photo may have several labels, or none.")
@click.option(
    "--templates",
    type=click.Choice(sorted(TEMPLATES)),
    default="few",
    show_default=True,
    help="The sentences that labels are put into: 7 or 80.",
)
@click.option("--explain", is_flag=True, help="Say how far the labels hang on those sentences instead.")
@model_option
@json_option
def classify(
    folder: Path,
    labels: tuple[str, ...],
    other: str | None,
    multi: bool,
    templates: str,
    explain: bool,
    model: str | None,
    as_json: bool,
) -> None:
    """Say for each photo below FOLDER which LABEL fits it best, without training.

    A LABEL may name its words: vehicle=car,train,bicycle. The probabilities share a photo among the labels
    given: one that shows none of them gets one all the same, unless --other names a label for it. Vectors
    are kept as by search; photos that cannot be read are listed, and the exit code is 1.
    """
    if multi and explain:
        raise click.UsageError("--explain is for labels of which each photo has one: leave out --multi")
    words = _read(labels, other, multi)
    name = model or default_model()
    embedder = ClipEmbedder(name)
    index = embed_folder(folder, name, embedder)
    if explain:
        report = explain_labels(embedder, index.vectors, words, templates=templates, other=other)
        click.echo(json.dumps(_facts(report, index), indent=1) if as_json else str(report))
    else:
        found = embedder.classify(index.vectors, words, templates=templates, multi=multi, other=other)
        click.echo(_rows(found, index, multi) if as_json else _table(found, index, multi))
    report_failures(index.failures)


def _read(labels: tuple[str, ...], other: str | None, multi: bool) -> dict[str, tuple[str, ...]]:
    """Return the words of each label. Raises click's error for labels that are none."""
    pairs = [label.partition("=") for label in labels]
    words = {name: tuple(given.split(",")) if equals else (name,) for name, equals, given in pairs}
    try:
        read_labels(words, other, multi=multi)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if len(words) < len(labels):
        raise click.UsageError("a label stands twice among the labels")
    return words


def _table(found: Classification, index: FolderIndex, multi: bool) -> str:
    if not multi:
        best = zip(index.paths, found.best, found.probabilities.max(axis=1).tolist(), strict=True)
        return format_table(("photo", "label", "probability"), best, widest=4096)
    rows = [
        (path, ", ".join(f"{label} {share:.2f}" for label, share in row if share >= _LEAST))
        for path, row in zip(index.paths, found.top(len(found.labels)), strict=True)
    ]
    return format_table(("photo", "labels"), rows, widest=4096)


def _rows(found: Classification, index: FolderIndex, multi: bool) -> str:
    answers = found.above(_LEAST) if multi else found.best
    key = "labels" if multi else "label"
    facts = zip(index.paths, answers, found.probabilities.tolist(), strict=True)
    rows = [
        {"path": path, key: answer, "probabilities": dict(zip(found.labels, shares, strict=True))}
        for path, answer, shares in facts
    ]
    return json.dumps(rows, indent=1)


def _facts(report: LabelReport, index: FolderIndex) -> dict[str, object]:
    return {
        "templates": report.templates,
        "agreement": dict(zip(index.paths, report.agreement.tolist(), strict=True)),
        "spread": dict(zip(report.labels, report.spread.tolist(), strict=True)),
    }
