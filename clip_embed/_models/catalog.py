"""Facts about models that are known to fit, for the table of `clip-embed models`.

Quality is zero-shot ImageNet top-1 and COCO text→image / image→text recall@1, in percent, as
published with the checkpoints and collected in the result tables of OpenCLIP (mlfoundations/open_clip,
docs/openclip_results.csv and openclip_retrieval_results.csv). Licences are those that the model
cards on the hub state. Size and cost follow from the architecture: four bytes for each parameter, and
the operations of the image tower for one image, ViT-B/32 being 1.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KnownModel:
    """One row of the table."""

    name: str
    what: str
    dim: int
    pixels: int
    """Height and width of the image tower's input."""
    licence: str
    imagenet: float | None
    coco: str | None
    megabytes: int | None
    """Size of the weights in float32; None where nothing is downloaded."""
    cost: float | None
    """Operations for one image in units of ViT-B/32's; None where they were not counted."""


KNOWN_MODELS = (
    KnownModel(
        "offline",
        "EfficientNet-Lite2 + MiniLM and a head of our own, no download",
        1003,
        260,
        "Apache-2.0",
        None,
        None,
        None,
        None,
    ),
    KnownModel(
        "sentence-transformers/clip-ViT-B-32",
        "CLIP ViT-B/32, OpenAI",
        512,
        224,
        "MIT",
        63.3,
        "30.4 / 50.1",
        605,
        1.0,
    ),
    KnownModel(
        "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
        "CLIP ViT-B/32, LAION-2B",
        512,
        224,
        "MIT",
        66.6,
        "39.3 / 56.3",
        605,
        1.0,
    ),
    KnownModel(
        "sentence-transformers/clip-ViT-L-14",
        "CLIP ViT-L/14, OpenAI",
        768,
        224,
        "MIT",
        75.5,
        "36.5 / 56.3",
        1710,
        18.4,
    ),
    KnownModel(
        "google/siglip-base-patch16-224",
        "SigLIP ViT-B/16",
        768,
        224,
        "Apache-2.0",
        76.0,
        "47.8 / 65.7",
        813,
        4.0,
    ),
    KnownModel(
        "google/siglip2-base-patch32-256",
        "SigLIP 2 ViT-B/32",
        768,
        256,
        "Apache-2.0",
        74.0,
        "47.2 / 63.7",
        1507,
        1.3,
    ),
    KnownModel(
        "google/siglip2-base-patch16-224",
        "SigLIP 2 ViT-B/16",
        768,
        224,
        "Apache-2.0",
        78.2,
        "52.1 / 68.9",
        1501,
        4.0,
    ),
)
