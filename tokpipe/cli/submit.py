"""Run a job on a Ray cluster: submit it, or follow it if it already runs there.

Checks the job here, then sends it with the values of its variables and the code of a custom
tokenizer. Prints the driver's lines and returns its exit code. Ctrl-C or a closed terminal only
ends the printing: run the same command to follow again, or with --stop to stop the job.
"""

import argparse
import shlex

from tokpipe.cli import run as run_verb
from tokpipe.cli.arguments import Parser, job_of
from tokpipe.cli.output import Result, print_lines

EXAMPLE = "tokpipe submit jobs/webvid.yaml --address http://HEAD:8265"


def add_arguments(parser: Parser) -> None:
    run_verb.add_arguments(parser)
    parser.add_argument(
        "--address",
        metavar="URL",
        help="dashboard of the cluster, such as http://HEAD:8265 (default: RAY_API_SERVER_ADDRESS, "
        "else RAY_ADDRESS, else the cluster on this machine)",
    )
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME",
        help="also set this variable, such as AWS_ENDPOINT_URL, for the driver and workers; "
        "NAME=VALUE sets another value. Ray stores it, so secrets are rejected",
    )
    what = "return once the job is submitted"
    parser.add_argument("--detach", "--no-follow", action="store_true", help=what)
    parser.add_flag("--stop", "stop the job: it commits what is finished; run it again to resume")


def run(parsed: argparse.Namespace) -> Result:
    options = run_verb.options_of(parsed)
    job = job_of(parsed)
    # Imported late: ray takes seconds, and a wrong job file is reported without it.
    from tokpipe.runtime.package import make_package

    package = make_package(parsed.job, job, options, parsed.env)

    from tokpipe.runtime.submit import Cluster, Submission

    cluster = Cluster(parsed.address)
    newest = cluster.newest(package)
    uri, is_new = job.output.uri, False
    if parsed.stop:
        if not newest.is_live:
            return [f"nothing to stop: no job for {uri} is running on {cluster.address}"]
        cluster.stop(newest)
        print_lines([f"stopping {newest.id}: it commits what is finished, which can take a minute"])
    elif newest.is_live:
        old = "with the settings it was submitted with (to use others, --stop it first)"
        print_lines([f"{newest.id} already works on {uri}: following it, {old}"])
    else:
        if paths := package.local_paths():
            print_lines([f"all nodes must see these local paths: {', '.join(paths)}"])
        newest, is_new = cluster.submit(package, newest), True
        print_lines([f"submitted {newest.id} to {cluster.address}"])
    command = ["tokpipe", "submit", str(parsed.job)]
    again = shlex.join([*command, *(["--address", parsed.address] if parsed.address else [])])
    ways = [f"  to follow it: {again}", f"  to stop it:   {again} --stop"]
    if parsed.detach:
        return ways
    try:
        for line in cluster.follow(newest, from_start=is_new):
            if isinstance(line, Submission):
                newest = line
            else:
                print_lines([line])
    except KeyboardInterrupt:
        state = "is being stopped" if parsed.stop else "continues"
        print_lines([f"the job {state} on {cluster.address}", *ways])
        raise
    if parsed.stop and newest.was_stopped:
        return [f"stopped {newest.id}"]
    return newest.exit_code
