"""Finds the output or the job file that somebody named."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

from tokpipe.config.checkpoint import WEIGHTS_KEYS
from tokpipe.config.job import JobConfig, StoreOptions
from tokpipe.config.load import load_job, load_output
from tokpipe.config.tokenizer import PROGRAMS
from tokpipe.errors import ConfigError, NotFound
from tokpipe.formats import job_record
from tokpipe.formats.layout import JOB_RECORD
from tokpipe.storage import Store
from tokpipe.storage.client import client_of, split_protocol
from tokpipe.storage.hub import pinned_name
from tokpipe.weights.read import read_object

_INSIDE = {JOB_RECORD, "plan", "manifest", "shards", "clips"}
"""Names below an output's prefix; nothing is deeper than two more levels."""


def find_output(named: str, options: StoreOptions) -> Store:
    """Open the store of an output, named by its URI, that of anything inside it, or its job file.
    ``options``: how to reach the store, unless a job file says. NotFound if there is no output,
    ConfigError if the job file or the URI's protocol cannot be used."""
    if not named:  # which would mean the current folder
        raise ConfigError("the output is empty text: name the job's output.uri or its job file")
    uri = named
    if is_job_file(named):
        uri, options = load_output(named)
    elif (path := _local(named)) is not None:
        uri = str(path)
    store = Store(uri, options)
    for candidate in (store, *(Store(above, options) for above in _above(store.uri))):
        if candidate.size(JOB_RECORD) is not None:
            return candidate
    if any(next(iter(store.list(f"{name}/")), None) for name in ("manifest", "plan")):
        return store  # a damaged output, which the verb will describe
    found = f"has no {JOB_RECORD}, so it is not an output, or its job has not started"
    raise NotFound(f"{uri}: {found}. Name the job's output.uri or its job file")


def load_pinned(path: str | Path) -> JobConfig:
    """Read a job file, with commits in place of branches of the Hub's repositories.

    If its output was started, they are the commits that the output records, so that a resumed job
    reads the same bytes. Not those of programs, because anyone may have written the record.
    ConfigError if it is wrong, or belongs to an output, whose files are not trusted."""
    if output := next(outputs_around(str(Path(path).absolute())), None):
        do = "To resume the job, use tokpipe run with the job file that has this output.uri; to see"
        found = f"{path}: belongs to the output {output}, so it is not a job file"
        raise ConfigError(f"{found}. {do} how far it is, tokpipe status {output}")
    known = recorded = cache(partial(_recorded_commits, path))
    job = load_job(path, read=lambda uri, how: read_object(_pinned(uri, how, known), how))
    if job.tokenizer.kind in PROGRAMS:
        job, known = load_job(path, read=read_object), cache(dict)
    files = {key: getattr(job.tokenizer, key, None) for key in WEIGHTS_KEYS}
    files = {key: _pinned(uri, job.storage, known) for key, uri in files.items() if uri}
    uris = [{"uri": _pinned(one.uri, job.storage, recorded)} for one in job.sources]
    sources = [one.model_copy(update=uri) for one, uri in zip(job.sources, uris, strict=True)]
    tokenizer = job.tokenizer.model_copy(update=files)
    return job.model_copy(update={"sources": (*sources,), "tokenizer": tokenizer})


def _pinned(uri: str, options: StoreOptions, known: Callable[[], Mapping[str, str]]) -> str:
    if split_protocol(uri)[0] != "hf":  # the packages of other protocols may be missing here
        return uri
    client = client_of(uri, options)
    return client.uri_of(pinned_name(client, uri, known))


def _recorded_commits(path: str | Path) -> dict[str, str]:
    """Return the commit of each repository of which a job's output records only one."""
    with suppress(NotFound):
        text = str(job_record.read(Store(*load_output(path))).job)
        pins = set(re.findall(r"hf://([\w./-]+)@([0-9a-f]{40})\b", text))
        return {name: commit for name, commit in pins if sum(one == name for one, _ in pins) == 1}
    return {}


def is_job_file(named: str) -> bool:
    """Whether the user names a job file, which is trusted, in place of an output, which is not.
    Only its name says so: what a download holds, and so whether it is a file, is up to others."""
    path = _local(named)
    if path is None or path.suffix not in (".yaml", ".yml"):
        return False
    return path.is_file() and not any(outputs_around(str(path)))


def _local(uri: str) -> Path | None:
    protocol, rest = split_protocol(uri)
    return Path(os.path.abspath(rest)) if protocol == "file" else None  # noqa: PTH100


def outputs_around(path: str) -> Iterator[str]:
    """Yield the outputs that a local path is, or is in."""
    return (one for one in (path, *_above(path)) if Path(one, JOB_RECORD).is_file())


def _above(uri: str) -> Iterator[str]:
    """Yield the prefixes of which ``uri`` could be a part."""
    parts = uri.rstrip("/").split("/")
    for number in range(max(1, len(parts) - 3), len(parts)):
        if parts[number] in _INSIDE:
            yield "/".join(parts[:number])
