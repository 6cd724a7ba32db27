"""Arrow columns of images in, columns of vectors out."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from clip_embed import ClipEmbedder, ImageSpec
from clip_embed.arrow import embed_images, encode, image_values, prepare, vector_array
from clip_embed.testing import FakeModel

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture
def files(tmp_path: Path, photo: Callable[..., Image.Image]) -> list[Path]:
    """Three image files."""
    for seed in range(3):
        photo(40, 30, seed).save(tmp_path / f"{seed}.png")
    return [tmp_path / f"{seed}.png" for seed in range(3)]


@pytest.mark.parametrize(
    "kind",
    [
        pa.binary(),
        pa.large_binary(),
        pa.binary_view(),
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int32(), pa.string()),
        STRUCT,
        pa.struct([("path", pa.string()), ("width", pa.int32())]),
    ],
    ids=str,
)
@pytest.mark.parametrize("chunked", [False, True])
def test_every_type_of_column(
    kind: pa.DataType, chunked: bool, files: list[Path], clip: ClipEmbedder
) -> None:
    """The vectors of a column are those of its images, null where it is null."""
    values: list[Any] = [None, *files, files[0]]
    if pa.types.is_struct(kind):
        rows: list[Any] = [{"path": str(path)} if path else None for path in values]
    elif kind in (pa.binary(), pa.large_binary(), pa.binary_view()):
        rows = [path.read_bytes() if path else None for path in values]
    else:
        rows = [str(path) if path else None for path in values]
    column: Any = pa.array(rows, kind)
    if chunked:
        column = pa.chunked_array([column[:2], column[2:2], column[2:]])
    vectors, errors = embed_images(column, clip)
    assert vectors.type == pa.list_(pa.float32(), 16)
    assert errors.type == pa.string()
    assert vectors.is_null().to_pylist() == [True, False, False, False, False]
    assert errors.null_count == 5
    expected = clip.embed_images([*files, files[0]])
    np.testing.assert_allclose(np.array(vectors.to_pylist()[1:]), expected, atol=1e-6)


def test_a_failed_image_is_a_null_with_its_reason(files: list[Path], clip: ClipEmbedder) -> None:
    """Exactly the failed rows have a null vector and a reason."""
    column = pa.array([b"junk", files[0].read_bytes(), b"", None, files[1].read_bytes()[:-50]])
    vectors, errors = embed_images(column, clip)
    assert vectors.is_null().to_pylist() == [True, False, True, True, True]
    reasons = errors.to_pylist()
    assert [reason is None for reason in reasons] == [False, True, False, True, False]
    assert reasons[2] == "the file is empty"
    np.testing.assert_allclose(vectors[1].as_py(), clip.embed_images([files[0]])[0], atol=1e-6)


def test_a_struct_takes_bytes_before_the_path(files: list[Path], clip: ClipEmbedder) -> None:
    """As Hugging Face's image column: bytes if there are any, else the path; neither is a null."""
    rows = [
        {"bytes": files[0].read_bytes(), "path": "elsewhere.png"},
        {"bytes": None, "path": str(files[1])},
        {"bytes": None, "path": None},
    ]
    vectors, errors = embed_images(pa.array(rows, STRUCT), clip)
    assert vectors.is_null().to_pylist() == [False, False, True]
    assert errors.null_count == 3
    np.testing.assert_allclose(np.array(vectors.to_pylist()[:2]), clip.embed_images(files[:2]), atol=1e-6)


@pytest.mark.parametrize("length", [0, 4])
def test_columns_without_images(length: int, clip: ClipEmbedder) -> None:
    """Empty columns and columns of nulls give columns of the same length and type."""
    for column in (pa.nulls(length), pa.nulls(length, pa.binary()), pa.chunked_array([], pa.string())):
        vectors, errors = embed_images(column, clip)
        assert len(vectors) == len(errors) == vectors.null_count == len(column)
        assert vectors.type == pa.list_(pa.float32(), 16)


