"""``python -m tokpipe.cli`` is ``tokpipe``, for when its script is not on the path."""

import sys

from tokpipe.cli import main

sys.exit(main())
