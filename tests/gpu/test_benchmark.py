"""The benchmark of the GPU runs from end to end, here on a CPU with a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.mark.stress
def test_the_command_prints_its_table(tmp_path: Path) -> None:
    """Every part gives its row, none fails, wrong pixels are found, and every precision holds."""
    out = tmp_path / "gpu.json"
    command = [sys.executable, str(BENCHMARK), "--cache", str(tmp_path), "--device", "cpu", "--tiny"]
    done = subprocess.run(  # noqa: S603
        [*command, "--out", str(out), "small"], capture_output=True, text=True, check=True, timeout=600
    )
    rows = json.loads(out.read_text())["rows"]
    notes = {(row["part"], row["contender"]): str(row.get("note", "")) for row in rows}
    assert not [key for key, note in notes.items() if "failed" in note or "FAILS" in note]
    wrong = {who: note for (_, who), note in notes.items() if who.startswith("wrong")}
    assert set(wrong.values()) == {"found"}
    assert {who for part, who in notes if part == "fidelity"} == {"exact", "fp32", "bf16", *wrong}
    peers = {"sentence-transformers", "transformers"}
    alone = {"decode alone", "decode and resize alone"}
    assert {who for part, who in notes if part.startswith("small")} == {"clip-embed", *alone, *peers}
    assert "out of memory" in done.stdout


@pytest.mark.stress
def test_nothing_begins_once_the_time_is_over(tmp_path: Path) -> None:
    """Every part says that it was left out, and none has made a model or a file."""
    cache, out = tmp_path / "cache", tmp_path / "gpu.json"
    command = [sys.executable, str(BENCHMARK), "--cache", str(cache), "--device", "cpu", "--minutes", "0"]
    subprocess.run([*command, "--out", str(out)], capture_output=True, check=True, timeout=600)  # noqa: S603
    rows = json.loads(out.read_text())["rows"]
    assert {row["note"] for row in rows} == {"left out: no time"}
    assert {"files, ViT-L/14", "large, ViT-L/14", "out of memory"} <= {row["part"] for row in rows}
    assert list(cache.iterdir()) == []
