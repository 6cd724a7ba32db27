"""Pages with thumbnails: one HTML file without references to anything outside it."""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from clip_embed._cli.signals import keeping
from clip_embed._images.source import ImageInput
from clip_embed._images.thumbnail import make_thumbnail
from clip_embed._types import ImagePolicy
from clip_embed.errors import ImageError

_THUMBNAIL = 320  # pixels of the longer edge
# Texts are escaped; should one slip through, it still runs nothing and fetches nothing.
_RULES = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_BASE = """
:root { color-scheme: light dark; --line: #8884; --soft: #888 }
body { font: 15px/1.4 system-ui, sans-serif; max-width: 1180px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.3rem; margin: 0 } p { color: var(--soft); margin: .3rem 0 1.2rem }
code { font: 13px ui-monospace, monospace }
""".strip()
STYLE = """
main { display: grid; gap: 14px; grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)) }
figure { margin: 0; border: 1px solid var(--line); border-radius: 8px; overflow: hidden }
figure img, figure .none { display: block; width: 100%; aspect-ratio: 4 / 3; background: var(--line) }
figure img { height: auto; object-fit: cover }
figure .none { box-sizing: border-box; padding: 1rem; font-size: 13px; color: var(--soft) }
figcaption { padding: 5px 9px 7px; font-size: 13px; overflow-wrap: anywhere }
figcaption span { color: var(--soft) }
figcaption b { float: right; font-variant-numeric: tabular-nums }
figcaption div { clear: both }
meter { display: block; width: 100%; height: 6px; border-radius: 0 }
""".strip()


@dataclass(frozen=True, slots=True)
class Tile:
    """One picture of a gallery: the image, its name and its cosine similarity (None: not shown)."""

    image: ImageInput | None
    name: str
    score: float | None = None


def write_gallery(
    file: Path, title: str, note: str, tiles: Iterable[Tile], policy: ImagePolicy | None = None
) -> None:
    """Write the tiles, in order, as one HTML file; `note` is a line of code under the title.

    Names and texts are escaped; an image that cannot be decoded is a tile that says why.
    """
    figures = "\n".join(
        figure(str(rank), tile, policy or ImagePolicy()) for rank, tile in enumerate(tiles, 1)
    )
    write_page(
        file, title, f"<p><code>{html.escape(note)}</code></p>\n<main>\n{figures}\n</main>", style=STYLE
    )


def write_page(file: Path, title: str, body: str, *, style: str) -> None:
    """Write one HTML file: its title, then `body`, which is markup."""
    with keeping():
        file.write_text(
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{_RULES}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{html.escape(title)}</title>\n<style>\n{_BASE}\n{style}\n</style></head><body>\n"
            f"<h1>{html.escape(title)}</h1>\n{body}\n</body></html>\n",
            "utf-8",
            "replace",  # a file name need not be UTF-8
        )


def figure(mark: str, tile: Tile, policy: ImagePolicy, edge: int = _THUMBNAIL) -> str:
    """Return a tile as markup; `mark` stands before its score, the picture is at most `edge` pixels large."""
    try:
        if tile.image is None:
            raise ImageError("no image")  # noqa: TRY301 - shown as other reasons are
        picture = thumbnail(tile.image, tile.name, policy, edge)
    except ImageError as error:
        picture = f'<div class="none">{html.escape(str(error))}</div>'
    score = ""
    if tile.score is not None:
        share = min(max(tile.score, 0.0), 1.0)
        score = f"<b>{tile.score:.3f}</b>"
        picture += f'<meter min="0" max="1" value="{share:.3f}"></meter>'
    head = f"<span>{html.escape(mark)}</span>{score}"
    return f"<figure>{picture}<figcaption>{head}<div>{html.escape(tile.name)}</div></figcaption></figure>"


def thumbnail(source: ImageInput, name: str, policy: ImagePolicy, edge: int = _THUMBNAIL) -> str:
    """Return an image as markup, small and inlined; `name` stands for it. Raises ImageError."""
    small = make_thumbnail(source, policy, edge)
    return (
        f'<img alt="{html.escape(name)}" width="{small.width}" height="{small.height}" loading="lazy" '
        f'decoding="async" src="{small.url}">'
    )
