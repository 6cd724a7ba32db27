"""DuckDB on the command line: opening files and running statements."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import click
import duckdb

from clip_embed._cli.signals import plain_interrupts
from clip_embed._cli.table import format_table

_SHOWN = 100


def connect(database: Path | None) -> duckdb.DuckDBPyConnection:
    """Open a DuckDB file, or a database in memory; the progress bar is for terminals only."""
    try:
        connection = duckdb.connect(str(database) if database else ":memory:")
    except duckdb.Error as error:
        raise click.ClickException(f"cannot open {database}: {error}") from error
    if not sys.stdout.isatty():
        connection.execute("SET enable_progress_bar = false")
    return connection


def run_queries(connection: duckdb.DuckDBPyConnection, queries: Iterable[str]) -> bool:
    """Run the queries and print each answer; stops at the first that fails and returns False."""
    return all(_run(connection, query) for query in queries)


def run_session(connection: duckdb.DuckDBPyConnection) -> bool:
    """Run the statements of the standard input; on a terminal an error does not end the session."""
    if not sys.stdin.isatty():
        return _run(connection, sys.stdin.read())
    with suppress(ModuleNotFoundError):  # where there is one, it gives input() a history and editing
        import_module("readline")
    click.echo(f"DuckDB {duckdb.__version__}. End a statement with a semicolon, the session with Ctrl-D.")
    statement = ""
    while True:
        try:
            with plain_interrupts():
                statement += input("   ...> " if statement else "photos> ") + "\n"
        except EOFError:
            click.echo()
            return True
        except KeyboardInterrupt:
            click.echo()
            statement = ""
            continue
        if statement.rstrip().endswith(";"):
            with plain_interrupts():
                _run(connection, statement)
            statement = ""


def _run(connection: duckdb.DuckDBPyConnection, text: str) -> bool:
    """Run statements and print the answers; print an error and return False."""
    try:
        for statement in connection.extract_statements(text):
            _show(connection.execute(statement), statement.type)
    except (duckdb.Error, RuntimeError, KeyboardInterrupt) as error:  # Ctrl-C comes as any of them
        click.echo(f"Error: {error or 'interrupted'}", err=True)
        return False
    return True


def _show(answer: duckdb.DuckDBPyConnection, kind: duckdb.StatementType) -> None:
    """Print the first rows of an answer; nothing for a statement that has none."""
    rows = answer.fetchmany(_SHOWN)
    if kind == duckdb.StatementType.EXPLAIN:
        click.echo("\n".join(plan for _, plan in rows))
    elif rows or kind == duckdb.StatementType.SELECT:
        click.echo(format_table([column[0] for column in answer.description], rows))
    if len(rows) == _SHOWN and answer.fetchone() is not None:
        click.echo(f"… the first {_SHOWN} rows; COPY (…) TO 'answer.csv' writes all")
