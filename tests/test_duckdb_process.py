"""What the registered functions do to a process: no crash, no noise at exit, no wrong blame."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def run(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a Python script of its own process."""
    command = [sys.executable, "-c", script, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)  # noqa: S603


_TRAPS = """
import gc, sys, duckdb, torch  # torch changes what is left at the end
from clip_embed import ClipEmbedder
from clip_embed.testing import FakeModel
from clip_embed_duckdb import register
con = duckdb.connect(sys.argv[1] + "/x.db")
{body}
print("done")
"""


@pytest.mark.parametrize(
    "body",
    [
        # the registering cursor dies: DuckDB must not call a freed function
        "cursor = con.cursor(); register(cursor, ClipEmbedder(FakeModel()))\n"
        "cursor.close(); del cursor; gc.collect()\n"
        "waste = [lambda a, b: i for i in range(5000)]\n"
        "for _ in range(50): con.execute(\"SELECT clip_score(NULL, 'red'), clip_text('red')\").fetchall()",
        # registered many times over
        "for i in range(30): register(con.cursor(), ClipEmbedder(FakeModel())); gc.collect()\n"
        "con.execute(\"SELECT clip_text('red')\").fetchall()",
        # a global connection at exit, closed and left open
        "register(con, ClipEmbedder(FakeModel())); con.execute(\"SELECT clip_image('x.png')\").fetchall()",
        "register(con, ClipEmbedder(FakeModel())); con.close()",
        # a path that is refused, a failure that is raised
        "con.execute('SET enable_external_access = false')\n"
        "register(con, ClipEmbedder(FakeModel()), on_error='raise')\n"
        "for image in (\"'/etc/hostname'\", \"'no image'::BLOB\"):\n"
        "    try: con.execute(f\"SELECT clip_score({image}, 'x')\")\n"
        "    except duckdb.InvalidInputException: pass",
        # the default connection, of which nothing but DuckDB holds a reference
        "register(duckdb.default_connection(), ClipEmbedder(FakeModel())); gc.collect()\n"
        "from PIL import Image; Image.new('RGB', (9, 9), 'red').save(sys.argv[1] + '/a.png')\n"
        "assert duckdb.sql(f\"SELECT clip_score('{sys.argv[1]}/a.png', 'red')\").fetchall()[0][0] > 0.9",
        # vectors made and searched, then no functions any more
        "from clip_embed_duckdb import check, materialize, unregister\n"
        "con.execute(\"CREATE TABLE t AS SELECT 'x.png' AS img\"); register(con, ClipEmbedder(FakeModel()))\n"
        "materialize(con, 't', 'img'); con.execute(\"FROM clip_search('t', 'emb', 'red')\").fetchall()\n"
        "check(con, 't', 'emb'); unregister(con)",
        # a connection that goes, one that others hold, a cycle, an error that is kept, an open result
        "register(con, ClipEmbedder(FakeModel())); other = con.cursor(); del con\n"
        "model = FakeModel(); model.con = other; register(other, ClipEmbedder(model)); sys.kept = other\n"
        "try: other.execute(\"SELECT clip_score(42, 'red')\").fetchall()\n"
        "except duckdb.Error as error: sys.error = error\n"
        "other.execute('SELECT range FROM range(9000)').fetchone()",
    ],
    ids=[
        *("dead cursor", "many", "open at exit", "closed at exit", "errors", "default connection"),
        *("materialized", "kept"),
    ],
)
def test_no_crash_and_no_noise_at_exit(body: str, tmp_path: Path) -> None:
    """A process of its own ends with status 0 and says nothing but its own word."""
    result = run(_TRAPS.format(body=body), tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "done\n", "")


def test_only_a_missing_duckdb_names_the_extra(tmp_path: Path) -> None:
    """Without duckdb the import names the extra; a library missing below duckdb is named itself."""
    script = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == {blocked!r}: raise ModuleNotFoundError('no ' + name, name=name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "try:\n"
        "    import clip_embed_duckdb\n"
        "except ImportError as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    assert (
        "MissingExtra clip_embed_duckdb needs duckdb" in run(script.format(blocked="duckdb"), tmp_path).stdout
    )
    below = run(script.format(blocked="_duckdb"), tmp_path).stdout
    assert below.startswith("ModuleNotFoundError no _duckdb")


def test_an_error_that_ends_the_program_is_all_that_is_told(tmp_path: Path) -> None:
    """A traceback, which holds the connection, ends with DuckDB's message, and nothing comes after it."""
    body = "register(con, ClipEmbedder(FakeModel()), on_error='raise')\ncon.execute(\"SELECT clip_text(1)\")"
    result = run(_TRAPS.format(body=body), tmp_path)
    assert result.returncode == 1
    assert "clip_text: the query must be a VARCHAR, not INTEGER" in result.stderr
    assert "leaked" not in result.stderr


def test_a_script_on_the_command_line_is_quiet(tmp_path: Path) -> None:
    """`clip-embed sql` ends without a word on stderr."""
    script = (
        "import sys; from clip_embed.cli import run\n"
        "sys.argv = ['clip-embed', 'sql', sys.argv[1] + '/x.db', '--model', 'offline', '-c', 'SELECT 42']\n"
        "run()"
    )
    result = run(script, tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
