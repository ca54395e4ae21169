"""Turns the sources of a job file into streams of rows for the plan."""

from tokpipe.config.job import StoreOptions
from tokpipe.config.sources import FilesSource, Source, TableSource
from tokpipe.sources.files import FilesRows
from tokpipe.sources.rows import RowSource
from tokpipe.sources.table import TableRows
from tokpipe.sources.webdataset import WebDatasetRows


def open_source(index: int, config: Source, options: StoreOptions) -> RowSource:
    """Return the rows of one source; ``index`` is its position in the job file."""
    label = f"sources[{index}] ({config.kind} {config.uri})"
    if isinstance(config, FilesSource):
        return FilesRows(label, config, options)
    if isinstance(config, TableSource):
        return TableRows(label, config, options)
    return WebDatasetRows(label, config, options)
