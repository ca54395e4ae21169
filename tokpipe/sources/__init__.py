"""Turns the sources of a job file into streams of rows for the plan."""

from collections.abc import Sequence

from tokpipe.config.job import StoreOptions
from tokpipe.config.sources import MEDIA_EXTENSIONS, Source
from tokpipe.sources.files import FilesRows
from tokpipe.sources.rows import RowSource
from tokpipe.sources.table import EXTENSIONS, TableRows
from tokpipe.sources.webdataset import WebDatasetRows
from tokpipe.storage.listing import Listing

_KINDS: dict[str, tuple[type[RowSource], Sequence[str]]] = {
    "files": (FilesRows, ()),
    "table": (TableRows, EXTENSIONS),
    "webdataset": (WebDatasetRows, ("tar",)),
}
"""By kind: the rows of a source, and the extensions of its files; of media, if there are none."""


def open_sources(
    configs: Sequence[Source], options: StoreOptions, output_uri: str = ""
) -> list[RowSource]:
    """Return the rows of a job's sources, in order. Folders exclude files below ``output_uri``."""
    listings = []
    for config in configs:
        known = _KINDS[config.kind][1] or MEDIA_EXTENSIONS[config.media]
        listings.append(Listing(config.uri, options, known, output_uri))
    rows = []
    for index, (config, listing) in enumerate(zip(configs, listings, strict=True)):
        listing.share(listings[:index], listings[index + 1 :])
        label = f"sources[{index}] ({config.kind} {config.uri})"
        rows.append(_KINDS[config.kind][0](label, listing, config))
    return rows
