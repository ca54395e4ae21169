"""A project with a job file, its videos and its finished output, for all tests of verbs."""

from pathlib import Path

import pytest

from tests.end_to_end.jobs import WITH_DECODER, files, run_without_ray, write_job, write_video
from tokpipe.config import load_job


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos of 20, 20 and 4 frames, and one that is not a video, in clips of 9 frames."""
    root = tmp_path_factory.mktemp("project")
    (root / "pyproject.toml").touch()
    write_video(root / "videos/Beach 1.mp4", seed=1)
    write_video(root / "videos/beach [2].mp4", seed=2)
    write_video(root / "videos/deep/katze-\u00e4.mp4", num_frames=4, seed=3)
    (root / "videos/broken.mp4").write_bytes(b"x" * 100)
    source = files(root / "videos/**")
    job = write_job(root / "jobs/demo.yaml", source, "out/demo", tokenizer=WITH_DECODER)
    run_without_ray(load_job(job))
    return root
