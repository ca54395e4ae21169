"""Where clips come from: files in a folder or by glob, tables, or WebDataset tars."""

import re
from string import Formatter
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tokpipe.config.base import Frozen, Uri, UriTemplate

VIDEO_EXTENSIONS = (
    *("mp4", "m4v", "mov", "qt", "3gp", "3gpp", "3g2", "f4v", "insv", "mkv", "webm", "mk3d"),
    *("avi", "divx", "wmv", "asf", "flv", "ogv", "ogm", "rm", "rmvb", "mxf", "dv", "gif", "y4m"),
    *("ts", "mts", "m2ts", "m2t", "tod", "mpg", "mpeg", "mpe", "m1v", "m2v", "vob", "mod"),
    *("h264", "264", "avc", "h265", "265", "hevc", "ivf", "obu", "nut", "wtv"),
)
"""What a folder of videos is searched for, in lower case: the containers that decoders open."""

_PICTURES = ("jpg", "jpeg", "png", "webp", "avif")
MEDIA_EXTENSIONS = {  # What a folder is searched for, by the ``media`` of its source
    "video": VIDEO_EXTENSIONS,
    "image": (*_PICTURES, "gif"),
    "both": (*VIDEO_EXTENSIONS, *_PICTURES),
}

TABLE_EXTENSIONS = ("csv", "tsv", "jsonl", "ndjson", "parquet", "parq")
"""Endings of tables in a folder. A ``.json`` there is mostly something else."""

COMPRESSIONS = ("gz", "zst", "bz2")
TABLE_ENDING = re.compile(
    rf"(?i)\.({'|'.join((*TABLE_EXTENSIONS, 'json'))})(\.({'|'.join(COMPRESSIONS)}))?$"
)


class _Source(Frozen):
    kind: str
    uri: Uri
    media: Literal["video", "image", "both"] = "video"
    """What becomes clips. Pictures (JPEG, PNG, WebP, AVIF, GIF) become clips of one frame, whatever
    ``sampling`` says. Under ``both``, a file's content decides. See [data.md](data.md#pictures)."""
    animation_as_picture: bool = False
    """Take the first frame of an animated GIF, WebP, PNG or AVIF as a picture. Otherwise ``media:
    image`` rejects it, and ``both`` reads it as a video."""
    on_change: Literal["reject", "accept"] = "reject"
    """What happens to clips whose source is not what was planned: a file or object that was
    replaced, a tar that was packed again. They are rejected as ``changed``, or made from what has
    the name now. May change when a job is resumed."""

    @model_validator(mode="after")
    def _animations_can_be_pictures(self) -> Self:
        if self.animation_as_picture and self.media == "video":
            raise ValueError("animation_as_picture needs pictures: set media: image or both")
        return self


class FilesSource(_Source):
    """One clip per file of a folder, or per file that matches a glob."""

    kind: Literal["files"]
    uri: Uri
    """A folder such as ``videos/``, whose videos of any extension are found at any depth; a glob
    such as ``s3://bucket/raw/**/*.mp4``; or one file. ``{a,b}`` and ``{000..999}`` expand."""


class TableSource(_Source):
    """One clip per row of a table: CSV, TSV, JSONL, JSON or Parquet, by file extension."""

    kind: Literal["table"]
    uri: Uri
    """Table, or glob of tables with the same columns. Text may be ``.gz``, ``.zst`` or ``.bz2``."""
    format: Literal["csv", "tsv", "jsonl", "json", "parquet"] | None = None
    """Format of a file whose extension does not say."""
    delimiter: Annotated[str, Field(pattern=r'^[^"\r\n]$')] | None = None
    """What separates columns of CSV or TSV, such as ``;``. By default a comma or a tab."""
    uri_column: str | None = None
    """Column with each video's URI (WebVid: ``contentUrl``), or with the videos themselves, as
    bytes or as a Hugging Face ``Video``. A URI without a scheme or a leading ``/`` is relative to
    the table's folder. ``a.b`` is a field of a column. Set this or ``uri_template``."""
    uri_template: UriTemplate | None = None
    """Pattern over columns, such as ``s3://bucket/{page_dir}/{videoid:06d}.mp4``, in the syntax
    of Python's ``str.format``."""
    start_column: str | None = None
    """Column with the time, as players count, where the clip starts, in seconds or as
    ``[HH:]MM:SS.mmm``; null means with the first frame."""
    end_column: str | None = None
    """Column with the time where the clip ends; null means at the end of the video."""
    allowed_prefixes: Annotated[tuple[Uri, ...], Field(min_length=1)] | None = None
    """Where the table's videos may be, such as ``[s3://bucket/raw, /data/videos]``. Others are
    rejected, and so is any path with ``..`` in it, and any redirect elsewhere. By default videos
    may be in any remote store or at public web addresses, and a local table's videos may also be
    below its own folder, but nowhere else on this machine."""

    @model_validator(mode="after")
    def _one_way_to_a_uri(self) -> Self:
        if (self.uri_column is None) == (self.uri_template is None):
            raise ValueError("set exactly one of uri_column and uri_template")
        for *_, spec, conversion in Formatter().parse(self.uri_template or ""):
            if conversion:
                raise ValueError("uri_template: a '!' has no meaning after the name of a column")
            if re.search(r"\{|\d{4}", spec or ""):
                raise ValueError("uri_template: a format may only make up to 999 characters")
        return self


class WebDatasetSource(_Source):
    """One clip per video in tar files, as video2dataset writes them."""

    kind: Literal["webdataset"]
    uri: Uri
    """A tar, or a glob of tars; ``{000..999}`` expands. Videos are read in place, by byte range."""
    video_extensions: tuple[str, ...] | None = None
    """Extensions, in any case, of members that are clips; by default, as for a folder of files."""


Source = Annotated[FilesSource | TableSource | WebDatasetSource, Field(discriminator="kind")]
