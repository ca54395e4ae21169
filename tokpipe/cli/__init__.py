"""The command line: arguments in, exit codes out. One module a verb; ``main`` puts them together.

Exit codes: 0 every planned clip is tokenized or rejected, and few enough are rejected;
1 a bug; 2 the job file or a source is wrong; 3 the output has another plan or fingerprint;
4 too many clips rejected; 5 a store kept failing, or is unsafe; 6 another driver owns the
output; 7 no progress possible; 8 the output is damaged; 128 + n stopped by signal n, with
everything that was finished committed.
"""

from tokpipe.cli.command import main, make_parser
from tokpipe.cli.run import add_run_arguments, run_command

__all__ = ["add_run_arguments", "main", "make_parser", "run_command"]
