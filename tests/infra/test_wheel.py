"""The wheel holds what it needs, and works where nothing but its requirements is installed."""

import email
import re
import shlex
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.end_to_end.jobs import write_videos
from tests.infra.wheel_env import build_wheel, environment

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "infra/Dockerfile").read_text().replace("\\\n", " ")
JOB = """
dataset: mine
sources: [{kind: files, uri: "videos/*.mp4"}]
output: {uri: codes}
sampling: {fps: 8, max_clip_frames: 17}
frames: {size: [128, 128]}
tokenizer: {checkpoint: "builtin://fsq-4x8x8"}
chunking: {policy: independent, chunk_frames: 17}
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working folder of the image: what infra/Dockerfile copies."""
    folder = tmp_path_factory.mktemp("image")
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    for words in map(shlex.split, re.findall(r"^COPY (.+)", DOCKERFILE, re.MULTILINE)):
        for pattern in words[:-1]:
            assert f"!{pattern}" in allowed, f"COPY {pattern}: .dockerignore leaves it out"
            sources = list(ROOT.glob(pattern))
            assert sources, f"COPY {pattern} finds nothing"
            for source in sources:
                target = folder / words[-1] / ("" if source.is_file() else ".")
                if source.is_dir():
                    clutter = shutil.ignore_patterns("__pycache__")
                    shutil.copytree(source, target, dirs_exist_ok=True, ignore=clutter)
                else:
                    shutil.copy(source, target)
    return folder


@pytest.fixture(scope="module")
def wheel(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("dist"), image)


@pytest.fixture(scope="module")
def base(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(tmp_path_factory.mktemp("base"), wheel)


def call(binaries: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run an installed command as a new user would: from another folder, with a new HOME."""
    env = {"PATH": f"{binaries}:/usr/bin:/bin", "HOME": str(folder), "RAY_worker_niceness": "0"}
    return subprocess.run(
        [str(binaries / words[0]), *words[1:]],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_the_wheel_holds_the_package_and_its_data_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = email.message_from_bytes(
            archive.read(next(name for name in archive.namelist() if name.endswith("METADATA")))
        )
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
    package = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "tokpipe").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == package
    assert {"tokpipe/py.typed", "tokpipe/report/templates/page.html"} <= names
    assert "tokpipe/models/pretrained/fsq-4x8x8/model.safetensors" in names
    assert wheel.stat().st_size < 16 * 2**20
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert {"run", "s3", "aws"} <= set(metadata.get_all("Provides-Extra", []))


def test_without_extras_jobs_are_checked_and_outputs_are_read(base: Path, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "videos").mkdir()
    shutil.copy(ROOT / "examples/data/bigbuckbunny.mp4", tmp_path / "videos")
    output = tmp_path / "out"
    shutil.copytree(ROOT / "tests/golden/output_0_1_0", output)
    reads = ("status out", "inspect out", "rejected out", "audit out", "report out -o out.html")
    for words in ("check job.yaml", *reads):
        ended = call(base, tmp_path, "tokpipe", *words.split())
        assert ended.returncode == 0, f"{words}: {ended.stdout}"
    lines = "from tokpipe.reader import open_output\nprint(open_output('out').num_clips)"
    read = call(base, tmp_path, "python", "-c", lines)
    assert read.returncode == 0, read.stdout
    assert int(read.stdout) > 0


@pytest.mark.parametrize(
    "words",
    ["run job.yaml", "decode out --compare -o clip.png", "convert x.ckpt -o y --kind emu3"],
)
def test_a_command_that_needs_an_extra_names_it(base: Path, words: str, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB)
    shutil.copytree(ROOT / "tests/golden/output_0_1_0", tmp_path / "out")
    ended = call(base, tmp_path, "tokpipe", *words.split())
    assert "pip install 'tokpipe[run]'" in ended.stdout
    assert "Traceback" not in ended.stdout
    assert ended.returncode == 2


@pytest.mark.ray
def test_with_the_extra_run_a_folder_of_videos_is_tokenized(
    wheel: Path, base: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    binaries = environment(tmp_path_factory.mktemp("run"), wheel, "run")
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "videos").mkdir()
    write_videos(tmp_path / "videos", 2)
    ended = call(binaries, tmp_path, "tokpipe", "run", "job.yaml")
    assert ended.returncode == 0, ended.stdout
    assert (tmp_path / "codes").is_dir()
    audited = call(base, tmp_path, "tokpipe", "audit", "codes")
    assert audited.returncode == 0, audited.stdout
