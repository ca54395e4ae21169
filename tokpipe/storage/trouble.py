"""Classifies exceptions of stores by type, status and error code.

Libraries report the same answer in different ways, so classification starts with the HTTP answer
in the chain of causes. Classes are known by name, because few of the libraries are installed.
"""

import contextlib
import errno
import time
import tomllib
from email.utils import parsedate_to_datetime
from enum import Enum
from pathlib import Path

from tokpipe.errors import TokpipeError, chain_of


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
    FOREIGN = "foreign"  # Not a store's: a bug, or one of tokpipe's errors. Raise it unchanged


_KNOWN = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
_TROUBLES = {  # by number or name; the file says what they are
    getattr(errno, key, key) if isinstance(key, str) else key: Trouble[kind]
    for kind, keys in _KNOWN.items()
    for key in keys
}


def classify(error: BaseException) -> Trouble:
    """Return what ``error`` means, judged by its innermost known cause."""
    if isinstance(error, TokpipeError):
        return Trouble.FOREIGN
    chain = list(chain_of(error))
    found = [_by_class(one, "!") for one in reversed(chain)]
    # Innermost first: fsspec's HTTP file system turns a rejected connection into FileNotFoundError.
    found += [_classify_one(one) for one in reversed(chain)]
    return next(filter(None, found), Trouble.FOREIGN)


def retry_after_s(error: BaseException) -> float:
    """Return for how long the store asks to wait before the next attempt; 0 if it does not."""
    for one in chain_of(error):
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
