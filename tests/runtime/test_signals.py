"""Signals at any moment, in processes small enough to try every one at every moment."""

import signal
import subprocess
import sys

import pytest

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SCRIPT = """
import os, signal, subprocess, sys, threading, time
from tokpipe.runtime.signals import OF_RUN, interrupt_verbs
interrupt_verbs()
"""
RUN = """
OF_RUN.start()
OF_RUN.say = lambda text: print(text, flush=True)
if True:
    # As Ray does for SIGTERM.
    signal.signal(signal.SIGTERM, lambda *_: os.write(2, b"Traceback of another handler"))
    {body}
"""
FOREVER = """
    import ctypes
    print("ready", flush=True)
    ctypes.CDLL(None).sleep(60)  # as C++ of Ray does
"""
WORK = """
    event = threading.Event()
    OF_RUN.stop = event.set
    print("ready", flush=True)
    event.wait()
    print("committed", flush=True)
"""
STUCK = f"""
    OF_RUN.stop = lambda: None
{FOREVER}
"""
IMPORTS = """
import tests.runtime.slow_import
"""
VERB = """
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt as error:
    print("unwound", flush=True)
    sys.exit(128 + int(error.args[0]))
"""


def started(code: str, ignored: signal.Signals | None = None) -> subprocess.Popen[str]:
    def prepare() -> None:
        for number in NUMBERS:  # a shell that starts the tests in the background ignores SIGINT
            signal.signal(number, signal.SIG_DFL)
        if ignored is not None:
            signal.signal(ignored, signal.SIG_IGN)

    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT + code],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=prepare,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number.name)
@pytest.mark.parametrize(
    ("code", "times", "said"),
    [
        (RUN.format(body=FOREVER), 1, "stopping now ...\ninterrupted; "),
        (RUN.format(body=STUCK), 2, "stopping now ...\ninterrupted; "),
        (IMPORTS, 1, "interrupted; "),
        (VERB, 1, "unwound"),
    ],
    ids=["nothing to commit", "the second", "an import", "another verb"],
)
def test_a_signal_ends_a_process_at_once_without_traces(
    number: signal.Signals, code: str, times: int, said: str
) -> None:
    process = started(code)
    process.send_signal(number)
    printed = ""
    if times > 1:
        assert process.stdout is not None
        printed += process.stdout.readline()
        process.send_signal(number)
    printed += process.communicate(timeout=300)[0]
    if code in (VERB, IMPORTS) and number == signal.SIGHUP:
        assert process.returncode == -number, printed  # which a shell shows in the same way
    else:
        assert process.returncode == 128 + number, printed
        assert said in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number.name)
def test_the_first_signal_lets_a_run_commit(number: signal.Signals) -> None:
    process = started(RUN.format(body=WORK))
    process.send_signal(number)
    printed = process.communicate(timeout=300)[0]
    assert process.returncode == 0, printed
    assert "stopping: committing finished clips" in printed
    assert printed.endswith("committed\n")


@pytest.mark.parametrize("code", [RUN.format(body=WORK), VERB], ids=["run", "another verb"])
def test_a_hangup_that_nohup_ignores_stays_ignored(code: str) -> None:
    process = started(code, ignored=signal.SIGHUP)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    printed = process.communicate(timeout=300)[0]
    assert process.returncode in (0, 128 + signal.SIGTERM), printed
    assert "SIGHUP" not in printed
    assert "SIGTERM" in printed or "unwound" in printed


@pytest.mark.ray
def test_a_process_of_a_local_ray_is_out_of_reach_of_a_group_and_of_a_control_group() -> None:
    code = RUN.format(
        body="""
    from tokpipe.runtime.cluster import _Service
    process = _Service(["sleep", "300"])
    os.kill(process.pid, signal.SIGTERM)
    assert os.getsid(process.pid) != os.getsid(0)
    assert process.poll() is None
    process.terminate()
    assert process.wait() == -signal.SIGKILL
    print("ready", flush=True)
"""
    )
    process = started(code)
    assert (process.communicate(timeout=300)[0], process.returncode) == ("", 0)
