"""What the verbs answer, and what they cost."""

from __future__ import annotations

import copy
import logging
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

import clip_embed_pandas as cp
from clip_embed import ClipEmbedder, ImageBatchError, ImagePolicy, MissingExtra, SpaceMismatch
from clip_embed._frames import session
from clip_embed._frames.vectors import open_vectors
from clip_embed._ranking import best, group_alike
from clip_embed.arrow import stamp_vectors, vector_array
from clip_embed.testing import FakeModel

COLOURS = ("red", "green", "blue", "white", "black")


class Other(FakeModel):
    """The same dimension, other vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.space = "another model"
        self._projection = -self._projection

    def embed_images(self, pixels: Any, /) -> Any:  # noqa: ANN401
        """The vectors backwards."""
        return super().embed_images(pixels)[:, ::-1]


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


def vectors_of(rows: Any, clip: ClipEmbedder | None = None) -> Any:  # noqa: ANN401
    """A column of pandas with these vectors, stamped where an embedder is given."""
    array = vector_array(rows, np.ones(len(rows), np.bool_))
    array = array if clip is None else stamp_vectors(array, clip)
    return pd.Series(pd.arrays.ArrowExtensionArray(pa.chunked_array([array])))


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
    for k in (0, -1, 2.5):
        with pytest.raises(ValueError, match="k must be a whole number from 1"):
            frame.clip.search("blue", k=k)
    with pytest.raises(TypeError, match="there is `similar`"):
        frame.clip.search(b"bytes")


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
    ):
        found = result.clip.similar(query, 3)
        assert found["colour"].iloc[0] == "blue"
        assert found["score"].iloc[0] == pytest.approx(1, abs=1e-5)
    with pytest.raises(ImageBatchError, match="no such file"):
        frame.clip.similar("nowhere.png")
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
    with pytest.raises(ValueError, match="two labels"):
        frame.clip.classify(["red"])


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


def test_equal_vectors_have_equal_scores(clip: ClipEmbedder) -> None:
    """Wherever they lie: in blocks, in parts, in the first search and in later ones; so order is kept."""
    row = np.random.default_rng(0).standard_normal(16).astype(np.float32)
    whole = vectors_of(np.tile(row, (20_003, 1)), clip)
    parts = pd.concat([whole[:5], whole[5:9_001], whole[9_001:]])
    first, again = cp.score(parts, "red"), cp.score(parts, "red")
    assert first.nunique() == 1
    assert first.tolist() == again.tolist() == cp.score(whole, "red").tolist()
    found = cp.search(parts, "red", 9)
    assert found.index.tolist() == list(range(9))
    assert set(found["score"]) == {first[0]}


def test_the_first_search_need_not_measure(frame: Any, tmp_path: Path, clip: ClipEmbedder) -> None:  # noqa: ANN401
    """Lengths are known of vectors that were just made or read; of others once they were searched."""

    def is_measured(data: Any) -> bool:  # noqa: ANN401
        parts = open_vectors(data["embedding"].array.__arrow_array__(), clip, "it").parts
        return all(part.is_measured for part in parts)

    done = cp.embed(frame)
    cp.to_parquet(done, tmp_path / "done.parquet")
    assert is_measured(done)
    assert is_measured(cp.read_parquet(tmp_path / "done.parquet"))
    others = done[::-1]
    assert not is_measured(others)
    cp.search(others, "red")
    assert is_measured(others)
    nothing = cp.embed(pd.DataFrame({"img": [None, None]}), "img")
    assert cp.search(nothing, "red").empty


def test_vectors_are_not_copied(frame: Any) -> None:  # noqa: ANN401
    """numpy, torch, polars and Arrow see the memory of the column; a search takes it as it lies."""
    torch = pytest.importorskip("torch")
    column = frame.clip.embed()["embedding"]
    array = column.array.__arrow_array__().chunk(0)
    address = array.values.buffers()[1].address
    assert cp.to_numpy(column).ctypes.data == address
    assert not cp.to_numpy(column).flags.writeable
    assert torch.from_dlpack(array.values).data_ptr() == address
    opened = open_vectors(column.array.__arrow_array__(), session.the_embedder(None), "it")
    assert opened.parts[0].rows.ctypes.data == address
    assert cp.to_numpy(column.iloc[2:]).ctypes.data == address + 2 * 16 * 4
    polars = pytest.importorskip("polars")
    assert polars.Series(array).to_arrow().values.buffers()[1].address == address


def test_duckdb_reads_the_frame(frame: Any) -> None:  # noqa: ANN401
    """DuckDB sees FLOAT[d], and the frame itself is what it reads."""
    duckdb = pytest.importorskip("duckdb")
    done = frame.clip.embed()
    answer = duckdb.sql("SELECT colour, embedding, typeof(embedding) AS kind FROM done").fetchall()
    assert {kind for _, _, kind in answer} == {"FLOAT[16]"}
    np.testing.assert_array_equal(np.array([row for _, row, _ in answer], np.float32), cp.to_numpy(done))


def test_another_models_vectors_are_refused(frame: Any) -> None:  # noqa: ANN401
    """Stamped vectors of another model or dimension are a SpaceMismatch, also where frames were joined."""
    other = ClipEmbedder(Other())
    done, foreign = cp.embed(frame), cp.embed(frame, embedder=other)
    with pytest.raises(SpaceMismatch, match="'embedding': these vectors are of the space another model"):
        cp.search(foreign, "red")
    with pytest.raises(SpaceMismatch, match="another model"):
        cp.search(pd.concat([done, foreign]), "red")
    with pytest.raises(SpaceMismatch, match="8 dimensions"):
        cp.score(cp.embed(frame, embedder=ClipEmbedder(FakeModel(dim=8))), "red")
    assert len(cp.search(foreign, "red", embedder=other)) == 5


def test_the_stamp_survives_what_frames_go_through(frame: Any) -> None:  # noqa: ANN401
    """Filter, sort, merge, concat, reindex, groupby and copies keep the stamp; pickle drops it."""
    done = cp.embed(frame)
    keys = pd.DataFrame({"colour": ["blue", "pink"]})
    for result in (
        done[done["colour"] != "red"],
        done.sort_values("colour"),
        done.merge(keys, how="right"),
        pd.concat([done, done]),
        done.reindex([50, 99]),
        done.groupby("colour").first(),
        copy.deepcopy(done),
        done.assign(n=1).reset_index(),
    ):
        kind = result["embedding"].dtype.pyarrow_dtype
        assert b"clip_embed" in (kind.field(0).metadata or {})
        cp.score(result, "red")  # and so no warning
    loaded = pickle.loads(pickle.dumps(done))  # noqa: S301 - our own
    with pytest.warns(UserWarning, match="nothing says which model made these vectors") as caught:
        cp.score(loaded, "red")
    assert caught[0].filename == __file__


def test_vectors_made_elsewhere(clip: ClipEmbedder) -> None:
    """Lists, arrays and any length are taken, compared by cosine; NaN, zeros and NA have no score."""
    query = clip.embed_texts(["red"])
    rows = np.stack([query[0] * 7, -query[0], np.zeros(16), np.full(16, np.nan)]).astype(np.float32)
    stamped = vectors_of(rows, clip)
    expected = [1.0, -1.0, np.nan, np.nan]
    assert cp.score(stamped, "red").tolist() == pytest.approx(expected, nan_ok=True)
    assert cp.search(stamped, "red")["score"].tolist() == pytest.approx([1, -1])
    objects = pd.Series([*rows.astype(np.float64), None])
    doubles = pd.Series([row.tolist() for row in rows[:2]], dtype=pd.ArrowDtype(pa.list_(pa.float64())))
    for column in (vectors_of(rows), objects, doubles):
        with pytest.warns(UserWarning, match="nothing says which model"):
            scores = cp.score(column, "red")
        assert scores.tolist()[:2] == pytest.approx([1, -1], abs=1e-5)
        assert scores.isna()[2:].all()
    np.testing.assert_allclose(cp.to_numpy(doubles), rows[:2], atol=1e-6)
    assert np.isnan(cp.to_numpy(objects)[-1]).all()
    with pytest.raises(SpaceMismatch, match="different dimensions"):
        cp.to_numpy(pd.Series([np.ones(3), np.ones(4)]))


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
