"""How many images of a statement failed, for a program that knows where a statement begins and ends."""

from __future__ import annotations

import threading

_REMEMBERED = 1_000_000  # images; those beyond count each time that they are asked for


class Outcomes:
    """Counts images since the last `begin`, each once however many expressions ask for it. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.begin()

    def begin(self) -> None:
        """Count from nothing."""
        with self._lock:
            self.images = self.failed = 0
            self.first: tuple[str | None, str] | None = None
            """The path of the image that failed first, None for a BLOB, and the reason."""
            self._seen = set[int]()

    def add(self, key: object, path: str | None, reason: str | None) -> None:
        """Note what became of an image, known by path or digest; the reason is None where it went well."""
        place = hash(key)
        with self._lock:
            if place in self._seen:
                return
            if len(self._seen) < _REMEMBERED:
                self._seen.add(place)
            self.images += 1
            if reason is not None:
                self.failed += 1
                self.first = self.first or (path, reason)
