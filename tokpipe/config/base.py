"""What every section of a job file shares: strictness and URIs."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo

from tokpipe.telemetry.logs import STDERR
from tokpipe.telemetry.redact import redact

_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")


class Frozen(BaseModel):
    """A section of the job file: immutable, typed strictly, no unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )


def expand_variables(text: str, environ: Mapping[str, str]) -> str:
    """Replace ``${NAME}`` and ``${NAME:-default}``; a variable that is not set is an error."""

    def value(match: re.Match[str]) -> str:
        name, default = match.group(1), match.group(2)
        found = environ.get(name, default)
        if found is None:
            raise ValueError(
                f"environment variable {name} is not set; set it, or write ${{{name}:-default}}"
            )
        return found

    return _VARIABLE.sub(value, text)


def resolve_uri(text: str, *, root: Path | None, environ: Mapping[str, str]) -> str:
    """Expand variables, then make a path without scheme absolute, from ``root`` if there is one.

    Raises:
        ValueError: nothing is left, or a variable is not set.
    """
    text = expand_variables(text, environ)
    if not text:
        raise ValueError("is empty; give a path or a URI such as s3://bucket/prefix")
    if _SCHEME.match(text):
        return text
    path = Path(text).expanduser()
    # normpath, not resolve(): a glob's characters and symbolic links stay as written.
    return os.path.normpath(path if root is None else root / path)


def _resolve_uri(text: str, info: ValidationInfo) -> str:
    context = info.context or {}
    environ = context.get("environ", os.environ)
    return _without_secrets(resolve_uri(text, root=context.get("root"), environ=environ), environ)


def _expand_text(text: str, info: ValidationInfo) -> str:
    environ = (info.context or {}).get("environ", os.environ)
    return _without_secrets(expand_variables(text, environ), environ)


def _resolve_log_path(text: str | None, info: ValidationInfo) -> str | None:
    text = None if text is None else _expand_text(text, info)
    if text in (None, "", STDERR):
        return text or None
    uri = _resolve_uri(text, info)
    if _SCHEME.match(uri):
        raise ValueError(
            "is a URI, and stores cannot add lines to an object; give a local path, or - for "
            "standard error"
        )
    return uri


def _without_secrets(uri: str, environ: Mapping[str, str]) -> str:
    if redact(uri, environ) != uri:
        raise ValueError(
            "holds a password, a signature or another secret, and job files are copied into "
            "outputs; take it out, and use the environment of the nodes or an instance role"
        )
    return uri


Uri = Annotated[str, AfterValidator(_resolve_uri)]
"""A path or fsspec URI. Relative paths start at the project; ``${VAR}`` is expanded."""

LogPath = Annotated[str | None, AfterValidator(_resolve_log_path)]
"""A local path, ``-`` for standard error, or nothing."""

UriTemplate = Annotated[str, AfterValidator(_expand_text)]
"""Text with ``${VAR}``, expanded at load, and ``{column}``, filled in for each row."""
