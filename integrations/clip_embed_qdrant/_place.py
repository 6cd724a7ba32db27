"""Where a store is and what it is of: the folder or server, what it notes, the embedder that fits."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from qdrant_client import QdrantClient

from clip_embed import ClipEmbedder, ImagePolicy, SpaceMismatch
from clip_embed._models.opening import default_model
from clip_embed._stamp import check_stamp
from clip_embed_qdrant._copy import check_same_space
from clip_embed_qdrant._edge import EdgeSink
from clip_embed_qdrant._errors import StoreError, Unstamped
from clip_embed_qdrant._filters import HasVector
from clip_embed_qdrant._origins import warn_of_other
from clip_embed_qdrant._server import ServerSink, connect
from clip_embed_qdrant._sink import IndexKind, Meta, Sink, Vectors
from clip_embed_qdrant._upload import Patience

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Address:
    """The arguments of `ImageStore` that say where it is and how it is reached."""

    location: str | Path | None
    collection: str | None
    client: QdrantClient | None
    api_key: str | None
    timeout: float
    grpc_port: int | None
    vector: str
    on_disk: bool

    def __post_init__(self) -> None:
        """Refuse what contradicts itself."""
        if (self.location is None) == (self.client is None):
            raise TypeError("give either a location (a folder or a URL) or a client")
        if self.client is not None and not isinstance(self.client, QdrantClient):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"client must be a QdrantClient, not {type(self.client).__name__}")
        if self.is_folder and ("://" in str(self.location) or str(self.location) == ":memory:"):
            raise TypeError(
                f"{self.location} is no folder: a server is http://… or https://…, a store in memory is "
                'client=QdrantClient(":memory:")'
            )
        if self.is_folder == (self.collection is not None):
            raise TypeError(
                "a server or a client needs a collection, a folder has none"
                + (f"; is {self.location} a server, http://{self.location}?" if self.is_folder else "")
            )

    @property
    def is_folder(self) -> bool:
        """Whether it is neither a server nor a client."""
        return self.client is None and not str(self.location).lower().startswith(("http://", "https://"))


@dataclass(frozen=True, slots=True)
class Status:
    """What there is to say about a store."""

    where: str
    model: str | None
    """Hub name or folder of the model; None for a model of the user's own."""
    space: str
    recipe: str
    """How the vectors of the first ingest were computed."""
    dim: int
    points: int
    indexed: int
    """Vectors in the HNSW index; the others are compared one by one."""
    segments: int | None
    bytes: int | None
    """On disk; None where a server does not say."""
    sources: Mapping[str, str]
    """Where the images came from last, by prefix of their keys."""
    beside: str | None
    """Model of the vectors beside those in use, during a migration and after it until they are dropped."""
    points_beside: int
    """How many images have such a vector."""


