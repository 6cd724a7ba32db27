"""From what the frozen towers give to the meaning and the looks of the vectors: 384 and 256 numbers.

Meaning compares in the space of texts: an image lies where the names of what it shows lie. Looks compare in
the space of image features: a text lies where the classifier would look for what it names. The two err
differently.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from clip_embed._types import Float32
from clip_embed._vectors import unit_rows
from clip_embed.offline._packages import CLASS_VECTORS, TRAINED_HEAD
from clip_embed.offline._products import product
from clip_embed.offline._towers import ImageFeatures

CONSE_TEMPERATURE = 1.5
CONSE_CLASSES = 50
FEATURE_LENGTH = 8.0
"""Length to which the image features are brought before the trained head reads them."""
MEANING_DIM = 384
LOOKS_DIM = 256
FOCUS = 0.5
"""What the features where the classifier looks count in the looks, beside 1 for those of the whole image."""
NAME_SHARPNESS = 4.0
"""How fast a text and a class name stop being alike: exp(sharpness × (cosine - 1))."""
TOPIC_DIM = 32


class ConseHeads:
    """ConSE, convex combination of semantic embeddings (Norouzi et al. 2013).

    An image lies where the texts of its likeliest ImageNet classes lie, a text where the text tower puts it.
    """

    def __init__(self) -> None:
        """Read the shipped class vectors; raises ModelUnsupported if the file was changed."""
        from safetensors.numpy import load_file  # pyright: ignore[reportUnknownVariableType]

        arrays = load_file(CLASS_VECTORS.checked_path())
        self.class_vectors = arrays["class_vectors"].astype(np.float32)
        self._topic_centre = arrays["topic_centre"].astype(np.float32)
        self._topic_axes = arrays["topic_axes"].astype(np.float32)

    def image(self, towers: ImageFeatures) -> Float32:
        """n images -> float32 (n, 384), rows of unit length: probability-weighted mean of class vectors."""
        scaled = towers.logits.astype(np.float64) / CONSE_TEMPERATURE
        weights = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        others = np.argpartition(weights, -CONSE_CLASSES, axis=1)[:, :-CONSE_CLASSES]
        np.put_along_axis(weights, others, 0, axis=1)
        return unit_rows(product(weights, self.class_vectors))

    def text(self, vectors: Float32) -> Float32:
        """float32 (m, 384) of the text tower -> float32 (m, 384), rows of unit length."""
        return unit_rows(vectors)

    def topics(self, meanings: Float32) -> Float32:
        """float32 (n, 384) from `image` or `text` -> float32 (n, 32), rows of unit length.

        The coordinates along the main directions in which class vectors differ, each scaled to the same
        spread: a coarse object kind, small enough to be multiplied with the colours.
        """
        return unit_rows(product(meanings - self._topic_centre, self._topic_axes))


class LooksHeads:
    """Text to classifier weights, by kernel ridge regression from the classes' texts to their rows.

    Compared there, fewer images are near to every text than in the space of texts (Shigeto et al. 2015).
    """

    def __init__(self) -> None:
        """Read the shipped class vectors; raises ModelUnsupported if the file was changed."""
        from safetensors.numpy import load_file  # pyright: ignore[reportUnknownVariableType]

        arrays = load_file(CLASS_VECTORS.checked_path())
        self._class_vectors = unit_rows(arrays["class_vectors"].astype(np.float32))
        self._axes = arrays["looks_axes"].astype(np.float32)
        self._of_names = arrays["looks_of_names"].astype(np.float32)

    def image(self, towers: ImageFeatures) -> Float32:
        """n images -> float32 (n, 256), rows of unit length: features along the classifier's main axes."""
        return unit_rows(product(unit_rows(towers.features) + FOCUS * unit_rows(towers.focused), self._axes))

    def text(self, vectors: Float32) -> Float32:
        """float32 (m, 384) of the text tower -> float32 (m, 256), rows of unit length."""
        return unit_rows(product(name_kernel(unit_rows(vectors), self._class_vectors), self._of_names))


def name_kernel(texts: Float32, names: Float32) -> Float32:
    """Unit rows (m, 384), (k, 384) -> float32 (m, k): how much each text is like each name, from 0 to 1."""
    likeness: Float32 = np.exp(NAME_SHARPNESS * (product(texts, names.T) - 1))
    return likeness


class TrainedHead:
    """A small network on the image features: what it gives is added to an image's ConSE vector.

    training/train.py makes it.
    """

    def __init__(self, arrays: Mapping[str, npt.NDArray[np.floating]]) -> None:
        self._weights = {name: array.astype(np.float32) for name, array in arrays.items()}

    @classmethod
    def shipped(cls) -> TrainedHead:
        """The head in the package; raises ModelUnsupported if the file was changed."""
        from safetensors.numpy import load_file  # pyright: ignore[reportUnknownVariableType]

        return cls(load_file(TRAINED_HEAD.checked_path()))

    def __call__(self, towers: ImageFeatures, conse: Float32) -> Float32:
        """n images and their ConSE vectors (n, 384) -> float32 (n, 384), rows of unit length."""
        weights = self._weights
        seen = [FEATURE_LENGTH * unit_rows(part) for part in (towers.features, towers.focused)]
        inputs = np.concatenate([*seen, conse], axis=1)
        hidden = np.maximum(product(inputs, weights["in.weight"].T) + weights["in.bias"], 0)
        return unit_rows(conse + product(hidden, weights["out.weight"].T) + weights["out.bias"])
