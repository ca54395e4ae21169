"""Verbs that make, check and run jobs, and make their tokenizers."""

import os
import shlex
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from tokpipe.cli.arguments import Adder, Parsed, Verb, positive
from tokpipe.cli.output import Result, print_lines, shown
from tokpipe.config.job import StoreOptions
from tokpipe.config.published import PRESETS
from tokpipe.errors import ConfigError, CorruptOutput
from tokpipe.runtime import submitted
from tokpipe.telemetry.human import json_line

TOO_MANY_REJECTED = 4


class Init(Verb, example="tokpipe init videos/"):
    """Write a commented job file for a folder of videos, a table or tars.

    Probes a few videos, and proposes sources, sizes and frame rate. Never overwrites a file.
    """

    def add_arguments(self, add: Adder) -> None:
        what = "a folder, table, tar, video or quoted glob, on this machine or in a store"
        add.text("folder", "FOLDER", what)
        what = (
            "the job file to write, which also names the dataset and the output (default: "
            "jobs/NAME.yaml, after the folder)"
        )
        add.argument("-o", "--job", type=Path, metavar="FILE", help=what)

    def run(self, parsed: Parsed) -> Result:
        from tokpipe.verbs.init import write_job

        path, notes = write_job(parsed.folder, parsed.job)
        steps = (f"  tokpipe {verb} {shlex.quote(str(path))}" for verb in ("check", "run"))
        return [*notes, f"wrote {path}; next:", *steps]


class Check(Verb, example="tokpipe check jobs/demo.yaml"):
    """Check a job: try its sources, tokenizer and output, and list what was not tried.

    Opens a few videos, encodes noise, and writes and deletes one object in the output.
    """

    def add_arguments(self, add: Adder) -> None:
        add.job()
        add.json()
        add.count("--sample", 4, "open N videos of each source", least=1, dest="num_sampled")
        add.count("--seed", 0, "selects the videos")

    def run(self, parsed: Parsed) -> Result:
        from tokpipe.verbs.check import check

        return self.shown(parsed, check(parsed.load_job(), **parsed.rest()))

    def shown(self, parsed: Parsed, results: Any) -> Result:
        if parsed.json:
            return [json_line([{"subject": one.subject, **one.facts} for one in results])]
        return (one.text for one in results)


class Plan(Verb, example="tokpipe plan jobs/webvid.yaml --codes-per-s 250000 --price 2.5"):
    """Estimate a job's output, time and cost. Writes nothing.

    Counts all clips, and probes a sample of the videos without decoding them.
    """

    def add_arguments(self, add: Adder) -> None:
        add.job()
        add.json()
        add.count("--sample", 64, "probe N videos", least=1, dest="num_sampled")
        add.count("--seed", 0, "selects the videos")
        speed = "speed of one encoder, as tokpipe status shows it for a similar output"
        add.text("--codes-per-s", "X", speed, type=positive)
        price = {"dest": "price_per_hour", "type": float}
        add.text("--price", "P", "price of one encoder (GPU) hour", **price)

    def run(self, parsed: Parsed) -> Result:
        from tokpipe.verbs.forecast import Forecast

        return Forecast(parsed.load_job(), **parsed.rest())


class Diff(Check, example="tokpipe diff jobs/demo.yaml out/demo"):
    """Show what differs between a job and an output, and how many clips keep their codes.

    Says what to do. Reads all side tables and lists the sources, but opens no video.
    """

    def add_arguments(self, add: Adder) -> None:
        add.job()
        add.output()

    def run(self, parsed: Parsed) -> Result:
        from tokpipe.verbs.diff import diff

        return self.shown(parsed, diff(parsed.load_job(), parsed.open_output()))


class Run(Verb, example="tokpipe run jobs/demo.yaml"):
    """Start a job, or resume it where an earlier run stopped."""

    def add_arguments(self, add: Adder) -> None:
        add.job()
        add.flag("--dry-run", "only check the job, as tokpipe check does")
        what = "also tokenize what the sources, or sources added after them, have had since"
        add.flag("--extend", what)
        what = "try rejected clips again, after fixing their files or the job's limits"
        add.flag("--retry-rejected", what)
        add.text("--reason", "R", "with --retry-rejected: only clips rejected for this reason")

    def run(self, parsed: Parsed) -> Result:
        # Not only what rich finds: FORCE_COLOR makes it move the cursor in a file too.
        console = Console(highlight=False, force_interactive=None if sys.stdout.isatty() else False)
        _run_options(parsed)  # rejects those that do not go together
        try:
            job = parsed.load_job()
        except ConfigError as error:
            if submitted.JOB_CONFIG not in os.environ:
                raise
            lacks = "`ray job submit` sends no files or variables: see --working-dir"
            raise ConfigError(f"{error}. {lacks} and --runtime-env-json") from error
        if parsed.dry_run:
            from tokpipe.verbs.check import check

            return (one.text for one in check(job, extend=parsed.extend))
        submitted.check_output(job)
        # Imported late: ray takes seconds, and a wrong job file is reported without it.
        from tokpipe.runtime.assemble import RetryRejected
        from tokpipe.runtime.job import run_job, summary_lines

        retry = RetryRejected(parsed.reason) if parsed.retry_rejected else None
        outcome = run_job(job, console, retry, extend=parsed.extend)
        print_lines(summary_lines(job, outcome), console)
        if outcome.signal is not None:
            return 128 + outcome.signal
        if outcome.why or outcome.totals.rejected_fraction > job.max_rejected_fraction:
            return TOO_MANY_REJECTED
        return 0


