"""Frames with vectors through Parquet and into DuckDB and polars, with any index and NA anywhere."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import clip_embed_pandas as cp
from clip_embed import ClipEmbedder, SpaceMismatch
from clip_embed.arrow import stamp_vectors, vector_array
from clip_embed.testing import FakeModel

DIM = 4
CLIP = ClipEmbedder(FakeModel(dim=DIM))
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "int64": st.integers(-(2**60), 2**60),
    "float64": st.floats(allow_nan=True, width=64),
    "string": st.none() | st.text(st.characters(codec="utf-8"), max_size=5),
    "boolean": st.none() | st.booleans(),
    "Int64": st.none() | st.integers(-(2**60), 2**60),
    "category": st.none() | st.sampled_from(["x.jpg", "y.jpg"]),
    "binary[pyarrow]": st.none() | st.binary(max_size=5),
    "datetime64[ns]": st.none() | st.datetimes(pd.Timestamp(1990, 1, 1), pd.Timestamp(2090, 1, 1)),
    "timedelta64[ns]": st.none() | st.timedeltas(pd.Timedelta(0), pd.Timedelta(days=9)),
}
INDEXES: dict[str, st.SearchStrategy[Any]] = {
    "labels": st.sampled_from(["x", "y", None]),
    "integers": st.integers(-3, 3),
    "numbers": st.sampled_from([0.5, 1.0, np.nan]),
    "times": st.sampled_from([pd.Timestamp(2026, 1, 1), pd.Timestamp(2026, 1, 2), pd.NaT]),
}
"""Few values, so that some stand twice."""


@st.composite
def frames(draw: st.DrawFn) -> Any:  # noqa: ANN401
    """A frame with a column of stamped vectors, other columns beside, and any index."""
    n = draw(st.integers(0, 6))
    numbers = st.floats(-1e6, 1e6, width=32)
    rows = draw(st.lists(st.lists(numbers, min_size=DIM, max_size=DIM), min_size=n, max_size=n))
    valid = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)), np.bool_)
    array = stamp_vectors(vector_array(np.array(rows, np.float32).reshape(n, DIM), valid), CLIP)
    columns: dict[str, Any] = {
        "row": range(n),
        "embedding": pd.Series(pd.arrays.ArrowExtensionArray(pa.chunked_array([array]))),
    }
    for kind in draw(st.lists(st.sampled_from(sorted(VALUES)), unique=True)):
        values = draw(st.lists(VALUES[kind], min_size=n, max_size=n))
        columns[f"a {kind}"] = pd.Series(values, dtype=kind)
    frame = pd.DataFrame(columns)[draw(st.permutations(sorted(columns)))]
    levels = [
        pd.Index(
            draw(st.lists(INDEXES[kind], min_size=n, max_size=n)), name=draw(st.sampled_from([None, kind]))
        )
        for kind in draw(st.lists(st.sampled_from(sorted(INDEXES)), max_size=3, unique=True))
    ]
    if levels:
        frame.index = pd.MultiIndex.from_arrays(levels) if len(levels) > 1 else levels[0]
    cut = draw(st.integers(0, n))  # in two parts, as after `concat`, and seen from the middle
    return pd.concat([frame.iloc[:cut], frame.iloc[cut:]]).iloc[draw(st.integers(0, n)) :]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(frame=frames())
def test_round_trips(frame: Any, tmp_path: Path) -> None:  # noqa: ANN401
    """Vectors come back as they were, all else as from pandas' own files; other readers find the same."""
    file, own = tmp_path / "frame.parquet", tmp_path / "own.parquet"
    cp.to_parquet(frame, file)
    again = cp.read_parquet(file)
    assert again.columns.tolist() == frame.columns.tolist()
    frame.drop(columns="embedding").to_parquet(own)
    pd.testing.assert_frame_equal(again.drop(columns="embedding"), pd.read_parquet(own))
    pd.testing.assert_series_equal(
        again["embedding"].reset_index(drop=True), frame["embedding"].reset_index(drop=True)
    )
    kind = again["embedding"].dtype.pyarrow_dtype
    assert kind.field(0).metadata == frame["embedding"].dtype.pyarrow_dtype.field(0).metadata
    np.testing.assert_array_equal(cp.to_numpy(again), cp.to_numpy(frame))

    plain = pd.read_parquet(file)
    others = [name for name in frame.columns if name != "embedding"]
    pd.testing.assert_frame_equal(plain[others], again[others])
    pd.testing.assert_index_equal(plain.index, again.index)
    expected = [None if np.isnan(row).any() else row.tolist() for row in cp.to_numpy(frame)]
    assert [None if row is None else row.tolist() for row in plain["embedding"]] == expected

    for source in (f"'{file}'", "again", "frame"):
        rows = duckdb.sql(f"SELECT embedding::FLOAT[{DIM}] FROM {source}").fetchall()
        assert [None if row is None else list(row) for (row,) in rows] == expected
    assert pl.read_parquet(file)["embedding"].to_list() == expected
    assert pl.Series(again["embedding"].array.__arrow_array__()).to_list() == expected


