"""Signals at any moment, in processes small enough to try every one at every moment."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tokpipe.runtime.signals import SAME_REQUEST_S

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
        (IMPORTS, 1, "interrupted\n"),
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
        time.sleep(SAME_REQUEST_S + 0.1)  # sooner, a program's second signal is the first again
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


@pytest.mark.parametrize(
    "numbers",
    [
        (signal.SIGTERM, signal.SIGTERM),  # as `timeout` sends it, to the process and its group
        (signal.SIGHUP, signal.SIGHUP),
        (signal.SIGTERM, signal.SIGHUP),  # as systemd does with SendSIGHUP
    ],
)
def test_signals_that_a_program_sends_at_once_are_one_request(
    numbers: tuple[signal.Signals, signal.Signals],
) -> None:
    process = started(RUN.format(body=WORK.replace("event.wait()", "event.wait(), time.sleep(2)")))
    process.send_signal(numbers[0])
    assert process.stdout is not None
    assert "stopping: committing" in process.stdout.readline()
    process.send_signal(numbers[1])
    printed = process.communicate(timeout=300)[0]
    assert (process.returncode, printed) == (0, "committed\n")


@pytest.mark.parametrize("module", ["tokpipe.runtime.signals", "termios"])
@pytest.mark.parametrize("verb", ["run", "status"])
def test_ctrl_c_before_there_are_handlers_prints_no_traceback(module: str, verb: str) -> None:
    code = f"""
class Finder:
    def find_spec(name, *_):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Finder)
sys.argv[1:] = [{verb!r}]
import tokpipe.cli
tokpipe.cli.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_timeout_lets_a_run_commit() -> None:
    code = SCRIPT + RUN.format(body=WORK.replace("event.wait()", "event.wait(), time.sleep(2)"))
    command = ["timeout", "-s", "TERM", "5", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.endswith("committed\n"), done
    assert done.returncode == 124


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number.name)
def test_a_run_ignores_what_its_parent_ignores(number: signal.Signals) -> None:
    process = started(RUN.format(body=WORK), ignored=number)
    process.send_signal(number)
    other = signal.SIGHUP if number != signal.SIGHUP else signal.SIGTERM
    process.send_signal(other)
    printed = process.communicate(timeout=300)[0]
    assert process.returncode == 0, printed
    assert f"{other.name} again" in printed


@pytest.mark.parametrize("code", [RUN.format(body=WORK), VERB], ids=["run", "another verb"])
def test_a_hangup_that_nohup_ignores_stays_ignored(code: str) -> None:
    process = started(code, ignored=signal.SIGHUP)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    printed = process.communicate(timeout=300)[0]
    assert process.returncode in (0, 128 + signal.SIGTERM), printed
    assert "SIGHUP" not in printed
    assert "SIGTERM" in printed or "unwound" in printed


def test_a_closed_terminal_lets_a_run_commit_and_print_nowhere(tmp_path: Path) -> None:
    terminal, end = os.openpty()
    done = tmp_path / "done"
    code = SCRIPT + RUN.format(body=WORK) + f"open({str(done)!r}, 'w').close()"
    process = subprocess.Popen([sys.executable, "-c", code], preexec_fn=lambda: os.login_tty(end))
    os.close(end)
    seen = b""
    while b"ready\r\n" not in seen:  # or closing would break the line that is being printed
        seen += os.read(terminal, 100)
    os.close(terminal)
    assert process.wait(300) == 0
    assert done.exists()


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
