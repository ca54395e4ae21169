"""Where clips come from: files by glob, a table, or WebDataset tars."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tokpipe.config.base import Frozen, Uri, UriTemplate


class FilesSource(Frozen):
    """One clip per file that matches a glob."""

    kind: Literal["files"]
    uri: Uri
    """Glob such as ``videos/**/*.mp4`` or ``s3://bucket/raw/*.mp4``."""


class TableSource(Frozen):
    """One clip per row of a table: CSV, TSV, JSONL or Parquet, by its file name's ending."""

    kind: Literal["table"]
    uri: Uri
    """The table, or a glob of tables with the same columns. ``.gz`` is read as it is."""
    format: Literal["csv", "tsv", "jsonl", "parquet"] | None = None
    """Only for a name whose ending does not tell."""
    uri_column: str | None = None
    """Column that holds each video's URI (WebVid: ``contentUrl``). One without a scheme and
    without a leading ``/`` is relative to the folder of its table."""
    uri_template: UriTemplate | None = None
    """Or a pattern over columns, such as ``s3://bucket/{page_dir}/{videoid}.mp4``."""
    start_column: str | None = None
    """Column with the clip's first second in the video, or its ``[HH:]MM:SS.mmm``; null means
    from the beginning."""
    end_column: str | None = None
    """Column with the second at which the clip ends; null means to the end."""
    allowed_prefixes: Annotated[tuple[Uri, ...], Field(min_length=1)] | None = None
    """Where the videos that the table names must lie, such as ``[s3://bucket/raw, /data/videos]``;
    others are rejected, and so is any path with ``..`` in it. When left out: anywhere in remote
    stores and on the web, and for a local table also below its own folder, but nowhere else on
    this machine."""

    @model_validator(mode="after")
    def _one_way_to_a_uri(self) -> Self:
        if (self.uri_column is None) == (self.uri_template is None):
            raise ValueError("give exactly one of uri_column and uri_template")
        return self


class WebDatasetSource(Frozen):
    """One clip per video member of tar files, as video2dataset writes them."""

    kind: Literal["webdataset"]
    uri: Uri
    """A tar, or a glob of tars. Members are read in place, by byte range."""
    video_extensions: tuple[str, ...] = ("mp4", "mkv", "webm", "mov", "avi")


Source = Annotated[FilesSource | TableSource | WebDatasetSource, Field(discriminator="kind")]
