"""Stores on the command line: real commands, a real store, signals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from qdrant_wire import Fault, serve

from clip_embed import ClipEmbedder
from clip_embed._models import opening
from clip_embed.cli import main
from clip_embed.testing import FakeModel
from clip_embed_qdrant import ImageStore

FAKES = {"fake": 16, "wide": 24}


@pytest.fixture(autouse=True)
def _fake_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the names "fake" and "wide" open FakeModels of two spaces."""
    real = opening.open_model
    monkeypatch.setattr("clip_embed._embedder.check_model", lambda _: None)
    monkeypatch.setattr("clip_embed._embedder.check_model_precision", lambda *_: None)
    monkeypatch.setattr("clip_embed._embedder.model_precision", lambda *_: "fp32")
    monkeypatch.setattr(
        "clip_embed._embedder.open_model",
        lambda source, *rest: FakeModel(FAKES[source]) if source in FAKES else real(source, *rest),
    )


def run(*arguments: object, stdin: str | None = None) -> Result:
    """Run `clip-embed` in this process, as a program without a terminal."""
    return CliRunner().invoke(main, [str(each) for each in arguments], input=stdin)


def test_from_photos_to_answers(pictures: Path, tmp_path: Path) -> None:
    """Ingest, search with a filter and a gallery, status: as tables for people and JSON for programs."""
    store = tmp_path / "s.clip"
    first = run("ingest", pictures, "--to", store, "--model", "fake")
    assert first.exit_code == 0, first.output
    assert re.match(r"8 seen, 0 skipped, 8 written, 0 failed, 0 retries, ", first.stdout)
    again = run("ingest", pictures, "--to", store, "--json")
    assert json.loads(again.stdout)["stopped"] is None
    assert json.loads(again.stdout)["skipped"] == 8
    page = tmp_path / "red.html"
    found = run("search", store, "something red", "-k", "2", "--html", page)
    assert found.exit_code == 0, found.output
    assert found.stdout.splitlines()[2].endswith("red.png")
    assert page.read_text().count("<figure>") == page.read_text().count("data:image/jpeg") == 2
    wanted = json.dumps({"path": ["below/green.png"]})
    rows = json.loads(run("search", store, "red", "--filter", wanted, "--json").stdout)
    assert [(row["path"], row["payload"]["path"]) for row in rows] == [("below/green.png", "below/green.png")]
    status = json.loads(run("status", store, "--json").stdout)
    assert (status["points"], status["model"]) == (8, "fake")
    assert re.search(r"^points +8$", run("status", store).stdout, re.MULTILINE)


def test_failures_and_exit_codes(pictures: Path, tmp_path: Path) -> None:
    """1 where images failed, the first of them on stderr and all in a Parquet file; 2 for wrong usage."""
    for number in range(12):
        (pictures / f"broken{number}.jpg").write_bytes(b"no picture")
    store = tmp_path / "s.clip"
    result = run("ingest", pictures, "--to", store, "--model", "fake", "--failures", tmp_path / "f.parquet")
    assert result.exit_code == 1
    assert result.stderr.count("not an image") == 10
    assert "… and 2 more" in result.stderr
    table = pq.read_table(tmp_path / "f.parquet")
    assert (table.num_rows, table.column_names) == (12, ["key", "source", "reason", "retryable"])
    assert run("search", store, "red", "--filter", "{").exit_code == 2
    assert run("search", store, "red", "--filter", '{"a": {"$like": 1}}').exit_code == 2
    assert run("search", pictures, "red", "--filter", "{}").exit_code == 2
    assert run("ingest", pictures, "--to", store, "--shard", "1").exit_code == 2
    assert run("ingest", pictures, "--to", store, "--index", "size").exit_code == 2
    assert run("ingest", pictures, "--to", "http://127.0.0.1:1").exit_code == 2
    other = run("ingest", pictures, "--to", "s3://bucket/s.clip")
    assert (other.exit_code, "s3://bucket/s.clip is no folder" in other.stderr) == (2, True)
    missing = run("ingest", pictures / "nobody", "--to", store)
    assert (missing.exit_code, missing.stderr) == (1, f"Error: there is no {pictures / 'nobody'}\n")


