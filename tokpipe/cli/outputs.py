"""Verbs that read a job's output."""

import argparse
import re
from dataclasses import asdict
from pathlib import Path

from tokpipe.cli.arguments import Adder, Parsed, Verb, check_new_file
from tokpipe.cli.output import Result, print_lines, shown
from tokpipe.errors import ConfigError, CorruptOutput
from tokpipe.export import FORMATS
from tokpipe.telemetry.human import json_line


class Status(Verb, example="tokpipe status s3://bucket/codes/webvid"):
    """Show a job's progress, rate, time left and what it has written.

    Reads only the output, so the job may be running elsewhere, finished or stopped.
    """

    def add_arguments(self, add: Adder) -> None:
        add.output()
        what = "also list the sources of the job file, and compare them with the plan"
        add.flag("--sources", what)

    def run(self, parsed: Parsed) -> Result:
        from tokpipe.verbs.locate import is_job_file, load_pinned
        from tokpipe.verbs.status import Status

        if parsed.sources and not is_job_file(parsed.output):
            raise ConfigError(f"--sources is for jobs: name a job file, not {parsed.output}")
        return Status(parsed.open_output(), load_pinned(parsed.output) if parsed.sources else None)


class Ls(Verb, example="tokpipe ls out/demo --source '*.mov' --limit 20"):
    """List tokenized clips with their sources, lengths and marks."""

    def add_arguments(self, add: Adder) -> None:
        add.output()
        add.source("only clips")
        add.text("--mark", "M", "only clips with this mark, such as damaged")
        add.count("--limit", 0, "list N clips; 0 for all")

    def run(self, parsed: Parsed) -> Result:
        from tokpipe.verbs.clips import clip_lines

        return clip_lines(parsed.open_output(), as_json=parsed.json, **parsed.rest())


class Inspect(Verb, example="tokpipe inspect out/demo --shards 0"):
    """Show an output's columns, a few clips, and how often codes occur."""

    def add_arguments(self, add: Adder) -> None:
        add.output()
        add.shards()
        add.count("--clips", 3, "show N clips", dest="num_clips")

    def run(self, parsed: Parsed) -> Result:
        from tokpipe.verbs.inspect import Inspection

        return Inspection(parsed.open_output(), **parsed.rest())


class Decode(Verb, example="tokpipe decode jobs/demo.yaml --compare -o clip.mp4"):
    """Decode the codes of one clip to a video or an image.

    Shows what the codes preserve of a clip.
    """

    def add_arguments(self, add: Adder) -> None:
        add.output()
        which = add.one_of()
        which.text("--clip", "ID", "clip id (default: the first clip)", dest="clip_id")
        which.source("the first clip")
        add.target("FILE", "FILE.mp4 for the whole clip, FILE.png for a few of its frames")
        what = "also decode the source, show it next to the clip, and print PSNR and SSIM"
        add.flag("--compare", what)
        add.device()
        add.trust()

    def run(self, parsed: Parsed) -> Result:
        check_new_file(parsed.path, ".mp4", ".png")
        from tokpipe.reconstruct.command import Decoded

        return Decoded(parsed.open_output(), **parsed.rest())


class Locate(Verb, example="tokpipe locate jobs/demo.yaml --source bunny --time 1 --x 640"):
    """Show what of its source a code stands for, or find the codes of a place in a source."""

    def add_arguments(self, add: Adder) -> None:
        add.output()
        which = add.one_of(required=True)
        which.text("--clip", "ID", "the clip of the code, as tokpipe ls prints it", dest="clip_id")
        which.source("the place in the source")
        which.text("--export", "FOLDER", "a memmap or megatron export", dest="folder", type=Path)
        add.count("--token", 0, "the token of the export, over all clips")
        add.text("--template", "FILE", "the template of the export, if it has tokens of one")
        add.count("--position", 0, "the code of the clip, flattened as t, h, w or t, h, w, c")
        place = {"time": "presentation time, in seconds,", "x": "column, in pixels,", "y": "row"}
        for name, what in place.items():
            add.text(f"--{name}", "N", f"{what} of the place (default: 0)", type=float, default=0)
        add.flag("--trust-uris", "open the sources that the output names")

    def run(self, parsed: Parsed) -> Result:
        from tokpipe.reconstruct.sources import Locator

        output, place = parsed.open_output(), (parsed.clip_id, parsed.position)
        if parsed.folder is not None:
            from tokpipe.export.places import place_of
            from tokpipe.reader.compose import Template

            template = None if parsed.template is None else Template.load(parsed.template)
            place = place_of(output, parsed.folder, parsed.token, template)
        with Locator(output) as locator:
            if parsed.source is None:
                return {"codes": [locator.code(*place)]}
            return {"codes": locator.codes_at(parsed.source, parsed.time, parsed.x, parsed.y)}


class Rejected(Verb, example="tokpipe rejected out/demo --reason truncated"):
    """List rejected clips, newest first, and why they were rejected.

    After fixing their files or the job's limits, retry them with
    tokpipe run JOB.yaml --retry-rejected.
    """

    def add_arguments(self, add: Adder) -> None:
        add.output()
        add.text("--reason", "R", "only clips rejected for this reason")
        add.text("--stage", "S", "only clips rejected by this stage")

    def run(self, parsed: Parsed) -> Result:
        from tokpipe.verbs.clips import rejected_lines

        return rejected_lines(parsed.open_output(), as_json=parsed.json, **parsed.rest())


