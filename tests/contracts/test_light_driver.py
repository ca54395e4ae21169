"""Libraries that a process does not need."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "library"),
    [
        ("tokpipe.runtime.job", "torch"),  # takes seconds, and only encode actors need it
        ("tokpipe.runtime.job", "pandas"),
        ("tokpipe.stages.decode", "pyarrow"),  # half of the memory of a decode actor
        ("tokpipe.stages.encode", "pyarrow"),
        ("tokpipe.stages.write", "pandas"),
        ("tokpipe.media.child", "pyarrow"),
    ],
)
def test_a_process_does_not_import_what_it_does_not_need(module: str, library: str) -> None:
    script = f"import sys, {module}; assert {library!r} not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_an_encode_actor_loads_its_stage_without_the_driver() -> None:
    """Its stage is sent as a call of a function, whose module it imports."""
    script = "import sys, tokpipe.stages as s; assert not {'numpy', 'pydantic'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", script], check=True)
