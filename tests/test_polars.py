"""The verbs in polars, eager and lazy."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import polars.testing
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import clip_embed_pandas
import clip_embed_polars as cp
from clip_embed import ClipEmbedder, SpaceMismatch
from clip_embed.testing import FakeModel
from clip_embed_polars._vectors import to_vectors

COLOURS = ("red", "green", "blue", "white")


@pytest.fixture(autouse=True)
def _in_use(clip: ClipEmbedder) -> Iterator[None]:
    cp.use(clip)
    yield
    cp.use(None)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """One file of each colour."""
    for colour in COLOURS:
        Image.new("RGB", (40, 30), colour).save(tmp_path / f"{colour}.png")
    return [str(tmp_path / f"{colour}.png") for colour in COLOURS]


@pytest.fixture
def frame(files: list[str]) -> pl.DataFrame:
    """A photo of each colour and a row without one."""
    return pl.DataFrame({"img": [*files, None], "colour": [*COLOURS, None]})


def _read(path: str | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()


KINDS: dict[str, Callable[[list[str | None]], pl.Series]] = {
    "String": lambda paths: pl.Series(paths),
    "Categorical": lambda paths: pl.Series(paths, dtype=pl.Categorical),
    "Binary": lambda paths: pl.Series([_read(path) for path in paths], dtype=pl.Binary),
    "Struct": lambda paths: pl.Series([{"bytes": _read(path), "path": path} for path in paths]),
    "Object": lambda paths: pl.Series(
        [None if path is None else Path(path) for path in paths], dtype=pl.Object
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_column(kind: str, files: list[str], clip: ClipEmbedder) -> None:
    """The column is found, its vectors are those of its images, null where there is none."""
    frame = pl.DataFrame({"n": range(5)}).with_columns(KINDS[kind]([files[0], None, *files[1:]]).alias("img"))
    result = cp.embed(frame)
    assert result.columns == ["n", "img", "embedding", "embedding_error"]
    assert result["embedding"].is_null().to_list() == [False, True, False, False, False]
    assert result["embedding_error"].null_count() == 5
    assert repr(result["embedding"].dtype) == "ClipVectors(16)"
    rows = np.stack(result["embedding"].drop_nulls().ext.storage().to_numpy())
    np.testing.assert_allclose(rows, clip.embed_images(files), atol=1e-6)
    assert cp.search(frame, "blue", 1)["n"].to_list() == [3]


def test_eager_and_lazy_agree(frame: pl.DataFrame) -> None:
    """Each verb gives the same frame now and when it is collected, by either engine, with the same schema."""
    done = frame.clip_embed.embed()  # type: ignore[attr-defined]
    verbs: list[Callable[[Any], Any]] = [
        lambda data: cp.embed(data, "img"),
        lambda data: cp.search(data, "red", 2),
        lambda data: cp.similar(data, done["embedding"][1], 2),
        lambda data: cp.classify(data, ["red", "blue"]),
        lambda data: cp.duplicates(data, 0.2),
        lambda data: cp.project(data),
    ]
    for verb in verbs:
        eager, lazy = verb(done), verb(done.lazy())
        assert isinstance(lazy, pl.LazyFrame)
        assert lazy.collect_schema() == eager.schema
        pl.testing.assert_frame_equal(lazy.collect(), eager)
        pl.testing.assert_frame_equal(lazy.collect(engine="streaming"), eager)


def test_answers(frame: pl.DataFrame) -> None:
    """Search, score, similar, classify and duplicates say what they say in pandas."""
    done = cp.embed(frame)
    best = cp.search(done, "green", 2)
    assert best["colour"][0] == "green"
    assert cp.similar(done, frame["img"][2], 1)["colour"].to_list() == ["blue"]
    assert cp.similar(done, done["embedding"][2], 1)["score"].to_list() == pytest.approx([1])
    assert cp.classify(done, ["red", "blue"])["label"].to_list()[::2] == ["red", "blue", None]
    assert cp.classify(done, ["red", "blue"])["probability"].null_count() == 1
    assert cp.classify(done, {"red": "crimson", "blue": "navy"}, other="no")["label"].dtype == pl.Enum(
        ["red", "blue", "no"]
    )
    shares = cp.probabilities(done, ["red", "blue"], multi=True)
    assert shares.columns == ["red", "blue"]
    assert shares["red"].null_count() == 1
    assert (
        shares.max_horizontal().to_list()
        == cp.classify(done, ["red", "blue"], multi=True)["probability"].to_list()
    )
    twice = pl.concat([done, done])
    assert cp.duplicates(twice, 0.999)["group"].to_list() == [0, 0, 1, 1, 2, 2, 3, 3]
    scores = cp.score(done, "red")
    assert scores.is_null().to_list() == [False] * 4 + [True]
    table = done.to_pandas()[["colour"]].assign(img=frame["img"].to_list())
    expected = clip_embed_pandas.score(table, "red")
    np.testing.assert_allclose(scores.drop_nulls().to_numpy(), expected[:4], atol=1e-6)


def test_frames_without_rows(frame: pl.DataFrame) -> None:
    """What a filter leaves can be embedded, searched and shown like any other."""
    done = cp.embed(frame).head(0)
    assert cp.embed(done).schema == done.schema
    assert "<main></main>" in cp.gallery(cp.search(done, "red"))._repr_html_()


def test_lists_that_are_no_vectors(frame: pl.DataFrame) -> None:
    """Boxes beside images or vectors are in nobody's way."""
    box = pl.Series("box", [None, *[[1.0, 2.0, 3.0, 4.0]] * 4])
    for column in (box, box.cast(pl.Array(pl.Float32, 4))):
        boxed = frame.with_columns(column)
        for data in (boxed, cp.embed(boxed)):
            assert cp.search(data, "blue", 1)["colour"].to_list() == ["blue"]


