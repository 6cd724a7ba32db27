"""What a store was filled from: what is refused, what is warned of, what is noted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from clip_embed import ClipEmbedder
from clip_embed.cli import main
from clip_embed.testing import FakeModel
from clip_embed_qdrant import ImageStore


@pytest.fixture
def store(tmp_path: Path, embedder: ClipEmbedder) -> Iterator[ImageStore]:
    """A store over Edge."""
    with ImageStore(tmp_path / "s.clip", embedder=embedder) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _fake_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let any name open a FakeModel."""
    monkeypatch.setattr("clip_embed._embedder.check_model", lambda _: None)
    monkeypatch.setattr("clip_embed._embedder.check_model_precision", lambda *_: None)
    monkeypatch.setattr("clip_embed._embedder.model_precision", lambda *_: "fp32")
    monkeypatch.setattr("clip_embed._embedder.open_model", lambda *_: FakeModel())


def run(*arguments: object, stdin: str | None = None) -> Result:
    """Run `clip-embed` in this process, as a program without a terminal."""
    return CliRunner().invoke(main, [str(each) for each in arguments], input=stdin)


def test_an_empty_source_is_not_the_current_folder(
    store: ImageStore, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable that is not set neither ingests the current folder nor prunes what is not in it."""
    store.ingest(pictures)
    monkeypatch.chdir(tmp_path)
    for verb in (store.ingest, store.verify, store.prune):
        with pytest.raises(ValueError, match="the source is empty: give a folder"):
            verb("")
    assert store.status().points == 8
    store.close()
    place, new = tmp_path / "s.clip", tmp_path / "new.clip"
    for command in (
        ("ingest", "", "--to", new, "--model", "fake"),
        ("verify", place, ""),
        ("prune", place, "", "--yes"),
        ("migrate", "run", place, "", "--model", "fake"),
    ):
        result = run(*command)
        assert (result.exit_code, "the source is empty" in result.stderr) == (2, True), result.output
    assert not new.exists()
