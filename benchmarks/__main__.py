"""``python -m benchmarks``: measure how close tokpipe comes to what this machine can do."""

import sys

from benchmarks.command import main

if __name__ == "__main__":
    sys.exit(main())
