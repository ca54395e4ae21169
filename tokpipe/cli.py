"""The command line: arguments in, exit codes out.

Exit codes: 0 every planned clip is tokenized or rejected, and few enough are rejected;
1 a bug; 2 the job file or a source is wrong; 3 the output has another plan or fingerprint;
4 too many clips rejected; 5 a store kept failing, or is unsafe; 6 another driver owns the
output; 7 no progress possible; 8 the output is damaged; 128 + n stopped by signal n, with
everything that was finished committed.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from rich.console import Console

import tokpipe
from tokpipe.config import load_job
from tokpipe.config.job import StoreOptions
from tokpipe.errors import ConfigError, CorruptOutput, TokpipeError
from tokpipe.redact import redact

TOO_MANY_REJECTED = 4


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the ``tokpipe`` command; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="tokpipe", description="Pre-tokenize video datasets into discrete codes."
    )
    parser.add_argument("--version", action="version", version=f"tokpipe {tokpipe.__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    run = verbs.add_parser(
        "run",
        help="start a job, or go on with it",
        description="Start a job, or go on with it where an earlier run ended.",
        epilog="example: tokpipe run jobs/demo.yaml",
    )
    add_run_arguments(run)
    run.set_defaults(command=_run)
    check = verbs.add_parser(
        "check",
        help="look for what would keep a job from running",
        description="Check a job file, its sources, weights and output. Writes nothing, starts "
        "nothing, needs no GPU.",
        epilog="example: tokpipe check jobs/demo.yaml",
    )
    _add_job_argument(check)
    check.set_defaults(command=_check)
    plan = verbs.add_parser(
        "plan",
        help="say what a job will give and cost, before it is started",
        description="Count a job's clips, look into a sample of its videos without decoding them, "
        "and say how many frames, codes, bytes and encoder hours there will be. Of a job that is "
        "done, also how far off this was. Writes nothing.",
        epilog="example: tokpipe plan jobs/webvid.yaml --like s3://bucket/codes/trial --price 2.5",
    )
    _add_plan_arguments(plan)
    plan.set_defaults(command=_plan)
    decode = verbs.add_parser(
        "decode",
        help="turn the codes of one clip back into pixels",
        description="Turn the codes of one clip back into pixels, to look at them.",
        epilog="example: tokpipe decode out/demo --compare -o clip.mp4",
    )
    _add_decode_arguments(decode)
    decode.set_defaults(command=_decode)
    status = verbs.add_parser(
        "status",
        help="say how far a job is, wherever it runs",
        description="Say how far a job is, at what rate and for how long still, and what it holds, "
        "from its output alone: the job may run elsewhere, be done, or have been stopped.",
        epilog="example: tokpipe status s3://bucket/codes/webvid",
    )
    _add_output_argument(status)
    _add_json_argument(status)
    status.set_defaults(command=_status)
    inspect = verbs.add_parser(
        "inspect",
        help="show what an output's codes mean and look like",
        description="Show the columns of an output, a few clips, and how often its codes occur, "
        "from a few of its shards.",
        epilog="example: tokpipe inspect out/demo --shards 0",
    )
    _add_inspect_arguments(inspect)
    inspect.set_defaults(command=_inspect)
    rejected = verbs.add_parser(
        "rejected",
        help="list the clips that were refused, and why",
        description="List the clips that were refused, the newest first, and why. After their "
        "files or the job's limits were mended: tokpipe run JOB.yaml --retry-rejected.",
        epilog="example: tokpipe rejected out/demo --reason truncated",
    )
    _add_rejected_arguments(rejected)
    rejected.set_defaults(command=_rejected)
    export = verbs.add_parser(
        "export",
        help="write an output in the format of another loader",
        description="Write all clips of an output to a local folder in the format of another "
        "loader, and check the counts. The folder appears when it is whole.",
        epilog="example: tokpipe export out/demo --to memmap -o out/demo-memmap",
    )
    _add_export_arguments(export)
    export.set_defaults(command=_export)
    convert = verbs.add_parser(
        "convert",
        help="make a checkpoint folder of a training checkpoint",
        description="Make a checkpoint folder (config.yaml and model.safetensors) of a training "
        "checkpoint. Nothing that is in the checkpoint is run.",
        epilog="example: tokpipe convert movqgan_270M.ckpt --kind movqgan -o tokenizers/movqgan",
    )
    _add_convert_arguments(convert)
    convert.set_defaults(command=_convert)
    audit = verbs.add_parser(
        "audit",
        help="check that an output is whole: every clip, every byte",
        description="Check that every planned clip is tokenized or rejected, once, and that every "
        "listed object is what was written. Exit code 8 on any defect. Writes nothing.",
        epilog="example: tokpipe audit out/demo --sample 10",
    )
    _add_audit_arguments(audit)
    audit.set_defaults(command=_audit)
    clean = verbs.add_parser(
        "clean",
        help="remove what killed workers left in an output",
        description="Remove objects that neither the manifest nor job.json names: what killed "
        "workers and drivers have left. Nothing that a reader sees is touched.",
        epilog="example: tokpipe clean out/demo --older-than 2d --dry-run",
    )
    _add_clean_arguments(clean)
    clean.set_defaults(command=_clean)
    bench = verbs.add_parser(
        "bench",
        help="measure how near this machine comes to what it can do",
        description="Run benchmarks: each figure beside its limit or its target, in the same run.",
        epilog="example: tokpipe bench encoder storage --json results",
    )
    _add_bench_arguments(bench)
    bench.set_defaults(command=_bench)
    parsed = parser.parse_args(arguments)
    return _reporting(parsed.command, parsed)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what ``tokpipe run`` and ``python -m tokpipe.run`` take."""
    _add_job_argument(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="the same as tokpipe check: write nothing, start nothing",
    )
    parser.add_argument(
        "--retry-rejected",
        action="store_true",
        help="try rejected clips again, after their files or the job's limits were mended",
    )
    parser.add_argument(
        "--reason", metavar="R", help="with --retry-rejected: only those rejected for this reason"
    )