def test_verify_prune_and_optimize(pictures: Path, tmp_path: Path) -> None:
    """verify says what differs by its exit code, prune asks first, optimize runs."""
    store = tmp_path / "s.clip"
    run("ingest", pictures, "--to", store, "--model", "fake", "--index", "size=integer")
    assert run("verify", store, pictures).exit_code == 0
    assert "Nothing to remove" in run("prune", store, pictures).stdout
    (pictures / "red.png").unlink()
    differs = run("verify", store, pictures)
    assert (differs.exit_code, "1 extra" in differs.stdout) == (1, True)
    assert "red.png: it is in the store, but not in the source" in differs.stderr
    assert run("prune", store, pictures, stdin="n\n").exit_code == 1
    assert "Remove 1 of 8 images" in run("prune", store, pictures, stdin="y\n").output
    assert run("verify", store, pictures).exit_code == 0
    (pictures / "blue.png").unlink()
    assert "Removed 1 images" in run("prune", store, pictures, "--yes").stdout
    assert run("optimize", store).exit_code == 0


def test_a_server_that_stops_is_exit_code_1(pictures: Path) -> None:
    """The report so far is printed, then what happened and what to do."""
    with serve() as wire:
        to = ("--to", wire.url, "--collection", "photos", "--model", "fake", "--json")
        assert run("ingest", pictures, *to).exit_code == 0
        (pictures / "red.png").touch()
        wire.faults.append(Fault("full"))
        result = run("ingest", pictures, *to)
        assert result.exit_code == 1
        assert json.loads(result.stdout)["written"] == 0
        assert "free space on the server" in result.stderr
        assert "Run it again" in result.stderr
        found = run("search", wire.url, "red", "--collection", "photos", "-k", 1, "--json", "--model", "fake")
        assert json.loads(found.stdout)[0]["path"] == "red.png"


def test_copy(pictures: Path, tmp_path: Path) -> None:
    """All goes over, a second run skips it; a refused image and a server that stops are exit code 1."""
    store = tmp_path / "s.clip"
    run("ingest", pictures, "--to", store, "--model", "fake")
    with serve() as wire:
        to = ("--to", wire.url, "--collection", "photos")
        wire.faults.append(Fault("full"))
        stopped = run("copy", store, *to, "--json")
        report = json.loads(stopped.stdout)
        assert (stopped.exit_code, report["written"]) == (1, 0)
        assert "free space on the server" in report["stopped"]
        assert "free space on the server" in stopped.stderr
        wire.faults[:] = [Fault("poison", poison="below/green.png")]
        refused = run("copy", store, *to, "--failures", tmp_path / "f.parquet")
        assert (refused.exit_code, "7 written, 1 failed" in refused.stdout) == (1, True)
        assert pq.read_table(tmp_path / "f.parquet")["key"].to_pylist() == ["below/green.png"]
        wire.faults.clear()
        last = run("copy", store, *to)
        assert (last.exit_code, "7 skipped, 1 written, 0 failed" in last.stdout) == (0, True), last.output
        found = run("search", wire.url, "green", "--collection", "photos", "-k", 1, "--json")
        assert json.loads(found.stdout)[0]["path"] == "below/green.png"
    assert run("copy", store, "--to", "http://127.0.0.1:1").exit_code == 2


