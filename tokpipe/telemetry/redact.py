"""Masks secrets in text that leaves the process: messages, logs, manifests, shards."""

import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

MASK = "***"

_USERINFO = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,30}://)[^/\s?#@:'\"]*:[^/\s?#'\"]*@")
"""``user:password@``, but not ``container@account`` of abfs, which has no colon."""
_PARAMETER = re.compile(
    r"([?&;](?:[\w.%-]{0,99}(?:signature|token(?!i)|secret|passw(?:or)?d|credential|api[_-]?key|access-?key)"
    r"[\w.%-]{0,99}|sig|key|auth|pwd)=)[^&\s'\"<>]+",
    re.IGNORECASE,
)
_SECRET_NAME = re.compile(
    r"SECRET|TOKENS?(_|$)|PASSW(OR)?D|CREDENTIAL|API_?KEY|ACCESS_?KEY|_KEY$|CONNECTION_STRING|SAS(_|$)"
)
_PLACE_NAME = re.compile(r"(_FILE|_PATH|_DIR|_URI|_URL|_ENDPOINT|_PROVIDER)$|^GOOGLE_APPLICATION_")
"""Variables that hold the place of a secret, not the secret."""


def redact(text: str, environ: Mapping[str, str] | None = None) -> str:
    """Return ``text`` with every secret replaced by ``***``. Idempotent.

    Secrets are passwords in URIs, signatures and tokens in their queries (presigned S3 and GCS,
    Azure's ``sig``), and the values of environment variables with names such as ``HF_TOKEN``,
    also in URL encoding. Short or simple values are kept.
    """
    for value in _secret_values(os.environ if environ is None else environ):
        text = text.replace(value, MASK)
    if "://" in text:
        text = _USERINFO.sub(rf"\g<1>{MASK}@", text)
    if "=" in text:
        text = _PARAMETER.sub(rf"\g<1>{MASK}", text)
    return text


def redact_nested(value: Any, name: str = "") -> Any:
    """Redact all strings in nested mappings and lists; mask values whose key names a secret."""
    if isinstance(value, Mapping):
        return {key: redact_nested(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redact_nested(inner, name) for inner in value]
    if isinstance(value, str):
        return MASK if value and says_secret(name) else redact(value)
    return value


def says_secret(name: str) -> bool:
    """Return whether an option or variable with this name holds a secret."""
    plain = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper().replace("-", "_")
    return plain == "KEY" or bool(_SECRET_NAME.search(plain))


def holds_secret(name: str, value: str) -> bool:
    """Return whether an environment variable is secret, by its name or by its value."""
    return _names_secret(name) or redact(value) != value


def _names_secret(name: str) -> bool:
    return says_secret(name) and not _PLACE_NAME.search(name.upper())


def _secret_values(environ: Mapping[str, str]) -> list[str]:
    """Return the secrets of the environment, longest first, because one may contain another."""
    values: set[str] = set()
    for name, value in environ.items():
        is_long_enough = len(value) >= 12 or (len(value) >= 8 and any(map(str.isdigit, value)))
        if is_long_enough and _names_secret(name):
            values |= {value, quote(value, safe=""), quote(value)}
    return sorted(values, key=len, reverse=True)
