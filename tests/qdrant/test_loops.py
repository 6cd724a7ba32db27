"""Links that lead back: each picture comes once along a loop."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from clip_embed import ClipEmbedder
from clip_embed_qdrant import ImageStore


@pytest.mark.parametrize("pattern", ["**/*.png", "**", "**/*", "**/below/*.png"])
def test_a_loop_is_gone_through_once(
    pictures: Path, tmp_path: Path, embedder: ClipEmbedder, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two links to folders above make no copies, by an absolute and a relative pattern."""
    for name in ("up", "again"):
        (pictures / "below" / name).symlink_to("..", target_is_directory=True)
    expected = 4 if "below" in pattern else 8
    monkeypatch.chdir(tmp_path)
    with ImageStore(tmp_path / "s.clip", embedder=embedder) as store:
        assert store.ingest(f"{pictures}/{pattern}").written == expected
        assert store.ingest(f"pictures/{pattern}").skipped == expected


def test_a_link_elsewhere_is_followed(pictures: Path, tmp_path: Path, embedder: ClipEmbedder) -> None:
    """What is not a loop is in, and hidden folders are not; odd names are no patterns."""
    shutil.copytree(pictures / "below", tmp_path / "other")
    (pictures / "[x]").symlink_to(tmp_path / "other", target_is_directory=True)
    shutil.copytree(pictures / "below", pictures / ".hidden")
    with ImageStore(tmp_path / "s.clip", embedder=embedder) as store:
        assert store.ingest(f"{pictures}/**/*.png").written == 12
