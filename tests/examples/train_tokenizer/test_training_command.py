"""The program: wrong files, missing packages, and signals to its process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from examples.train_tokenizer.__main__ import main
from tests.cli.test_named_outputs import Capture, one_line
from tests.examples.train_tokenizer.conftest import Settings, phase
from tests.pages import REPOSITORY

PROGRAM = [sys.executable, "-m", "examples.train_tokenizer"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(REPOSITORY)}
LONG = "x" * 300


@pytest.mark.parametrize(
    ("named", "explanation"),
    [
        ("missing.yaml", "missing.yaml: cannot be read"),
        ("folder", "folder: cannot be read"),
        ("video.mp4", "video.mp4: is not valid YAML"),
        ("empty.yaml", "it holds no keys with values"),
        ("job.yaml", "use tokpipe run job.yaml"),
        ("loop", "loop: cannot be read"),
        (LONG, "File name too long"),
    ],
)
def test_a_wrong_training_file_is_explained(
    named: str,
    explanation: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("video.mp4").write_bytes(b"\x00\xff\x80" * 100)
    Path("empty.yaml").touch()
    Path("job.yaml").write_text((REPOSITORY / "jobs/demo.yaml").read_text())
    Path("loop").symlink_to("loop")
    assert main([named]) == 2
    printed = one_line(capsys)
    assert explanation in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(("words", "code"), [([], 2), (["a.yaml", "b"], 2), (["--help"], 0)])
def test_what_is_printed_about_arguments_names_the_program(
    words: list[str], code: int, capsys: Capture
) -> None:
    with pytest.raises(SystemExit, match=str(code)):
        main(words)
    printed = capsys.readouterr()
    assert "usage: python -m examples.train_tokenizer" in printed.out + printed.err


@pytest.mark.parametrize(
    ("named", "complaint"),
    [
        ("jobs/missing.yaml", "jobs/missing.yaml: cannot be read"),
        ("examples/demo_tokenizer/train.yaml", "pip install 'tokpipe[run]'"),
    ],
)
def test_a_missing_package_is_named_once_the_file_is_right(named: str, complaint: str) -> None:
    absent = ["av", "ray", "safetensors", "torch"]
    program = f"import sys; sys.modules |= dict.fromkeys({absent})\n"
    program += "from examples.train_tokenizer.__main__ import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", program, named],
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_a_process_is_stopped_by_ctrl_c_and_continued(settings: Settings, tmp_path: Path) -> None:
    first = phase(steps=100_000, learning_rate=[0.001, 0.001])
    training, log = tmp_path / "run", tmp_path / "out/log.jsonl"  # as the verb run
    training.write_text(yaml.safe_dump(settings(output="out", phases=[first])))
    with subprocess.Popen(
        [*PROGRAM, "run"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        while process.poll() is None and not (log.exists() and log.read_text()):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert process.returncode == 128 + signal.SIGINT, err
    assert out == "stopped with a checkpoint; run the same command to continue\n"
    assert "Traceback" not in err
    steps = len(log.read_text().splitlines())
    last = {**first, "steps": steps + 2}
    training.write_text(yaml.safe_dump(settings(output="out", phases=[last])))
    done = subprocess.run(
        [*PROGRAM, "run"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/out/tokenizer\n"), done.stderr
    assert f"continuing from step {steps} of {steps + 2}" in done.stderr
    assert len(log.read_text().splitlines()) == steps + 2
