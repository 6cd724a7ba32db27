"""The commands for what CLIP is used for, on real files with a tiny CLIP."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from clip_embed.cli import main
from clip_embed.demo import photos


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six photos in two folders, a copy of one of them, and a broken one."""
    folder = tmp_path_factory.mktemp("album")
    for place, path in enumerate(photos()[:6]):
        kind = folder / ("first" if place < 3 else "second")
        kind.mkdir(exist_ok=True)
        shutil.copy(path, kind)
    shutil.copy(photos()[0], folder / "second" / "copy.jpg")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 this is no picture")
    return folder


@pytest.fixture
def run(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """Run `clip-embed` in this process with the tiny CLIP."""
    monkeypatch.setenv("CLIP_EMBED_MODEL", str(clip_folder))

    def invoke(*arguments: object) -> Result:
        return CliRunner().invoke(main, [str(each) for each in arguments])

    return invoke


def test_similar_finds_the_photo_itself_and_its_copy(run, album: Path, tmp_path: Path) -> None:  # noqa: ANN001
    """Both come first with a score of 1, the broken photo is named, the gallery shows them."""
    page = tmp_path / "page.html"
    result = run("similar", album, photos()[0], "-k", 3, "--json", "--html", page)
    assert result.exit_code == 1
    hits = json.loads(result.stdout)
    assert {hit["path"] for hit in hits[:2]} == {f"first/{photos()[0].name}", "second/copy.jpg"}
    assert [hit["score"] for hit in hits[:2]] == pytest.approx([1, 1], abs=1e-4)
    assert "broken.jpg" in result.stderr
    assert page.read_text().count("<figure>") == 3


def test_similar_takes_texts_away_and_diversity(run, album: Path) -> None:  # noqa: ANN001
    """What is unlike comes last; diversity leaves the copy out; nothing to look for is a usage error."""
    name = photos()[0]
    away = run("similar", album, "--text", "a red car", "--unlike", name, "-k", 7, "--json")
    assert {hit["path"] for hit in json.loads(away.stdout)[-2:]} == {f"first/{name.name}", "second/copy.jpg"}
    varied = run("similar", album, name, "-k", 2, "--diversity", 0.9, "--json")
    assert sum(hit["score"] > 0.999 for hit in json.loads(varied.stdout)) == 1
    assert run("similar", album).exit_code == 2
    assert run("similar", album, "missing.jpg").exit_code == 2


def test_duplicates_lists_the_copy(run, album: Path) -> None:  # noqa: ANN001
    """One group of two files with the same content; people are told how many there are."""
    result = run("duplicates", album, "--threshold", 0.9999, "--json")
    rows = json.loads(result.stdout)
    assert [(row["group"], row["path"]) for row in rows] == [
        (1, f"first/{photos()[0].name}"),
        (1, "second/copy.jpg"),
    ]
    assert "2 of 7 photos, in 1 groups" in result.stderr
    assert run("duplicates", album, "--threshold", 2).exit_code == 2
