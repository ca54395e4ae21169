"""Finds the output or the job file that somebody named, or explains what is there instead."""

import difflib
import os
import shlex
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tokpipe.config.job import StoreOptions
from tokpipe.config.load import load_output
from tokpipe.config.sources import MEDIA_EXTENSIONS, TABLE_EXTENSIONS
from tokpipe.errors import ConfigError, NotFound
from tokpipe.formats.layout import JOB_RECORD
from tokpipe.storage import Store
from tokpipe.storage.client import split_protocol

_INSIDE = {JOB_RECORD, "plan", "manifest", "shards", "clips"}
"""Names below an output's prefix; nothing is deeper than two more levels."""
_SHOWN = 4
_OF_JOBS = (".yaml", ".yml")
_DATA = {f".{one}" for one in (*MEDIA_EXTENSIONS["both"], *TABLE_EXTENSIONS, "tar")}


def find_output(named: str, options: StoreOptions | None = None) -> Store:
    """Open the store of the output that is meant.

    Args:
        named: the output's URI, the URI of anything inside it, or the job file that writes it.
        options: how to reach the store, unless a job file says.

    Raises:
        ConfigError: the job file, or the URI's protocol, cannot be used.
        NotFound: there is no output. The message says what there is instead.
    """
    if not named:
        raise ConfigError("the output is empty text: name the job's output.uri or its job file")
    uri, options, job = named, options or StoreOptions(), None
    if is_job_file(named):
        job, (uri, options) = named, load_output(named)
    elif (path := _local(named)) is not None:
        uri = str(path)
    store = Store(uri, options)
    for candidate in (store, *(Store(above, options) for above in _above(store.uri))):
        if candidate.size(JOB_RECORD) is not None:
            return candidate
    if any(next(iter(store.list(f"{name}/")), None) for name in ("manifest", "plan")):
        return store  # a damaged output, which the verb will describe
    if job is not None:
        found = f"{job}: its output, {uri}, has no {JOB_RECORD}, so the job has not started"
        raise NotFound(f"{found}. Start it with tokpipe run {job}")
    if (path := _local(uri)) is not None:
        found = _missing(path)
    else:
        keys = [one.key for one in islice(store.list(""), _SHOWN)]
        found = f"{uri}: has no {JOB_RECORD}; it holds {', '.join(keys) or 'nothing'}."
    raise NotFound(f"{found} Name the job's output.uri or its job file")


def is_job_file(named: str) -> bool:
    """Whether the user names a job file, which is trusted, in place of an output, which is not.

    Only the name decides: what a download holds, and so whether it is a file, is up to others.
    """
    path = _local(named)
    if path is None or path.suffix not in _OF_JOBS:
        return False
    return path.is_file() and not is_inside_output(str(path))


def check_is_job_file(path: Path) -> None:
    """Raise ConfigError if a path is missing, a folder or in an output, and say what to name."""
    for output in (str(path.absolute()), *_above(str(path.absolute()))):
        if _is_output(output):
            raise ConfigError(
                f"{path}: this is a job's output. To resume the job, use tokpipe run with the job "
                "file that has this output.uri; to see how far it is, tokpipe status "
                f"{_shown(Path(output))}"
            )
    if path.is_dir():
        jobs = sorted(str(job) for job in path.iterdir() if job.suffix in _OF_JOBS)
        held = f"; it holds {_some(jobs)}" if jobs else " without any .yaml file"
        init = f"; `tokpipe init {shlex.quote(f'{path}/')}` writes one" if not jobs else ""
        raise ConfigError(f"{path}: this is a folder{held}. Name one job file{init}")
    if path.is_file() and path.suffix.lower() in _DATA:
        init = f"`tokpipe init {shlex.quote(str(path))}` writes one for it"
        raise ConfigError(f"{path}: is not a job file; {init}")
    if not path.exists():
        raise ConfigError(f"{_missing(path.absolute())} Name a job file, such as jobs/demo.yaml")


def _local(uri: str) -> Path | None:
    protocol, rest = split_protocol(uri)
    return Path(os.path.abspath(rest)) if protocol == "file" else None  # noqa: PTH100


def is_inside_output(path: str) -> bool:
    return any(map(_is_output, _above(path)))


def _above(uri: str) -> Iterator[str]:
    """Yield the prefixes of which ``uri`` could be a part."""
    parts = uri.rstrip("/").split("/")
    for number in range(max(1, len(parts) - 3), len(parts)):
        if parts[number] in _INSIDE:
            yield "/".join(parts[:number])


def _is_output(folder: str) -> bool:
    return Path(folder, JOB_RECORD).is_file()


def _missing(path: Path) -> str:
    """Describe what is at an absolute path, or near it."""
    here = _shown(path)
    if path.is_dir():
        names = sorted(one.name + "/" * one.is_dir() for one in islice(path.iterdir(), 1000))
        outputs = [_shown(path / name) for name in names if _is_output(str(path / name))]
        if outputs:
            return f"{here}: this folder is not an output, but holds some: {_some(outputs)}."
        return f"{here}: this folder is not an output; it holds {_some(names) or 'nothing'}."
    if path.exists():
        return f"{here}: is neither an output nor a job file, which ends in .yaml or .yml."
    if ":/" in here:
        return f"{here}: does not exist. A URI has two slashes after its colon."
    if not path.parent.is_dir():
        return f"{here}: does not exist, and neither does the folder {_shown(path.parent)}."
    by_name = {one.name: one for one in islice(path.parent.iterdir(), 1000)}
    by_name |= {one.stem: one for one in path.parent.glob("*.yaml")}
    near = [_shown(by_name[name]) for name in difflib.get_close_matches(path.name, by_name, n=1)]
    return f"{here}: does not exist." + "".join(f" Did you mean {one}?" for one in near)


def _shown(path: Path) -> str:
    path = path.absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _some(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")
