"""Each use of CLIP on the demo's photos: its figure beside chance and one plain prompt, and where it fails.

    python benchmarks/uses.py [USE ...] [--model offline] [--write docs]

--write puts figures and pictures into the pages that have a place for them, between lines as <!-- figures -->
and <!-- end of figures -->: all that hangs on the model but docs/fine-tuning.md, which has a model of its own
(benchmarks/training.py). It takes half a minute, and some minutes more for the last use, which embeds 32,724
captions. 44 photos are few: a difference of a photo is 2 %.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from failures import limits
from pages import FILES, PLACE, Floats, Row, Section, shown, tags, write
from PIL import Image
from retrieval import made_captions

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
from clip_embed.demo import captions

Bools = npt.NDArray[np.bool_]
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
MANY = 32_768  # captions to choose the right one from


def average_precision(scores: Floats, truth: Bools) -> float:
    """Mean of the precision at each right answer, from the highest score down."""
    right = truth[np.argsort(-scores, kind="stable")]
    return float((np.cumsum(right) / np.arange(1, len(right) + 1))[right].mean())


def above(present: Floats, absent: Floats) -> float:
    """How often a present one scores above an absent one."""
    return float((present[:, None] > absent).mean() + (present[:, None] == absent).mean() / 2)


def classification(clip: ClipEmbedder, vectors: Floats) -> Section:
    """Zero-shot labels: one prompt, the ensembles, and the spread over phrasings."""
    truth = [each[0] for each in tags()]
    labels = sorted(set(truth))
    lines = [f"{len(FILES)} photos, {len(labels)} labels"]
    lines.append(f"{'chance':28}{1 / len(labels):6.1%}")
    lines.append(f"{'commonest label':28}{max(map(truth.count, labels)) / len(truth):6.1%}")
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
    lines.append(f"{'each of the 80 alone':28}{each.min():6.1%} to {each.max():.1%}, mean {each.mean():.1%}")
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
        "calibrated on 22 photos:",
        *str(fitted).splitlines(),
        f"on the others: {int(flagged.sum())} of {len(flagged)} flagged, "
        f"precision {hits}/{int(flagged.sum())}, recall {hits}/{int(truth[1::2].sum())}",
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

    def row(title: str, like: Floats, **options: object) -> Row:
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


def among_many(clip: ClipEmbedder, vectors: Floats) -> Section:
    """The right caption of as many as CLIP is trained with; nearly all the time goes into embedding them."""
    texts = [captions()[path.name] for path in FILES]
    found = evaluate_retrieval(clip, vectors, texts, distractors=made_captions(MANY - len(texts)))
    lines = [f"{len(texts)} real pairs, {found.distractors:,} captions made up to choose among"]
    lines += [line for line in str(found).splitlines() if "caption of " in line]
    return Section("retrieval", lines, mark="among many")


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


SECTIONS = (classification, moderation, visual_search, retrieval, few_shot, relevance, limits, among_many)


def main() -> None:
    """Print each section, and write it where asked to."""
    uses = {use.__name__: use for use in SECTIONS}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("uses", nargs="*", metavar="USE", help=f"of {', '.join(uses)}; by default all")
    parser.add_argument("--model", default="offline")
    parser.add_argument("--write", type=Path, metavar="DOCS")
    options = parser.parse_args()
    clip = ClipEmbedder(options.model)
    vectors = clip.embed_images(FILES)
    for name in options.uses or uses:
        section = uses[name](clip, vectors)
        print(f"== {name}\n" + "\n".join(section.lines) + "\n", flush=True)
        if options.write:
            write(section, options.write, options.model)


if __name__ == "__main__":
    main()
