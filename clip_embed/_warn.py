"""Warnings that point at the line of the user's, not at one of the library's."""

from __future__ import annotations

import inspect
import warnings


def warn_caller(message: str) -> None:
    """Warn as if the nearest caller outside of clip-embed and its integrations did.

    Where another thread of the library computes, there is none, and the warning names its own line.
    """
    level, frame = 1, inspect.currentframe()
    while frame is not None and _is_ours(frame.f_globals.get("__name__", "")):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=1 if frame is None else level)


def _is_ours(module: str) -> bool:
    return module.partition(".")[0].startswith("clip_embed")
