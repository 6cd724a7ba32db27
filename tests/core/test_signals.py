"""A signal ends a command in order, and where order is not to be had, it ends it all the same."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clip_embed._cli.signals import Stopped, keeping, orderly_end, plain_interrupts

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs signals that can be handled")

BEGIN = """
import os, signal, sys, time
from pathlib import Path
from clip_embed._cli.signals import Stopped, keeping, orderly_end
def hit(number=signal.SIGTERM):
    os.kill(os.getpid(), number)
    time.sleep(0.05)
try:
    with orderly_end():
"""
END = """
except Stopped as stopped:
    print("stopped", flush=True)
    sys.exit(stopped.exit_code)
"""


def run(body: str, *arguments: object) -> tuple[int, str, str]:
    """Run lines inside `orderly_end`; return exit code, stdout and stderr."""
    lines = "".join(f"        {line}\n" for line in body.strip().splitlines())
    code = [sys.executable, "-c", BEGIN + lines + END, *map(str, arguments)]
    done = subprocess.run(code, capture_output=True, text=True, timeout=60)  # noqa: S603
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("number", "code", "word"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")]
)
def test_the_first_signal_unwinds(number: str, code: int, word: str) -> None:
    """What is inside ends with `Stopped`, one line says so, and the exit code is the shell's."""
    assert run(f"hit(signal.{number})\nprint('not reached')") == (code, "stopped\n", f"clip-embed: {word}\n")


def test_further_signals_change_nothing() -> None:
    """Tidying up is not interrupted by an impatient user."""
    body = """
try:
    hit()
finally:
    hit(signal.SIGINT)
    hit()
    print("tidy", flush=True)
"""
    assert run(body) == (143, "tidy\nstopped\n", "clip-embed: terminated\n")


def test_a_swallowed_signal_ends_the_process() -> None:
    """Code that catches everything, or is stuck, does not keep the process alive."""
    body = """
while True:
    try:
        hit()
    except BaseException:
        print("swallowed", flush=True)
"""
    assert run(body) == (143, "swallowed\n", "clip-embed: terminated\n")


def test_an_error_in_place_of_the_signal() -> None:
    """A library that turns the signal into an error of its own does not change how it ends."""
    body = """
try:
    hit(signal.SIGINT)
except BaseException:
    raise RuntimeError("Query interrupted") from None
"""
    assert run(body)[0:2] == (130, "stopped\n")


def test_what_is_kept_is_kept_whole(tmp_path: Path) -> None:
    """A signal during `keeping` waits for its end, though that takes longer than the process is given."""
    body = """
with keeping():
    hit()
    time.sleep(1.5)
    Path(sys.argv[1]).write_text("whole")
time.sleep(60)
"""
    code, _, errors = run(body, tmp_path / "file")
    assert (code, errors) == (143, "clip-embed: terminated\n")
    assert (tmp_path / "file").read_text() == "whole"


def test_a_signal_while_keeping_comes_after_it() -> None:
    """It is put off, not forgotten."""
    body = """
with keeping():
    hit()
    print("kept", flush=True)
print("not reached", flush=True)
"""
    assert run(body) == (143, "kept\nstopped\n", "clip-embed: terminated\n")


def test_without_a_signal_the_handlers_are_put_back() -> None:
    """Nothing is left behind; inside `plain_interrupts` Ctrl-C is a KeyboardInterrupt."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    with orderly_end(), keeping():
        assert [signal.getsignal(number) for number in numbers] != before
        with pytest.raises(KeyboardInterrupt), plain_interrupts():
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in numbers] == before
    assert Stopped(signal.SIGTERM).exit_code == 143
