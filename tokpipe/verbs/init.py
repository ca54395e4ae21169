"""``tokpipe init``: a commented job file for the videos that a folder holds."""

import json
import os
import re
import statistics
import textwrap
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from tokpipe.config import JobConfig, parse_job, project_root
from tokpipe.config.explain import in_yaml
from tokpipe.config.job import StoreOptions
from tokpipe.config.sources import MEDIA_EXTENSIONS, TABLE_ENDING, TableSource
from tokpipe.errors import ConfigError
from tokpipe.media.decoder import Probe
from tokpipe.plan import RowSample
from tokpipe.sources import open_sources
from tokpipe.sources.rows import RowSource
from tokpipe.sources.table import EXTENSIONS, TableRows, guess_columns
from tokpipe.sources.uris import example_prefix
from tokpipe.stages.decode import DecodeStage
from tokpipe.storage.left_out import kind_of
from tokpipe.storage.listing import Listing
from tokpipe.telemetry.human import counted
from tokpipe.telemetry.redact import redact
from tokpipe.verbs.locate import outputs_around

_OPTIONS = StoreOptions()
_NUM_SAMPLED = 8
_MAX_ROWS = 2_000
_SIDE = 128  # The shorter side of frames, at which the tokenizer that ships was trained
_STRIDE = 8
_LONGEST = 2.4  # Longer pictures are cropped
_FPS = 8
_COMMENTS = {
    "files": "  # All of them here; of a folder also those in the folders below it.\n",
    "table": "  # A clip per row. The other columns go to the output too.\n",
    "webdataset": "  # A clip per video in these tars. Its .txt and .json go to the output too.\n",
}
_NOT_OPENED = "; videos outside the folder of the table were not opened"
_OUTSIDE = """\
  # Rows with files elsewhere are rejected. If the table may name them, list their folders here:
  # allowed_prefixes: {}
"""


def write_job(target: str, path: Path | None = None) -> tuple[Path, list[str]]:
    """Write ``path``, by default ``jobs/NAME.yaml``, for what is at a URI; return it and notes."""
    plain = target.removeprefix("file://")
    uri = plain.rstrip("/") if "://" in plain else os.path.normpath(Path(plain).absolute())
    endings = "|".join((*EXTENSIONS, "tar", *MEDIA_EXTENSIONS["both"]))
    stem = re.sub(rf"(?i)(\.({endings}))+$", "", uri.rpartition("/")[2])
    # After the job file if there is one: two jobs of one folder do not share an output.
    name = re.sub(r"[^\w.-]+", "-", path.stem if path else stem).strip("-.") or "videos"
    path = path or Path("jobs", f"{name}.yaml")
    if path.exists():
        raise ConfigError(f"{path} exists already: name another file with -o, or remove this one")
    root = project_root(path)
    sources, probes, notes = [], [], []
    found, problems = _sources_of(uri)
    for source in found:
        is_one = source["uri"] == uri
        source["uri"] = source["uri"].removeprefix(f"{root}/") or "./"
        job = parse_job(_text(target, name, [source], []), name=str(path), root=root)
        near = re.split(r"[*?{]", uri)[0].rpartition("/")[0] if is_one else uri
        (rows,) = open_sources(job.sources, job.storage, job.output.uri)
        try:
            count, more, some = _probe(job, rows, near)
        except ConfigError as error:
            problems.append(str(error))
            continue
        if rows.outside_example:
            source["allowed_prefixes"] = [redact(example_prefix(rows.outside_example)), near]
        sources.append(source)
        probes += some
        notes.append(f"found {count} ({source['kind']} {source['uri']}){more}")
    if not sources:
        raise ConfigError("; ".join(problems))
    text = _text(target, name, sources, probes)
    parse_job(text, name=str(path), root=root)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("x", encoding="utf-8") as file:
        file.write(text)
    return path, [*notes, *(f"left out: {problem}" for problem in problems)]


