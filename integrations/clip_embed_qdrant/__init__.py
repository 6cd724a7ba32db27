"""Images in Qdrant, found by text: fill a folder, a server or a cluster, and pick up where it stopped."""

from clip_embed.errors import MissingExtra

for _library, _package in (("qdrant_client", "qdrant-client"), ("qdrant_edge", "qdrant-edge-py")):
    try:
        __import__(_library)
    except ModuleNotFoundError as error:
        if error.name != _library:
            raise
        raise MissingExtra(_package, "qdrant", "clip_embed_qdrant") from error

from clip_embed_qdrant._errors import IngestStopped, StoreError, StoreLocked
from clip_embed_qdrant._report import Failures, IngestFailure, IngestReport
from clip_embed_qdrant._search import Hit, Hits
from clip_embed_qdrant._store import ImageStore, Status
from clip_embed_qdrant._verify import Verification

__all__ = [
    "Failures",
    "Hit",
    "Hits",
    "ImageStore",
    "IngestFailure",
    "IngestReport",
    "IngestStopped",
    "Status",
    "StoreError",
    "StoreLocked",
    "Verification",
]
