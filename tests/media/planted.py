"""A decoder that misbehaves as its file's name says; loaded in the decoding child by import path.

Real files that do these things to decord or FFmpeg exist, but are fixed or found by version. What
a name does not ask for is decoded by PyAV.
"""

from __future__ import annotations

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
    deed = path.stem
    path.with_suffix(".pid").write_text(str(pid))
    if deed == "hang":
        ctypes.PyDLL(None).sleep(3600)  # in C, with the interpreter's lock held
    elif deed == "segfault":
        ctypes.string_at(0)
    elif deed == "abort":
        sys.stderr.write("terminate called after throwing an instance of 'std::bad_alloc'\n")
        sys.stderr.flush()
        os.abort()
    elif deed == "exit":
        os._exit(3)
    elif deed == "killed":
        os.kill(pid, signal.SIGKILL)
    elif deed == "hungry":
        bytearray(2**40)
    elif deed == "bug":
        raise ValueError("a bug in a backend")
    elif deed == "chatter":
        for _ in range(1000):
            os.write(2, b"error while decoding MB 1 2\n" * 2)
    elif deed == "slow-once" and not path.with_suffix(".go").exists():
        time.sleep(3600)
    pyav.decode(task, out)