def test_expressions(frame: pl.DataFrame) -> None:
    """`pl.col(...).clip_embed` embeds and scores in any context, lazy too; Series have it as well."""
    column: Any = pl.col("img")
    lazy = frame.lazy().with_columns(vector=column.clip_embed.embed())
    vector: Any = pl.col("vector")
    result = lazy.filter(vector.clip_embed.score("red") > 0.5).collect()
    assert result["colour"].to_list() == ["red"]
    series: Any = frame["img"]
    assert series.clip_embed.embed().dtype == result["vector"].dtype
    assert series.clip_embed.score("red").len() == 5


def test_the_type_carries_the_stamp(frame: pl.DataFrame, tmp_path: Path) -> None:
    """It survives filter, sort, join, concat and Parquet; another model's is refused; frames do not mix."""
    done = cp.embed(frame)
    done.write_parquet(tmp_path / "a.parquet")
    for result in (
        done.filter(pl.col("colour") != "red"),
        done.sort("colour"),
        frame.join(done, on="img", how="left"),
        pl.concat([done, done]),
        pl.read_parquet(tmp_path / "a.parquet"),
        pl.scan_parquet(tmp_path / "a.parquet").head(3).collect(),
    ):
        assert result["embedding"].dtype == done["embedding"].dtype
        cp.score(result, "red", column="embedding")  # and so no warning
    foreign = cp.embed(frame, embedder=ClipEmbedder(FakeModel(dim=8)))
    with pytest.raises(SpaceMismatch, match="8 dimensions"):
        cp.search(foreign, "red")
    with pytest.raises(pl.exceptions.PolarsError):
        pl.concat([done, foreign])
    plain = done.with_columns(done["embedding"].ext.storage())
    with pytest.warns(UserWarning, match="nothing says which model made these vectors"):
        cp.score(plain, "red")


def test_a_reader_without_us_sees_plain_vectors(frame: pl.DataFrame, tmp_path: Path) -> None:
    """polars without clip_embed_polars, DuckDB and pandas read the file; ours finds the stamp again."""
    file = tmp_path / "a.parquet"
    cp.embed(frame).write_parquet(file)
    code = f"import polars as pl; print(len(pl.read_parquet({str(file)!r})['embedding'].to_list()[0]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.strip() == "16"
    assert len(duckdb.sql(f"SELECT embedding FROM '{file}'").fetchall()[0][0]) == 16
    loaded = clip_embed_pandas.read_parquet(file)
    assert clip_embed_pandas.search(loaded, "blue", 1)["colour"].tolist() == ["blue"]


def test_vectors_are_not_copied(frame: pl.DataFrame) -> None:
    """numpy and Arrow see the memory of the column."""
    column = cp.embed(frame.head(4))["embedding"].ext.storage()
    array: Any = column.to_arrow()
    rows = column.to_numpy(allow_copy=False)
    assert rows.ctypes.data == array.values.buffers()[1].address
    assert rows.shape == (4, 16)


def test_lengths_are_measured_once_for_the_same_memory(clip: ClipEmbedder) -> None:
    """Parts of a column are taken where they lie; a column that is replaced in place is measured anew."""
    query = clip.embed_texts(["red"])
    plain = pl.Array(pl.Float32, 16)
    one, two = (pl.DataFrame({"emb": pl.Series(query * length, dtype=plain)}) for length in (2, 3))
    table = pl.concat([one, two], rechunk=False)

    def opened() -> Any:  # noqa: ANN401
        with pytest.warns(UserWarning, match="nothing says which model"):
            vectors = to_vectors(table["emb"], clip, "it", table)
        assert vectors is not None
        assert vectors.cosines(query[0]).tolist() == pytest.approx([1] * len(table), abs=1e-5)
        return vectors.parts

    parts = opened()
    chunks = [chunk.to_arrow().values.buffers()[1].address for chunk in table["emb"].get_chunks()]
    assert [part.rows.ctypes.data for part in parts] == chunks
    assert opened() is parts
    table.replace_column(0, pl.Series("emb", np.concatenate([query * 5, query / 5]), dtype=plain))
    assert opened() is not parts


