"""A model hub on loopback: the part of the Hugging Face hub's protocol that downloads use, with faults."""

from __future__ import annotations

import hashlib
import json
import re
import ssl
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

_LARGE = (".safetensors", ".bin", ".h5", ".onnx", ".msgpack")


@dataclass
class Repository:
    """One model: its files, the commits that name them, and what the hub demands of a reader."""

    folders: dict[str, Path]
    """Commit (40 hex digits) -> folder with its files."""
    refs: dict[str, str]
    """Branch or tag -> commit."""
    token: str | None = None
    """Who does not send it is told that there is no such model."""
    gated: bool = False

    def folder(self, revision: str) -> tuple[str, Path] | None:
        """Return commit and folder of a branch, a tag or a commit."""
        commit = self.refs.get(revision, revision)
        return (commit, self.folders[commit]) if commit in self.folders else None


@dataclass
class Call:
    """What was asked, and how much went out in answer."""

    method: str
    path: str
    range: str | None
    token: str | None = None
    status: int = 0
    sent: int = 0

    def __str__(self) -> str:
        asked = f"  Range: {self.range}" if self.range else ""
        return f"{self.status} {self.method:4} {self.path}{asked}  {self.sent:,} bytes"


@dataclass
class Faults:
    """How the hub misbehaves."""

    break_after: int | None = None
    """Large files end after so many bytes, the connection with them."""
    stall_after: int | None = None
    """Large files stop after so many bytes, the connection stays."""
    hang: bool = False
    """Requests are read and never answered."""
    login_page: bool = False
    """Every request gets 200 and a page of HTML."""
    status: int | None = None
    """Every request gets this status."""
    damage: bool = False
    """Large files arrive with other bytes."""
    redirect: bool = False
    """Large files come from another host, as the hub's own do; not a fault, but not every mirror's way."""
    no_range: bool = False
    """Ranges are ignored, as some mirrors do."""


