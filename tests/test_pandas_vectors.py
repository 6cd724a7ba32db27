"""Columns of vectors: whose memory they are, which may be compared, and what the stamp survives."""

from __future__ import annotations

import copy
import pickle
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

import clip_embed_pandas as cp
from clip_embed import ClipEmbedder, SpaceMismatch
from clip_embed._frames import session
from clip_embed._frames.vectors import open_vectors
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
    """One picture of each colour, by path."""
    for colour in COLOURS:
        Image.new("RGB", (40, 30), colour).save(tmp_path / f"{colour}.png")
    paths = [str(tmp_path / f"{colour}.png") for colour in COLOURS]
    return pd.DataFrame({"img": paths, "colour": COLOURS}, index=[10, 20, 30, 40, 50])


def vectors_of(rows: Any, clip: ClipEmbedder | None = None) -> Any:  # noqa: ANN401
    """A column of pandas with these vectors, stamped where an embedder is given."""
    array = vector_array(rows, np.ones(len(rows), np.bool_))
    array = array if clip is None else stamp_vectors(array, clip)
    return pd.Series(pd.arrays.ArrowExtensionArray(pa.chunked_array([array])))


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


def test_a_search_copies_no_vectors() -> None:
    """It takes a few numbers for each row; of a column in parts and of one seen from the middle too."""
    clip = ClipEmbedder(FakeModel(dim=64))
    rows = np.random.default_rng(0).standard_normal((4000, 64)).astype(np.float32)
    frame = pd.DataFrame({"e": vectors_of(rows, clip)})
    for data in (frame, pd.concat([frame, frame]), frame.iloc[1000:]):
        cp.search(data, "red", embedder=clip)
        before = pa.total_allocated_bytes()
        tracemalloc.start()
        cp.search(data, "red", embedder=clip)
        taken = tracemalloc.get_traced_memory()[1] + pa.total_allocated_bytes() - before
        tracemalloc.stop()
        assert taken < len(data) * rows.itemsize * 64 / 10


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


def test_lists_that_are_no_vectors(frame: Any, clip: ClipEmbedder) -> None:  # noqa: ANN401
    """Boxes and points beside images or vectors are in nobody's way; alone they are not compared."""
    boxed = frame.assign(box=[[1.0, 2.0, 3.0, 4.0]] * 5, points=[[0.5] * (2 + row) for row in range(5)])
    wanted = cp.search(frame, "red")["colour"].tolist()
    arrow = frame.assign(box=pd.Series([[1.0, 2.0]] * 5, frame.index, pd.ArrowDtype(pa.list_(pa.float64()))))
    for data in (boxed, cp.embed(boxed), arrow, cp.embed(arrow)):
        assert cp.search(data, "red")["colour"].tolist() == wanted
    done = cp.embed(boxed)
    np.testing.assert_array_equal(cp.to_numpy(done), cp.to_numpy(cp.embed(frame)))
    with pytest.raises(SpaceMismatch, match="column 'box': the vectors have 4 dimensions"):
        cp.search(boxed[["box"]], "red")
    with pytest.raises(ValueError, match="several columns hold vectors: 'box', 'points'"):
        cp.search(boxed[["box", "points"]], "red")
    plain = boxed.assign(v=list(cp.to_numpy(done)))
    with pytest.warns(UserWarning, match="column 'v': nothing says which model"):
        assert cp.search(plain, "red", embedder=clip)["colour"].tolist() == wanted
