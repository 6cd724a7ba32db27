"""jupysql: `%sql con` and `%%sql` cells in a notebook."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("sql", reason="needs jupysql")
from IPython.core.interactiveshell import InteractiveShell

pytestmark = pytest.mark.filterwarnings("default")  # jupysql and IPython warn of their own


def test_the_recipe(recipe: Callable[[str], str]) -> None:
    """A registered connection is what the magics query, in a line and in a cell."""
    shell: Any = InteractiveShell()
    shell.run_cell(recipe("jupysql")).raise_error()
    assert shell.user_ns["best"][0] == ("photos/car_red_saloon.jpg",)
    query = "SELECT clip_score(file, 'a panda') AS score FROM glob('photos/*.jpg') AS t(file) ORDER BY file"
    scores = [row[0] for row in shell.run_cell_magic("sql", "", query)]
    assert scores[1] == max(scores[:3])
    assert scores[3] is None
    shell.user_ns["con"].close()
