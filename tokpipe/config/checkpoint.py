"""Checkpoint folders: weights and a ``config.yaml`` that replaces ``{checkpoint: URI}`` in jobs."""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tokpipe.config.base import Uri
from tokpipe.config.explain import validate_settings
from tokpipe.config.strict_yaml import read_mapping
from tokpipe.config.tokenizer import PROGRAMS
from tokpipe.errors import ConfigError, TokpipeError

CONFIG_NAME = "config.yaml"
WEIGHTS_NAME = "model.safetensors"
WEIGHTS_KEYS = ("weights", "decoder_weights")  # Settings that name files in a section's folder

BUILTIN = "builtin://"
_PRETRAINED = Path(__file__).parents[1] / "models" / "pretrained"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*")


def builtin_path(uri: str) -> Path:
    """Return where the file or folder ``builtin://...`` is installed, if there can be one."""
    name = uri.removeprefix(BUILTIN)
    if not _NAME.fullmatch(name):
        names = sorted(path.parent.name for path in _PRETRAINED.glob(f"*/{CONFIG_NAME}"))
        found = f"{uri} does not name a built-in checkpoint"
        raise ConfigError(f"{found}: write {BUILTIN}NAME with one of {', '.join(names)}")
    return _PRETRAINED / name


def read_local(uri: str, _: object = None) -> bytes:
    """Read a file on this machine, or one of a built-in checkpoint."""
    if "://" in uri and not uri.startswith((BUILTIN, "file://")):
        raise ConfigError(f"{uri} is in a store, but only local files can be read here")
    path = builtin_path(uri) if uri.startswith(BUILTIN) else Path(uri.removeprefix("file://"))
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{uri} cannot be read: {error.strerror}") from error


def resolve_checkpoint(
    section: Mapping[str, Any], read: Callable[[str], bytes], context: Mapping[str, Any]
) -> tuple[dict[str, Any], str]:
    """Return the section that replaces ``{checkpoint: URI}``, and the URI of its config, which
    ``read`` reads; ``context`` is what ``Uri`` is validated with."""
    name, wanted = "tokenizer.checkpoint", section.get("kind")
    if extra := ", ".join(sorted(section.keys() - {"checkpoint", "kind"})):
        problem = f"{extra} next to it could contradict it: keep one or the other"
        raise ConfigError(f"{name} describes the whole tokenizer, and {problem}")
    named: str = validate_settings(Uri, section["checkpoint"], name=name, context=context)
    folder = named.rstrip("/")
    uri = f"{folder}/{CONFIG_NAME}"
    try:
        data = (read_local if folder.startswith(BUILTIN) else read)(uri)
    except TokpipeError as error:
        what = f"A checkpoint is a folder with {CONFIG_NAME} and weights"
        do = "correct the URI, or create the folder with `tokpipe convert`"
        raise ConfigError(f"{name}: {error}. {what}: {do}") from error
    config = read_mapping(data, uri)
    kind = config.get("kind", "native")
    if kind != wanted and (wanted is not None or str(kind) in PROGRAMS):
        raise ConfigError(
            f"{uri}: its kind is {kind!r}, but the job's is {wanted!r}. A folder may be anyone's, "
            f"and {' and '.join(PROGRAMS)} are programs. If you trust its author, write "
            f"{{kind: {kind}, checkpoint: {folder}}}"
        )
    if "checkpoint" in config:
        raise ConfigError(f"{uri}: names another checkpoint, but must hold its own settings")
    if kind != "custom":
        config.setdefault("weights", WEIGHTS_NAME)
    for key in WEIGHTS_KEYS:
        if isinstance(file := config.get(key), str):
            # Without variables, too: they could copy a secret into a job's record.
            root = os.path.realpath(folder.removeprefix("file://"))
            is_inside = os.path.realpath(f"{root}/{file}").startswith(f"{root}/")  # links followed
            if not (is_inside and _NAME.fullmatch(file)):
                why = "a checkpoint that was downloaded could name any other file or server"
                must = f"must be a file in this folder and no link: {why}"
                raise ConfigError(f"{uri}: {key} is {file!r}, but {must}")
            config[key] = f"{folder}/{file}"
    return config, uri
