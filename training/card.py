"""What the heads give on the held-out sets, as figures and as the tables of the model card."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from evaluation import (
    DEPTHS,
    UNSEEN_PHRASES,
    Pictures,
    Scorer,
    demo_ranks,
    drawing_ranks,
    interval,
    paired_p,
    recalls,
    reciprocal,
    red_cars_first,
    stamp_ranks,
    untrained,
    validation_ranks,
)
from probes import probe_hits

from clip_embed.demo import captions

FIGURES = Path(__file__).with_name("figures.json")
MARKS = "<!-- figures by training/train.py -->\n", "<!-- end of figures -->"
BASE, SHIPPED = "untrained", "seed 0"
Figures = dict[str, Any]


def evaluate(scorers: Mapping[str, Scorer], drawings: tuple[Pictures, list[str]], cache: Path) -> Figures:
    """Every measure of every scorer and the untrained form; paired tests of the shipped one against it."""
    everyone = {BASE: untrained(cache), **scorers}
    places = {name: _places(one, *drawings) for name, one in everyone.items()}
    figures: Figures = {"models": {name: _summary(found) for name, found in places.items()}}
    for name, one in everyone.items():
        hits = probe_hits(one)
        figures["models"][name]["colour probes"] = [float(hits.mean()), *interval(hits)]
    figures["paired"] = _paired(places[BASE], places[SHIPPED])
    figures["red car"] = red_cars_first(everyone[SHIPPED])[:9]
    figures["phrases"] = {
        name: [recalls(stamp_ranks(everyone[name], phrase))[2] for phrase in ("{}", *UNSEEN_PHRASES)]
        for name in (BASE, SHIPPED)
    }
    figures["queries"] = {kind: len(found) for kind, found in places[BASE].items()}
    return figures


def _places(one: Scorer, pictures: Pictures, named: list[str]) -> dict[str, npt.NDArray[np.int64]]:
    return {
        "stamps": stamp_ranks(one),
        "demo": demo_ranks(one),
        "validation": validation_ranks(one),
        "validation drawings": drawing_ranks(one, pictures, named),
    }


def _summary(places: Mapping[str, npt.NDArray[np.int64]]) -> Figures:
    """Kind -> for each depth recall with its interval, and the mean reciprocal rank."""
    return {
        kind: {
            "recall": [
                [recall, *interval(found < depth)]
                for recall, depth in zip(recalls(found), DEPTHS, strict=True)
            ],
            "mrr": reciprocal(found),
        }
        for kind, found in places.items()
    }


def _paired(
    before: Mapping[str, npt.NDArray[np.int64]], after: Mapping[str, npt.NDArray[np.int64]]
) -> Figures:
    """Difference of the mean reciprocal rank and its p-value; "photos" are demo and validation together."""
    tests: Figures = {}
    sets = {
        "stamps": ["stamps"],
        "demo": ["demo"],
        "validation": ["validation"],
        "photos": ["demo", "validation"],
    }
    for name, kinds in sets.items():
        old, new = (1 / (1 + np.concatenate([found[kind] for kind in kinds])) for found in (before, after))
        tests[name] = [float((new - old).mean()), *interval(new - old), paired_p(old, new)]
    return tests


def write_card(card: Path, figures: Figures) -> None:
    """Put the tables between the marks of the card, and all figures into figures.json beside this script."""
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    start, end = MARKS
    text = card.read_text(encoding="utf-8")
    tables = "\n".join(
        [*_recall_table(figures), "", *_paired_table(figures), "", *_phrase_table(figures), ""]
    )
    card.write_text(
        re.sub(rf"{start}.*?{end}", lambda _: f"{start}\n{tables}\n{end}", text, flags=re.DOTALL),
        encoding="utf-8",
    )


def _recall_table(figures: Figures) -> list[str]:
    rows = [
        "| head | stamps @1 | @5 | @10 | demo @1 | @5 | photos MRR | drawings MRR | colour probes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, one in figures["models"].items():
        stamps, demo = one["stamps"]["recall"], one["demo"]["recall"]
        cells = [*map(_with_interval, stamps), *(f"{recall[0]:.1%}" for recall in demo[:2])]
        cells += [f"{one[kind]['mrr']:.3f}" for kind in ("validation", "validation drawings")]
        cells.append(_with_interval(one["colour probes"]))
        rows.append(f"| {name}{' (shipped)' if name == SHIPPED else ''} | " + " | ".join(cells) + " |")
    pictures = len(captions())
    chance = [f"{depth / 785:.1%}" for depth in DEPTHS] + [f"{depth / pictures:.1%}" for depth in DEPTHS[:2]]
    return [*rows, "| chance | " + " | ".join([*chance, "–", "–", "20.0%"]) + " |"]


def _with_interval(figure: list[float]) -> str:
    middle, low, high = figure
    return f"{middle:.1%} ({100 * low:.0f}–{100 * high:.0f})"


def _paired_table(figures: Figures) -> list[str]:
    rows = [
        "| paired against the untrained form | queries | MRR difference (95 %) | p |",
        "| --- | --- | --- | --- |",
    ]
    counts = figures["queries"] | {"photos": figures["queries"]["demo"] + figures["queries"]["validation"]}
    for name, (mean, low, high, p) in figures["paired"].items():
        rows.append(f"| {name} | {counts[name]} | {mean:+.3f} ({low:+.3f} to {high:+.3f}) | {p:.4f} |")
    return rows


def _phrase_table(figures: Figures) -> list[str]:
    phrases = ["as written", *(f"“{phrase.format('…')}”" for phrase in UNSEEN_PHRASES)]
    rows = ["| stamps @10, asked as | " + " | ".join(phrases) + " |", "| --- " * (len(phrases) + 1) + "|"]
    return rows + [
        f"| {name} | " + " | ".join(f"{value:.1%}" for value in values) + " |"
        for name, values in figures["phrases"].items()
    ]
