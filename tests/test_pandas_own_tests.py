"""pandas' own tests, which ship with it, have the same outcome with the accessor as without.

`-s` prints the counts; `-m stress` takes all of pandas' tests of frames, series and copy-on-write.
"""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

TESTS = Path(pd.__file__).parent / "tests"
CLIP = [
    "frame/methods/test_clip.py",
    "series/methods/test_clip.py",
    "copy_view/test_clip.py",
    "test_register_accessor.py",
]
ALL = ["frame", "series", "copy_view", "apply", "strings", "test_register_accessor.py"]

if not (TESTS / CLIP[0]).exists():
    pytest.skip("this pandas came without its tests", allow_module_level=True)


def outcomes(names: list[str], folder: Path, *options: str, **environment: str) -> dict[str, str]:
    """Run some of pandas' tests as pandas does; the outcome of each."""
    report = folder / f"{len(options)}.xml"
    code = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    root = ["-c", str(TESTS.parent / "pyproject.toml"), f"--rootdir={TESTS.parent}"]
    done = subprocess.run(  # noqa: S603
        [*code, *root, *options, *(str(TESTS / name) for name in names)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=os.environ | environment,
    )
    assert report.exists(), done.stdout + done.stderr
    return {
        f"{case.get('classname')}::{case.get('name')}": next((each.tag for each in case), "passed")
        for case in ET.parse(report).getroot().iter("testcase")  # noqa: S314 - pytest wrote it
    }


def compare(names: list[str], folder: Path, **environment: str) -> Counter[str]:
    """Run tests without and with the accessor, print and return the counts, which must be the same."""
    without = outcomes(names, folder, **environment)
    with_accessor = outcomes(names, folder, "-p", "clip_embed_pandas", **environment)
    counts = Counter(with_accessor.values())
    before = dict(Counter(without.values()))
    print(f"pandas {pd.__version__} {environment or ''}: without {before}, with {dict(counts)}")
    changed = {
        name: (without.get(name), outcome)
        for name, outcome in with_accessor.items()
        if without.get(name) != outcome
    }
    assert not changed
    assert with_accessor.keys() == without.keys()
    return counts


def test_clip_copy_on_write_and_registration(tmp_path: Path) -> None:
    """The tests of `clip`, of its copy-on-write and of accessors: the same outcome, nothing fails."""
    counts = compare(CLIP, tmp_path)
    assert counts["passed"] > 60
    assert not counts["failure"] + counts["error"]


@pytest.mark.skipif(not pd.__version__.startswith("2."), reason="pandas 3 always copies on write")
@pytest.mark.parametrize("mode", ["0", "1", "warn"])
def test_copy_on_write_modes_of_pandas_2(mode: str, tmp_path: Path) -> None:
    """The three modes that pandas 2 has give the same outcome, warnings included."""
    compare(CLIP, tmp_path, PANDAS_COPY_ON_WRITE=mode)


@pytest.mark.stress
def test_all_of_frames_and_series(tmp_path: Path) -> None:
    """Thousands of pandas' tests have the same outcome with the accessor."""
    assert compare(ALL, tmp_path)["passed"] > 5000
