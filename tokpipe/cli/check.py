"""Check a job file, its sources, weights and output.

Writes nothing, starts nothing and needs no GPU.
"""

import argparse

from tokpipe.cli.arguments import add_job_argument, add_json_argument, job_of
from tokpipe.cli.output import print_json, print_lines

EXAMPLE = "tokpipe check jobs/demo.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_job_argument(parser)
    add_json_argument(parser)


def run(parsed: argparse.Namespace) -> int:
    from tokpipe.verbs.check import check

    checked = check(job_of(parsed))
    if parsed.json:
        print_json([{"subject": one.subject, **one.facts} for one in checked])
    else:
        print_lines(one.text for one in checked)
    return 0
