"""Stamps, probes and adoption: vectors of another space are refused wherever their stamp reaches us."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clip_embed import ClipEmbedder, ImagePolicy, SpaceMismatch, Stamp, adopt
from clip_embed._stamp import check_stamp, probe_images
from clip_embed.arrow import embed_images, read_vectors, stamp_vectors
from clip_embed.testing import FakeModel

Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]


class Repackaged(FakeModel):
    """The same vectors under another name, turned a little where asked."""

    def __init__(self, turn: float = 0.0) -> None:
        super().__init__()
        self.space = "repackaged:1"
        self._turn = turn

    def embed_images(self, pixels: UInt8, /) -> Float32:
        """Embed, and add something of the neighbouring dimension."""
        vectors = super().embed_images(pixels)
        turned: Float32 = vectors + self._turn * np.roll(vectors, 1, axis=1)
        return turned


@pytest.fixture(scope="module")
def clip() -> ClipEmbedder:
    """An embedder without weights."""
    return ClipEmbedder(FakeModel())


@pytest.fixture(scope="module")
def files(photo: Callable[..., Image.Image], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twenty pictures, no two alike."""
    folder = tmp_path_factory.mktemp("adopt")
    paths = [folder / f"{seed:02d}.png" for seed in range(20)]
    for seed, path in enumerate(paths):
        photo(32, 24, seed).save(path)
    return paths


def column_of(clip: ClipEmbedder, files: list[Path]) -> pa.FixedSizeListArray:
    """Stamped vectors of files."""
    vectors, _ = embed_images(pa.array([str(file) for file in files]), clip)
    return stamp_vectors(vectors, clip)


def test_a_stamp_survives_text(clip: ClipEmbedder) -> None:
    """JSON keeps space, recipe, dimension and the probe to float16; 16 KB at most for d = 512."""
    stamp = clip.stamp()
    again = Stamp.from_json(stamp.to_json())
    assert (again.space, again.recipe, again.dim) == (clip.space, clip.recipe, clip.dim)
    assert again.probe.shape == (16, clip.dim)
    np.testing.assert_allclose(again.probe, stamp.probe, atol=1e-3)
    assert len(stamp.to_json()) < 16 * 2 * clip.dim * 4 / 3 + 500


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"schema": 99}', '{"schema": 1, "dim": 3}'])
def test_what_is_no_stamp(text: str) -> None:
    """Anything else is a ValueError that says so, a later version among them."""
    with pytest.raises(ValueError, match="no stamp of clip-embed, or one of a later version"):
        Stamp.from_json(text)


def test_the_probe_never_changes() -> None:
    """Its photos are the same bytes for ever: other ones would refuse every stamp that was written."""
    digest = hashlib.sha256(b"".join(probe_images())).hexdigest()
    assert digest == "a7b311f67cab06c19a003fbb2243b9da301300517e5af4bed17eba69bc1f9d74"


def test_the_same_space(clip: ClipEmbedder, files: list[Path]) -> None:
    """Stamped vectors come back as they were, null as zeros, without a warning."""
    column = pa.concat_arrays([column_of(clip, files), pa.nulls(1, column_of(clip, files).type)])
    rows, valid = read_vectors(column, clip)
    np.testing.assert_allclose(rows[:-1], clip.embed_images(files), atol=1e-6)
    assert valid.tolist() == [True] * len(files) + [False]
    assert not rows[-1].any()


def test_the_stamp_survives_parquet(clip: ClipEmbedder, files: list[Path], tmp_path: Path) -> None:
    """Written and read, sliced and concatenated, the type still carries it; without it there is a warning."""
    pq.write_table(pa.table({"v": column_of(clip, files)}), tmp_path / "v.parquet")
    column = pq.read_table(tmp_path / "v.parquet")["v"]
    parts = pa.chunked_array([*column.slice(3, 5).chunks, *column.slice(0, 2).chunks])
    rows, _ = read_vectors(parts, clip)
    np.testing.assert_allclose(rows, clip.embed_images([*files[3:8], *files[:2]]), atol=1e-6)
    other = ClipEmbedder(Repackaged(turn=0.5))
    with pytest.raises(SpaceMismatch, match=r"photos\.parquet: these vectors are of the space fake"):
        read_vectors(column, other, "photos.parquet")


def test_repackaged_weights_are_known_again(clip: ClipEmbedder, files: list[Path]) -> None:
    """Another space whose probe agrees is the same model; one that is turned a little is refused."""
    column = column_of(clip, files)
    rows, _ = read_vectors(column, ClipEmbedder(Repackaged()))
    assert len(rows) == len(files)
    for turn in (0.15, 0.5, -1.0):
        with pytest.raises(SpaceMismatch, match=r"agree to a cosine of 0\.\d+, 0\.995 are needed"):
            read_vectors(column, ClipEmbedder(Repackaged(turn)))


def test_vectors_without_a_stamp(clip: ClipEmbedder, files: list[Path]) -> None:
    """Of the right dimension they are let pass with one warning, of another one never; lists may vary."""
    vectors = clip.embed_images(files)
    plain = pa.array(list(vectors), pa.list_(pa.float64()))
    with pytest.warns(UserWarning, match="column 'emb': nothing says which model made these vectors") as told:
        rows, _ = read_vectors(plain, clip, "column 'emb'")
    assert len(told) == 1
    assert told[0].filename == __file__
    np.testing.assert_allclose(rows, vectors, atol=1e-6)
    with pytest.raises(SpaceMismatch, match="3 dimensions, those of this model"):
        read_vectors(pa.array([[1.0, 2.0, 3.0]]), clip)
    with pytest.raises(SpaceMismatch, match=r"different dimensions: \[2, 3\]"):
        read_vectors(pa.array([[1.0, 2.0, 3.0], [1.0, 2.0]]), clip)


