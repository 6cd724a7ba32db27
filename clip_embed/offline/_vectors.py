"""How meaning, looks and colour become one vector.

A vector has four parts: meaning (384), looks (256), colour of the object (32 topics × 11 colours) and
colour alone (11). The third part of an image and a text is alike only if they agree in both kind and colour,
so "red car" lifts red cars, and lifts strawberries less; the fourth makes the colour count a little where the
kind was not recognised. Each part of an image has the same length in every image; a text that names no colour
has only meaning and looks, so colours cannot change its ranking.
"""

from __future__ import annotations

import numpy as np

from clip_embed._types import Float32
from clip_embed._vectors import unit_rows
from clip_embed.offline._colour_words import COLOUR_TERMS
from clip_embed.offline._heads import LOOKS_DIM, MEANING_DIM, TOPIC_DIM

LOOKS = 1.0
"""Length of the looks, of images and texts, beside 1 for the meaning: chosen on the validation photos."""
IMAGE_OBJECT_COLOUR = 0.5
IMAGE_COLOUR = 0.25
"""Lengths of an image's colour parts, beside 1 for its meaning: what colour counts between two images."""
TEXT_OBJECT_COLOUR = 2.0
TEXT_COLOUR = 0.8
"""Lengths of the colour parts of a text that names an object, chosen by training/choose_colour_weight.py."""
LENGTHS = (LOOKS, IMAGE_OBJECT_COLOUR, IMAGE_COLOUR, TEXT_OBJECT_COLOUR, TEXT_COLOUR)
"""All of them: part of the model's space."""
DIM = MEANING_DIM + LOOKS_DIM + (TOPIC_DIM + 1) * len(COLOUR_TERMS)


def image_vectors(meanings: Float32, looks: Float32, topics: Float32, colours: Float32) -> Float32:
    """Unit rows (n, 384), (n, 256), (n, 32), (n, 11) -> float32 (n, 1003), rows of unit length."""
    object_colours = IMAGE_OBJECT_COLOUR * _products(topics, colours)
    parts = [meanings, LOOKS * looks, object_colours, IMAGE_COLOUR * colours]
    return unit_rows(np.concatenate(parts, axis=1))


def text_vectors(
    meanings: Float32, looks: Float32, topics: Float32, colours: Float32, names_object: list[bool]
) -> Float32:
    """Rows (m, 384), (m, 256), (m, 32), (m, 11), the last zeros without a colour -> float32 (m, 1003).

    Rows are of unit length. Where `names_object` is False the text asks for a colour alone.
    """
    has_object = np.array(names_object)[:, None]
    object_colours = TEXT_OBJECT_COLOUR * _products(topics, colours)
    parts = [meanings, LOOKS * looks, object_colours]
    alone = np.where(has_object, TEXT_COLOUR, 1) * colours
    return unit_rows(np.concatenate([*(has_object * part for part in parts), alone], axis=1))


def _products(topics: Float32, colours: Float32) -> Float32:
    """(n, 32) and (n, 11) -> (n, 352): each topic times each colour."""
    return (topics[:, :, None] * colours[:, None, :]).reshape(len(topics), -1)
