"""Where the pictures for choosing the colour part come from.

`packages` fetches them: `@lobehub/fluent-emoji-3d` (MIT), `emoji-datasource-google`
(Noto, Apache-2.0), `emoji-datasource-twitter` (Twemoji, CC-BY 4.0), scikit-image's sample photos (CC0 or
public domain), and matplotlib's copy of the XKCD colour survey (CC0), which says what people call red
without asking the model.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from packages import fetch
from PIL import Image

from clip_embed.offline._colour_words import COLOUR_TERMS

VENDORS = {
    "fluent": "package/assets/{}.webp",
    "google": "package/img/google/64/{}.png",
    "twitter": "package/img/twitter/64/{}.png",
}
"""Vendor, as `packages` names it -> where in its package the drawing of a code point is."""
TEXTURES = ("brick.png", "grass.png", "gravel.png")
PHOTOS = ("astronaut.png", "brick.png", "chelsea.png", "coffee.png", "grass.png", "gravel.png", "rocket.jpg")
SHADES = {
    "black": ["#000000", "#141416", "#1e1c1c", "#0f1219"],
    "white": ["#ffffff", "#f5f5f5", "#eef0f2", "#faf8f0"],
    "gray": ["#808080", "#96969b", "#696969", "#aaaaa8"],
}
"""More of the three terms of which the survey has few names."""

OBJECTS: dict[str, str] = {
    "car": "1f697 1f698 1f699", "racing car": "1f3ce", "taxi": "1f695 1f696", "truck": "1f69a 1f69b",
    "pickup truck": "1f6fb", "bus": "1f68c 1f68d", "minibus": "1f690", "tractor": "1f69c",
    "motorcycle": "1f3cd", "scooter": "1f6f5", "bicycle": "1f6b2", "train": "1f686 1f682",
    "boot": "1f462 1f97e", "shoe": "1f45e 1f45f", "shirt": "1f455", "umbrella": "2602 2614",
    "chair": "1fa91", "sofa": "1f6cb", "guitar": "1f3b8", "cup": "2615", "teapot": "1fad6",
    "bird": "1f426 1f54a", "parrot": "1f99c", "butterfly": "1f98b", "apple": "1f34e 1f34f",
    "strawberry": "1f353", "backpack": "1f392", "handbag": "1f45c 1f45d", "hat": "1f452",
    "sailboat": "26f5", "balloon": "1f388", "necktie": "1f454", "sock": "1f9e6", "glove": "1f9e4",
    "bell pepper": "1fad1", "bucket": "1faa3", "fish": "1f420 1f41f", "dog": "1f415 1f436",
    "cat": "1f408", "horse": "1f40e", "sunflower": "1f33b", "airplane": "2708", "mailbox": "1f4ee",
    "drum": "1f941", "frog": "1f438", "ladybug": "1f41e", "mushroom": "1f344",
}  # fmt: skip
"""Object name -> code points of its emoji."""
OTHERS = [
    *range(0x1F32D, 0x1F380),
    *range(0x1F400, 0x1F440),
    *range(0x1F950, 0x1F9B0),
    *range(0x1FAD0, 0x1FADC),
]
"""Code points of the plants, foods and animals that are mixed in with their own colours."""


def drawing(folder: Path, vendor: str, point: str) -> Image.Image | None:
    """RGBA, cut to what is not transparent; None where the vendor has no emoji of this code point."""
    for stem in (point, f"{point}-fe0f"):
        path = fetch(vendor, folder) / VENDORS[vendor].format(stem)
        if path.exists():
            whole = Image.open(path).convert("RGBA")
            return whole.crop(whole.getbbox())
    return None


def photos(folder: Path, names: Sequence[str] = PHOTOS) -> list[Image.Image]:
    """Sample photos that backgrounds are cut from, RGB."""
    data = fetch("scikit-image", folder) / "skimage" / "data"
    return [Image.open(data / name).convert("RGB") for name in names]


def reference_colours(folder: Path) -> dict[str, npt.NDArray[np.uint8]]:
    """Term -> (k, 3) sRGB of the surveyed colours whose name ends in the term and mixes no other one in."""
    module = ast.parse((fetch("matplotlib", folder) / "matplotlib" / "_color_data.py").read_bytes())
    survey = next(
        ast.literal_eval(node.value)
        for node in module.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "XKCD_COLORS"
    )
    codes = {term: list(SHADES.get(term, [])) for term in COLOUR_TERMS}
    mixed = re.compile(rf"({'|'.join(COLOUR_TERMS)}|purpl|redd)(ish|y|ey)?\b")
    for name, code in survey.items():
        *modifiers, term = name.replace("grey", "gray").split()
        if term in codes and not any(mixed.match(word) for word in modifiers):
            codes[term].append(code)
    return {
        term: np.array([list(bytes.fromhex(code[1:])) for code in found], dtype=np.uint8)
        for term, found in codes.items()
    }
