"""Hostile input: each damaged image is a vector or a listed failure, and no attack gets through.

Both run in processes of their own, so that a crash is a finding; `python tests/fuzz` runs more cases.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[1] / "fuzz"

# A worker whose fast way has a fault at case 5.
BROKEN = """
import os, sys, time
sys.path.insert(0, os.environ["FUZZ"])
import worker
from clip_embed import ImageError
case, prepare, number = worker.case, worker.prepare_pixels, 0
def fifth_is_good(place, seed, files):
    global number
    number = place
    return ("jpeg", files["jpeg"]) if place == 5 else case(place, seed, files)
def faulty(*arguments, exact):
    if number == 5 and not exact:
        {fault}
    return prepare(*arguments, exact=exact)
worker.case, worker.prepare_pixels = fifth_is_good, faulty
worker.main(*map(int, sys.argv[1:4]))
"""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs pipes that select() takes")


def run(*command: str) -> str:
    """Run a script of tests/fuzz, which must end well, and return what it printed."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, *command], capture_output=True, text=True, check=False
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


def fuzz(cases: int) -> str:
    """Run so many damaged images; the seed is printed, and may be set to repeat a run."""
    seed = os.environ.get("CLIP_EMBED_FUZZ_SEED") or str(secrets.randbelow(10**6))
    return run(str(FUZZ), "--cases", str(cases), "--seed", seed)


def test_damaged_images() -> None:
    """500 of them: no crash, no hang, bounded memory, one verdict on the exact and the fast way."""
    report = fuzz(500)
    assert "cases 500:" in report
    assert "crashes 0, hangs 0, other findings 0" in report


@pytest.mark.stress
def test_very_many_damaged_images() -> None:
    """The same with 10,000."""
    assert "cases 10,000:" in fuzz(10_000)


def test_attacks() -> None:
    """Bombs, programs, ways out of the roots and into the own network: none is through (see with -s)."""
    table = run(str(FUZZ / "attacks.py"))
    assert table.count("\n") > 60
    assert "through: 0" in table


@pytest.mark.parametrize(
    ("fault", "finding"),
    [
        ("os.abort()", "crashes 1, hangs 0"),
        ("time.sleep(600)", "crashes 0, hangs 1"),
        ("raise KeyError", "crashes 1, hangs 0"),
        ("raise ImageError('no')", "case 5: exact says 'vector', fast 'no'"),
    ],
)
def test_the_fuzzer_sees_a_fault(fault: str, finding: str, tmp_path: Path) -> None:
    """A decoder that crashes, hangs, raises or disagrees with itself on one good image; the rest is run."""
    (tmp_path / "broken.py").write_text(BROKEN.format(fault=fault))
    script = [
        str(FUZZ),
        "--cases",
        "9",
        "--seed",
        "1",
        "--worker",
        str(tmp_path / "broken.py"),
        "--hang",
        "3",
    ]
    done = subprocess.run(  # noqa: S603
        [sys.executable, *script],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"FUZZ": str(FUZZ)},
    )
    assert done.returncode == 1
    assert finding in done.stdout
    assert f"cases {9 if 'ImageError' in fault else 8}:" in done.stdout
