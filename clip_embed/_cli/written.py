"""Files that a command writes when its work is done, looked at before it begins."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click


class ParquetTarget(click.Path):
    """A Parquet file to be written: its name says so, and its folder takes it."""

    name = "file"

    def __init__(self) -> None:
        super().__init__(dir_okay=False, writable=True, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:  # noqa: ANN401 - as in click
        """Return it as a path; a usage error where it could not be written."""
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if path.suffix.lower() != ".parquet":
            self.fail(f"{path} is written as Parquet: give it a name that ends in .parquet", param, ctx)
        folder = path.absolute().parent
        if not folder.is_dir():
            self.fail(f"{path} cannot be written, there is no folder {folder}: make it first", param, ctx)
        if not os.access(folder, os.W_OK | os.X_OK):
            self.fail(f"{path} cannot be written, {folder} is read-only: name another folder", param, ctx)
        return path


failures_option = click.option("--failures", type=ParquetTarget(), help="Write failures as Parquet.")
