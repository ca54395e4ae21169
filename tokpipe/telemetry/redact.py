"""Takes secrets out of text that leaves the process: messages, logs, manifests, shards."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

MASK = "***"

_USERINFO = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^/\s?#@:'\"]*:[^/\s?#'\"]*@")
"""``user:password@``. ``container@account`` of abfs has no colon and stays."""
_PARAMETER = re.compile(
    r"([?&;](?:[\w.%-]*(?:signature|token(?!i)|secret|passw(?:or)?d|credential|api[_-]?key|access-?key)"
    r"[\w.%-]*|sig|key|auth|pwd)=)[^&\s'\"<>]+",
    re.IGNORECASE,
)
_SECRET_NAME = re.compile(
    r"SECRET|TOKENS?(_|$)|PASSW(OR)?D|CREDENTIAL|API_?KEY|ACCESS_?KEY|_KEY$|CONNECTION_STRING|SAS(_|$)"
)
_PLACE_NAME = re.compile(r"(_FILE|_PATH|_DIR|_URI|_URL|_ENDPOINT|_PROVIDER)$|^GOOGLE_APPLICATION_")
"""Such a variable says where a secret is, and not what it is."""
_LONG_CHARS = 12
_SHORT_CHARS = 8


def redact(text: str, environ: Mapping[str, str] | None = None) -> str:
    """Return ``text`` with each secret in it replaced by ``***``; twice changes nothing more.

    Secrets are passwords in URIs, signatures and tokens in their queries (presigned S3 and GCS,
    Azure's ``sig``), and the values of environment variables whose names say that they hold one,
    also as they are written in a URI. Values too short or too plain to be secrets stay.
    """
    for value in _secret_values(os.environ if environ is None else environ):
        text = text.replace(value, MASK)
    if "://" in text:
        text = _USERINFO.sub(rf"\g<1>{MASK}@", text)
    if "=" in text:
        text = _PARAMETER.sub(rf"\g<1>{MASK}", text)
    return text


def redact_nested(value: Any, name: str = "") -> Any:
    """Redact every string in nested mappings and lists; mask those whose key names a secret."""
    if isinstance(value, Mapping):
        return {key: redact_nested(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redact_nested(inner, name) for inner in value]
    if isinstance(value, str):
        return MASK if value and says_secret(name) else redact(value)
    return value


def says_secret(name: str) -> bool:
    """Say whether an option or a variable of this name holds a secret."""
    plain = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper().replace("-", "_")
    return plain == "KEY" or bool(_SECRET_NAME.search(plain))


def _secret_values(environ: Mapping[str, str]) -> list[str]:
    """The longest first, because one may be a part of another."""
    values: set[str] = set()
    for name, value in environ.items():
        if not says_secret(name) or _PLACE_NAME.search(name.upper()):
            continue
        has_digit = any(char.isdigit() for char in value)
        if len(value) >= _LONG_CHARS or (len(value) >= _SHORT_CHARS and has_digit):
            values |= {value, quote(value, safe=""), quote(value)}
    return sorted(values, key=len, reverse=True)
