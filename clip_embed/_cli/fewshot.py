"""Labels learned from examples on the command line: `fit` and `predict`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from clip_embed import Classifier, ClipEmbedder
from clip_embed import fit as fit_classifier
from clip_embed._cli.folder import embed_folder, json_option, model_option, report_failures
from clip_embed._cli.listed import read_labels
from clip_embed._cli.table import format_table
from clip_embed._models.opening import default_model

_FOLDER = click.argument(
    "folder", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="PHOTOS"
)


@click.command()
@_FOLDER
@click.option(
    "-o",
    "--output",
    "target",
    required=True,
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="The classifier's file.",
)
@click.option(
    "--labels",
    "table",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="CSV",
    help="Columns file (below PHOTOS) and label, in place of folders.",
)
@click.option(
    "--method",
    type=click.Choice(("probe", "mean")),
    default="probe",
    show_default=True,
    help="Logistic regression, or nearest mean.",
)
@model_option
@json_option
def fit(
    folder: Path, target: Path, table: Path | None, method: str, model: str | None, as_json: bool
) -> None:
    """Learn labels from examples: each folder in PHOTOS is a label, the photos below it its examples.

    Prints the cross-validated accuracy beside that of zero-shot. Photos that lie in no folder, or that the
    CSV does not list, are left out. Vectors are kept as by search; photos that cannot be read are listed,
    and the exit code is 1.
    """
    name = model or default_model()
    embedder = ClipEmbedder(name)
    index = embed_folder(folder, name, embedder)
    known = (
        {path: labels[-1] for path, labels in read_labels(table, folder, index).items() if labels}
        if table
        else {path: path.split("/")[0] for path in index.paths if "/" in path}
    )
    rows = [place for place, path in enumerate(index.paths) if path in known]
    labels = [known[index.paths[place]] for place in rows]
    try:
        found = fit_classifier(
            embedder, index.vectors[rows], labels, method="mean" if method == "mean" else "probe"
        )
    except ValueError as error:
        raise click.ClickException(f"{len(rows)} labelled photos below {folder}: {error}") from error
    found.save(target)
    if as_json:
        measured = {name: None if fact != fact else fact for name, fact in asdict(found.accuracy).items()}
        facts = {"file": str(target), "model": name, "labels": found.labels, "accuracy": measured}
        click.echo(json.dumps(facts, indent=1))
    else:
        click.echo(f"{target}: {', '.join(found.labels)}\n{found.accuracy}")
    report_failures(index.failures)


@click.command()
@_FOLDER
@click.argument("classifier", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@model_option
@json_option
def predict(folder: Path, classifier: Path, model: str | None, as_json: bool) -> None:
    """Name each photo below PHOTOS by a CLASSIFIER that `clip-embed fit` wrote.

    Takes the model it was fitted with, unless --model gives another place for the same one. Vectors are kept
    as by search; photos that cannot be read are listed, and the exit code is 1.
    """
    try:
        found = Classifier.load(classifier)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    name = model or found.model
    embedder = ClipEmbedder(name)
    index = embed_folder(folder, name, embedder)
    answer = found.predict(embedder, index.vectors)
    if as_json:
        facts = zip(index.paths, answer.best, answer.probabilities.tolist(), strict=True)
        rows = [
            {"path": path, "label": label, "probabilities": dict(zip(answer.labels, shares, strict=True))}
            for path, label, shares in facts
        ]
        click.echo(json.dumps(rows, indent=1))
    else:
        best = zip(index.paths, answer.best, answer.probabilities.max(axis=1).tolist(), strict=True)
        click.echo(format_table(("photo", "label", "probability"), best, widest=4096))
    report_failures(index.failures)


FEWSHOT_COMMANDS = (fit, predict)
