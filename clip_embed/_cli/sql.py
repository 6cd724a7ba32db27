"""DuckDB on the command line: opening files and running statements."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click
import duckdb

from clip_embed._cli.answers import Writer
from clip_embed._cli.asking import ask
from clip_embed._cli.table import one_line, printable
from clip_embed_duckdb import interrupt
from clip_embed_duckdb._outcomes import Outcomes
from clip_embed_duckdb._register import find_slot

_CHANGES = {
    getattr(duckdb.StatementType, name)
    for name in ("COPY", "CREATE", "DELETE", "INSERT", "MERGE_INTO", "UPDATE")
}


def connect(database: Path | None, *, read_only: bool = False) -> duckdb.DuckDBPyConnection:
    """Open a DuckDB file, or a database in memory; the progress bar is for terminals only."""
    try:
        connection = duckdb.connect(str(database) if database else ":memory:", read_only=read_only)
    except duckdb.Error as error:
        raise click.ClickException(f"cannot open {database or 'a database in memory'}: {error}") from error
    if not sys.stdout.isatty():
        connection.execute("SET enable_progress_bar = false")
    return connection


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement of a script."""

    text: str
    number: int
    line: int
    ended: bool
    """Whether a semicolon ends it."""


def split_statements(script: str) -> list[Statement]:
    """Split a script at its semicolons, without parsing it: a statement need not be right."""
    encoded = script.encode("utf-8", "replace")
    tokens = [
        (offset, encoded[offset : offset + 1] == b";" and kind == duckdb.token_type.operator)
        for offset, kind in duckdb.tokenize(encoded.decode())
        if kind != duckdb.token_type.comment
    ]
    found: list[Statement] = []
    start: int | None = None
    for offset, ends in [*tokens, (len(encoded), True)]:
        if not ends:
            start = offset if start is None else start
        elif start is not None:
            text, line = encoded[start:offset].decode(), encoded.count(b"\n", 0, start) + 1
            found.append(Statement(text.rstrip(), len(found) + 1, line, offset < len(encoded)))
            start = None
    return found


class Runner:
    """Runs statements and hands their answers to writers."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, writers: Sequence[Writer]) -> None:
        self.connection = connection
        self.writers = writers
        self._stopped = False
        self._outcomes = Outcomes()
        if (slot := find_slot(connection)) is not None:
            slot.outcomes = self._outcomes
            if slot.state is not None and sys.stderr.isatty():
                line = f"Loading {slot.state.embedder.name} …"
                slot.state.before_loading = lambda: click.echo(line, err=True)

    def run(self, script: str) -> bool:
        """Run the statements of a script; at the first that fails, say which and why and return False.

        They run in a thread: DuckDB looks for a Ctrl-C now and then, and the functions do not hear of it
        at all, so this thread waits for it and tells them.
        """
        self._stopped = False
        with ThreadPoolExecutor(1) as thread:
            running = thread.submit(self._run, script)
            try:
                return running.result()
            except BaseException:
                if not running.done():
                    self._stopped = True
                    interrupt(self.connection)
                raise

    def _run(self, script: str) -> bool:
        statements = split_statements(script)
        for statement in statements:
            try:
                parts = self.connection.extract_statements(statement.text)
                self._outcomes.begin()
                for part in parts:
                    self._answer(part, statement.text if len(parts) == 1 else None)
                self._tell_failures()
            except (duckdb.Error, RuntimeError, KeyboardInterrupt) as error:
                if not self._stopped:
                    sys.stdout.flush()
                    where = f" in statement {statement.number}, line {statement.line}"
                    click.echo(printable(f"Error{where if len(statements) > 1 else ''}: {error}"), err=True)
                return False
        return True

    def _answer(self, statement: duckdb.Statement, text: str | None) -> None:
        started = time.perf_counter()
        columns, rows = ask(self.connection, statement, text)
        if duckdb.ExpectedResultType.QUERY_RESULT not in statement.expected_result_type or (
            statement.type in _CHANGES and [column.name for column in columns] == ["Count"]
        ):
            return
        writers = self.writers
        if statement.type == duckdb.StatementType.EXPLAIN:
            rows = plans = list(rows)
            writers = [writer for writer in writers if not writer.explain(plans)]
        for writer in writers:
            writer.begin(statement.query.strip(), columns)
        wanting = list(writers)
        for row in rows:
            if self._stopped:
                raise KeyboardInterrupt
            wanting = [writer for writer in wanting if writer.add(row)]
            if not wanting:
                break
        for writer in writers:
            writer.end(time.perf_counter() - started)
        sys.stdout.flush()

    def _tell_failures(self) -> None:
        """Say on stderr that images of the statement failed: in its answer they are only NULL."""
        if self._outcomes.first is None:
            return
        path, reason = self._outcomes.first
        failed, images = self._outcomes.failed, self._outcomes.images
        name = "a BLOB" if path is None else repr(path)
        counts = f"{failed:,} of {images:,} image{'s' * (images != 1)} failed and count as NULL"
        line = f"Warning: {counts}; the first, {name}: {reason}; clip_error(image) says why of each"
        click.echo(one_line(line), err=True)