@dataclass
class Hub:
    """The server: repositories by name, faults to inject, and the calls that were made."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    faults: Faults = field(default_factory=Faults)
    calls: list[Call] = field(default_factory=list)
    url: str = ""

    def start(self, tls: ssl.SSLContext | None = None) -> ThreadingHTTPServer:
        """Serve on a free port of loopback, in a thread."""
        hub = self

        class Handler(_Handler):
            served = hub

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return server

    def transcript(self) -> str:
        """Every call in order, and the sum."""
        total = sum(call.sent for call in self.calls)
        lines = [str(call) for call in self.calls]
        return "\n".join([*lines, f"{len(self.calls)} calls, {total:,} bytes served"])

    def fetched(self) -> set[str]:
        """The names of the files whose content was asked for."""
        found = (re.search(r"/resolve/[^/]+/(.+)", call.path) for call in self.calls if call.method == "GET")
        return {match[1] for match in found if match}


class _Handler(BaseHTTPRequestHandler):
    """Answers like the hub: /api/models/…, /NAME/resolve/REVISION/FILE."""

    served: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing on stderr."""

    def do_HEAD(self) -> None:
        """Like GET, without the content."""
        self.do_GET()

    def do_GET(self) -> None:
        """Misbehave as told, else answer."""
        path = unquote(urlsplit(self.path).path)
        self.call = Call(self.command, path, self.headers.get("Range"), self.headers.get("Authorization"))
        self.served.calls.append(self.call)
        faults = self.served.faults
        if faults.hang:
            time.sleep(60)
        elif faults.status is not None:
            self._send(faults.status, b"no")
        elif faults.login_page:
            self._send(200, b"<html><body>Please log in</body></html>", {"Content-Type": "text/html"})
        elif path.startswith("/cdn/"):
            commit, _, name = path.removeprefix("/cdn/").partition("/")
            folder = next(
                each.folders[commit] for each in self.served.repositories.values() if commit in each.folders
            )
            self._content((folder / name).read_bytes(), {}, large=True)
        elif (match := re.fullmatch(r"/api/models/(.+?)(?:/(revision|tree)/(.+))?", path)) is not None:
            self._api(match[1], match[2], match[3] or "main")
        elif (match := re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path)) is not None:
            self._resolve(match[1], match[2], match[3])
        else:
            self._error(404, "EntryNotFound")

    def _find(self, name: str, revision: str) -> tuple[str, Path] | None:
        """Return commit and folder, or answer as the hub does where there is none."""
        repository = self.served.repositories.get(name)
        known = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if repository is None or (repository.token and not repository.gated and known != repository.token):
            self._error(401, "RepoNotFound")
        elif repository.gated and known != repository.token:
            self._error(403 if known else 401, "GatedRepo")
        elif (found := repository.folder(revision)) is None:
            self._error(404, "RevisionNotFound")
        else:
            return found
        return None

    def _api(self, name: str, verb: str | None, revision: str) -> None:
        found = self._find(name, revision.removesuffix("/"))
        if found is None:
            return
        commit, folder = found
        files = [_describe(file, folder) for file in sorted(folder.rglob("*")) if file.is_file()]
        if verb == "tree":
            self._json(
                [
                    {"type": "file", "path": each["rfilename"], "oid": each["blobId"], "size": each["size"]}
                    | ({"lfs": {**each["lfs"], "oid": each["lfs"]["sha256"]}} if "lfs" in each else {})
                    for each in files
                ]
            )
        else:
            self._json({"id": name, "modelId": name, "sha": commit, "private": False, "siblings": files})

    def _resolve(self, name: str, revision: str, path: str) -> None:
        found = self._find(name, revision)
        if found is None:
            return
        commit, folder = found
        file = folder / path
        if not file.is_file():
            self._error(404, "EntryNotFound")
            return
        content = file.read_bytes()
        described = _describe(file, folder)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{described["blobId"]}"', "Accept-Ranges": "bytes"}
        if "lfs" in described:
            headers |= {
                "X-Linked-Etag": f'"{described["lfs"]["sha256"]}"',
                "X-Linked-Size": str(len(content)),
            }
        if "lfs" in described and self.served.faults.redirect:
            port = urlsplit(self.served.url).port
            headers["Location"] = f"http://localhost:{port}/cdn/{commit}/{path}"
            self._send(302, b"", headers)
        else:
            self._content(content, headers, large="lfs" in described)

    def _content(self, content: bytes, headers: dict[str, str], *, large: bool) -> None:
        """Send a file or the range of it that was asked for."""
        if self.served.faults.damage and large:
            content = bytes(len(content))
        asked = re.fullmatch(r"bytes=(\d+)-", self.call.range or "")
        if asked and not self.served.faults.no_range:
            start = int(asked[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self._send(206, content[start:], headers, large=large)
        else:
            self._send(200, content, headers, large=large)

    def _error(self, status: int, code: str) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": code})

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(
        self, status: int, content: bytes, headers: dict[str, str] | None = None, *, large: bool = False
    ) -> None:
        self.call.status = status
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        faults = self.served.faults
        limit = (faults.break_after or faults.stall_after) if large else None
        self.wfile.write(content[:limit])
        self.call.sent = len(content[:limit])
        if limit is not None and limit < len(content):
            self.close_connection = True
            if faults.stall_after is not None:
                time.sleep(60)


def _describe(file: Path, folder: Path) -> dict[str, object]:
    """Describe a file as the hub's API does: large ones are kept by Git LFS under their SHA-256."""
    content = file.read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    described: dict[str, object] = {
        "rfilename": file.relative_to(folder).as_posix(),
        "size": len(content),
        "blobId": blob,
    }
    if file.suffix in _LARGE or file.name == "tokenizer.json":
        digest = hashlib.sha256(content).hexdigest()
        described["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
    return described
