"""Classifies exceptions of stores by type, status and error code.

Libraries report the same answer in different ways, so classification starts with the HTTP answer
in the chain of causes. Classes are known by name, because few of the libraries are installed.
"""

import contextlib
import errno
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from enum import Enum

from tokpipe.errors import TokpipeError


class Trouble(Enum):
    """Kinds of failure that callers handle differently."""

    TRANSIENT = "transient"
    NODE = "node"  # This node cannot make the request now; others may
    NOT_FOUND = "not found"
    DENIED = "denied"  # Access to this object is denied
    CREDENTIALS = "credentials"  # The store does not accept the credentials for any object
    EXISTS = "exists"  # An exclusive create found an object
    BAD_RANGE = "bad range"  # The range starts at or beyond the object's end
    BAD_NAME = "bad name"
    PERMANENT = "permanent"  # Trying again would not help
    FOREIGN = "foreign"
    """Not an error of a store: a bug, or one of tokpipe's own errors. Raise it unchanged."""


_KNOWN: dict[Trouble, tuple[int | str, ...]] = {
    Trouble.TRANSIENT: (
        408, 425, 429,
        409,  # such as two creates that met; AWS says to try again
        "BadDigest", "IncompleteBody", "RequestLimitExceeded", "SlowDown", "Throttling",
        "ThrottlingException", "XAmzContentSHA256Mismatch",
        "NoSuchUpload",  # the multipart upload is gone, so start another
        "RequestTimeout",  # has status 400
        "aiohttp.HttpProcessingError",  # its ``code`` 400 is aiohttp's, not the server's
        "botocore.ConnectionError", "botocore.CredentialRetrievalError", "botocore.HTTPClientError",
        "botocore.IncompleteReadError", "botocore.MetadataRetrievalError", "google.TransportError",
        "huggingface_hub.LocalEntryNotFoundError!",  # neither cached nor reached
    ),
    Trouble.NODE: (
        errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, "builtins.MemoryError",
        "aiohttp.ClientHttpProxyError!", "aiohttp.ClientProxyConnectionError!",
    ),
    Trouble.CREDENTIALS: (
        401, "AccountProblem", "AuthorizationHeaderMalformed", "ExpiredToken",
        "ExpiredTokenException", "InvalidAccessKeyId", "InvalidClientTokenId", "InvalidSecurity",
        "InvalidToken", "MissingSecurityHeader", "NotSignedUp", "RequestTimeTooSkewed",
        "SignatureDoesNotMatch", "TokenRefreshRequired", "UserSuspended",
        "AccountIsDisabled", "AuthenticationFailed", "InvalidAuthenticationInfo",  # of Azure
        "azure.ClientAuthenticationError", "botocore.NoCredentialsError",
        "botocore.PartialCredentialsError", "google.GoogleAuthError",
        "huggingface_hub.GatedRepoError!",  # for the whole repository
    ),
    Trouble.DENIED: (403, "builtins.PermissionError"),
    Trouble.NOT_FOUND: (
        404, 410, "builtins.FileNotFoundError", "builtins.NotADirectoryError",
        "huggingface_hub.EntryNotFoundError",
    ),
    Trouble.EXISTS: (412, "azure.ResourceExistsError!", "builtins.FileExistsError"),
    Trouble.BAD_RANGE: (416,),
    Trouble.BAD_NAME: (
        errno.ENAMETOOLONG, "builtins.NotImplementedError", "builtins.UnicodeError",
        "InvalidBucketName", "InvalidResourceName", "InvalidURI", "KeyTooLongError",
        "aiohttp.InvalidURL", "botocore.ParamValidationError", "httpx.InvalidURL",
        "huggingface_hub.HFValidationError", "huggingface_hub.HfUriError", "requests.InvalidURL",
    ),
    Trouble.PERMANENT: (
        errno.EDQUOT, errno.EFBIG, errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.EMLINK,
        errno.ENOSPC, errno.ENOSYS, errno.ENOTEMPTY, errno.EOPNOTSUPP, errno.EROFS,
        errno.EXDEV, "ssl.SSLCertVerificationError",
        "aiohttp.TooManyRedirects", "httpx.TooManyRedirects", "requests.TooManyRedirects",
        "botocore.BotoCoreError", "huggingface_hub.OfflineModeIsEnabled!",
    ),
}  # fmt: skip
"""HTTP statuses, errnos, codes of S3 and Azure, and classes by the names of package and class;
with ``!`` those that say more than their causes."""
_TROUBLES = {key: trouble for trouble, keys in _KNOWN.items() for key in keys}


def classify(error: BaseException) -> Trouble:
    """Return what ``error`` means, judged by its innermost known cause."""
    if isinstance(error, TokpipeError):
        return Trouble.FOREIGN
    chain = list(_chain(error))
    found = [_by_class(one, "!") for one in reversed(chain)]
    # Innermost first: fsspec's HTTP file system turns a rejected connection into FileNotFoundError.
    found += [_classify_one(one) for one in reversed(chain)]
    return next(filter(None, found), Trouble.FOREIGN)


def retry_after_s(error: BaseException) -> float:
    """Return for how long the store asks to wait before the next attempt; 0 if it does not."""
    for one in _chain(error):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            headers = response.get("ResponseMetadata", {}).get("HTTPHeaders")
        else:
            headers = getattr(one, "headers", None) or getattr(response, "headers", None)
        for name, value in dict(headers or {}).items():
            if str(name).lower() == "retry-after":
                with contextlib.suppress(ValueError):
                    return max(0.0, float(value))
                with contextlib.suppress(ValueError):
                    return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return 0.0


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _classify_one(error: BaseException) -> Trouble | None:
    response = getattr(error, "response", None)
    code, status = getattr(error, "error_code", None), None
    if isinstance(response, dict):  # botocore's ClientError
        code = response.get("Error", {}).get("Code")
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
    if trouble := _TROUBLES.get(str(getattr(code, "value", code))) or _by_class(error):
        return trouble
    for holder in (error, response):  # aiohttp, adlfs, gcsfs, requests, httpx
        for name in ("status", "status_code", "code"):
            status = getattr(holder, name, None) if status is None else status
    if isinstance(status, int) and 300 <= status < 600:
        is_transient = status >= 500 and status != 501
        return _TROUBLES.get(status, Trouble.TRANSIENT if is_transient else Trouble.PERMANENT)
    if type(error) is OSError and error.errno is None and str(error).startswith("Forbidden: "):
        return Trouble.DENIED  # gcsfs keeps nothing else of the status 403
    if isinstance(error, OSError):
        return _TROUBLES.get(error.errno or 0, Trouble.TRANSIENT)
    if type(error) is ValueError:  # gcsfs and adlfs, for requests that the store rejects
        return Trouble.PERMANENT
    # An exception that a library defines is not a bug of tokpipe.
    return None if type(error).__module__ == "builtins" else Trouble.TRANSIENT


def _by_class(error: BaseException, mark: str = "") -> Trouble | None:
    for kind in type(error).__mro__:
        package = kind.__module__.partition(".")[0].rstrip("0123456789")  # such as httpx2
        if trouble := _TROUBLES.get(f"{package}.{kind.__name__}{mark}"):
            return trouble
    return None
