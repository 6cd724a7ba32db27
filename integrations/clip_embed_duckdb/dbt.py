"""The functions in every model of a dbt project: a plugin of dbt-duckdb.

In profiles.yml, below the output's `plugins`::

    - module: clip_embed_duckdb.dbt
      config: {model: offline, cache: vectors.cache}

`model`, `cache` and `precision` are those of `ClipEmbedder`, `on_error` is that of `register`; all may be
left out.
"""

from __future__ import annotations

from typing import Any

import duckdb
from dbt.adapters.duckdb.plugins import (  # type: ignore[import-not-found] # pyright: ignore[reportMissingImports]
    BasePlugin,  # pyright: ignore[reportUnknownVariableType]
)

from clip_embed import ClipEmbedder
from clip_embed._models.opening import default_model
from clip_embed_duckdb._register import register

__all__ = ["Plugin"]


class Plugin(BasePlugin):  # type: ignore[misc] # pyright: ignore[reportUntypedBaseClass]
    """Registers one embedder with each connection that dbt opens, so that its weights load once."""

    def initialize(self, plugin_config: dict[str, Any]) -> None:
        """Take the configuration of the profile, in which dbt mixes the output's settings."""
        self._embedder = ClipEmbedder(
            plugin_config.get("model") or default_model(),
            precision=plugin_config.get("precision", "auto"),
            cache=plugin_config.get("cache", "memory"),
        )
        self._on_error = plugin_config.get("on_error", "null")

    def configure_connection(self, conn: duckdb.DuckDBPyConnection) -> None:
        """Add the functions to a database that was opened."""
        register(conn, self._embedder, on_error=self._on_error)

    def configure_cursor(self, cursor: duckdb.DuckDBPyConnection) -> None:
        """Add what belongs to one connection alone, as clip_search does."""
        register(cursor, self._embedder, on_error=self._on_error)