class Report(Verb, example="tokpipe report jobs/demo.yaml -o report.html"):
    """Write a report on an output as one HTML file that works offline.

    Shows throughput and what limited it, rejections, code usage, clip lengths, some clips next to
    their sources, and provenance.
    """

    def add_arguments(self, add: Adder) -> None:
        add.output()
        add.target("FILE.html", "where to write")
        pairs = "show N clips next to their sources; 0 needs neither torch nor sources"
        add.count("--pairs", 3, pairs, dest="num_pairs")
        add.shards()
        add.count("--seed", 0, "selects the clips")
        add.device()
        add.trust()

    def run(self, parsed: Parsed) -> Result:
        from tokpipe.report.write import WrittenReport

        check_new_file(parsed.path, ".html", ".htm")
        return WrittenReport(parsed.open_output(), **parsed.rest())


class Audit(Verb, example="tokpipe audit jobs/demo.yaml --sample 10"):
    """Check that an output is complete and undamaged. Writes nothing.

    Every planned clip must be tokenized or rejected exactly once, and every listed object must be
    what was written. Exits with code 8 on any defect.
    """

    def add_arguments(self, add: Adder) -> None:
        add.output()
        what = (
            "manifest: read the plan and the manifest; sizes: also look up the size of each "
            "listed object; bytes: also read every byte of them (default: bytes)"
        )
        depths = ["manifest", "sizes", "bytes"]
        add.argument("--depth", choices=depths, default="bytes", help=what)
        add.flag("--partial", "accept plan rows that are not settled yet")
        sample = "also encode N random clips again from their sources, and compare the codes"
        add.count("--sample", 0, sample)
        add.count("--seed", 0, "selects the random clips")
        add.trust()

    def run(self, parsed: Parsed) -> Result:
        from tokpipe.audit import Audit

        found = Audit(parsed.find_store(), trust=parsed.trust(), **parsed.rest())
        print_lines(shown(found, parsed))
        return 0 if found.is_clean else CorruptOutput.exit_code


class Remove(Verb, example="tokpipe remove out/demo --source holiday.mp4 --purge"):
    """Take clips out of a finished output, at once for everything that reads it.

    Shards that have some of them are replaced by others without them. tokpipe run JOB.yaml
    --retry-rejected --reason removed brings clips back, unless they are purged.
    """

    def add_arguments(self, add: Adder) -> None:
        add.output()
        add.source("clips")
        many = {"dest": "clip_ids", "action": "append", "default": []}
        add.text("--clip", "ID", "the clip with this id; may be repeated", **many)
        add.text("--where", "EXPR", "clips by a column of clips/: NAME=VALUE, or != < <= > >=")
        add.flag("--purge", "also delete all that names these clips, and those removed before")
        add.flag("--dry-run", "change nothing, print what would be removed")

    def run(self, parsed: Parsed) -> Result:
        from tokpipe.audit.remove import remove

        if not (parsed.source or parsed.clip_ids or parsed.where or parsed.purge):
            raise ConfigError("nothing to remove: use --source, --clip or --where, or --purge")
        return remove(parsed.find_store(), **parsed.rest())


class Clean(Verb, example="tokpipe clean out/demo --older-than 2d --dry-run"):
    """Remove objects that killed workers and drivers left in an output.

    These are objects that neither the manifest nor job.json lists. Readers never see them. Until
    every row of the plan is settled, shards are kept: they may belong to a driver, or to entries
    that were lost.
    """

    def add_arguments(self, add: Adder) -> None:
        add.output()
        what = "remove objects older than this, such as 90m, 12h or 2d; at least 1h (default: 2d)"
        how = {"dest": "older_than_s", "type": _seconds, "default": "2d"}
        add.text("--older-than", "AGE", what, **how)
        add.flag("--partial", "also remove shards of a job that will never be finished")
        add.flag("--dry-run", "remove nothing, print what would be removed")

    def run(self, parsed: Parsed) -> Result:
        from tokpipe.audit import clean

        store = parsed.find_store()
        removed = clean(store, **parsed.rest())
        if parsed.json:
            return [json_line({**asdict(removed), "dry_run": parsed.dry_run})]
        done = "would remove" if parsed.dry_run else "removed"
        size = f"{removed.size_bytes / 1e6:,.1f} MB"
        lines = [f"{store.uri}: {done} {removed.num_objects:,} unlisted objects, {size}"]
        if removed.num_kept:
            lines.append(
                f"kept {removed.num_kept:,} unlisted shards and side tables: the job has not "
                "finished, so they may belong to a driver, or to manifest entries that were lost. "
                "Finish it first, or use --partial if it never will be finished"
            )
        return lines


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not an age: write 90m, 12h or 2d")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


class Export(Verb, example="tokpipe export out/demo --to memmap -o out/demo-memmap"):
    """Write all clips of an output to a local folder in another loader's format.

    Checks the counts; the folder only appears once it is complete.
    """

    def add_arguments(self, add: Adder) -> None:
        add.output()
        about = "; ".join(f"{name}: {about}" for name, (_, about) in FORMATS.items())
        add.argument("--to", choices=[*FORMATS], required=True, help=about)
        add.target("FOLDER", "must not exist yet", dest="folder")
        what = "store clips as the tokens of this template, a YAML or JSON file, not as codes"
        add.text("--template", "FILE", what)
        add.count("--workers", 1, "read and compose in N processes", least=1, dest="num_workers")
        add.flag("--allow-partial", "export what there is, although the job has not finished")

    def run(self, parsed: Parsed) -> Result:
        from tokpipe.export import export_output
        from tokpipe.reader.compose import Template

        if parsed.template is not None:
            parsed.template = Template.load(parsed.template)
        return export_output(parsed.open_output(), **parsed.rest())
