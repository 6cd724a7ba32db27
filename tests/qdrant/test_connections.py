"""How a server is reached: the key, TLS."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from qdrant_wire import serve

from clip_embed import ClipEmbedder
from clip_embed_qdrant import ImageStore, StoreError


@pytest.mark.parametrize("by_grpc", [True, False], ids=["grpc", "http"])
@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
def test_the_key_is_sent(by_grpc: bool, pictures: Path, embedder: ClipEmbedder) -> None:
    """With the right key all works, with another one or none the error says what to look at."""
    with serve(api_key="secret") as wire:
        where = {
            "location": wire.url,
            "collection": "photos",
            "grpc_port": wire.grpc_port if by_grpc else None,
        }
        with ImageStore(**where, embedder=embedder, api_key="secret") as store:
            assert store.ingest(pictures).written == 8
            assert store.search(text="red", k=1)[0].key == "red.png"
        for key in ("wrong", None):
            with pytest.raises(StoreError, match="check the API key"):
                ImageStore(**where, embedder=embedder, api_key=key)


SCRIPT = """
import sys
from clip_embed import ClipEmbedder
from clip_embed.testing import FakeModel
from clip_embed_qdrant import ImageStore
url, port, folder = sys.argv[1:]
for number in (int(port), None):
    with ImageStore(url, collection="photos", api_key="secret", grpc_port=number, timeout=5,
                    embedder=ClipEmbedder(FakeModel())) as store:
        report = store.ingest(folder)
        print(report.written, report.skipped, store.search(text="red", k=1)[0].key)
"""


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_tls(pictures: Path, tmp_path: Path) -> None:
    """gRPC and HTTP go through TLS, to a server whose certificate is trusted and to no other."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    made += ["-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=127.0.0.1"]
    subprocess.run([*made, "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)  # noqa: S603
    trusted = {"GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(certificate), "SSL_CERT_FILE": str(certificate)}
    with serve(tls=(key, certificate), api_key="secret") as wire:
        command = [sys.executable, "-c", SCRIPT, wire.url, str(wire.grpc_port), str(pictures)]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | trusted)  # noqa: S603
        assert done.stdout == "8 0 red.png\n0 8 red.png\n", done.stderr
        refused = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
        assert "CERTIFICATE_VERIFY_FAILED" in refused.stderr
