"""Tables and tar files that are damaged: each is one failure, and the others get in."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from clip_embed import ClipEmbedder
from clip_embed.cli import main
from clip_embed_qdrant import ImageStore, StoreError

SHADES = range(4)


@pytest.fixture
def store(tmp_path: Path, embedder: ClipEmbedder) -> Iterator[ImageStore]:
    """A store in a folder."""
    with ImageStore(tmp_path / "s.clip", embedder=embedder) as opened:
        yield opened


def png(shade: int) -> bytes:
    """A picture of one grey."""
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, shade, shade)).save(stream, "PNG")
    return stream.getvalue()


def write_tar(path: Path, *suffixes: str) -> None:
    """Four samples, each of a picture and what else there is to be."""
    with tarfile.open(path, "w") as tar:
        for shade in SHADES:
            for suffix, content in ((".png", png(shade)), *((each, b"{}") for each in suffixes)):
                member = tarfile.TarInfo(f"{shade}{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def tars(tmp_path: Path) -> str:
    """Three tar files of four pictures; the second one breaks off in its third."""
    for number in range(3):
        write_tar(tmp_path / f"s{number}.tar")
    cut(tmp_path / "s1.tar", 2 * 1024 + 512 + 10)
    return f"{tmp_path}/s{{0..2}}.tar"


def cut(path: Path, size: int) -> None:
    """Leave only so many bytes of a file."""
    path.write_bytes(path.read_bytes()[:size])


def test_a_damaged_tar_among_others(store: ImageStore, tars: str, tmp_path: Path) -> None:
    """It is a failure by its name; a retry takes the rest once it is whole, and nothing is pruned before."""
    report = store.ingest(tars)
    (failure,) = report.failed
    assert (failure.key, failure.source, failure.retryable) == ("s1.tar", "s1.tar", True)
    assert "cannot be read further" in failure.reason
    assert "unexpected end of data" in failure.reason
    assert (report.seen, report.written) == (11, 10)
    again = store.ingest(tars)
    assert (again.skipped, len(again.failed)) == (10, 1)
    with pytest.raises(StoreError, match=r"s1\.tar: .*nothing was pruned"):
        store.prune(tars)
    assert store.verify(tars).unreadable == 1
    write_tar(tmp_path / "s1.tar")
    report = store.retry(report)
    assert (report.seen, len(report.failed)) == (4, 0)


def test_every_share_lists_a_damaged_tar(store: ImageStore, tars: str) -> None:
    """Each machine has lost what is its own in it."""
    reports = [store.ingest(tars, shard=(number, 3)) for number in range(3)]
    assert [len(report.failed) for report in reports] == [1, 1, 1]
    assert sum(report.written for report in reports) == 10


@pytest.mark.parametrize("header", ["damaged", "cut off"])
def test_a_damaged_header_is_not_the_end(store: ImageStore, tmp_path: Path, header: str) -> None:
    """What tarfile takes for the end of the file is told from it."""
    path = tmp_path / "s.tar"
    write_tar(path)
    if header == "damaged":
        content = bytearray(path.read_bytes())
        content[2048:2148] = b"x" * 100
        path.write_bytes(content)
    else:
        cut(path, 2048 + 100)
    report = store.ingest(path)
    assert [failure.key for failure in report.failed] == ["s.tar/1.png", "s.tar"]
    assert report.written == 1


def test_an_image_whose_sample_is_cut_off_waits(store: ImageStore, tmp_path: Path) -> None:
    """Without its JSON it would be stored for good in the state of the whole file."""
    path = tmp_path / "s.tar"
    write_tar(path, ".json")
    cut(path, 2048 + 1024 + 512 + 1)
    report = store.ingest(path)
    assert [failure.key for failure in report.failed] == ["s.tar/1.png", "s.tar"]
    assert all(failure.retryable for failure in report.failed)
    write_tar(path, ".json")
    assert store.retry(report).written >= 3


def test_a_damaged_table_among_others(store: ImageStore, tmp_path: Path) -> None:
    """A Parquet file that is none, and one that is damaged in the middle."""
    for number in range(4):
        rows = {"path": [f"{number}{shade}" for shade in SHADES], "image": [png(shade) for shade in SHADES]}
        pq.write_table(pa.table(rows), tmp_path / f"t{number}.parquet", row_group_size=2, compression="none")
    cut(tmp_path / "t1.parquet", 100)
    content = (tmp_path / "t2.parquet").read_bytes()
    middle = pq.read_metadata(tmp_path / "t2.parquet").row_group(1).column(0).dictionary_page_offset or 0
    (tmp_path / "t2.parquet").write_bytes(content[:middle] + b"\xff" * 20 + content[middle + 20 :])
    report = store.ingest(f"{tmp_path}/*.parquet")
    assert [failure.key for failure in report.failed] == ["t1.parquet", "t2.parquet"]
    assert report.written >= 8


def test_a_damaged_file_is_exit_code_1(tars: str, tmp_path: Path) -> None:
    """The command names it, and writes it among the failures; so with a table."""
    failures = tmp_path / "f.parquet"
    command = [
        "ingest",
        tars,
        "--to",
        f"{tmp_path}/c.clip",
        "--model",
        "offline",
        "--failures",
        str(failures),
    ]
    result = CliRunner().invoke(main, command)
    assert (result.exit_code, "10 written, 1 failed" in result.stdout) == (1, True), result.output
    assert "s1.tar: it cannot be read further" in result.stderr
    assert pq.read_table(failures)["key"].to_pylist() == ["s1.tar"]
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    command[1] = f"{tmp_path}/t.parquet"
    result = CliRunner().invoke(main, command)
    assert (result.exit_code, "t.parquet: it cannot be read" in result.stderr) == (1, True), result.output
