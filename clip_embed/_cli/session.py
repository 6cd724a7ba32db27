"""One run of `clip-embed sql`: a database, an embedder, and where the answers go."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import click

from clip_embed import ClipEmbedder
from clip_embed._cli.answers import BoxWriter, CsvWriter, JsonWriter, Writer
from clip_embed._cli.page import PageWriter
from clip_embed._cli.sql import Runner, connect
from clip_embed._cli.table import printable
from clip_embed._models.space import cache_dir
from clip_embed_duckdb import check_database, register

Form = Literal["box", "json", "csv"]
_FORMS: dict[Form, type[BoxWriter | JsonWriter | CsvWriter]] = {
    "box": BoxWriter,
    "json": JsonWriter,
    "csv": CsvWriter,
}


class Session:
    """Opens the database with the functions of clip-embed in it, and runs statements from wherever."""

    def __init__(
        self, database: Path | None, model: str, *, form: Form, page: Path | None, read_only: bool
    ) -> None:
        self._name = database.stem if database else "memory"
        self._connection = connect(database, read_only=read_only)
        self._embedder = ClipEmbedder(model, cache=cache_dir() / "vectors.cache")
        register(self._connection, self._embedder)
        for mismatch in check_database(self._connection, self._embedder):
            click.echo(printable(f"Warning: {mismatch}"), err=True)
        self._form: Form = form
        self._page = page

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def run(self, queries: Sequence[str]) -> bool:
        """Run the queries, else what the standard input says; False where a statement failed."""
        if not queries and _is_terminal():
            self._run_shell()
            return True
        answers, page = _FORMS[self._form](), self._make_page(self._page) if self._page else None
        runner = Runner(self._connection, [answers, page] if page else [answers])
        try:
            return all(runner.run(script) for script in queries or [_read_script()])
        finally:
            if page and page.write():
                click.echo(f"Page: {page.file.resolve()}", err=True)

    def _run_shell(self) -> None:
        from clip_embed._cli.shell import Shell

        writers: list[Writer] = [BoxWriter(timed=True) if self._form == "box" else _FORMS[self._form]()]
        if self._page:
            writers.append(self._make_page(self._page, latest=True))
        Shell(
            Runner(self._connection, writers), self._name, lambda file: self._make_page(file, latest=True)
        ).run()

    def _make_page(self, file: Path, *, latest: bool = False) -> PageWriter:
        return PageWriter(file, self._connection, self._embedder.policy, latest=latest)


def _is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _read_script() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise click.ClickException(f"the statements are not text: {error}") from None
