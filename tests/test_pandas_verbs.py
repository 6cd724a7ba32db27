"""What the verbs answer, and what they cost."""

from __future__ import annotations

import copy
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import clip_embed_pandas as cp
from clip_embed import ClipEmbedder, ImageBatchError, ImagePolicy, MissingExtra, SpaceMismatch
from clip_embed._frames import session
from clip_embed._ranking import best, group_alike
from clip_embed.testing import FakeModel

COLOURS = ("red", "green", "blue", "white", "black")


@pytest.fixture(autouse=True)
def _in_use(clip: ClipEmbedder) -> Iterator[None]:
    cp.use(clip)
    yield
    cp.use(None)


@pytest.fixture
def frame(tmp_path: Path) -> Any:  # noqa: ANN401
    """One photo of each colour, by path."""
    for number, colour in enumerate(COLOURS):
        Image.effect_noise((40, 30), 20 + number).convert("RGB").save(tmp_path / f"{colour}.png")
        solid = Image.new("RGB", (40, 30), colour)
        Image.blend(solid, Image.open(tmp_path / f"{colour}.png"), 0.1).save(tmp_path / f"{colour}.png")
    paths = [str(tmp_path / f"{colour}.png") for colour in COLOURS]
    return pd.DataFrame({"img": paths, "colour": COLOURS}, index=[10, 20, 30, 40, 50])


def test_search_gives_the_best_rows_first(frame: Any) -> None:  # noqa: ANN401
    """Images and stored vectors give the same rows, with the cosine; the frame is as before."""
    direct = frame.clip.search("blue", k=2)
    assert direct["colour"].tolist()[0] == "blue"
    assert direct.index[0] == 30
    assert direct["score"].is_monotonic_decreasing
    stored = frame.clip.embed().clip.search("blue", k=2)
    assert stored["score"].tolist() == pytest.approx(direct["score"].tolist(), abs=1e-6)
    assert stored.index.tolist() == direct.index.tolist()
    assert "score" not in frame.columns
    frame.attrs["source"] = "a camera"
    for result in (frame.clip.search("blue"), frame.clip.embed(), frame.clip.project()):
        assert result.attrs == {"source": "a camera"}
    assert len(frame.clip.search("blue", k=99)) == 5
    assert cp.search(frame["img"], "blue", 1).columns.tolist() == ["img", "score"]
    assert frame.clip.search("blue", into="blueness").columns[-1] == "blueness"
    assert len(frame.clip.search("blue", k=np.int64(3))) == 3


def test_wrong_arguments_are_errors_before_anything_is_embedded(frame: Any, fake: FakeModel) -> None:  # noqa: ANN401
    """Nothing is embedded to learn that the number, the text, the labels or the column are wrong."""
    for k in (0, -1, 2.5, "3", None):
        with pytest.raises(ValueError, match="k must be a whole number from 1"):
            frame.clip.search("blue", k=k)
    with pytest.raises(TypeError, match="there is `similar`"):
        frame.clip.search(b"bytes")
    with pytest.raises(TypeError, match="not list; call once for each text"):
        frame.clip.score(["red", "blue"])
    with pytest.raises(TypeError, match="there is `similar`"):
        frame.clip.score(None)
    for verb in (frame.clip.classify, frame.clip.probabilities):
        with pytest.raises(TypeError, match="wrap it in a list"):
            verb("car")
        with pytest.raises(ValueError, match="two labels"):
            verb(["car"])
    with pytest.raises(ValueError, match="there is no column"):
        frame.clip.search("blue", column="photo")
    assert fake.calls == FakeModel().calls


def test_score_is_a_column_of_cosines(frame: Any, clip: ClipEmbedder) -> None:  # noqa: ANN401
    """`score` agrees with the embedder and can be assigned."""
    expected = clip.scores(frame["img"].tolist(), ["red"])[:, 0]
    scores = frame.assign(red=frame.clip.score("red"))["red"]
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert scores.dtype == np.float32
    assert frame["img"].clip.score("red").tolist() == scores.tolist()


def test_searching_twice_embeds_nothing(frame: Any, fake: FakeModel) -> None:  # noqa: ANN401
    """The second search of images asks the model for nothing, not even the text."""
    frame.clip.search("red")
    calls = copy.deepcopy(fake.calls)
    frame.clip.search("red")
    frame["img"].clip.score("red")
    assert fake.calls == calls


