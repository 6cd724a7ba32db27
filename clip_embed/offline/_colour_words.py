"""Which colours a text gives to its object, and what the text says without them.

Rules, not a model: English only, no negation ("not red"), and a colour anywhere in the text counts for
the whole picture ("a red car beside a blue house" asks for red and blue).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from clip_embed._types import Float32
from clip_embed._vectors import unit_rows

COLOUR_TERMS = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray",
)  # fmt: skip
"""The basic colour terms of English (Berlin and Kay 1969), in the order of the vectors' colour part."""

SYNONYMS: dict[str, tuple[str, ...]] = {
    "reddish": ("red",), "crimson": ("red",), "scarlet": ("red",), "maroon": ("red",), "burgundy": ("red",),
    "orangish": ("orange",),
    "yellowish": ("yellow",), "golden": ("yellow",), "gold": ("yellow",),
    "greenish": ("green",), "emerald": ("green",),
    "bluish": ("blue",), "navy": ("blue",), "azure": ("blue",), "cobalt": ("blue",), "cyan": ("blue",),
    "turquoise": ("blue", "green"), "teal": ("blue", "green"),
    "purplish": ("purple",), "violet": ("purple",), "lilac": ("purple",), "mauve": ("purple",),
    "pinkish": ("pink",), "magenta": ("pink", "purple"), "fuchsia": ("pink", "purple"),
    "brownish": ("brown",), "tan": ("brown",), "beige": ("brown", "white"),
    "blackish": ("black",), "whitish": ("white",),
    "grey": ("gray",), "greyish": ("gray",), "grayish": ("gray",), "silver": ("gray",),
}  # fmt: skip

FIXED_EXPRESSIONS: dict[str, str] = {
    "red": "alert cabbage cross deer dwarf fox giant herring onion panda sea setter square squirrel "
    "tape wine wolf",
    "orange": "blossom county grove juice marmalade peel sauce segment slice soda tree zest",
    "yellow": "fever jacket pages",
    "green": "bay card energy house mamba party tea",
    "blue": "cheese heron jay moon ridge terrier whale",
    "brown": "bear bread rice sugar",
    "black": "bear box forest friday grouse hole magic market pepper rhino sea stork tea widow",
    "white": "bread chocolate fox house noise pepper rhino shark stork terrier wine wolf",
    "gray": "area fox matter owl seal whale wolf",
    "golden": "age eagle gate hour ratio retriever",
    "gold": "coast rush",
    "silver": "lining salmon screen",
    "navy": "base officer seal ship",
}
"""Colour word -> nouns that it forms a name with: a red panda need not be red."""

NOT_THE_OBJECT = (
    "background beach field grass lawn light sand sea sky snow wall water "  # what it stands before
    "beard eyes hair skin "  # a small part of it
    "boy child children girl guy kid lady man men people person woman women"  # said of people, not of clothes
)
"""Nouns whose colour is not the colour of what the picture shows."""

PICTURE_WORDS = (
    "a an and any anything are color colored colors colour coloured colours image in is of one or painted "
    "photo photograph picture some something that the thing things this which with"
)
"""Words that name no object: a text of only these and colours asks for a colour alone."""

RULES = (SYNONYMS, FIXED_EXPRESSIONS, NOT_THE_OBJECT, PICTURE_WORDS)
"""What the reading of a text depends on: part of the model's space."""

_WORDS = "|".join(sorted((*COLOUR_TERMS, *SYNONYMS), key=len, reverse=True))
_SHADE = r"(?:bright|dark|deep|light|pale|vivid)"
_COLOUR = re.compile(rf"\b(?:{_SHADE}[ -])?({_WORDS})\b(?:[ -]colou?red\b|[ -]painted\b)?", re.IGNORECASE)
_KEPT = re.compile(
    "|".join(
        (
            r"\bblack[ -]and[ -]white(?= (?:drawing|film|image|movie|photo|photograph|picture)s?\b|$)",
            rf"\b(?:{_WORDS})-\w+ed\b(?<!colored)(?<!coloured)(?<!painted)",  # red-eyed, black-footed
            rf"\b(?:{_WORDS}) (?:{NOT_THE_OBJECT.replace(' ', '|')})\b",
            *(
                rf"\b{word.replace('gray', 'gr[ae]y')} (?:{nouns.replace(' ', '|')})s?\b"
                for word, nouns in FIXED_EXPRESSIONS.items()
            ),
        )
    ),
    re.IGNORECASE,
)
_FUNCTION_WORDS = "and|are|as|at|beside|but|by|for|from|in|inside|is|next|of|on|or|over|that|to|under|with"
_ORANGE_SAID_OF = re.compile(rf"\b(?:is|are|in|painted|(?:{_WORDS})(?: and| or|,)) $", re.IGNORECASE)
_ORANGE_SAYS_OF = re.compile(
    rf"(?:{_SHADE} )?orange(?:(?: and| or|,) (?:{_WORDS})\b|[ -](?!(?:{_FUNCTION_WORDS})\b)\w)", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class ColourQuery:
    """A text taken apart."""

    colours: Float32
    """(11,): equal parts of the colours named, length 1; zeros where none is named."""
    rest: str
    """The text without its colours; the text as it was where none is named."""
    names_object: bool
    """False where the text asks for a colour alone ("something red")."""


def parse_colours(text: str) -> ColourQuery:
    """Find the colours that the text gives to its object: "a dark red car" -> red, "a car"."""
    kept = [match.span() for match in _KEPT.finditer(text)]
    named = [
        match
        for match in _COLOUR.finditer(text)
        if not any(start <= match.start(1) < end for start, end in kept) and not _is_fruit(text, match)
    ]
    colours = np.zeros(len(COLOUR_TERMS), dtype=np.float32)
    if not named:
        return ColourQuery(colours, text, names_object=True)
    for match in named:
        word = match[1].lower()
        colours[[COLOUR_TERMS.index(term) for term in SYNONYMS.get(word, (word,))]] = 1
    rest = _without(text, [match.span() for match in named])
    content = set(re.findall(r"\w+", rest.lower())) - set(PICTURE_WORDS.split())
    return ColourQuery(unit_rows(colours[None])[0], rest, names_object=bool(content))


def _is_fruit(text: str, match: re.Match[str]) -> bool:
    """True where "orange" is a noun: "an orange", "an orange on a table", but not "an orange car"."""
    if match[1].lower() != "orange" or match[0].lower().endswith(("colored", "coloured", "painted")):
        return False
    said_of = _ORANGE_SAID_OF.search(text[: match.start()])
    return not said_of and not _ORANGE_SAYS_OF.match(text[match.start() :])


def _without(text: str, spans: list[tuple[int, int]]) -> str:
    """The text without the spans, nor the "and" or comma between two of them, single-spaced."""
    for start, end in reversed(spans):
        text = text[:start] + "\0" + text[end:]
    text = re.sub(r"\0(?:(?: and| or|,)* \0)+", "\0", text)
    text = " ".join(text.replace("\0", " ").split())
    return re.sub(r"\b([Aa])n (?=[^aeiou])", r"\1 ", text)  # an orange car -> a car