def test_failures(frame: pl.DataFrame, tmp_path: Path) -> None:
    """A failed image is null with a reason, kept in the frame or found again."""
    (tmp_path / "broken.png").write_bytes(b"no picture")
    data = pl.concat([frame, pl.DataFrame({"img": [str(tmp_path / "broken.png")], "colour": ["none"]})])
    with pytest.warns(UserWarning, match="1 of 6 images failed") as caught:
        done = cp.embed(data)
    assert caught[0].filename == __file__
    for result in (cp.failures(done), cp.failures(done.reverse()), cp.failures(data)):
        assert result.columns == ["img", "colour", "reason"]
        assert result["colour"].to_list() == ["none"]
        assert "not an image" in result["reason"][0]


def test_errors_name_the_column(frame: pl.DataFrame) -> None:
    """No, several or wrong columns; also in a lazy frame."""
    with pytest.raises(ValueError, match="there is no column 'photo'"):
        cp.embed(frame, "photo")
    with pytest.raises(ValueError, match=r"several columns hold images: 'img', 'copy'"):
        cp.embed(frame.with_columns(copy="img"))
    with pytest.raises(TypeError, match="column 'n' holds Int64, not images"):
        cp.embed(pl.DataFrame({"n": [1]}), "n")
    with pytest.raises(TypeError, match="vectors already"):
        cp.embed(cp.embed(frame), "embedding")
    with pytest.raises(ValueError, match="there is no column 'photo'"):
        cp.search(frame.lazy(), "red", column="photo").collect()


def test_empty_frames(frame: pl.DataFrame) -> None:
    """No rows in, no rows out, of the same types."""
    empty = frame.head(0)
    done = cp.embed(empty, "img")
    assert done.schema == cp.embed(frame).schema
    for result in (cp.search(done, "red"), cp.duplicates(done), cp.project(done), cp.failures(done)):
        assert len(result) == 0
    assert cp.classify(done, ["red", "blue"]).schema == cp.classify(cp.embed(frame), ["red", "blue"]).schema
    assert len(cp.embed(empty.lazy(), "img").collect(engine="streaming")) == 0


def test_pictures(frame: pl.DataFrame) -> None:
    """A gallery with scores and escaped names, and a map."""
    page = cp.gallery(cp.search(cp.embed(frame), "red"))
    assert page._repr_html_().count("data:image/jpeg") == 4
    assert "<b>0." in page._repr_html_()
    assert repr(page) == repr(page.frame)
    assert cp.plot(cp.embed(frame)).svg.count("<image ") == 4


def test_names_are_pinned() -> None:
    """`__all__` is sorted; what is a function is a method of frames too."""
    assert cp.__all__ == sorted(cp.__all__)
    namespace: Any = pl.DataFrame({"a": [1]})
    for name in cp.__all__:
        if name[0].islower() and name != "use":
            assert callable(getattr(namespace.clip_embed, name))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chosen=st.lists(st.none() | st.sampled_from(COLOURS), max_size=6))
def test_round_trips(chosen: list[str | None], tmp_path: Path) -> None:
    """Frame to Parquet to frame, DuckDB and pandas: the same vectors, null wherever there was none."""
    clip = ClipEmbedder(FakeModel(dim=4))
    paths = [None if colour is None else str(tmp_path / f"{colour}.png") for colour in chosen]
    for colour in COLOURS:
        if not (tmp_path / f"{colour}.png").exists():
            Image.new("RGB", (8, 8), colour).save(tmp_path / f"{colour}.png")
    frame = cp.embed(pl.DataFrame({"img": paths}, schema={"img": pl.String}), "img", embedder=clip)
    file = tmp_path / "frame.parquet"
    frame.write_parquet(file)
    pl.testing.assert_frame_equal(pl.read_parquet(file), frame)
    expected = frame["embedding"].to_list()
    rows = duckdb.sql(f"SELECT embedding::FLOAT[4] FROM '{file}'").fetchall()
    assert [None if row is None else list(row) for (row,) in rows] == expected
    table = clip_embed_pandas.read_parquet(file)
    assert table["embedding"].array.__arrow_array__().to_pylist() == expected
