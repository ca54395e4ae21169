"""``python -m tokpipe.cli``: the command ``tokpipe``, where its script is not on the path."""

import sys

from tokpipe.cli.command import main

sys.exit(main())
