"""Search in part of a collection: rows of a table with their columns as payload, filtered while searching.

    python examples/qdrant_filter.py PHOTOS photos.clip "a red car"

Each photo takes the name of its folder as `album` and a number of `stars` along; `indexes` makes filtering by
them quick before anything is written. CLIP_EMBED_MODEL chooses the model of a new store.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from clip_embed_qdrant import ImageStore


def photos(folder: Path) -> Iterator[tuple[str, Path, dict[str, object]]]:
    """Yield key, image and payload of each photo."""
    for number, path in enumerate(sorted(folder.rglob("*.jpg"))):
        yield (
            path.name,
            path,
            {"album": path.parent.name, "stars": number % 5 + 1, "scanned": number % 2 == 0},
        )


def main(folder: str, location: str, text: str) -> None:
    """Fill the store and ask the same text of different parts of it."""
    with ImageStore(location, indexes={"album": "keyword", "stars": "integer", "scanned": "bool"}) as store:
        store.ingest(photos(Path(folder)))
        for where in (
            {},
            {"stars": {"$gte": 4}},
            {"scanned": True, "album": {"$ne": "private"}},
            {"$or": [{"stars": 1}, {"scanned": False}]},
        ):
            print(f"\n{text} where {where}")
            for hit in store.search(text=text, where=where, k=3):
                print(f"{hit.score:.3f}  {hit.key}  {hit.payload['stars']} stars")


if __name__ == "__main__":
    main(*sys.argv[1:])
