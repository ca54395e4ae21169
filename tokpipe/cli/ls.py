"""List tokenized clips with their sources, lengths and marks."""

import argparse

from tokpipe.cli.arguments import Parser, output_of
from tokpipe.cli.output import Result

EXAMPLE = "tokpipe ls out/demo --source '*.mov' --limit 20"


def add_arguments(parser: Parser) -> None:
    parser.add_output()
    parser.add_source("only clips")
    parser.add_argument("--mark", metavar="M", help="only clips with this mark, such as damaged")
    parser.add_count("--limit", 0, "list N clips; 0 for all")


def run(parsed: argparse.Namespace) -> Result:
    from tokpipe.verbs.clips import clip_lines

    return clip_lines(
        output_of(parsed),
        source=parsed.source,
        mark=parsed.mark,
        limit=parsed.limit,
        as_json=parsed.json,
    )
