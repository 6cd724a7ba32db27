"""Sentences that a label is put into, as data, and what stands for no label at all."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

DEFAULT_TEMPLATES: tuple[str, ...] = (
    "{}",
    "a photo of {}",
    "a photo of a {}",
    "a picture with a {} in it",
    "a close look at a {}",
    "a {} seen from far away",
    "a drawing of a {}",
)
"""Sentences that each label is put into; the mean of their vectors suffers less from one phrasing."""

_KINDS = (
    "a photo of",
    "a snapshot of",
    "a dim photo of",
    "a blurred photo of",
    "a black-and-white photo of",
    "a cropped photo of",
    "a drawing of",
    "a painting of",
)
_VIEWS = (
    "a {}",
    "the {}",
    "one {}",
    "many {}",
    "a small {}",
    "a large {}",
    "a {} close up",
    "a {} far away",
    "a {} outdoors",
    "part of a {}",
)
MANY_TEMPLATES: tuple[str, ...] = tuple(f"{kind} {view}" for kind, view in product(_KINDS, _VIEWS))
"""80 sentences: each of 8 kinds of picture with each of 10 views of the thing in it."""

TEMPLATES = {"few": DEFAULT_TEMPLATES, "many": MANY_TEMPLATES}
"""The sets that have a name."""

NOTHING = ("thing", "object", "place", "scene", "something")
"""What is put into the templates for "none of these labels"."""


def resolve_templates(templates: Sequence[str] | str) -> tuple[str, ...]:
    """Return the sentences; a str is the name of a set. Raises ValueError for one without {}."""
    if isinstance(templates, str):
        if "{}" in templates:
            raise TypeError("templates must be a list of texts; for a single one wrap it in a list")
        if templates not in TEMPLATES:
            raise ValueError(
                f"there is no set of templates called {templates!r}: give one of {', '.join(TEMPLATES)}, or "
                "a list of sentences with {} for the label"
            )
        return TEMPLATES[templates]
    if not templates:
        raise ValueError('give at least one template, such as "a photo of {}"')
    if plain := [template for template in templates if "{}" not in template]:
        raise ValueError(f"the template {plain[0]!r} has no {{}} for the label")
    return tuple(templates)
