"""WordNet's nouns: what words mean, and of what more general kind things are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from packages import fetch

FILE = "usr/share/wordnet/data.noun"
VISIBLE = {
    "05": "animal",
    "06": "artifact",
    "08": "body",
    "13": "food",
    "17": "object",
    "18": "person",
    "20": "plant",
}
"""Numbers of the lexicographers' files that hold things to be seen."""
TOO_GENERAL = 5
"""Steps from the top of the tree within which a synset says nothing of how a thing looks."""
EXAMPLE = re.compile(r"; \".*|\(.*?\)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Synset:
    """One meaning."""

    wnid: str
    """As ImageNet writes it: n02084071."""
    names: tuple[str, ...]
    """Its words, the most usual first, with spaces."""
    gloss: str
    """Its definition, without the examples."""
    parents: tuple[str, ...]
    """wnids of its hypernyms."""
    field: str
    """Number of the lexicographers' file."""


@cache
def nouns(folder: Path) -> dict[str, Synset]:
    """wnid -> synset, of every noun, from the cache folder of `packages`."""
    synsets: dict[str, Synset] = {}
    for line in (fetch("wordnet", folder) / FILE).read_text(encoding="latin-1").splitlines():
        if not line.startswith("  "):
            facts, _, gloss = line.partition(" | ")
            fields = facts.split()
            count = int(fields[3], 16)
            names = tuple(name.replace("_", " ") for name in fields[4 : 4 + 2 * count : 2])
            pointers = fields[5 + 2 * count :]
            parents = tuple(
                f"n{pointers[i + 1]}" for i in range(0, len(pointers), 4) if pointers[i][0] == "@"
            )
            wnid = f"n{fields[0]}"
            synsets[wnid] = Synset(wnid, names, EXAMPLE.sub("", gloss).strip(), parents, fields[1])
    return synsets


def ancestors(folder: Path, wnid: str) -> Iterator[Synset]:
    """The synset's first parent, that one's first parent and so on up to what is too general to be seen."""
    synsets = nouns(folder)
    path: list[Synset] = []
    while synsets[wnid].parents:
        wnid = synsets[wnid].parents[0]
        path.append(synsets[wnid])
    yield from path[: max(0, len(path) - TOO_GENERAL)]


def things(folder: Path) -> list[Synset]:
    """Every kind of thing that can be seen and has no proper name, by wnid."""
    visible = (synset for synset in nouns(folder).values() if synset.field in VISIBLE)
    return sorted((synset for synset in visible if synset.names[0].islower()), key=lambda synset: synset.wnid)
