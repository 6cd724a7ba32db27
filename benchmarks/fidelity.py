"""How far the vectors are from the reference, by model family, precision and format of the files.

    python benchmarks/fidelity.py --cache ~/.cache/clip-embed-benchmarks

The reference is transformers' PIL image processor and a float32 forward pass; of the offline model, whose
parts are no transformers model, its own `exact`, which tests/test_offline_model.py holds against its parts.
Random weights say little by the cosine alone, so three figures are given (design and bounds: tests/core):

pixels    mean and largest difference of the preprocessed pixels from the reference's, in grey levels
cosine    the smallest over the set, and `centred`, after the reference's mean vector is taken off
top-10    how much of the ten best images for each of 44 captions is the same, on average

The files are the demo's photos, saved in each format; `large` are JPEGs of 12 megapixels. Below: the
largest change of any component with batches of 1, 3, 7, 32 and 256, shuffled, with 1 and 2 workers.
"""

from __future__ import annotations

import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import image_sets
import numpy as np
import numpy.typing as npt
import random_clip
import report
from PIL import Image

from clip_embed import ClipEmbedder, ImagePolicy, ImageSpec
from clip_embed._cli.table import format_table
from clip_embed._images.pixels import prepare_pixels
from clip_embed._images.source import read_encoded
from clip_embed._models.precision import capabilities
from clip_embed.demo import captions, photos

Float32 = npt.NDArray[np.float32]
SIZES = (1, 3, 7, 32, 256)
TOP = 10
FORMATS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 90},
    "PNG": {},
    "WebP": {"quality": 90},
    "TIFF": {"compression": "tiff_lzw"},
}


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    model: str
    precision: str
    files: str
    images: int
    mean_grey: float
    largest_grey: int
    cosine: float
    centred: float
    top10: float


def encoded_sets(cache: Path) -> Iterator[tuple[str, list[bytes]]]:
    """The demo's photos in each format, and the large JPEGs."""
    for name, options in FORMATS.items():
        files: list[bytes] = []
        for path in photos():
            buffer = io.BytesIO()
            with Image.open(path) as image:
                image.convert("RGB").save(buffer, name, **options)
            files.append(buffer.getvalue())
        yield name, files
    large = image_sets.SETS["large"]
    yield "JPEG large", [path.read_bytes() for path in image_sets.files(large, 24, cache)]


def precisions(model: str | Path) -> list[str]:
    """Those that this machine computes for a model."""
    if model == "offline":
        return ["exact", "fp32"]
    return ["exact", "fp32", "bf16", *(["int8"] if capabilities("cpu").int8 else [])]


def transformers_vectors(folder: Path) -> Callable[[list[bytes]], Float32]:
    """The reference for a folder of transformers: its PIL image processor, float32, one image at a time."""
    import torch
    from transformers import AutoImageProcessor, AutoModel

    processor: Any = AutoImageProcessor.from_pretrained(folder, backend="pil")
    model: Any = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()

    def embed(files: list[bytes]) -> Float32:
        rows: list[Float32] = []
        for file in files:
            with Image.open(io.BytesIO(file)) as image, torch.inference_mode():
                pixels = processor(image.convert("RGB"), return_tensors="pt")["pixel_values"]
                output = model.get_image_features(pixel_values=pixels)
            rows.append(getattr(output, "pooler_output", output).numpy()[0])
        return unit(np.stack(rows))

    return embed


def unit(rows: Float32) -> Float32:
    """Rows of unit length."""
    lengths: Float32 = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / lengths


def smallest_cosine(left: Float32, right: Float32) -> float:
    """The smallest cosine of rows of the same place."""
    return float((unit(left) * unit(right)).sum(axis=1).min())


def overlap(left: Float32, right: Float32) -> float:
    """Share of the best `TOP` rows of each column, float32 (n, m), that both have."""
    best = [np.argsort(-scores, axis=0, kind="stable")[:TOP] for scores in (left, right)]
    shared = [np.intersect1d(a, b).size for a, b in zip(best[0].T, best[1].T, strict=True)]
    return float(np.mean(shared)) / TOP


