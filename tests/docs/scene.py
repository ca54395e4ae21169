"""The scene in which the commands of a page are run: a clone of the repository, as a reader has it.

``Scene.build`` makes one clone per test session, and ``Scene.reset`` brings it back to how it was,
so that every page starts from the same files. In the clone are

- ``.venv`` with this project, as ``make demo`` would install it;
- ``videos``, a few real videos, and a damaged one;
- ``jobs/mine.yaml``, a job for them;
- ``out/demo`` and ``out/mine``, outputs of ``jobs/demo.yaml`` and of that job.

Programs that need a service (``sbatch``, ``kubectl``, ``docker``, ...) are played by
``stand_in.py``, which checks the files that it is given.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import yaml

from tests.docs.commands import STOPPED, Step
from tests.end_to_end.jobs import SAMPLE, run_without_ray, write_video
from tests.pages import REPOSITORY
from tokpipe.config import load_job
from tokpipe.reader import open_output

STAND_INS = ("sbatch", "squeue", "scancel", "kubectl", "docker", "prometheus", "aws")
RAY_LAUNCHER = "up|down|exec|dashboard|attach|submit|monitor|get-head-ip|rsync-up|rsync-down"
"""Commands of ``ray`` that need a cloud provider."""
SYSTEM = ("bash", "git", "jq", "make", "tar")
"""Programs of the system that pages use."""
OPTIONAL = ("jq",)
"""Those that contributors may not have: where they are missing, they are played, too."""

STOP = """
stop_when() { # CONDITION COMMAND: starts the command, and presses Ctrl-C on the condition
    local status=0
    set -m # a group of processes of its own, which the keyboard interrupts whole
    bash -c "$2" &
    set +m
    until bash -c "$1" &>/dev/null; do kill -0 $!; sleep 0.2; done
    kill -INT -- "-$!"
    wait $! || status=$?
    test $status = 130
}
"""

MINE = {
    "dataset": "mine",
    "sources": [{"kind": "files", "uri": "videos/**/*.mp4"}],
    "output": {"uri": "out/mine"},
    "sampling": {"fps": 8, "max_clip_frames": 17},
    "frames": {"size": [64, 64]},
    "tokenizer": {"checkpoint": "builtin://fsq-4x8x8"},
    "chunking": {"chunk_frames": 17},
    "runtime": {"log_path": "logs/webvid.jsonl"},
    "max_rejected_fraction": 0.5,
}


@dataclass(frozen=True)
class Done:
    """What became of the commands of a page."""

    finished: frozenset[str]
    """``page:line`` of each command that ended with exit code 0."""
    exit_code: int
    printed: str


@dataclass(frozen=True)
class Scene:
    folder: Path
    """Short, because Ray's sockets are below it."""

    @property
    def clone(self) -> Path:
        return self.folder / "clone"

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def stand_ins(self) -> Path:
        return self.folder / "bin"

    @property
    def scripts(self) -> Path:
        return self.clone / ".venv/bin"

    def build(self) -> None:
        copy_repository(self.clone)
        make_environment(self.clone, self.stand_ins)
        make_stand_ins(self.stand_ins)
        videos = self.clone / "videos"
        for seed, name in enumerate(("dog.mp4", "cat.mp4", "trips/sea.mp4")):
            (videos / name).parent.mkdir(parents=True, exist_ok=True)
            write_video(videos / name, num_frames=20, seed=seed)
        whole = SAMPLE.read_bytes()
        (videos / "cut.mp4").write_bytes(whole[: len(whole) // 2])
        (self.clone / "jobs/mine.yaml").write_text(yaml.safe_dump(MINE, sort_keys=False))
        self.home.mkdir()
        for path in ("jobs/demo.yaml", "jobs/mine.yaml"):
            job = load_job(self.clone / path)
            on_cpu = job.encode.model_copy(update={"device": "cpu"})
            run_without_ray(job.model_copy(update={"encode": on_cpu}))
        shutil.copytree(self.clone, self.folder / "template", symlinks=True)

    def bash(self, code: str) -> str:
        """Run commands in the clone, and return what they print."""
        done = subprocess.run(
            ["bash", "-euc", code],
            cwd=self.clone,
            env=self.environment(installed=True),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{code}\n{done.stdout}"
        return done.stdout

    def reset(self, *, outputs: bool) -> None:
        """Start again, with a new home; without ``outputs``, before anything was run."""
        self.end_processes()
        shutil.rmtree(self.clone, ignore_errors=True)
        shutil.rmtree(self.home, ignore_errors=True)
        shutil.copytree(self.folder / "template", self.clone, symlinks=True)
        self.home.mkdir()
        if not outputs:
            shutil.rmtree(self.clone / "out")

    def end_processes(self) -> None:
        """Kill what commands have left running; their home directory identifies them."""
        mark = f"HOME={self.home}".encode()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended, or is someone else's
                if mark in (process / "environ").read_bytes().split(b"\0"):
                    os.kill(int(process.name), signal.SIGKILL)

    def environment(self, *, installed: bool) -> dict[str, str]:
        """What a new terminal has; if ``installed``, one with the environment on its path."""
        system = [str(Path(found).parent) for name in SYSTEM if (found := shutil.which(name))]
        first = [str(self.scripts)] if installed else []
        path = [*first, str(self.stand_ins), *dict.fromkeys(system), "/usr/bin", "/bin"]
        return {
            "HOME": str(self.home),
            "PATH": os.pathsep.join(dict.fromkeys(path)),
            "TMPDIR": str(self.folder),
            "LANG": "C.UTF-8",
            "OMP_WAIT_POLICY": "passive",  # as in tests/conftest.py
        }

    def run(
        self, steps: list[Step], environment: Mapping[str, str], words: Mapping[str, str]
    ) -> Done:
        """Type the commands of a page in one shell, one after the other, and write its files.

        Each block of Python continues those before it.

        ``words`` replaces placeholders, such as the id of a clip. A command that fails ends it.
        """
        marks = self.folder / "finished"
        marks.write_text("")
        lines = ["set -euo pipefail", STOP]
        python = ""
        for number, step in enumerate(steps):
            if step.block.language == "python" and step.block.title is None:
                python += step.block.code
                content = self.folder / f"block{number}.py"
                content.write_text(python)
                lines += [f"echo '{step.block}' >&2", f"python {content}"]
            elif step.block.title is not None:
                content = self.folder / f"block{number}"
                content.write_text(step.block.code)
                target = self.clone / step.block.title
                lines += [f"mkdir -p {target.parent}", f"cp {content} {target}"]
            for command in step.commands:
                text = command.text
                for word, value in words.items():
                    text = re.sub(rf"(?<![\w-]){re.escape(word)}(?![\w-])", value, text)
                if command.key in STOPPED:
                    text = f"stop_when {quote(STOPPED[command.key])} {quote(text)}"
                lines += [f'echo "$SECONDS s: {command}" >&2', text, f"echo {command} >> {marks}"]
        script = self.folder / "page.sh"
        script.write_text("\n".join(lines) + "\n")
        done = subprocess.run(
            ["bash", str(script)],
            cwd=self.clone,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return Done(frozenset(marks.read_text().split()), done.returncode, done.stdout)

    def first_clip(self, output: str) -> str:
        return next(iter(open_output(str(self.clone / output)).clips())).clip_id


def copy_repository(target: Path) -> None:
    """Copy the files of this repository, without what git ignores."""
    ignored = (REPOSITORY / ".gitignore").read_text().split()
    ignore = shutil.ignore_patterns(".git", *(name.rstrip("/") for name in ignored))
    shutil.copytree(REPOSITORY, target, ignore=ignore)


def make_environment(project: Path, stand_ins: Path) -> None:
    """Make ``project/.venv``: the packages of this Python, and ``project`` instead of this one."""
    folder = project / ".venv"
    venv.create(folder, symlinks=True)
    base = {"python_version": sysconfig.get_python_version(), "base": str(folder)}
    packages = Path(sysconfig.get_path("purelib", "venv", vars={**base, "platbase": str(folder)}))
    places = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    packages.joinpath("project.pth").write_text("\n".join([str(project), *places]) + "\n")
    scripts = folder / "bin"
    for found in Path(sysconfig.get_path("scripts")).iterdir():
        new = scripts / found.name
        if new.exists() or found.is_dir():
            continue
        content = found.read_bytes()
        if content.startswith(b"#!") and b"python" in content.partition(b"\n")[0]:
            new.write_bytes(f"#!{scripts}/python\n".encode() + content.partition(b"\n")[2])
            new.chmod(0o755)
        else:
            new.symlink_to(found)
    ray = scripts / "ray"
    ray.rename(scripts / "ray-itself")
    ray.write_text(
        "#!/bin/bash\n"
        f'case "${{1:-}}" in {RAY_LAUNCHER}) exec {stand_ins}/ray "$@" ;; esac\n'
        f'exec {scripts}/ray-itself "$@"\n'
    )
    ray.chmod(0o755)
    for stamp in (".installed", ".installed-dev"):
        (folder / stamp).touch()


def make_stand_ins(folder: Path) -> None:
    folder.mkdir()
    script = Path(__file__).with_name("stand_in.py")
    missing = [name for name in OPTIONAL if shutil.which(name) is None]
    for name in (*STAND_INS, "ray", *missing):
        path = folder / name
        path.write_text(f'#!/bin/bash\nexec {sys.executable} {script} {name} "$@"\n')
        path.chmod(0o755)
