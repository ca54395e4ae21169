"""The command line: arguments in, exit codes out.

Exit codes: 0 every planned clip is tokenized or rejected, within ``max_rejected_fraction``;
1 a bug; 2 the job file, a source or an argument is wrong; 3 the output has another plan or
fingerprint; 4 too many clips were rejected; 5 a store kept failing, or is unsafe; 6 another driver
owns the output; 7 no progress is possible; 8 the output is damaged, or a tokenizer's codes are
wrong; 128 + n stopped by signal n, with all finished work committed.
"""

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace

Parse = Callable[[list[str]], "Namespace"]
"""Parses arguments, and sets ``run``, which takes them and returns output or an exit code."""


def main(arguments: Sequence[str] | None = None, parse: Parse | None = None) -> int:
    """Run the ``tokpipe`` command and return its exit code; without arguments, as a process.
    Other programs that start, print and end like it pass their own ``parse``."""
    if arguments is None:  # before imports, which take a second
        sys.path[:] = filter(_is_own, sys.path)
        if inherited := os.environ.get("PYTHONPATH"):  # by processes of a local Ray
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(_is_own, inherited.split(os.pathsep)))
        import signal

        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # Python's prints a traceback
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        from tokpipe.runtime.signals import OF_RUN, interrupt_verbs

        is_run = parse is None and sys.argv[1:2] == ["run"]
        (OF_RUN.start if is_run else interrupt_verbs)()
    from tokpipe.cli import command

    return command.main(arguments, parse)


def _is_own(folder: str) -> bool:
    """Whether a folder to import from, for ``python -m`` the current one, is not in an output."""
    near = (f"{folder or '.'}/{up}job.json" for up in ("", "../", "../../"))
    return not any(map(os.path.exists, near))
