"""Everything that images may come from, into a real store."""

from __future__ import annotations

import io
import json
import os
import tarfile
import unicodedata
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clip_embed import ClipEmbedder
from clip_embed.testing import FakeModel
from clip_embed_qdrant import ImageStore, IngestStopped, StoreError


@pytest.fixture
def store(tmp_path: Path, embedder: ClipEmbedder) -> Iterator[ImageStore]:
    """A store over Edge."""
    with ImageStore(tmp_path / "s.clip", embedder=embedder) as opened:
        yield opened


def payloads(store: ImageStore, k: int = 50) -> dict[str, dict[str, object]]:
    """What is stored: key -> payload."""
    return {hit.key: hit.payload for hit in store.search(text="red", k=k)}


def png(colour: str) -> bytes:
    """A small picture, encoded."""
    stream = io.BytesIO()
    Image.new("RGB", (6, 4), colour).save(stream, "PNG")
    return stream.getvalue()


def test_patterns(store: ImageStore, pictures: Path) -> None:
    """Keys are relative to what stands before the first wildcard; other files are left alone."""
    (pictures / "notes.txt").write_text("no picture")
    assert store.ingest(f"{pictures}/**/*").seen == 8
    assert "below/green.png" in payloads(store)
    assert store.ingest(f"{pictures}/below/*.png", prefix="b/").seen == 4
    assert "b/green.png" in payloads(store)


def test_what_a_folder_leaves_out(store: ImageStore, pictures: Path) -> None:
    """Other files and loops of links are not followed; a link to a file is, and fails if it is gone."""
    (pictures / "notes.txt").write_text("no picture")
    (pictures / "loop").symlink_to(pictures, target_is_directory=True)
    (pictures / "linked.png").symlink_to(pictures / "red.png")
    report = store.ingest(pictures)
    assert (report.seen, report.written) == (9, 9)
    (pictures / "gone.png").symlink_to(pictures / "no such file")
    for source in (pictures, f"{pictures}/*.png"):
        assert [(each.key, each.reason) for each in store.ingest(source).failed] == [
            ("gone.png", "no such file")
        ]


