"""Few-shot classification: what is learned, how it is measured, what is kept and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_embed import Accuracy, Classifier, ClipEmbedder, MissingExtra, SpaceMismatch, fit
from clip_embed._fewshot import Method
from clip_embed._types import Float32
from clip_embed._vectors import unit_rows
from clip_embed.testing import FakeModel

METHODS: list[Method] = ["probe", "mean"]
E = np.eye(16, dtype=np.float32)


@pytest.fixture
def clip() -> ClipEmbedder:
    """An embedder without weights, of 16 dimensions."""
    return ClipEmbedder(FakeModel())


def examples(each: int, labels: int, noise: float = 0.1, seed: int = 0) -> tuple[Float32, list[str]]:
    """Unit rows around one axis for each label, and the labels "l0", "l1" ... in turn."""
    rng = np.random.default_rng(seed)
    codes = np.arange(each * labels) % labels
    vectors = unit_rows(E[codes] + noise * rng.standard_normal((len(codes), 16)).astype(np.float32))
    return vectors, [f"l{code}" for code in codes]


def solids(*colours: tuple[int, int, int]) -> list[np.ndarray]:
    """Pictures of one colour each."""
    return [np.full((8, 8, 3), colour, np.uint8) for colour in colours]


@pytest.mark.parametrize("method", METHODS)
def test_labels_are_learned_from_images(clip: ClipEmbedder, method: Method) -> None:
    """Two shades of each of two colours are enough to name a third shade."""
    pictures = solids((250, 0, 0), (200, 30, 0), (0, 0, 250), (0, 40, 200))
    found = fit(clip, pictures, ["warm", "warm", "cold", "cold"], method=method)
    assert found.labels == ("cold", "warm")
    answer = found.predict(clip, solids((220, 10, 20), (10, 10, 220)))
    assert answer.best == ("warm", "cold")
    np.testing.assert_allclose(answer.probabilities.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_several_labels_on_vectors(clip: ClipEmbedder, method: Method) -> None:
    """Held-out vectors of five labels are named right, with more certainty where they are clear."""
    vectors, labels = examples(8, 5)
    held, truth = examples(4, 5, seed=1)
    found = fit(clip, vectors, labels, method=method)
    assert found.predict(clip, held).best == tuple(truth)
    clear = found.predict(clip, E[:1]).probabilities.max()
    assert clear > found.predict(clip, unit_rows(E[:1] + E[1:2])).probabilities.max() + 0.2


def test_the_probe_learns_what_means_cannot(clip: ClipEmbedder) -> None:
    """Where a strong direction says nothing and a weak one everything, the regression finds the weak one."""
    rng = np.random.default_rng(0)
    strong = rng.standard_normal(400).astype(np.float32)
    codes = np.arange(400) % 2
    vectors = unit_rows(
        E[3] * 2 + E[0] * strong[:, None] + E[1] * (0.3 * (2 * codes - 1)[:, None]).astype(np.float32)
    )
    accuracy = fit(clip, vectors, [str(code) for code in codes]).accuracy
    assert accuracy.probe > 0.95
    assert accuracy.probe > accuracy.mean


def test_one_example_of_each_is_enough_but_measures_nothing(clip: ClipEmbedder) -> None:
    """A single example of a label gives a classifier without a cross-validated accuracy."""
    found = fit(clip, E[:3], ["a", "b", "c"], method="mean")
    assert found.predict(clip, E[:3]).best == ("a", "b", "c")
    assert found.accuracy.folds == 0
    assert np.isnan(found.accuracy.mean)
    assert "nan" not in str(found.accuracy)
    assert "nearest mean                       –, 0 folds" in str(found.accuracy)


def test_no_folds_measure_nothing_and_a_bar_shows_the_others(
    clip: ClipEmbedder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a terminal one sees how many fits of how many are done, where they take a while, else nothing."""
    vectors, labels = examples(6, 3)
    assert fit(clip, vectors, labels, folds=0).accuracy.folds == 0
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr("clip_embed._progress._PATIENCE", 60)
    assert fit(clip, vectors, labels, folds=2).accuracy.folds == 2
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("clip_embed._progress._PATIENCE", 0)
    monkeypatch.setattr("clip_embed._progress._BETWEEN", 0)
    fit(clip, vectors, labels, folds=3)
    shown = capsys.readouterr().err
    assert "Fitting:  14%" in shown
    assert "| 7/7 [" in shown
    assert " fits" in shown
    assert "images" not in shown
    assert shown.endswith("\r")


def test_accuracy_is_honest(clip: ClipEmbedder) -> None:
    """Labels that have nothing to do with the images are named no better than by chance."""
    vectors, _ = examples(60, 4, noise=2)
    labels = np.random.default_rng(5).permutation([str(n % 2) for n in range(240)]).tolist()
    accuracy = fit(clip, vectors, labels).accuracy
    assert 0.35 < accuracy.probe < 0.65
    assert 0.35 < accuracy.mean < 0.65
    assert accuracy.commonest == 0.5
    assert (accuracy.images, accuracy.labels, accuracy.fewest, accuracy.folds) == (240, 2, 120, 5)


def test_accuracy_stands_beside_zero_shot(clip: ClipEmbedder) -> None:
    """The report has chance, the commonest label, a single prompt, the templates and what was learned."""
    pictures = solids(*((level, 0, 0) for level in range(180, 250, 10)), *((0, 0, 200 + n) for n in range(3)))
    report = fit(clip, pictures, ["red"] * 7 + ["blue"] * 3, method="mean").accuracy
    assert report.zero_shot == 1
    assert report.mean == 1
    assert report.commonest == 0.7
    assert report.folds == 3
    for words in ("chance", "commonest label", "zero-shot", "nearest mean", "logistic probe", "10 images"):
        assert words in str(report)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 6), st.integers(1, 6), st.integers(0, 99), st.sampled_from(METHODS))
