"""`clip-embed evaluate`: whether captions find their images, and images their captions."""

from __future__ import annotations

import json
from pathlib import Path

import click

from clip_embed import ClipEmbedder, Retrieval, evaluate_retrieval
from clip_embed._cli.folder import json_option, model_option, report_failures
from clip_embed._cli.train import read_pairs
from clip_embed._models.opening import default_model

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("table", type=_FILE, metavar="PAIRS")
@click.option("--distractors", type=_FILE, metavar="TXT", help="Captions of no image, a line each.")
@model_option
@json_option
def evaluate(table: Path, distractors: Path | None, model: str | None, as_json: bool) -> None:
    """Measure a model on PAIRS, a CSV with the columns file (relative to it) and caption.

    Prints recall@1, 5 and 10 of captions that look for their image and of images that look for their caption,
    and how often an image finds its caption among so many, each beside chance. An image may have several
    lines. Images that cannot be read are left out and listed, and the exit code is 1.
    """
    captions: dict[Path, list[str]] = {}
    for path, caption in read_pairs(table):
        captions.setdefault(path, []).append(caption)
    others = _read_lines(distractors) if distractors else []
    embedder = ClipEmbedder(model or default_model())
    try:
        found = evaluate_retrieval(embedder, list(captions), list(captions.values()), distractors=others)
    except ValueError as error:
        raise click.ClickException(f"{table}: {error}") from error
    click.echo(json.dumps(_facts(found), indent=1) if as_json else str(found))
    report_failures(found.failures)


def _read_lines(file: Path) -> list[str]:
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise click.BadParameter(
            f"{file} is no text in UTF-8: {error}", param_hint="--distractors"
        ) from error
    return [line for line in lines if line.strip()]


def _facts(found: Retrieval) -> dict[str, object]:
    ranks = (1, 5, 10)
    return {
        "images": len(found.caption_ranks),
        "captions": len(found.image_ranks),
        "distractors": found.distractors,
        "text_to_image": {f"recall@{k}": found.text_to_image(k) for k in ranks},
        "image_to_text": {f"recall@{k}": found.image_to_text(k) for k in ranks},
    }
