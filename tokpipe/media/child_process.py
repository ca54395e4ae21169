"""The parent's side of a decoding child: its process."""

import contextlib
import fcntl
import importlib.util
import os
import platform
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence

from tokpipe.errors import NodeTrouble, UnfitNode
from tokpipe.identity import releases
from tokpipe.media import wire

_START_TIMEOUT_S = 60.0
_EXIT_TIMEOUT_S = 5.0
_STDERR_BYTES = 64 * 1024


class ChildProcess:
    """A process that runs ``tokpipe.media.child`` with backends of the ``wanted`` releases."""

    def __init__(
        self, memory_bytes: int, backends: Sequence[str], wanted: Mapping[str, str] | None = None
    ) -> None:
        if importlib.util.find_spec("av") is None:  # rather than a traceback from the child
            raise ModuleNotFoundError("No module named 'av'", name="av")
        self.channel, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)  # whole messages
        lifeline, self._lifeline = os.pipe()
        # Libraries print to a file of fixed size, which drops the rest: no pipe or disk fills up.
        self._stderr = os.memfd_create("tokpipe-stderr", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self._stderr, _STDERR_BYTES)
        fcntl.fcntl(self._stderr, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
        arguments = theirs.fileno(), lifeline, memory_bytes, list(backends)
        code = f"from tokpipe.media.child import main; main{arguments}"
        try:
            # A new program rather than a fork, because threads of the actor's libraries hold locks.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", code],  # not from the current folder
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                pass_fds=(theirs.fileno(), lifeline),
                env={
                    # With malloc's per-thread cache, aligned blocks that decoders free are not
                    # reused (measured with glibc 2.36: 40 MB more after 800 clips).
                    "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0",
                    **os.environ,
                    # The current import path, which an actor may have extended.
                    "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
                    # Linear algebra is not used, and idle thread pools take address space.
                    "OPENBLAS_NUM_THREADS": "1",
                    "OMP_NUM_THREADS": "1",
                },
                start_new_session=True,  # the parent handles Ctrl-C at the terminal
            )
        finally:
            theirs.close()
            os.close(lifeline)
        self.pid = self._process.pid
        try:
            started, _ = wire.receive(self.channel, _START_TIMEOUT_S)
        except (TimeoutError, ConnectionError) as error:
            status, stderr = self.collect()
            kind = UnfitNode if status == 1 else NodeTrouble  # 1 is Python's own: an import failed
            what = f"the decoding child did not start ({how_it_died(status)})"
            last_line = stderr.rpartition("\n")[2]
            raise kind(f"{platform.node()} cannot decode: {what}: {last_line}") from error
        self.versions: dict[str, str] = started.get("versions", {})
        found = releases(self.versions)
        problem = started.get("problem") or ", ".join(
            f"{name} {found.get(name, 'missing')} instead of {release}"
            for name, release in (wanted or {}).items()
            if found.get(name) != release
        )
        if problem:
            self.kill()
            raise UnfitNode(f"{platform.node()} cannot decode for the job: {problem}")

    def kill(self) -> None:
        """End the process and close what connects to it."""
        self._process.kill()
        # If it is stuck in the kernel, on a dead file system, it never ends.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_EXIT_TIMEOUT_S)
        self.channel.close()
        os.close(self._lifeline)
        os.close(self._stderr)

    def collect(self) -> tuple[int | None, str]:
        """Return the exit status (negative for a signal) and the end of stderr, after a hang-up."""
        status: int | None = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self._process.wait(_EXIT_TIMEOUT_S)
        printed = os.pread(self._stderr, _STDERR_BYTES, 0).rstrip(b"\0\n")
        self.kill()
        return status, printed[-500:].decode(errors="replace").strip()


def how_it_died(status: int | None) -> str:
    """Return the signal's name or the exit status, for a message."""
    return signal.Signals(-status).name if status and status < 0 else f"exit status {status}"
