"""Checkpoint folders: ``config.yaml``, which is a tokenizer section, beside the weights it names.

``tokenizer: {checkpoint: URI}`` in a job file stands for that section. It is put in its place when
the job is loaded, so whoever sees a job sees explicit settings and whole URIs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from tokpipe.config.base import resolve_uri
from tokpipe.config.strict_yaml import StrictLoader
from tokpipe.errors import ConfigError, TokpipeError

CONFIG_NAME = "config.yaml"
WEIGHTS_NAME = "model.safetensors"
WEIGHTS_KEYS = ("weights", "decoder_weights")
"""Settings of a section that name files, relative to its folder."""

BUILTIN = "builtin://"
_BUILTIN_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*")

ReadObject = Callable[[str], bytes]
"""From a URI to the bytes that are there."""


def builtin_path(uri: str) -> Path:
    """Return where the file or folder ``builtin://...`` was installed.

    Raises:
        ConfigError: the name is none that a checkpoint that ships could have.
    """
    name = uri.removeprefix(BUILTIN)
    if not _BUILTIN_NAME.fullmatch(name):
        raise ConfigError(
            f"{uri} is no name of a checkpoint that ships with tokpipe: write "
            f"{BUILTIN}NAME; there are: {', '.join(builtin_names()) or 'none'}"
        )
    return _pretrained() / name


def builtin_names() -> list[str]:
    """Names of the checkpoints that ship."""
    return sorted(path.parent.name for path in _pretrained().glob(f"*/{CONFIG_NAME}"))


def _pretrained() -> Path:
    return Path(__file__).parents[1] / "models" / "pretrained"


def read_local(uri: str) -> bytes:
    """Read a file of this machine, or one that ships.

    Raises:
        ConfigError: the URI is of another store, or there is no such file.
    """
    if "://" in uri and not uri.startswith((BUILTIN, "file://")):
        raise ConfigError(f"{uri} is in a store, and only files of this machine can be read here")
    path = builtin_path(uri) if uri.startswith(BUILTIN) else Path(uri.removeprefix("file://"))
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{uri} cannot be read: {error.strerror}") from error


def resolve_checkpoint(
    section: Mapping[str, Any], read: ReadObject, *, root: Path, environ: Mapping[str, str]
) -> tuple[dict[str, Any], str]:
    """Return the section that ``{checkpoint: URI}`` stands for, and the URI of its config.

    Raises:
        ConfigError: the folder or its config cannot be used, and why.
    """
    extra = sorted(section.keys() - {"checkpoint"})
    if extra:
        raise ConfigError(
            f"tokenizer.checkpoint stands for a whole tokenizer, and {', '.join(extra)} beside it "
            "would contradict its folder: give one or the other"
        )
    given = section["checkpoint"]
    if not isinstance(given, str):
        raise ConfigError(f"tokenizer.checkpoint is {given!r}: give the path or URI of a folder")
    try:
        folder = resolve_uri(given, root=root, environ=environ).rstrip("/")
    except ValueError as error:
        raise ConfigError(f"tokenizer.checkpoint: {error}") from error
    config_uri = f"{folder}/{CONFIG_NAME}"
    try:
        data = read(config_uri)
    except TokpipeError as error:
        known = f" These ship: {', '.join(builtin_names())}." if given.startswith(BUILTIN) else ""
        raise ConfigError(
            f"tokenizer.checkpoint: {error}. A checkpoint is a folder with {CONFIG_NAME} and "
            f"weights, and without it there is no tokenizer.{known} Correct the URI, or make the "
            "folder by `tokpipe convert`"
        ) from error
    return _parsed(data, config_uri, folder), config_uri


def _parsed(data: bytes, uri: str, folder: str) -> dict[str, Any]:
    try:
        config = yaml.load(data.decode("utf-8"), Loader=StrictLoader)
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{uri}: is not valid YAML: {error}") from error
    if not isinstance(config, dict) or "checkpoint" in config:
        raise ConfigError(
            f"{uri}: is no tokenizer section. It must hold the settings themselves, such as kind "
            "and encoder, as they would stand below tokenizer in a job file"
        )
    if config.get("kind", "native") != "custom":
        config.setdefault("weights", WEIGHTS_NAME)
    for key in WEIGHTS_KEYS:
        if isinstance(name := config.get(key), str):
            config[key] = _beside(folder, name, f"{uri}: {key}")
    return config


def _beside(folder: str, name: str, where: str) -> str:
    if "${" in name:
        # Job files are their author's own; checkpoints are passed on by strangers, and could
        # have the environment's secrets copied into a job's record.
        raise ConfigError(f"{where} is {name!r}: variables are expanded in job files only")
    return name if "://" in name or name.startswith("/") else f"{folder}/{name}"
