"""Run a notebook from beginning to end, and keep what it shows.

    python tools/run_notebook.py examples/notebook.ipynb

It runs in an empty folder, with its own on the import path, so that it leaves nothing beside it. What is kept
is what people see: no times, no versions, no trace of a progress bar.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbclient
import nbformat


def main(file: Path) -> None:
    """Run a notebook and write it back."""
    os.environ["PYTHONPATH"] = str(file.parent.resolve())
    notebook: Any = nbformat.read(file, 4)
    with TemporaryDirectory() as folder:
        where = {"metadata": {"path": folder}}
        nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if is_seen(output)]
    nbformat.write(notebook, file)


def is_seen(output: Any) -> bool:  # noqa: ANN401 - a node of the notebook
    """Whether people see an output: not a warning of a library, nor the place where a bar was."""
    return output.get("name") != "stderr" and output.get("data", {}).get("text/html") != ""


if __name__ == "__main__":
    main(Path(sys.argv[1]))
