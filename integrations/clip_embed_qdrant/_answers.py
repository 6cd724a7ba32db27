"""What it means when a server does not do what it was asked: try later, send something else, or give up."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import grpc  # type: ignore[import-untyped]
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from clip_embed_qdrant._errors import Rejected, StoreError, Unreachable

T = TypeVar("T")

_Code = grpc.StatusCode
_LATER = {_Code.UNAVAILABLE, _Code.DEADLINE_EXCEEDED, _Code.ABORTED, _Code.RESOURCE_EXHAUSTED, _Code.INTERNAL,
          _Code.UNKNOWN, _Code.CANCELLED, _Code.DATA_LOSS}  # fmt: skip
_REFUSED = {_Code.INVALID_ARGUMENT, _Code.OUT_OF_RANGE}
_FULL = ("no space left", "out of disk", "disk is full", "not enough disk", "insufficient storage")
_RECORD = ("larger than max", "No point with id")
"""Of answers that are about a record, though their code says something else."""
_WAYS = {
    "auth": "check the API key, and that it may write",
    "full": "free space on the server, then run it again",
}


def ask(request: Callable[[], T], where: str) -> T:
    """Send a request; what the client raises becomes Unreachable, Rejected or StoreError."""
    try:
        return request()
    except ResourceExhaustedResponse as error:
        raise Unreachable(f"{where} asks for patience: {error}", error.retry_after_s) from error
    except grpc.RpcError as error:
        raise _from_grpc(error, where) from error
    except UnexpectedResponse as error:
        raise _from_http(error, where) from error
    except ResponseHandlingException as error:
        raise Unreachable(f"{where} does not answer: {error.source}") from error
    except QdrantException as error:  # a Retry-After that is no number of seconds
        raise Unreachable(f"{where}: {error}") from error
    except KeyError as error:  # the engine inside the client
        raise Rejected(f"{where}: no point with id {error}") from error
    except (ValueError, RuntimeError) as error:  # the same
        kind = StoreError if "not found" in str(error) or "closed" in str(error) else Rejected
        raise kind(f"{where}: {error}") from error


def is_absent(error: grpc.RpcError) -> bool:
    """Whether nobody listens where the request went."""
    return cast("grpc.Call", error).code() in (_Code.UNAVAILABLE, _Code.DEADLINE_EXCEEDED)


def _from_grpc(error: grpc.RpcError, where: str) -> StoreError:
    call = cast("grpc.Call", error)
    code, details = call.code(), call.details() or ""
    text = f"{where}: {code.name}: {details}"
    if _is_full(details):
        return StoreError(f"{text}: {_WAYS['full']}")
    if code in _REFUSED or _is_of_a_record(details):
        return Rejected(text)
    if code in _LATER:
        return Unreachable(text)
    refused = code in (_Code.UNAUTHENTICATED, _Code.PERMISSION_DENIED)
    return StoreError(f"{text}: {_WAYS['auth']}" if refused else text)


def _from_http(error: UnexpectedResponse, where: str) -> StoreError:
    code = error.status_code or 0
    details = error.content.decode("utf-8", "replace")[:300]
    text = f"{where}: {code} {error.reason_phrase}: {details}"
    if code == 507 or _is_full(details):
        return StoreError(f"{text}: {_WAYS['full']}")
    if code in (400, 413, 422) or _is_of_a_record(details):
        return Rejected(text)
    if code in (408, 429) or (code >= 500 and code != 501):
        return Unreachable(text)
    return StoreError(f"{text}: {_WAYS['auth']}" if code in (401, 403) else text)


def _is_full(details: str) -> bool:
    return any(word in details.lower() for word in _FULL)


def _is_of_a_record(details: str) -> bool:
    return any(words in details for words in _RECORD)
