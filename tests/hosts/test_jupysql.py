"""The recipe for jupysql: `%sql con` and `%%sql` cells in a notebook."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pytest

pytest.importorskip("sql", reason="needs jupysql")
from IPython.core.interactiveshell import InteractiveShell

from clip_embed import ClipEmbedder
from clip_embed_duckdb import register

pytestmark = pytest.mark.filterwarnings("default")  # jupysql and IPython warn of their own


def test_cells(photos: Path, clip: ClipEmbedder) -> None:
    """A registered connection is what the cells query."""
    con = duckdb.connect()
    register(con, clip)
    shell: Any = InteractiveShell()
    shell.user_ns["con"] = con
    shell.run_line_magic("load_ext", "sql")
    shell.run_line_magic("sql", "con")
    query = "SELECT file, clip_score(file, 'red') AS score FROM glob('photos/*.jpg') AS t(file) ORDER BY clip_sim(file, 'red')"
    rows = shell.run_cell_magic("sql", "", query)
    assert [Path(row[0]).stem for row in rows][0] == "red"
    assert rows[-1][1] is None
