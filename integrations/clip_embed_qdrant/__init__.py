"""Images in Qdrant, found by text: fill a folder, a server or a cluster, and pick up where it stopped."""

from clip_embed.errors import MissingExtra

try:
    import qdrant_client as _client  # noqa: F401  # pyright: ignore[reportUnusedImport]
    import qdrant_edge as _edge_library  # noqa: F401  # pyright: ignore[reportUnusedImport]
except ModuleNotFoundError as error:
    _package = {"qdrant_client": "qdrant-client", "qdrant_edge": "qdrant-edge-py"}.get(error.name or "")
    if _package is None:
        raise
    raise MissingExtra(_package, "qdrant", "clip_embed_qdrant") from error

from clip_embed_qdrant._errors import IngestStopped, StoreError, StoreLocked
from clip_embed_qdrant._migrate import Comparison, Migration
from clip_embed_qdrant._place import Status
from clip_embed_qdrant._report import Failures, IngestFailure, IngestReport
from clip_embed_qdrant._search import Hit, Hits
from clip_embed_qdrant._store import ImageStore
from clip_embed_qdrant._verify import Verification

__all__ = [
    "Comparison",
    "Failures",
    "Hit",
    "Hits",
    "ImageStore",
    "IngestFailure",
    "IngestReport",
    "IngestStopped",
    "Migration",
    "Status",
    "StoreError",
    "StoreLocked",
    "Verification",
]
