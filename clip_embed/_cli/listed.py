"""Tables of files that people write for the command line: a file and what belongs to it in each line."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

import click

from clip_embed._cli.table import one_line, shorten

if TYPE_CHECKING:
    from clip_embed._cli.folder_index import FolderIndex

_TOLD = 5  # files or columns that a message names
_LONGEST = 60  # characters of a column's name there


def read_table(table: Path, column: str, argument: str) -> list[tuple[str, str]]:
    """Return (file, column) of each line of a CSV. Raises click's error where it has no such columns."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            found = reader.fieldnames or ()
            if not {"file", column} <= set(found):
                raise click.BadParameter(
                    f"{table} needs the columns file and {column}, with a comma between them; its first line "
                    f"has {', '.join(repr(shorten(name, _LONGEST)) for name in found[:_TOLD]) or 'nothing'}",
                    param_hint=argument,
                )
            return [(row["file"] or "", row[column] or "") for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise click.BadParameter(f"{table} is no CSV in UTF-8: {error}", param_hint=argument) from error


def read_labels(table: Path, folder: Path, index: FolderIndex) -> dict[str, list[str]]:
    """Return the labels of each photo that a CSV lists, none for an empty one.

    Says on stderr which files it lists that are no photos below the folder.
    """
    labels: dict[str, list[str]] = {}
    for file, label in read_table(table, "label", "--labels"):
        labels.setdefault(Path(file).as_posix(), []).extend([label] if label else [])
    failed = {Path(failure.source).relative_to(folder).as_posix() for failure in index.failures}
    unknown = sorted(labels.keys() - set(index.paths) - failed)
    if unknown:
        names = ", ".join(map(one_line, unknown[:_TOLD])) + ", …" * (len(unknown) > _TOLD)
        click.echo(f"{len(unknown):,} files in {table} are no photos below {folder}: {names}", err=True)
    return labels
