"""Reads a job file: YAML text -> a checked JobConfig."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from tokpipe.config.checkpoint import BUILTIN, read_local, resolve_checkpoint
from tokpipe.config.explain import validate_settings
from tokpipe.config.job import JobConfig, StoreOptions
from tokpipe.config.strict_yaml import read_mapping
from tokpipe.errors import ConfigError

ReadFromStore = Callable[[str, StoreOptions], bytes]
"""Reads the object at a URI."""


def project_root(job_path: Path) -> Path:
    """Return the folder that a job file's relative paths start from.

    This is the nearest folder at or above the file that holds ``pyproject.toml`` or ``.git``.
    Without one, it is the parent of a folder called ``jobs``, or else the file's own folder.
    """
    folder = job_path.resolve().parent
    for candidate in (folder, *folder.parents):
        if (candidate / "pyproject.toml").exists() or (candidate / ".git").exists():
            return candidate
    return folder.parent if folder.name == "jobs" else folder


def load_job(
    path: str | Path, environ: Mapping[str, str] | None = None, *, read: ReadFromStore | None = None
) -> JobConfig:
    """Read and check one job file. Arguments and errors are those of ``parse_job``."""
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
    """Check the YAML ``text`` of a job.

    Args:
        name: starts every error message.
        root: folder that relative paths start from.
        environ: values of ``${NAME}``; the process's environment by default.
        read: reads the config of a checkpoint that is in a store. Without it, checkpoints must be
            on this machine: ``config`` itself knows no stores, so it imports fast.

    Raises:
        ConfigError: naming the file, the key, what was found and what would be right.
    """
    data = read_mapping(text, name)
    context = {"root": root, "environ": os.environ if environ is None else environ}
    config_uri = None
    section = data.get("tokenizer")
    if isinstance(section, dict) and "checkpoint" in section:
        try:
            options = validate_settings(StoreOptions, data.get("storage", {}), name="storage")
            data["tokenizer"], config_uri = resolve_checkpoint(
                section, partial(_read, read, options), context
            )
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error
    job: JobConfig = validate_settings(
        JobConfig, data, name=name, context=context, tokenizer_from=config_uri
    )
    return job


def _read(read: ReadFromStore | None, options: StoreOptions, uri: str) -> bytes:
    if read is None or uri.startswith(BUILTIN):
        return read_local(uri)
    return read(uri, options)
