"""Libraries that a driver does not need."""

import subprocess
import sys


def test_a_driver_does_not_import_torch() -> None:
    """Importing torch takes seconds, and only encode actors need it."""
    script = "import sys, tokpipe.runtime.job; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
