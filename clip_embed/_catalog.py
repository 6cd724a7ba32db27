"""Facts about models that are known to fit, for the table of `clip-embed models`.

Quality is zero-shot ImageNet top-1 and COCO text→image / image→text recall@1, in percent, as
published with the checkpoints and collected in the result tables of OpenCLIP (mlfoundations/open_clip,
docs/openclip_results.csv and openclip_retrieval_results.csv).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KnownModel:
    """One row of the table."""

    name: str
    what: str
    dim: int
    licence: str
    imagenet: float | None
    coco: str | None


KNOWN_MODELS = (
    KnownModel("offline", "EfficientNet-Lite2 + MiniLM, no download", 747, "Apache-2.0", None, None),
    KnownModel(
        "sentence-transformers/clip-ViT-B-32", "CLIP ViT-B/32, OpenAI", 512, "MIT", 63.3, "30.4 / 50.1"
    ),
    KnownModel(
        "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "CLIP ViT-B/32, LAION-2B", 512, "MIT", 66.6, "39.3 / 56.3"
    ),
    KnownModel(
        "sentence-transformers/clip-ViT-L-14", "CLIP ViT-L/14, OpenAI", 768, "MIT", 75.5, "36.5 / 56.3"
    ),
)