def test_what_is_saved_predicts_the_same(labels: int, each: int, seed: int, method: Method) -> None:
    """Any classifier comes back from its file with equal probabilities and facts."""
    clip = ClipEmbedder(FakeModel())
    vectors, names = examples(each, labels, seed=seed)
    found = fit(clip, vectors, names, method=method)
    found.save(file := Path("saved.classifier"))
    again = Classifier.load(file)
    np.testing.assert_array_equal(
        again.predict(clip, vectors).probabilities, found.predict(clip, vectors).probabilities
    )
    assert (again.labels, again.method, again.model) == (found.labels, method, "FakeModel")
    assert str(again.accuracy) == str(found.accuracy)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are written into a folder of the test's own."""
    monkeypatch.chdir(tmp_path)


def test_it_is_shown_in_a_line(clip: ClipEmbedder) -> None:
    """What it names images by, how and with which model: neither weights nor the probe."""
    found = fit(clip, E[:7], list("gfedcba"), method="mean")
    assert repr(found) == "<Classifier of 7 labels (a, b, c, d, e, …), method mean, of FakeModel>"
    assert "(a, b)" in repr(fit(clip, E[:2], ["a", "b"], method="mean"))
    assert repr(found.stamp) == f"Stamp(space={clip.space!r}, recipe={found.stamp.recipe!r})"


def test_a_file_holds_no_code(clip: ClipEmbedder) -> None:
    """What is written is safetensors with JSON, and labels may be of any script."""
    fit(clip, E[:2], ["été", "日本"], method="mean").save("x.classifier")
    content = Path("x.classifier").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert set(header) == {"__metadata__", "weights", "bias"}
    assert json.loads(header["__metadata__"]["labels"]) == ["été", "日本"]
    assert b"pickle" not in content


def test_a_place_that_takes_no_file_is_named(clip: ClipEmbedder) -> None:
    """It is an error of the operating system's, with the folder that is not there."""
    found = fit(clip, E[:2], ["a", "b"], method="mean")
    with pytest.raises(FileNotFoundError, match=r"nodir.x: there is no folder nodir, make it first"):
        found.save("nodir/x")
    Path("folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        found.save("folder")


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "other", "shape", "later"])
def test_other_files_are_refused(clip: ClipEmbedder, damage: str) -> None:
    """Anything else, damaged or of a later version, is an error that names the file."""
    from safetensors.numpy import save

    found = fit(clip, E[:3], ["a", "b", "c"], method="mean")
    found.save("x.classifier")
    good = Path("x.classifier").read_bytes()
    bad = {
        "empty": b"",
        "text": b"label,image\n" * 40,
        "cut": good[:-7],
        "other": save({"weights": E}),
        "shape": good.replace(b'"[\\"a\\", \\"b\\", \\"c\\"]"', b'"[\\"a\\", \\"bbbbbb\\"]"'),
        "later": good.replace(b'"classifier":"1"', b'"classifier":"2"'),
    }[damage]
    assert bad != good
    Path("x.classifier").write_bytes(bad)
    with pytest.raises(ValueError, match=r"x\.classifier is no classifier"):
        Classifier.load("x.classifier")
    with pytest.raises(FileNotFoundError):
        Classifier.load("missing.classifier")


def test_another_model_is_refused(clip: ClipEmbedder) -> None:
    """A classifier belongs to the space it was fitted in, also after it was stored."""
    fit(clip, E[:2], ["a", "b"], method="mean").save("x.classifier")
    found = Classifier.load("x.classifier")
    with pytest.raises(SpaceMismatch, match="the classifier of 2 labels"):
        found.predict(ClipEmbedder(FakeModel(size=4)), E[:1])
    with pytest.raises(SpaceMismatch, match="16 dimensions"):
        found.predict(ClipEmbedder(FakeModel(dim=8)), np.eye(8, dtype=np.float32))


def test_wrong_examples_are_refused(clip: ClipEmbedder) -> None:
    """One label, labels that are no list, a wrong number of them, no direction, an unknown method."""
    with pytest.raises(ValueError, match="two different labels"):
        fit(clip, E[:2], ["a", "a"])
    with pytest.raises(ValueError, match="label 1 must be a text that is not empty, not ' '"):
        fit(clip, E[:2], ["a", " "])
    with pytest.raises(ValueError, match="label 1 must be a text that is not empty, not nan"):
        fit(clip, E[:2], ["a", np.nan])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="one text for each image"):
        fit(clip, E[:2], "ab")
    with pytest.raises(ValueError, match="3 images need as many labels, not 2"):
        fit(clip, E[:3], ["a", "b"])
    for lost in (0, np.nan, np.inf):
        with pytest.raises(ValueError, match=r"image 1 has no vector: .* leave out such rows first"):
            fit(clip, np.stack([E[0], E[1] * 0 + lost, E[2]]).astype(np.float32), ["a", "b", "b"])
    with pytest.raises(ValueError, match="'probe' or 'mean'"):
        fit(clip, E[:2], ["a", "b"], method="forest")  # type: ignore[arg-type]


def test_without_scikit_learn_means_still_work(clip: ClipEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe names its extra; the mean is fitted, and the probe's accuracy is not known."""
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    vectors, labels = examples(4, 2)
    with pytest.raises(MissingExtra, match=r"clip-embed\[probe\]"):
        fit(clip, vectors, labels)
    accuracy: Accuracy = fit(clip, vectors, labels, method="mean").accuracy
    assert accuracy.mean == 1
    assert np.isnan(accuracy.probe)
