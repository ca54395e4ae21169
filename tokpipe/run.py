"""``python -m tokpipe.run JOB.yaml`` is ``tokpipe run JOB.yaml``, for submitting to a cluster."""

import sys

import tokpipe.cli


def main() -> int:
    sys.argv.insert(1, "run")
    return tokpipe.cli.main()


if __name__ == "__main__":
    sys.exit(main())
