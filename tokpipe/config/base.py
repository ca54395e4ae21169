"""What all sections of a job file share: strictness and URIs."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo

from tokpipe.telemetry.logs import STDERR
from tokpipe.telemetry.redact import redact

_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")

RECORDED = {"is_recorded": True}  # Context of what anyone may have written: it stays as it is


class Frozen(BaseModel):
    """A section of the job file: immutable, strictly typed, no unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def variables_of(data: Any) -> Iterator[str]:
    """Yield the name of each variable in a job file's data."""
    texts = (value for *_, value in leaves("", data) if isinstance(value, str))
    return (match[1] for text in texts for match in _VARIABLE.finditer(text))


def leaves(place: str, value: Any, name: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yield the dotted key, the last name and the value of each plain value within ``value``."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(f"{place}.{key}", inner, key)
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from leaves(f"{place}[{index}]", inner)
    else:
        yield place, name, value


def _expanded(text: str, info: ValidationInfo) -> str:
    """Replace ``${NAME}`` and ``${NAME:-default}``."""

    def value(match: re.Match[str]) -> str:
        name, default = match.groups()
        found: str | None = (info.context or {}).get("environ", os.environ).get(name, default)
        if found is None:
            raise ValueError(
                f"environment variable {name} is not set; set it, or write ${{{name}:-default}}"
            )
        return found

    if text.count("${") > 100:  # each may take as much time and memory as the whole text
        raise ValueError("has more than 100 variables: put longer parts into fewer of them")
    return _VARIABLE.sub(value, text)


def _validate_uri(text: str, info: ValidationInfo) -> str:
    if info.context == RECORDED:
        return text
    text = _expanded(text, info)
    if re.match(r"\$\w|[A-Za-z][A-Za-z0-9+.-]+:/(?!/)", text):
        raise ValueError("is a path, but looks like a variable or a URI: write ${NAME}, :// or ./")
    if not text:
        raise ValueError("is empty; use a path or a URI such as s3://bucket/prefix")
    if not _SCHEME.match(text):
        path, root = Path(text).expanduser(), (info.context or {}).get("root")
        # normpath, not resolve(): wildcards and symbolic links stay as written.
        text = os.path.normpath(path if root is None else root / path)
    return _check_no_secret(text, info)


def _validate_template(text: str, info: ValidationInfo) -> str:
    return text if info.context == RECORDED else _check_no_secret(_expanded(text, info), info)


def _validate_log_path(text: str | None, info: ValidationInfo) -> str | None:
    text = _validate_template(text or "", info)
    if text in ("", STDERR):
        return text or None
    uri = _validate_uri(text, info)
    if _SCHEME.match(uri):
        raise ValueError("is a URI, and stores cannot append: use a local path, or - for stderr")
    return uri


def _check_no_secret(uri: str, info: ValidationInfo) -> str:
    if redact(uri, (info.context or {}).get("environ")) != uri:
        found = "contains a password, a signature or another secret, and outputs copy job files"
        raise ValueError(f"{found}; remove it, and use the nodes' environment or an instance role")
    return uri


Uri = Annotated[str, AfterValidator(_validate_uri)]
"""A path or fsspec URI. Relative paths start at the project; ``${VAR}`` is expanded."""

LogPath = Annotated[str | None, AfterValidator(_validate_log_path)]
"""A local path, ``-`` for standard error, or nothing."""

UriTemplate = Annotated[str, AfterValidator(_validate_template)]
"""Text with ``${VAR}``, expanded when the job is loaded, and ``{column}``, filled in per row."""