def pixel_difference(files: list[bytes], spec: ImageSpec, exact: bool) -> tuple[float, int]:
    """Mean and largest difference of the pixels from those of the exact path, in grey levels.

    The exact path is the reference's bit for bit: tests/core/test_fidelity.py.
    """
    policy = ImagePolicy()
    means: list[float] = []
    largest = 0
    for file in files:
        encoded = read_encoded(file, policy)
        ours = prepare_pixels(file, encoded, spec, policy, exact=exact).astype(np.int16)
        reference = prepare_pixels(file, encoded, spec, policy, exact=True)
        means.append(float(np.abs(ours - reference).mean()))
        largest = max(largest, int(np.abs(ours - reference).max()))
    return float(np.mean(means)), largest


def compare(name: str, model: str | Path, sets: list[tuple[str, list[bytes]]]) -> Iterator[Row]:
    """One row for each precision and format."""
    texts = list(captions().values())
    exact = ClipEmbedder(model, device="cpu", precision="exact", cache=None)
    reference = exact.embed_images if model == "offline" else transformers_vectors(Path(model))
    expected = {files: reference(encoded) for files, encoded in sets}
    queries = exact.embed_texts(texts)
    for precision in precisions(model):
        clip = ClipEmbedder(model, device="cpu", precision=precision, cache=None)  # type: ignore[arg-type]
        for files, encoded in sets:
            click.echo(f"{name} {precision} {files} …", err=True)
            right, found = expected[files], clip.embed_images(encoded)
            mean, largest = pixel_difference(encoded, clip.model.image_spec, precision == "exact")
            centre = right.mean(axis=0)
            yield Row(
                model=name,
                precision=precision,
                files=files,
                images=len(encoded),
                mean_grey=mean,
                largest_grey=largest,
                cosine=smallest_cosine(found, right),
                centred=smallest_cosine(found - centre, right - centre),
                top10=overlap(found @ clip.embed_texts(texts).T, right @ queries.T),
            )


def company(model: str | Path, precision: str) -> float:
    """Largest change of a component with the batch size, the order and the number of workers."""
    files, change = photos(), 0.0
    expected = embedder(model, precision, 8, 2).embed_images(files)
    draw = np.random.default_rng(20)
    for size in SIZES:
        for workers in (1, 2):
            order = np.resize(draw.permutation(len(files)), max(size, len(files)))
            found = embedder(model, precision, size, workers).embed_images([files[place] for place in order])
            change = max(change, float(np.abs(found - expected[order]).max()))
    return change


def embedder(model: str | Path, precision: str, batch_size: int, workers: int) -> ClipEmbedder:
    """One without a cache, on the CPU."""
    return ClipEmbedder(
        model,
        device="cpu",
        precision=precision,  # type: ignore[arg-type]
        batch_size=batch_size,
        workers=workers,
        cache=None,
    )


@click.command()
@click.option("--cache", type=click.Path(path_type=Path), required=True, help="Folder for models and images.")
@click.option("--out", type=click.Path(path_type=Path), default="benchmarks/results", show_default=True)
def main(cache: Path, out: Path) -> None:
    """Compare every model family, precision and format with the reference."""
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    cache.mkdir(parents=True, exist_ok=True)
    models: dict[str, str | Path] = {
        "offline": "offline",
        "CLIP, random weights": random_clip.clip_folder(cache),
        "SigLIP, random weights": random_clip.siglip_folder(cache),
    }
    sets = list(encoded_sets(cache))
    rows = [row for name, model in models.items() for row in compare(name, model, sets)]
    header = ("model", "precision", "files", "n", "grey mean", "max", "cosine", "centred", "top-10")
    cells = [
        (
            *(row.model, row.precision, row.files, row.images, f"{row.mean_grey:.3f}", row.largest_grey),
            *(f"{row.cosine:.5f}", f"{row.centred:.5f}", f"{row.top10:.1%}"),
        )
        for row in rows
    ]
    click.echo(format_table(header, cells))
    changes = [
        (name, precision, company(model, precision))
        for name, model in models.items()
        for precision in precisions(model)
    ]
    sizes = ", ".join(map(str, SIZES))
    click.echo(f"\nLargest change of a component: batches of {sizes}, shuffled, 1 and 2 workers")
    click.echo(
        format_table(("model", "precision", "change"), [(*row[:2], f"{row[2]:.1e}") for row in changes])
    )
    out.mkdir(parents=True, exist_ok=True)
    facts = {"about": report.about(), "rows": [asdict(row) for row in rows], "company": changes}
    (out / "fidelity.json").write_text(json.dumps(facts, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
