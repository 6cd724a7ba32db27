"""The captioned drawings that the heads are trained on: emoji of two vendors and public-domain clip art."""

from __future__ import annotations

import html
import json
import re
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from packages import fetch
from PIL import Image
from wordnet import nouns

VENDORS = {"google": "package/img/google/64/{}.png", "fluent": "package/assets/{}.webp"}
"""Vendor -> where in its package the drawing of a code point is. Twemoji is held out."""
SYMBOL_GROUPS = (2, 8)
"""emojibase's numbers of skin tones and of symbols, which show no thing."""
CLIP_ART, CLIP_ART_FACTS = "usr/share/openclipart/png", "usr/share/openclipart/svg"
PUBLIC_DOMAIN = "http://web.resource.org/cc/PublicDomain"
NO_THINGS = re.compile(
    r"^(?:computer|shapes|special|buttons|logos|signs_and_symbols/(?:flags|led|map_symbols)|"
    r"recreation/games/cards|transportation/(?:aiga-symbols|roadsigns)|people/smilies)\b"
)
"""Folders of icons, patterns and signs, whose titles say which collection they belong to."""
NOISE = re.compile(
    r"hash.*|0x.*|clip ?art|collection|.*symbols?|icons?|signs?|theme|unsorted|part of.*|map ?sym.*|svg|"
    r"file|image|various|remix|colou?r|externalsource|work|animal|people|food|transport\w*|office|\d+"
)
"""Keywords that say nothing of the picture, or of thousands of pictures."""
LONGEST_TITLE = 60
MOST_PIXELS = 4_000_000


@dataclass(frozen=True, slots=True)
class Drawing:
    """One picture with what it shows."""

    source: str
    name: str
    """Of the file, within its source."""
    path: Path
    texts: tuple[str, ...]
    """What it shows, the best text first."""
    concept: str
    """The same for drawings of the same thing by two vendors."""

    def open(self) -> Image.Image:
        """RGBA, cut to what is not transparent."""
        with Image.open(self.path) as picture:
            whole = picture.convert("RGBA")
        return whole.crop(whole.getbbox())


def drawings(cache: Path) -> list[Drawing]:
    """All of them, in a fixed order."""
    return [*_emoji(cache), *_clip_art(cache)]


def _emoji(cache: Path) -> list[Drawing]:
    facts = json.loads((fetch("emojibase", cache) / "package/en/data.json").read_text(encoding="utf-8"))
    found: list[Drawing] = []
    for vendor, pattern in VENDORS.items():
        for emoji in sorted(facts, key=lambda emoji: emoji["hexcode"]):
            if emoji.get("group") in (None, *SYMBOL_GROUPS):
                continue
            code = emoji["hexcode"].lower()
            paths = [fetch(vendor, cache) / pattern.format(stem) for stem in (code, f"{code}-fe0f")]
            path = next((path for path in paths if path.exists()), None)
            if path is not None:
                label = emoji["label"].replace(":", " of").lower()
                tags = tuple(tag for tag in emoji.get("tags", ()) if tag != label)
                texts = (label, *(f"{label}, {tag}" for tag in tags[:4]))
                found.append(Drawing(vendor, path.name, path, texts, f"emoji {code}"))
    return found


def _clip_art(cache: Path) -> list[Drawing]:
    pictures = fetch("openclipart-png", cache) / CLIP_ART
    found: list[Drawing] = []
    for facts in sorted((fetch("openclipart-svg", cache) / CLIP_ART_FACTS).rglob("*.svg")):
        name = facts.relative_to(fetch("openclipart-svg", cache) / CLIP_ART_FACTS).with_suffix("")
        path = pictures / f"{name}.png"
        if NO_THINGS.match(name.as_posix()) or _png_pixels(path) > MOST_PIXELS:
            continue
        metadata = re.search(rb"<metadata.*?</metadata>", facts.read_bytes(), re.DOTALL)
        written = metadata[0].decode("utf-8", "replace") if metadata else ""
        texts = _clip_art_texts(written, name.as_posix(), english_words(cache))
        if f'license rdf:resource="{PUBLIC_DOMAIN}"' in written and texts:
            found.append(Drawing("openclipart", f"{name}.png", path, texts, f"clip art {name}"))
    return found


def _png_pixels(path: Path) -> int:
    with path.open("rb") as stream:
        width, height = struct.unpack(">II", stream.read(24)[16:])
    return int(width * height)


def _clip_art_texts(metadata: str, name: str, english: frozenset[str]) -> tuple[str, ...]:
    """Title and keywords in English words, and the folders the picture lies in."""
    work = metadata.partition("<cc:Work")[2]
    title = re.search(r"<dc:title>(.*?)</dc:title>", work, re.DOTALL)
    subject = re.search(r"<dc:subject>(.*?)</dc:subject>", work, re.DOTALL)
    keywords = re.findall(r"<rdf:li>(.*?)</rdf:li>", subject[1]) if subject else []
    folders = [part.rstrip("s") if part.endswith("s") else part for part in name.split("/")[1:-1]]
    titles = [title[1]] if title and "Clipart by" not in title[1] else []
    titles = [_words(text) for text in (*titles, name.rpartition("/")[2])]
    headline = next((text for text in titles if _is_english(text, english) and not NOISE.search(text)), "")
    said = [word for text in (*keywords, *folders) if (word := _words(text)) and not NOISE.fullmatch(word)]
    said = [text for text in dict.fromkeys(said) if _is_english(text, english)]
    if headline and len(headline) < LONGEST_TITLE:
        return (headline, *(f"{headline}, {word}" for word in said[:3] if word not in headline))
    return tuple(said[:3])


def _words(text: str) -> str:
    plain = re.sub(r"[\W\d_]+", " ", html.unescape(text)).lower()
    return " ".join(re.sub(r"\b(?:bw|b and w|b w|r|clip art)\b", "", plain).split())


def _is_english(text: str, english: frozenset[str]) -> bool:
    return len(text) > 2 and all(word in english for word in text.split())


@cache
def english_words(cache: Path) -> frozenset[str]:
    """Every word of WordNet's nouns, of their glosses, and plurals."""
    words: set[str] = set()
    for synset in nouns(cache).values():
        for text in (*synset.names, synset.gloss):
            words.update(re.findall(r"[a-z]+", text.lower()))
    return frozenset(words | {f"{word}s" for word in words})