def _sources_of(uri: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Return sections for what is at a URI, below it or matches it, and problems of tables."""
    listing = Listing(uri, _OPTIONS, known=MEDIA_EXTENSIONS["both"])
    kinds = Counter(kind_of(match.uri)[1:] for match in listing)
    is_glob = bool(re.search(r"[*?{]", uri)) and not (listing.folder or os.path.lexists(uri))
    is_file = is_glob or (kinds.total() == 1 and not listing.folder)
    found_names = (some[0] for some in listing.left_out.names.values())
    # An earlier output's tables are no list of videos.
    beside = (name for name in found_names if not any(outputs_around(f"{uri.rstrip('/')}/{name}")))
    names = [uri] if is_file else list(beside)
    patterns = {}
    for name in names:
        match = TABLE_ENDING.search(name) or re.search(r"(?i)\.(tar)$", name)
        if match and (is_file or match[1].lower() != "json"):
            patterns[match[1].lower()] = uri if is_file else f"{uri}/**/*{match[0]}"
    found: list[dict[str, Any]] = []
    problems = []
    for table in (pattern for ending, pattern in patterns.items() if ending != "tar"):
        config = TableSource(kind="table", uri=table, uri_template="-")
        (rows,) = open_sources([config], _OPTIONS)
        assert isinstance(rows, TableRows)
        try:
            folder, head = rows.head()
        except ConfigError as error:
            problems.append(str(error))
            continue
        embedded = {"uri_column": rows.media[0]} if rows.media else {}
        if guessed := guess_columns(head, folder) or embedded:
            found.append({"kind": "table", "uri": table, **guessed})
        else:
            what = "no column looks like the URIs or paths of videos. The columns are"
            problems.append(f"{table}: {what} {', '.join(head.schema.names)}")
    if not found and (kinds or is_glob) and not (is_file and patterns):
        # A folder of videos may hold previews of them, and most GIFs are animations.
        kinds = kinds or Counter([kind_of(uri)[1:]])
        is_image = {"gif"} != kinds.keys() <= {*MEDIA_EXTENSIONS["image"]}
        media = {"media": "image"} if is_image else {}
        found.append({"kind": "files", "uri": uri if is_file else f"{uri}/", **media})
    if "tar" in patterns and not any(source["kind"] == "table" for source in found):
        found.append({"kind": "webdataset", "uri": patterns["tar"]})
    if not found:
        nothing = f"found no videos, pictures, tables or tars of them. {listing.explain_nothing()}"
        raise ConfigError("; ".join(problems) or f"{uri}: {nothing}")
    return found, problems


def _probe(job: JobConfig, source: RowSource, near: str) -> tuple[str, str, list[Probe]]:
    """Return the number of clips, what is left out or cannot be opened, and what a few videos are
    like. Nobody has allowed a table to name videos outside the folder ``near``."""
    try:
        rows = RowSample(source, job.dataset, num_items=_NUM_SAMPLED, max_rows=_MAX_ROWS)
    except ConfigError:
        if not source.outside_example:
            raise
        return "only videos elsewhere", _NOT_OPENED, []
    if not rows.items and not source.outside_example:
        raise ConfigError(f"{source.label}: found no videos ({rows.problem or 'it is empty'})")
    count = "more than " * (not rows.is_complete) + counted(rows.num_rows, "clip")
    more = f"; left out: {there}" if (there := source.listing.left_out.text) else ""
    items = rows.items
    if isinstance(source, TableRows):
        here = re.compile(rf"{re.escape(near)}/(?!.*\.\.)")
        items = [item for item in items if here.match(item.source_uri)]
        more += _NOT_OPENED * (len(items) < len(rows.items) or bool(source.outside_example))
    if not items or not find_spec("av"):
        return count, more, []
    with DecodeStage(job.sampling, job.frames, job.decode, job.storage) as stage:
        found = [stage.probe(item) for item in items]
    probes = [one for one in found if isinstance(one, Probe)]
    if bad := [one for one in found if not isinstance(one, Probe)]:
        example = redact(f"{bad[0].ref.source_uri}: {bad[0].message}")
        if not probes:
            none = f"none of {len(found)} files can be opened, such as {example}"
            raise ConfigError(f"{source.label}: {none}")
        more += f"; {len(bad)} of {len(found)} tried cannot be opened, such as {example}"
    return count, more, probes


def _text(
    target: str, name: str, sources: Sequence[dict[str, Any]], probes: Sequence[Probe]
) -> str:
    fps = max((probe.source_fps for probe in probes if not probe.is_picture), default=0.0)
    about_fps = f"Videos here have up to {fps:.3g} frames/s. " if fps else ""
    sections = []
    for one in sources:
        proposed = one.pop("allowed_prefixes", None)
        text = yaml.safe_dump([one], allow_unicode=True, sort_keys=False)
        text += _OUTSIDE.format(json.dumps(proposed)) if proposed else ""
        sections.append(_COMMENTS[one["kind"]] + textwrap.indent(text, "  "))
    template = Path(__file__).with_name("init.yaml").read_text(encoding="utf-8")
    return template.format(
        target=redact(" ".join(target.split())),
        name=in_yaml(name),
        sources="".join(sections).rstrip(),
        output=in_yaml(f"out/{name}"),
        about_fps=f"{about_fps}8 show most motion; null keeps every frame.",
        fps=max(1, min(_FPS, int(fps or _FPS))),
        sizes=_sizes(probes),
    )


def _sizes(probes: Sequence[Probe]) -> str:
    shapes: dict[str, list[float]] = {"wide": [], "tall": [], "square": []}
    for probe in probes:
        height, columns, pixel_aspect = probe.shown
        width = round(columns * pixel_aspect)
        aspect = min(max(height, width) / min(height, width), _LONGEST)
        shapes["square" if aspect < 1.25 else "wide" if width > height else "tall"].append(aspect)
    sizes = []
    for shape, aspects in shapes.items():
        if aspects:
            long = round(_SIDE * statistics.median(aspects) / _STRIDE) * _STRIDE
            wide = [_SIDE, _SIDE if shape == "square" else long]
            sizes.append(wide[::-1] if shape == "tall" else wide)
    if len(sizes) > 1:
        return f"# Each clip gets the size closest to its shape.\n  buckets: {in_yaml(sizes)}"
    size = in_yaml(sizes[0] if sizes else [_SIDE, _SIDE])
    return f"# Height and width, both multiples of the tokenizer's stride.\n  size: {size}"
