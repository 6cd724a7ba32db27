"""What the tests of hosts share: a folder of pictures by their colour, and a model that knows colours."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from clip_embed import ClipEmbedder
from clip_embed.testing import FakeModel


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder "photos" in the working folder with a red, a green and a blue picture and a broken one."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    for colour in ("red", "green", "blue"):
        Image.new("RGB", (40, 30), colour).save(folder / f"{colour}.jpg")
    (folder / "torn.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture
def clip() -> ClipEmbedder:
    """An embedder for which "red" is nearest to red pictures."""
    return ClipEmbedder(FakeModel())