class Place:
    """A store that may not exist yet. Raises SpaceMismatch where it is of another space than the embedder."""

    def __init__(
        self,
        address: Address,
        given: ClipEmbedder | None,
        indexes: Mapping[str, IndexKind],
        *,
        adopt: bool,
        patience: float = 0.0,
    ) -> None:
        self.given = given
        self._vector = address.vector
        self._indexes = indexes
        self._client: QdrantClient | None = None
        self.sink: Sink
        self._meta: Meta | None
        if address.is_folder or address.collection is None:
            self.sink = EdgeSink(Path(str(address.location)))
            self._meta = self.sink.read_meta()
        else:
            contact = partial(self._contact, address, address.collection, adopt=adopt)
            self.sink, self._meta = Patience(patience).ask(contact) if patience > 0 else contact()
        self._embedder: ClipEmbedder | None = None
        if self._meta:
            self.sink.vector = self._meta.used.name
            if given is not None:
                self._embedder = self.checked(self._meta.used, given)

    @property
    def embedder(self) -> ClipEmbedder:
        """The embedder that was given, or one of the model that the store notes."""
        if self._embedder is None:
            if self._meta is None:
                self._embedder = self.given or ClipEmbedder(default_model())
            else:
                self._embedder = self.checked(self._meta.used, None)
        return self._embedder

    @property
    def loaded(self) -> ClipEmbedder | None:
        """The embedder, if one has been needed yet."""
        return self._embedder

    def checked(self, vectors: Vectors, given: ClipEmbedder | None) -> ClipEmbedder:
        """Return the embedder of vectors: the given one, or that of the model they note.

        Raises SpaceMismatch where it is of another space.
        """
        if given is None:
            if vectors.model is None:
                raise StoreError(f"{self.sink.where} was made with a model of your own: give embedder=")
            given = ClipEmbedder(vectors.model)
        try:
            check_stamp(vectors.stamp, vectors.stamp.dim, given, self.sink.where)
        except SpaceMismatch as error:
            raise SpaceMismatch(
                f"{error} To change the model of a store, open it with its own and see `migration`."
            ) from error
        return given

    @property
    def policy(self) -> ImagePolicy:
        """What may be read as an image."""
        return self.given.policy if self.given else ImagePolicy()

    def existing(self) -> Meta:
        """Return what the store notes; StoreError where there is none."""
        if self._meta is None:
            raise StoreError(f"there is no store at {self.sink.where}: `ingest` makes it")
        return self._meta

    def prepare(self, root: str | None, prefix: str) -> None:
        """Make the store where there is none, and warn where the images came from elsewhere until now."""
        self.begin(self._meta or Meta(vectors_of(self.embedder, self._vector)))
        meta = self.current()
        if root is not None:
            warn_of_other(meta.sources, self.sink.where, root, prefix)

    def begin(self, meta: Meta) -> None:
        """Make the store where there is none, and its indexes; SpaceMismatch if it is of another space."""
        if self._meta is None:
            self.sink.vector = meta.used.name
            self._meta = self._created(meta)
        check_same_space(meta, self._meta, self.sink.where)
        if self._indexes:
            self.sink.index_fields(self._indexes)

    def _created(self, meta: Meta) -> Meta:
        """Make the store and return what it notes: that of another machine, if that was faster."""
        try:
            self.sink.create(meta, meta.stamp.dim)
        except StoreError:
            made = None
            with suppress(Unstamped):
                made = self.sink.read_meta()
            if made is None:
                raise
            self.sink.vector = made.used.name
            return made
        return meta

    def note(self, meta: Meta, embedder: ClipEmbedder | None = None) -> None:
        """Replace what the store says of its vectors, and go on with those in use and their embedder."""
        self.sink.write_meta(meta)
        if meta.used.name != self.existing().used.name:
            self.sink.vector = meta.used.name
            self._embedder = embedder
        self._meta = meta

    def note_sources(self, sources: Mapping[str, str]) -> None:
        """Add to where the images come from: once they are really being written, and not before."""
        try:
            meta = self.current()
            if sources.items() <= meta.sources.items():
                return
            self._meta = replace(meta, sources={**meta.sources, **sources})
            self.sink.write_meta(self._meta)
        except StoreError as error:  # a key may be allowed to write points alone
            logger.info("%s: the origin of its images was not noted: %s", self.sink.where, error)

    def current(self) -> Meta:
        """Return what the store says now; StoreError where another process has switched its model."""
        known = self.existing()
        meta = self.sink.read_meta() or known
        if meta.used.name != known.used.name:
            raise StoreError(f"{self.sink.where} was switched to another model meanwhile: open it again")
        self._meta = meta
        return meta

    def status(self) -> Status:
        """Say what is in the store."""
        meta, facts = self.existing(), self.sink.condense()
        stamp, beside = meta.stamp, meta.beside
        return Status(
            self.sink.where,
            meta.used.model,
            stamp.space,
            stamp.recipe,
            stamp.dim,
            facts.points,
            facts.indexed,
            facts.segments,
            facts.bytes,
            meta.sources,
            (beside.model or beside.stamp.space) if beside else None,
            self.sink.count(HasVector(beside.name)) if beside else 0,
        )

    def close(self) -> None:
        """Let go of the folder or the connection; a client of the user's stays open."""
        self.sink.close()
        if self._client:
            self._client.close()

    def _contact(self, address: Address, collection: str, *, adopt: bool) -> tuple[ServerSink, Meta | None]:
        """Connect to the server and ask what the collection notes; leaves no connection where that fails."""
        client = address.client
        if client is None:
            client = self._client = connect(
                str(address.location),
                api_key=address.api_key,
                timeout=address.timeout,
                grpc_port=address.grpc_port,
            )
        where = str(address.location or "the client")
        sink = ServerSink(client, collection, vector=address.vector, on_disk=address.on_disk, where=where)
        try:
            return sink, self._read_or_adopt(sink, adopt=adopt)
        except StoreError:
            if self._client:
                self._client.close()
            raise

    def _read_or_adopt(self, sink: ServerSink, *, adopt: bool) -> Meta | None:
        try:
            return sink.read_meta()
        except Unstamped:
            if not adopt:
                raise
        if self.given is None:
            raise TypeError("adopt=True needs the embedder that the vectors are of: give embedder=")
        dim = sink.adopted_dim()
        if dim != self.given.dim:
            raise SpaceMismatch(
                f"{sink.where}: the vectors have {dim} dimensions, those of this model {self.given.dim}"
            )
        meta = Meta(vectors_of(self.given, sink.vector))
        sink.write_meta(meta)
        return meta


def vectors_of(embedder: ClipEmbedder, name: str) -> Vectors:
    """Return what is noted of an embedder's vectors."""
    return Vectors(embedder.stamp(), _model_name(embedder), name)


def _model_name(embedder: ClipEmbedder) -> str | None:
    """Return the name that opens the same model again; None for an object of the user's."""
    return None if embedder.name == type(embedder.model).__name__ else embedder.name
