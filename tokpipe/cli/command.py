"""All verbs in one parser."""

import atexit
import inspect
import io
import os
import signal
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

import shtab

import tokpipe
from tokpipe.cli import Parse, jobs, outputs
from tokpipe.cli.arguments import Adder, Parsed, Verb
from tokpipe.cli.output import ReaderGone, Result, exit_code_of
from tokpipe.runtime.signals import interrupted
from tokpipe.telemetry.logs import mask_others


class Completion(Verb, example="source <(tokpipe completion bash)"):
    """Print a script for shell completion of verbs and options."""

    def add_arguments(self, add: Adder) -> None:
        add.argument("shell", choices=shtab.SUPPORTED_SHELLS)

    def run(self, parsed: Parsed) -> Result:
        return shtab.complete(make_parser(), parsed.shell).splitlines()


_ALL: tuple[type[Verb], ...] = (  # In the order of the help text, which follows a job's life
    jobs.Init, jobs.Check, jobs.Plan, jobs.Run, jobs.Submit, outputs.Status, jobs.Diff, outputs.Ls,
    outputs.Inspect, outputs.Decode, outputs.Locate, outputs.Rejected, outputs.Report,
    outputs.Audit, outputs.Clean, outputs.Remove, outputs.Export, jobs.Convert, jobs.Verify,
    Completion,
)  # fmt: skip
VERBS = {verb.__name__.lower(): verb() for verb in _ALL}


def main(arguments: Sequence[str] | None, parse: Parse | None) -> int:
    _prepare_streams()
    words = list(sys.argv[1:] if arguments is None else arguments)
    codes: list[int] = []
    if arguments is None:
        atexit.register(_end, codes)  # first, so that it is called last
    try:
        codes.append(exit_code_of((parse or _parse)(words)))
    except ReaderGone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes at its end
        codes.append(128 + signal.SIGPIPE)
    except KeyboardInterrupt as error:  # with the signal's number, as ``interrupt_verbs`` raises it
        print(interrupted(), file=sys.stderr)
        codes.append(128 + int(next(iter(error.args), signal.SIGINT)))
    return codes[0]


def _end(codes: list[int]) -> None:
    """End the process before C++ destructors, of which Arrow's abort it now and then."""
    for code in codes:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def make_parser() -> ArgumentParser:
    """Return the parser of all verbs. It sets ``run`` to the verb's function."""
    about = "Pre-tokenize video datasets into discrete codes."
    parser = ArgumentParser(prog="tokpipe", description=about)
    parser.add_argument("--version", action="version", version=f"tokpipe {tokpipe.__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for name, verb in VERBS.items():
        about = inspect.getdoc(verb) or ""
        its_parser = verbs.add_parser(
            name,
            help=about[:1].lower() + about[1:].partition(".")[0],
            description=about,
            epilog=f"example: {verb.example}",
        )
        verb.add_arguments(Adder(its_parser))
        its_parser.set_defaults(run=verb.run)
        for one in its_parser._actions:
            if one.type is Path or one.dest in ("ckpt", "folder", "output"):
                vars(one)["complete"] = shtab.FILE  # where shtab looks
    return parser


def _parse(words: list[str]) -> Parsed:
    parser = make_parser()
    if not words:
        parser.print_help(sys.stderr)
        parser.exit(2)
    return parser.parse_args(words, Parsed())


def _prepare_streams() -> None:
    mask_others()
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed; the next file opened would be in its place
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 (never closed)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files may not fit its encoding
            stream.reconfigure(errors="backslashreplace")
