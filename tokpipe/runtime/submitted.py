"""The driver's side of a submitted job: starts it, and rejects places that Ray deletes.

The cluster runs a copy of this file as ``python FILE VERSION JOB.yaml ...``. It imports only the
standard library, so that a cluster without tokpipe says so.
"""

import json
import os
import re
import runpy
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokpipe.config.job import JobConfig

JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # The name of what Ray sets for a submitted job
_RAY_FOLDER = re.compile(r"/session_(latest|\d{4}-\d\d-\d\d_[\d_-]+)/|/runtime_resources/")


def main(version: str, *arguments: str) -> int:
    """Run a job that a tokpipe of this version has checked; exit with its exit code."""
    here = f"the cluster's head ({socket.gethostname()}, {sys.executable})"
    advice = (
        f'Install "tokpipe[run]=={version}" on every node, into the environment whose `python` is '
        "first on PATH where `ray start` runs"
    )
    try:
        import tokpipe
        import tokpipe.config
    except ImportError as error:
        lack = f"cannot import tokpipe: {error}"
    else:
        if tokpipe.__version__ == version:
            sys.argv = ["tokpipe.run", *arguments]
            runpy.run_module("tokpipe.run", run_name="__main__")
            return 0
        lack = (
            f"has tokpipe {tokpipe.__version__}, but the job was checked and submitted by tokpipe "
            f"{version}, whose settings may differ"
        )
    print(f"RuntimeFault: {here} {lack}. {advice}", file=sys.stderr)
    return 7  # as for a RuntimeFault, which is not imported here


def check_output(job: "JobConfig") -> None:
    """Reject an output or a log in a folder of Ray's: that of a submitted job, or of a session."""
    from tokpipe.errors import ConfigError
    from tokpipe.storage.client import split_protocol

    places = ["/tmp/ray", f"{os.getenv('RAY_TMPDIR', '/tmp')}/ray"]
    submitted = json.loads(os.environ.get(JOB_CONFIG, "{}"))
    if (submitted.get("runtime_env") or {}).get("working_dir"):
        places.append(".")
    folders = {Path(os.path.realpath(place)) for place in places}  # resolve() fails for loops
    for setting, uri in ("output.uri", job.output.uri), ("runtime.log_path", job.runtime.log_path):
        protocol, name = split_protocol(uri or "-")
        path = Path(os.path.realpath(name))
        is_of_ray = folders & {path, *path.parents} or _RAY_FOLDER.search(f"{path}/")
        if protocol == "file" and name != "-" and is_of_ray:
            raise ConfigError(
                f"{setting}: {uri} is in a folder of Ray ({path}), which deletes it after the job "
                "or when its cache is full. Use a store, or an absolute path that all nodes share"
            )


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