def test_similar_takes_an_image_or_a_vector(frame: Any) -> None:  # noqa: ANN401
    """A path, bytes, a picture and a vector of the frame find the same rows, itself first."""
    path = Path(frame["img"].iloc[2])
    result = frame.clip.embed()
    for query in (
        str(path),
        path,
        path.read_bytes(),
        Image.open(path),
        result["embedding"].iloc[2],
        cp.to_numpy(result)[2],
        cp.to_numpy(result)[2:3],
        cp.to_numpy(result)[2:3].tolist(),
        result["embedding"].iloc[2:3],
        torch.tensor(cp.to_numpy(result)[2]),
        torch.tensor(cp.to_numpy(result)[2:3]),
        result["embedding"].array.__arrow_array__()[2],
    ):
        found = result.clip.similar(query, 3)
        assert found["colour"].iloc[0] == "blue"
        assert found["score"].iloc[0] == pytest.approx(1, abs=1e-5)
    with pytest.raises(ImageBatchError, match=r"no such file; .* for a text there is `search`"):
        frame.clip.similar("red car")
    for row in (result.iloc[0], result[["embedding", "img"]].iloc[0]):
        with pytest.raises(TypeError, match="a Series is neither an image nor a vector of numbers"):
            frame.clip.similar(row)
    with pytest.raises(TypeError, match="5 vectors are given: give a single one"):
        frame.clip.similar(result["embedding"])
    with pytest.raises(SpaceMismatch, match="3 dimensions"):
        frame.clip.similar([0.0, 1.0, 2.0])


@pytest.mark.parametrize("number", [0, np.nan, np.inf])
def test_similar_refuses_a_vector_without_direction(frame: Any, number: float) -> None:  # noqa: ANN401
    """What no image can be like is an error, not an empty or arbitrary answer."""
    with pytest.raises(ValueError, match="is like no image"):
        frame.clip.similar(np.full(16, number, np.float32))


def test_classify_adds_label_and_probability(frame: Any, clip: ClipEmbedder) -> None:  # noqa: ANN401
    """The likeliest label of each row as a category; NA where there is no image."""
    labels = ["red", "blue", "green"]
    data = pd.concat([frame, pd.DataFrame({"img": [None], "colour": ["none"]})])
    found = data.clip.classify(labels)
    assert found["label"].tolist()[:3] == ["red", "green", "blue"]
    assert found["label"].isna().tolist() == [False] * 5 + [True]
    assert found["label"].cat.categories.tolist() == labels
    expected = clip.classify(frame["img"].tolist(), labels).probabilities.max(axis=1)
    np.testing.assert_allclose(found["probability"][:-1], expected, atol=1e-5)
    words = {"red": ["red", "crimson"], "blue": "navy"}
    assert frame.clip.classify(words, other="neither")["label"].cat.categories.tolist() == [
        "red",
        "blue",
        "neither",
    ]


def test_probabilities_of_all_labels(frame: Any, clip: ClipEmbedder) -> None:  # noqa: ANN401
    """A column for each label with the frame's index; shares of an image, or each for itself with `multi`."""
    data = pd.concat([frame, pd.DataFrame({"img": [None]}, index=[99])])
    labels = {"red": ["red", "crimson"], "blue": "navy"}
    for multi in (False, True):
        found = cp.probabilities(data, labels, multi=multi, other="neither")
        assert found.columns.tolist() == ["red", "blue", "neither"]
        assert found.index.tolist() == data.index.tolist()
        expected = clip.classify(frame["img"].tolist(), labels, multi=multi, other="neither").probabilities
        np.testing.assert_allclose(found[:-1], expected, atol=1e-5)
        assert found.iloc[-1].isna().all()
        best = data.clip.classify(labels, multi=multi, other="neither")
        assert best["label"].tolist()[:-1] == found[:-1].idxmax(axis=1).tolist()
        assert best["probability"][:-1].tolist() == found[:-1].max(axis=1).tolist()
    assert cp.probabilities(frame["img"], ["red"], multi=True).shape == (5, 1)


def test_duplicates_come_in_groups(frame: Any) -> None:  # noqa: ANN401
    """Copies stand together, the first of each group with 1; what is alone is left out."""
    data = pd.concat([frame, frame.iloc[[2, 0, 2]]])
    found = data.clip.duplicates(0.999)
    assert found["colour"].tolist() == ["red", "red", "blue", "blue", "blue"]
    assert found["group"].tolist() == [0, 0, 1, 1, 1]
    assert found.index.tolist() == [10, 10, 30, 30, 30]
    assert found["score"].tolist() == pytest.approx([1] * 5, abs=1e-5)
    assert len(frame.clip.duplicates(0.999)) == 0
    with pytest.raises(ValueError, match="from -1 to 1"):
        frame.clip.duplicates(2)


