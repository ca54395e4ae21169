"""The command line: arguments in, exit codes out.

Exit codes: 0 every planned clip is tokenized or rejected, and few enough are rejected;
1 a bug; 2 the job file or a source is wrong; 3 the output has another plan or fingerprint;
4 too many clips rejected; 5 a store kept failing, or is unsafe; 6 another driver owns the
output; 7 no progress possible; 8 the output is damaged; 128 + n stopped by signal n, with
everything that was finished committed.
"""

from __future__ import annotations

import argparse
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rich.console import Console

import tokpipe
from tokpipe.config import load_job
from tokpipe.config.job import StoreOptions
from tokpipe.errors import ConfigError, TokpipeError
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
    decode = verbs.add_parser(
        "decode",
        help="turn the codes of one clip back into pixels",
        description="Turn the codes of one clip back into pixels, to look at them.",
        epilog="example: tokpipe decode out/demo --compare -o clip.mp4",
    )
    _add_decode_arguments(decode)
    decode.set_defaults(command=_decode)
    convert = verbs.add_parser(
        "convert",
        help="make a checkpoint folder of a training checkpoint",
        description="Make a checkpoint folder (config.yaml and model.safetensors) of a training "
        "checkpoint. Nothing that is in the checkpoint is run.",
        epilog="example: tokpipe convert movqgan_270M.ckpt --kind movqgan -o tokenizers/movqgan",
    )
    _add_convert_arguments(convert)
    convert.set_defaults(command=_convert)
    parsed = parser.parse_args(arguments)
    return _reporting(parsed.command, parsed)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what ``tokpipe run`` and ``python -m tokpipe.run`` take."""
    parser.add_argument("job", type=Path, metavar="JOB.yaml", help="the job file")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check the job file, its sources and its output; write nothing, start nothing",
    )
    parser.add_argument(
        "--retry-rejected",
        action="store_true",
        help="try rejected clips again, after their files or the job's limits were mended",
    )
    parser.add_argument(
        "--reason", metavar="R", help="with --retry-rejected: only those rejected for this reason"
    )


def _add_decode_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUT", help="the output of a job: its output.uri")
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
    _print([decoded.to_json()] if parsed.json else decoded.lines(), Console(highlight=False))
    return 0


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


def _run(parsed: argparse.Namespace) -> int:
    console = Console(highlight=False)
    if parsed.reason is not None and not parsed.retry_rejected:
        raise ConfigError(
            "--reason chooses among the clips that --retry-rejected tries again, and stands alone: "
            "give both, or neither"
        )
    job = load_job(parsed.job, read=_read_checkpoint)
    if parsed.dry_run:
        from tokpipe.check import check_lines

        _print(check_lines(job), console)
        return 0
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
