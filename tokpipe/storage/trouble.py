"""Classifies exceptions of stores by type, status and error code, never by their text.

Libraries report the same answer in different ways: a rejected exclusive create is a
``FileExistsError`` if the error body names the condition, but ``OSError(EINVAL)`` if it does not
(SeaweedFS, Ceph). The HTTP answer is in the exception's chain of causes, so classification starts
there.
"""

import contextlib
import errno
import functools
from enum import Enum

from tokpipe.errors import TokpipeError


class Trouble(Enum):
    """Kinds of failure that callers handle differently."""

    TRANSIENT = "transient"
    NOT_FOUND = "not found"
    DENIED = "denied"
    """Access to this object is denied."""
    CREDENTIALS = "credentials"
    """The store does not accept the credentials for any object."""
    EXISTS = "exists"
    """An exclusive create found an object."""
    BAD_RANGE = "bad range"
    """The range starts at or beyond the object's end."""
    PERMANENT = "permanent"
    """Trying again would not help."""
    FOREIGN = "foreign"
    """Not an error of a store: a bug, or one of tokpipe's own errors. Raise it unchanged."""


_TRANSIENT_CODES = frozenset({
    "BadDigest", "IncompleteBody", "InternalError", "OperationAborted", "ServiceUnavailable",
    "SlowDown", "Throttling", "XAmzContentSHA256Mismatch",
    "ConditionalRequestConflict",  # two creates met; AWS says to try again
    "NoSuchUpload",  # the multipart upload is gone, so start another
    "RequestTimeout",  # has status 400
})  # fmt: skip
_CREDENTIAL_CODES = frozenset({
    "AccountProblem", "AuthorizationHeaderMalformed", "ExpiredToken", "ExpiredTokenException",
    "InvalidAccessKeyId", "InvalidSecurity", "InvalidToken", "MissingSecurityHeader",
    "NotSignedUp", "RequestTimeTooSkewed", "SignatureDoesNotMatch", "TokenRefreshRequired",
})  # fmt: skip
_PERMANENT_ERRNOS = frozenset({
    errno.EDQUOT, errno.EFBIG, errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.EMLINK,
    errno.ENAMETOOLONG, errno.ENODEV, errno.ENOSPC, errno.ENOSYS, errno.ENOTEMPTY, errno.ENXIO,
    errno.EOPNOTSUPP, errno.EROFS, errno.EXDEV,
})  # fmt: skip
_STATUSES = {
    **dict.fromkeys((401, 403), Trouble.DENIED),
    **dict.fromkeys((404, 410), Trouble.NOT_FOUND),
    412: Trouble.EXISTS,
    416: Trouble.BAD_RANGE,
    **dict.fromkeys((408, 409, 425, 429), Trouble.TRANSIENT),
}


def classify(error: BaseException) -> Trouble:
    """Return what ``error`` means, judged by its innermost known cause."""
    if isinstance(error, TokpipeError):
        return Trouble.FOREIGN
    # Innermost first: fsspec's HTTP file system turns a rejected connection into FileNotFoundError.
    if error.__cause__ and (trouble := classify(error.__cause__)) is not Trouble.FOREIGN:
        return trouble
    return _classify_one(error) or Trouble.FOREIGN


def _classify_one(error: BaseException) -> Trouble | None:
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's ClientError
        code = str(response.get("Error", {}).get("Code"))
        if code in _TRANSIENT_CODES:
            return Trouble.TRANSIENT
        if code in _CREDENTIAL_CODES:
            return Trouble.CREDENTIALS
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return _by_status(status if isinstance(status, int) else 500)
    known = (trouble for types, trouble in _library_types() if isinstance(error, types))
    if trouble := next(known, None):
        return trouble
    # aiohttp, adlfs, gcsfs, requests
    for holder in (error, response):
        for name in ("status", "status_code", "code"):
            status = getattr(holder, name, None)
            if isinstance(status, int) and 300 <= status < 600:
                return _by_status(status)
    if isinstance(error, FileExistsError):
        return Trouble.EXISTS
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return Trouble.NOT_FOUND
    if isinstance(error, PermissionError):
        return Trouble.DENIED
    if isinstance(error, OSError):
        permanent = error.errno in _PERMANENT_ERRNOS
        return Trouble.PERMANENT if permanent else Trouble.TRANSIENT
    return None


def _by_status(status: int) -> Trouble:
    is_transient = status >= 500 and status != 501
    return _STATUSES.get(status, Trouble.TRANSIENT if is_transient else Trouble.PERMANENT)


@functools.cache
def _library_types() -> list[tuple[tuple[type[BaseException], ...], Trouble | None]]:
    """Return the exception types of the installed store libraries, the most specific first.

    None means that the exception's HTTP status decides.
    """
    known: list[tuple[tuple[type[BaseException], ...], Trouble | None]] = []
    with contextlib.suppress(ImportError):
        from botocore import exceptions as boto
        from botocore.parsers import ResponseParserError

        transient = (
            boto.ConnectionError,
            boto.HTTPClientError,
            boto.IncompleteReadError,
            boto.CredentialRetrievalError,
            boto.MetadataRetrievalError,
            ResponseParserError,  # some servers throttle with an answer that is not XML
        )
        known += [
            ((boto.NoCredentialsError, boto.PartialCredentialsError), Trouble.CREDENTIALS),
            (transient, Trouble.TRANSIENT),
            ((boto.BotoCoreError,), Trouble.PERMANENT),
        ]
    with contextlib.suppress(ImportError):
        import aiohttp
        from aiohttp.http_exceptions import HttpProcessingError

        known += [
            ((aiohttp.InvalidURL,), Trouble.PERMANENT),
            ((aiohttp.ClientResponseError,), None),
            # Malformed answers. Their ``code`` 400 is aiohttp's, not the server's.
            ((aiohttp.ClientError, HttpProcessingError), Trouble.TRANSIENT),
        ]
    return known
