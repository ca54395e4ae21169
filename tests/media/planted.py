"""A decoder whose fault is the name of its file; the decoding child loads it by import path.

Real files cause these faults too, but only in some versions of decord and FFmpeg. Files with other
names are decoded by PyAV.
"""

import ctypes
import os
import signal
import sys
import time

import numpy as np
from numpy.typing import NDArray

from tokpipe.media.backends import Task, pyav


def decode(task: Task, out: NDArray[np.uint8]) -> None:
    path, pid = task.path, os.getpid()
    fault = path.stem
    path.with_suffix(".pid").write_text(str(pid))
    if fault == "hang":
        ctypes.PyDLL(None).sleep(3600)  # in C, with the interpreter's lock held
    elif fault == "segfault":
        ctypes.string_at(0)
    elif fault == "abort":
        sys.stderr.write("terminate called after throwing an instance of 'std::bad_alloc'\n")
        sys.stderr.flush()
        os.abort()
    elif fault == "exit":
        os._exit(3)
    elif fault == "killed":
        os.kill(pid, signal.SIGKILL)
    elif fault == "hungry":
        bytearray(2**40)
    elif fault == "bug":
        raise ValueError("a bug in a backend")
    elif fault == "chatter":
        for _ in range(1000):
            os.write(2, b"error while decoding MB 1 2\n" * 2)
    elif fault == "slow-once" and not path.with_suffix(".go").exists():
        time.sleep(3600)
    pyav.decode(task, out)
