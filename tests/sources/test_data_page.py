"""docs/data.md: builds its tables and tars, and plans its sources over real videos."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.hub_server import Hub
from tests.pages import REPOSITORY, blocks_of, commands_of
from tokpipe.cli import main
from tokpipe.config import load_job
from tokpipe.config.sources import VIDEO_EXTENSIONS
from tokpipe.verbs.forecast import Forecast

SAMPLE = REPOSITORY / "examples/data/bigbuckbunny.mp4"
JOB = {
    **yaml.safe_load((REPOSITORY / "jobs/demo.yaml").read_text()),
    "sampling": {"fps": 8, "max_clip_frames": 17},
}
CLIPS = {
    # The sample is cut into 3 clips, of 17, 17 and 9 frames.
    "videos/": 4 * 3 + 3,  # also the one with another ending
    "videos/**/*.{mp4,webm}": 4 * 3 + 3,
    "videos/clips.csv": 2 + 2 + 3,  # 2.5 s and 2.78 s of the dog, and the cat
    "videos/list.jsonl": 2 * 3,
    "videos/clips.parquet": 3 + 3,  # the dog from 0.5 s on
    "videos/train.parquet": 3 + 3,
    "lerobot/meta/episodes/*/*.parquet": 2,  # episodes of 2 s
    "videos/*.tar": 2 * 3,
    "hf://datasets/my-org/clips/**/*.mp4": 2 * 3,
}


def test_every_source_on_the_page_has_its_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], hub: Hub
) -> None:
    video = SAMPLE.read_bytes()
    hub.repository("datasets/my-org/clips").commit({"a.mp4": video, "b/c.mp4": video, "d": video})
    for name in ("dog.mp4", "cat.mp4", "a/7.mp4", "a/8.mp4", "new.webm"):
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SAMPLE, path)
    shutil.copytree(REPOSITORY / "tests/cases/lerobot", tmp_path / "lerobot")
    path = tmp_path / "lerobot/videos/observation.images.top/chunk-000/file-000.mp4"
    path.parent.mkdir(parents=True)
    shutil.copy(SAMPLE, path)
    path = tmp_path / "jobs/mine.yaml"
    path.parent.mkdir()
    monkeypatch.chdir(tmp_path)
    seen = set()
    for block in blocks_of("docs/data.md"):
        if block.title is not None:
            (tmp_path / block.title).write_text(block.code)
        elif block.language == "python":
            exec(compile(block.code, str(block), "exec"), {})
        elif block.language == "sh":
            if commands_of(block.code)[0][0] == "tokpipe":
                continue  # needs a finished job; tests/docs checks them against the parser
            subprocess.run(["bash", "-ec", block.code], cwd=tmp_path, check=True)
        elif block.language == "yaml":
            section = yaml.safe_load(block.code)
            uri = section["sources"][0]["uri"] if "sources" in section else "$"
            if "$" in uri:
                continue  # no sources, or in a store; tests/docs checks them against the models
            path.write_text(yaml.safe_dump({**JOB, "storage": hub.storage, **section}))
            found = Forecast(load_job(path))
            assert (found.clips.value, found.rejected.value) == (CLIPS[uri], 0), str(block)
            seen.add(uri)
            if uri == "videos/*.tar":
                assert main(["check", str(path)]) == 0
                assert "carrying key, txt, json" in capsys.readouterr().out
    assert seen == set(CLIPS)


def test_the_page_lists_every_extension() -> None:
    page = (REPOSITORY / "docs/data.md").read_text()
    section = page.partition("### Extensions")[2].partition("##")[0]
    assert re.findall(r"`(\w+)`", section) == list(VIDEO_EXTENSIONS)


def test_what_the_page_says_is_rejected_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    shutil.copy(SAMPLE, folder / "dog.mp4")
    (folder / "picture.mp4").write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + bytes(2000))
    (folder / "x.mp4").mkdir()
    path = tmp_path / "mine.yaml"
    monkeypatch.chdir(tmp_path)
    path.write_text(yaml.safe_dump({**JOB, "sources": [{"kind": "files", "uri": "videos/*.mp4"}]}))
    found = Forecast(load_job(path))
    assert found.clips.value == 3
    assert found.reasons == {"still_picture": 1, "bad_row": 1}

    twice = [{"kind": "files", "uri": "videos/dog.mp4"}] * 2
    path.write_text(json.dumps({**JOB, "sources": twice}))
    assert main(["plan", str(path)]) == 2
    assert "set on_duplicate: keep_first" in " ".join(capsys.readouterr().err.split())
    path.write_text(json.dumps({**JOB, "sources": twice, "on_duplicate": "keep_first"}))
    assert Forecast(load_job(path)).clips.value == 3

    (folder / "list.csv").write_text("file\n../mine.mp4\n/etc/hostname\n")
    table = {"kind": "table", "uri": "videos/list.csv", "uri_column": "file"}
    path.write_text(yaml.safe_dump({**JOB, "sources": [table]}))
    assert main(["plan", str(path)]) == 2
    assert "sources[0].allowed_prefixes" in capsys.readouterr().err
