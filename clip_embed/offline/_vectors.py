"""How meaning and colour become one vector.

A vector has three parts: meaning (384), colour of the object (32 topics × 11 colours) and colour alone (11).
The middle part of an image and a text is alike only if they agree in both kind and colour, so "red car"
lifts red cars, and lifts strawberries hardly at all. Each part of an image has the same length in every
image; a text that names no colour has the meaning part only, so colours cannot change its ranking.
"""

from __future__ import annotations

import numpy as np

from clip_embed._types import Float32
from clip_embed._vectors import unit_rows
from clip_embed.offline._colour_words import COLOUR_TERMS
from clip_embed.offline._heads import MEANING_DIM, TOPIC_DIM

IMAGE_OBJECT_COLOUR = 0.5
IMAGE_COLOUR = 0.25
"""Lengths of an image's colour parts, beside 1 for its meaning: what colour counts between two images."""
TEXT_OBJECT_COLOUR = 1.5
"""Length of a text's middle part, beside 1 for its meaning: chosen by training/choose_colour_weight.py."""
DIM = MEANING_DIM + TOPIC_DIM * len(COLOUR_TERMS) + len(COLOUR_TERMS)


def image_vectors(meanings: Float32, topics: Float32, colours: Float32) -> Float32:
    """Unit rows (n, 384), (n, 32), (n, 11) -> float32 (n, 747), rows of unit length."""
    object_colours = IMAGE_OBJECT_COLOUR * _products(topics, colours)
    return unit_rows(np.concatenate([meanings, object_colours, IMAGE_COLOUR * colours], axis=1))


def text_vectors(meanings: Float32, topics: Float32, colours: Float32, names_object: list[bool]) -> Float32:
    """Rows (m, 384), (m, 32), (m, 11), the last zeros where no colour is named -> float32 (m, 747).

    Rows are of unit length. Where `names_object` is False the text asks for a colour alone.
    """
    has_object = np.array(names_object)[:, None]
    object_colours = TEXT_OBJECT_COLOUR * _products(topics, colours)
    parts = [has_object * meanings, has_object * object_colours, ~has_object * colours]
    return unit_rows(np.concatenate(parts, axis=1))


def _products(topics: Float32, colours: Float32) -> Float32:
    """(n, 32) and (n, 11) -> (n, 352): each topic times each colour."""
    return (topics[:, :, None] * colours[:, None, :]).reshape(len(topics), -1)
