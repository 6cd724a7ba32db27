"""Pages of docs/ that have figures and a picture of the demo's photos: how they are drawn and filled in."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from clip_embed import demo

Floats = npt.NDArray[np.floating]
FILES = demo.photos()
PLACE = {path.stem: place for place, path in enumerate(FILES)}
Row = tuple[str, list[tuple[Path, str]]]  # a title, and pictures with the words under each
_EDGE, _LINE, _FONT = 150, 34, 12
_MOST_BYTES = 95_000


@dataclass(slots=True)
class Section:
    """What goes into a page: lines of figures, and rows of pictures with words under them."""

    page: str
    lines: list[str]
    rows: list[Row] = field(default_factory=list)
    mark: str = "figures"


def tags() -> list[list[str]]:
    """The tags of each photo, the main one first; written before there was a model."""
    known = demo.tags()
    return [known[path.name] for path in FILES]


def shown(places: Sequence[int], words: Callable[[int], str]) -> list[tuple[Path, str]]:
    """Pictures with words under them."""
    return [(FILES[place], words(rank)) for rank, place in enumerate(places)]


def draw(rows: Sequence[Row]) -> Image.Image:
    """Draw rows of pictures, each with its title above and words under each picture."""
    font = ImageFont.load_default(_FONT)
    columns = max(len(tiles) for _, tiles in rows)
    height = _EDGE * 3 // 4
    sheet = Image.new("RGB", (columns * (_EDGE + 6) + 6, len(rows) * (height + _LINE + 10) + 4), "white")
    pen = ImageDraw.Draw(sheet)
    for line, (title, tiles) in enumerate(rows):
        top = 4 + line * (height + _LINE + 10)
        pen.text((6, top), title, "black", font)
        for column, (path, words) in enumerate(tiles):
            with Image.open(path) as image:
                image.draft("RGB", (2 * _EDGE, 2 * _EDGE))
                ratio = max(_EDGE / image.width, height / image.height)
                small = image.convert("RGB").resize(
                    (max(_EDGE, round(image.width * ratio)), max(height, round(image.height * ratio)))
                )
            left, up = (small.width - _EDGE) // 2, (small.height - height) // 2
            corner = (6 + column * (_EDGE + 6), top + 17)
            sheet.paste(small.crop((left, up, left + _EDGE, up + height)), corner)
            pen.text((corner[0] + 1, corner[1] + height + 1), words, "black", font)
    return sheet


def write(section: Section, docs: Path, model: str) -> None:
    """Put the figures into a page, and the picture beside it."""
    page = docs / f"{section.page}.md"
    if section.rows:
        picture = docs / "uses" / f"{section.page}.jpg"
        sheet = draw(section.rows)
        for quality in (75, 65, 55, 45, 35):
            sheet.save(picture, "JPEG", quality=quality, optimize=True)
            if picture.stat().st_size <= _MOST_BYTES:
                break
    body = "\n".join(["```text", f"model: {model}", *section.lines, "```"])
    text = page.read_text("utf-8")
    marks = re.compile(rf"(<!-- {section.mark} -->\n).*?(<!-- end of {section.mark} -->)", re.DOTALL)
    if not marks.search(text):
        raise SystemExit(f"{page} has no place for {section.mark}")
    page.write_text(marks.sub(lambda match: f"{match[1]}{body}\n{match[2]}", text), "utf-8")