def _run_options(parsed: Parsed) -> list[str]:
    if parsed.reason is not None and not parsed.retry_rejected:
        raise ConfigError("--reason requires --retry-rejected")
    flags = "dry_run", "extend", "retry_rejected"
    options = [f"--{name.replace('_', '-')}" for name in flags if getattr(parsed, name)]
    return options if parsed.reason is None else [*options, "--reason", parsed.reason]


class Submit(Run, example="tokpipe submit jobs/webvid.yaml --address http://HEAD:8265"):
    """Run a job on a Ray cluster: submit it, or follow it if it already runs there.

    Sends the job with its variables and the code of a custom tokenizer. Prints the driver's lines
    and returns its exit code. Ctrl-C only ends the printing: run the same command to follow again.
    """

    def add_arguments(self, add: Adder) -> None:
        super().add_arguments(add)
        what = (
            "dashboard of the cluster, such as http://HEAD:8265 (default: RAY_API_SERVER_ADDRESS, "
            "else RAY_ADDRESS, else the cluster on this machine)"
        )
        add.text("--address", "URL", what)
        what = (
            "also set this variable, such as AWS_ENDPOINT_URL, for the driver and workers; "
            "NAME=VALUE sets another value. Ray stores it, so secrets are rejected"
        )
        add.text("--env", "NAME", what, action="append", default=[])
        what = "return once the job is submitted"
        add.argument("--detach", "--no-follow", action="store_true", help=what)
        add.flag("--stop", "stop the job: it commits what is finished; run it again to resume")

    def run(self, parsed: Parsed) -> Result:
        options = _run_options(parsed)
        job = parsed.load_job()
        # Imported late: ray takes seconds, and a wrong job file is reported without it.
        from tokpipe.runtime.submit import Cluster, Package, Submission

        package = Package(parsed.job, job, options, parsed.env)
        cluster = Cluster(parsed.address)
        newest = cluster.newest(package)
        uri, is_new = job.output.uri, False
        if parsed.stop:
            if not newest.is_live:
                return [f"nothing to stop: no job for {uri} is running on {cluster.address}"]
            cluster.stop(newest)
            said = f"stopping {newest.id}: it commits what is finished, which can take a minute"
        elif newest.is_live:
            old = "with the settings it was submitted with (to use others, --stop it first)"
            said = f"{newest.id} already works on {uri}: following it, {old}"
        else:
            newest, is_new = cluster.submit(package, newest), True
            said = f"submitted {newest.id} to {cluster.address}"
        print_lines([said])
        ways = "run the same command to follow it, with --stop to stop it"
        if parsed.detach:
            return [ways]
        try:
            for line in cluster.follow(newest, from_start=is_new):
                if isinstance(line, Submission):
                    newest = line
                else:
                    print_lines([line])
        except KeyboardInterrupt:
            state = "is being stopped" if parsed.stop else "continues"
            print_lines([f"the job {state} on {cluster.address}: {ways}"])
            raise
        if parsed.stop and newest.was_stopped:
            return [f"stopped {newest.id}"]
        return newest.exit_code


class Convert(Verb, example="tokpipe convert movqgan_270M.ckpt --kind vqgan -o tokenizers/movqgan"):
    """Make a checkpoint folder from a training checkpoint.

    The folder holds config.yaml and model.safetensors. Code in the checkpoint is never run.
    """

    def add_arguments(self, add: Adder) -> None:
        what = "a .ckpt, .pt or .pth file of torch.save, or a .safetensors file; a path or hf://..."
        add.text("ckpt", "CKPT", what)
        add.target("FOLDER", "where to write")
        settings = add.one_of(required=True)
        what = "derive the settings from the weights' shapes"
        settings.argument("--kind", choices=["vqgan", "movqgan", "emu3"], help=what)
        what = "take the settings of this preset of kind vqgan or vidtok"
        settings.text("--preset", "NAME", what, dest="kind", choices=PRESETS)
        settings.text("--config", "YAML", "read the settings from a tokenizer section", type=Path)
        add.text("--state", "KEY", "entry of the checkpoint that holds the weights")
        add.flag("--ema", "take the moving averages of the weights")
        add.text("--strip", "PREFIX", "take only keys with this prefix, and remove the prefix")
        what = "leave out keys with this prefix; can be repeated"
        add.text("--drop", "PREFIX", what, action="append", default=[])

    def run(self, parsed: Parsed) -> Result:
        from tokpipe.storage.client import client_of
        from tokpipe.storage.hub import local_copy
        from tokpipe.weights.convert import Choices, convert

        source = Path(local_copy(client_of(parsed.ckpt, StoreOptions()), parsed.ckpt))
        choices = Choices(parsed.state, parsed.ema, parsed.strip, tuple(parsed.drop))
        return convert(source, parsed.path, kind=parsed.kind, config=parsed.config, choices=choices)


class Verify(Verb, example="tokpipe verify builtin://fsq-4x8x8"):
    """Measure what a tokenizer computes with its weights.

    Encodes a chart and a clip in several ways. Exits with code 8 if codes differ that must not.
    """

    def add_arguments(self, add: Adder) -> None:
        what = "a job file, a YAML file with a tokenizer section, or a checkpoint folder"
        add.text("named", "TOKENIZER", what)
        add.text("--clip", "FILE", "a video to encode (default: the chart, in motion)", default="")
        add.text("--size", ("H", "W"), "size of frames", default=(), type=int, nargs=2)
        types = ["float32", "bfloat16", "float16"]
        add.argument("--dtype", choices=types, default=types[0], help="compute in this type")
        what = "the authors' own code, to compare codes with it"
        add.text("--reference", "MODULE:FUNCTION", what, default="")
        add.device()
        add.json()

    def run(self, parsed: Parsed) -> Result:
        from tokpipe.verbs.verify import verify

        found = verify(**parsed.rest())
        print_lines(shown(found, parsed))
        return CorruptOutput.exit_code if found["failed"] else 0
