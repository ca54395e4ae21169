"""PyAV without any vector instructions, as on another machine; loaded in the decoding child."""

import ctypes
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tokpipe.media.backends import Task, pyav

_MAPPED = re.findall(r"/\S*/libavutil\S*", Path("/proc/self/maps").read_text())
ctypes.CDLL(_MAPPED[0]).av_force_cpu_flags(0)


def decode(task: Task, out: NDArray[np.uint8]) -> None:
    pyav.decode(task, out)
