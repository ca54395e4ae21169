"""Reads a job file: YAML text -> a checked JobConfig."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from tokpipe.config.checkpoint import BUILTIN, ReadObject, read_local, resolve_checkpoint
from tokpipe.config.job import JobConfig, StoreOptions
from tokpipe.config.strict_yaml import StrictLoader
from tokpipe.errors import ConfigError


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


ReadFromStore = Callable[[str, StoreOptions], bytes]
"""From a URI, and how stores are reached, to the bytes that are there."""


def load_job(
    path: str | Path,
    environ: Mapping[str, str] | None = None,
    *,
    read: ReadFromStore | None = None,
) -> JobConfig:
    """Read and check one job file; see ``parse_job``.

    Raises:
        ConfigError: naming the file, the key, what was found and what would be right.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a job file: {error}") from error
    return parse_job(text, name=str(path), root=project_root(path), environ=environ, read=read)


def parse_job(
    text: str,
    *,
    name: str,
    root: Path,
    environ: Mapping[str, str] | None = None,
    read: ReadFromStore | None = None,
) -> JobConfig:
    """Check the YAML ``text`` of a job; ``name`` stands in messages, ``root`` before paths.

    ``read`` fetches the config of a checkpoint that the job names. Without it, checkpoints can only
    be on this machine: this package knows no stores, so that checking a job stays light.

    Raises:
        ConfigError: naming the file, the key, what was found and what would be right.
    """
    try:
        data = yaml.load(text, Loader=StrictLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: is not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{name}: holds {type(data).__name__}, not a mapping of job settings")
    environ = os.environ if environ is None else environ
    origin = None
    section = data.get("tokenizer")
    if isinstance(section, dict) and "checkpoint" in section:
        try:
            data["tokenizer"], origin = resolve_checkpoint(
                section, _reader(data, read), root=root, environ=environ
            )
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error
    try:
        # By way of JSON, because strictness there still lets a list be a tuple.
        return JobConfig.model_validate_json(
            json.dumps(data), context={"root": root, "environ": environ}
        )
    except ValidationError as error:
        raise ConfigError(_explain(name, error, origin)) from error


def _reader(data: dict[str, Any], read: ReadFromStore | None) -> ReadObject:
    if read is None:
        return read_local
    try:
        options = StoreOptions.model_validate_json(json.dumps(data.get("storage", {})))
    except ValidationError:
        options = StoreOptions()  # the job's own check will name what is wrong with them
    return partial(_read, read, options)


def _read(read: ReadFromStore, options: StoreOptions, uri: str) -> bytes:
    return read_local(uri) if uri.startswith(BUILTIN) else read(uri, options)


def _explain(name: str, error: ValidationError, checkpoint: str | None) -> str:
    """One line for all that is wrong; ``checkpoint`` is the file that the tokenizer is from."""
    problems = []
    for detail in error.errors(include_url=False):
        loc, message = detail["loc"], detail["msg"].removeprefix("Value error, ")
        found = detail.get("input")
        if detail["type"] == "extra_forbidden":
            message, loc = _unknown_key(loc), loc[:-1]
        elif detail["type"].startswith("union_tag"):
            message = _unknown_kind(loc, found)
        elif detail["type"] not in ("value_error", "missing") and not isinstance(
            found, dict | list
        ):
            message += f" (found {found!r})"
        where = ".".join(str(part) for part in _as_written(JobConfig, loc))
        if checkpoint is not None and loc[:1] == ("tokenizer",):
            where = f"{where} (in {checkpoint})"
        problems.append(f"{where}: {message}" if where else message)
    return f"{name}: " + "; ".join(problems)


def _unknown_key(loc: tuple[int | str, ...]) -> str:
    """A message that names the nearest key allowed in place of the one at ``loc``."""
    section = _section(JobConfig, loc[:-1])
    keys = sorted(section.model_fields) if section else []
    near = difflib.get_close_matches(str(loc[-1]), keys, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"the keys here are: {', '.join(keys)}"
    return f"unknown key {str(loc[-1])!r}; {hint}"


def _unknown_kind(loc: tuple[int | str, ...], found: Any) -> str:
    """A message that names the kinds that a section at ``loc`` can be of."""
    kinds = ", ".join(repr(kind) for kind in _members(_annotation(JobConfig, loc)))
    if isinstance(found, dict):
        return f"kind {found.get('kind')!r} is none of {kinds}"
    return f"found {found!r} in place of a section, whose kind is one of {kinds}"


def _as_written(annotation: Any, loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """An error's location without the kinds that pydantic puts into it, as in the file."""
    if not loc:
        return ()
    annotation = _bare(annotation)
    if get_origin(annotation) is tuple:
        return (loc[0], *_as_written(get_args(annotation)[0], loc[1:]))
    if members := _members(annotation):
        return _as_written(members.get(str(loc[0])), loc[1:])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = annotation.model_fields.get(str(loc[0]))
        return (loc[0], *_as_written(field.annotation if field else None, loc[1:]))
    return loc


def _annotation(annotation: Any, loc: tuple[int | str, ...]) -> Any:
    """Follow an error's location from an annotation down to the one it stands at."""
    annotation = _bare(annotation)
    if not loc:
        return annotation
    if get_origin(annotation) is tuple:
        return _annotation(get_args(annotation)[0], loc[1:])
    if members := _members(annotation):
        return _annotation(members.get(str(loc[0])), loc[1:])
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return None
    field = annotation.model_fields.get(str(loc[0]))
    return _annotation(field.annotation if field else None, loc[1:])


def _section(annotation: Any, loc: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The model that an error's location stands in."""
    found = _annotation(annotation, loc)
    return found if isinstance(found, type) and issubclass(found, BaseModel) else None


def _bare(annotation: Any) -> Any:
    """An annotation without its metadata, and without ``| None``."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, UnionType):
        members = [member for member in get_args(annotation) if member is not NoneType]
        if len(members) == 1:
            return _bare(members[0])
    return annotation


def _members(annotation: Any) -> dict[str, Any]:
    """The models of a discriminated union by kind; nothing for any other annotation."""
    if get_origin(annotation) not in (Union, UnionType):
        return {}
    members = [_bare(member) for member in get_args(annotation)]
    return {
        get_args(member.model_fields["kind"].annotation)[0]: member
        for member in members
        if isinstance(member, type) and issubclass(member, BaseModel)
    }
