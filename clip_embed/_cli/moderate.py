"""Moderation on the command line: `moderate` a folder by a policy, `calibrate` the policy on examples."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict
from pathlib import Path

import click

from clip_embed import Calibration, ClipEmbedder, Decision, ModerationPolicy
from clip_embed import calibrate as calibrate_policy
from clip_embed import moderate as judge
from clip_embed._cli.folder import embed_folder, json_option, model_option, report_failures
from clip_embed._cli.listed import read_labels
from clip_embed._cli.table import format_table, one_line
from clip_embed._cli.visual import write_page
from clip_embed._models.opening import default_model

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER = click.argument(
    "folder", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="PHOTOS"
)
_POLICY = click.option(
    "--policy", "file", type=_FILE, metavar="JSON", help="What to look for. [default: a neutral one]"
)


def _print_starter(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        click.echo(ModerationPolicy.starter().to_json())
        context.exit()


@click.command()
@_FOLDER
@_POLICY
@click.option(
    "--print-policy",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_starter,
    help="Print the neutral policy, to write your own from, and leave.",
)
@click.option(
    "--html", "page", type=click.Path(dir_okay=False, path_type=Path), help="Write a gallery of the flagged."
)
@model_option
@json_option
def moderate(folder: Path, file: Path | None, page: Path | None, model: str | None, as_json: bool) -> None:
    """List the photos below PHOTOS that somebody should look at, likeliest first, and why.

    The categories and their thresholds are those of a policy; fit them by `clip-embed calibrate` before you
    rely on them. Vectors are kept as by search; photos that cannot be read are unchecked and listed, and the
    exit code is 1.
    """
    policy = _read_policy(file)
    name = model or default_model()
    embedder = ClipEmbedder(name)
    index = embed_folder(folder, name, embedder)
    decisions = list(zip(index.paths, judge(embedder, index.vectors, policy), strict=True))
    unchecked = [
        (Path(failure.source).relative_to(folder).as_posix(), Decision("unchecked", failure.reason, {}))
        for failure in index.failures
    ]
    flagged = sorted(
        (
            (decision.scores[decision.reason], path, decision.reason)
            for path, decision in decisions
            if decision.verdict == "flag"
        ),
        key=lambda row: (-row[0], row[1]),
    )
    if as_json:
        verdicts = [{"path": path, **asdict(decision)} for path, decision in [*decisions, *unchecked]]
        click.echo(json.dumps(verdicts, indent=1, ensure_ascii=False))
    elif flagged:
        rows = [(path, reason, score) for score, path, reason in flagged]
        click.echo(format_table(("photo", "category", "score"), rows, widest=4096))
    click.echo(f"{len(flagged):,} of {len(decisions):,} photos flagged.", err=as_json)
    if file is None:
        click.echo("The neutral policy is fitted to nothing: see clip-embed calibrate --help.", err=True)
    tiles = [(path, f"{reason}: {path}", score) for score, path, reason in flagged]
    write_page(page, "Photos to look at", folder, tiles, as_json)
    report_failures(index.failures)


@click.command()
@_FOLDER
@click.option(
    "--labels",
    "table",
    required=True,
    type=_FILE,
    metavar="CSV",
    help="Columns file (below PHOTOS) and label: a category, or nothing for none of them.",
)
@click.option(
    "-o",
    "--output",
    "target",
    required=True,
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="The fitted policy's file.",
)
@_POLICY
@click.option(
    "--precision",
    type=click.FloatRange(0, 1),
    help="The lowest thresholds that reach it. [default: those of the best F1]",
)
@model_option
@json_option
def calibrate(
    folder: Path,
    table: Path,
    target: Path,
    file: Path | None,
    precision: float | None,
    model: str | None,
    as_json: bool,
) -> None:
    """Set the thresholds of a policy from examples, and print precision and recall on them.

    A photo of several categories has a line for each. Photos that the CSV does not list are left out. Vectors
    are kept as by search; photos that cannot be read are listed, and the exit code is 1.
    """
    policy = _read_policy(file)
    name = model or default_model()
    embedder = ClipEmbedder(name)
    index = embed_folder(folder, name, embedder)
    labels = read_labels(table, folder, index)
    rows = [place for place, path in enumerate(index.paths) if path in labels]
    if not rows:
        raise click.BadParameter(f"no photo below {folder} is listed in {table}", param_hint="--labels")
    wanted = [labels[index.paths[place]] for place in rows]
    try:
        with warnings.catch_warnings(record=True, action="always", category=UserWarning) as told:
            fitted = calibrate_policy(embedder, policy, index.vectors[rows], wanted, precision=precision)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--labels") from error
    for warning in told:
        click.echo(one_line(str(warning.message)), err=True)
    target.write_text(fitted.policy.to_json() + "\n", "utf-8")
    click.echo(json.dumps(_figures(fitted), indent=1, ensure_ascii=False) if as_json else str(fitted))
    report_failures(index.failures)


MODERATION_COMMANDS = (moderate, calibrate)


def _read_policy(file: Path | None) -> ModerationPolicy:
    if file is None:
        return ModerationPolicy.starter()
    try:
        return ModerationPolicy.from_json(file.read_text("utf-8"))
    except ValueError as error:
        raise click.BadParameter(f"{file}: {error}", param_hint="--policy") from error


def _figures(fitted: Calibration) -> list[dict[str, object]]:
    """Return the facts of each category, None where there was nothing to measure on."""
    return [
        {
            "category": each.name,
            "examples": fitted.examples[each.name],
            "threshold": each.threshold,
            **{
                name: None if figures[each.name] != figures[each.name] else figures[each.name]
                for name, figures in (("precision", fitted.precision), ("recall", fitted.recall))
            },
        }
        for each in fitted.policy.categories
    ]
