"""Each use of CLIP on the demo's photos: its figure beside chance and one plain prompt, and where it fails.

    python benchmarks/uses.py [--model offline] [--write docs]

--write puts figures and pictures into the pages that have a place for them, between the lines
<!-- figures --> and <!-- end of figures -->. 44 photos are few: a difference of a photo is 2 %.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from clip_embed import (
    Category,
    ClipEmbedder,
    ModerationPolicy,
    calibrate,
    diverse,
    duplicates,
    evaluate_retrieval,
    explain_labels,
    fit,
    fit_relevance,
    moderate,
    similar,
)
from clip_embed.demo import captions, photos

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.floating]
FILES = photos()
PLACE = {path.stem: place for place, path in enumerate(FILES)}
PROMPT = "a photo of a {}"
VEHICLES = ModerationPolicy(
    (
        Category(
            "vehicle",
            ("a photo of a vehicle", "a photo of a car", "a photo of a truck", "a photo of a train"),
            ("a photo of an animal", "a photo of a building", "a photo of food", "a photo"),
        ),
    )
)
_EDGE, _LINE, _FONT = 150, 34, 12
_MOST_BYTES = 95_000


@dataclass(slots=True)
class Section:
    """What goes into a page: lines of figures, and rows of pictures with words under them."""

    page: str
    lines: list[str]
    rows: list[tuple[str, list[tuple[Path, str]]]] = field(default_factory=list)


def tags() -> list[list[str]]:
    """The tags of each photo, the main one first; written before there was a model."""
    with (FILES[0].parent / "captions.csv").open(encoding="utf-8", newline="") as stream:
        known = {row["file"]: row["tags"].split() for row in csv.DictReader(stream)}
    return [known[path.name] for path in FILES]


def average_precision(scores: Floats, truth: Bools) -> float:
    """Mean of the precision at each right answer, from the highest score down."""
    right = truth[np.argsort(-scores, kind="stable")]
    return float((np.cumsum(right) / np.arange(1, len(right) + 1))[right].mean())


def above(present: Floats, absent: Floats) -> float:
    """How often a present one scores above an absent one."""
    return float((present[:, None] > absent).mean() + (present[:, None] == absent).mean() / 2)


def shown(places: Sequence[int], words: Callable[[int], str]) -> list[tuple[Path, str]]:
    """Pictures with words under them."""
    return [(FILES[place], words(rank)) for rank, place in enumerate(places)]


def classification(clip: ClipEmbedder, vectors: Floats) -> Section:
    """Zero-shot labels: one prompt, the ensembles, and the spread over phrasings."""
    truth = [each[0] for each in tags()]
    labels = sorted(set(truth))
    lines = [f"{len(FILES)} photos, {len(labels)} labels"]
    lines.append(f"{'chance':28}{1 / len(labels):6.1%}")
    for name, templates in (
        (f'"{PROMPT}" alone', [PROMPT]),
        ("few (7 templates)", "few"),
        ("many (80 templates)", "many"),
    ):
        found = clip.classify(vectors, labels, templates=templates)
        right = np.mean([a == b for a, b in zip(found.best, truth, strict=True)])
        lines.append(f"{name:28}{right:6.1%}")
    report = explain_labels(clip, vectors, labels, templates="many")
    each = (report.alone.argmax(axis=2) == [labels.index(label) for label in truth]).mean(axis=1)
    lines.append(f"{'each of the 80 alone':28}{each.min():6.1%} to {each.max():.1%}")
    found = clip.classify(vectors, labels)
    rows = []
    for label in ("animal", "vehicle"):
        order = np.argsort(-found.probabilities[:, labels.index(label)], kind="stable")[:6].tolist()
        share = found.probabilities[order, labels.index(label)]
        rows.append((f"most “{label}”", shown(order, lambda rank, share=share: f"{share[rank]:.2f}")))
    return Section("classification", lines, rows)


def moderation(clip: ClipEmbedder, vectors: Floats) -> Section:
    """How well a policy ranks what it is for, beside a single prompt."""
    truth = np.array([each[0] in ("car", "vehicle") for each in tags()])
    scores = np.array([each.scores["vehicle"] for each in moderate(clip, vectors, VEHICLES)])
    single = clip.scores(vectors, ["a photo of a vehicle"])[:, 0]
    fitted = calibrate(clip, VEHICLES, vectors[::2], ["vehicle" if each else "" for each in truth[::2]])
    flagged = np.array([each.verdict == "flag" for each in moderate(clip, vectors[1::2], fitted.policy)])
    hits = int((flagged & truth[1::2]).sum())
    lines = [
        f"average precision of {int(truth.sum())} vehicles among {len(FILES)} photos",
        f"{'chance':28}{truth.mean():6.1%}",
        f"{'“a photo of a vehicle” alone':28}{average_precision(single, truth):6.1%}",
        f"{'the policy':28}{average_precision(scores, truth):6.1%}",
        f"calibrated on 22 photos, on the other 22: precision {hits}/{int(flagged.sum())}, "
        f"recall {hits}/{int(truth[1::2].sum())}",
    ]
    order = np.argsort(-scores, kind="stable")
    wrong = [place for place in order.tolist() if not truth[place]][:6]
    rows = [
        ("highest scores", shown(order[:6].tolist(), lambda rank: f"{scores[order[rank]]:.2f}")),
        ("highest of what is none", shown(wrong, lambda rank: f"{scores[wrong[rank]]:.2f}")),
    ]
    return Section("moderation", lines, rows)


def altered(path: Path) -> bytes:
    """A smaller copy of a photo, cropped a little and compressed hard."""
    with Image.open(path) as image:
        width, height = image.size
        box = (width // 20, height // 20, width - width // 20, height - height // 20)
        copy = image.convert("RGB").crop(box)
    copy.thumbnail((320, 320))
    buffer = io.BytesIO()
    copy.save(buffer, "JPEG", quality=50)
    return buffer.getvalue()


def visual_search(clip: ClipEmbedder, vectors: Floats) -> Section:
    """Neighbours of the same kind, copies found, one example of each kind."""
    kinds = [each[0] for each in tags()]
    several = [place for place, kind in enumerate(kinds) if kinds.count(kind) > 3]
    near, asked, chance = [], [], []
    for place in several:
        others = [each for each in range(len(kinds)) if each != place]
        found = similar(clip, vectors[others], vectors[place : place + 1], k=3)
        near += [kinds[others[each]] == kinds[place] for each, _ in found]
        text = similar(clip, vectors[others], clip.embed_texts([PROMPT.format(kinds[place])]), k=3)
        asked += [kinds[others[each]] == kinds[place] for each, _ in text]
        chance.append((kinds.count(kinds[place]) - 1) / len(others))
    copies = clip.embed_images([altered(path) for path in FILES])
    lines = [
        f"of the 3 nearest, share of the same kind ({len(several)} photos)",
        f"{'chance':28}{np.mean(chance):6.1%}",
        f"{'text “a photo of a car” …':28}{np.mean(asked):6.1%}",
        f"{'image → image':28}{np.mean(near):6.1%}",
        f"copies (5 % cropped, 320 pixels, JPEG quality 50) among {2 * len(FILES)} images, "
        f"chance {1 / (2 * len(FILES) - 1):.1%}",
    ]
    for threshold in (0.99, 0.97, 0.95, 0.9):
        groups = duplicates(clip, np.concatenate([vectors, copies]), threshold=threshold).groups
        pairs = sum(each + len(FILES) in group for group in groups for each in group)
        strangers = sum(len({each % len(FILES) for each in group}) - 1 for group in groups)
        lines.append(f"  threshold {threshold}: {pairs}/{len(FILES)} found, {strangers} wrong")
    car = vectors[PLACE["car_red_saloon"]][None]

    def row(title: str, like: Floats, **options: object) -> tuple[str, list[tuple[Path, str]]]:
        found = similar(clip, vectors, like, k=6, **options)  # type: ignore[arg-type]
        return title, shown(found.indices.tolist(), lambda rank: f"{found.scores[rank]:.2f}")

    spread = diverse(clip, vectors, 6)
    rows = [
        row("like car_red_saloon", car),
        row("… unlike “something red”", car, unlike=clip.embed_texts(["something red"])),
        row("… diversity=0.3", car, diversity=0.3),
        ("diverse(…, 6)", shown(spread.indices.tolist(), lambda rank: "")),
    ]
    return Section("visual-search", lines, rows)


def retrieval(clip: ClipEmbedder, vectors: Floats) -> Section:
    """Captions and photos find each other, beside the bare tag in one prompt."""
    texts = [captions()[path.name] for path in FILES]
    found = evaluate_retrieval(clip, vectors, texts)
    plain = evaluate_retrieval(clip, vectors, [PROMPT.format(each[0]) for each in tags()])
    lines = str(found).splitlines()
    share = "".join(f"{plain.text_to_image(k):>10.1%}" for k in (1, 5, 10))
    lines.append(f"{'one prompt':14}{share}   (text → image, the main tag in “{PROMPT}”)")
    rows = []
    for name in ("boats", "coffee_cup", "windmill"):
        hits = similar(clip, vectors, clip.embed_texts([texts[PLACE[name]]]), k=6)
        rows.append(
            (f"“{texts[PLACE[name]]}”", shown(hits.indices.tolist(), lambda r, h=hits: f"{h.scores[r]:.2f}"))
        )
    return Section("retrieval", lines, rows)


def few_shot(clip: ClipEmbedder, vectors: Floats) -> Section:
    """What examples add to zero-shot."""
    kinds = [each[0] for each in tags()]
    kept = [place for place, kind in enumerate(kinds) if kinds.count(kind) > 3]
    labels = [kinds[place] for place in kept]
    learned = fit(clip, vectors[kept], labels, method="probe")
    zero = clip.classify(vectors[kept], list(learned.labels))
    half = fit(clip, vectors[kept][::2], labels[::2], method="mean").predict(clip, vectors[kept][1::2])
    better = [
        place
        for place in range(1, len(kept), 2)
        if half.best[place // 2] == labels[place] != zero.best[place]
    ]
    worse = [
        place
        for place in range(1, len(kept), 2)
        if zero.best[place] == labels[place] != half.best[place // 2]
    ]

    def told(places: list[int]) -> list[tuple[Path, str]]:
        return [(FILES[kept[place]], f"{zero.best[place]} > {half.best[place // 2]}") for place in places[:6]]

    rows = [("right only with examples", told(better)), ("right only without", told(worse))]
    return Section("few-shot", str(learned.accuracy).splitlines(), [row for row in rows if row[1]])


def relevance(clip: ClipEmbedder, vectors: Floats) -> Section:
    """Whether the best score tells a text that has its photo from one whose photo is missing."""
    texts = clip.embed_texts([captions()[path.name] for path in FILES])
    raw, rated = np.zeros((2, len(FILES))), np.zeros((2, len(FILES)))
    fitted = fit_relevance(clip, vectors)
    for place, text in enumerate(texts):
        others = np.delete(vectors, place, axis=0)
        without = fit_relevance(clip, others)
        raw[:, place] = [(each @ text).max() for each in (vectors, others)]
        rated[:, place] = [
            fitted.rate(clip, vectors, text[None]).max(),
            without.rate(clip, others, text[None]).max(),
        ]
    lines = [
        f"{len(FILES)} captions, each with its photo there and with it left out: how often the best score is",
        "higher with it",
        f"{'chance':28}{0.5:6.1%}",
        f"{'cosine similarity':28}{above(raw[0], raw[1]):6.1%}",
        f"{'relevance':28}{above(rated[0], rated[1]):6.1%}",
        f"relevance from 90 on: {int((rated[0] >= 90).sum())} with it, {int((rated[1] >= 90).sum())} without",
    ]
    rows = []
    for text in ("a red car", "a bridge at night", "a washing machine"):
        scores = clip.scores(vectors, [text])[:, 0]
        order = np.argsort(-scores, kind="stable")[:6]
        percent = fitted.rate(clip, vectors, [text])[order, 0]
        rows.append(
            (
                f"“{text}”",
                shown(order.tolist(), lambda r, s=scores[order], p=percent: f"{s[r]:.2f}: {p[r]:.0f}"),
            )
        )
    return Section("relevance", lines, rows)


def limits(clip: ClipEmbedder, vectors: Floats) -> Section:
    """One example of each way to fail."""
    lines: list[str] = []
    rows = []
    for what, text in (("abstract", "a sense of justice"), ("negation", "a street without any car")):
        hits = similar(clip, vectors, clip.embed_texts([text]), k=6)
        names = ", ".join(FILES[place].stem for place, _ in hits)
        lines.append(f"{what}: “{text}” finds {names}")
        rows.append((f"“{text}”", shown(hits.indices.tolist(), lambda r, h=hits: f"{h.scores[r]:.2f}")))
    numbers = ("one animal", "two animals", "three animals", "four animals")
    answers: list[tuple[Path, str]] = []
    for name in ("dogs_window", "cat_ginger", "panda", "moose"):
        found = clip.classify(vectors[PLACE[name]][None], numbers)
        label, share = found.top(1)[0][0]
        answers.append((FILES[PLACE[name]], f"{label} {share:.2f}"))
    lines.append("counting: " + "; ".join(f"{path.stem} is {words}" for path, words in answers))
    rows.append(("counting", answers))
    kinds = {"saloon": "saloon car", "suv": "SUV", "pickup": "pickup truck", "taxi": "taxi"}
    cars = [path for path in FILES if path.stem.startswith("car_") and path.stem.split("_")[-1] in kinds]
    found = clip.classify(vectors[[PLACE[path.stem] for path in cars]], list(kinds.values()))
    right = sum(
        kinds[path.stem.split("_")[-1]] == label for path, label in zip(cars, found.best, strict=True)
    )
    lines.append(f"fine detail: the kind of {len(cars)} cars, 4 labels: {right} right")
    rows.append(("fine detail", [(path, label) for path, label in zip(cars, found.best, strict=True)]))
    labels = sorted({each[0] for each in tags()})
    report = explain_labels(clip, vectors, labels, templates="many")
    worst = np.argsort(report.agreement, kind="stable")[:6].tolist()
    kinds_of = [len(set(report.alone[:, place].argmax(axis=1).tolist())) for place in worst]
    lines.append(
        f"phrasing: {FILES[worst[0]].stem} has {kinds_of[0]} different labels over 80 sentences; one alone "
        f"agrees with all of them on {report.agreement.mean():.0%} of the photos"
    )
    rows.append(
        (
            "phrasing",
            shown(worst, lambda rank: f"{kinds_of[rank]} labels, {report.agreement[worst[rank]]:.0%}"),
        )
    )
    verdicts: list[tuple[Path, str]] = []
    for name in ("astronaut", "photographer", "panda"):
        label, share_of = clip.classify(
            vectors[PLACE[name]][None], ("a lazy person", "a diligent person")
        ).top(1)[0][0]
        verdicts.append((FILES[PLACE[name]], f"{label.split()[1]} {share_of:.2f}"))
    lines.append("biased labels: " + "; ".join(f"{path.stem}: {words}" for path, words in verdicts))
    rows.append(("“lazy” or “diligent”", verdicts))
    return Section("limits", lines, rows)


SECTIONS = (classification, moderation, visual_search, retrieval, few_shot, relevance, limits)


def draw(rows: Sequence[tuple[str, list[tuple[Path, str]]]]) -> Image.Image:
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
    """Put the figures into a page and the picture beside it."""
    page = docs / f"{section.page}.md"
    picture = docs / "uses" / f"{section.page}.jpg"
    picture.parent.mkdir(exist_ok=True)
    sheet = draw(section.rows)
    for quality in (75, 65, 55, 45, 35):
        sheet.save(picture, "JPEG", quality=quality, optimize=True)
        if picture.stat().st_size <= _MOST_BYTES:
            break
    body = "\n".join(["```text", f"model: {model}", *section.lines, "```"])
    text = page.read_text("utf-8")
    marks = re.compile(r"(<!-- figures -->\n).*?(<!-- end of figures -->)", re.DOTALL)
    if not marks.search(text):
        raise SystemExit(f"{page} has no place for figures")
    page.write_text(marks.sub(lambda match: f"{match[1]}{body}\n{match[2]}", text), "utf-8")


def main() -> None:
    """Print each section, and write it where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="offline")
    parser.add_argument("--write", type=Path, metavar="DOCS")
    options = parser.parse_args()
    clip = ClipEmbedder(options.model)
    vectors = clip.embed_images(FILES)
    for use in SECTIONS:
        section = use(clip, vectors)
        print(f"== {section.page}\n" + "\n".join(section.lines) + "\n")
        if options.write:
            write(section, options.write, options.model)


if __name__ == "__main__":
    main()
