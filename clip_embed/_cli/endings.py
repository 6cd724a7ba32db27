"""What the commands have in common at their edges: warnings as lines, and an output that nobody reads."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import NoReturn, TextIO

import click

from clip_embed._cli.table import one_line

_CLOSED_PIPE = 141  # 128 + SIGPIPE, what the shell says of cat and of others


@contextmanager
def plain_warnings() -> Generator[None]:
    """Show each warning for the user as a line, without the place in a source file that raised it."""
    shown = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, UserWarning) and file is None:
            click.echo(one_line(f"Warning: {message}"), err=True)
        else:
            shown(message, category, filename, lineno, file, line)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = shown


def leave_closed_pipe() -> NoReturn:
    """End quietly where the reader of the output has left, as in `clip-embed … | head -3`."""
    with suppress(OSError, ValueError):  # else the interpreter's own flush at exit would complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(_CLOSED_PIPE)
