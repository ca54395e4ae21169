"""Reads a job file: YAML text -> a checked JobConfig."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from tokpipe.config.job import JobConfig
from tokpipe.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key given twice is an error and dates stay text."""


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(
                None, None, f"key {key!r} is not text", key_node.start_mark
            )
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"key {key!r} is given twice", key_node.start_mark
            )
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def project_root(job_path: Path) -> Path:
    """Return the folder that a job file's relative paths start from.

    The nearest folder at or above the file that holds ``pyproject.toml`` or ``.git``; without
    one, the parent of a folder called ``jobs``, else the file's own folder.
    """
    folder = job_path.resolve().parent
    for candidate in (folder, *folder.parents):
        if (candidate / "pyproject.toml").exists() or (candidate / ".git").exists():
            return candidate
    return folder.parent if folder.name == "jobs" else folder


def load_job(path: str | Path, environ: Mapping[str, str] | None = None) -> JobConfig:
    """Read and check one job file.

    Raises:
        ConfigError: naming the file, the key, what was found and what would be right.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a job file: {error}") from error
    return parse_job(text, name=str(path), root=project_root(path), environ=environ)


def parse_job(
    text: str, *, name: str, root: Path, environ: Mapping[str, str] | None = None
) -> JobConfig:
    """Check the YAML ``text`` of a job; ``name`` stands in messages, ``root`` before paths."""
    try:
        data = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: is not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{name}: holds {type(data).__name__}, not a mapping of job settings")
    context = {"root": root, "environ": os.environ if environ is None else environ}
    try:
        # By way of JSON, because strictness there still lets a list be a tuple.
        return JobConfig.model_validate_json(json.dumps(data), context=context)
    except ValidationError as error:
        raise ConfigError(_explain(name, error)) from error


def _explain(name: str, error: ValidationError) -> str:
    problems = []
    for detail in error.errors(include_url=False):
        where = ".".join(str(part) for part in detail["loc"])
        message = detail["msg"].removeprefix("Value error, ")
        found = detail.get("input")
        if detail["type"] == "extra_forbidden":
            where, message = _unknown_key(detail["loc"])
        elif detail["type"] not in ("value_error", "missing") and not isinstance(
            found, dict | list
        ):
            message += f" (found {found!r})"
        problems.append(f"{where}: {message}" if where else message)
    return f"{name}: " + "; ".join(problems)


def _unknown_key(loc: tuple[int | str, ...]) -> tuple[str, str]:
    """Where an unknown key stands, and a message that names the nearest key allowed there."""
    where, key = ".".join(str(part) for part in loc[:-1]), str(loc[-1])
    section = _section(JobConfig, loc[:-1])
    keys = sorted(section.model_fields) if section else []
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"the keys here are: {', '.join(keys)}"
    return where, f"unknown key {key!r}; {hint}"


def _section(annotation: Any, loc: tuple[int | str, ...]) -> type[BaseModel] | None:
    """Follow an error's location from an annotation down to the model it stands in."""
    if get_origin(annotation) is Annotated:
        return _section(get_args(annotation)[0], loc)
    if get_origin(annotation) is tuple:
        return _section(get_args(annotation)[0], loc[1:])
    if get_origin(annotation) in (Union, UnionType):
        members = [member for member in get_args(annotation) if member is not NoneType]
        if len(members) == 1:
            return _section(members[0], loc)
        # pydantic puts the tag of a discriminated union into the location.
        tagged = (
            m for m in members if loc and loc[0] in get_args(m.model_fields["kind"].annotation)
        )
        return _section(next(tagged, None), loc[1:])
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return None
    if not loc:
        return annotation
    return _section(annotation.model_fields[str(loc[0])].annotation, loc[1:])
