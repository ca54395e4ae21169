"""The store that pages speak of, with a dataset in it."""

import csv
import io
import re
import tempfile
from pathlib import Path
from typing import Any

import safetensors.torch
import yaml

from tests.docs.scene import Scene
from tests.end_to_end.jobs import write_video
from tests.pages import REPOSITORY
from tests.s3_server import S3Server, filesystem_of
from tokpipe.config import parse_job
from tokpipe.models.tokenizers import build_tokenizer

BUCKETS = ("my-bucket", "bucket")
"""The buckets of examples."""
SMALL: dict[str, dict[str, Any]] = {
    "frames": {"buckets": [[32, 32], [32, 64]]},
    "encode": {"device": "cpu", "dtype": "float32"},
    "runtime": {"encode": {"cpus": 1, "max_actors": 1}},
}
"""What is changed in ``jobs/webvid.yaml``, so that CPUs can run it in seconds."""
NETWORK = {"ch": 32, "ch_mult": [1, 1, 1, 1]}


def webvid(scene: Scene, server: S3Server) -> dict[str, str]:
    """Make the dataset of ``jobs/webvid.yaml``, with two videos, and two outputs beside it.

    Returns the variables that the job's first lines set.
    """
    path = scene.clone / "jobs/webvid.yaml"
    job = yaml.safe_load(path.read_text())
    for section, changes in SMALL.items():
        job[section].update(changes)
    job["tokenizer"]["encoder"].update(NETWORK)
    path.write_text(yaml.safe_dump(job, sort_keys=False))

    fs = filesystem_of(server)
    for bucket in BUCKETS:
        if fs.exists(bucket):
            fs.rm(bucket, recursive=True)
        fs.mkdir(bucket)
    rows = io.StringIO()
    table = csv.writer(rows)
    table.writerow(["videoid", "name", "page_dir", "duration", "contentUrl"])
    with tempfile.TemporaryDirectory() as folder:
        for number in (7, 8):
            table.writerow([number, f"video {number}", "000001_000050", "PT2S", "https://h/7.mp4"])
            video = Path(folder) / "video.mp4"
            write_video(video, seed=number)
            fs.put_file(str(video), f"my-bucket/webvid/videos/000001_000050/{number}.mp4")
    fs.pipe_file("my-bucket/webvid/results_10M_train.csv", rows.getvalue().encode())
    lines = (REPOSITORY / "jobs/webvid.yaml").read_text()
    variables = dict(re.findall(r"^#   export (\w+)=(\S+)$", lines, re.MULTILINE))
    config = parse_job(path.read_text(), name=path.name, root=scene.clone, environ=variables)
    untrained = config.tokenizer.model_copy(update={"weights": None})
    weights = build_tokenizer(untrained, None).state_dict()
    fs.pipe_file("my-bucket/tokenizers/encoder_3d.safetensors", safetensors.torch.save(weights))
    for output in ("trial", "webvid"):
        fs.put(str(scene.clone / "out/mine"), f"bucket/codes/{output}", recursive=True)
    return variables