def _add_job_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", type=Path, metavar="JOB.yaml", help="the job file")


def _add_output_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUT", help="the output of a job: its output.uri")


def _add_json_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print it as one line of JSON")


def _add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    _add_job_argument(parser)
    parser.add_argument(
        "--sample", type=_count, default=64, metavar="N", help="look into N videos (64)"
    )
    parser.add_argument("--seed", type=int, default=0, help="decides which videos those are")
    parser.add_argument(
        "--like",
        metavar="OUT",
        help="an output of the same tokenizer and GPU, whose cost per code is taken; the job's own "
        "when left out",
    )
    parser.add_argument(
        "--codes-per-s", type=float, metavar="X", help="of one encoder, in place of --like"
    )
    parser.add_argument("--price", type=float, metavar="P", help="of one encoder (GPU) for an hour")
    _add_json_argument(parser)


def _plan(parsed: argparse.Namespace) -> int:
    from tokpipe.forecast import forecast

    found = forecast(
        load_job(parsed.job, read=_read_checkpoint),
        num_sampled=max(1, parsed.sample),
        seed=parsed.seed,
        like=parsed.like,
        codes_per_s=parsed.codes_per_s,
        price_per_hour=parsed.price,
    )
    _tell(found, as_json=parsed.json)
    return 0


def _add_decode_arguments(parser: argparse.ArgumentParser) -> None:
    _add_output_argument(parser)
    parser.add_argument("--clip", metavar="ID", help="clip id; the first clip when left out")
    parser.add_argument(
        "-o",
        dest="path",
        type=Path,
        required=True,
        metavar="FILE",
        help="FILE.mp4 for the whole clip, FILE.png for a few of its frames",
    )
    parser.add_argument(
        "--compare",
        action="store_true",
        help="decode the source again, show it too, and print PSNR and SSIM against it",
    )
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, ...; a GPU if there is one when left out"
    )
    parser.add_argument(
        "--json", action="store_true", help="print what was done as one line of JSON"
    )


def _decode(parsed: argparse.Namespace) -> int:
    from tokpipe.reconstruct.command import decode_clip  # imports torch

    decoded = decode_clip(
        parsed.output, parsed.clip, parsed.path, compare=parsed.compare, device=parsed.device
    )
    _tell(decoded, as_json=parsed.json)
    return 0


def _status(parsed: argparse.Namespace) -> int:
    from tokpipe.status import status
    from tokpipe.storage import open_store

    found = status(open_store(parsed.output, StoreOptions()))
    _tell(found, as_json=parsed.json)
    return 0


def _add_inspect_arguments(parser: argparse.ArgumentParser) -> None:
    _add_output_argument(parser)
    parser.add_argument(
        "--shards",
        type=_count,
        default=8,
        metavar="N",
        help="count the codes of N shards, spread evenly (8 when left out); 0 for all",
    )
    parser.add_argument("--clips", type=_count, default=3, metavar="N", help="show N clips")
    _add_json_argument(parser)