def test_groups_agree_with_the_plain_definition() -> None:
    """Over several blocks, each row joins the earliest first row that is alike enough."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((300, 16))
    rows = (centres[rng.integers(0, 300, 2500)] + 0.2 * rng.standard_normal((2500, 16))).astype(np.float32)
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    valid = rng.random(2500) > 0.05
    heads: list[int] = []
    groups: dict[int, list[int]] = {}
    for row in np.flatnonzero(valid):
        alike = [head for head in heads if units[head] @ units[row] >= 0.9]
        groups.setdefault(alike[0] if alike else row, []).append(row)
        heads += [] if alike else [row]
    expected = [member for members in groups.values() if len(members) > 1 for member in members]
    places, numbers, cosines = group_alike(units, valid, 0.9)
    assert places.tolist() == expected
    assert numbers.max() + 1 == sum(len(members) > 1 for members in groups.values())
    assert cosines.min() >= 0.9


def test_best_keeps_the_order_of_equals() -> None:
    """Equal scores come in the order of the rows, also at the edge; NaN never comes."""
    scores = np.array([0.5, np.nan, 0.7, 0.5, 0.7, 0.5], np.float32)
    assert best(scores, 3).tolist() == [2, 4, 0]
    assert best(scores, 9).tolist() == [2, 4, 0, 3, 5]
    assert best(np.empty(0, np.float32), 1).tolist() == []


def test_project_and_plot(frame: Any) -> None:  # noqa: ANN401
    """Alike lies close; the same frame gives the same places; without a vector there is none."""
    data = pd.concat([frame, frame.iloc[[0]], pd.DataFrame({"img": [None]})])
    places = data.clip.project()
    xy = places[["x", "y"]].to_numpy()
    assert np.isnan(xy[6]).all()
    np.testing.assert_allclose(xy[0], xy[5], atol=1e-5)
    assert np.linalg.norm(xy[:5, None] - xy[None, :5], axis=2)[np.triu_indices(5, 1)].min() > 0.1
    pd.testing.assert_frame_equal(places, data.clip.project())
    svg = data.clip.plot().svg
    assert svg.count("<image ") == 6
    assert "blue.png" in svg
    assert data.clip.embed()[["embedding"]].clip.plot().svg.count("<circle ") == 6
    with pytest.raises(ValueError, match="method must be"):
        data.clip.project(method="tsne")


@pytest.mark.filterwarnings("ignore")  # those of umap's own import
def test_umap_is_an_extra(frame: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN401
    """Where it is not installed, the error names the extra; where it is, it is used."""
    try:
        import umap  # type: ignore[import-not-found] # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(MissingExtra, match=r"pip install 'clip-embed\[umap\]'"):
            frame.clip.project(method="umap")
        (tmp_path / "umap.py").write_text("raise ModuleNotFoundError('no numba', name='numba')")
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(ModuleNotFoundError, match="no numba"):
            frame.clip.project(method="umap")
    else:
        for rows in range(6):
            assert frame[["img"]].head(rows).clip.project(method="umap")["x"].notna().all()


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_missing_library_names_its_extra(library: str) -> None:
    """Without pandas or polars the import says which extra brings it."""
    code = f"import sys; sys.modules[{library!r}] = None; import clip_embed_{library}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603
    assert f"pip install 'clip-embed[{library}]'" in done.stderr.splitlines()[-1]


def test_a_gallery_reads_what_its_embedder_may(frame: Any, tmp_path: Path) -> None:  # noqa: ANN401
    """Pictures are held to the policy of the embedder that was given, not to that of another."""
    narrow = ImagePolicy(roots=[tmp_path / "elsewhere"])
    found = frame.clip.embed().clip.search("red", embedder=ClipEmbedder(FakeModel(), policy=narrow))
    assert "data:image" not in found._repr_html_()
    assert "outside the policy" in found._repr_html_()


def test_use_and_the_default(frame: Any, monkeypatch: pytest.MonkeyPatch, clip: ClipEmbedder) -> None:  # noqa: ANN401
    """`embedder=` comes before `use`, and that before the model of the environment."""
    own = ClipEmbedder(FakeModel())
    cp.search(frame, "red", embedder=own)
    assert not clip.model.calls[0]  # type: ignore[attr-defined]
    cp.use(None)
    monkeypatch.setenv("CLIP_EMBED_MODEL", "offline")
    assert session.the_embedder(None).name == "offline"
    with pytest.raises(TypeError, match=r"must be a ClipEmbedder, not str: ClipEmbedder\('offline'\)"):
        cp.use("offline")  # type: ignore[arg-type]


def test_the_first_call_says_which_model(
    frame: Any,  # noqa: ANN401
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once in the log; on the screen only for people, at a terminal or in a notebook."""
    with caplog.at_level(logging.INFO, "clip_embed"):
        frame.clip.search("red")
        frame.clip.search("green")
    said = [record.message for record in caplog.records if record.name == session.__name__]
    assert said == ["clip-embed: FakeModel on cpu, fp32"]
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(session, "in_notebook", lambda: True)
    for _ in range(2):
        frame.clip.search("red")
    own = ClipEmbedder(FakeModel())
    for _ in range(2):
        cp.search(frame, "red", embedder=own)
    assert capsys.readouterr().out == "clip-embed: FakeModel on cpu, fp32\n"
