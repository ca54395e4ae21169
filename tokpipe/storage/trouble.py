"""What an exception of a store means, decided by type, status and error code, never by its text.

The same answer arrives in different clothes: a refused exclusive create is ``FileExistsError``
when the error body names the condition, and ``OSError(EINVAL)`` when it does not (SeaweedFS,
Ceph). The HTTP answer stands in the exception's chain of causes, so that is where to look.
"""

from __future__ import annotations

import asyncio
import errno
import functools
from collections.abc import Iterator
from enum import Enum

from tokpipe.errors import TokpipeError


class Trouble(Enum):
    """Kinds of failure that a caller treats differently."""

    TRANSIENT = "transient"
    NOT_FOUND = "not found"
    DENIED = "denied"
    CREDENTIALS = "credentials"
    """The store does not know the caller at all: every object would be refused."""
    EXISTS = "exists"
    """An exclusive create was refused."""
    BAD_RANGE = "bad range"
    """The range asked for starts at or beyond the object's end."""
    PERMANENT = "permanent"
    """The store will not do this, however often it is asked."""
    FOREIGN = "foreign"
    """No store's error: a bug, to be raised as it is."""


_TRANSIENT_CODES = frozenset(
    {
        "BadDigest",
        "ConditionalRequestConflict",  # two creates met: AWS asks to try again
        "IncompleteBody",
        "InternalError",
        "NoSuchUpload",  # the multipart upload is gone, so start another
        "OperationAborted",
        "RequestTimeout",  # comes with status 400
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "XAmzContentSHA256Mismatch",
    }
)
_CREDENTIAL_CODES = frozenset(
    {
        "AccountProblem",
        "AuthorizationHeaderMalformed",
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidSecurity",
        "InvalidToken",
        "MissingSecurityHeader",
        "NotSignedUp",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
    }
)
_PERMANENT_ERRNOS = frozenset(
    {
        errno.EDQUOT,
        errno.EFBIG,
        errno.EINVAL,
        errno.EISDIR,
        errno.ELOOP,
        errno.EMLINK,
        errno.ENAMETOOLONG,
        errno.ENODEV,
        errno.ENOSPC,
        errno.ENOSYS,
        errno.ENOTEMPTY,
        errno.ENXIO,
        errno.EOPNOTSUPP,
        errno.EROFS,
        errno.EXDEV,
    }
)


def classify(error: BaseException) -> Trouble:
    """Say what ``error``, or the first thing that caused it, means."""
    if isinstance(error, TokpipeError):
        return Trouble.FOREIGN  # in our own terms already, whatever caused it
    # The innermost cause is nearest to the truth: fsspec's HTTP file system wraps a refused
    # connection into FileNotFoundError.
    for link in reversed(list(_causes(error))):
        if trouble := _classify_one(link):
            return trouble
    return Trouble.FOREIGN


def _causes(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__


def _classify_one(error: BaseException) -> Trouble | None:
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's ClientError
        code = str(response.get("Error", {}).get("Code"))
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return _by_code(code) or _by_status(status if isinstance(status, int) else 500)
    if trouble := _by_library(error):
        return trouble
    for holder, name in (
        (error, "status"),
        (error, "status_code"),
        (error, "code"),
        (response, "status_code"),
    ):  # aiohttp, adlfs, gcsfs, requests
        status = getattr(holder, name, None)
        if isinstance(status, int) and 300 <= status < 600:
            return _by_status(status)
    if isinstance(error, FileExistsError):
        return Trouble.EXISTS
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return Trouble.NOT_FOUND
    if isinstance(error, PermissionError):
        return Trouble.DENIED
    if isinstance(error, asyncio.TimeoutError):  # no TimeoutError before Python 3.11
        return Trouble.TRANSIENT
    if isinstance(error, OSError):
        permanent = error.errno in _PERMANENT_ERRNOS
        return Trouble.PERMANENT if permanent else Trouble.TRANSIENT
    return None


def _by_code(code: str) -> Trouble | None:
    if code in _TRANSIENT_CODES:
        return Trouble.TRANSIENT
    if code in _CREDENTIAL_CODES:
        return Trouble.CREDENTIALS
    return None


def _by_status(status: int) -> Trouble:
    if status in (401, 403):
        return Trouble.DENIED
    if status in (404, 410):
        return Trouble.NOT_FOUND
    if status == 412:
        return Trouble.EXISTS
    if status == 416:
        return Trouble.BAD_RANGE
    if status in (408, 409, 425, 429) or (status >= 500 and status != 501):
        return Trouble.TRANSIENT
    return Trouble.PERMANENT


def _by_library(error: BaseException) -> Trouble | None:
    for types, trouble in _library_types():
        if isinstance(error, types):
            return trouble
    return None


@functools.cache
def _library_types() -> tuple[tuple[tuple[type[BaseException], ...], Trouble | None], ...]:
    """Exception types of the optional store libraries that are installed."""
    known: list[tuple[tuple[type[BaseException], ...], Trouble | None]] = []
    try:
        from botocore import exceptions as boto
        from botocore.parsers import ResponseParserError
    except ImportError:
        pass
    else:
        known.append(((boto.NoCredentialsError, boto.PartialCredentialsError), Trouble.CREDENTIALS))
        known.append(
            (
                (
                    boto.ConnectionError,
                    boto.HTTPClientError,
                    boto.IncompleteReadError,
                    ResponseParserError,  # some servers throttle with an answer that is no XML
                    boto.CredentialRetrievalError,
                    boto.MetadataRetrievalError,
                ),
                Trouble.TRANSIENT,
            )
        )
        known.append(((boto.BotoCoreError,), Trouble.PERMANENT))
    try:
        import aiohttp
        from aiohttp.http_exceptions import HttpProcessingError
    except ImportError:
        pass
    else:
        known.append(((aiohttp.InvalidURL,), Trouble.PERMANENT))
        known.append(((aiohttp.ClientResponseError,), None))  # its status tells
        # A broken answer; these bear a "code" 400 of their own making.
        known.append(((aiohttp.ClientError, HttpProcessingError), Trouble.TRANSIENT))
    return tuple(known)
