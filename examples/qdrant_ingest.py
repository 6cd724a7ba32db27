"""A folder of photos goes into a store and is found by text; the second run embeds only what is new.

    python examples/qdrant_ingest.py PHOTOS photos.clip "a red car" "a boat"

The store is a folder, kept by Qdrant Edge in this process: no server. Photos that cannot be used are named,
and the exit code is 1. CLIP_EMBED_MODEL chooses the model of a new store, for instance `offline`.
"""

import sys

from clip_embed_qdrant import ImageStore


def main(photos: str, folder: str, *texts: str) -> int:
    """Bring the store up to date and print the best three photos for each text."""
    with ImageStore(folder) as store:
        report = store.ingest(photos, facts=["dimensions", "date", "camera"])
        print(report)
        for failure in report.failed:
            print(failure)
        for text in texts:
            print(f"\n{text}")
            for hit in store.search(text=text, k=3):
                print(f"{hit.score:.3f}  {hit.key}")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