def test_migrate(pictures: Path, tmp_path: Path) -> None:
    """run, compare, switch and back, drop; each says what it did, and what is to be done first."""
    store = tmp_path / "s.clip"
    run("ingest", pictures, "--to", store, "--model", "fake")
    assert "is not being migrated" in run("migrate", "compare", store).stderr
    assert run("migrate", "run", store, pictures, "--model", "fake").exit_code == 2
    Image.new("RGB", (6, 4), "pink").save(pictures / "pink.png")
    first = run("migrate", "run", store, pictures, "--model", "wide")
    assert (first.exit_code, "8 written, 1 failed" in first.stdout) == (1, True), first.output
    assert "ingest it first" in first.stderr
    (pictures / "pink.png").unlink()
    again = run("migrate", "run", store, pictures, "--json")
    assert (again.exit_code, json.loads(again.stdout)["skipped"]) == (0, 8)
    compared = run("migrate", "compare", store, "red", "-k", "3")
    assert re.match(r"[01]\.\d\d  red\noverlap@3 [01]\.\d\d on 9 queries among 8 images", compared.stdout)
    assert len(json.loads(run("migrate", "compare", store, "--json").stdout)["overlaps"]) == 8
    assert "answers with wide now" in run("migrate", "switch", store).stdout
    status = json.loads(run("status", store, "--json").stdout)
    assert (status["model"], status["beside"], status["points_beside"]) == ("wide", "fake", 8)
    assert run("migrate", "drop", store, stdin="n\n").exit_code == 1
    assert "Removed 8 vectors of fake" in run("migrate", "drop", store, "--yes").stdout
    found = run("search", store, "red", "-k", "1", "--json")
    assert json.loads(found.stdout)[0]["path"] == "red.png"
    assert "is not being migrated" in run("migrate", "switch", store).stderr


def test_link_duplicates(pictures: Path, tmp_path: Path) -> None:
    """Copies are counted, and the hit names them."""
    (pictures / "copy.png").write_bytes((pictures / "red.png").read_bytes())
    store = tmp_path / "s.clip"
    result = run("ingest", pictures, "--to", store, "--model", "fake", "--link-duplicates", "--json")
    facts = json.loads(result.stdout)
    assert (facts["written"], facts["embedded"], facts["linked"]) == (9, 8, 1)
    hit = json.loads(run("search", store, "red", "-k", 1, "--json").stdout)[0]
    assert {hit["path"], *hit["duplicates"]} == {"red.png", "copy.png"}


SLOW = """
import sys, time
from clip_embed import _embedder
from clip_embed.testing import FakeModel
class Slow(FakeModel):
    def embed_images(self, pixels):
        time.sleep(0.1)
        return super().embed_images(pixels)
_embedder.check_model = _embedder.check_model_precision = lambda *_: None
_embedder.model_precision = lambda *_: "fp32"
_embedder.open_model = lambda *_: Slow()
from clip_embed.cli import run
sys.argv = ["clip-embed", "ingest", *sys.argv[1:]]
run()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals that can be handled")
def test_sigterm_flushes_and_reports(tmp_path: Path) -> None:
    """What is embedded by then is written, the report says so, the exit code is 143, and a rerun goes on."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(600):
        Image.new("RGB", (4, 4), (number % 256, number // 256, 9)).save(folder / f"{number}.png")
    store = tmp_path / "s.clip"
    command = [sys.executable, "-c", SLOW, str(folder), "--to", str(store), "--model", "fake"]
    child = subprocess.Popen(  # noqa: S603
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"CLIP_EMBED_MODEL": "x"},
    )
    deadline = time.monotonic() + 30
    while not (store / "owner.json").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(1.5)
    child.send_signal(signal.SIGTERM)
    _, errors = child.communicate(timeout=30)
    assert child.returncode == 143, errors
    said = re.search(r"Until then: ([\d,]+) seen, 0 skipped, ([\d,]+) written", errors)
    assert said, errors
    written = int(said[2].replace(",", ""))
    with ImageStore(store, embedder=ClipEmbedder(FakeModel())) as opened:
        assert 0 < written == opened.status().points < 600
        assert opened.ingest(folder).skipped == written
