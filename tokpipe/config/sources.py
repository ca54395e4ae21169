"""Where clips come from: files that match a glob, tables, or WebDataset tars."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tokpipe.config.base import Frozen, Uri, UriTemplate


class FilesSource(Frozen):
    """One clip per file that matches a glob."""

    kind: Literal["files"]
    uri: Uri
    """Glob such as ``videos/**/*.mp4`` or ``s3://bucket/raw/*.mp4``."""


class TableSource(Frozen):
    """One clip per row of a table: CSV, TSV, JSONL or Parquet, by file extension."""

    kind: Literal["table"]
    uri: Uri
    """The table, or a glob of tables with the same columns. ``.gz`` is decompressed on the fly."""
    format: Literal["csv", "tsv", "jsonl", "parquet"] | None = None
    """Format of a file whose extension does not say."""
    uri_column: str | None = None
    """Column with each video's URI (WebVid: ``contentUrl``). A URI without a scheme or a leading
    ``/`` is relative to the table's folder. Set this or ``uri_template``."""
    uri_template: UriTemplate | None = None
    """Pattern over columns, such as ``s3://bucket/{page_dir}/{videoid}.mp4``."""
    start_column: str | None = None
    """Column with the time in the video where the clip starts, in seconds or as
    ``[HH:]MM:SS.mmm``; null means at the beginning."""
    end_column: str | None = None
    """Column with the time where the clip ends; null means at the end of the video."""
    allowed_prefixes: Annotated[tuple[Uri, ...], Field(min_length=1)] | None = None
    """Where the table's videos may be, such as ``[s3://bucket/raw, /data/videos]``. Others are
    rejected, and so is any path with ``..`` in it. By default videos may be in any remote store
    or on the web, and a local table's videos may also be below its own folder, but nowhere else
    on this machine."""

    @model_validator(mode="after")
    def _one_way_to_a_uri(self) -> Self:
        if (self.uri_column is None) == (self.uri_template is None):
            raise ValueError("set exactly one of uri_column and uri_template")
        return self


class WebDatasetSource(Frozen):
    """One clip per video in tar files, as video2dataset writes them."""

    kind: Literal["webdataset"]
    uri: Uri
    """A tar, or a glob of tars. Videos are read in place, by byte range."""
    video_extensions: tuple[str, ...] = ("mp4", "mkv", "webm", "mov", "avi")
    """Members with other extensions are not clips."""


Source = Annotated[FilesSource | TableSource | WebDatasetSource, Field(discriminator="kind")]