def test_a_folder_that_may_not_be_read(
    store: ImageStore, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a failure of its own, prune removes nothing for it, and retry looks below it."""
    store.ingest(pictures)
    scandir = os.scandir

    def refused(path: Path) -> object:
        if Path(path).name == "below":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refused)
        report = store.ingest(pictures)
        failure = next(iter(report.failed))
        assert (failure.key, failure.reason) == ("below/", "cannot read the folder: Permission denied")
        with pytest.raises(StoreError, match="nothing was pruned"):
            store.prune(pictures)
    assert store.retry(report).seen == 4


def test_odd_names(store: ImageStore, tmp_path: Path) -> None:
    """Names that are no UTF-8 and names in another Unicode form keep apart, or say that they cannot."""
    folder = tmp_path / "odd"
    folder.mkdir()
    try:
        Path(os.fsdecode(os.fsencode(folder) + b"/odd\xff.png")).write_bytes(png("red"))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (folder / unicodedata.normalize("NFD", "é.png")).write_bytes(png("green"))
    assert store.ingest(folder).written == 2
    assert payloads(store).keys() == {"odd\\xff.png", "é.png"}
    (folder / "é.png").write_bytes(png("blue"))
    report = store.ingest(folder)
    assert (report.written, len(report.failed)) == (1, 1)
    assert "another Unicode form" in next(iter(report.failed)).reason
    assert store.ingest(folder).skipped == 2


def test_a_file_system_of_fsspec(store: ImageStore, fake: FakeModel) -> None:
    """Listed, skipped by its own etag, read only if wanted; a file that goes meanwhile is a failure."""
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for name, colour in (("a/red.png", "red"), ("a/b/green.png", "green"), ("a/notes.txt", "blue")):
        memory.pipe_file(f"/bucket/{name}", png(colour))
    assert store.ingest("memory://bucket/a").written == 2
    assert payloads(store)["b/green.png"]["path"] == "b/green.png"
    calls = len(fake.calls[0])
    assert store.ingest("memory://bucket/a").skipped == 2
    assert store.ingest("memory://bucket/a/**/*.png").skipped == 2
    assert len(fake.calls[0]) == calls
    assert store.verify("memory://bucket/a")
    assert store.ingest("memory://bucket/a", etag="sha256").written == 2
    memory.rm("/bucket", recursive=True)


def test_tables(store: ImageStore, pictures: Path, tmp_path: Path) -> None:
    """Parquet with Hugging Face structs, Arrow tables, readers and datasets, with columns as payload."""
    column = [{"bytes": png("red"), "path": None}, {"bytes": None, "path": "blue.png"}, None]
    facts = {
        "id": [1, 2, 3],
        "image": column,
        "label": ["x", "y", "z"],
        "when": [datetime(2024, 5, 1, tzinfo=UTC)] * 3,
        "tags": [["a"], [], None],
        "vector": [[0.5, 0.5]] * 3,
    }
    table = pa.table(facts)
    pq.write_table(table, pictures / "photos.parquet")
    report = store.ingest(pictures / "photos.parquet", key="id")
    assert (report.seen, report.written) == (3, 2)
    assert [(failure.key, failure.reason) for failure in report.failed] == [("3", "the image is NULL")]
    stored = payloads(store)
    assert stored["1"] == {"label": "x", "when": "2024-05-01T00:00:00+00:00", "tags": ["a"]}
    assert store.search(text="blue", k=1)[0].key == "2"
    assert store.search(text="red", where={"label": "y"})[0].key == "2"
    assert store.search(text="red", where={"when": {"$lt": "2024-06-01"}, "tags": "a"})[0].key == "1"
    only = table.select(["id", "image", "label"]).slice(0, 1)
    assert store.ingest(only, key="id").skipped == 1
    assert store.ingest(only.to_reader(), key="id").skipped == 1
    assert store.ingest(ds.dataset(only), key="id", payload=["label"]).skipped == 1
    with pytest.raises(ValueError, match=r"no column 'path'.*id, image, label"):
        store.ingest(only)
    with pytest.raises(ValueError, match="no column 'colour'"):
        store.ingest(only, key="id", payload=["colour"])


def test_duckdb_and_csv(store: ImageStore, pictures: Path) -> None:
    """A relation streams into the store; paths in a CSV are relative to it."""
    (pictures / "list.csv").write_text("path,stars\nred.png,5\nbelow/green.png,3\ngone.png,1\n")
    report = store.ingest(pictures / "list.csv", image="path")
    assert (report.written, next(iter(report.failed)).key) == (2, "gone.png")
    assert payloads(store)["red.png"] == {"stars": 5}
    duckdb = pytest.importorskip("duckdb")
    with duckdb.connect() as con:
        relation = con.sql(f"SELECT filename AS path, content AS image FROM read_blob('{pictures}/*.png')")
        assert store.ingest(relation, prefix="db/").written == 4


def test_a_key_in_a_csv_is_a_text(store: ImageStore, pictures: Path) -> None:
    """007 and 07 are two images; a column whose type changes stops it, unless it is not taken along."""
    lines = ["id,file,n", "007,red.png,1", "07,blue.png,2", *(f"{n},gone.png,3" for n in range(70_000))]
    (pictures / "list.csv").write_text("\n".join([*lines, "last,below/green.png,many"]))
    shard = {"shard": (zlib.crc32(b"last") % 5_000, 5_000)}  # the others are not there, which takes time
    with pytest.raises(IngestStopped, match="name the columns to take along by payload="):
        store.ingest(pictures / "list.csv", key="id", image="file", **shard)
    assert store.ingest(pictures / "list.csv", key="id", image="file", payload=[], **shard).written
    (pictures / "list.csv").write_text("\n".join(lines[:3]))
    assert store.ingest(pictures / "list.csv", key="id", image="file").written == 2
    assert payloads(store) == {"007": {"n": 1}, "07": {"n": 2}, "last": {}}


def test_a_key_that_comes_twice(store: ImageStore, pictures: Path) -> None:
    """The first image has it, now and in the next run; the others are failures, however far apart."""
    many = [(f"{number}", np.full((4, 4, 3), number % 256, np.uint8)) for number in range(700)]
    items = [
        ("red", pictures / "red.png"),
        *many,
        ("red", pictures / "blue.png"),
        ("5", pictures / "red.png"),
    ]
    for written in (701, 0):
        report = store.ingest(items)
        assert (report.written, report.skipped) == (written, 701 - written)
        assert [failure.key for failure in report.failed] == ["red", "5"]
    assert "another image of this source has the key 'red' too" in next(iter(report.failed)).reason
    assert store.search(text="red", k=1)[0].key == "red"


def test_several_tables(store: ImageStore, pictures: Path, tmp_path: Path) -> None:
    """A pattern of Parquet files, a range in braces; what is missing is told."""
    for number, colour in enumerate(("red", "green", "blue")):
        (tmp_path / "t" / str(number)).mkdir(parents=True)
        pq.write_table(
            pa.table({"path": [colour], "image": [png(colour)]}), tmp_path / f"t/part-{number:02}.parquet"
        )
        (tmp_path / "t" / str(number) / "x.png").write_bytes(png(colour))
        (tmp_path / "t" / str(number) / "l.csv").write_text(f"path,image\nc{number},x.png\n")
    assert store.ingest(f"{tmp_path}/t/*.parquet").written == 3
    assert store.ingest(f"{tmp_path}/t/part-{{00..01}}.parquet").skipped == 2
    assert store.ingest(f"{tmp_path}/t/**/*.csv").written == 3
    assert store.search(text="green", k=1)[0].key in ("green", "c1")
    for missing, message in (
        ("part-{02..03}.parquet", r"no .*part-03\.parquet"),
        ("x-*.tar", "nothing matches"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            store.ingest(f"{tmp_path}/t/{missing}")


def test_tables_behind_a_url(store: ImageStore, tmp_path: Path) -> None:
    """Parquet, CSV with paths beside it, tar files and a single image in a file system of fsspec."""
    memory = pytest.importorskip("fsspec").filesystem("memory")
    pq.write_table(pa.table({"path": ["a"], "image": [png("red")]}), tmp_path / "p.parquet")
    memory.put(str(tmp_path / "p.parquet"), "/tables/p.parquet")
    memory.pipe_file("/tables/l.csv", b"path,image\nb,in/green.png\ngone,in/gone.png\n")
    memory.pipe_file("/tables/in/green.png", png("green"))
    with tarfile.open(fileobj=(stream := io.BytesIO()), mode="w") as tar:
        member = tarfile.TarInfo("c.png")
        member.size = len(png("blue"))
        tar.addfile(member, io.BytesIO(png("blue")))
    memory.pipe_file("/tables/t-0.tar", stream.getvalue())
    try:
        assert store.ingest("memory://tables/*.parquet").written == 1
        report = store.ingest("memory://tables/l.csv")
        assert (report.written, [str(failure) for failure in report.failed]) == (
            1,
            ["memory:///tables/in/gone.png: no such file"],
        )
        assert store.ingest("memory://tables/t-{0..0}.tar").written == 1
        assert store.ingest("memory://tables/in/green.png").written == 1
        assert payloads(store).keys() == {"a", "b", "t-0.tar/c.png", "green.png"}
        assert store.ingest("memory://tables/l.csv").skipped == 1
        with pytest.raises(FileNotFoundError, match="there is no memory://tables/nobody"):
            store.ingest("memory://tables/nobody")
    finally:
        memory.rm("/tables", recursive=True)


def test_tar_files(store: ImageStore, tmp_path: Path) -> None:
    """Samples of webdataset: JSON, text and class beside an image are its payload; a broken one is told."""
    with tarfile.open(tmp_path / "train-0.tar.gz", "w:gz") as tar:
        for name, content in (
            ("s/000.png", png("red")),
            ("s/000.json", json.dumps({"photographer": "Ada"}).encode()),
            ("s/000.cls", b"7"),
            ("s/001.txt", b"a green thing"),
            ("s/001.png", png("green")),
            ("s/002.png", png("blue")),
            ("s/002.json", b"{broken"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    report = store.ingest(f"{tmp_path}/train-*.tar.gz")
    assert (report.written, len(report.failed)) == (2, 1)
    stored = payloads(store)
    assert stored["train-0.tar.gz/s/000.png"]["photographer"] == "Ada"
    assert stored["train-0.tar.gz/s/000.png"]["cls"] == 7
    assert stored["train-0.tar.gz/s/001.png"]["txt"] == "a green thing"
    assert store.ingest(tmp_path / "train-0.tar.gz").skipped == 2


def test_iterables(store: ImageStore, pictures: Path) -> None:
    """Pairs, triples and mappings; arrays and PIL images are known again by their pixels."""
    pixels = np.full((4, 6, 3), 200, np.uint8)
    items = [
        ("array", pixels, {"n": np.int64(3), "when": datetime(2024, 5, 1, tzinfo=UTC)}),
        ("pil", Image.new("RGB", (6, 4), "red")),
        {"path": "row", "image": png("blue"), "n": 1},
    ]
    assert store.ingest(items).written == 3
    assert payloads(store)["array"] == {"n": 3, "when": "2024-05-01T00:00:00+00:00"}
    assert store.ingest(items).skipped == 3
    used = store.ingest(iter([("gone", pictures / "gone.png")]))
    with pytest.raises(ValueError, match="used up"):
        store.retry(used)
    for wrong in ("red.png", ("a", pixels, "no payload"), ["a", pixels]):
        with pytest.raises(TypeError, match=r"item 0 is .*: give "):
            store.ingest([wrong])
    assert [failure.reason for failure in store.ingest([("", pixels), (None, pixels)]).failed] == [
        "the key is empty",
        "the key is NULL",
    ]


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ({"x": object()}, "'x' is a object"),
        ({"x": float("nan")}, "'x' is nan"),
        ({"x": {"y": 2**70}}, r"'x\.y'.*64 bits"),
        ({"_etag": 1}, "reserved"),
    ],
)
def test_a_payload_that_no_store_can_hold(store: ImageStore, payload: dict[str, object], reason: str) -> None:
    """It is the failure of that image alone, with the field named, and nothing is computed for it."""
    report = store.ingest([("bad", png("red"), payload), ("good", png("red"))])
    assert (report.written, report.embedded) == (1, 1)
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(next(iter(report.failed)).reason)


def test_what_headers_say(store: ImageStore, tmp_path: Path) -> None:
    """Size, date and camera where asked for; the place only if it is named."""
    folder = tmp_path / "exif"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "FUJIFILM", "X100V"
    exif.get_ifd(0x8769)[0x9003] = "2024:05:01 12:30:00"
    exif.get_ifd(0x8825).update({1: "S", 2: (10.0, 30.0, 0.0), 3: "E", 4: (20.0, 0.0, 36.0)})
    Image.new("RGB", (60, 40), "red").save(folder / "a.jpg", exif=exif)
    Image.new("RGB", (30, 20), "blue").save(folder / "b.png")
    store.ingest(folder, facts=["dimensions", "date", "camera"])
    stored = payloads(store)
    assert {
        "width": 60,
        "height": 40,
        "taken": "2024-05-01T12:30:00",
        "camera": "FUJIFILM X100V",
    }.items() <= (stored["a.jpg"].items())
    assert "location" not in stored["a.jpg"]
    assert stored["b.png"].keys() == {"path", "size", "width", "height"}
    (folder / "a.jpg").touch()
    store.ingest(folder, facts=["gps"])
    assert payloads(store)["a.jpg"]["location"] == pytest.approx({"lat": -10.5, "lon": 20.01})
    with pytest.raises(ValueError, match="no fact 'colour'"):
        store.ingest(folder, facts=["colour"])  # type: ignore[list-item]


def test_no_source(store: ImageStore, pictures: Path) -> None:
    """What is missing or no source is an error that says what may be given."""
    with pytest.raises(FileNotFoundError, match="there is no"):
        store.ingest(pictures / "nobody")
    with pytest.raises(TypeError, match="no source"):
        store.ingest(pictures / "red.png")
    with pytest.raises(TypeError, match="no source"):
        store.ingest(3)


def test_two_folders_in_one_store(store: ImageStore, pictures: Path, tmp_path: Path) -> None:
    """A prefix keeps pictures of the same relative path apart; without one, a warning says so."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "red.png").write_bytes(png("blue"))
    store.ingest(pictures, prefix="one/")
    store.ingest(other, prefix="two/")
    assert store.status().points == 9
    assert store.status().sources == {"one/": str(pictures), "two/": str(other)}
    assert store.verify(other, prefix="two/")
    with pytest.warns(UserWarning, match="replaces the other"):
        store.ingest(other, prefix="one/")
