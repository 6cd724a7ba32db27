"""`clip-embed models`: which models fit, and how to bring one here or onto a machine without network."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from clip_embed._cli.table import format_table
from clip_embed._models.catalog import KNOWN_MODELS, KnownModel
from clip_embed._models.hub import HubName, cached, copy_model, download, model_size, parse_name
from clip_embed.errors import MissingExtra, ModelNotFound

_LEGEND = """
ImageNet: zero-shot top-1, %. COCO: recall@1 text→image / image→text, %; published (OpenCLIP's tables).
MB: weights to download. Cost: operations for one image, ViT-B/32 = 1. Here: in the local cache.
offline finds animals, vehicles, food, tools, clothes and household things, in photos better than in drawings,
and their colours; people, events, most places, counting, relations and text in pictures are beyond it.
Any other CLIP or SigLIP of one image size works as well: give its hub name or its folder as --model,
or set CLIP_EMBED_MODEL. `clip-embed models pull NAME` downloads one."""


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@click.pass_context
def models(context: click.Context, as_json: bool) -> None:
    """List models that fit, with size, licence, published quality and cost; or `pull` one."""
    if context.invoked_subcommand is not None:
        return
    here = {model.name: _is_here(model) for model in KNOWN_MODELS}
    if as_json:
        click.echo(
            json.dumps([{**asdict(model), "here": here[model.name]} for model in KNOWN_MODELS], indent=1)
        )
        return
    header = ("model", "what", "d", "pixels", "licence", "ImageNet", "COCO", "MB", "cost", "here")
    rows = [(*_cells(model), "yes" if here[model.name] else "–") for model in KNOWN_MODELS]
    click.echo(format_table(header, rows))
    click.echo(_LEGEND)


def _cells(model: KnownModel) -> tuple[str, ...]:
    facts = (model.dim, model.pixels, model.licence, model.imagenet, model.coco, model.megabytes, model.cost)
    return (model.name, model.what, *("–" if fact is None else str(fact) for fact in facts))


def _is_here(model: KnownModel) -> bool:
    if model.name == "offline":
        from clip_embed.offline._packages import require_packages

        try:
            require_packages()
        except MissingExtra:
            return False
        return True
    name = parse_name(model.name)
    return name is not None and cached(name) is not None


@models.command()
@click.argument("name")
@click.option(
    "--to",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Copy the model into this folder as well, which can be loaded on a machine without network.",
)
@click.option("--revision", help="Branch, tag or commit. [default: the newest]")
def pull(name: str, folder: Path | None, revision: str | None) -> None:
    """Download the model NAME of the hub into its local cache.

    What is there is not fetched again, and a download that broke off goes on where it stopped. Where
    the hub cannot be reached, a copy that is in the cache is taken.
    """
    wanted = _checked_name(name, revision)
    before = cached(wanted)
    try:
        place = download(wanted)
    except ModelNotFound as error:
        if before is None:
            raise
        click.echo(f"{str(error).splitlines()[0]}; taking the one in the cache.", err=True)
        place = before
    news = " (was there already)" if place == before else ""
    click.echo(f"{wanted}: {model_size(place) / 1e6:,.1f} MB, commit {place.name[:12]}{news}")
    click.echo(f"Cache:  {place}")
    model = str(wanted)
    if folder is not None:
        copied = copy_model(place, folder)
        model = str(folder)
        click.echo(f"Folder: {folder.resolve()} ({copied} files copied)")
        click.echo("Copy it to any machine and give its path as --model, or set CLIP_EMBED_MODEL to it.")
    click.echo(f'Next:   clip-embed search PHOTOS "a red car" --model {model}')


def _checked_name(name: str, revision: str | None) -> HubName:
    """Return the parts of a name; click's usage error for one that is not the hub's."""
    if name == "offline":
        raise click.BadParameter("offline is not on the hub: pip install 'clip-embed[offline]'")
    wanted = parse_name(name)
    if wanted is None:
        raise click.BadParameter(f"{name!r} is not a name on the hub: owner/model or owner/model@revision")
    if revision is None:
        return wanted
    if wanted.revision is not None:
        raise click.BadParameter(f"{name!r} names a revision, and --revision another")
    full = parse_name(f"{name}@{revision}")
    if full is None:
        raise click.BadParameter(f"{revision!r} cannot be a branch, a tag or a commit")
    return full
