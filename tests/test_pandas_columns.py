"""Every kind of column, index and gap: what goes into `embed` and what comes out."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

import clip_embed_pandas as cp
from clip_embed import ClipEmbedder
from clip_embed.testing import FakeModel

COLOURS = ("red", "green", "blue", "white")
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
Make = Callable[[list[Path | None]], Any]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """One file of each colour."""
    for colour in COLOURS:
        Image.new("RGB", (40, 30), colour).save(tmp_path / f"{colour}.png")
    return [tmp_path / f"{colour}.png" for colour in COLOURS]


@pytest.fixture(autouse=True)
def _in_use(clip: ClipEmbedder) -> Any:  # noqa: ANN401
    cp.use(clip)
    yield
    cp.use(None)


def _texts(paths: list[Path | None]) -> list[str | None]:
    return [None if path is None else str(path) for path in paths]


def _bytes(paths: list[Path | None]) -> list[bytes | None]:
    return [None if path is None else path.read_bytes() for path in paths]


def _objects(values: list[Any]) -> Any:  # noqa: ANN401
    column = np.empty(len(values), object)
    column[:] = values
    return pd.Series(column)


def _images(paths: list[Path | None]) -> list[Image.Image | None]:
    return [None if path is None else Image.open(io.BytesIO(path.read_bytes())) for path in paths]


def _structs(paths: list[Path | None]) -> list[dict[str, Any] | None]:
    """Bytes, a path, or neither, in turn."""
    kinds = [
        lambda path: {"bytes": path.read_bytes(), "path": "elsewhere"},
        lambda path: {"bytes": None, "path": str(path)},
    ]
    nothing = {"bytes": None, "path": None}
    return [nothing if path is None else kinds[row % 2](path) for row, path in enumerate(paths)]


def _arrow(values: list[Any], kind: pa.DataType) -> Any:  # noqa: ANN401
    return pd.Series(values, dtype=pd.ArrowDtype(kind))


KINDS: dict[str, Make] = {
    "str": lambda paths: pd.Series(_texts(paths)),
    "string": lambda paths: pd.Series(_texts(paths), dtype="string"),
    "string with NaN": lambda paths: _objects([np.nan if path is None else str(path) for path in paths]),
    "objects with NA": lambda paths: _objects([pd.NA if path is None else str(path) for path in paths]),
    "paths": lambda paths: _objects(list(paths)),
    "bytes": lambda paths: _objects(_bytes(paths)),
    "PIL": lambda paths: _objects(_images(paths)),
    "arrays": lambda paths: _objects([None if each is None else np.asarray(each) for each in _images(paths)]),
    "dicts": lambda paths: _objects(_structs(paths)),
    "categorical": lambda paths: pd.Series(pd.Categorical(_texts(paths))),
    "arrow string": lambda paths: _arrow(_texts(paths), pa.string()),
    "arrow large_string": lambda paths: _arrow(_texts(paths), pa.large_string()),
    "arrow binary": lambda paths: _arrow(_bytes(paths), pa.binary()),
    "arrow large_binary": lambda paths: _arrow(_bytes(paths), pa.large_binary()),
    "arrow dictionary": lambda paths: _arrow(_texts(paths), pa.dictionary(pa.int32(), pa.string())),
    "arrow struct": lambda paths: _arrow(_structs(paths), STRUCT),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_column(kind: str, files: list[Path], clip: ClipEmbedder) -> None:
    """The column is found, its vectors are those of its images, NA where there is none."""
    paths = [files[0], None, *files[1:], files[0]]
    frame = pd.DataFrame({"n": range(6), "img": KINDS[kind](paths), "title": "a text"})
    before = frame.copy()
    result = cp.embed(frame)
    assert list(result.columns) == ["n", "img", "title", "embedding", "embedding_error"]
    assert result["embedding"].isna().tolist() == [False, True, False, False, False, False]
    assert result["embedding_error"].isna().all()
    expected = clip.embed_images([files[0], *files[1:], files[0]])
    np.testing.assert_allclose(cp.to_numpy(result)[[0, 2, 3, 4, 5]], expected, atol=1e-6)
    assert list(frame.columns) == list(before.columns)  # the frame itself is not changed
    assert cp.search(frame, "blue", 1)["n"].tolist() == [3]
    assert frame.clip.search("blue")._repr_html_().count("data:image/jpeg") == 5


def test_the_dtype_is_arrows_with_dimension_and_stamp(files: list[Path], clip: ClipEmbedder) -> None:
    """A fixed-size list of float32, whose inner field carries the stamp; a Series keeps name and index."""
    series = pd.Series(map(str, files), index=[9, 9, 7, 1], name="photo")
    vectors = series.clip.embed()
    assert vectors.name == "photo"
    assert vectors.index.tolist() == [9, 9, 7, 1]
    kind = vectors.dtype.pyarrow_dtype
    assert kind == pa.list_(pa.float32(), 16)
    assert b'"space": "fake:16:32"' in kind.field(0).metadata[b"clip_embed"]


INDEXES: dict[str, Any] = {
    "duplicates": [1, 1, 0, 0],
    "MultiIndex": pd.MultiIndex.from_tuples([("a", 1), ("a", 1), ("b", None), (None, 2)]),
    "times": pd.date_range("2026-01-01", periods=4, tz="UTC"),
    "names": pd.Index(["x", None, "y", "x"], name="who"),
}


@pytest.mark.parametrize("kind", INDEXES)
def test_any_index_keeps_its_meaning(kind: str, files: list[Path]) -> None:
    """Vectors, scores and rankings stay with their row, whatever the index is."""
    frame = pd.DataFrame({"img": list(map(str, files)), "colour": COLOURS}, index=INDEXES[kind])
    result = cp.embed(frame)
    pd.testing.assert_index_equal(result.index, frame.index)
    scores = cp.score(result, "green")
    pd.testing.assert_index_equal(scores.index, frame.index)
    assert scores.to_numpy().argmax() == 1
    best = cp.search(result, "blue", 2)
    assert best["colour"].tolist()[0] == "blue"
    assert best.index[0] == frame.index[2] or best.index[:1].isna().any() or kind == "MultiIndex"
    assert cp.classify(result, ["red", "white"])["label"].tolist()[0] == "red"


@pytest.mark.parametrize("kind", KINDS)
def test_empty_frames(kind: str) -> None:
    """A column without rows gives columns without rows, of the same types."""
    frame = pd.DataFrame({"img": KINDS[kind]([])})
    result = cp.embed(frame)
    assert len(result) == 0
    assert result["embedding"].dtype.pyarrow_dtype == pa.list_(pa.float32(), 16)
    assert len(cp.search(result, "red")) == len(cp.duplicates(result)) == len(cp.failures(result)) == 0
    assert cp.score(result, "red").dtype == np.float32
    assert len(cp.classify(result, ["red", "blue"])) == 0
    assert cp.project(result).shape == (0, 5)
    assert cp.to_numpy(result).shape == (0, 16)
    assert cp.plot(result).svg.startswith("<svg")


def test_frames_without_rows(files: list[Path]) -> None:
    """What a filter leaves, and a list of no files, can be embedded, searched and shown like any other."""
    listed = pd.DataFrame({"img": [], "n": []})
    for result in (cp.embed(listed[["img"]]), cp.embed(listed, "img"), cp.embed(listed)):
        assert result["embedding"].dtype.pyarrow_dtype == pa.list_(pa.float32(), 16)
        assert len(cp.search(result, "red")) == len(cp.search(listed, "red")) == 0
    done = cp.embed(pd.DataFrame({"img": map(str, files), "n": range(4)}))
    found = cp.search(done.head(0), "red")
    for frame in (done.head(0), found, cp.classify(done.head(0), ["a", "b"])):
        assert "<main></main>" in cp.gallery(frame)._repr_html_()
        assert list(cp.embed(frame).columns) == list(frame.columns)
    with pytest.raises(ValueError, match="no column holds images; the columns are 'n'"):
        cp.embed(done.head(0)[["n"]])


def test_a_column_of_nothing(clip: ClipEmbedder) -> None:
    """NA in gives NA out, and is no failure."""
    frame = pd.DataFrame({"img": pd.Series([None, None], dtype=object)})
    result = cp.embed(frame)
    assert result["embedding"].isna().all()
    assert cp.score(result, "red").isna().all()
    assert len(cp.search(result, "red")) == 0
    assert len(cp.failures(result)) == len(cp.failures(frame)) == 0
    assert sum(clip.model.calls[0]) == 8  # type: ignore[attr-defined] # the stamp's


@pytest.mark.parametrize(
    "nothing", [[np.nan] * 3, [pd.NaT] * 3, pd.array([None] * 3, "Int64"), _arrow([None] * 3, pa.float64())]
)
def test_empty_cells_of_any_type(nothing: Any) -> None:  # noqa: ANN401
    """A column of missing values is none of numbers: it gives NA, whether it is named or the only one."""
    frame = pd.DataFrame({"n": range(3), "img": nothing})
    for result in (cp.embed(frame, "img"), cp.embed(frame)):
        assert result["embedding"].isna().all()
        assert result["embedding_error"].isna().all()
    texts = pd.DataFrame({"file": ["a", "b", "c"], "img": nothing})  # nobody knows which of them is meant
    with pytest.raises(ValueError, match="where 'file' or 'img' has paths, say so"):
        cp.embed(texts)


def test_columns_of_several_levels(files: list[Path]) -> None:
    """A MultiIndex of columns gets new ones of all its levels, found again by every verb."""
    names = pd.MultiIndex.from_tuples([("photo", "img"), ("photo", "n")])
    frame = pd.DataFrame([[str(path), row] for row, path in enumerate(files)], columns=names)
    result = cp.embed(frame)
    assert list(result.columns) == [*names, ("embedding", ""), ("embedding_error", "")]
    found = cp.search(result, "blue", 1)
    assert found[("photo", "n")].tolist() == [2]
    assert "<b>" in found._repr_html_()
    kinds = cp.classify(result, ["red", "blue"])
    assert "· red" in kinds._repr_html_()
    assert "· red" in cp.gallery(pd.DataFrame(kinds))._repr_html_()
    assert "group 0" in cp.duplicates(pd.concat([result, result]), 0.999)._repr_html_()
    assert cp.project(result)[("x", "")].notna().all()
    frame.iloc[0, 0] = str(files[0].with_name("gone.png"))
    with pytest.warns(UserWarning, match="1 of 4 images failed"):
        failed = cp.failures(cp.embed(frame))
    assert list(failed.columns) == [*names, ("reason", "")]
    assert failed[("photo", "n")].tolist() == [0]


def test_candidates_are_listed(files: list[Path]) -> None:
    """Several columns of images, or none: the error names them and says what to write."""
    frame = pd.DataFrame({"front": map(str, files), "back": map(str, files), "n": range(4)})
    with pytest.raises(ValueError, match=r"several columns hold images: 'front', 'back'.*column='front'"):
        cp.embed(frame)
    assert "embedding" in cp.embed(frame, "back").columns
    with pytest.raises(ValueError, match=r"no column holds images; the columns are 'n'$"):
        cp.embed(frame[["n"]])
    texts = pd.DataFrame({"file": [str(path).removesuffix(".png") for path in files]})
    with pytest.raises(ValueError, match=r"where 'file' has paths, say so: column='file'"):
        cp.embed(texts)
    with pytest.raises(ValueError, match=r"there is no column 'photo'; the columns are 'front', 'back', 'n'"):
        cp.search(frame, "red", column="photo")
    with pytest.raises(ValueError, match="2 columns are called 'a'"):
        cp.embed(pd.DataFrame([[1, 2]], columns=["a", "a"]), "a")
    with pytest.raises(TypeError, match=r"column 'n' holds int64, not images"):
        cp.embed(frame, "n")
    done = cp.embed(frame, "front")
    with pytest.raises(TypeError, match="vectors already"):
        cp.embed(done, "embedding")


def test_columns_of_mixed_objects(files: list[Path]) -> None:
    """One stray value, streams and floats: the error says what is there, and the good rows can be had."""
    stray = pd.DataFrame({"img": [str(files[0]), 7, str(files[1])]})
    with pytest.raises(ValueError, match="'img' holds int and str: column='img' embeds what is an image"):
        cp.embed(stray)
    with pytest.warns(UserWarning, match=r"1 of 3 images failed \(int is not an image"):
        assert cp.embed(stray, "img")["embedding"].isna().tolist() == [False, True, False]
    others: list[tuple[Any, str]] = [
        (io.BytesIO(b"x"), "BytesIO"),
        (bytearray(b"x"), "bytearray"),
        (np.zeros((8, 8, 3)), "float64 arrays of 3 dimensions"),
    ]
    for value, name in others:
        with pytest.raises(ValueError, match=f"'img' holds {name}: column='img'"):
            cp.embed(pd.DataFrame({"img": _objects([value, value])}))
    with pytest.raises(TypeError, match=r"the name of one column, not \['img'\]: column='img'"):
        cp.embed(stray, ["img"])


def test_the_warning_counts_each_reason(files: list[Path]) -> None:
    """The commonest comes first, with its number."""
    frame = pd.DataFrame(
        {"img": [str(files[0]), "", "gone.png", "lost.png", "~/x.png", str(files[0].parent)]}
    )
    text = r"5 of 6 images failed \(2 × no such file; 1 × .*; 1 × .*; …\): `failures`"
    with pytest.warns(UserWarning, match=text):
        cp.embed(frame, "img")


def test_failures_keep_their_reasons(files: list[Path], tmp_path: Path) -> None:
    """A failed image is NA with a reason, which survives filter, sort, concat and a file."""
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    frame = pd.DataFrame(
        {"img": [str(files[0]), str(broken), None, str(tmp_path / "gone.png")], "n": range(4)}
    )
    with pytest.warns(UserWarning, match=r"2 of 4 images failed .*`failures` lists them") as caught:
        result = cp.embed(frame)
    assert caught[0].filename == __file__
    assert result["embedding"].isna().tolist() == [False, True, True, True]
    found = cp.failures(result)
    assert found["n"].tolist() == [1, 3]
    assert "not an image" in found["reason"].iloc[0]
    assert "no such file" in found["reason"].iloc[1].lower()
    assert list(found.columns) == ["img", "n", "reason"]
    again = pd.concat([result[result["n"] > 0].sort_values("n", ascending=False), result.head(1)])
    assert cp.failures(again)["n"].tolist() == [3, 1]
    cp.to_parquet(again, tmp_path / "again.parquet")
    assert cp.failures(cp.read_parquet(tmp_path / "again.parquet"))["n"].tolist() == [3, 1]
    assert cp.failures(frame)["reason"].tolist() == found["reason"].tolist()  # found again without them
    with pytest.warns(UserWarning, match="2 of 4 images failed"):
        assert cp.search(frame, "red")["n"].tolist() == [0]


def test_a_repeated_path_is_read_once(files: list[Path]) -> None:
    """Rows with one path, as after a join, cost one file."""
    clip = ClipEmbedder(FakeModel(), cache=None)
    cp.embed(pd.DataFrame({"img": [str(files[0]), str(files[1])] * 50}), embedder=clip)
    assert sum(clip.model.calls[0]) == 2 + 8  # type: ignore[attr-defined] # and the stamp's
