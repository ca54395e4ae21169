"""Check that an output is complete and undamaged. Writes nothing.

Every planned clip must be tokenized or rejected exactly once, and every listed object must be what
was written. Exits with code 8 on any defect.
"""

import argparse

from rich.console import Console

from tokpipe.cli.arguments import Parser, store_of, trust_of
from tokpipe.cli.output import print_lines, shown
from tokpipe.errors import CorruptOutput

EXAMPLE = "tokpipe audit jobs/demo.yaml --sample 10"


def add_arguments(parser: Parser) -> None:
    parser.add_output()
    parser.add_argument(
        "--depth",
        choices=["manifest", "sizes", "bytes"],
        default="bytes",
        help="manifest: read the plan and the manifest; sizes: also look up the size of each "
        "listed object; bytes: also read every byte of them (default: bytes)",
    )
    parser.add_flag("--partial", "accept plan rows that are not settled yet")
    sample = "also encode N random clips again from their sources, and compare the codes"
    parser.add_count("--sample", 0, sample)
    parser.add_count("--seed", 0, "selects the random clips")
    parser.add_trust()


def run(parsed: argparse.Namespace) -> int:
    from tokpipe.audit import audit

    errors = Console(stderr=True, highlight=False)
    report = audit(
        store_of(parsed),
        depth=parsed.depth,
        partial=parsed.partial,
        sample=parsed.sample,
        seed=parsed.seed,
        trust=trust_of(parsed),
        say=lambda line: print_lines([line], errors),
    )
    print_lines(shown(report, parsed))
    return 0 if report.is_clean else CorruptOutput.exit_code