def _inspect(parsed: argparse.Namespace) -> int:
    from tokpipe.inspection import inspect
    from tokpipe.reader import open_output

    found = inspect(open_output(parsed.output), num_shards=parsed.shards, num_clips=parsed.clips)
    _tell(found, as_json=parsed.json)
    return 0


def _add_rejected_arguments(parser: argparse.ArgumentParser) -> None:
    _add_output_argument(parser)
    parser.add_argument("--reason", metavar="R", help="only those refused for this reason")
    parser.add_argument("--stage", metavar="S", help="only those refused by this stage")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def _rejected(parsed: argparse.Namespace) -> int:
    from tokpipe.reader import open_output
    from tokpipe.rejections import rejected_lines

    lines = rejected_lines(
        open_output(parsed.output), reason=parsed.reason, stage=parsed.stage, as_json=parsed.json
    )
    _print(lines, Console(highlight=False))
    return 0


def _add_export_arguments(parser: argparse.ArgumentParser) -> None:
    _add_output_argument(parser)
    parser.add_argument(
        "--to",
        dest="format",
        choices=["memmap", "webdataset"],
        required=True,
        help="memmap: video.bin, segment_ids.bin and metadata.json, flat latent frames as 1X's "
        "loader maps them; webdataset: tars of <clip id>.npy and <clip id>.json",
    )
    parser.add_argument(
        "-o", dest="folder", type=Path, required=True, metavar="FOLDER", help="must not exist yet"
    )
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")


def _export(parsed: argparse.Namespace) -> int:
    from tokpipe.export import export_output
    from tokpipe.reader import open_output

    done = export_output(open_output(parsed.output), parsed.format, parsed.folder)
    _tell(done, as_json=parsed.json)
    return 0


def _add_audit_arguments(parser: argparse.ArgumentParser) -> None:
    _add_output_argument(parser)
    parser.add_argument(
        "--depth",
        choices=["manifest", "sizes", "bytes"],
        default="bytes",
        help="read the plan and the manifest; also look up the size of each listed object; or read "
        "every byte of them (the default)",
    )
    parser.add_argument(
        "--partial", action="store_true", help="the job is not finished: rows left are no defect"
    )
    parser.add_argument(
        "--sample",
        type=int,
        default=0,
        metavar="N",
        help="also encode N random clips again from their sources, and compare the codes",
    )
    parser.add_argument("--seed", type=int, default=0, help="decides which clips those are")
    parser.add_argument("--json", action="store_true", help="print the report as one line of JSON")


def _audit(parsed: argparse.Namespace) -> int:
    from tokpipe.audit import audit
    from tokpipe.storage import open_store

    errors = Console(stderr=True, highlight=False)
    report = audit(
        open_store(parsed.output, StoreOptions()),
        depth=parsed.depth,
        partial=parsed.partial,
        sample=parsed.sample,
        seed=parsed.seed,
        say=lambda line: errors.print(line, markup=False, soft_wrap=True),
    )
    _tell(report, as_json=parsed.json)
    return 0 if report.is_clean else CorruptOutput.exit_code


def _add_clean_arguments(parser: argparse.ArgumentParser) -> None:
    _add_output_argument(parser)
    parser.add_argument(
        "--older-than",
        type=_seconds,
        default="2d",
        metavar="AGE",
        help="age of what is removed, such as 90m, 12h or 2d (the default); an hour or more",
    )
    parser.add_argument("--dry-run", action="store_true", help="remove nothing, say what would be")
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")


def _clean(parsed: argparse.Namespace) -> int:
    from tokpipe.audit import clean
    from tokpipe.storage import open_store

    store = open_store(parsed.output, StoreOptions())
    removed = clean(store, older_than_s=parsed.older_than, dry_run=parsed.dry_run)
    if parsed.json:
        line = json.dumps({**removed.to_json(), "dry_run": parsed.dry_run})
    else:
        line = (
            f"{store.uri}: {'would remove' if parsed.dry_run else 'removed'} "
            f"{removed.num_objects:,} unlisted objects, {removed.size_bytes / 1e6:,.1f} MB"
        )
    _print([line], Console(highlight=False))
    return 0


def _add_bench_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="which; all when left out")
    parser.add_argument("--list", action="store_true", help="say which there are, run none")
    parser.add_argument(
        "--quick", action="store_true", help="smaller and shorter: it works, no figure to quote"
    )
    parser.add_argument("--json", type=Path, metavar="FOLDER", help="keep FOLDER/NAME.json of each")