@pytest.mark.parametrize(
    "kind", [pa.int64(), pa.float32(), pa.list_(pa.uint8()), pa.struct([("url", pa.string())])], ids=str
)
def test_columns_of_something_else_are_refused(kind: pa.DataType, clip: ClipEmbedder) -> None:
    """The TypeError names the type, before any row is looked at."""
    with pytest.raises(TypeError, match="image") as caught:
        image_values(pa.nulls(2, kind))
    assert str(kind) in str(caught.value)
    with pytest.raises(TypeError):
        embed_images(pa.nulls(0, kind), clip)


def test_vectors_survive_a_file(tmp_path: Path, clip: ClipEmbedder, files: list[Path]) -> None:
    """A column of vectors goes through Parquet and comes back with dimension, nulls and numbers."""
    import pyarrow.parquet as pq

    vectors = clip.embed_images(files)
    table = pa.table({"vector": vector_array(vectors, np.array([True, False, True]))})
    pq.write_table(table, tmp_path / "vectors.parquet")
    column = pq.read_table(io.BytesIO((tmp_path / "vectors.parquet").read_bytes()))["vector"]
    assert column.type == pa.list_(pa.float32(), 16)
    assert column.is_valid().to_pylist() == [True, False, True]
    np.testing.assert_array_equal(np.array(column.drop_null().to_pylist(), np.float32), vectors[[0, 2]])


def test_two_stages_give_the_vectors_of_one(files: list[Path], clip: ClipEmbedder) -> None:
    """`prepare`, then `encode` in another embedder: the same vectors, reasons and nulls."""
    column = pa.chunked_array([[str(files[0]), None], ["missing.png", *map(str, files[1:])]])
    pixels, errors = prepare(column, clip)
    assert pixels.type == pa.binary(32 * 32 * 3)
    vectors, later = encode(pixels, ClipEmbedder(FakeModel(), cache=None))
    expected, reasons = embed_images(column, clip)
    assert vectors.equals(expected)
    assert errors.equals(reasons)
    assert later.null_count == 5
    assert encode(pa.chunked_array([pixels.cast(pa.binary())]), clip)[0].equals(expected)
    assert [len(part) for part in prepare(pa.nulls(0), clip)] == [0, 0]


def test_pixels_of_another_size_are_refused(clip: ClipEmbedder) -> None:
    """The error names the row and what the model takes; columns of something else are a TypeError."""
    small = ClipEmbedder(FakeModel(size=8))
    pixels, _ = prepare(pa.array([None, _png()]), small)
    with pytest.raises(ValueError, match=r"row 1 has 192 bytes; .* takes uint8 \(32, 32, 3\)"):
        encode(pixels, clip)
    with pytest.raises(TypeError, match="a column of string holds no pixels"):
        encode(pa.array(["a.png"]), clip)
    with pytest.raises(TypeError, match="a column of int64 holds no images"):
        prepare(pa.array([1]), clip)


@pytest.mark.parametrize(
    "spec",
    [
        ImageSpec(40, crop=(32, 24)),
        ImageSpec((20, 30)),
        ImageSpec(16, pad=True),
        ImageSpec((16, 12), pad=True),
        ImageSpec(8, prepare=lambda image: np.zeros((6, 7, 3), np.uint8)),
    ],
    ids=["crop", "size", "square", "pad", "own"],
)
def test_the_shape_that_a_spec_states_is_that_of_its_images(spec: ImageSpec) -> None:
    """Of wide and high images, smaller and larger than the model's."""
    model = FakeModel()
    model.image_spec = spec
    clip = ClipEmbedder(model)
    for size in ((9, 30), (300, 100)):
        assert clip.prepare_image(np.zeros((*size, 3), np.uint8)).shape == (*spec.shape, 3)


def _png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    return file.getvalue()


def test_a_list_is_no_column(clip: ClipEmbedder) -> None:
    """The error says how to make one."""
    for verb in (embed_images, prepare):
        with pytest.raises(TypeError, match=r"a column of Arrow, not list: pyarrow\.array"):
            verb(cast("Any", ["a.jpg"]), clip)