NESTED = {
    "struct": (pa.struct([("bytes", pa.binary()), ("path", pa.string())]), {"bytes": b"x", "path": None}),
    "list": (pa.list_(pa.float64()), [1.0, 2.0]),
    "list of structs": (pa.list_(pa.struct([("a", pa.int64())])), [{"a": 1}]),
    "dictionary": (pa.dictionary(pa.int32(), pa.string()), "x.jpg"),
    "decimal": (pa.decimal128(5, 2), Decimal("1.50")),
    "binary": (pa.binary(2), b"ab"),
}


@pytest.mark.parametrize("kind", NESTED)
def test_other_columns_of_arrow(kind: str, tmp_path: Path) -> None:
    """What pandas has no name for, such as Hugging Face's images, comes back; plain pandas reads it too."""
    dtype, value = NESTED[kind]
    array = stamp_vectors(vector_array(np.ones((2, DIM), np.float32), np.ones(2, np.bool_)), CLIP)
    frame = pd.DataFrame(
        {
            "img": pd.Series([value, None], dtype=pd.ArrowDtype(dtype)),
            "e": pd.arrays.ArrowExtensionArray(pa.chunked_array([array])),
        }
    ).set_index(pd.Index(["a", "b"]))
    for written in (frame, frame[["img"]]):
        cp.to_parquet(written, tmp_path / "a.parquet")
        pd.testing.assert_frame_equal(cp.read_parquet(tmp_path / "a.parquet"), written)
        plain = pd.read_parquet(tmp_path / "a.parquet")["img"]
        assert (list(plain.iloc[0]) if isinstance(value, list) else plain.iloc[0]) == value


@pytest.mark.parametrize("kind", sorted({*NESTED} - {"decimal"}))  # of which pandas makes objects
def test_files_of_pandas_itself(kind: str, tmp_path: Path) -> None:
    """What `DataFrame.to_parquet` wrote and pandas cannot read is read, index and stamp included."""
    dtype, value = NESTED[kind]
    array = stamp_vectors(vector_array(np.ones((2, DIM), np.float32), np.array([True, False])), CLIP)
    frame = pd.DataFrame(
        {
            "n": [1, 2],
            "when": pd.to_datetime(["2026-01-01", None]).tz_localize("Europe/Paris"),
            "img": pd.Series([value, None], dtype=pd.ArrowDtype(dtype)),
            "e": pd.arrays.ArrowExtensionArray(pa.chunked_array([array])),
        }
    ).set_index(pd.Index(["a", "b"], name="key"))
    frame.to_parquet(tmp_path / "own.parquet")
    pd.testing.assert_frame_equal(cp.read_parquet(tmp_path / "own.parquet"), frame)
    pd.testing.assert_frame_equal(
        cp.read_parquet(tmp_path / "own.parquet", columns=["n", "e"]), frame[["n", "e"]]
    )
    pd.testing.assert_frame_equal(cp.read_parquet(tmp_path / "own.parquet", columns=["n"]), frame[["n"]])


