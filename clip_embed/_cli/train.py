"""`clip-embed train`: a CLIP learns from pairs of image and caption."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from clip_embed import train as train_model
from clip_embed._cli.folder import json_option, model_option
from clip_embed._cli.listed import read_table
from clip_embed._cli.table import one_line
from clip_embed._models.opening import default_model


@click.command()
@click.argument("table", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="PAIRS")
@click.option(
    "--to",
    "target",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder for the model; must not be there yet.",
)
@click.option(
    "--held-out",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.1,
    show_default=True,
    help="Share of the images that is kept to measure recall.",
)
@click.option("--epochs", default=10, show_default=True, type=click.IntRange(min=1), help="At most.")
@click.option(
    "--batch-size", default=256, show_default=True, type=click.IntRange(min=2), help="In one choice."
)
@click.option("--chunk-size", default=32, show_default=True, type=click.IntRange(min=1), help="In memory.")
@click.option("--learning-rate", default=1e-5, show_default=True, help="Of AdamW.")
@click.option("--patience", default=2, show_default=True, help="Epochs without a gain before it ends.")
@click.option("--seed", default=0, show_default=True, help="Of the draw and the order.")
@model_option
@json_option
def train(
    table: Path,
    target: Path,
    held_out: float,
    epochs: int,
    batch_size: int,
    chunk_size: int,
    learning_rate: float,
    patience: int,
    seed: int,
    model: str | None,
    as_json: bool,
) -> None:
    """Fine-tune a model on PAIRS, a CSV with the columns file (relative to it) and caption.

    Ends where recall@1 of the held-out pairs no longer rises, and keeps the best. The result is a model of a
    space of its own: give its folder as --model, and embed your images again. Needs the extra train.
    """

    def tell(epoch: int, recall: float) -> None:
        click.echo(f"epoch {epoch}: recall@1 {recall:.1%}", err=True)

    try:
        found = train_model(
            model or default_model(),
            read_pairs(table),
            target,
            held_out=held_out,
            epochs=epochs,
            batch_size=batch_size,
            chunk_size=chunk_size,
            learning_rate=learning_rate,
            patience=patience,
            seed=seed,
            progress=tell,
        )
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps({**asdict(found), "folder": str(found.folder)}, indent=1))
    else:
        click.echo(f"{found.folder}: {found}")


def read_pairs(table: Path) -> list[tuple[Path, str]]:
    """Return file and caption of each line, none empty; files lie relative to the table."""
    pairs = read_table(table, "caption", "PAIRS")
    if empty := [file for file, caption in pairs if not caption.strip()]:
        raise click.BadParameter(
            f"{table} has no caption for {one_line(empty[0])}: leave out its line", param_hint="PAIRS"
        )
    return [(table.parent / file, caption) for file, caption in pairs]