def _bench(parsed: argparse.Namespace) -> int:
    from tokpipe.bench.catalogue import BENCHMARKS
    from tokpipe.bench.command import run_benchmarks

    console = Console(highlight=False)
    if parsed.list:
        _print((f"{name}: {measures}" for name, measures in BENCHMARKS.items()), console)
        return 0
    run_benchmarks(
        parsed.names,
        quick=parsed.quick,
        folder=parsed.json,
        say=lambda line: _print([line], console),
    )
    return 0


def _count(text: str) -> int:
    """Parse a number from 0 on."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return number


def _seconds(text: str) -> float:
    """Parse an age such as 90m, 12h or 2d."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no age: write 90m, 12h or 2d")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def run_command(parsed: argparse.Namespace) -> int:
    """Carry out ``run`` and turn its end into an exit code."""
    return _reporting(_run, parsed)


def _reporting(command: Callable[[argparse.Namespace], int], parsed: argparse.Namespace) -> int:
    """Run a command; print an error that it ends with, and return the code that stands for it."""
    try:
        return command(parsed)
    except TokpipeError as error:
        _print_error(f"{type(error).__name__}: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted; what is committed stays", style="red")
        return 128 + signal.SIGINT
    except Exception:  # a bug: its traceback may quote URIs, and what libraries were given
        _print_error(traceback.format_exc().rstrip())
        return 1


def _print_error(text: str) -> None:
    Console(stderr=True).print(redact(text), style="red", markup=False, soft_wrap=True)


def _check(parsed: argparse.Namespace) -> int:
    from tokpipe.check import check_lines

    job = load_job(parsed.job, read=_read_checkpoint)
    _print(check_lines(job), Console(highlight=False))
    return 0


def _run(parsed: argparse.Namespace) -> int:
    console = Console(highlight=False)
    if parsed.reason is not None and not parsed.retry_rejected:
        raise ConfigError(
            "--reason chooses among the clips that --retry-rejected tries again, and stands alone: "
            "give both, or neither"
        )
    if parsed.dry_run:
        return _check(parsed)
    job = load_job(parsed.job, read=_read_checkpoint)
    # Only now, because these import torch and ray: a wrong job file is told at once.
    from tokpipe.runtime.job import Retry, run_job
    from tokpipe.runtime.summary import summary_lines

    retry = Retry(parsed.reason) if parsed.retry_rejected else None
    outcome = run_job(job, console, retry)
    _print(summary_lines(job, outcome), console)
    if outcome.signal is not None:
        return 128 + outcome.signal
    if outcome.rejected_fraction > job.max_rejected_fraction:
        return TOO_MANY_REJECTED
    return 0


def _print(lines: Iterable[str], console: Console) -> None:
    """Print each line as it comes, as it is but for secrets."""
    for line in lines:
        console.print(redact(line), markup=False, soft_wrap=True)


class _Told(Protocol):
    """What a verb has found or done."""

    def to_json(self) -> str: ...
    def lines(self) -> Iterable[str]: ...


def _tell(told: _Told, *, as_json: bool) -> None:
    """Print it for people, or on one line for programs."""
    _print([told.to_json()] if as_json else told.lines(), Console(highlight=False))


def _add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", type=Path, metavar="CKPT", help=".ckpt, .pt or .pth of torch.save, .safetensors"
    )
    parser.add_argument("-o", dest="folder", type=Path, required=True, metavar="FOLDER")
    settings = parser.add_mutually_exclusive_group(required=True)
    settings.add_argument("--kind", choices=["movqgan", "emu3"], help="read its settings off it")
    settings.add_argument("--config", type=Path, metavar="YAML", help="or a tokenizer section")
    parser.add_argument("--state", metavar="KEY", help="entry that holds the weights")
    parser.add_argument(
        "--ema", action="store_true", help="take moving averages in place of the weights"
    )
    parser.add_argument(
        "--strip", metavar="PREFIX", help="take only keys that begin so, without that beginning"
    )
    parser.add_argument(
        "--drop", action="append", default=[], metavar="PREFIX", help="leave keys out; repeatable"
    )


def _convert(parsed: argparse.Namespace) -> int:
    from tokpipe.convert import Choices, convert  # imports torch at its end

    choices = Choices(parsed.state, parsed.ema, parsed.strip, tuple(parsed.drop))
    lines = convert(
        parsed.source, parsed.folder, kind=parsed.kind, config=parsed.config, choices=choices
    )
    _print(lines, Console(highlight=False))
    return 0


def _read_checkpoint(uri: str, options: StoreOptions) -> bytes:
    from tokpipe.weights import read_object  # stores are looked for only if a job needs one

    return read_object(uri, options)


if __name__ == "__main__":
    sys.exit(main())
