"""The interactive shell of `clip-embed sql`: editing, history, completion and a few commands of its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import cast

import click
import duckdb
from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import Condition, has_focus
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.lexers import PygmentsLexer

from clip_embed._cli.answers import Writer
from clip_embed._cli.signals import plain_interrupts
from clip_embed._cli.sql import Runner, split_statements
from clip_embed._cli.table import printable
from clip_embed._models.space import cache_dir
from clip_embed.errors import ClipEmbedError

HELP = """\
A statement ends with a semicolon. Ctrl-C stops a query or drops what is typed, Ctrl-D ends the session.
Tab completes keywords, tables, columns and functions; the arrow up brings back what was typed before.

  .tables          tables and views
  .schema [NAME]   how they were made
  .html [FILE]     write each answer to FILE, with images as thumbnails; without FILE no longer
  .help            this
  .quit            the end"""
_TABLES = """
SELECT table_name AS name, count(*) AS columns FROM duckdb_columns() WHERE NOT internal
GROUP BY database_name, schema_name, table_name ORDER BY name"""
_SCHEMA = """
SELECT sql FROM (
    SELECT table_name AS name, sql FROM duckdb_tables() WHERE NOT internal
    UNION ALL SELECT view_name, sql FROM duckdb_views() WHERE NOT internal
) WHERE $1 = '' OR lower(name) = lower($1) ORDER BY name"""
_WORDS = """
SELECT word, arg_min(kind, rank) FROM (
    SELECT column_name AS word, 'column' AS kind, 0 AS rank FROM duckdb_columns() WHERE NOT internal
    UNION ALL SELECT table_name, 'table', 1 FROM duckdb_tables() WHERE NOT internal
    UNION ALL SELECT view_name, 'view', 1 FROM duckdb_views() WHERE NOT internal
    UNION ALL SELECT function_name, 'function', if(starts_with(function_name, 'clip_'), 2, 4)
              FROM duckdb_functions() WHERE regexp_full_match(function_name, '[a-z][a-z0-9_]*')
    UNION ALL SELECT keyword_name, 'keyword', 3 FROM duckdb_keywords()
) GROUP BY word ORDER BY min(rank), word"""
_TYPED = re.compile(r"\w+$")
_NEEDS_NO_QUOTES = re.compile(r"[A-Za-z_]\w*")
_INSIDE = (duckdb.token_type.string_const, duckdb.token_type.comment)


class Shell:
    """Reads statements from a terminal and runs them until Ctrl-D; an error does not end it.

    `make_page` returns what writes the answers to a file.
    """

    def __init__(self, runner: Runner, name: str, make_page: Callable[[Path], Writer]) -> None:
        self._runner = runner
        self._words = Words(runner.connection)
        self._make_page = make_page
        self._writers = list(runner.writers)
        self._prompt = PromptSession[str](
            f"{name}> ",
            prompt_continuation="...> ".rjust(len(name) + 2),
            multiline=True,  # a condition may change while a search goes on, which ends in a traceback
            key_bindings=_bind_enter(),
            lexer=PygmentsLexer(import_module("pygments.lexers.sql").PostgresLexer),
            completer=self._words,
            complete_while_typing=False,
            history=_open_history(),
            search_ignore_case=True,
        )

    def run(self) -> None:
        """Run until the session ends."""
        click.echo(f"DuckDB {duckdb.__version__} with the functions of clip-embed; .help says more.")
        while True:
            try:
                with plain_interrupts():
                    self._words.refresh()
                    if not self._take(self._prompt.prompt().strip()):
                        return
            except EOFError:
                return
            except KeyboardInterrupt:
                continue
            except (ClipEmbedError, OSError) as error:
                click.echo(f"Error: {error}", err=True)

    def _take(self, text: str) -> bool:
        """Do what was typed; False where that is the end."""
        if not text.startswith("."):
            self._run(text)
            return True
        command, _, argument = text.rstrip("; ").partition(" ")
        argument = argument.strip()
        if command in (".quit", ".exit"):
            return False
        if command == ".tables":
            self._run(_TABLES)
        elif command == ".schema":
            made = self._runner.connection.execute(_SCHEMA, [argument]).fetchall()
            for (sql,) in made:
                click.echo(printable(sql))
            if argument and not made:
                raise ClipEmbedError(f"there is no table or view called {argument}")
        elif command == ".html":
            file = Path(argument).expanduser().resolve()
            self._runner.writers = [*self._writers, self._make_page(file)] if argument else self._writers
            click.echo(f"Page: {file}" if argument else "No page.")
        elif command == ".help":
            click.echo(HELP)
        else:
            raise ClipEmbedError(f"there is no command {command}; .help lists those there are")
        return True

    def _run(self, text: str) -> None:
        try:
            self._runner.run(text)
        except KeyboardInterrupt:
            click.echo("\nInterrupted.", err=True)


class Words(Completer):
    """Completes columns, tables, views, our functions, keywords, other functions, in this order."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection
        self._words: list[tuple[str, str]] = []
        self._fresh = False

    def refresh(self) -> None:
        """Look the words up again when they are next asked for."""
        self._fresh = False

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        """Yield what the word before the cursor may become; nothing inside a string or a comment."""
        before = document.text_before_cursor
        typed = _TYPED.search(before)
        tokens = duckdb.tokenize(before)
        if typed is None or (tokens and tokens[-1][1] in _INSIDE):
            return
        start = typed[0]
        of_a_table = before[: typed.start()].endswith(".")
        for word, kind in self._lookup():
            if word.lower().startswith(start.lower()) and (not of_a_table or kind == "column"):
                if kind == "keyword" and start[0].isupper():
                    word = word.upper()
                elif not _NEEDS_NO_QUOTES.fullmatch(word):
                    word = '"' + word.replace('"', '""') + '"'
                yield Completion(word, -len(start), display_meta=kind)

    def _lookup(self) -> list[tuple[str, str]]:
        if not self._fresh:
            with suppress(duckdb.Error):  # in a transaction that failed, the old words must do
                rows = self._connection.execute(_WORDS).fetchall()
                self._words = cast("list[tuple[str, str]]", rows)
            self._fresh = True
        return self._words


def is_complete(text: str) -> bool:
    """Whether Enter ends what was typed: a semicolon is last, or it is a command of the shell, or nothing."""
    statements = split_statements(text)
    return not statements or statements[-1].ended or text.lstrip().startswith(".")


def _bind_enter() -> KeyBindings:
    """Return the binding by which Enter ends a complete statement; elsewhere it begins a line."""
    bindings = KeyBindings()
    complete = Condition(lambda: is_complete(get_app().current_buffer.text))

    @bindings.add("enter", filter=has_focus(DEFAULT_BUFFER) & complete)
    def end(event: KeyPressEvent) -> None:  # pyright: ignore[reportUnusedFunction]
        event.current_buffer.validate_and_handle()

    return bindings


def _open_history() -> History:
    """Return what was typed before, from the cache folder, which is for this user alone."""
    file = cache_dir() / "sql_history"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(0o600)
        with file.open("ab"):
            return FileHistory(str(file))
    except OSError:
        return InMemoryHistory()
