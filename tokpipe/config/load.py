"""Reads a job file: YAML text -> a checked JobConfig."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from tokpipe.config.base import Uri
from tokpipe.config.checkpoint import CONFIG_NAME, read_local, resolve_checkpoint
from tokpipe.config.explain import validate_settings
from tokpipe.config.job import JobConfig, StoreOptions
from tokpipe.config.strict_yaml import read_mapping
from tokpipe.config.tokenizer import AnyTokenizer, TokenizerConfig
from tokpipe.errors import ConfigError

ReadFromStore = Callable[[str, StoreOptions], bytes]  # Reads the object at a URI


def project_root(job_path: Path) -> Path:
    """Return the folder that a job file's relative paths start from: the nearest above it with
    ``pyproject.toml`` or ``.git``, else the parent of a folder ``jobs``, else its own folder."""
    folder = Path(os.path.realpath(job_path)).parent  # resolve() fails for loops of links
    for candidate in (folder, *folder.parents):
        if (candidate / "pyproject.toml").exists() or (candidate / ".git").exists():
            return candidate
    return folder.parent if folder.name == "jobs" else folder


def load_job(
    path: str | Path, environ: Mapping[str, str] | None = None, *, read: ReadFromStore = read_local
) -> JobConfig:
    """Read and check one job file. Arguments and errors are those of ``parse_job``."""
    path = Path(path)
    text, root = _read_text(path), project_root(path)
    return parse_job(text, name=str(path), root=root, environ=environ, read=read)


def load_output(path: str | Path) -> tuple[str, StoreOptions]:
    """Read a job's ``output.uri`` and how to reach that store. All other settings may be wrong."""
    path = Path(path)
    data = read_mapping(_read_text(path), str(path), "job file")
    if not isinstance(section := data.get("output"), dict) or "uri" not in section:
        raise ConfigError(f"{path}: has no output.uri, so it is not a job file")
    context = {"root": project_root(path), "environ": os.environ}
    uri = validate_settings(Uri, section["uri"], name=f"{path}: output.uri", context=context)
    return uri, validate_settings(StoreOptions, data.get("storage", {}), name=f"{path}: storage")


def load_tokenizer(named: str, *, read: ReadFromStore) -> tuple[TokenizerConfig, StoreOptions]:
    """Read a tokenizer and how to reach its weights, from a job file whose other sections may be
    wrong, a YAML file with the keys of a tokenizer section, or a checkpoint folder at any URI."""
    named = named.removesuffix(f"/{CONFIG_NAME}")  # of such a folder
    path, root, data = Path(named), Path.cwd(), {"tokenizer": {"checkpoint": named}}
    if path.suffix in (".yaml", ".yml"):
        data, root = read_mapping(_read_text(path), named), project_root(path)
    section, context = data.get("tokenizer", data), {"root": root, "environ": os.environ}
    options = validate_settings(StoreOptions, data.get("storage", {}), name="storage")
    if isinstance(section, dict) and "checkpoint" in section:
        section, named = resolve_checkpoint(section, lambda uri: read(uri, options), context)
    return validate_settings(AnyTokenizer, section, name=named, context=context), options


def load_storage(path: Path | None) -> StoreOptions:
    """Read the ``storage`` section of a YAML file, such as a job file; the defaults without one."""
    data = {} if path is None else read_mapping(_read_text(path), str(path)).get("storage")
    options: StoreOptions = validate_settings(StoreOptions, data, name=f"{path}: storage")
    return options


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", "it is not text")
        do = "Name a job file, or write one with tokpipe init"
        raise ConfigError(f"{path}: cannot be read as a job file: {reason}. {do}") from error


def parse_job(
    text: str,
    *,
    name: str,
    root: Path,
    environ: Mapping[str, str] | None = None,
    read: ReadFromStore = read_local,
) -> JobConfig:
    """Check the YAML ``text`` of a job. Errors start with ``name``, relative paths at ``root``.

    Without ``read``, checkpoints must be on this machine: to import fast, this knows no stores.
    """
    data = read_mapping(text, name, "job file")
    context = {"root": root, "environ": os.environ if environ is None else environ}
    config_uri, section = None, data.get("tokenizer")
    if isinstance(section, dict) and "checkpoint" in section:
        try:
            options = validate_settings(StoreOptions, data.get("storage", {}), name="storage")
            data["tokenizer"], config_uri = resolve_checkpoint(
                section, lambda uri: read(uri, options), context
            )
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error
    job: JobConfig = validate_settings(
        JobConfig, data, name=name, context=context, tokenizer_from=config_uri
    )
    return job
