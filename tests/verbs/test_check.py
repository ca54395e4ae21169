"""``tokpipe check``: what it finds out on this machine, and what it admits it did not look at."""

import json
import shutil
import subprocess
import sys
import tarfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.conftest import S3Bucket
from tests.end_to_end.jobs import (
    TOKENIZER,
    files,
    run_without_ray,
    slow_tokenizer,
    write_job,
    write_video,
)
from tests.pictures import drawn, write_picture
from tokpipe.cli import main
from tokpipe.config import load_job
from tokpipe.config.job import StoreOptions
from tokpipe.errors import ConfigError, PlanMismatch, StorageError, TokpipeError, UnsafeStore
from tokpipe.stages.decode import decoder_versions
from tokpipe.storage import Store
from tokpipe.verbs import check as check_module
from tokpipe.verbs.check import check

BLOCKS = "tests.models.custom_tokenizers"


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number in range(6):
        write_video(folder / f"{number}.mp4", 4, seed=number)
    return folder


@pytest.fixture(autouse=True)
def _without_torch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Save the time of trying the tokenizer where a test is about something else."""
    if "with_torch" not in request.fixturenames:
        hide(monkeypatch, "torch")


@pytest.fixture
def with_torch() -> None:
    """For tests that try the tokenizer."""


def hide(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(
        check_module, "find_spec", lambda name: None if name in names else find_spec(name)
    )


def found(
    tmp_path: Path, source: dict[str, Any] | list[dict[str, Any]], **changes: Any
) -> list[str]:
    output = str(changes.pop("output_uri", tmp_path / "out"))
    job = load_job(write_job(tmp_path / "job.yaml", source, output, **changes))
    return [one.text for one in check(job)]


def table(tmp_path: Path, *rows: str, header: str = "uri,start,end") -> dict[str, Any]:
    path = tmp_path / "clips.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    columns = {"uri_column": "uri", "start_column": "start", "end_column": "end"}
    return {"kind": "table", "uri": str(path), **columns}


def one_with(lines: list[str], *words: str) -> str:
    (line,) = (line for line in lines if all(word in line for word in words))
    return line


# --- sources ---


def test_pictures_need_pillow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_picture(tmp_path / "v/a.png", drawn())
    (tmp_path / "fake/PIL").mkdir(parents=True)
    (tmp_path / "fake/PIL/__init__.py").write_text("raise ImportError('no Pillow here')")
    monkeypatch.syspath_prepend(str(tmp_path / "fake"))
    decoder_versions.cache_clear()  # what other tests found
    source = {"kind": "files", "uri": f"{tmp_path}/v", "media": "image"}
    job = write_job(tmp_path / "job.yaml", source, str(tmp_path / "out"))
    assert main(["check", str(job)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "pictures need Pillow, which does not load (no Pillow here)" in said
    assert "pip install 'tokpipe[images]' on every node" in said
    with pytest.raises(ConfigError, match="pictures need Pillow"):
        run_without_ray(load_job(job))


def test_pictures_are_opened_and_counted(tmp_path: Path, videos: Path) -> None:
    for number in range(3):
        write_picture(tmp_path / f"v/{number}.png", drawn(number))
    (tmp_path / "v/3.png").write_bytes(b"text")
    shutil.copy(videos / "0.mp4", tmp_path / "v")
    lines = found(tmp_path, {"kind": "files", "uri": f"{tmp_path}/v", "media": "image"})
    assert one_with(lines, "4 rows", "left out: 1 file: 1 .mp4 (0.mp4)")
    assert one_with(lines, "opened 4 pictures: rejected 1 (not_a_picture 1)")
    assert not [line for line in lines if "after the first frame" in line]
    lines = found(tmp_path, {"kind": "files", "uri": f"{tmp_path}/v", "media": "both"})
    assert one_with(lines, "opened 4 files: ")
    lines = found(tmp_path, {"kind": "files", "uri": f"{tmp_path}/v"})
    assert one_with(lines, "left out: 4 files: 4 .png", "To take pictures as well, set media: both")


def test_a_sample_is_opened_and_the_rest_is_admitted(videos: Path, tmp_path: Path) -> None:
    lines = found(tmp_path, files(videos))
    assert "  opened 4 videos: all fine" in lines
    assert "6 rows" in one_with(lines, "sources[0] (", " such as ")
    assert one_with(lines, "not checked: 2 of 6 videos of sources[0]")
    assert one_with(lines, "not checked: what comes after the first frame")
    assert lines[-1].startswith("not checked: ")


def test_bad_videos_in_the_sample_are_counted_with_their_reasons(
    videos: Path, tmp_path: Path
) -> None:
    (tmp_path / "page.mp4").write_text("<html>not found</html>")
    source = table(tmp_path, f"{videos}/0.mp4,,", "page.mp4,,", "gone.mp4,,", f"{videos}/1.mp4,,")
    source["allowed_prefixes"] = [str(videos), str(tmp_path)]
    lines = found(tmp_path, source, max_rejected_fraction=0.4)
    assert one_with(lines, "opened 4 videos: rejected 2 (", "missing 1", "not_a_video 1")
    assert one_with(lines, "warning: about 50%", "exit code 4: max_rejected_fraction is 0.4")
    assert not [
        one for one in found(tmp_path, source, max_rejected_fraction=0.5) if "code 4" in one
    ]


def test_a_source_whose_sampled_videos_are_all_bad_is_an_error(tmp_path: Path) -> None:
    source = table(tmp_path, "a.mp4,,", "b.mp4,,")
    with pytest.raises(ConfigError, match=r"and none can be decoded \(missing 2\), such as .*mp4"):
        found(tmp_path, source)
    assert main(["check", str(tmp_path / "job.yaml")]) == 2


def test_one_bad_source_is_not_hidden_by_a_good_one(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sources\[1\].*opened 1 .* none can be"):
        found(tmp_path, [files(videos), table(tmp_path, "gone.mp4,,")])


def test_rows_that_cannot_be_clips_are_counted_wherever_they_are(
    videos: Path, tmp_path: Path
) -> None:
    rows = [",,", *(f"{videos}/0.mp4,{start},{start - 1}" for start in (5, 6))]
    source = {**table(tmp_path, *rows, f"{videos}/0.mp4,,"), "allowed_prefixes": [str(videos)]}
    lines = found(tmp_path, source)
    assert one_with(lines, "warning: 3 of 4 rows will be rejected as bad_row", "line 2")
    assert "  opened 1 video: all fine" in lines
    with pytest.raises(ConfigError, match="none of 3 rows can be used; the first: line 2"):
        found(tmp_path, {**table(tmp_path, *rows), "allowed_prefixes": [str(videos)]})


def test_a_span_outside_its_video_is_found(videos: Path, tmp_path: Path) -> None:
    source = {**table(tmp_path, f"{videos}/0.mp4,60,70"), "allowed_prefixes": [str(videos)]}
    with pytest.raises(ConfigError, match=r"too_short 1.*0 frames of a video of 0\.500 s"):
        found(tmp_path, source)


def test_a_video_that_is_too_short_is_found_by_its_first_frame(
    videos: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="too_short 4"):
        found(tmp_path, files(videos), sampling={"fps": 8, "min_clip_frames": 5})


def test_members_of_tars_are_opened(videos: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(videos / "0.mp4", "000.mp4")
        (tmp_path / "001.mp4").write_bytes(b"no video")
        tar.add(tmp_path / "001.mp4", "001.mp4")
    lines = found(tmp_path, {"kind": "webdataset", "uri": str(tmp_path / "a.tar")})
    assert one_with(lines, "opened 2 videos: rejected 1 (not_a_video 1), such as ", "a.tar#001.mp4")


def test_rows_after_the_limit_are_neither_read_nor_claimed(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2):
        (tmp_path / f"{number}.csv").write_text(f"uri\n{videos}/{number}.mp4\n")
    source = {"kind": "table", "uri": f"{tmp_path}/*.csv", "uri_column": "uri"}
    monkeypatch.setattr(check_module, "MAX_ROWS", 1)
    lines = found(tmp_path, {**source, "allowed_prefixes": [str(videos)]})
    assert "more than 1 row" in one_with(lines, "sources[0] (", " such as ")
    assert one_with(lines, "not checked: rows of sources[0] after the first 1")


def test_repeated_clips_stop_the_check_unless_the_job_accepts_them(
    videos: Path, tmp_path: Path
) -> None:
    twice = [files(videos), {"kind": "files", "uri": f"{videos}/0.mp4"}]
    with pytest.raises(ConfigError, match="1 of 7 rows repeat the clip of an earlier row"):
        found(tmp_path, twice)
    assert found(tmp_path, twice, on_duplicate="keep_first")


def test_without_a_decoder_the_check_says_that_no_video_was_opened(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, "av", "torch")
    lines = found(tmp_path, files(videos))
    assert one_with(lines, "not checked: videos of sources[0] (PyAV is not installed here)")
    assert not [line for line in lines if "opened" in line]


@pytest.mark.s3
def test_videos_that_the_credentials_may_not_read_are_an_error(
    s3_bucket: S3Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = {"kind": "files", "uri": f"{s3_bucket.uri}/*.mp4"}
    write_video(tmp_path / "a.mp4")
    Store(s3_bucket.uri, StoreOptions()).put("a.mp4", (tmp_path / "a.mp4").read_bytes())
    lines = found(tmp_path, source, output_uri=f"{s3_bucket.uri}/out")
    assert one_with(lines, "out: new; can be written")
    assert not list(Store(f"{s3_bucket.uri}/out", StoreOptions()).list("")), "it cleans up"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageError, match="does not accept the credentials"):
        found(tmp_path, source)


# --- tokenizer ---


def custom(implementation: str, **declares: Any) -> dict[str, Any]:
    base = slow_tokenizer(Path("/"))
    declared = {**base["declares"], **declares}
    return {"kind": "custom", "implementation": f"{BLOCKS}:{implementation}", "declares": declared}


@pytest.mark.usefixtures("with_torch")
@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (custom("Blocks"), None),
        (custom("Missing"), "Missing in .* is not a class, but must be a subclass"),
        ({**custom("Blocks"), "implementation": "nowhere:Model"}, "nowhere cannot be imported"),
        (
            custom("Blocks", codebook_size=8),
            r"raised ValueError: codes .* but the codebook has 0 to 7",
        ),
        (custom("Transposed"), "as its traits declare"),
        (custom("Floats"), "as its traits declare"),
        ({**TOKENIZER, "weights": "{folder}/good.safetensors"}, None),
        ({**TOKENIZER, "weights": "{folder}/other.safetensors"}, "the weights do not fit"),
        ({**TOKENIZER, "weights": "{folder}/nan.safetensors"}, "holds NaN or infinity"),
        ({**TOKENIZER, "weights": "{folder}/cut.safetensors"}, "not a complete safetensors file"),
        ({**TOKENIZER, "weights": "{folder}/none.safetensors"}, "tokenizer.weights: no file at"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_the_tokenizer_is_built_and_encodes_noise(
    tokenizer: dict[str, Any], message: str | None, videos: Path, tmp_path: Path
) -> None:
    if "weights" in tokenizer:
        write_weights(tmp_path)
        tokenizer = {**tokenizer, "weights": tokenizer["weights"].format(folder=tmp_path)}
    if message is None:
        lines = found(tmp_path, files(videos), tokenizer=tokenizer)
        assert "  encoded noise on cpu: shapes and codes are as declared" in lines
    else:
        with pytest.raises(ConfigError, match=message):
            found(tmp_path, files(videos), tokenizer=tokenizer)


def write_weights(folder: Path) -> None:
    from tokpipe.config.tokenizer import NativeConfig
    from tokpipe.models.tokenizers import build_tokenizer

    config = NativeConfig.model_validate_json(json.dumps(TOKENIZER))
    state = {
        key: value.clone() for key, value in build_tokenizer(config, None).state_dict().items()
    }
    good = safetensors.torch.save(state)
    (folder / "good.safetensors").write_bytes(good)
    (folder / "cut.safetensors").write_bytes(good[:-100])
    key = next(key for key in state if key.startswith("encoder.conv_in"))
    broken = {**state, key: torch.full_like(state[key], float("nan"))}
    (folder / "nan.safetensors").write_bytes(safetensors.torch.save(broken))
    del state[key]
    (folder / "other.safetensors").write_bytes(safetensors.torch.save(state))


@pytest.mark.usefixtures("with_torch")
def test_a_type_that_a_custom_tokenizer_cannot_compute_in_is_found_without_a_gpu(
    videos: Path, tmp_path: Path
) -> None:
    encode = {"device": "cuda", "dtype": "bfloat16"}
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    lines = found(tmp_path, files(videos), encode=encode)
    assert one_with(lines, "not checked: codes on a GPU", "would wait for one")
    with pytest.raises(ConfigError, match="has no method compute_in"):
        found(tmp_path, files(videos), tokenizer=custom("Blocks"), encode=encode)


def test_without_torch_the_check_says_that_nothing_was_encoded(
    videos: Path, tmp_path: Path
) -> None:
    lines = found(tmp_path, files(videos))
    assert one_with(lines, "not checked: the tokenizer and its weights (torch is not installed")


# --- output ---


def test_the_output_is_probed_and_left_as_it_was(videos: Path, tmp_path: Path) -> None:
    assert one_with(found(tmp_path, files(videos)), "new; can be written")
    assert not (tmp_path / "out").exists()
    (tmp_path / "deep").mkdir()
    found(tmp_path, files(videos), output_uri=tmp_path / "deep/er/out")
    assert not list((tmp_path / "deep").iterdir())


def test_an_output_that_cannot_be_written_is_an_error(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="a folder above it is a file"):
        found(tmp_path, files(videos), output_uri=tmp_path / "file/out")


def test_a_failed_probe_is_not_hidden_by_its_cleaning_up(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(doing: str) -> Any:
        def refused(*_: Any) -> bool:
            raise StorageError(f"{doing} was denied")

        return refused

    monkeypatch.setattr(Store, "create", refuse("creating"))
    monkeypatch.setattr(Store, "delete", refuse("deleting"))
    with pytest.raises(StorageError, match="creating was denied"):
        found(tmp_path, files(videos))


def test_an_unsafe_store_ends_the_check_unless_the_job_accepts_it(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "create", lambda *_: True)
    with pytest.raises(UnsafeStore):
        found(tmp_path, files(videos))
    assert main(["check", str(tmp_path / "job.yaml")]) == 5
    output = {"uri": str(tmp_path / "out"), "accept_unsafe_store": True}
    assert one_with(found(tmp_path, files(videos), output=output), "warning: ", "exclusive create")


@pytest.mark.usefixtures("with_torch")
def test_an_output_of_other_settings_is_found_as_a_run_finds_it(
    videos: Path, tmp_path: Path
) -> None:
    job = load_job(write_job(tmp_path / "job.yaml", files(videos), str(tmp_path / "out")))
    run_without_ray(job)
    lines = found(tmp_path, files(videos))
    assert one_with(lines, "6 of 6 plan rows settled")
    assert not (tmp_path / "out/probe").exists(), "a finished output is not written to"
    with pytest.raises(PlanMismatch, match=r"sampling\.fps: 8\.0 -> 4\.0"):
        found(tmp_path, files(videos), sampling={"fps": 4, "max_clip_frames": 9})
    assert main(["check", str(tmp_path / "job.yaml")]) == 3


def test_an_output_that_was_begun_says_how_far_it_is(videos: Path, tmp_path: Path) -> None:
    job = load_job(write_job(tmp_path / "job.yaml", files(videos), str(tmp_path / "out")))
    from rich.console import Console

    from tokpipe.runtime.assemble import JobOutput

    output = JobOutput(job)
    output.start(Console(quiet=True))
    lines = found(tmp_path, files(videos))
    assert one_with(lines, "0 of 6 plan rows settled", "can be written")
    assert one_with(lines, "not checked: whether", "has the settings of this job")


def test_only_a_job_for_this_machine_says_nothing_about_others(
    videos: Path, tmp_path: Path
) -> None:
    assert one_with(found(tmp_path, files(videos)), "other machines of a cluster")
    lines = found(tmp_path, files(videos), runtime={"cluster": "local"})
    assert not [one for one in lines if "other machines" in one]


def test_a_check_needs_neither_ray_nor_torch_nor_a_decoder(videos: Path, tmp_path: Path) -> None:
    """As in an installation without extras, from a process that could import them."""
    job = write_job(tmp_path / "job.yaml", files(videos), str(tmp_path / "out"))
    hidden = ("ray", "torch", "av", "decord", "safetensors", "s3fs")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({hidden})); "
        f"from tokpipe.cli import main; sys.exit(main(['check', {str(job)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "torch is not installed here" in done.stdout


def test_every_error_of_a_check_has_an_exit_code_of_a_run(tmp_path: Path) -> None:
    with pytest.raises(TokpipeError):
        found(tmp_path, files(tmp_path / "nothing"))
    assert main(["check", str(tmp_path / "job.yaml")]) == 2