def test_what_holds_no_vectors(clip: ClipEmbedder) -> None:
    """Another type of column, or NULL among the numbers, is a TypeError."""
    for column in (pa.array(["a.jpg"]), pa.array([[1, 2]]), pa.array([1.0])):
        with pytest.raises(TypeError, match="holds no vectors: give lists of floats"):
            read_vectors(column, clip)
    row = [None, *[1.0] * (clip.dim - 1)]
    with (
        pytest.warns(UserWarning, match="nothing says"),
        pytest.raises(TypeError, match="NULL among its numbers"),
    ):
        read_vectors(pa.array([row], pa.list_(pa.float32())), clip)


def test_an_empty_column(clip: ClipEmbedder) -> None:
    """No vectors are vectors of the right dimension."""
    rows, valid = read_vectors(stamp_vectors(embed_images(pa.array([], pa.string()), clip)[0], clip), clip)
    assert rows.shape == (0, clip.dim)
    assert valid.shape == (0,)


def test_a_trained_tower_refuses_another(tiny: ClipEmbedder, clip_folder: Path) -> None:
    """The same weights in another folder are the same space; the probe tells other weights from them."""
    check_stamp(tiny.stamp(), tiny.dim, ClipEmbedder(clip_folder, device="cpu"), "here")
    other = ClipEmbedder(FakeModel(dim=tiny.dim))
    with pytest.raises(SpaceMismatch, match="here: these vectors are of the space clip:"):
        check_stamp(tiny.stamp(), tiny.dim, other, "here")


def test_adopting_an_array(clip: ClipEmbedder, files: list[Path]) -> None:
    """Vectors of any length that prove to be this model's are stamped, in order, at unit length."""
    vectors = clip.embed_images(files)
    table = adopt(vectors.astype(np.float16) * np.float16(7), files, clip)
    assert table["image"].to_pylist() == [str(file) for file in files]
    rows, _ = read_vectors(table["vector"], ClipEmbedder(FakeModel()))
    np.testing.assert_allclose(rows, vectors, atol=2e-3)


def test_adopting_files(clip: ClipEmbedder, files: list[Path], tmp_path: Path) -> None:
    """A .npy with a list of paths, and a Parquet file with a column of each, give the same table."""
    vectors = clip.embed_images(files)
    np.save(tmp_path / "v.npy", vectors)
    (tmp_path / "files.txt").write_text("\n".join(map(str, files)) + "\n")
    first = adopt(tmp_path / "v.npy", tmp_path / "files.txt", clip)
    pq.write_table(pa.table({"p": list(map(str, files)), "e": list(vectors)}), tmp_path / "v.parquet")
    second = adopt(tmp_path / "v.parquet", "p", clip, column="e")
    assert first.equals(second)
    with pytest.raises(ValueError, match=r"has no column 'path'; it has p, e"):
        adopt(tmp_path / "v.parquet", "path", clip, column="e")


def test_what_is_not_adopted(clip: ClipEmbedder, files: list[Path], tmp_path: Path) -> None:
    """Another model, another order, another number, a NaN, or nothing to check with."""
    vectors = clip.embed_images(files)
    with pytest.raises(SpaceMismatch, match=r"another model made it, or the order is not that of the images"):
        adopt(vectors[::-1], files, clip)
    with pytest.raises(SpaceMismatch, match="another model made it"):
        adopt(vectors + 0.2 * np.roll(vectors, 1, axis=1), files, clip)
    with pytest.raises(SpaceMismatch, match="vectors of 3"):
        adopt(np.ones((len(files), 5), np.float32), files, ClipEmbedder(FakeModel(dim=3)))
    with pytest.raises(ValueError, match="20 vectors and 19 images"):
        adopt(vectors, files[1:], clip)
    broken = vectors.copy()
    broken[4, 0] = np.nan
    with pytest.raises(ValueError, match=r"vector 4 \(.*04\.png\) is not finite"):
        adopt(broken, files, clip)
    with pytest.raises(SpaceMismatch, match="none of the images could be read to check"):
        adopt(vectors, [tmp_path / file.name for file in files], clip)


def test_adopting_where_some_images_are_gone(clip: ClipEmbedder, files: list[Path], tmp_path: Path) -> None:
    """Those that are there are the proof."""
    names = [file if place % 3 else tmp_path / file.name for place, file in enumerate(files)]
    assert adopt(clip.embed_images(files), names, clip).num_rows == len(files)
    with pytest.raises(SpaceMismatch):
        adopt(clip.embed_images(files)[::-1], names, clip)


def test_a_strict_policy_has_the_same_stamp() -> None:
    """The photos of the probe are ours: limits on the user's images do not touch them."""
    strict = ClipEmbedder(FakeModel(), policy=ImagePolicy(max_bytes=100, max_pixels=100)).stamp()
    np.testing.assert_allclose(strict.probe, ClipEmbedder(FakeModel()).stamp().probe, atol=1e-6)