@pytest.mark.parametrize("write", [cp.to_parquet, pd.DataFrame.to_parquet])
def test_some_columns_and_rows_of_parts(write: Any, tmp_path: Path) -> None:  # noqa: ANN401
    """A folder of files is one frame; columns and filters are pandas', compression is Arrow's."""
    rows = CLIP.embed_texts(["red", "green", "blue"])
    array = stamp_vectors(vector_array(rows, np.ones(3, np.bool_)), CLIP)
    frame = pd.DataFrame({"n": range(3), "e": pd.arrays.ArrowExtensionArray(pa.chunked_array([array]))})
    (tmp_path / "parts").mkdir()
    for part in range(3):
        write(frame.iloc[[part]], tmp_path / "parts" / f"{part}.parquet", compression="zstd")
    assert pq.read_metadata(tmp_path / "parts" / "0.parquet").row_group(0).column(0).compression == "ZSTD"
    whole = cp.read_parquet(tmp_path / "parts")
    np.testing.assert_array_equal(cp.to_numpy(whole), rows)
    some = cp.read_parquet(tmp_path / "parts", columns=["e"], filters=[("n", ">", 0)])
    assert some.columns.tolist() == ["e"]
    assert some["e"].dtype == frame["e"].dtype
    np.testing.assert_array_equal(cp.to_numpy(some), rows[1:])


def test_written_frames_are_searched(tmp_path: Path) -> None:
    """A loaded frame has its stamp: no warning, and another model's is refused."""
    rows = CLIP.embed_texts(["red", "green"])
    array = stamp_vectors(vector_array(rows, np.ones(2, np.bool_)), CLIP)
    frame = pd.DataFrame(
        {"e": pd.arrays.ArrowExtensionArray(pa.chunked_array([array])), "c": ["red", "green"]}
    )
    cp.to_parquet(frame, str(tmp_path / "a.parquet"))
    loaded = cp.read_parquet(tmp_path / "a.parquet")
    assert cp.search(loaded, "green", embedder=CLIP)["c"].tolist() == ["green", "red"]
    both = pd.concat([frame, loaded])
    assert both["e"].dtype == frame["e"].dtype
    assert len(cp.search(both, "green", embedder=CLIP)) == 4
    with pytest.raises(SpaceMismatch):
        cp.search(loaded, "green", embedder=ClipEmbedder(FakeModel(dim=8)))


def test_what_parquet_cannot_hold(tmp_path: Path) -> None:
    """Paths become text; a column of pictures is an error that names it, and no file is left."""
    frame = pd.DataFrame({"img": [Path("a/b.jpg"), None]})
    cp.to_parquet(frame, tmp_path / "paths.parquet")
    assert pd.read_parquet(tmp_path / "paths.parquet")["img"].dropna().tolist() == [str(Path("a/b.jpg"))]
    from PIL import Image

    with pytest.raises(TypeError, match=r"Parquet has no type for a column .*img"):
        cp.to_parquet(pd.DataFrame({"img": [Image.new("RGB", (2, 2))]}), tmp_path / "pictures.parquet")
    assert not (tmp_path / "pictures.parquet").exists()


def test_other_files_are_read_as_pandas_does(tmp_path: Path) -> None:
    """A file without vectors, and one by Arrow alone with a column of them."""
    frame = pd.DataFrame({"n": [1, None], "s": ["a", "b"]}, index=["x", "y"])
    frame.to_parquet(tmp_path / "plain.parquet")
    pd.testing.assert_frame_equal(cp.read_parquet(tmp_path / "plain.parquet"), frame)
    array = vector_array(np.ones((2, DIM), np.float32), np.array([True, False]))
    pq.write_table(pa.table({"v": array}), tmp_path / "arrow.parquet")
    loaded = cp.read_parquet(tmp_path / "arrow.parquet")
    assert loaded["v"].dtype == pd.ArrowDtype(pa.list_(pa.float32(), DIM))
    assert loaded["v"].isna().tolist() == [False, True]
