"""A clock of its own for a node or a driver, which a test can set forward or back while they run.

libfaketime would shift Ray's C++ parts too, which then sleep for hours: it cannot shift the kernel,
which times their waits. So this shifts only what the Python interpreter reads, and that is all that
tokpipe, botocore and its signatures see.
"""

import shutil
import struct
import subprocess
from pathlib import Path

_SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static const volatile double *offset_s;
static void *python;
static int (*real)(clockid_t, struct timespec *);

__attribute__((constructor)) static void start(void) {
    Dl_info found;
    void *symbol = dlsym(RTLD_DEFAULT, "Py_GetVersion");
    const char *path = getenv("CHAOS_CLOCK");
    int file = symbol && path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    real = dlsym(RTLD_NEXT, "clock_gettime");
    if (file < 0) return;
    void *memory = mmap(NULL, sizeof(double), PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (memory == MAP_FAILED || !dladdr(symbol, &found)) return;
    python = found.dli_fbase;
    offset_s = memory;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    Dl_info caller;
    int failed = real ? real(clock, now) : -1;
    if (!failed && offset_s && clock == CLOCK_REALTIME && *offset_s
        && dladdr(__builtin_return_address(0), &caller) && caller.dli_fbase == python)
        now->tv_sec += (time_t)*offset_s;
    return failed;
}
"""


def build_shim(folder: Path) -> Path | None:
    """Compile what ``LD_PRELOAD`` loads; None without a C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    source, library = folder / "clock.c", folder / "clock.so"
    source.write_text(_SHIM)
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True)
    return library


def set_clock(path: Path, offset_s: float) -> None:
    """Make the clock of processes wrong whose ``CHAOS_CLOCK`` is this file."""
    # In place, because processes have mapped it.
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(struct.pack("d", offset_s))
