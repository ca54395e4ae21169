"""Check a job: try its sources, tokenizer and output, and list what was not tried.

Opens a few videos of each source, lets the tokenizer encode noise, and writes and deletes one
object in the output. Leaves nothing behind and needs no cluster.
"""

import argparse
import json

from tokpipe.cli.arguments import Parser, job_of
from tokpipe.cli.output import Result

EXAMPLE = "tokpipe check jobs/demo.yaml"


def add_arguments(parser: Parser) -> None:
    parser.add_job()
    parser.add_json()
    parser.add_count("--sample", 4, "open N videos of each source", least=1)
    parser.add_count("--seed", 0, "selects the videos")


def run(parsed: argparse.Namespace) -> Result:
    from tokpipe.verbs.check import check

    checked = check(job_of(parsed), num_sampled=parsed.sample, seed=parsed.seed)
    if parsed.json:
        return [json.dumps([{"subject": one.subject, **one.facts} for one in checked])]
    return (one.text for one in checked)
