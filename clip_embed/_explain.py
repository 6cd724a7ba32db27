"""How far a classification depends on the sentences that its labels are put into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from clip_embed._classify import Labels
from clip_embed._embedder import ClipEmbedder, Images
from clip_embed._templates import DEFAULT_TEMPLATES, resolve_templates
from clip_embed._types import Float32
from clip_embed._vectors import Vectors, given_vectors


@dataclass(frozen=True, slots=True)
class LabelReport:
    """What t templates, each alone, make of n images and k labels; `print` shows it in short.

    A verdict that hangs on one sentence is a weak one: give better words for the label, or synonyms.
    """

    labels: tuple[str, ...]
    templates: tuple[str, ...]
    together: Float32
    """float32 (n, k): probabilities with all templates."""
    alone: Float32
    """float32 (t, n, k): with each."""

    @property
    def agreement(self) -> Float32:
        """float32 (n,): the share of templates that, alone, name the label that all together name."""
        same = self.alone.argmax(axis=2) == self.together.argmax(axis=1)
        shares: Float32 = same.mean(axis=0, dtype=np.float32)
        return shares

    @property
    def spread(self) -> Float32:
        """float32 (k,): standard deviation of a probability over the templates, mean of the images."""
        deviations: Float32 = self.alone.std(axis=0).mean(axis=0)
        return deviations

    def __str__(self) -> str:
        count = len(self.labels)
        best = np.bincount(self.together.argmax(axis=1), minlength=count)
        each = np.stack([np.bincount(row, minlength=count) for row in self.alone.argmax(axis=2)])
        width = max(len("label"), *(len(label) for label in self.labels))
        lines = [
            f"{len(self.together):,} images, {len(self.templates)} templates; one alone agrees with all of "
            f"them on {self.agreement.mean():.1%} of the images",
            f"{'label':{width}}  images  with one template  ± probability",
        ]
        for place, label in enumerate(self.labels):
            least, most = each[:, place].min(), each[:, place].max()
            span = f"{least:,} to {most:,}"
            lines.append(f"{label:{width}}  {best[place]:>6,}  {span:>17}  {self.spread[place]:>13.3f}")
        return "\n".join(lines)


def explain_labels(
    embedder: ClipEmbedder,
    images: Images | Vectors,
    labels: Labels,
    *,
    templates: Sequence[str] | str = DEFAULT_TEMPLATES,
    other: str | None = None,
) -> LabelReport:
    """Classify n images with each template alone and with all: how far labels hang on the phrasing.

    Arguments and errors are those of `ClipEmbedder.classify`; a few dozen of your images are enough.
    """
    sentences = resolve_templates(templates)
    given = given_vectors(images, embedder)
    vectors = embedder.embed_images(cast("Images", images)) if given is None else given
    if not len(vectors):
        raise ValueError("give some images, a few dozen of yours, to see what labels make of them")
    together = embedder.classify(vectors, labels, templates=sentences, other=other)
    alone = [
        embedder.classify(vectors, labels, templates=[each], other=other).probabilities for each in sentences
    ]
    return LabelReport(together.labels, sentences, together.probabilities, np.stack(alone))
