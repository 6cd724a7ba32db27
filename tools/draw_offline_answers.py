"""Draw docs/offline-answers.jpg: ten queries to the offline model, each with its first five demo photos.

    python tools/draw_offline_answers.py

The queries were written down before their answers were seen, some of them to fail.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from clip_embed import ClipEmbedder
from clip_embed.demo import photos

QUERIES = (
    "red car",
    "an animal with fur",
    "something to eat",
    "a bird",
    "flowers in a garden",
    "a famous building",
    "a way to travel",
    "a person",
    "two dogs, not a cat",
    "a happy mood",
)
"""The last three ask for what MODEL_CARD.md says it cannot see: people, negation, moods."""
SHOWN, SIDE, LEFT, GAP = 5, 100, 180, 6
TARGET = Path(__file__).parents[1] / "docs" / "offline-answers.jpg"


def main() -> None:
    """Rank the demo photos for each query and paste the best beside it."""
    files = photos()
    scores = ClipEmbedder("offline").scores(files, QUERIES)
    sheet = Image.new("RGB", (LEFT + SHOWN * (SIDE + GAP), len(QUERIES) * (SIDE + GAP)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    for row, query in enumerate(QUERIES):
        top = row * (SIDE + GAP)
        draw.text((8, top + SIDE / 2), query, "black", font, anchor="lm")
        for place, best in enumerate((-scores[:, row]).argsort(kind="stable")[:SHOWN]):
            photo = Image.open(files[best]).convert("RGB")
            photo.thumbnail((SIDE, SIDE))
            left = LEFT + place * (SIDE + GAP)
            sheet.paste(photo, (left + (SIDE - photo.width) // 2, top + (SIDE - photo.height) // 2))
    sheet.save(TARGET, quality=72, optimize=True)
    print(f"{TARGET}: {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
