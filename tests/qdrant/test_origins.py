"""What a store was filled from: what is refused, what is warned of, what is noted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image
from qdrant_client import QdrantClient

from clip_embed import ClipEmbedder
from clip_embed.cli import main
from clip_embed.testing import FakeModel
from clip_embed_qdrant import ImageStore, StoreError


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
    monkeypatch.setattr(
        "clip_embed._embedder.open_model",
        lambda source, *_: FakeModel() if isinstance(source, str) else source,
    )


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


def test_prune_leaves_other_prefixes_alone(store: ImageStore, pictures: Path) -> None:
    """Without its prefix a source is refused; what has none is pruned, and what others hold stays."""
    below = pictures / "below"
    store.ingest(below, prefix="a/")
    with pytest.raises(StoreError, match=r"was filled from .*below with the prefix 'a/', not ''"):
        store.prune(below)
    store.ingest(pictures)
    (pictures / "red.png").unlink()
    assert store.verify(pictures).extra == 1
    assert store.prune(pictures) == 1
    assert store.prune(below, prefix="a/") == 0
    assert store.status().points == 11


def test_prune_refuses_another_source(store: ImageStore, pictures: Path, tmp_path: Path) -> None:
    """Another folder, one in it, a table: each is named with the noted one; the argument lets it."""
    store.ingest(pictures)
    below = pictures / "below"
    for other, name in ((below, below), ([("red.png", pictures / "red.png")], "list")):
        with pytest.raises(
            StoreError, match=rf"filled from {pictures} .*this is .*{name}.*other_source=True"
        ):
            store.prune(other)
    assert store.prune(below, prefix="below/") == 0
    with pytest.raises(StoreError, match="this is"):
        store.prune(pictures, prefix="below/")
    link = tmp_path / "link"
    link.symlink_to(pictures, target_is_directory=True)
    assert store.prune(link) == 0
    assert store.status().points == 8
    assert store.prune(below, other_source=True) == 8


def test_prune_refuses_on_the_command_line(pictures: Path, tmp_path: Path) -> None:
    """--yes does not suffice, nor is anything asked before; --other-source does."""
    place, below = tmp_path / "s.clip", pictures / "below"
    run("ingest", pictures, "--to", place, "--model", "fake")
    for more in ((), ("--yes",)):
        result = run("prune", place, below, *more, stdin="y\n")
        assert result.exit_code == 1
        assert "--other-source" in result.stderr
        assert "Remove 8" not in result.output
    assert run("prune", place, below, "--other-source", "--yes").stdout == "Removed 8 images.\n"


def test_a_failed_ingest_is_not_noted(store: ImageStore, pictures: Path, tmp_path: Path) -> None:
    """Where the store is locked or nothing is written its sources stay; the first points change them."""
    store.ingest(pictures)
    noted = {"": str(pictures)}
    other = tmp_path / "other"
    other.mkdir()
    (other / "broken.png").write_bytes(b"no picture")
    with (
        pytest.warns(UserWarning, match="was filled from"),
        ImageStore(tmp_path / "s.clip", embedder=store.embedder) as second,
        pytest.raises(StoreError, match="is open in this process"),
    ):
        second.ingest(other)
    assert store.status().sources == noted
    with pytest.warns(UserWarning, match="was filled from"):
        store.ingest(other)
    assert store.status().sources == noted
    Image.new("RGB", (6, 4), "red").save(other / "red.png")
    with pytest.warns(UserWarning, match="was filled from"):
        store.ingest(other)
    assert store.status().sources == {"": str(other)}


def test_a_copy_over_other_images_is_warned_of(store: ImageStore, pictures: Path, tmp_path: Path) -> None:
    """The collection notes what was copied into it, and says where that was another source before."""
    client = QdrantClient(":memory:")
    there: dict[str, Any] = {"client": client, "collection": "all"}
    store.ingest(pictures)
    store.ingest(pictures / "below", prefix="b/")
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (6, 4), "black").save(other / "red.png")
    with closing(client), ImageStore(tmp_path / "t.clip", embedder=store.embedder) as second:
        store.copy_to(None, **there, progress=False)
        noted = {"": str(pictures), "b/": str(pictures / "below")}
        assert ImageStore(**there, embedder=store.embedder).status().sources == noted
        second.ingest(other)
        with pytest.warns(UserWarning, match=rf"all was filled from {pictures}, this is {other}"):
            second.copy_to(None, **there, progress=False)
        noted[""] = str(other)
        assert ImageStore(**there, embedder=store.embedder).status().sources == noted


def test_a_source_that_lists_nothing_is_an_error(store: ImageStore, pictures: Path, tmp_path: Path) -> None:
    """A pattern with a slip, a folder of other things: exit code 1, no store; braces are named."""
    empty, new = tmp_path / "empty", tmp_path / "new.clip"
    empty.mkdir()
    for place, hint in (
        (empty, "Is it mounted?"),
        (f"{pictures}/*.jgp", "Is it mounted?"),
        (f"{pictures}/**/*.{{jpg,png}}", "braces stand for themselves"),
    ):
        with pytest.raises(StoreError, match=re.escape(f"{place} lists no images; nothing was done")):
            store.ingest(place)
        result = run("ingest", place, "--to", new, "--model", "fake")
        assert (result.exit_code, hint in result.stderr) == (1, True), result.output
    assert not new.exists()
    store.ingest(pictures)
    with pytest.raises(StoreError, match="lists no images"):
        store.migration(ClipEmbedder(FakeModel(dim=20))).run(empty)
    assert store.status().beside is None
