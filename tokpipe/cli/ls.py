"""List tokenized clips with their sources, lengths and marks."""

import argparse

from tokpipe.cli.arguments import add_count, add_output_arguments, add_source_argument, output_of
from tokpipe.cli.output import Result

EXAMPLE = "tokpipe ls out/demo --source '*.mov' --limit 20"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_output_arguments(parser)
    add_source_argument(parser, "only clips")
    parser.add_argument("--mark", metavar="M", help="only clips with this mark, such as damaged")
    add_count(parser, "--limit", 0, "list N clips; 0 for all")


def run(parsed: argparse.Namespace) -> Result:
    from tokpipe.verbs.clips import clip_lines

    return clip_lines(
        output_of(parsed),
        source=parsed.source,
        mark=parsed.mark,
        limit=parsed.limit,
        as_json=parsed.json,
    )
