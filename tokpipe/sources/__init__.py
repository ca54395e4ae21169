"""Turns the sources of a job file into streams of rows for the plan."""

from collections.abc import Sequence

from tokpipe.config.base import literal_part
from tokpipe.config.job import StoreOptions
from tokpipe.config.sources import VIDEO_EXTENSIONS, FilesSource, Source, TableSource
from tokpipe.sources.files import FilesRows
from tokpipe.sources.rows import RowSource
from tokpipe.sources.table import EXTENSIONS, TableRows
from tokpipe.sources.webdataset import WebDatasetRows
from tokpipe.storage.listing import Listing

_EXTENSIONS = {"files": VIDEO_EXTENSIONS, "table": EXTENSIONS, "webdataset": ("tar",)}


def open_sources(
    configs: Sequence[Source], options: StoreOptions, output_uri: str = ""
) -> list[RowSource]:
    """Return the rows of all sources of a job, to be read in this order.

    Files below ``output_uri`` are not part of a folder of videos.
    """
    listings = [
        Listing(config.uri, options, _EXTENSIONS[config.kind], literal_part(config.uri), output_uri)
        for config in configs
    ]
    rows: list[RowSource] = []
    for index, (config, listing) in enumerate(zip(configs, listings, strict=True)):
        listing.share(listings[:index], listings[index + 1 :])
        label = f"sources[{index}] ({config.kind} {config.uri})"
        if isinstance(config, FilesSource):
            rows.append(FilesRows(label, listing))
        elif isinstance(config, TableSource):
            rows.append(TableRows(label, listing, config, options))
        else:
            rows.append(WebDatasetRows(label, listing, config, options))
    return rows
